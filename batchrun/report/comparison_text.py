"""A comparison for people, for programs, and its changed rows as a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from batchrun.checkpoint import Checkpoint
from batchrun.money import cost
from batchrun.prepare import Prepared
from batchrun.report.comparison import ChangedRow, Comparison, GoldComparison, JobFigures
from batchrun.report.evaluation import Share, money, percent, usd
from batchrun.report.show import text_of
from batchrun.report.texttable import Table
from batchrun.table import check_writable, write_output
from batchrun.terminal import plural

SHOWN_LABELS = 15
MEDIAN, SLOW = 0.5, 0.95


def comparison_facts(found: Comparison) -> dict[str, Any]:
    """Return a comparison for JSON: shares from 0 to 1, money in USD, latency in seconds."""
    accuracies = found.gold.accuracies if found.gold else (None, None)
    return {
        "rows": found.rows,
        "differ": found.differ,
        "unpaired": found.unpaired,
        "columns": [
            {
                "name": column.name,
                "compared": str(column.rule),
                "agreement": Share(column.equal, column.total).facts(),
                "labels": [dict(zip(("label", "first", "second"), row, strict=True)) for row in column.shift],
            }
            for column in found.columns
        ],
        "left_out": found.left_out,
        "gold": _gold_facts(found.gold) if found.gold else None,
        "jobs": [job_facts(*pair) for pair in zip(found.jobs, accuracies, strict=True)],
    }


def _gold_facts(gold: GoldComparison) -> dict[str, Any]:
    return {
        "answer": gold.gold.answer,
        "gold": gold.gold.column,
        "n": gold.total,
        "both": gold.both,
        "fixes": gold.fixes,
        "breaks": gold.breaks,
        "neither": gold.neither,
        "mcnemar_p": gold.p_value,
        "more_labels": gold.more_labels,
    }


def job_facts(job: JobFigures, accuracy: Share | None) -> dict[str, Any]:
    """Return the figures of one job for JSON."""
    return {
        "job": job.name,
        "accuracy": accuracy and accuracy.facts(),
        "failed": job.failed,
        "cost_per_1000_usd": usd(job.cost_per_question, 1_000),
        "cost_per_right_usd": usd(_per_right(job, accuracy)),
        "cost_kind": job.cost_kind,
        "latency_median_s": job.latency(MEDIAN),
        "latency_p95_s": job.latency(SLOW),
    }


def _per_right(job: JobFigures, accuracy: Share | None) -> float | None:
    if job.cost_per_question is None or accuracy is None or not accuracy.value:
        return None
    return job.cost_per_question / accuracy.value


def comparison_lines(found: Comparison, *, width: int, encoding: str) -> Iterator[str]:
    """Yield a comparison as lines for a terminal."""
    yield from sentences(found)
    for table in tables(found):
        yield ""
        yield from table.lines(width, encoding)


def sentences(found: Comparison) -> Iterator[str]:
    """Yield how many rows differ, how far the answers agree and, with gold, who is right where they differ."""
    yield f"{found.differ:,} of {plural(found.rows, 'row')} differ"
    if found.unpaired:
        yield f"  {plural(found.unpaired, 'row')} settled in one job alone, and not compared"
    for column in found.columns:
        yield f'"{column.name}" agrees for {Share(column.equal, column.total).of("distinct questions")}'
        yield f"  compared {column.rule}"
    if found.left_out:
        yield f"  not compared, since they are free text: {', '.join(found.left_out)}"
    if found.gold is not None:
        yield ""
        yield from _gold_sentences(found.gold, found.jobs)


def _gold_sentences(gold: GoldComparison, jobs: tuple[JobFigures, JobFigures]) -> Iterator[str]:
    first, second = (job.name for job in jobs)
    yield f'of {plural(gold.total, "distinct question")} with a value in "{gold.gold.column}":'
    yield f"  {gold.both:,} both right, {gold.neither:,} both wrong"
    yield f"  {gold.fixes:,} fixed: only {second} is right"
    yield f"  {gold.breaks:,} broken: only {first} is right"
    if gold.total:
        yield f"  McNemar's exact test: p = {gold.p_value:.3g}; {_advice(gold, first, second)}"


def _advice(gold: GoldComparison, first: str, second: str) -> str:
    more = gold.more_labels
    if more is None:
        return "no difference was seen"
    if more == 0:
        better = second if gold.fixes > gold.breaks else first
        return f"{better} is better"
    return f"not settled; if the difference is what it seems, about {more:,} more labels would settle it"


def tables(found: Comparison, *, labels: bool = True) -> Iterator[Table]:
    """Yield what each job costs and how long it takes, side by side; then how often each of the `labels` came."""
    rows: list[tuple[str, ...]] = []
    if found.gold is not None:
        accuracies = found.gold.accuracies
        rows.append(("right", *(percent(share.value) for share in accuracies)))
        per_right = [_per_right(*pair) for pair in zip(found.jobs, accuracies, strict=True)]
        rows.append(("cost per right answer", *map(side_money, found.jobs, per_right)))
    rows += [
        ("cost per 1,000", *(side_money(job, job.cost_per_question, 1_000) for job in found.jobs)),
        ("median latency", *(seconds(job.latency(MEDIAN)) for job in found.jobs)),
        ("95 % within", *(seconds(job.latency(SLOW)) for job in found.jobs)),
        ("failed questions", *(f"{job.failed:,}" for job in found.jobs)),
    ]
    yield Table(("", *(job.name for job in found.jobs)), rows, {1, 2})
    for column in found.columns:
        if labels and (shift := column.shift):
            shown = shift[:SHOWN_LABELS]
            counts = [(name, f"{first:,}", f"{second:,}", f"{second - first:+,}") for name, first, second in shown]
            title = ""
            if len(shift) > SHOWN_LABELS:
                title = f"the {SHOWN_LABELS} of {len(shift)} labels that changed most (--json has all)"
            header = (column.name, *(job.name for job in found.jobs), "change")
            yield Table(header, counts, {1, 2, 3}, title)


def side_money(job: JobFigures, amount: float | None, times: int = 1) -> str:
    """Return a mean cost of one job (picodollars, times a number of questions) for people."""
    return cost(0, job.cost_kind) if amount is None else money(amount * times, job.cost_kind)


def seconds(number: float | None) -> str:
    """Return a latency for people."""
    return "-" if number is None else f"{number:.2f} s"


def write_changed(prepared: Prepared, checkpoints: tuple[Checkpoint, Checkpoint], found: Comparison, path: Path) -> int:
    """Write the rows that differ to `path`; return their number. Raises UserError, or StorageError for a bad disk.

    Columns: `row` (from 1), those of the first input, each compared answer of both jobs as text, gold.
    """
    check_writable(path, [*(Path(file.path) for file in prepared.rows.files), *(one.path for one in checkpoints)])
    names = [job.name for job in found.jobs]
    if names[0] == names[1]:
        names = [f"{name}_{number}" for number, name in enumerate(names, 1)]
    columns: dict[str, tuple[pl.DataType, list[Any]]] = {}

    def add(name: str, dtype: pl.DataType, values: list[Any]) -> None:
        while name in columns:
            name += "_"
        columns[name] = (dtype, values)

    rows: list[ChangedRow] = found.changed
    for name in prepared.rows.columns:
        add(name, prepared.rows.schema[name], [row.cells[name] for row in rows])
    add("row", pl.Int64(), [row.number for row in rows])
    for column in found.columns:
        both = [row.first for row in rows], [row.second for row in rows]
        for name, answers in zip(names, both, strict=True):
            values = [answer.get(column.name) for answer in answers]
            add(f"{column.name}_{name}", pl.String(), [None if value is None else text_of(value) for value in values])
    if found.gold is not None:
        add("right", pl.String(), [row.gold for row in rows])
    schema = {name: dtype for name, (dtype, _) in columns.items()}
    frame = pl.DataFrame({name: values for name, (_, values) in columns.items()}, schema=schema)
    return write_output(iter([frame]), path, schema=schema, csv=prepared.job.output.csv).rows
