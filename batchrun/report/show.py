"""Inputs and answers for a terminal: some rows as a table, or one row with all that is known of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from batchrun.api import cost_kind
from batchrun.checkpoint import Checkpoint
from batchrun.errors import UserError
from batchrun.money import cost
from batchrun.prepare import Prepared
from batchrun.records import Status
from batchrun.report.answered import answer_values, answered_rows
from batchrun.runner import outputs
from batchrun.terminal import duration, when

_BLOCK = 50_000
_PROBLEM = ("error_type", "error_message")
_DETAILS = (
    "error_type", "error_code", "error_message", "raw", "model", "provider", "finish_reason", "attempts",
    "prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "service_tier",
    "reasoning", "citations",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ShownRows:
    """A table of text; `total` counts all rows that could be shown."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    total: int


def shown_rows(prepared: Prepared, checkpoint: Checkpoint, count: int, *, failed: bool) -> ShownRows:
    """Return the first `count` rows that are answered, or that failed: number from 1, cells of the prompt, answer.

    Raises UserError where input or wording are not those of the last run, InputError if the input changes meanwhile.
    """
    outputs.check_plan(prepared, checkpoint.current_plan())
    counts = checkpoint.counts()
    columns = prepared.renderer.columns or prepared.kept
    status, results, total = Status.OK, tuple(_values(prepared.form.columns, _asked(prepared))), counts.ok
    if failed:
        status, results, total = Status.FAILED, _PROBLEM, counts.failed
    positions = list(_positions(checkpoint, status, count))
    shown = []
    wanted = set(positions)
    for row in answered_rows(prepared, checkpoint, columns, positions[0], _PROBLEM) if positions else ():
        if row.position in wanted:
            result = row.details if failed else _values(row.answer, row.probabilities).values()
            shown.append((str(row.position + 1), *map(text_of, (*row.cells, *result))))
            wanted.remove(row.position)
        if not wanted:
            break
    header = ("row", *columns, *(prepared.job.output.prefix + name for name in results))
    return ShownRows(header, shown, total)


def _positions(checkpoint: Checkpoint, status: Status, count: int) -> Iterator[int]:
    """Yield the first positions with a status; the input is not read for it."""
    start = 0
    while block := checkpoint.outcomes(start, _BLOCK, ("position", "status")):
        for position, found in block:
            if found == status:
                yield position
                count -= 1
                if not count:
                    return
        start += len(block)


def row_record(prepared: Prepared, checkpoint: Checkpoint, number: int) -> list[tuple[str, str]]:
    """Return names and texts of all that is known of row `number` (from 1): cells, answer, error, what it took.

    Raises UserError for a row that is not there, and as `shown_rows` does.
    """
    outputs.check_plan(prepared, checkpoint.current_plan())
    names = ("status", "answer", "cost", "seconds", "finished_at", "first", *_DETAILS)
    found = checkpoint.outcomes(number - 1, 1, names)
    if not found:
        raise UserError(f"--row: there is no row {number:,}; the input has {checkpoint.counts().rows:,} rows")
    outcome = dict(zip(names, found[0], strict=True))
    row = next(answered_rows(prepared, checkpoint, prepared.rows.columns, number - 1))
    pairs = [
        ("row", f"{number} ({outcome['status']})"),
        *zip(prepared.rows.columns, map(text_of, row.cells), strict=True),
    ]
    if outcome["status"] == Status.OK:
        answer = _values(*answer_values(prepared, outcome["answer"]))
        pairs += [(prepared.job.output.prefix + name, text_of(value)) for name, value in answer.items()]
    pairs += [(name, text_of(outcome[name])) for name in _DETAILS if outcome[name] is not None]
    if outcome["cost"] is not None:
        text = cost(outcome["cost"], cost_kind(prepared.job))
        if not outcome["first"]:
            text += " (an equal row before it was asked)"
        pairs.append(("cost", text))
    if outcome["seconds"] is not None:
        pairs.append(("latency", _seconds(outcome["seconds"])))
    if outcome["finished_at"] is not None:
        pairs.append(("finished", when(outcome["finished_at"])))
    return pairs


def _asked(prepared: Prepared) -> dict[str, float | None]:
    return {question.name: None for question in prepared.form.questions}


def _values(answer: Mapping[str, Any], probabilities: Mapping[str, float | None]) -> dict[str, Any]:
    """Return answers by their columns, with a decision model's probability after each, as the output has them."""
    values: dict[str, Any] = {}
    for name, value in answer.items():
        values[name] = value
        if name in probabilities:
            values[f"{name}_prob"] = probabilities[name]
    return values


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 60 else duration(seconds)  # noqa: PLR2004  (seconds in a minute)


def text_of(value: Any) -> str:  # noqa: ANN401  (any cell or JSON value)
    """Return a cell or an answer's value as text: null as an empty text, lists and objects as JSON."""
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return orjson.dumps(value, default=str).decode()
    return str(value)
