"""`batchrun correct JOB FILE`: what a person decided about answers."""

from pathlib import Path

import click

from batchrun.cli.arguments import debug_option, job_argument, opened, print_err
from batchrun.terminal import plural


@click.command("correct")
@job_argument
@click.argument("file", type=click.Path(path_type=Path))
@debug_option
def command(job: Path, file: Path, **_: bool) -> None:
    """Take answers that a person corrected or confirmed in FILE, which `batchrun show JOB --review -o FILE` wrote.

    An edited answer corrects the row; a cleared needs_review confirms it. The next run writes them to the output. They
    are kept in NAME.corrections.jsonl in the job file's folder and hold for another prompt, model or endpoint, as long
    as the row's cells are the same. Nothing is sent.
    """
    from batchrun.job import RunOptions, command_line
    from batchrun.report import read_todo
    from batchrun.runner import Corrections

    with opened(job) as answered:
        found = read_todo(answered.prepared, file)
        corrections = Corrections(answered.prepared.job)
        corrections.save(found)
    changed = sum(one.changed for one in found)
    print_err(f"{plural(changed, 'answer')} corrected, {len(found) - changed:,} confirmed: {corrections.path.name}")
    print_err(f"run `{command_line(str(job), RunOptions())}` to write the output")
