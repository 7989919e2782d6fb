"""Keeps outcomes: one thread, one connection, group commits; a question is answered only when it is committed."""

import asyncio
import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from batchrun.checkpoint import schema
from batchrun.checkpoint.connection import Connection
from batchrun.checkpoint.files import companion, identity, low_space, make_reserve
from batchrun.errors import BatchrunError, CheckpointError, StorageError
from batchrun.money import Pico
from batchrun.records import Outcome

GROUP = 500
"""Items in one commit; while that many wait, the writer is full and nothing new may start."""

SMALL_GROUP = 20
"""Outcomes in one commit once the disk has failed: a little may still fit."""

WAIT = 0.01
"""Seconds that an item waits for company at most: a commit of 10 rows costs 10 µs of CPU a row, of 100 rows 1.7."""

LOOK = 0.5
"""Seconds between two looks at the free space, and at whether the checkpoint is still the file that was opened."""

RETRY = 1.0
"""Seconds between tries once the disk has failed."""

_DAY = 86_400
_LARGEST = 2**53
_SET = ", ".join(
    f"{name} = {f'answers.{name} + ' if name in schema.ADDED_UP else ''}excluded.{name}"
    for name in (*schema.COLUMNS, "run_id")
)
_KEEP = f"answers(id, {', '.join(schema.COLUMNS)}, run_id)"
_ADD = f"ON CONFLICT(id) DO UPDATE SET {_SET}"
_OF_ATTEMPT = (
    *("finished_at", "error_type", "error_code", "http_status", "error_message"),
    *("seconds", "cost", "possibly_billed", "provider"),
)
_FAILED = f"failures(question_id, {', '.join(_OF_ATTEMPT)}, run_id)"
_SPENT = """
INSERT INTO spending(run_id, day, cost) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET cost = cost + excluded.cost
"""
_TOTALS = """
UPDATE runs SET requests = requests + ?, cost = cost + ?, possibly_billed = possibly_billed + ?, cached = cached + ?
WHERE id = ?
"""
_LEASE = """
INSERT INTO leases(run_id, day, amount) VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET day = excluded.day, amount = excluded.amount
"""
_LOW_WATER = "UPDATE plans SET low_water = ? WHERE current"

# The plain value: SQLite's adapter costs a microsecond for a member of an enum.
_outcome_values = attrgetter("question", "status._value_", *schema.COLUMNS[1:])
_attempt_values = attrgetter("question", *_OF_ATTEMPT)


class _Attempt(NamedTuple):
    """A failed attempt, for the table of failures."""

    outcome: Outcome


def utc_day(at: float) -> str:
    """Return the UTC day of a Unix time, as spending is booked: 2026-11-22."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


class Writer:
    """Commits outcomes in groups on a thread of its own. Its methods are for one thread, the event loop's.

    The first error goes to `on_failure`, in the loop. Once the disk is full a reserve is given up, so that answers in
    flight find room; an error beyond that is held in `failure`, and the outcomes are tried again until `close`, which
    counts in `lost` those that are still not kept.
    """

    def __init__(self, path: Path) -> None:
        self.failure: BatchrunError | None = None
        self.lost = 0
        self._path = path
        self._changed = threading.Condition()
        self._pending: deque[Outcome | _Attempt | int] = deque()
        self._reported = False
        self._flushing = False
        self._closing = False
        self._thread: threading.Thread | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._low_water = -1
        self._leased = self._lease = 0
        self._watched: dict[Path, tuple[int, int] | None] = {}
        self._checked_at = 0.0

    def start(self, run_id: int, on_failure: Callable[[BatchrunError], None] | None = None) -> None:
        """Begin to keep what this run brings; StorageError when the disk has no room left even for a reserve."""
        if self._thread is not None:
            raise RuntimeError("a writer is for one run")
        self._run_id = run_id
        self._on_failure = on_failure
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self._reserve: Path | None = make_reserve(self._path)
        if (full := low_space(self._path)) is not None:
            self._give_up_reserve()
            raise full
        places = (self._path, companion(self._path, ".lock"))
        self._watched = {place: found for place in places if (found := identity(place)) is not None}
        self._connection = Connection(self._path)
        self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        """Whether so much is uncommitted that nothing new should start; `room` waits for the end of that."""
        return len(self._pending) >= GROUP

    def put(self, outcome: Outcome) -> None:
        """Take an outcome; attempts, cost and possibly_billed are added to what the question has already."""
        self._take(outcome)

    def failed_attempt(self, attempt: Outcome) -> None:
        """Take one attempt for the table of failures; its own cost counts in the question's outcome, not here."""
        self._take(_Attempt(attempt))

    def note_low_water(self, position: int) -> None:
        """Store, together with the outcomes so far, that every row before `position` is final."""
        if position != self._low_water:
            self._low_water = position
            self._take(position)

    @property
    def leased(self) -> int:
        """What this run may have spent by now, as it is committed; picodollars."""
        return self._leased

    def lease(self, amount: Pico) -> None:
        """Commit soon that this run may have spent this amount; a smaller one than before changes nothing."""
        if amount > self._lease:
            with self._changed:
                self._lease = amount
                self._changed.notify_all()

    def _take(self, item: Outcome | _Attempt | int) -> None:
        self._pending.append(item)  # atomic, so the lock is for those alone whom the thread may wait for
        if len(self._pending) in {1, GROUP}:
            with self._changed:
                self._changed.notify_all()

    async def room(self) -> None:
        """Wait until the writer has room; raise the failure once there is one."""
        while self.failure is None and self.is_full:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        if self.failure is not None:
            raise self.failure

    def flush(self) -> None:
        """Wait until all that was put is committed; raises the failure if it can't be."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.failure is not None or not (self._pending or self._flushing))
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Commit the rest and end the thread; never raises: see `failure` and `lost`."""
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self.lost = sum(isinstance(item, Outcome) for item in self._pending)

    # What follows runs in the thread.

    def _work(self) -> None:
        open_connection = True
        while open_connection:
            try:
                group = self._next_group()
                self._check_files()
                if group or self._lease > self._leased:
                    self._commit(group)
            except Exception as error:  # noqa: BLE001  (a thread that ends in silence would let the run wait for ever)
                self._fail(
                    error
                    if isinstance(error, BatchrunError)
                    else BatchrunError(f"a bug in batchrun: outcomes can't be kept: {error!r}")
                )
                open_connection = not self._closing
            else:
                open_connection = self._remove(len(group))
            if self._waiters:  # one that comes later finds the writer full, and so another commit ahead
                self._call_in_loop(self._release)
        self._give_up_reserve()
        with contextlib.suppress(StorageError):
            self._connection.close()

    def _next_group(self) -> list[Outcome | _Attempt | int]:
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._is_urgent(), LOOK)
            if self.failure is not None:
                self._changed.wait_for(lambda: self._closing, RETRY)
            else:
                self._changed.wait_for(lambda: len(self._pending) >= GROUP or self._is_urgent(), WAIT)
            count = min(len(self._pending), GROUP if self.failure is None else SMALL_GROUP)
            # One by one: an iterator breaks where the loop's thread appends between its making and its use.
            return [self._pending[index] for index in range(count)]

    def _is_urgent(self) -> bool:
        return self._flushing or self._closing or self._lease > self._leased

    def _check_files(self) -> None:
        """Stop the run when the disk is nearly full, or when others deleted or replaced a file that it rests on."""
        now = time.monotonic()
        if now - self._checked_at < LOOK:
            return
        self._checked_at = now
        for place, known in self._watched.items():
            if (found := identity(place)) != known:
                what = "deleted" if found is None else "replaced by another file"
                self._warn(StorageError(f"{place} was {what} while this run used it, so the run stops"))
        if (full := low_space(self._path)) is not None:
            self._warn(full)

    def _remove(self, count: int) -> bool:
        with self._changed:
            for _ in range(count):
                self._pending.popleft()
            if not self._pending:
                self._flushing = False
            self._changed.notify_all()
            return bool(self._pending) or not self._closing

    def _commit(self, group: Sequence[Outcome | _Attempt | int]) -> None:
        outcomes = [item for item in group if isinstance(item, Outcome)]
        attempts = [item.outcome for item in group if isinstance(item, _Attempt)]
        low_water = next((item for item in reversed(group) if isinstance(item, int)), None)
        try:
            self._write(outcomes, attempts, low_water)
        except CheckpointError:
            raise
        except StorageError as error:
            if not self._give_up_reserve():
                raise
            self._write(outcomes, attempts, low_water)
            self._warn(error)

    def _write(self, outcomes: Sequence[Outcome], attempts: Sequence[Outcome], low_water: int | None) -> None:
        try:
            self._insert(outcomes, attempts, low_water)
        except (UnicodeEncodeError, OverflowError):
            self._insert([_storable(item) for item in outcomes], [_storable(item) for item in attempts], low_water)

    def _insert(self, outcomes: Sequence[Outcome], attempts: Sequence[Outcome], low_water: int | None) -> None:
        connection, lease = self._connection, self._lease
        with connection.transaction():
            keep(connection, self._run_id, outcomes, attempts)
            if low_water is not None:
                connection.run(_LOW_WATER, (low_water,))
            if lease > self._leased:
                connection.run(_LEASE, (self._run_id, utc_day(time.time()), lease))
        self._leased = lease

    def _fail(self, error: BatchrunError) -> None:
        with self._changed:
            self.failure = self.failure or error
            self._changed.notify_all()
        self._warn(error)

    def _warn(self, error: BatchrunError) -> None:
        if not self._reported and self._on_failure is not None:
            self._reported = True
            self._call_in_loop(self._on_failure, error)

    def _give_up_reserve(self) -> bool:
        if self._reserve is None:
            return False
        with contextlib.suppress(OSError):
            self._reserve.unlink()
        self._reserve = None
        return True

    def _call_in_loop(self, callback: Callable[..., None], *values: Any) -> None:  # noqa: ANN401  (the callback's own)
        # Without a loop, or after its end, nobody waits.
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(callback, *values)

    def _release(self) -> None:
        if self.failure is None and self.is_full:
            return
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def keep(
    connection: Connection,
    run_id: int,
    outcomes: Sequence[Outcome],
    attempts: Sequence[Outcome],
    *,
    day: str | None = None,
    unassigned: int = 0,
) -> None:
    """Keep outcomes of a run, and each failed attempt by itself, inside of a transaction of the caller.

    What was spent is booked on `day`, else on the day when each outcome came; `unassigned` is money (picodollars) that
    belongs to no question.
    """
    days: Counter[str] = Counter()
    if day is None:
        for number, cost in _by_day(outcomes).items():
            days[utc_day(number * _DAY)] = cost
    else:
        days[day] = sum(outcome.cost for outcome in outcomes) + unassigned
    requests, cost, possibly_billed, cached = _sums(outcomes)
    connection.insert(_KEEP, [(*_outcome_values(outcome), run_id) for outcome in outcomes], _ADD)
    connection.insert(_FAILED, [(*_attempt_values(attempt), run_id) for attempt in attempts])
    connection.many(_SPENT, [(run_id, day, cost) for day, cost in days.items() if cost])
    connection.run(_TOTALS, (requests, cost + unassigned, possibly_billed, cached, run_id))


def _by_day(outcomes: Sequence[Outcome]) -> Counter[int]:
    days: Counter[int] = Counter()
    for outcome in outcomes:
        days[int(outcome.finished_at // _DAY)] += outcome.cost
    return days


def _sums(outcomes: Sequence[Outcome]) -> tuple[int, int, int, int]:
    return (
        sum(outcome.attempts for outcome in outcomes),
        sum(outcome.cost for outcome in outcomes),
        sum(outcome.possibly_billed for outcome in outcomes),
        sum(outcome.cached for outcome in outcomes),
    )


def _storable(outcome: Outcome) -> Outcome:
    """Make what a server or a path said fit for SQLite: no lone surrogates, no integer beyond 64 bits."""
    changes: dict[str, Any] = {}
    for name, value in outcome._asdict().items():
        if type(value) is str:
            changes[name] = value.encode("utf-8", "replace").decode()
        elif type(value) is int and abs(value) > _LARGEST:
            changes[name] = _LARGEST
    return outcome._replace(**changes)
