"""One walk over input and checkpoint: distributions, and the rows of the page's table.

Nothing grows with the job: distributions are bounded, and the table's rows are compressed up to a fixed size.
"""

import base64
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import orjson

from batchrun.money import PER_USD
from batchrun.prepare import Correction, Corrections
from batchrun.prompt import RowProblem, content_text
from batchrun.records import Status
from batchrun.report.answered import AnsweredRow, OpenJob, text_of
from batchrun.report.bars import Distribution, is_number, rounded
from batchrun.report.comparison import ColumnComparison, compared, compared_columns
from batchrun.report.gold import Gold

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

_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens")
_DETAILS = ("error_type", "error_message", "raw", "model", "provider", *_TOKENS)

# JavaScript rounds beyond it: an id of 19 digits would change.
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
    answer, their `probabilities`, and others. `room`: characters of a cell. `tokens` are sums over all questions, by
    kind.
    """

    inputs: int
    columns: dict[str, Distribution]
    probabilities: dict[str, Distribution]
    room: int
    fields: tuple[str, ...] = ()
    seconds: Distribution = field(default_factory=Distribution)
    cost: Distribution = field(default_factory=Distribution)
    questions: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[FailedRow]] = field(default_factory=lambda: defaultdict(list))
    first_request: tuple[tuple[str, str], ...] = ()
    shown: int = 0
    rows: str = ""

    @property
    def first_answer(self) -> int:
        """The place of the first answer in a row."""
        return 2 + self.inputs

    @property
    def behind(self) -> int:
        """The first place behind the answers and their probabilities."""
        return self.first_answer + len(self.columns) + len(self.probabilities)

    def place(self, name: str) -> int:
        """Return the place of one of the values behind the answers; -1 where rows have no such value."""
        behind = self.fields[self.behind :]
        return self.behind + behind.index(name) if name in behind else -1


def gather(job: OpenJob, *, gold: Gold | None, other: OpenJob | None = None, samples: bool) -> Gathered:
    """Walk over all rows, next to those of the `other` job on the same input. Without `samples` no text is kept.

    Raises UserError where input or wording are not those of the last run, InputError if the input changes meanwhile.
    """
    walk = _Walk(job, gold, other, samples=samples)
    others: Iterable[AnsweredRow | None] = other.rows() if other else repeat(None)
    for row, other_row in zip(job.rows(walk.names, details=_DETAILS), others, strict=False):
        walk.take(row, other_row)
    walk.found.rows = base64.b64encode(walk.packed + walk.packer.flush()).decode()
    return walk.found


class _Walk:
    """Takes one row after the other."""

    def __init__(self, job: OpenJob, gold: Gold | None, other: OpenJob | None, *, samples: bool) -> None:
        self._job, self._gold, self._other, self._samples = job, gold, other, samples
        self._inputs, form = job.prompt_columns, job.prepared.form
        self._corrections = Corrections(job.prepared.job)
        self._corrected_by = self._corrections.columns(job.prepared.rows.columns)
        self._compared: list[ColumnComparison] = []
        if other:
            self._compared, _ = compared_columns(job, other, gold)
        # Gold stands in a column of its own behind the answers, so it is read with the columns that are shown.
        self.names = tuple(dict.fromkeys([*self._inputs, *([gold.source] if gold else []), *self._corrected_by]))
        counts = job.checkpoint.counts()
        self._step = 1
        if counts.rows > MOST_ROWS:
            self._step = max(1, -(-(counts.rows - counts.pending) // (MOST_ROWS - MOST_FAILED)))
        cells = min(counts.rows, MOST_ROWS) * (len(self._inputs) + len(form.columns) + len(self._compared)) or 1
        self._failed = self._settled = 0
        # gzip is what DecompressionStream unpacks in every browser.
        self.packer, self.packed = zlib.compressobj(wbits=zlib.MAX_WBITS | 16), b""
        self._review_below = job.prepared.job.output.review_below if form.questions else None
        self.found = Gathered(
            len(self._inputs),
            {name: Distribution(_declared(schema)) for name, schema in form.columns.items()},
            {question.name: Distribution() for question in form.questions},
            max(SHORTEST, min(LONGEST, SHOWN_CHARACTERS // cells)),
        )

    def take(self, row: AnsweredRow, other_row: AnsweredRow | None) -> None:
        """Count one row, and keep it for the table if it is its turn; `other_row`: the same row of the other job."""
        found = self.found
        details = dict(zip(_DETAILS, row.details, strict=True))
        for name, value in row.answer.items():
            found.columns[name].add(value)
        for name, probability in row.probabilities.items():
            found.probabilities[name].add(probability)
        if row.first and row.is_settled:
            self._count(row, details)
        if self._samples:
            self._show(row, other_row, details)

    def _count(self, row: AnsweredRow, details: Mapping[str, Any]) -> None:
        found = self.found
        found.questions += 1
        for name in _TOKENS:
            found.tokens[name] += details[name] or 0
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
            found.fields, values = zip(*self._line(row, other_row, details), strict=True)
            # A number of JSON such as 2.50 is of a class that keeps how it is written.
            self.packed += self.packer.compress(orjson.dumps(values, default=float) + b"\n")

    def _line(
        self, row: AnsweredRow, other_row: AnsweredRow | None, details: Mapping[str, Any]
    ) -> Iterator[tuple[str, Any]]:
        """Yield the names and the values of a row of the table."""
        yield from (("row", row.position + 1), ("status", row.status))
        yield from ((name, self._cell(row.cells[name])) for name in self._inputs)
        yield from ((name, self._cell(row.answer.get(name))) for name in self.found.columns)
        yield from ((f"{name}_prob", row.probabilities.get(name)) for name in self.found.probabilities)
        correction = self._corrections.find(row.cells)
        if self._review_below is not None:
            yield "needs_review", _needs_review(row, self._review_below, correction)
        if self._corrected_by:
            yield "correction", correction and self._cell(_words(correction, row.answer))
            yield "corrected", correction and correction.changed
        gold, right = self._gold, None
        if gold is not None:
            right = gold.of(row)
            differs = None
            if right is not None and row.is_settled:
                differs = not gold.rule.equal(right, gold.rule.answer(row.answer.get(gold.answer)))
            yield from (("gold", self._cell(right)), ("differs", differs))
        if self._other is not None and other_row is not None:
            for column in self._compared:
                yield f"{column.name} ({self._other.name})", self._cell(other_row.answer.get(column.name))
            yield "change", self._change(row, other_row, right)
        yield "$ / 1,000", _per_thousand(row.cost) if row.cost else None
        yield "seconds", None if row.seconds is None else rounded(row.seconds)
        for name, detail in (("error", "error_type"), ("message", "error_message"), ("reply", "raw")):
            yield name, details[detail] and cut(details[detail])

    def _change(self, row: AnsweredRow, other_row: AnsweredRow, right: str | None) -> str | None:
        """Return what this job changed: fixed or broken by gold, else only changed."""
        pairs, differs = compared(self._compared, other_row, row)
        if not (differs and row.is_settled and other_row.is_settled):
            return None
        if self._gold is not None and right is not None:
            was_right, is_right = (self._gold.rule.equal(right, one) for one in pairs[0])
            if was_right != is_right:
                return "fixed" if is_right else "broken"
        return "changed"

    def _cell(self, value: Any) -> Any:  # noqa: ANN401  (any cell or JSON value)
        """Return a value as the table holds it: a number as it is, anything else as text, a list by its items."""
        if value is None or (is_number(value) and abs(value) < _EXACT):
            return value
        if isinstance(value, list):
            return [self._cell(item) for item in value[:20]]
        return cut(text_of(value).strip(), self.found.room)

    def _messages(self, row: AnsweredRow) -> tuple[tuple[str, str], ...]:
        """Return (role, text) of a row's messages; none where they can't be rendered."""
        messages = self._job.prepared.renderer.messages(row.values)
        if isinstance(messages, RowProblem):
            return ()
        return tuple((message["role"], cut(content_text(message["content"]), 4 * LONGEST)) for message in messages)


def _needs_review(row: AnsweredRow, below: float, correction: Correction | None) -> bool | None:
    """Return the output's value of needs_review."""
    if correction is not None:
        return False
    probabilities = row.probabilities.values()
    if any(one is not None and one < below for one in probabilities):
        return True
    return None if row.status != Status.OK or None in probabilities else False


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
