"""Rows for which a person gave an answer, and how a job stands with them."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import orjson

from batchrun.checkpoint import Checkpoint, Counts
from batchrun.prepare.corrections import Corrections, corrected
from batchrun.prepare.prepared import Prepared
from batchrun.records import Status


class ReviewedRow(NamedTuple):
    """A row with a person's answer that fits the job's columns: `answer` as the output has it, `model` the model's.

    `question` is None where the row failed before it was asked, `model` and `error_type` where there is none.
    """

    position: int
    question: int | None
    error_type: str | None
    model: str | None
    answer: str


def reviewed_rows(prepared: Prepared, checkpoint: Checkpoint, *, failed: bool) -> Iterator[ReviewedRow]:
    """Yield the rows that a person reviewed, in input order; `failed`: only those that failed.

    The input is read only if the job has corrections. Raises InputError as reading does.
    """
    corrections = Corrections(prepared.job)
    names = corrections.columns(prepared.rows.columns)
    first = checkpoint.positions(Status.FAILED, 1) if names and failed else [0]
    if not names or not first:
        return
    for batch in prepared.rows.batches(names, first[0]):
        outcomes = checkpoint.outcomes(batch.position, len(batch.rows), ("status", "question", "error_type"))
        # Rows that were added meanwhile have no outcome; whoever writes the output notices them.
        for position, (cells, outcome) in enumerate(zip(batch.rows, outcomes, strict=False), batch.position):
            status, question, error_type = outcome
            if failed and status != Status.FAILED:
                continue
            correction = corrections.find(dict(zip(names, cells, strict=True)))
            if correction is None:
                continue
            model = checkpoint.outcomes(position, 1, ("answer",))[0][0] if status == Status.OK else None
            answer = corrected(prepared.form, model, correction)
            if answer is not None:
                yield ReviewedRow(position, question, error_type, model, answer)


def with_answers_of_people(counts: Counts, rows: Collection[ReviewedRow]) -> Counts:
    """Return counts of a checkpoint in which these failed rows are answered; those that a run kept are so already."""
    if counts.by_person:
        return counts
    errors = Counter(counts.errors or {})
    errors.subtract(row.error_type or "" for row in rows)
    return replace(
        counts,
        ok=counts.ok + len(rows),
        failed=counts.failed - len(rows),
        errors={name: number for name, number in errors.items() if number > 0},
        by_person=len(rows),
    )


def add_corrections(counted: Mapping[str, Counter[str]], rows: Iterable[ReviewedRow]) -> None:
    """Count what people answered in these rows in place of the model's values, by column."""
    if not counted:  # nor is the input read
        return
    for row in rows:
        model, answer = orjson.loads(row.model or "null"), orjson.loads(row.answer)
        for name, values in counted.items():
            values[_label(answer.get(name))] += 1
            if model is not None:
                before = _label(model.get(name))
                values[before] -= 1
                if not values[before]:
                    del values[before]


def _label(value: Any) -> str:  # noqa: ANN401  (any JSON value)
    """Return a value as the checkpoint counts it."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()
