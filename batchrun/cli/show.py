"""`batchrun show JOB`: inputs and answers in the terminal."""

from pathlib import Path
from typing import Any

import click

from batchrun.cli.arguments import job_argument, job_options, opened, print_err, print_out, print_parts
from batchrun.terminal import aside, plural


@click.command("show")
@job_argument
@click.option("-n", "count", type=click.IntRange(min=1), metavar="N", help="Show N rows (10; 200 with --review).")
@click.option("--failed", is_flag=True, help="Show rows that failed, with their errors.")
@click.option("--row", "number", type=click.IntRange(min=1), metavar="N", help="Show everything about row N.")
@click.option("--review", is_flag=True, help="Write rows that need a look to a file, for `batchrun correct`.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="The file of --review.")
@click.option("--id", "ids", multiple=True, metavar="COLUMN", help="With --review: COLUMN identifies a row.")
@job_options
def command(
    job: Path,
    count: int | None,
    number: int | None,
    output: Path | None,
    ids: tuple[str, ...],
    *,
    failed: bool,
    review: bool,
    **flags: Any,  # noqa: ANN401  (click gives each flag its type)
) -> None:
    """Show inputs and answers as a table that fits the terminal, also during a run.

    Rows are numbered from 1, in the order of the input. Long texts are cut; --row N shows one row in full. Nothing is
    sent.

    With --review the rows that most need a look go to a file: edit an answer to correct it, or clear needs_review to
    confirm it, then run `batchrun correct JOB FILE`.
    """
    from batchrun.report import record, row_record, shown_rows, write_todo

    if review != (output is not None) or (ids and not review):
        raise click.UsageError("--review, -o FILE and --id COLUMN belong together: batchrun show JOB --review -o FILE")
    with opened(job, **flags) as answered:
        if output is not None:
            written, order = write_todo(answered, output.absolute(), count or 200, ids)
            print_err(f"{plural(written.rows, 'row')} in {output}: {order}{aside(written.note)}")
            return
        if number is not None:
            print_out("\n".join(record(row_record(answered, number))))
            return
        shown = shown_rows(answered, count or 10, failed=failed)
        counts = answered.checkpoint.counts()
    # Rows are shown as the model left them: what a person answered is among the failed ones.
    number_failed = counts.failed + counts.by_person
    what, none, total = "answered", "no row is answered yet", counts.ok - counts.by_person
    if failed:
        what, none, total = "failed", "no row has failed", number_failed
    if shown.rows:
        print_parts([shown])
    else:
        print_err(none)
    if total > len(shown.rows):
        print_err(f"{len(shown.rows):,} of {plural(total, f'{what} row')}; -n shows more")
    if number_failed and not failed:
        print_err(f"{plural(number_failed, 'row')} failed: --failed shows them")
