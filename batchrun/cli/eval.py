"""`batchrun eval JOB`: answers against the right ones."""

import sys
from pathlib import Path
from typing import Any

import click

from batchrun.cli.arguments import flags, job_argument, job_options, opened, print_err, print_json, print_parts
from batchrun.errors import ExitCode

gold_flags = flags(
    click.option(
        "--gold-file", "file", type=click.Path(path_type=Path), metavar="FILE", help="Gold is a column of FILE."
    ),
    click.option("--ignore-case", is_flag=True, help="Texts that differ only in case are equal."),
    click.option("--tolerance", type=float, default=0.0, metavar="X", help="Numbers that differ by X are equal."),
)
"""The flags that say where gold stands and how it is compared, but for --gold and --on."""


@click.command("eval")
@job_argument
@click.option("--gold", metavar="[ANSWER=]COLUMN", help="The column that holds the right answers.")
@click.option("--reviewed", metavar="ANSWER", help="Compare with what `batchrun correct` took.")
@click.option("--on", metavar="COLUMN", help="The column that joins the input and --gold-file.")
@gold_flags
@click.option("--min", "least", type=click.FloatRange(0, 1), metavar="X", help="Exit 1 if the accuracy is below X.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@job_options
def command(
    job: Path,
    gold: str | None,
    reviewed: str | None,
    on: str | None,
    least: float | None,
    *,
    file: Path | None,
    ignore_case: bool,
    tolerance: float,
    as_json: bool,
    **changes: Any,  # noqa: ANN401  (click gives each flag its type)
) -> None:
    """Compare answers with gold, the right answers: accuracy, scores of each label, confusions, costs.

    Counts are of distinct questions, so that equal rows count once. A failed row with gold counts as wrong; a row
    without gold is left out. The interval holds the accuracy on more rows like these with 95 % confidence. Nothing is
    sent.
    """
    from batchrun.report import GoldOptions, evaluate, evaluate_reviewed, evaluation_facts, evaluation_parts

    if (gold is None) == (reviewed is None):
        raise click.UsageError("name the right answers: --gold [ANSWER=]COLUMN, or --reviewed ANSWER")
    if reviewed is not None and least is not None:
        raise click.UsageError("--min needs --gold: rows that were picked for review say nothing about the others")
    with opened(job, **changes) as answered:
        if reviewed:
            found = evaluate_reviewed(answered, reviewed)
        else:
            found = evaluate(answered, GoldOptions(gold or "", file, on, ignore_case, tolerance))
    if as_json:
        print_json(evaluation_facts(found, least))
    else:
        print_parts(evaluation_parts(found, least))
    # The figures are printed either way: in CI people want to see by how much it failed.
    accuracy = found.accuracy.value
    if least is not None and accuracy is not None and accuracy < least:
        print_err(f"the accuracy {accuracy:.4f} is below --min {least:g}")
        sys.exit(ExitCode.SOME_FAILED)
