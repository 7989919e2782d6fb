"""The checkpoint of one job: open questions, how rows stand, costs, runs."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from batchrun.checkpoint import adopt, files, sample, schema, store
from batchrun.checkpoint.batches import Batches
from batchrun.checkpoint.connection import Connection, damaged
from batchrun.checkpoint.plan import PlanBuilder, PlanInfo, current_plan
from batchrun.checkpoint.records import Counts, Failed, FirstSettled, OpenRule, RunInfo, Settled, Usage
from batchrun.checkpoint.writer import Writer
from batchrun.errors import UserError
from batchrun.money import Pico

_NO_RUN = 2**62
"""Above every run's number."""

_SAMPLE = 10_000

_TABLES = {False: "rows", True: "rows_before"}
_JOIN = "{} r LEFT JOIN answers a ON a.id = r.question_id"
# SQLite would take the table itself, whose pages hold the texts.
_NARROW_JOIN = "{} r LEFT JOIN answers a INDEXED BY answers_state ON a.id = r.question_id"

OUTCOME_COLUMNS: Mapping[str, str] = {
    **{name: f"a.{name}" for name in schema.COLUMNS},
    "position": "r.position",
    "status": schema.STATUS,
    "error_type": "coalesce(r.error_type, a.error_type)",
    "error_message": "coalesce(r.error_message, a.error_message)",
    "cost": "CASE WHEN r.first THEN a.cost ELSE a.cost * 0 END",
    "key": "r.key",
    "first": "r.first",
    "question": "r.question_id",
}
"""What `outcomes` returns of a row, by name. `cost` (picodollars) is on the question's first row, else 0."""


_RUN = ", ".join(RunInfo.__dataclass_fields__)


# It may be pending, where twelve bad rows at the end of a file looked like an outage. What was given up has no seconds.
_FAILED = (
    "(a.status = 'failed' AND a.error_type <> 'truncated' OR a.status = 'pending' AND a.seconds IS NOT NULL "
    "AND a.run_id IN (SELECT id FROM runs WHERE answered_at IS NOT NULL))"
)
_WHICH = {True: f"{_FAILED} AND a.run_id < ?", False: f"{_FAILED} IS NOT TRUE", None: "TRUE"}


class Checkpoint:
    """The checkpoint of one job, for one process; use it as a context manager.

    Whoever opens it to write holds its `lock`. Every method raises StorageError when the disk fails and
    CheckpointError when the file is damaged. Methods may be called from any thread, by one at a time; the writer
    works at the same time on a connection of its own.

    Of a plan's questions those are open that have no answer or are pending, and failed ones by an OpenRule.
    """

    def __init__(self, connection: Connection) -> None:
        self.path = connection.path
        self._connection = connection
        self._identity = files.identity(self.path)
        self._planned = _NARROW_JOIN.format("rows")
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

    def new_plan(self, *, fingerprint: str, wording: str, stamps: str, now: float) -> PlanBuilder:
        """Begin a plan; the current one stays until the new one is complete."""
        return PlanBuilder(self._connection, fingerprint=fingerprint, wording=wording, stamps=stamps, now=now)

    # -- questions

    def adopt(self, wording: str, rule: OpenRule) -> dict[Path, int]:
        """Copy answers to open questions from other checkpoints in the folder; return how many each gave.

        Those of the job's variants, and of a job whose plan has the same `wording` under another name, are looked at.
        """
        return adopt.adopt(self._connection, wording, rule)

    def choose(self, positions: Iterable[Sequence[int]], count: int) -> None:
        """Open no other questions than the first `count` distinct ones at these positions, given in blocks."""
        sample.choose(self._connection, positions, count)
        self._planned = _NARROW_JOIN.format("temp.chosen")
        self.is_sampled = True

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
            f"WHERE r.position >= ? AND {rule.is_open} AND {_FAILED}"
        )
        if not self._connection.rows("SELECT 1 FROM answers LIMIT 1"):
            return 0, 0
        return self._connection.rows(sql, (start, *rule.values))[0]

    def count_open(self, rule: OpenRule, *, start: int, where: str = schema.NOT_OUT) -> int:
        """Count what `open_questions` would yield."""
        sql = f"SELECT count(*) FROM {self._planned} WHERE r.position >= ? AND {rule.is_open} AND {where}"  # noqa: S608  (as above)
        return int(self._connection.value(sql, (start, *rule.values)))

    def count_failed(self, rule: OpenRule) -> Failed:
        """Count what failed in the current plan and is not open."""
        sql = (
            "SELECT count(*), coalesce(sum(first), 0) FROM rows WHERE error_type IS NOT NULL OR question_id IN ("  # noqa: S608  (as above)
            "SELECT id FROM answers a INDEXED BY answers_failed "
            f"WHERE status = 'failed' AND {rule.is_again} IS NOT TRUE)"
        )
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
                f"WHERE r.first AND a.status = 'failed') {of_types}",
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
            connection.run("DELETE FROM failures WHERE question_id NOT IN (SELECT id FROM questions)")
            connection.run("DROP TABLE IF EXISTS rows_before")  # its questions may be gone, and their ids used again
        if number:
            connection.vacuum()
        return number

    # -- rows

    def outcomes(
        self, start: int, count: int, columns: Sequence[str] = tuple(OUTCOME_COLUMNS), *, before: bool = False
    ) -> list[tuple[Any, ...]]:
        """Return `columns` (names of OUTCOME_COLUMNS) of `count` rows from position `start` on, in input order.

        `before`: as the plan before an edit of the wording has them; see `has_before`.
        """
        join = _JOIN.format(_TABLES[before])
        chosen = ", ".join(OUTCOME_COLUMNS[name] for name in columns)
        return self._connection.rows(
            f"SELECT {chosen} FROM {join} WHERE r.position >= ? AND r.position < ? ORDER BY r.position",  # noqa: S608  (from the table)
            (start, start + count),
        )

    def positions(self, status: str, limit: int) -> list[int]:
        """Return the first positions of the current plan that have a status."""
        rows = self._connection.rows(
            f"SELECT r.position FROM {_NARROW_JOIN.format('rows')} WHERE {schema.STATUS} = ? ORDER BY 1 LIMIT ?",  # noqa: S608  (constants)
            (status, limit),
        )
        return [position for (position,) in rows]

    def first_settled(self, limit: int) -> list[FirstSettled]:
        """Return the first settled questions of the current plan, in input order."""
        rows = self._connection.rows(
            "SELECT CASE WHEN a.status = 'ok' THEN a.answer END, a.error_type, a.finish_reason, a.model, a.attempts "
            "FROM rows r CROSS JOIN answers a ON a.id = r.question_id "
            "WHERE r.first AND a.status IN ('ok', 'failed') ORDER BY r.position LIMIT ?",
            (limit,),
        )
        return [FirstSettled(*row) for row in rows]

    def repeated(self, *, before: bool = False) -> frozenset[int]:
        """Return the questions that stand in several rows; `before` as for `outcomes`."""
        sql = f"SELECT DISTINCT question_id FROM {_TABLES[before]} WHERE NOT first AND question_id IS NOT NULL"  # noqa: S608  (a constant)
        return frozenset(question for (question,) in self._connection.rows(sql))

    def has_before(self) -> bool:
        """Check whether the rows of the plan before the last edit of the wording are kept."""
        return bool(self._connection.value("SELECT count(*) FROM sqlite_master WHERE name = 'rows_before'"))

    def settled_end(self) -> int:
        """Return the position behind the last row that is answered or failed."""
        sql = (
            "SELECT max((SELECT coalesce(max(position) + 1, 0) FROM rows r JOIN answers a INDEXED BY answers_state "
            "ON a.id = r.question_id WHERE a.status IN ('ok', 'failed')), "
            "(SELECT coalesce(max(position) + 1, 0) FROM rows WHERE error_type IS NOT NULL))"
        )
        return int(self._connection.value(sql))

    def counts(self) -> Counts:
        """Count the rows of the current plan; instant after a finished run, else it reads them all."""
        connection = self._connection
        kept = connection.value("SELECT counts FROM plans WHERE current")
        if kept is not None:
            return self._counts_from(kept)
        rows, asked, problems, questions = connection.rows(
            "SELECT count(*), count(question_id), count(error_type), coalesce(sum(first), 0) FROM rows"
        )[0]
        ok, failed, cost = connection.rows(
            "SELECT coalesce(sum(a.status = 'ok'), 0), coalesce(sum(a.status = 'failed'), 0), "
            "coalesce(sum(CASE WHEN r.first THEN a.cost END), 0) "
            "FROM rows r CROSS JOIN answers a INDEXED BY answers_state ON a.id = r.question_id"
        )[0]
        return Counts(
            rows=rows,
            ok=ok,
            failed=failed + problems,
            pending=asked - ok - failed,
            skipped=rows - asked - problems,
            questions=questions,
            cost=Pico(cost),
            errors=self._errors() if failed or problems else {},
        )

    def _errors(self) -> dict[str, int]:
        """Count failed rows by error_type."""
        failed = "SELECT id FROM answers INDEXED BY answers_failed WHERE status = 'failed'"
        rows = self._connection.rows(
            f"SELECT coalesce(r.error_type, a.error_type), count(*) FROM {_NARROW_JOIN.format('rows')} "  # noqa: S608  (constants only)
            f"WHERE r.error_type IS NOT NULL OR r.question_id IN ({failed}) GROUP BY 1 ORDER BY 1"
        )
        return dict(rows)

    def failed_rows(self, error_type: str, limit: int) -> tuple[int, ...]:
        """Return the first positions that failed so."""
        failed = "SELECT id FROM answers INDEXED BY answers_failed WHERE status = 'failed' AND error_type = ?1"
        found = self._connection.rows(
            f"SELECT position FROM rows WHERE error_type = ?1 OR question_id IN ({failed}) ORDER BY 1 LIMIT ?2",  # noqa: S608  (constants)
            (error_type, limit),
        )
        return tuple(row[0] for row in found)

    def answer_counts(self, column: str) -> dict[str, int]:
        """Count the values of an answer's column over the rows of the current plan, most frequent first."""
        return dict(
            self._connection.rows(
                "SELECT CASE json_type(a.answer, ?1) WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' "
                "ELSE coalesce(CAST(json_extract(a.answer, ?1) AS TEXT), 'null') END, count(*) FROM rows r "
                "JOIN answers a ON a.id = r.question_id WHERE a.status = 'ok' GROUP BY 1 ORDER BY 2 DESC, 1",
                (f"$.{json.dumps(column)}",),
            )
        )

    def _counts_from(self, text: str) -> Counts:
        try:
            return Counts(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise damaged(self.path, f"its counts can't be read: {error}") from error

    def failed_attempts(self) -> dict[str, int]:
        """Count the attempts of all runs that brought no answer, by error_type; most frequent first."""
        return dict(self._connection.rows("SELECT error_type, count(*) FROM failures GROUP BY 1 ORDER BY 2 DESC"))

    # -- money

    def usage(self) -> Usage:
        """Sum the tokens of the newest 10,000 answers that report them."""
        found = self._connection.rows(
            "SELECT coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0), count(*) FROM ("
            "SELECT prompt_tokens, completion_tokens FROM answers WHERE status = 'ok' AND prompt_tokens IS NOT NULL "
            "ORDER BY id DESC LIMIT ?)",
            (_SAMPLE,),
        )
        return Usage(*found[0])

    def answering_models(self, most: int) -> list[str]:
        """Return the names of the models that gave the stored answers, the first `most` of them."""
        sql = "SELECT DISTINCT model FROM answers WHERE status = 'ok' AND model IS NOT NULL LIMIT ?"
        return [name for (name,) in self._connection.rows(sql, (most,))]

    def spent(self, *, day: str | None = None, run_id: int | None = None) -> Pico:
        """Return what all runs spent, or one, or on one UTC day (see `utc_day`); picodollars, exact."""
        return Pico(
            self._connection.value(
                "SELECT coalesce(sum(cost), 0) FROM spending "
                "WHERE (?1 IS NULL OR day = ?1) AND (?2 IS NULL OR run_id = ?2)",
                (day, run_id),
            )
        )

    def leased(self, day: str, *, dead: bool = False) -> Pico:
        """Return the money that runs of a UTC day may have spent beyond the known, by their leases; picodollars.

        `dead`: only of runs that never ended. Call it between runs.
        """
        return Pico(
            self._connection.value(
                "SELECT coalesce(sum(max(0, amount - "
                "(SELECT coalesce(sum(cost), 0) FROM spending s WHERE s.run_id = l.run_id))), 0) "
                "FROM leases l WHERE day = ? AND (NOT ? OR run_id IN (SELECT id FROM runs WHERE ended_at IS NULL))",
                (day, dead),
            )
        )

    def possibly_billed(self) -> int:
        """Count the requests of all runs whose replies were lost, so that they may be billed in addition."""
        return int(self._connection.value("SELECT coalesce(sum(possibly_billed), 0) FROM runs"))

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
        text = None if counts is None else json.dumps(asdict(counts))
        end = {"ended_at": now, "exit_code": exit_code, "reason": reason, "resume_at": resume_at, "output": output}
        end["answered_at"] = answered_at
        with self._connection.transaction():
            self._connection.update_row("runs", run_id, {**end, "counts": text})
            self._connection.run("UPDATE plans SET counts = ? WHERE current", (text,))
            if lease is not None:
                self._connection.run("UPDATE leases SET amount = ? WHERE run_id = ?", (lease, run_id))

    def answered_since(self, endpoint: str, since: float) -> bool:
        """Check whether a run that has ended had a success from this endpoint since a Unix time."""
        sql = "SELECT 1 FROM runs WHERE endpoint = ? AND answered_at >= ? LIMIT 1"
        return bool(self._connection.rows(sql, (endpoint, since)))

    def runs(self, limit: int = 20) -> list[RunInfo]:
        """Return the newest runs, newest first."""
        found = self._connection.rows(f"SELECT {_RUN} FROM runs ORDER BY id DESC LIMIT ?", (limit,))  # noqa: S608  (a constant)
        return [RunInfo(*(*row[:-1], row[-1] and self._counts_from(row[-1]))) for row in found]

    def last_run(self) -> RunInfo | None:
        """Return the newest run."""
        return next(iter(self.runs(1)), None)

    def flags(self) -> str:
        """Return what the newest run noted of its flags; empty where there was none."""
        return str(self._connection.value("SELECT coalesce(flags, '') FROM runs ORDER BY id DESC LIMIT 1") or "")

    def verify(self) -> list[str]:
        """Check the whole file and its sums; return its faults, none when all is right."""
        found = [str(row[0]) for row in self._connection.rows("PRAGMA integrity_check(20)")]
        if found != ["ok"]:
            return found
        numbers = {what: self._connection.value(sql) for what, sql in schema.INVARIANTS.items()}
        return [f"{what} ({number})" for what, number in numbers.items() if number]
