"""Running one job or several: found in folders, ordered, each run with its own summary, one exit code for all."""

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrun.cli.arguments import SUFFIXES, load, print_err, print_json, run_options
from batchrun.cli.pipes import piped, write_stdout
from batchrun.errors import BatchrunError, ConfirmError, ExitCode, JobFileError, UserError, places_reported
from batchrun.terminal import dated, place, wrapped

if TYPE_CHECKING:
    from batchrun.job import RunOptions
    from batchrun.prepare import Invocation
    from batchrun.records import Summary

LARGEST = 1 << 20
"""Bytes of a file of a folder that are looked at."""

_INTERRUPTED = {ExitCode.SIGINT, ExitCode.SIGTERM}


def execute(paths: Sequence[Path], *, quiet: bool, as_json: bool, log: Path | None, **flags: Any) -> int:  # noqa: ANN401  (click gives each flag its type)
    """Run jobs with flags, print how each ended, and return the worst exit code."""
    from batchrun.prepare import chain, check_readers
    from batchrun.runner import logged

    options = run_options(**flags)
    if as_json and options.writes_stdout:
        raise UserError("--json and --output - both write to standard output: leave one of them out")
    with logged(log, paths), places_reported(), piped(options) as options:
        jobs = chain(load_all(job_files(paths), options, quiet=quiet), options)
        running = _Running(quiet=quiet, as_json=as_json, debug=bool(flags.get("debug")))
        if len(jobs) == 1:
            summary = running.run(jobs[0])
            return ExitCode.USER if summary is None else summary.exit_code
        check_readers(jobs)
        return running.run_all(jobs, list(map(str, paths)), options)


def job_files(paths: Sequence[Path]) -> list[Path]:
    """Return job files, with those of folders in the order of their names; none twice.

    Raises UserError for a folder without any.
    """
    found: dict[str, Path] = {}
    for path in paths:
        inside = [path]
        if path.is_dir():
            # A folder of jobs often holds other YAML as well, such as docker-compose.yml: it is passed over.
            files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
            inside = [file for file in files if file.is_file() and _is_job(file)]
            if not inside:
                raise UserError(f"{path} holds no job file (*.yaml or *.yml with input and prompt)")
        for file in inside:
            # `batchrun jobs jobs/a.yaml` names a.yaml twice; a link to it is the same job, too.
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _is_job(file: Path) -> bool:
    from batchrun.job import is_job

    with file.open("rb") as opened:
        return is_job(opened.read(LARGEST).decode(errors="replace"))


def load_all(paths: Sequence[Path], options: "RunOptions", *, quiet: bool = False) -> "list[Invocation]":
    """Read job files, each with the flags that hold for it; `quiet`: without notices on a trial's kept flags.

    Raises the first's error where one is wrong, after those of all others were printed.
    """
    found, problems = [], []
    for path in paths:
        try:
            found.append(load(path, options, reads=options.retry is not None, quiet=quiet))
        except UserError as problem:
            problems.append(problem)
    for other in problems[:-1]:
        print_err(other.line)
    if problems:
        raise problems[-1]
    return found


class _Running:
    """Runs jobs one after the other and prints how each ended."""

    def __init__(self, *, quiet: bool, as_json: bool, debug: bool) -> None:
        self._quiet, self._as_json, self._debug = quiet, as_json, debug

    def run(self, link: "Invocation") -> "Summary | None":
        """Run one job; on a terminal ask before much is paid. None where a person then said no."""
        from batchrun.runner import chosen, closing_lines, run_job

        ui = chosen(quiet=self._quiet)
        try:
            summary = run_job(link, ui)
        except ConfirmError as problem:
            # cron has nobody to ask: there the message, which names --yes, is the end.
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise
            print_err(str(problem))
            if not click.confirm("Run it now?", err=True):
                return None
            summary = run_job(replace(link, options=replace(link.options, yes=True)), ui)
        if summary.output is not None and link.options.writes_stdout:
            if summary.exit_code in {ExitCode.DONE, ExitCode.SOME_FAILED}:
                write_stdout(Path(summary.output))
            # The file stands in a folder that is removed now: its path would lead nowhere.
            summary = replace(summary, output=None)
        if not self._quiet or summary.exit_code:
            print_err(dated(wrapped("\n".join(closing_lines(summary, Path.cwd())), sys.stderr)))
        if self._as_json:  # last: where stdout is full the lines above still say how the run ended
            print_json(summary)
        return summary

    def run_all(self, links: "Sequence[Invocation]", paths: Sequence[str], options: "RunOptions") -> int:
        """Run jobs in order, each after those whose output it reads, with one cap, and say how all are run again."""
        from batchrun.job import command_line
        from batchrun.prepare import worst
        from batchrun.runner import RESUMABLE

        ended: dict[str, int] = {}
        waiting = False
        spent = Decimal(0)
        for link in links:
            if (obstacle := _obstacle(link, ended)) is not None:
                waiting = True
                print_err(f"{link.shown}: not started: {obstacle}")
                continue
            code, cost = self._tried(replace(link, options=replace(link.options, spent=spent)))
            ended[link.shown] = code
            # One cap for the whole command: what a job may have spent is not there for the next one.
            spent += cost
            if code in _INTERRUPTED:
                break
        code = worst([*ended.values()])
        if (waiting or code in RESUMABLE) and not self._quiet:
            if code in {ExitCode.DONE, ExitCode.SOME_FAILED}:  # the limit has had its effect
                options = replace(options, limit=None, sample=None)
            command = command_line(paths[0], options, more=paths[1:])
            print_err(f"next    {command}   continues with these jobs")
        return code

    def _tried(self, link: "Invocation") -> tuple[int, Decimal]:
        """Run a job of several; return its exit code and what it cost at most, in USD."""
        from batchrun.runner import failed

        try:
            with places_reported():
                summary = self.run(link)
        except BatchrunError as problem:
            if self._debug:
                traceback.print_exc()
            line = problem.line
            if not isinstance(problem, JobFileError):
                line = dated(f"{link.shown}: {line}")
            print_err(line)
            failed(problem, [Path(link.shown)])
            if isinstance(problem, UserError):
                return problem.exit_code, Decimal(0)
            # Nobody knows here how much a job had spent when the disk failed: nothing more is spent under this cap.
            return problem.exit_code, link.options.max_cost or Decimal(0)
        if summary is None:
            return ExitCode.USER, Decimal(0)
        return summary.exit_code, summary.cost_at_most_usd


def _obstacle(link: "Invocation", ended: dict[str, int]) -> str | None:
    """Return why a job can't be started, None where it can."""
    for earlier in link.reads:
        output = place(earlier.job.output_path, Path.cwd())
        code = ended.get(earlier.shown)
        if code is None:
            return f"it reads {output}, and {earlier.shown} was not started"
        if code not in {ExitCode.DONE, ExitCode.SOME_FAILED}:
            return f"it reads {output}, and {earlier.shown} ended with exit code {code}"
        if not earlier.job.output_path.exists():
            return f"it reads {output}, which {earlier.shown} writes once all its rows are asked"
    return None
