"""`batchrun run JOB`: runs or resumes a job."""

import sys
from pathlib import Path
from typing import Any

import click

from batchrun.cli.arguments import execute, job_argument, run_flags


@click.command("run")
@job_argument
@run_flags
def command(job: Path, **flags: Any) -> None:  # noqa: ANN401  (click gives each flag its type)
    """Run or resume a job: ask new and changed rows, and write the output.

    Answers are kept in a checkpoint. An interrupted run resumes with the same command; a finished one does nothing
    until the input or the job changes. Progress goes to stderr; stdout stays empty but for --json.
    """
    sys.exit(execute(job, **flags))
