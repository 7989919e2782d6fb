"""A job that is open for reading, and its rows with their answers as the checkpoint has them now."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import orjson

from batchrun.checkpoint import Checkpoint
from batchrun.errors import InputError, UserError
from batchrun.prepare import INPUT_CHANGED, Correction, Invocation, Prepared, corrected, prepare_job
from batchrun.records import Status
from batchrun.runner import outputs

FIELDS = ("status", "question", "first", "cost", "seconds", "answer")
BLOCK = 10_000
"""Rows that are read at a time."""


class AnsweredRow(NamedTuple):
    """One row: cells of the input by column, and how its question stands.

    `values` are the cells in the order of the columns that were asked for, as a renderer takes them.
    `question` is None for a row that was not asked. `cost` (picodollars) is on the question's first row, else 0;
    `seconds` is the latency. `answer` holds a value for each answer column, and nothing unless the status is ok.
    `probabilities` are those of a decision model's answers; empty for other models. `details` are the further columns
    that were asked for.
    """

    position: int
    cells: Mapping[str, Any]
    values: Sequence[Any]
    status: str
    question: int | None
    first: bool
    cost: int
    seconds: float | None
    answer: Mapping[str, Any]
    probabilities: Mapping[str, float | None]
    details: Sequence[Any]

    @property
    def is_settled(self) -> bool:
        """Whether its question is answered or failed."""
        return self.status in {Status.OK, Status.FAILED}


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job that is open for reading: its input, and the answers in its checkpoint.

    `before`: it stands for the job before its wording was edited. `any_wording`: the answers may be those to another
    wording than the job file's, which a trial with --set has.
    """

    name: str
    prepared: Prepared
    checkpoint: Checkpoint
    before: bool = False
    any_wording: bool = False

    def before_edit(self) -> Self:
        """Return the job before the last edit of its wording. Raises UserError where that is not kept."""
        if not self.checkpoint.has_before():
            raise UserError(
                "--before: the prompt was not edited between the last two runs, or the input changed as well"
            )
        return replace(self, name="before", before=True)

    @property
    def answers(self) -> tuple[str, ...]:
        """The names of the answer columns."""
        return tuple(self.prepared.form.columns)

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """The columns of the input that the prompt uses; those of the output where it uses none."""
        return tuple(self.prepared.renderer.columns or self.prepared.kept)

    def check_plan(self) -> None:
        """Raise UserError where the input is not that of the last run, or the wording."""
        outputs.check_plan(self.prepared, self.checkpoint.current_plan(), any_wording=self.any_wording)

    def rows(self, columns: Sequence[str] = (), start: int = 0, details: Sequence[str] = ()) -> Iterator[AnsweredRow]:
        """Yield the rows from position `start` on, in input order, with their cells in `columns` (no name twice).

        `details` are names of the checkpoint's OUTCOME_COLUMNS. Raises UserError as `check_plan` does, InputError if
        the input changes meanwhile.
        """
        self.check_plan()
        for batch in self.prepared.rows.batches(columns, start, BLOCK):
            count = len(batch.rows)
            outcomes = self.checkpoint.outcomes(batch.position, count, (*FIELDS, *details), before=self.before)
            if len(outcomes) != count:
                raise InputError(INPUT_CHANGED)
            for position, (values, outcome) in enumerate(zip(batch.rows, outcomes, strict=True), batch.position):
                cells = dict(zip(columns, values, strict=True))
                status, question, first, cost, seconds, text, *more = outcome
                answer = self._values(text) if status == Status.OK else ({}, {})
                yield AnsweredRow(
                    position, cells, values, status, question, bool(first), cost or 0, seconds, *answer, more
                )

    def corrected(self, row: AnsweredRow, correction: Correction | None) -> Mapping[str, Any]:
        """Return the answers that the output has in place of the model's, by column."""
        form = self.prepared.form
        if correction is None:
            return {}
        if form.schema is None:
            return {name: text for name, text in correction.answer.items() if text != row.answer.get(name)}
        model = orjson.dumps(row.answer).decode() if row.answer else None
        answer = orjson.loads(corrected(form, model, correction) or "{}")
        return {name: answer[name] for name in form.columns if name in answer and answer[name] != row.answer.get(name)}

    def repeated(self) -> frozenset[int]:
        """Return the questions that stand in several rows."""
        return self.checkpoint.repeated(before=self.before)

    def _values(self, text: str) -> tuple[dict[str, Any], dict[str, float | None]]:
        """Return the value of each answer column, and its probability where the model gives one."""
        form = self.prepared.form
        if form.schema is None:
            return dict.fromkeys(form.columns, text), {}
        try:
            values = orjson.loads(text)
        except ValueError:  # an answer before an edit that made columns of a text
            values = {}
        # A chat model's column may be called NAME_prob, too.
        probabilities = {one.name: values.get(f"{one.name}_prob") for one in form.questions}
        return {name: values.get(name) for name in form.columns}, probabilities


@contextmanager
def open_job(invocation: Invocation) -> Iterator[OpenJob]:
    """Open a job's input and its checkpoint, also during a run. Raises UserError where the job was not run yet."""
    with (
        prepare_job(invocation, sends=False) as prepared,
        Checkpoint.open(prepared.job.checkpoint_path, read_only=True) as checkpoint,
    ):
        yield OpenJob(prepared.job.name, prepared, checkpoint)


def text_of(value: Any) -> str:  # noqa: ANN401  (any cell or JSON value)
    """Return a cell or an answer's value as text: null as an empty text, lists and objects as JSON."""
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        try:
            return orjson.dumps(value, default=_as_json, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:  # an integer beyond 64 bits
            return json.dumps(value, default=str, ensure_ascii=False, separators=(",", ":"))
    return str(value)


def _as_json(value: Any) -> Any:  # noqa: ANN401  (what orjson does not know)
    """Return a number of JSON such as 2.50 as it is written, anything else as text."""
    return orjson.Fragment(str(value)) if isinstance(value, float) else str(value)
