"""`batchrun correct JOB FILE`: what a person decided about answers."""

from pathlib import Path
from typing import Any

import click

from batchrun.cli.arguments import job_argument, job_options, opened, print_err, run_options
from batchrun.terminal import plural


@click.command("correct")
@job_argument
@click.argument("file", type=click.Path(path_type=Path))
@job_options
def command(job: Path, file: Path, **flags: Any) -> None:  # noqa: ANN401  (click gives each flag its type)
    """Take answers that a person corrected or confirmed in FILE, which `batchrun show JOB --review -o FILE` wrote.

    An edited answer corrects the row; a cleared needs_review confirms it. The next run writes them to the output. They
    are kept in NAME.corrections.jsonl in the job file's folder and hold for another prompt, model or endpoint, as long
    as the row's cells are the same. Nothing is sent.
    """
    from batchrun.job import command_line
    from batchrun.prepare import Corrections
    from batchrun.report import read_todo

    with opened(job, **flags) as answered:
        found, note = read_todo(answered, file)
        if not found:
            print_err(
                f"nothing to correct: no answer in {file} was edited, and no needs_review cleared; edit an answer to "
                "correct it, or clear needs_review to confirm it"
            )
            return
        # Only kept here: the next run, or export, puts them into the output.
        corrections = Corrections(answered.prepared.job)
        corrections.save(found)
    changed = sum(one.changed for one in found)
    print_err(f"{plural(changed, 'answer')} corrected, {len(found) - changed:,} confirmed: {corrections.path.name}")
    if note:
        print_err(note)
    print_err(f"run `{command_line(str(job), run_options(**flags))}` to write the output")
