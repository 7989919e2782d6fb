"""Outputs that are not there yet, for checking the jobs that read them: files without rows, with their columns."""

import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from batchrun.errors import BatchrunError, UserError
from batchrun.job import Job, matches
from batchrun.prepare.invocation import Invocation
from batchrun.prepare.prepared import Prepared, prepare_job

_UNTYPED = {".csv", ".tsv"}


class Expected:
    """The outputs that jobs of one command will write, as far as those were checked; kept in a folder."""

    def __init__(self, folder: Path, *, existing: bool = False) -> None:
        """`existing`: outputs that are there count as well, with the columns that the next run gives them."""
        self._folder, self._existing = folder, existing
        self._files: dict[Path, Path] = {}

    def add(self, prepared: Prepared) -> None:
        """Take the columns of a job's output where it will be written."""
        output = prepared.job.output_path
        if not self._awaits(output):
            return
        schema = prepared.schema
        # Types of a CSV follow from its values, and there are none yet.
        if output.suffix.lower() in _UNTYPED:
            schema = dict.fromkeys(schema, pl.String())
        self._files[output] = self._folder / f"{len(self._files)}.parquet"
        pl.DataFrame(schema=schema).write_parquet(self._files[output])

    def _awaits(self, output: Path) -> bool:
        return self._existing or not output.exists()

    def job(self, link: Invocation) -> tuple[Job, str | None]:
        """Return a job that reads such files in the place of missing outputs, and what it waits for, None for nothing.

        Raises UserError where the job that will write its input has mistakes.
        """
        job = link.job
        missing = {one.job.output_path: one.shown for one in link.reads if self._awaits(one.job.output_path)}
        for output, writer in missing.items():
            if output not in self._files:
                raise UserError(f"{link.shown} reads {output}, and {writer}, which writes it, has mistakes")
        if not missing:
            return job, None
        known: list[str] = []
        for pattern in map(str, map(job.resolve, job.input.patterns)):
            found = [str(self._files[output]) for output in missing if matches(str(output), pattern)]
            if found:
                # Files that are there already belong to the input next to the expected ones.
                there = glob.glob(pattern, recursive=True)  # noqa: PTH207  (an absolute pattern)
                known += [glob.escape(file) for file in there if Path(file) not in missing]
            else:
                known.append(pattern)
            known += found
        waits = ", ".join(f"{output} (not there yet: {writer} writes it)" for output, writer in missing.items())
        return replace(job, input=replace(job.input, path=tuple(known))), waits


def check_readers(links: Sequence[Invocation]) -> None:
    """Raise the mistakes of jobs that read what another of them writes, before that one is asked and paid.

    What is wrong with a job that writes such an input is left to its own run, and so are its readers.
    """
    _check(links, existing=False)
    try:
        for link in links:
            if link.reads and all(one.job.output_path.exists() for one in link.reads):
                with prepare_job(link):
                    pass
    except BatchrunError:
        # The output that it reads may be older than an edit of the job that writes it, such as another answer column.
        _check(links, existing=True)


def _check(links: Sequence[Invocation], *, existing: bool) -> None:
    """Check jobs against the columns that missing outputs will have; `existing`: all outputs. Raises their mistakes."""
    writers = {one.shown for link in links for one in link.reads if existing or not one.job.output_path.exists()}
    with TemporaryDirectory(prefix="batchrun-") as folder:
        expected = Expected(Path(folder), existing=existing)
        for link in links:
            waits = False
            try:
                job, awaited = expected.job(link)
                waits = awaited is not None
                if waits or link.shown in writers:
                    with prepare_job(link, job=job) as prepared:
                        expected.add(prepared)
            except BatchrunError:
                if waits:
                    raise
