"""`batchrun retry JOB`: re-asks rows that failed permanently."""

import sys
from pathlib import Path
from typing import Any

import click

from batchrun.cli.arguments import job_argument, run_flags
from batchrun.cli.several import execute


@click.command("retry")
@job_argument
@click.option("--only", metavar="TYPE,…", default="", help="Only failures of these types (the column error_type).")
@run_flags
def command(job: Path, only: str, **flags: Any) -> None:  # noqa: ANN401  (click gives each flag its type)
    """Re-ask rows that failed permanently, then continue like `batchrun run`.

    Every run re-asks rows that failed for a while (rate limits, timeouts, server errors). This command is for the
    others, after you have changed something outside the job file. `--only in_batch` gives up batches that never end:
    their questions are asked again, and both may be billed.
    """
    from batchrun.runner import error_types

    types = error_types(filter(None, map(str.strip, only.split(","))), flag="--only")
    sys.exit(execute([job], retry=types, **flags))
