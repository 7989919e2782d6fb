"""`batchrun prune JOB`: drops answers that the input no longer asks for."""

import time
from pathlib import Path

import click

from batchrun.cli.arguments import debug_option, endpoint_option, job_argument, load, tell
from batchrun.terminal import plural

DAYS = 30


@click.command("prune")
@job_argument
@endpoint_option
@debug_option
def command(job: Path, endpoint: str | None, **_: bool) -> None:
    """Drop answers that no row asks for any more and that are older than 30 days.

    Until then an edited prompt can be changed back, or a removed row come back, at no cost.
    """
    from batchrun.checkpoint import Checkpoint, lock
    from batchrun.job import RunOptions, merged

    loaded, _environment = load(job)
    path = merged(loaded.job, RunOptions(endpoint=endpoint)).checkpoint_path
    with lock(path), Checkpoint.open(path, must_exist=True) as checkpoint:
        number = checkpoint.prune(older_than=time.time() - DAYS * 86_400)
    tell(f"{plural(number, 'answer')} dropped")
