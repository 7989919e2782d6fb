"""`batchrun run JOB...`: runs or resumes jobs."""

import sys
from pathlib import Path
from typing import Any

import click

from batchrun.cli.arguments import jobs_argument, run_flags
from batchrun.cli.several import execute


@click.command("run")
@jobs_argument
@run_flags
def command(jobs: tuple[Path, ...], **flags: Any) -> None:  # noqa: ANN401  (click gives each flag its type)
    """Run or resume a job: ask new and changed rows, and write the output.

    Answers are kept in a checkpoint. An interrupted run resumes with the same command; a finished one does nothing
    until the input or the job changes. Progress goes to stderr; stdout stays empty but for --json.

    Several jobs, or a folder of them, run one after the other: a job whose input is another's output comes after it,
    and is started only when that one ended with exit code 0 or 1. --max-cost then is for all of them, --limit for each;
    the exit code is the worst of all.
    """
    sys.exit(execute(jobs, **flags))
