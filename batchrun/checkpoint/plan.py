"""Builds a plan: which row asks which question. The current one stays until a commit replaces it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from batchrun.checkpoint import schema
from batchrun.checkpoint.connection import Connection

BATCH = 50_000
"""Rows; keys go into the table in sorted batches, since single random keys cost 18 µs and more each."""

LARGEST_BATCH = 250_000
"""Rows that are held in memory; a plan may have millions."""


class Origin(NamedTuple):
    """What a plan is made from, as texts: equal ones make the same plan.

    `fingerprint` stands for all of it; it is empty where no plan may be used again. `filter` says which rows ask.
    """

    fingerprint: str
    wording: str
    stamps: str
    filter: str


@dataclass(frozen=True, slots=True)
class PlanInfo:
    """The current plan: what it was made from, its rows and questions, the position below which all is final.

    `baseline` is how many rows were answered before a change of the job's words that nobody has confirmed yet, else 0.
    """

    number: int
    fingerprint: str
    wording: str
    stamps: str
    filter: str
    rows: int
    questions: int
    low_water: int
    layout: str
    baseline: int = 0


_CURRENT = f"SELECT {', '.join(PlanInfo.__dataclass_fields__)} FROM plans WHERE current"  # noqa: S608  (constants)


def current_plan(connection: Connection) -> PlanInfo | None:
    """Return the current plan, None before the first."""
    found = connection.rows(_CURRENT)
    return PlanInfo(*found[0]) if found else None


class PlanBuilder:
    """Takes the rows of a new plan in order, then makes it current or discards it. Raises StorageError."""

    def __init__(self, connection: Connection, origin: Origin, now: float) -> None:
        self._connection = connection
        self._origin, self._now = origin, now
        self._keys: list[bytes | None] = []
        self._problems: dict[int, tuple[str, str]] = {}
        self._start = 0
        self._last_id: int = connection.value("SELECT coalesce(max(id), 0) FROM questions")
        # One byte a question: whether an earlier row asked it. Ids are dense.
        self._seen = bytearray(self._last_id + 1)
        # Nothing paid is in a plan: losing its last batches to a power cut costs only time.
        connection.run("PRAGMA synchronous = NORMAL")
        with connection.transaction():
            connection.run("DROP TABLE IF EXISTS rows_next")
            connection.run(schema.rows_table("rows_next"))

    def add(self, position: int, keys: Sequence[bytes | None], problems: Mapping[int, tuple[str, str]]) -> None:
        """Take the next rows: `position` of the first, their keys (None: not asked), and by position why a row fails.

        A problem is (error_type, message). Rows come without gaps.
        """
        if position != self._start + len(self._keys):
            raise ValueError(f"row {position} does not follow row {self._start + len(self._keys) - 1}")
        self._keys.extend(keys)
        self._problems.update(problems)
        # A batch reaches most pages of a large table: larger ones write them less often.
        batch = max(BATCH, min(LARGEST_BATCH, self._last_id // 20))
        while len(self._keys) >= batch:
            self._write(self._keys[:batch])
            del self._keys[:batch]

    @property
    def rows(self) -> int:
        """How many rows were taken."""
        return self._start + len(self._keys)

    def answered(self) -> tuple[int, int]:
        """Return how many rows are answered in the current plan, and in this one."""
        self.flush()
        answered = "SELECT count(*) FROM {} r JOIN answers a INDEXED BY answers_state ON a.id = r.question_id"
        before, after = (
            self._connection.value(answered.format(table) + " WHERE a.status = 'ok'") for table in ("rows", "rows_next")
        )
        return int(before), int(after)

    def make_current(self, layout: str, baseline: int = 0) -> PlanInfo:
        """Put the plan in the place of the current one, in one commit; `layout` is what the input's reader noted."""
        self.flush()
        connection = self._connection
        connection.run("PRAGMA synchronous = FULL")
        with connection.transaction():
            number = connection.value("SELECT coalesce(max(number), 0) + 1 FROM plans")
            questions = connection.value("SELECT coalesce(sum(first), 0) FROM rows_next")
            # The view would stop the renaming of a table that it names.
            connection.run("DROP VIEW results")
            connection.run("DROP TABLE IF EXISTS rows_before")
            # Kept one generation, so that `compare --before` can show what an edited prompt changed.
            wording = (
                "SELECT count(*) FROM plans WHERE current AND stamps = ? AND wording <> ? "
                "AND json_extract(layout, '$.options') IS json_extract(?, '$.options')"
            )
            if connection.value(wording, (self._origin.stamps, self._origin.wording, layout)):
                connection.run("ALTER TABLE rows RENAME TO rows_before")
            else:
                connection.run("DROP TABLE rows")
            connection.run("ALTER TABLE rows_next RENAME TO rows")
            connection.run(schema.RESULTS)
            connection.run("DELETE FROM plans")
            plan = PlanInfo(number, *self._origin, rows=self._start, questions=questions, low_water=0, layout=layout)
            plan = replace(plan, baseline=baseline)
            connection.insert_row("plans", {**asdict(plan), "current": 1, "created_at": self._now})
        return plan

    def discard(self) -> None:
        """Leave the current plan as it is."""
        self._connection.run("DROP TABLE IF EXISTS rows_next")
        self._connection.run("PRAGMA synchronous = FULL")

    def flush(self) -> None:
        """Write the rows taken so far, with their questions."""
        if self._keys:
            self._write(self._keys)
            self._keys = []

    def _write(self, keys: list[bytes | None]) -> None:
        """Write the next rows, and those of their questions that are new."""
        # Sorted keys walk through the table once.
        wanted = sorted({key for key in keys if key is not None})
        known = self._connection.rows_in("SELECT key, id FROM questions WHERE key IN ({})", wanted)
        ids: dict[bytes, int] = dict(known)
        new = [key for key in dict.fromkeys(keys) if key is not None and key not in ids]
        ids.update(zip(new, range(self._last_id + 1, self._last_id + 1 + len(new)), strict=True))
        self._last_id += len(new)
        self._seen.extend(bytes(len(new)))
        new.sort()
        with self._connection.transaction():
            self._connection.insert("questions(key, id)", [(key, ids[key]) for key in new])
            self._insert_rows(keys, ids)
        self._start += len(keys)

    def _insert_rows(self, keys: list[bytes | None], ids: dict[bytes, int]) -> None:
        seen, problems = self._seen, self._problems
        rows: list[tuple[int, int | None, int, bytes | None]] = []
        failed: list[tuple[int, str, str, int]] = []
        for position, key in enumerate(keys, self._start):
            if key is None:
                if position in problems:
                    failed.append((position, *problems.pop(position), 0))
                else:
                    rows.append((position, None, 0, None))
                continue
            number = ids[key]
            first = 1 - seen[number]
            rows.append((position, number, first, key))
            seen[number] = 1
        self._connection.insert("rows_next(position, question_id, first, key)", rows)
        self._connection.insert("rows_next(position, error_type, error_message, first)", failed)
