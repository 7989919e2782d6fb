"""One walk over input and checkpoint: distributions, and the rows of the page's table.

Nothing grows with the job: distributions are bounded, and the table's rows are compressed up to a fixed size.
"""

import base64
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import orjson

from batchrun.checkpoint import Checkpoint
from batchrun.money import PER_USD
from batchrun.prepare import Prepared
from batchrun.prompt import RowProblem, content_text
from batchrun.records import Status
from batchrun.report.answered import AnsweredRow, answered_rows
from batchrun.report.bars import Tally, is_number, rounded
from batchrun.report.comparison import ColumnComparison, Side, compared_columns, equal, normal
from batchrun.report.evaluation import answer_of
from batchrun.report.gold import Gold
from batchrun.report.show import text_of
from batchrun.runner import Correction, Corrections

MOST_ROWS, MOST_FAILED = 100_000, 10_000
"""Rows in the table, and how many of them may be failed ones where not all rows have room."""

PACKED_BYTES = 3_400_000
"""Of compressed rows; as base64 they leave a page below 5 MB."""

SHOWN_CHARACTERS = 10_000_000
"""Of all cells together, before they are compressed."""

SAMPLES = 3
"""Rows shown with each error."""

LONGEST, SHORTEST = 700, 24
"""Characters of a cell that are shown: fewer where there are many rows."""

_DETAILS = (
    "error_type", "error_message", "raw", "model", "provider", "prompt_tokens", "completion_tokens", "cached_tokens",
    "cache_write_tokens",
)  # fmt: skip
_CHANGES = {(False, True): "fixed", (True, False): "broken", (True, True): "changed", (False, False): "changed"}
"""What another answer means, by whether it and the one before are right: (before, now)."""

_EXACT = 2**53
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")


class FailedRow(NamedTuple):
    """An example of an error: row number from 1, the prompt's last message, what the server said, the reply."""

    number: int
    prompt: str
    message: str
    reply: str


@dataclass(slots=True)
class Gathered:
    """What the walk found. `rows` is gzip as base64, a row a line.

    `fields` names the values of a row: its number and status, `inputs` columns of the input, the `columns` of the
    answer, their `probabilities`, and others.
    """

    fields: tuple[str, ...]
    inputs: int
    columns: dict[str, Tally]
    probabilities: dict[str, Tally]
    seconds: Tally = field(default_factory=Tally)
    cost: Tally = field(default_factory=Tally)
    questions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    models: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[FailedRow]] = field(default_factory=lambda: defaultdict(list))
    first_request: tuple[tuple[str, str], ...] = ()
    shown: int = 0
    rows: str = ""

    @property
    def first_answer(self) -> int:
        """The place of the first answer in a row."""
        return 2 + self.inputs

    def place(self, name: str) -> int:
        """Return the place of one of the values behind the answers; -1 where rows have no such value."""
        behind = self.fields[self.behind :]
        return self.behind + behind.index(name) if name in behind else -1

    @property
    def behind(self) -> int:
        """The first place behind the answers and their probabilities."""
        return self.first_answer + len(self.columns) + len(self.probabilities)


def gather(
    prepared: Prepared, checkpoint: Checkpoint, *, gold: Gold | None, other: Side | None = None, samples: bool
) -> Gathered:
    """Walk over all rows, next to those of the `other` job on the same input. Without `samples` no text is kept.

    Raises UserError where input or wording are not those of the last run, InputError if the input changes meanwhile.
    """
    counts = checkpoint.counts()
    walk = _Walk(prepared, gold, other, rows=counts.rows, settled=counts.rows - counts.pending, samples=samples)
    others: Iterable[AnsweredRow | None] = other.rows() if other else repeat(None)
    for row, other_row in zip(answered_rows(prepared, checkpoint, walk.names, details=_DETAILS), others, strict=False):
        walk.take(row, other_row)
    walk.found.rows = base64.b64encode(walk.packed + walk.packer.flush()).decode()
    return walk.found


class _Walk:
    """Takes one row after the other."""

    def __init__(
        self, prepared: Prepared, gold: Gold | None, other: Side | None, *, rows: int, settled: int, samples: bool
    ) -> None:
        self._prepared, self._gold, self._samples = prepared, gold, samples
        self._inputs = tuple(prepared.renderer.columns or prepared.kept)
        self._corrections = Corrections(prepared.job)
        self._corrected_by = self._corrections.columns(prepared.rows.columns)
        self._compared: list[ColumnComparison] = []
        # Gold stands in a column of its own behind the answers, so it is read with the columns that are shown.
        if other:
            self._compared, _ = compared_columns(prepared, other.prepared, gold)
        self.names = tuple(dict.fromkeys([*self._inputs, *([gold.source] if gold else []), *self._corrected_by]))
        self._step = 1
        if rows > MOST_ROWS:
            self._step = max(1, -(-settled // (MOST_ROWS - MOST_FAILED)))
        cells = min(rows, MOST_ROWS) * (len(self._inputs) + len(prepared.form.columns) + len(self._compared)) or 1
        self._room = max(SHORTEST, min(LONGEST, SHOWN_CHARACTERS // cells))
        self._failed = self._settled = 0
        self.packer, self.packed = zlib.compressobj(wbits=zlib.MAX_WBITS | 16), b""
        probabilities = tuple(question.name for question in prepared.form.questions)
        fields = ("row", "status", *self._inputs, *prepared.form.columns, *(f"{name}_prob" for name in probabilities))
        if self._reviews:
            fields += ("needs_review",)
        if self._corrected_by:
            fields += ("correction", "corrected")
        if gold:
            fields += ("gold", "differs")
        if other:
            fields += (*(f"{column.name} ({other.name})" for column in self._compared), "change")
        self.found = Gathered(
            (*fields, "$ / 1,000", "seconds", "error", "message", "reply"),
            len(self._inputs),
            {name: Tally(_declared(schema)) for name, schema in prepared.form.columns.items()},
            {name: Tally() for name in probabilities},
        )

    @property
    def _reviews(self) -> bool:
        return bool(self._prepared.form.questions) and self._prepared.job.output.review_below is not None

    def take(self, row: AnsweredRow, other_row: AnsweredRow | None) -> None:
        """Count one row, and keep it for the table if it is its turn; `other_row`: the same row of the other job."""
        found = self.found
        details = dict(zip(_DETAILS, row.details, strict=True))
        for name, value in row.answer.items():
            found.columns[name].add(value)
        for name, probability in row.probabilities.items():
            found.probabilities[name].add(probability)
        if row.first and row.status in {Status.OK, Status.FAILED}:
            self._count(row, details)
        if self._samples:
            self._show(row, other_row, details)

    def _count(self, row: AnsweredRow, details: Mapping[str, Any]) -> None:
        found = self.found
        found.questions += 1
        found.prompt_tokens += details["prompt_tokens"] or 0
        found.completion_tokens += details["completion_tokens"] or 0
        found.cached_tokens += details["cached_tokens"] or 0
        found.cache_write_tokens += details["cache_write_tokens"] or 0
        if row.status != Status.OK:
            return
        if row.seconds is not None:
            found.seconds.add(row.seconds)
        if row.cost:
            found.cost.add(_per_thousand(row.cost))
        names = (details["model"], details["provider"])
        found.models[" at ".join(visible(name) for name in names if name) or "unknown"] += 1

    def _show(self, row: AnsweredRow, other_row: AnsweredRow | None, details: Mapping[str, Any]) -> None:
        found, failed = self.found, row.status == Status.FAILED
        self._failed += failed
        if row.status == Status.OK and not found.first_request:
            found.first_request = self._messages(row)
        if failed and len(some := found.samples[details["error_type"]]) < SAMPLES:
            _, prompt = (("", ""), *self._messages(row))[-1]
            shown = (prompt, details["error_message"] or "", details["raw"] or "")
            some.append(FailedRow(row.position + 1, *map(cut, shown)))
        if row.status == Status.PENDING and self._step > 1:
            return  # nothing to see yet: they would push answers out of the table
        self._settled += 1
        # Each n-th row, and all of the first failed ones, which people look for.
        if (self._settled - 1) % self._step and not (failed and self._failed <= MOST_FAILED):
            return
        if len(self.packed) < PACKED_BYTES:
            found.shown += 1
            self.packed += self.packer.compress(orjson.dumps(self._line(row, other_row, details)) + b"\n")

    def _line(self, row: AnsweredRow, other_row: AnsweredRow | None, details: Mapping[str, Any]) -> list[Any]:
        """Return a row of the table, in the order of `fields`."""
        cells = dict(zip(self.names, row.cells, strict=True))
        values = [cells[name] for name in self._inputs] + [row.answer.get(name) for name in self._prepared.form.columns]
        probabilities = [row.probabilities.get(name) for name in self.found.probabilities]
        correction = self._corrections.find(cells)
        shown = [row.position + 1, row.status, *map(self._cell, values), *probabilities]
        if self._reviews:
            shown.append(self._needs_review(row, probabilities, correction))
        if self._corrected_by:
            shown += [correction and self._cell(_words(correction, row.answer)), correction and correction.changed]
        gold, right = self._gold, None
        if gold is not None:
            right = gold.of(cells[gold.source], row.position)
            differs = None
            if right is not None and row.status in {Status.OK, Status.FAILED}:
                differs = not gold.rule.equal(right, answer_of(row, gold))
            shown += [self._cell(right), differs]
        if self._compared:
            shown += self._compare(row, other_row, right)
        seconds = None if row.seconds is None else rounded(row.seconds)
        error = [details[name] and cut(details[name]) for name in ("error_type", "error_message", "raw")]
        return [*shown, _per_thousand(row.cost) if row.cost else None, seconds, *error]

    def _needs_review(
        self, row: AnsweredRow, probabilities: Sequence[float | None], correction: Correction | None
    ) -> bool | None:
        """Return the output's value of needs_review."""
        below = self._prepared.job.output.review_below
        if row.status != Status.OK:
            return None
        if correction is not None or below is None:
            return False
        low = [None if one is None else one < below for one in probabilities]
        if None in low and True not in low:
            return None
        return True in low

    def _compare(self, row: AnsweredRow, other_row: AnsweredRow | None, right: str | None) -> list[Any]:
        """Return the other job's answers, and what this one changed: fixed or broken by gold, else only changed."""
        if other_row is None:
            return [None] * (len(self._compared) + 1)
        shown = [self._cell(other_row.answer.get(column.name)) for column in self._compared]
        if not {row.status, other_row.status} <= {Status.OK, Status.FAILED}:
            return [*shown, None]
        pairs = [(normal(column, other_row), normal(column, row)) for column in self._compared]
        if all(equal(column.rule, *pair) for column, pair in zip(self._compared, pairs, strict=True)):
            return [*shown, None]
        if self._gold is None or right is None:
            return [*shown, "changed"]
        was_right, is_right = (self._gold.rule.equal(right, one) for one in pairs[0])
        return [*shown, _CHANGES[was_right, is_right]]

    def _cell(self, value: Any) -> Any:  # noqa: ANN401  (any cell or JSON value)
        """Return a value as the table holds it: a number as it is, anything else as text, a list by its items."""
        if value is None or (is_number(value) and abs(value) < _EXACT):
            return value
        if isinstance(value, list):
            return [self._cell(item) for item in value[:20]]
        return cut(text_of(value).strip(), self._room)

    def _messages(self, row: AnsweredRow) -> tuple[tuple[str, str], ...]:
        """Return (role, text) of a row's messages; none where they can't be rendered."""
        messages = self._prepared.renderer.messages(row.cells[: len(self._prepared.renderer.columns)])
        if isinstance(messages, RowProblem):
            return ()
        return tuple((message["role"], cut(content_text(message["content"]), 4 * LONGEST)) for message in messages)


def _words(correction: Correction, answer: Mapping[str, Any]) -> str:
    """Return what a person said of an answer."""
    if not correction.changed:
        return "confirmed"
    changed = ((name, text_of(value)) for name, value in correction.answer.items() if value != answer.get(name))
    return ", ".join(f"{name}: {text}" for name, text in changed)


def _per_thousand(cost: int) -> float:
    return round(1_000 * cost / PER_USD, 6)


def _declared(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels that a column's schema names."""
    schemas = [schema, schema.get("items", {}), *schema.get("anyOf", ())]
    if any("boolean" in (part.get("type") or ()) for part in schemas):
        return ("false", "true")
    return tuple(text_of(value) for part in schemas for value in part.get("enum", ()) if value is not None)


def visible(text: str) -> str:
    """Return text in which control characters, and those that turn the direction of writing, stand as escapes."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def cut(text: str, longest: int = LONGEST) -> str:
    """Return text that can be shown, at most `longest` characters of it."""
    if len(text) > longest:
        text = f"{text[:longest]}… ({len(text):,} characters)"
    return visible(text)
