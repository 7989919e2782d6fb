"""A comparison for people, for programs, and its changed rows as a file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from batchrun.errors import InputError, UserError
from batchrun.prepare import INPUT_CHANGED, Prepared
from batchrun.report.answered import BLOCK, OpenJob, text_of
from batchrun.report.comparison import Comparison, GoldComparison
from batchrun.report.figures import JobFigures, Share, percent
from batchrun.report.gold import contradiction_text
from batchrun.report.texttable import Table
from batchrun.table import Written, check_writable, unwritable, write_output
from batchrun.terminal import plural

SHOWN_LABELS = 15


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
        "jobs": [job.facts(accuracy) for job, accuracy in zip(found.jobs, accuracies, strict=True)],
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
        "contradictory": gold.contradictory,
        "ties": gold.ties,
        "mcnemar_p": gold.p_value,
        "more_labels": gold.more_labels,
    }


def comparison_parts(found: Comparison) -> Iterator[str | Table]:
    """Yield a comparison for a terminal: sentences and tables."""
    yield from sentences(found)
    yield from tables(found)


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
    if gold.gold.note:
        yield f"  {gold.gold.note}"
    if gold.contradictory:
        yield f"  {contradiction_text(gold.contradictory, gold.ties)}"
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
    jobs, rows = found.jobs, list[tuple[str, ...]]()
    if found.gold is not None:
        pairs = list(zip(jobs, found.gold.accuracies, strict=True))
        rows.append(("right", *(percent(share.value) for _, share in pairs)))
        rows.append(("cost per right answer", *(job.money(job.cost_per_right(share)) for job, share in pairs)))
    figures = "cost per 1,000", "median latency", "95 % within", "failed questions"
    rows += zip(figures, *(job.cells for job in jobs), strict=True)
    names = [job.name for job in jobs]
    yield Table(("", *names), rows, {1, 2})
    for column in found.columns:
        if labels and (shift := column.shift):
            shown = shift[:SHOWN_LABELS]
            counts = [(name, f"{first:,}", f"{second:,}", f"{second - first:+,}") for name, first, second in shown]
            title = ""
            if len(shift) > SHOWN_LABELS:
                title = f"the {SHOWN_LABELS} of {len(shift)} labels that changed most (--json has all)"
            yield Table((column.name, *names, "change"), counts, {1, 2, 3}, title)


def write_changed(jobs: tuple[OpenJob, OpenJob], found: Comparison, path: Path) -> Written:
    """Write the rows that differ to `path`. Raises UserError, or StorageError for a bad disk.

    Columns: those of the first input, `row` (from 1), each compared answer of both jobs as text, gold.
    """
    prepared = jobs[0].prepared
    rows = prepared.rows
    check_writable(path, [*rows.paths, *(job.checkpoint.path for job in jobs)], "-o")
    for name, dtype in rows.schema.items():
        if problem := unwritable(dtype, path.suffix.lower()):
            raise UserError(f'-o: column "{name}" {problem}; write another format')
    names = [job.name for job in found.jobs]
    if names[0] == names[1]:
        names = [f"{name}_{number}" for number, name in enumerate(names, 1)]
    added: dict[str, pl.Series] = {}

    def add(name: str, values: list[Any], dtype: pl.DataType) -> None:
        while name in rows.schema or name in added:
            name += "_"
        added[name] = pl.Series(values, dtype=dtype)

    numbers = [row.number for row in found.changed]
    add("row", numbers, pl.Int64())
    for column in found.columns:
        both = [row.first for row in found.changed], [row.second for row in found.changed]
        for name, answers in zip(names, both, strict=True):
            values = [answer.get(column.name) for answer in answers]
            texts = [None if value is None else text_of(value) for value in values]
            add(f"{column.name}_{name}", texts, pl.String())
    if found.gold is not None:
        add("right", [row.gold for row in found.changed], pl.String())
    more = pl.DataFrame(added)
    frames = _changed_rows(prepared, numbers, more)
    return write_output(frames, path, schema={**rows.schema, **more.schema}, csv=prepared.job.output.csv)


def _changed_rows(prepared: Prepared, numbers: Sequence[int], more: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield the rows with these numbers as the input has them, each next to its row of `more`."""
    wanted = pl.Series(numbers, dtype=pl.Int64)
    position = 0
    for frame in prepared.rows.frames(None, BLOCK):
        is_here = wanted.is_between(position + 1, position + frame.height)
        yield pl.concat([frame[wanted.filter(is_here) - position - 1], more.filter(is_here)], how="horizontal")
        position += frame.height
    if prepared.input_changed():
        raise InputError(INPUT_CHANGED)
