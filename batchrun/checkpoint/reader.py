"""What a checkpoint holds, for people and for the output: rows, money, runs. Nothing here writes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from batchrun.checkpoint import schema
from batchrun.checkpoint.connection import Connection, damaged
from batchrun.checkpoint.records import Counts, FirstSettled, RunInfo
from batchrun.money import Pico

_TABLES = {False: "rows", True: "rows_before"}
_JOIN = "{} r LEFT JOIN answers a ON a.id = r.question_id"
# SQLite would take the table itself, whose pages hold the texts.
NARROW_JOIN = "{} r LEFT JOIN answers a INDEXED BY answers_state ON a.id = r.question_id"


OUTCOME_COLUMNS: Mapping[str, str] = {
    **{name: f"a.{name}" for name in schema.COLUMNS},
    "position": "r.position",
    "status": schema.STATUS,
    "error_type": "coalesce(r.error_type, a.error_type)",
    "error_message": "coalesce(r.error_message, a.error_message)",
    "cost": "CASE WHEN r.first THEN a.cost ELSE a.cost * 0 END",
    "known_cost": schema.KNOWN_COST,
    "reported_cost": "CASE WHEN r.first THEN nullif(a.cost, 0) WHEN a.cost > 0 THEN 0 END",
    "key": "r.key",
    "first": "r.first",
    "question": "r.question_id",
}
"""What `outcomes` returns of a row, by name. `cost` (picodollars) is on the question's first row, else 0; `known_cost`
is null where something was billed and nobody says how much, `reported_cost` where nobody reports any cost."""

_SPENT = (
    "SELECT coalesce(sum(cost), 0) FROM spending WHERE (?1 IS NULL OR day = ?1) AND (?2 IS NULL OR run_id = ?2) "
    "AND (run_id NOT IN (SELECT id FROM runs WHERE endpoint = 'simulator') "
    "OR (SELECT endpoint FROM runs ORDER BY id DESC LIMIT 1) = 'simulator')"
)
"""A job is tried with `endpoint: simulator` and then asks a paid model: nobody was charged for the trial."""

_RUN = ", ".join(RunInfo.__dataclass_fields__)


class Reader:
    """The reading half of a Checkpoint."""

    def __init__(self, connection: Connection) -> None:
        self.path = connection.path
        self._connection = connection

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
            f"SELECT r.position FROM {NARROW_JOIN.format('rows')} WHERE {schema.STATUS} = ? ORDER BY 1 LIMIT ?",  # noqa: S608  (constants)
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
            f"SELECT coalesce(r.error_type, a.error_type), count(*) FROM {NARROW_JOIN.format('rows')} "  # noqa: S608  (constants only)
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

    def answer_tokens(self) -> float | None:
        """Return the mean tokens, rounded, of the newest 10,000 answers that report them; None without any."""
        mean: float | None = self._connection.value(
            "SELECT round(avg(tokens)) FROM (SELECT coalesce(completion_tokens, 0) AS tokens FROM answers "
            "WHERE status = 'ok' AND prompt_tokens IS NOT NULL ORDER BY id DESC LIMIT 10000)"
        )
        return mean

    def answering_models(self, most: int) -> list[str]:
        """Return the names of the models that gave the stored answers, the first `most` of them."""
        sql = "SELECT DISTINCT model FROM answers WHERE status = 'ok' AND model IS NOT NULL LIMIT ?"
        return [name for (name,) in self._connection.rows(sql, (most,))]

    def spent(self, *, day: str | None = None, run_id: int | None = None) -> Pico:
        """Return what all runs spent, or one, or on one UTC day (see `utc_day`); picodollars, exact.

        Money of the simulator counts as long as the newest run asked it, too.
        """
        return Pico(self._connection.value(_SPENT, (day, run_id)))

    def has_asked(self, endpoint: str) -> bool:
        """Check whether a run has sent requests to this endpoint."""
        sql = "SELECT 1 FROM runs WHERE endpoint = ? AND requests LIMIT 1"
        return bool(self._connection.rows(sql, (endpoint,)))

    def leased(self, day: str, *, dead: bool = False) -> Pico:
        """Return the money that runs of a UTC day may have spent beyond the known, by their leases; picodollars.

        `dead`: only of runs that never ended. Call it between runs.
        """
        return Pico(
            self._connection.value(
                "SELECT coalesce(sum(max(0, amount - "
                "(SELECT coalesce(sum(cost), 0) FROM spending s WHERE s.run_id = l.run_id) + "
                "(SELECT coalesce(sum(cost), 0) FROM batches b WHERE b.run_id = l.run_id))), 0) "
                "FROM leases l WHERE day = ? AND (NOT ? OR run_id IN (SELECT id FROM runs WHERE ended_at IS NULL))",
                (day, dead),
            )
        )

    def possibly_billed(self) -> int:
        """Count the requests of all runs whose replies were lost, so that they may be billed in addition."""
        return int(self._connection.value("SELECT coalesce(sum(possibly_billed), 0) FROM runs"))

    # -- runs

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

    def has_written(self, output: str) -> bool:
        """Check whether a run has noted an output that ends with a space and this path."""
        sql = "SELECT 1 FROM runs WHERE substr(output, instr(output, ' ') + 1) = ? LIMIT 1"
        return bool(self._connection.rows(sql, (output,)))

    def flags(self) -> str:
        """Return what the newest run noted of its flags; empty where there was none."""
        return str(self._connection.value("SELECT coalesce(flags, '') FROM runs ORDER BY id DESC LIMIT 1") or "")

    def verify(self) -> list[str]:
        """Check the whole file, its types and its sums; return its faults, none when all is right."""
        found = [str(row[0]) for row in self._connection.rows("PRAGMA integrity_check(20)")]
        if found != ["ok"]:
            return found
        if found := [*self._wrong_types(), *self._wrong_json()]:
            return found
        numbers = {what: self._connection.value(sql) for what, sql in schema.INVARIANTS.items()}
        return [f"{what} ({number})" for what, number in numbers.items() if number]

    def _wrong_types(self) -> Iterator[str]:
        """Yield the columns that hold values of a type that is never written there."""
        tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        sql = f"SELECT t.name, c.name, c.type FROM ({tables}) t JOIN pragma_table_info(t.name) c"  # noqa: S608  (our own names)
        for table, column, declared in self._connection.rows(sql):
            wrong = f"SELECT count(*) FROM {table} WHERE typeof({column}) NOT IN (?, 'null')"  # noqa: S608  (our own names)
            if number := self._connection.value(wrong, (declared.lower(),)):
                yield f"{number} values of {table}.{column} are not {declared}"

    def _wrong_json(self) -> Iterator[str]:
        for number, *texts in self._connection.rows("SELECT number, stamps, layout, counts FROM plans"):
            try:
                readable = all(isinstance(json.loads(text), dict | list) for text in filter(None, texts))
            except ValueError:
                readable = False
            if not readable:
                yield f"plan {number} can't be read"
