"""One walk over input and checkpoint: sums, distributions, and the rows that are shown."""

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from batchrun.checkpoint import Checkpoint
from batchrun.errors import UserError, did_you_mean
from batchrun.money import show
from batchrun.prompt import RowProblem
from batchrun.runner.prepare import INPUT_CHANGED, Prepared

ROWS, FAILED_ROWS = 3_000, 1_000
"""Rows in the table; so many of them are kept for the failed ones."""

SAMPLES = 3
"""Rows shown with each error."""

LONGEST = 700
"""Characters of a text that are shown."""

MOST_LABELS = 5_000
"""Different values of one column that are counted one by one."""

_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")
_FIELDS = (
    "status", "first", "answer", "raw", "error_type", "error_message", "model", "provider", "prompt_tokens",
    "completion_tokens", "seconds", "finished_at", "cost",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table, as text; `number` counts from 1."""

    number: int
    status: str
    prompt: str
    answer: str
    error: str
    message: str
    cost: str
    seconds: str


@dataclass(slots=True)
class Column:
    """What one answer column holds: how often each label, all numbers, and how often it was null.

    `declared` are the values that the job itself names; `beyond` counts what had no room among the labels.
    """

    declared: tuple[str, ...] = ()
    labels: Counter[str] = field(default_factory=Counter)
    numbers: "array[float]" = field(default_factory=lambda: array("d"))
    null: int = 0
    beyond: int = 0

    def add(self, value: Any) -> None:  # noqa: ANN401  (any JSON)
        """Count one value; the items of a list count one by one."""
        if value is None:
            self.null += 1
        elif isinstance(value, list):
            for item in value:
                self.add(item)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            self.numbers.append(value)
        elif (text := label(value)) in self.labels or len(self.labels) < MOST_LABELS:
            self.labels[text] += 1
        else:
            self.beyond += 1


@dataclass(slots=True)
class Gold:
    """Answers of one column against the input's column that holds the right ones; None: no answer."""

    answer: str
    column: str
    pairs: Counter[tuple[str, str | None]] = field(default_factory=Counter)


@dataclass(slots=True)
class Gathered:
    """What the walk found. Seconds; `finished` and `failed_at` are Unix times of questions."""

    columns: dict[str, Column]
    gold: Gold | None = None
    seconds: "array[float]" = field(default_factory=lambda: array("d"))
    finished: "array[float]" = field(default_factory=lambda: array("d"))
    failed_at: "array[float]" = field(default_factory=lambda: array("d"))
    prompt_tokens: int = 0
    completion_tokens: int = 0
    models: Counter[str] = field(default_factory=Counter)
    rows: list[Row] = field(default_factory=list)
    samples: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    first_request: tuple[tuple[str, str], ...] = ()


def gather(p: Prepared, checkpoint: Checkpoint, *, total: int, gold: str | None, samples: bool) -> Gathered:
    """Walk once over `total` rows. `gold` is COLUMN or ANSWER=COLUMN; without `samples` no text of a row is kept.

    Raises UserError for a gold column that can't be meant, InputError if the input changes meanwhile.
    """
    walk = _Walk(p, total, _gold(p, gold), samples=samples)
    gold_column = walk.found.gold.column if walk.found.gold else None
    names = list(dict.fromkeys([*p.renderer.columns, *([gold_column] if gold_column else [])]))
    walk.gold_place = names.index(gold_column) if gold_column else 0
    for batch in p.rows.batches(names):
        outcomes = checkpoint.outcomes(batch.position, len(batch.rows), _FIELDS)
        if len(outcomes) != len(batch.rows):
            raise UserError(INPUT_CHANGED)
        for offset, (values, outcome) in enumerate(zip(batch.rows, outcomes, strict=True)):
            walk.take(batch.position + offset, values, dict(zip(_FIELDS, outcome, strict=True)))
    return walk.found


def _gold(p: Prepared, told: str | None) -> Gold | None:
    if told is None:
        return None
    answer, _, column = told.rpartition("=")
    if column not in p.rows.columns:
        raise UserError(f'--gold: the input has no column "{column}"{did_you_mean(column, p.rows.columns)}')
    answers = list(p.form.columns)
    if not answer:
        if len(answers) > 1 and column not in answers:
            raise UserError(f"--gold: say which answer it belongs to: ANSWER={column}; there are {', '.join(answers)}")
        answer = column if column in answers else answers[0]
    if answer not in answers:
        raise UserError(f'--gold: there is no answer column "{answer}"{did_you_mean(answer, answers)}')
    return Gold(answer, column)


class _Walk:
    """Takes one row after the other."""

    def __init__(self, p: Prepared, total: int, gold: Gold | None, *, samples: bool) -> None:
        self._p, self._samples = p, samples
        self._structured = p.form.schema is not None
        self._step = 1 if total <= ROWS else -(-total // (ROWS - FAILED_ROWS))
        self._failed = 0
        self._width = len(p.renderer.columns)
        self._settled = 0
        self.gold_place = 0
        self.found = Gathered({name: Column(_declared(schema)) for name, schema in p.form.columns.items()}, gold)

    def take(self, position: int, values: Sequence[Any], outcome: Mapping[str, Any]) -> None:
        """Count one row, and keep it for the table if it is its turn."""
        found, status = self.found, outcome["status"]
        answer = self._answer(outcome) if status == "ok" else {}
        for name, column in found.columns.items():
            if status == "ok":
                column.add(answer.get(name))
        if found.gold is not None and (gold := values[self.gold_place]) is not None and status != "skipped":
            value = answer.get(found.gold.answer)
            found.gold.pairs[label(gold, like=value), None if value is None else label(value)] += 1
        if outcome["first"] and status in {"ok", "failed"}:
            self._count(outcome)
        if self._samples:
            self._show(position, values[: self._width], outcome, answer)

    def _answer(self, outcome: Mapping[str, Any]) -> dict[str, Any]:
        if self._structured:
            answer: dict[str, Any] = orjson.loads(outcome["answer"])
            return answer
        return dict.fromkeys(self.found.columns, outcome["answer"])

    def _count(self, outcome: Mapping[str, Any]) -> None:
        found = self.found
        found.prompt_tokens += outcome["prompt_tokens"] or 0
        found.completion_tokens += outcome["completion_tokens"] or 0
        if outcome["status"] == "failed":
            found.failed_at.append(outcome["finished_at"])
            return
        found.finished.append(outcome["finished_at"])
        if outcome["seconds"] is not None:
            found.seconds.append(outcome["seconds"])
        names = (outcome["model"], outcome["provider"])
        found.models[" at ".join(visible(name) for name in names if name) or "not told"] += 1

    def _show(
        self, position: int, values: Sequence[Any], outcome: Mapping[str, Any], answer: Mapping[str, Any]
    ) -> None:
        failed, found = outcome["status"] == "failed", self.found
        self._failed += failed
        if outcome["status"] == "pending" and self._step > 1:
            return  # nothing to see yet; they would push answers out of the table
        self._settled += 1
        if (self._settled - 1) % self._step and not (failed and self._failed <= FAILED_ROWS):
            return
        messages = () if outcome["status"] == "skipped" else self._messages(values)
        row = Row(
            position + 1,
            outcome["status"],
            cut(messages[-1][1]) if messages else "",
            cut(self._told(answer) or outcome["raw"] or ""),
            outcome["error_type"] or "",
            cut(outcome["error_message"] or ""),
            show(outcome["cost"]) if outcome["cost"] else "",
            f"{outcome['seconds']:.1f} s" if outcome["seconds"] is not None else "",
        )
        found.rows.append(row)
        found.first_request = found.first_request or messages
        if failed and len(some := found.samples[row.error]) < SAMPLES:
            some.append(row)

    def _told(self, answer: Mapping[str, Any]) -> str:
        """Give an answer's columns one a line; a text as it is."""
        if not self._structured:
            return "".join(answer.values())
        return "\n".join(f"{name}: {'null' if value is None else label(value)}" for name, value in answer.items())

    def _messages(self, values: Sequence[Any]) -> tuple[tuple[str, str], ...]:
        """Give (role, text) of a row's messages; none where they can't be rendered."""
        messages = self._p.renderer.messages(values)
        if isinstance(messages, RowProblem):
            return ()
        return tuple((message["role"], cut(_text(message["content"]), 4 * LONGEST)) for message in messages)


def _text(content: Any) -> str:  # noqa: ANN401  (a text, or parts of one)
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] if "text" in part else f"[image] {part['image_url']['url']}" for part in content)


def _declared(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """Give the values that a column's schema names."""
    schemas = [schema, schema.get("items", {}), *schema.get("anyOf", ())]
    if any("boolean" in (part.get("type") or ()) for part in schemas):
        return ("false", "true")
    return tuple(label(value) for part in schemas for value in part.get("enum", ()) if value is not None)


def label(value: Any, *, like: Any = None) -> str:  # noqa: ANN401  (any JSON)
    """Give a value as text that is equal for equal values; a text stands for a value of the kind that it is `like`."""
    if isinstance(value, str):
        text = value.strip()
        if isinstance(like, bool):
            return text.lower()
        try:
            return label(float(text)) if isinstance(like, int | float) else text
        except ValueError:
            return text
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return orjson.dumps(value, default=str).decode() if isinstance(value, bool | dict | list) else str(value)


def visible(text: str) -> str:
    """Give text in which control characters, and those that turn the direction of writing, are seen as escapes."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def cut(text: str, longest: int = LONGEST) -> str:
    """Give text that can be shown, at most so long."""
    return visible(text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)")
