"""Builds a plan: which row asks which question. Made beside the current one, it takes its place in one commit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchrun.checkpoint import schema
from batchrun.checkpoint.connection import MOST_VALUES, Connection, Row

BATCH = 50_000
"""Rows; keys go into the table in sorted batches, since single random keys cost 18 µs and more each."""

LARGEST_BATCH = 250_000
"""Rows; what is held in memory of a plan that goes into millions of questions."""

_FIELDS = "number, fingerprint, wording, stamps, rows, questions, created_at, low_water"
_CURRENT = f"SELECT {_FIELDS} FROM plans WHERE current"  # noqa: S608  (a constant)

_ROWS = "position, question_id, first, key, error_type, error_message"
_BEFORE = (
    "SELECT key, question_id, error_type, error_message FROM rows WHERE position BETWEEN ? AND ? ORDER BY position"
)
_COPY = f"INSERT INTO rows_next({_ROWS}) SELECT {_ROWS} FROM rows WHERE position BETWEEN ? AND ?"  # noqa: S608  (constants)
_FIRST = "SELECT question_id FROM rows_next WHERE position BETWEEN ? AND ? AND first"


@dataclass(frozen=True, slots=True)
class PlanInfo:
    """The current plan: what it was made from, its rows and questions, the position below which all is final."""

    number: int
    fingerprint: str
    wording: str
    stamps: str
    rows: int
    questions: int
    created_at: float
    low_water: int


@dataclass(frozen=True, slots=True)
class PlanPreview:
    """What a new plan would mean: rows with an answer in the current plan and in the new one, questions to ask.

    `open` counts the new plan's questions that have neither an answer nor a failure.
    """

    rows: int
    answered_before: int
    answered_after: int
    open: int

    @property
    def asked_again(self) -> int:
        """How many answered rows the new plan would ask again, at most."""
        return max(0, min(self.answered_before, self.rows) - self.answered_after)


def current_plan(connection: Connection) -> PlanInfo | None:
    """Give the current plan, None before the first."""
    found = connection.rows(_CURRENT)
    return PlanInfo(*found[0]) if found else None


class PlanBuilder:
    """Takes the rows of a new plan in order, then makes it current or discards it. Raises StorageError."""

    def __init__(self, connection: Connection, *, fingerprint: str, wording: str, stamps: str, now: float) -> None:
        self._connection = connection
        self._head = (fingerprint, wording, stamps, now)
        self._keys: list[bytes | None] = []
        self._problems: dict[int, tuple[str, str]] = {}
        self._start = 0
        self._as_before = True  # so far every row is what the current plan has in its place
        self._last_id: int = connection.value("SELECT coalesce(max(id), 0) FROM questions")
        # One byte a question tells whether a row before had it; ids are dense.
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

    def preview(self) -> PlanPreview:
        """Give what the plan means, without making it current; reads as many rows as both plans have."""
        self._flush()
        value = self._connection.value
        answered = "SELECT count(*) FROM {} r JOIN answers a INDEXED BY answers_state ON a.id = r.question_id"
        open_now = (
            "SELECT count(*) FROM rows_next r LEFT JOIN answers a INDEXED BY answers_state ON a.id = r.question_id "
            "WHERE r.first AND (a.id IS NULL OR a.status = 'pending')"
        )
        return PlanPreview(
            rows=self._start,
            answered_before=value(answered.format("rows") + " WHERE a.status = 'ok'"),
            answered_after=value(answered.format("rows_next") + " WHERE a.status = 'ok'"),
            open=value(open_now),
        )

    def make_current(self) -> PlanInfo:
        """Put the plan in the place of the current one, in one commit."""
        self._flush()
        connection = self._connection
        connection.run("PRAGMA synchronous = FULL")
        with connection.transaction():
            number = connection.value("SELECT coalesce(max(number), 0) + 1 FROM plans")
            questions = connection.value("SELECT coalesce(sum(first), 0) FROM rows_next")
            # The view would stop the renaming of a table that it names.
            connection.run("DROP VIEW results")
            connection.run("DROP TABLE rows")
            connection.run("ALTER TABLE rows_next RENAME TO rows")
            connection.run(schema.RESULTS)
            connection.run("DELETE FROM plans")
            connection.run(
                "INSERT INTO plans(number, current, fingerprint, wording, stamps, created_at, rows, questions) "
                "VALUES (?, 1, ?, ?, ?, ?, ?, ?)",
                (number, *self._head, self._start, questions),
            )
        fingerprint, wording, stamps, now = self._head
        return PlanInfo(number, fingerprint, wording, stamps, self._start, questions, now, 0)

    def discard(self) -> None:
        """Leave the current plan as it is."""
        self._connection.run("DROP TABLE IF EXISTS rows_next")
        self._connection.run("PRAGMA synchronous = FULL")

    def _flush(self) -> None:
        if self._keys:
            self._write(self._keys)
            self._keys = []

    def _write(self, keys: list[bytes | None]) -> None:
        """Write the next rows; most stay where they were, and are copied or at least looked up there, in order."""
        span = (self._start, self._start + len(keys) - 1)
        with self._connection.transaction():
            before = self._connection.rows(_BEFORE, span)
            if self._as_before and self._stand(before, keys):
                self._connection.run(_COPY, span)
            else:
                self._end_copying()
                self._insert(keys, {key: number for key, number, *_ in before if number is not None})
        self._start += len(keys)

    def _stand(self, before: list[Row], keys: list[bytes | None]) -> bool:
        """Tell whether the current plan has these very rows, and take their problems if it has."""
        problems = {position: row[2:] for position, row in enumerate(before, self._start) if row[2] is not None}
        found = {at: problem for at, problem in self._problems.items() if at < self._start + len(keys)}
        if problems != found or [row[0] for row in before] != keys:
            return False
        for position in found:
            del self._problems[position]
        return True

    def _end_copying(self) -> None:
        """From here on rows are looked at one by one: which questions had rows before them has to be known."""
        if not self._as_before:
            return
        self._as_before = False
        for start in range(0, self._start, BATCH):
            for (number,) in self._connection.rows(_FIRST, (start, start + BATCH - 1)):
                self._seen[number] = 1

    def _insert(self, keys: list[bytes | None], ids: dict[bytes, int]) -> None:
        """Write rows; `ids` are those of some of their questions."""
        ids.update(self._known(sorted({key for key in keys if key is not None and key not in ids})))
        new = [key for key in dict.fromkeys(keys) if key is not None and key not in ids]
        ids.update(zip(new, range(self._last_id + 1, self._last_id + 1 + len(new)), strict=True))
        self._last_id += len(new)
        self._seen.extend(bytes(len(new)))
        new.sort()
        self._connection.insert("questions(key, id)", [(key, ids[key]) for key in new])
        self._insert_rows(keys, ids)

    def _known(self, keys: list[bytes]) -> dict[bytes, int]:
        """Give the ids of those keys that are questions already; sorted keys walk through the table once."""
        known: dict[bytes, int] = {}
        for start in range(0, len(keys), MOST_VALUES):
            some = keys[start : start + MOST_VALUES]
            marks = ", ".join("?" * len(some))
            known.update(self._connection.rows(f"SELECT key, id FROM questions WHERE key IN ({marks})", some))  # noqa: S608
        return known

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
