"""The checkpoint of one job: its file, its plan, its open questions, and how its runs begin and end."""

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Self

from batchrun.checkpoint import adopt, files, sample, schema, store
from batchrun.checkpoint.batches import Batches
from batchrun.checkpoint.connection import Connection, damaged
from batchrun.checkpoint.plan import Origin, PlanBuilder, PlanInfo, current_plan
from batchrun.checkpoint.reader import NARROW_JOIN, Reader
from batchrun.checkpoint.records import Counts, Failed, OpenRule, Settled
from batchrun.checkpoint.writer import Writer
from batchrun.errors import CheckpointError, StorageError, UserError
from batchrun.money import Pico

_NO_RUN = 2**62
"""Above every run's number."""

# It may be pending, where twelve bad rows at the end of a file looked like an outage. What was given up has no seconds.
# Nothing succeeded while an unexplained failure came, so it says nothing about its row.
_FAILED = (
    "(a.status = 'failed' AND a.error_type NOT IN ('truncated', 'unexplained') "
    "OR a.status = 'pending' AND a.seconds IS NOT NULL "
    "AND a.run_id IN (SELECT id FROM runs WHERE answered_at IS NOT NULL))"
)
_WHICH = {True: f"{_FAILED} AND a.run_id < ?", False: f"{_FAILED} IS NOT TRUE", None: "TRUE"}


class Checkpoint(Reader):
    """The checkpoint of one job, for one process; use it as a context manager.

    Whoever opens it to write holds its `lock`. Every method raises StorageError when the disk fails and
    CheckpointError when the file is damaged. Methods may be called from any thread, by one at a time; the writer
    works at the same time on a connection of its own.

    Of a plan's questions those are open that have no answer or are pending, and failed ones by an OpenRule.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._identity = files.identity(self.path)
        self._whole = "rows"
        self._planned = NARROW_JOIN.format(self._whole)
        self._not_left_out = ""
        self.is_sampled = False
        """Whether only the questions of a sample are open."""

    @classmethod
    def open(cls, path: Path, *, must_exist: bool = False, read_only: bool = False) -> Self:
        """Open the checkpoint at `path`, or make it (0600, its folder 0700).

        CheckpointError: damaged, foreign, or of another version. UserError: a place that can't be used (not writable,
        a link, a network file system), or nothing there where it must exist.
        """
        if must_exist or read_only:
            files.refuse_network(path)
        else:
            files.prepare_folder(path)
        if not path.exists():
            if must_exist or read_only:
                raise UserError(f"there is no checkpoint at {path} yet: run the job first")
            store.create(path)
        return cls(store.open_file(path, read_only=read_only))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        damage = self._damage_behind(error)
        self.close()
        if damage is not None:
            raise damage from error

    def _damage_behind(self, error: BaseException | None) -> CheckpointError | None:
        """Return the damage that an error of Python's own shows: SQLite does not notice a number that became a text."""
        if isinstance(error, TypeError | ValueError | LookupError | ArithmeticError):
            with contextlib.suppress(StorageError):
                return damaged(self.path, faults[0]) if (faults := self.verify()) else None
        return None

    def close(self) -> None:
        """Commit what the writer has left, then close."""
        if "writer" in self.__dict__:
            self.writer.close()
        self._connection.close()

    @cached_property
    def writer(self) -> Writer:
        """Keeps the outcomes of a run."""
        return Writer(self.path)

    @cached_property
    def batches(self) -> Batches:
        """The providers' batches of this job."""
        return Batches(self._connection)

    def rescue(self) -> Path | None:
        """Write the checkpoint again if its file was deleted or replaced since it was opened; return where it is.

        None where all is as it was. Call it after the writer was closed.
        """
        if files.identity(self.path) == self._identity:
            return None
        return store.rescue(self._connection, self.path)

    # -- plans

    def current_plan(self) -> PlanInfo | None:
        """Return the current plan, None before the first."""
        return current_plan(self._connection)

    def confirm_plan(self) -> None:
        """Forget the baseline of the current plan: its change was confirmed."""
        self._connection.run("UPDATE plans SET baseline = 0")

    def new_plan(self, origin: Origin, now: float) -> PlanBuilder:
        """Begin a plan; the current one stays until the new one is complete."""
        return PlanBuilder(self._connection, origin, now)

    # -- questions

    def adopt(self, wording: str, rule: OpenRule) -> dict[Path, int]:
        """Copy answers to open questions from other checkpoints in the folder; return how many each gave.

        Those of the job's variants, and of a job whose plan has the same `wording` under another name, are looked at.
        """
        return adopt.adopt(self._connection, wording, rule)

    def choose(self, positions: Iterable[Sequence[int]], count: int) -> None:
        """Open no other questions than the first `count` distinct ones at these positions, given in blocks."""
        sample.choose(self._connection, positions, count)
        self._whole = "temp.chosen"
        self._planned = NARROW_JOIN.format(self._whole)
        self.is_sampled = True

    def take_up(self, rule: OpenRule, *, start: int, where: str, limit: int) -> None:
        """Open no other questions than those taken up before and the first open ones up to `limit` in all.

        `where` chooses the new ones, in input order from position `start` on.
        """
        room = limit - sample.count_taken(self._connection)
        if room > 0:
            self._planned = NARROW_JOIN.format(self._whole)
            fresh = f"{where} AND r.position NOT IN (SELECT position FROM temp.taken)"  # noqa: S608  (constants)
            blocks = self.open_questions(rule, start=start, where=fresh)
            sample.take(self._connection, islice(chain.from_iterable(blocks), room))
        self._planned = NARROW_JOIN.format("temp.taken")

    def leave_out(self, rows: Iterable[tuple[int, int | None]]) -> None:
        """Open no failed question again whose rows are all among these failed ones, given as (position, question)."""
        sample.note_answered(self._connection, rows)
        self._not_left_out = sample.NOT_ANSWERED

    def open_questions(
        self,
        rule: OpenRule,
        *,
        start: int,
        failed: bool | None = None,
        before: int = _NO_RUN,
        batch: int = 1_000,
        where: str = schema.NOT_OUT,
    ) -> Iterator[list[tuple[int, int]]]:
        """Yield (position, question) of the open questions from position `start` on, in input order, in blocks.

        `failed` chooses those that failed in a run `before` this one while others succeeded, or all others; None: both.
        What is out in a provider's batch is left out; `where` may leave out more.

        Each block is a query of its own, so that no long read keeps the log from being merged. A question that is
        answered meanwhile may be missing in a later block, never in the wrong place.
        """
        sql = (
            f"SELECT r.position, r.question_id FROM {self._planned} "  # noqa: S608  (constants and marks only)
            f"WHERE r.position >= ? AND r.position < ? AND {rule.is_open} AND {_WHICH[failed]} AND {where} "
            f"{self._not_left_out} "
            "ORDER BY r.position LIMIT ?"
        )
        end = int(self._connection.value("SELECT coalesce(max(position) + 1, 0) FROM rows"))
        while start < end:
            earlier = (before,) if failed else ()
            block = self._connection.rows(sql, (start, end, *rule.values, *earlier, batch))
            if not block:
                return
            yield block
            start = block[-1][0] + 1

    def failed_before(self, rule: OpenRule, *, start: int) -> tuple[int, int]:
        """Count the open questions that failed while others succeeded; return with it the first one's position."""
        sql = (
            f"SELECT count(*), coalesce(min(r.position), 0) FROM {self._planned} "  # noqa: S608  (as above)
            f"WHERE r.position >= ? AND {rule.is_open} AND {_FAILED} {self._not_left_out}"
        )
        if not self._connection.rows("SELECT 1 FROM answers LIMIT 1"):
            return 0, 0
        return self._connection.rows(sql, (start, *rule.values))[0]

    def count_open(self, rule: OpenRule, *, start: int, where: str = schema.NOT_OUT) -> int:
        """Count what `open_questions` would yield."""
        sql = (
            f"SELECT count(*) FROM {self._planned} "  # noqa: S608  (as above)
            f"WHERE r.position >= ? AND {rule.is_open} AND {where} {self._not_left_out}"
        )
        return int(self._connection.value(sql, (start, *rule.values)))

    def count_failed(self, rule: OpenRule) -> Failed:
        """Count what failed in the current plan, is not open and not left out."""
        sql = (
            "SELECT count(*), coalesce(sum(first), 0) FROM rows WHERE (error_type IS NOT NULL OR question_id IN ("  # noqa: S608  (as above)
            "SELECT id FROM answers a INDEXED BY answers_failed "
            f"WHERE status = 'failed' AND {rule.is_again} IS NOT TRUE))"
        )
        if self._not_left_out:
            sql += " AND position NOT IN (SELECT position FROM temp.answered)"
        return Failed(*self._connection.rows(sql, rule.values)[0])

    def has_truncated(self, rule: OpenRule) -> bool:
        """Check whether answers, of any plan, were cut off at fewer tokens than the rule's max_tokens."""
        sql = "SELECT 1 FROM answers WHERE status = 'failed' AND error_type = 'truncated' AND max_tokens < ? LIMIT 1"
        return bool(self._connection.rows(sql, rule.values[-1:]))

    def settled(self, keys: Sequence[bytes], rule: OpenRule) -> dict[bytes, Settled]:
        """Return the state of those questions that are not open, by key; they need not be in the plan."""
        sql = (
            "SELECT q.key, a.status, a.prompt_tokens, a.completion_tokens, a.seconds "  # noqa: S608  (marks only)
            "FROM questions q JOIN answers a ON a.id = q.id, (SELECT 1 AS first) r "
            f"WHERE ({rule.is_open}) IS NOT TRUE AND q.key IN ({{}})"
        )
        return {key: Settled(*more) for key, *more in self._connection.rows_in(sql, keys, rule.values)}

    def reopen_failed(self, types: Collection[str] = ()) -> int:
        """Make failed answers of the current plan pending again: all, or of some types. Return their number."""
        of_types = f"AND error_type IN ({', '.join('?' * len(types))})" if types else ""
        with self._connection.transaction():
            number = self._connection.run(
                "UPDATE answers SET status = 'pending' WHERE id IN ("  # noqa: S608  (marks only)
                "SELECT a.id FROM rows r CROSS JOIN answers a INDEXED BY answers_state ON a.id = r.question_id "
                f"WHERE r.first AND a.status = 'failed' {self._not_left_out}) {of_types}",
                tuple(types),
            )
            if number:
                self._connection.run("UPDATE plans SET low_water = 0, counts = NULL")
        return number

    def prune(self, *, older_than: float) -> int:
        """Drop answers that are not in the current plan and older than a Unix time; return their number."""
        connection, planned = self._connection, "(SELECT question_id FROM rows WHERE question_id IS NOT NULL)"
        with connection.transaction():
            number = connection.run(
                f"DELETE FROM answers WHERE finished_at < ? AND id NOT IN {planned}",  # noqa: S608  (a constant)
                (older_than,),
            )
            connection.run(
                f"DELETE FROM questions WHERE id NOT IN {planned} AND id NOT IN (SELECT id FROM answers) "  # noqa: S608
                "AND id NOT IN (SELECT question_id FROM batched WHERE batch IS NOT NULL)"
            )
            connection.run("DELETE FROM batched WHERE question_id NOT IN (SELECT id FROM questions)")
            connection.run("DELETE FROM failures WHERE question_id NOT IN (SELECT id FROM questions)")
            connection.run("DROP TABLE IF EXISTS rows_before")  # its questions may be gone, and their ids used again
        if number:
            connection.vacuum()
        return number

    def note_counts(self, counts: Counts | None) -> None:
        """Keep the counts of the current plan, with the rows that people answered, which nothing here shows."""
        self._connection.run("UPDATE plans SET counts = ? WHERE current", (counts and json.dumps(asdict(counts)),))

    # -- runs

    def begin_run(
        self, *, now: float, host: str, pid: int, version: str, job_text: str, flags: str = "", endpoint: str = ""
    ) -> int:
        """Note that a run begins with the current plan; return its id. `flags` is a text for `Checkpoint.flags`."""
        plan = self.current_plan()
        run = {"started_at": now, "host": host, "pid": pid, "version": version, "job": job_text, "endpoint": endpoint}
        run["flags"] = flags
        with self._connection.transaction():
            self._connection.run("UPDATE plans SET counts = NULL")
            return self._connection.insert_row("runs", {**run, "plan": plan and plan.number})

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
        lease: Pico | None = None,
        answered_at: float | None = None,
    ) -> None:
        """Note how a run ended, after the writer was closed; `output` is a note on the output for the next run.

        `answered_at` is when the endpoint last succeeded in this run (Unix time).

        `counts` are kept, so that the next look at them is instant. `lease` is what the run may have spent at most.
        """
        end = {"ended_at": now, "exit_code": exit_code, "reason": reason, "resume_at": resume_at, "output": output}
        end["answered_at"] = answered_at
        with self._connection.transaction():
            self._connection.update_row("runs", run_id, {**end, "counts": counts and json.dumps(asdict(counts))})
            self.note_counts(counts)
            if lease is not None:
                self._connection.run("UPDATE leases SET amount = ? WHERE run_id = ?", (lease, run_id))
