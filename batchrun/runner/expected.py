"""Outputs that are not there yet, for checking the jobs that read them: files without rows, with their columns."""

from dataclasses import replace
from pathlib import Path

import polars as pl

from batchrun.errors import UserError
from batchrun.job import Job
from batchrun.runner.chain import Link
from batchrun.runner.prepare import Prepared

_UNTYPED = {".csv", ".tsv"}


class Expected:
    """The outputs that jobs of one command will write, as far as those were checked; kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, Path] = {}

    def add(self, prepared: Prepared) -> None:
        """Take the columns of a job's output where there is no such file yet."""
        output = prepared.job.output_path
        if output.exists():
            return
        schema = prepared.schema
        if output.suffix.lower() in _UNTYPED:
            schema = dict.fromkeys(schema, pl.String())
        self._files[output] = self._folder / f"{len(self._files)}.parquet"
        pl.DataFrame(schema=schema).write_parquet(self._files[output])

    def job(self, link: Link) -> tuple[Job, str | None]:
        """Return a job that reads such files in the place of missing outputs, and what it waits for, None for nothing.

        Raises UserError where the job that will write its input has mistakes.
        """
        job = link.job
        missing = {one.job.output_path: one.shown for one in link.reads if not one.job.output_path.exists()}
        for output, writer in missing.items():
            if output not in self._files:
                raise UserError(f"{link.shown} reads {output}, and {writer}, which writes it, has mistakes")
        if not missing:
            return job, None
        paths = [job.resolve(pattern) for pattern in job.input.patterns]
        paths = [self._files.get(path, path) for path in paths if path in self._files or path not in missing]
        known = [str(path) for path in paths] or [str(self._files[output]) for output in missing]
        waits = ", ".join(f"{output} (not there yet: {writer} writes it)" for output, writer in missing.items())
        return replace(job, input=replace(job.input, path=tuple(known))), waits
