"""`batchrun compare JOB JOB2`: two jobs on the same rows."""

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from batchrun.cli.arguments import JobPath, debug_option, give, job_argument, opened, tell
from batchrun.cli.eval import gold_flags, gold_options


@click.command("compare")
@job_argument
@click.argument("other", type=JobPath(), metavar="JOB2")
@click.option("--gold", metavar="[ANSWER=]COLUMN", help="The column that holds the right answers.")
@click.option("--on", metavar="COLUMN", help="The column that identifies a row, where the inputs differ.")
@gold_flags
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the changed rows to FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@debug_option
def command(
    job: Path,
    other: Path,
    *,
    gold: str | None,
    on: str | None,
    output: Path | None,
    as_json: bool,
    file: Path | None,
    **flags: Any,  # noqa: ANN401  (click gives each flag its type)
) -> None:
    """Compare two jobs on the same rows: which answers differ, what each costs and how long it takes.

    With gold: who is right where they differ, and whether that may be chance (McNemar's exact test). Rows are paired by
    their position where both jobs read the same files, else by the column --on. Nothing is sent.
    """
    from batchrun.report.compare import Side, compare
    from batchrun.report.comparing import comparison_lines, facts, write_changed

    flags.pop("debug")
    options = gold_options(gold, file, on if file else None, **flags) if gold else None
    with opened(job) as (p, checkpoint), opened(other) as (p2, checkpoint2):
        sides = Side(p.job.name, p, checkpoint), Side(p2.job.name, p2, checkpoint2)
        found = compare(*sides, gold=options, on=on, keep_rows=output is not None)
        if output is not None:
            written = write_changed(p, (checkpoint, checkpoint2), found, output.absolute())
            tell(f"{written:,} changed rows in {output}")
    if as_json:
        import orjson

        give(orjson.dumps(facts(found)).decode())
        return
    width, encoding = shutil.get_terminal_size().columns, sys.stdout.encoding or "utf-8"
    give("\n".join(comparison_lines(found, width=width, encoding=encoding)))
