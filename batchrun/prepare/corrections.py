"""Answers that a person corrected or confirmed: NAME.corrections.jsonl next to the job file, a line for each.

A correction belongs to cells of the input: those that the prompt used when it was made, or a column that identifies a
row. A row with equal cells in these columns has it, with any prompt, model and endpoint. The file holds a
digest of the cells and no text of them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import orjson

from batchrun.disk import write_whole
from batchrun.errors import UserError
from batchrun.job import Job
from batchrun.prompt import AnswerForm
from batchrun.records import Mismatch


@dataclass(frozen=True, slots=True)
class Correction:
    """What a person said of the rows with these cells; `changed`: whether it is another answer than the model's."""

    columns: tuple[str, ...]
    key: str
    answer: Mapping[str, Any]
    changed: bool


class Corrections:
    """All corrections of a job. Raises UserError for a file that is damaged."""

    def __init__(self, job: Job) -> None:
        self.path = job.folder / f"{job.name}.corrections.jsonl"
        self._by_columns: dict[tuple[str, ...], dict[str, Correction]] = {}
        if self.path.exists():
            for number, line in enumerate(self.path.read_bytes().splitlines(), 1):
                try:
                    found = Correction(**orjson.loads(line))
                    self._add(replace(found, columns=tuple(found.columns)))
                except (ValueError, TypeError):
                    raise UserError(f"{self.path}:{number}: not a correction: remove the line") from None

    def _add(self, one: Correction) -> None:
        self._by_columns.setdefault(one.columns, {})[one.key] = one

    def columns(self, there: Sequence[str]) -> tuple[str, ...]:
        """Return the columns that corrections need, of those that the input has."""
        needed = {name for names in self._by_columns for name in names}
        return tuple(name for name in there if name in needed)

    def counts(self) -> tuple[int, int]:
        """Return how many were corrected, and how many confirmed."""
        changed = [one.changed for some in self._by_columns.values() for one in some.values()]
        return sum(changed), len(changed) - sum(changed)

    def has(self, columns: tuple[str, ...], key: str) -> bool:
        """Check whether there is a correction for these cells."""
        return key in self._by_columns.get(columns, {})

    def find(self, cells: Mapping[str, Any]) -> Correction | None:
        """Return the correction of a row, given its cells in `columns`."""
        for columns, corrections in self._by_columns.items():
            if cells.keys() >= set(columns):
                found = corrections.get(row_key({name: cells[name] for name in columns}))
                if found is not None:
                    return found
        return None

    def save(self, more: Iterable[Correction]) -> None:
        """Add corrections; a newer one for the same cells replaces the older one. Raises StorageError."""
        for one in more:
            self._add(one)
        lines = [orjson.dumps(asdict(one)) + b"\n" for some in self._by_columns.values() for one in some.values()]
        write_whole(self.path, b"".join(lines))


def row_key(cells: Mapping[str, Any]) -> str:
    """Return the digest of cells, by which a correction finds its rows."""
    # Sorted, so that columns may change places. A Decimal of a Parquet file is not JSON by itself.
    items = sorted(cells.items())
    try:
        text = orjson.dumps(items, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # an integer beyond 64 bits
        text = json.dumps(items, default=str).encode()
    return hashlib.sha256(text).hexdigest()[:24]


def corrected(form: AnswerForm, answer: str | None, correction: Correction | None) -> str | None:
    """Return an answer as the checkpoint would keep it with what a person said put in its place.

    The model's answer stays where the correction does not fit the job's columns (they were changed since). A label that
    is not the model's has no probability of the model: 0.98 next to it would speak for the other label.
    """
    if correction is None:
        return answer
    if form.schema is None:
        text = next(iter(correction.answer.values()), None)
        return answer if text is None else str(text)
    values = orjson.loads(answer or "{}")
    edited = values | {name: value for name, value in correction.answer.items() if name in form.columns}
    fitting = form.parse_edited(form.untyped(edited))
    if isinstance(fitting, Mismatch):
        return answer
    edited |= orjson.loads(fitting)
    for question in form.questions:
        if edited[question.name] != values.get(question.name):
            edited[f"{question.name}_prob"] = None
    return orjson.dumps(edited).decode()
