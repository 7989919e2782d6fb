"""All SQL: what was asked, what was answered, what it cost. One SQLite file per job."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from batchrun.checkpoint import files, queries, runs
from batchrun.checkpoint.connection import Connection
from batchrun.checkpoint.files import check_place
from batchrun.checkpoint.lock import lock
from batchrun.checkpoint.plan import PlanBuilder, PlanInfo, PlanPreview, current_plan
from batchrun.checkpoint.queries import OUTCOME_COLUMNS, Counts, Failed, Settled, Usage
from batchrun.checkpoint.runs import RunInfo
from batchrun.checkpoint.writer import Writer, utc_day
from batchrun.errors import CheckpointError, StorageError, UserError
from batchrun.money import Pico

__all__ = [
    "OUTCOME_COLUMNS",
    "Checkpoint",
    "Counts",
    "Failed",
    "PlanBuilder",
    "PlanInfo",
    "PlanPreview",
    "RunInfo",
    "Settled",
    "Usage",
    "Writer",
    "check_place",
    "lock",
    "start_fresh",
    "utc_day",
]


class Checkpoint:
    """The checkpoint of one job, for one process; use it as a context manager.

    Whoever opens it to write holds its `lock`. Every method raises StorageError when the disk fails and
    CheckpointError when the file is damaged. Methods may be called from any thread, by one at a time; the writer
    works beside them on a connection of its own.
    """

    def __init__(self, connection: Connection) -> None:
        self.path = connection.path
        self._connection = connection

    @classmethod
    def open(cls, path: Path, *, must_exist: bool = False, read_only: bool = False) -> Self:
        """Open the checkpoint at `path`, or make it (0600, its folder 0700).

        CheckpointError: damaged, foreign, or newer. UserError: a place that can't be used (not writable, a link, a
        network file system), or nothing there where it must exist.
        """
        if must_exist or read_only:
            files.refuse_network(path)
        else:
            files.prepare_folder(path)
        if not path.exists():
            if must_exist or read_only:
                raise UserError(f"there is no checkpoint at {path} yet: `batchrun run JOB` makes it")
            _refuse_orphan(path)
            files.create(path, lambda _: None)
        return cls(files.open_file(path, read_only=read_only))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Commit what the writer has left, then close."""
        if "writer" in self.__dict__:
            self.writer.close()
        self._connection.close()

    @cached_property
    def writer(self) -> Writer:
        """Keeps the outcomes of a run."""
        return Writer(self.path)

    def current_plan(self) -> PlanInfo | None:
        """Give the current plan, None before the first."""
        return current_plan(self._connection)

    def new_plan(self, *, fingerprint: str, wording: str, stamps: str, now: float) -> PlanBuilder:
        """Begin a plan beside the current one."""
        return PlanBuilder(self._connection, fingerprint=fingerprint, wording=wording, stamps=stamps, now=now)

    def open_questions(
        self, *, start: int, again: Collection[str], max_tokens: int | None, batch: int = 1_000
    ) -> Iterator[list[tuple[int, int]]]:
        """Give (position, question) of what is to be asked, in input order, each question once, in blocks.

        To be asked is what has no answer or is pending, what failed with a type in `again`, and what was truncated
        at fewer tokens than `max_tokens` (None: unlimited). Rows before `start` are not looked at.
        """
        return queries.open_questions(self._connection, queries.Open(again, max_tokens), start=start, batch=batch)

    def count_open(self, *, start: int, again: Collection[str], max_tokens: int | None) -> int:
        """Count what `open_questions` would give."""
        return queries.count_open(self._connection, queries.Open(again, max_tokens), start=start)

    def count_failed(self, *, again: Collection[str], max_tokens: int | None) -> Failed:
        """Count what failed in the current plan and would not be given by `open_questions`."""
        return queries.count_failed(self._connection, queries.Open(again, max_tokens))

    def has_truncated(self, *, max_tokens: int | None) -> bool:
        """Tell whether answers, of whatever plan, were cut off at fewer tokens than `max_tokens`."""
        return queries.has_truncated(self._connection, queries.Open((), max_tokens))

    def failed_attempts(self) -> dict[str, int]:
        """Count the attempts of all runs that brought no answer, by error_type; most frequent first."""
        return queries.failed_attempts(self._connection)

    def settled(self, keys: Sequence[bytes], *, again: Collection[str], max_tokens: int | None) -> dict[bytes, Settled]:
        """Give what is known of those questions that need not be asked, by key; they need not be in the plan."""
        return queries.settled(self._connection, queries.Open(again, max_tokens), keys)

    def begin_run(self, *, now: float, host: str, pid: int, version: str, job_text: str) -> int:
        """Note that a run begins with the current plan; give its id."""
        return runs.begin_run(self._connection, now=now, host=host, pid=pid, version=version, job_text=job_text)

    def end_run(
        self,
        run_id: int,
        *,
        now: float,
        exit_code: int,
        reason: str,
        counts: Counts | None = None,
        resume_at: float | None = None,
        output: str | None = None,
    ) -> None:
        """Note how a run ended, after the writer was closed; `output` is a note on the output for the next run."""
        runs.end_run(
            self._connection, run_id, now=now, exit_code=exit_code, reason=reason, counts=counts,
            resume_at=resume_at, output=output,
        )  # fmt: skip

    def runs(self, limit: int = 20) -> list[RunInfo]:
        """Give the newest runs, newest first."""
        return runs.list_runs(self._connection, limit)

    def last_run(self) -> RunInfo | None:
        """Give the newest run."""
        return next(iter(self.runs(1)), None)

    def reopen_failed(self, types: Collection[str] | None = None) -> int:
        """Make failed answers of the current plan pending again: all, or of some types. Give their number."""
        return queries.reopen_failed(self._connection, types)

    def outcomes(
        self, start: int, count: int, columns: Sequence[str] = tuple(OUTCOME_COLUMNS)
    ) -> list[tuple[Any, ...]]:
        """Give `columns` (names of OUTCOME_COLUMNS) of `count` rows from position `start` on, in input order."""
        return queries.outcomes(self._connection, start, count, columns)

    def counts(self) -> Counts:
        """Count the rows of the current plan; instant after a finished run, else it reads them all."""
        return queries.counts(self._connection)

    def spent(self, *, day: str | None = None, run_id: int | None = None) -> Pico:
        """Give what all runs spent, or one, or on one UTC day (see `utc_day`); picodollars."""
        return queries.spent(self._connection, day=day, run_id=run_id)

    def possibly_billed(self) -> int:
        """Count the requests of all runs whose replies were lost, so that they may be billed beyond what is known."""
        return queries.possibly_billed(self._connection)

    def usage(self) -> Usage:
        """Sum the tokens of the newest 10,000 answers that tell them."""
        return queries.usage(self._connection)

    def prune(self, *, older_than: float) -> int:
        """Drop answers that are not in the current plan and older than a Unix time; give their number."""
        return queries.prune(self._connection, older_than=older_than)

    def verify(self) -> list[str]:
        """Check the whole file and the books; give what is wrong."""
        return queries.verify(self._connection)


def start_fresh(path: Path, now: float) -> Path | None:
    """Begin anew: the old checkpoint gets another name, which is returned, and the day's spending is carried over.

    `now` is Unix time; hold the lock. A damaged checkpoint is put aside as well, with what it tells of the day.
    A file that never was a checkpoint is left alone (CheckpointError).
    """
    files.prepare_folder(path)
    with files.reported(path):
        if not path.exists():
            return None
        if not files.is_ours(path):
            raise CheckpointError(f"{path} is not a checkpoint of batchrun: set checkpoint: to another path")
        today = utc_day(now)
        carried = _spent_on(path, today)
        kept: list[Path] = []

        def fill(new: Connection) -> None:
            new.run("INSERT INTO spending(run_id, day, cost) VALUES (0, ?, ?)", (today, carried))
            kept.append(files.set_aside(path, now))

        files.create(path, fill)
    return kept[0]


def _spent_on(path: Path, day: str) -> Pico:
    with contextlib.suppress(StorageError):
        connection = Connection(path)
        try:
            return queries.spent(connection, day=day, run_id=None)
        finally:
            connection.close()
    return Pico(0)


def _refuse_orphan(path: Path) -> None:
    log = files.beside(path, "-wal")
    if log.exists():
        # SQLite would replay it into the new file.
        raise CheckpointError(f"{log} is there but {path} is not: put the file back, or move the log away")
