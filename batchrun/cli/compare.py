"""`batchrun compare JOB JOB2`: two jobs on the same rows, two prompts or several models of one job."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrun.cli.arguments import JobPath, debug_option, job_argument, opened, print_err, print_json, print_parts
from batchrun.cli.eval import gold_flags
from batchrun.terminal import aside

if TYPE_CHECKING:
    from batchrun.report import OpenJob, Table


@click.command("compare")
@job_argument
@click.argument("other", type=JobPath(), metavar="[JOB2]", required=False)
@click.option("--model", "models", multiple=True, metavar="NAME", help="Compare models of JOB; repeat it.")
@click.option("--variant", "variants", multiple=True, metavar="NAME", help="Compare JOB with a trial; repeat it.")
@click.option("--before", is_flag=True, help="Compare with JOB before the last edit of its prompt.")
@click.option("--gold", metavar="[ANSWER=]COLUMN", help="The column that holds the right answers.")
@click.option(
    "--min", "least", type=click.FloatRange(0, 1), metavar="X", help="Name the cheapest model that reaches X."
)
@click.option("--on", metavar="COLUMN", help="The column that identifies a row, where the inputs differ.")
@gold_flags
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the changed rows to FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@debug_option
def command(  # noqa: PLR0913  (a flag each)
    job: Path,
    other: Path | None,
    *,
    models: tuple[str, ...],
    variants: tuple[str, ...],
    before: bool,
    gold: str | None,
    least: float | None,
    on: str | None,
    output: Path | None,
    as_json: bool,
    file: Path | None,
    ignore_case: bool,
    tolerance: float,
    **_: bool,
) -> None:
    """Compare two jobs on the same rows: which answers differ, what each costs and how long it takes.

    JOB is compared with JOB2, with itself before the last edit of its prompt (--before), or with what it was run with:
    models (`batchrun JOB --model NAME`) and trials (`--variant NAME`). Two are compared row by row, more as a table;
    JOB itself is the first of them unless --model names two.

    With gold: who is right where they differ, and whether that may be chance (McNemar's exact test). Rows are paired by
    their position where both jobs read the same files, else by the column --on. Nothing is sent.
    """
    from batchrun.report import (
        GoldOptions,
        compare,
        comparison_facts,
        comparison_parts,
        model_facts,
        model_parts,
        model_result,
        write_changed,
    )

    several = bool(models or variants)
    if (other is not None) + several + before != 1:
        raise click.UsageError("name what to compare JOB with: JOB2, --before, --model or --variant")
    if least is not None and not (several and gold):
        raise click.UsageError("--min chooses among models by gold: it needs --gold, and --model or --variant")
    # --on pairs the rows of two inputs; only where there is another file does it join the gold, too.
    options = None
    if gold:
        options = GoldOptions(gold, file, on if file else None, ignore_case, tolerance)
    # Two sides get both: the table of models and the comparison row by row.
    facts: dict[str, Any] = {}
    parts: list[str | Table] = []
    with ExitStack() as stack:
        jobs = _runs(stack, job, models, variants) if several else _two(stack, job, other)
        if output is not None and len(jobs) > 2:  # noqa: PLR2004  (two sides)
            raise click.UsageError("-o writes the rows that differ between two runs: name two")
        if several:
            results = [model_result(one, options) for one in jobs]
            facts = model_facts(results, least)
            parts = [*model_parts(results, least), ""]
        if len(jobs) == 2:  # noqa: PLR2004  (two sides)
            first, second = jobs
            found = compare(first, second, gold=options, on=on, keep_rows=output is not None)
            facts |= comparison_facts(found)
            parts += comparison_parts(found)
            if output is not None:
                written = write_changed((first, second), found, output.absolute())
                print_err(f"{written.rows:,} changed rows in {output}{aside(written.note)}")
    if as_json:
        print_json(facts)
    else:
        print_parts(parts)


def _runs(stack: ExitStack, job: Path, models: tuple[str, ...], variants: tuple[str, ...]) -> "list[OpenJob]":
    """Open the runs of one job: itself, unless two models are named, then those with other models, then trials."""
    runs = [{"model": name} for name in models] + [{"variant": name} for name in variants]
    if len(models) < 2:  # noqa: PLR2004  (two sides)
        runs.insert(0, {})
    return [
        replace(
            stack.enter_context(opened(job, **run)),
            name=next(iter(run.values()), job.stem),
            any_wording="variant" in run,
        )
        for run in runs
    ]


def _two(stack: ExitStack, job: Path, other: Path | None) -> "list[OpenJob]":
    """Open two jobs, or one before and after an edit."""
    first = stack.enter_context(opened(job))
    if other is not None:
        return [first, stack.enter_context(opened(other))]
    return [first.before_edit(), replace(first, name="now")]
