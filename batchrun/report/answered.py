"""Rows of the input with their answers, as the checkpoint has them now."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from batchrun.checkpoint import Checkpoint
from batchrun.errors import InputError
from batchrun.prepare import INPUT_CHANGED, Prepared
from batchrun.records import Status
from batchrun.runner import outputs

FIELDS = ("status", "question", "first", "cost", "seconds", "answer")
BLOCK = 10_000
"""Rows that are read at a time."""


class AnsweredRow(NamedTuple):
    """One row: cells of the input, and how its question stands.

    `question` is None for a row that was not asked. `cost` (picodollars) is on the question's first row, else 0;
    `seconds` is the latency. `answer` holds a value for each answer column, and nothing unless the status is ok.
    `probabilities` are those of a decision model's answers; empty for other models. `details` are the further columns
    that were asked for.
    """

    position: int
    cells: Sequence[Any]
    status: str
    question: int | None
    first: bool
    cost: int
    seconds: float | None
    answer: Mapping[str, Any]
    probabilities: Mapping[str, float | None]
    details: Sequence[Any]


def answered_rows(
    prepared: Prepared,
    checkpoint: Checkpoint,
    columns: Sequence[str],
    start: int = 0,
    details: Sequence[str] = (),
    *,
    before: bool = False,
    any_wording: bool = False,
) -> Iterator[AnsweredRow]:
    """Yield the rows from position `start` on, in input order, with their cells in `columns` (no name twice).

    `details` are names of the checkpoint's OUTCOME_COLUMNS. `before`: with the answers to the wording before the last
    edit. Raises UserError where the input is not that of the last run, or the wording (but for `any_wording`, of a
    trial with --set), InputError if the input changes meanwhile.
    """
    outputs.check_plan(prepared, checkpoint.current_plan(), any_wording=any_wording)
    for batch in prepared.rows.batches(columns, start, BLOCK):
        outcomes = checkpoint.outcomes(batch.position, len(batch.rows), (*FIELDS, *details), before=before)
        if len(outcomes) != len(batch.rows):
            raise InputError(INPUT_CHANGED)
        for position, (cells, outcome) in enumerate(zip(batch.rows, outcomes, strict=True), batch.position):
            status, question, first, cost, seconds, text, *more = outcome
            values = answer_values(prepared, text) if status == Status.OK else ({}, {})
            yield AnsweredRow(position, cells, status, question, bool(first), cost or 0, seconds, *values, more)


def answer_values(prepared: Prepared, text: str) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Return the value of each answer column, and its probability where the model gives one.

    `text` is an answer as the checkpoint keeps it.
    """
    if prepared.form.schema is None:
        return dict.fromkeys(prepared.form.columns, text), {}
    try:
        values = orjson.loads(text)
    except ValueError:  # an answer before an edit that made columns of a text
        values = {}
    # A chat model's column may be called NAME_prob, too.
    probabilities = {one.name: values.get(f"{one.name}_prob") for one in prepared.form.questions}
    return {name: values.get(name) for name in prepared.form.columns}, probabilities
