"""`batchrun prune JOB`: deletes answers that the input no longer asks for."""

import time
from pathlib import Path
from typing import Any

import click

from batchrun.cli.arguments import job_argument, job_options, print_err, to_read
from batchrun.terminal import plural

# A prompt that is changed back within a month finds its answers.
DAYS = 30


@click.command("prune")
@job_argument
@job_options
def command(job: Path, **flags: Any) -> None:  # noqa: ANN401  (click gives each flag its type)
    """Delete answers that no row asks for any more and that are older than 30 days.

    Until then an edited prompt can be changed back, or a removed row come back, at no cost.
    """
    from batchrun.checkpoint import Checkpoint, lock

    path = to_read(job, **flags).job.checkpoint_path
    # A run that begins meanwhile would look for answers that are being deleted.
    with lock(path), Checkpoint.open(path, must_exist=True) as checkpoint:
        number = checkpoint.prune(older_than=time.time() - DAYS * 86_400)
    print_err(f"{plural(number, 'answer')} deleted")
