"""Asks the checkpoint: what is open, how rows stand, what it cost, whether it is sound."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from batchrun.checkpoint import schema
from batchrun.checkpoint.connection import Connection, Row, damaged
from batchrun.money import ZERO, Pico

UNLIMITED = 2**62
"""A max_tokens of None."""

_SAMPLE = 10_000
_LOOKED_UP = 500  # keys in one query

_JOIN = "rows r LEFT JOIN answers a ON a.id = r.question_id"
# SQLite would take the table itself, whose pages hold the texts.
_NARROW_JOIN = "rows r LEFT JOIN answers a INDEXED BY answers_state ON a.id = r.question_id"

OUTCOME_COLUMNS: Mapping[str, str] = {
    "position": "r.position",
    "status": schema.STATUS,
    "answer": "a.answer",
    "raw": "a.raw",
    "error_type": "coalesce(r.error_type, a.error_type)",
    "error_code": "a.error_code",
    "error_message": "coalesce(r.error_message, a.error_message)",
    "http_status": "a.http_status",
    "attempts": "a.attempts",
    "model": "a.model",
    "provider": "a.provider",
    "finish_reason": "a.finish_reason",
    "prompt_tokens": "a.prompt_tokens",
    "completion_tokens": "a.completion_tokens",
    "cost": "CASE WHEN r.first THEN a.cost ELSE a.cost * 0 END",
    "cached": "a.cached",
    "possibly_billed": "a.possibly_billed",
    "seconds": "a.seconds",
    "generation_id": "a.generation_id",
    "finished_at": "a.finished_at",
    "key": "r.key",
    "first": "r.first",
    "question": "r.question_id",
}
"""What `outcomes` can give of a row, by name. `cost` (picodollars) is on the question's first row, else 0."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How the rows of the current plan stand.

    `errors` counts failed rows by error_type; `questions` are the distinct ones, `cost` is what they cost.
    """

    rows: int = 0
    ok: int = 0
    failed: int = 0
    pending: int = 0
    skipped: int = 0
    questions: int = 0
    cost: Pico = ZERO
    errors: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What the newest answers used: tokens of so many answers, for estimates."""

    prompt_tokens: int
    completion_tokens: int
    answers: int


@dataclass(frozen=True, slots=True)
class Settled:
    """A question that is not to be asked: `ok` or `failed`, and what its last attempt used (seconds for `seconds`)."""

    status: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Failed:
    """Rows that failed and are not to be asked again, and the distinct questions that are among them."""

    rows: int
    questions: int


class Open:
    """Which questions are to be asked: without an answer, pending, or failed in a way that `again` names.

    A truncated one is, too, when `max_tokens` (None: unlimited) is more than it had.
    """

    def __init__(self, again: Collection[str], max_tokens: int | None) -> None:
        marks = ", ".join("?" * len(again))
        self.failure = f"(a.error_type IN ({marks}) OR a.error_type = 'truncated' AND a.max_tokens < ?)"
        """Whether a failed answer is open."""
        self.sql = (
            f"r.first AND (a.id IS NULL OR a.status NOT IN ('ok', 'failed') OR a.status = 'failed' AND {self.failure})"
        )
        self.values = (*again, UNLIMITED if max_tokens is None else max_tokens)


def open_questions(connection: Connection, which: Open, *, start: int, batch: int) -> Iterator[list[tuple[int, int]]]:
    """Give (position, question) of the open questions from position `start` on, in input order.

    Each block is a query of its own, so that no long read keeps the log from being merged. A question that is
    answered meanwhile may be missing in a later block, never in the wrong place.
    """
    sql = (
        f"SELECT r.position, r.question_id FROM {_NARROW_JOIN} "  # noqa: S608  (constants and marks only)
        f"WHERE r.position >= ? AND r.position < ? AND {which.sql} ORDER BY r.position LIMIT ?"
    )
    end = _end(connection)
    while start < end:
        block = connection.rows(sql, (start, end, *which.values, batch))
        if not block:
            return
        yield block
        start = block[-1][0] + 1


def count_open(connection: Connection, which: Open, *, start: int) -> int:
    """Count the open questions from position `start` on."""
    sql = f"SELECT count(*) FROM {_NARROW_JOIN} WHERE r.position >= ? AND {which.sql}"  # noqa: S608  (as above)
    return int(connection.value(sql, (start, *which.values)))


def count_failed(connection: Connection, which: Open) -> Failed:
    """Count what failed for good in the current plan."""
    sql = (
        "SELECT count(*), coalesce(sum(first), 0) FROM rows WHERE error_type IS NOT NULL OR question_id IN ("  # noqa: S608  (as above)
        f"SELECT id FROM answers a INDEXED BY answers_failed WHERE status = 'failed' AND {which.failure} IS NOT TRUE)"
    )
    return Failed(*connection.rows(sql, which.values)[0])


def has_truncated(connection: Connection, which: Open) -> bool:
    """Tell whether any answer that was cut off would be asked again."""
    sql = "SELECT 1 FROM answers WHERE status = 'failed' AND error_type = 'truncated' AND max_tokens < ? LIMIT 1"
    return bool(connection.rows(sql, which.values[-1:]))


def failed_attempts(connection: Connection) -> dict[str, int]:
    """Count the attempts of all runs that brought no answer, by error_type."""
    return dict(connection.rows("SELECT error_type, count(*) FROM failures GROUP BY 1 ORDER BY 2 DESC"))


def settled(connection: Connection, which: Open, keys: Sequence[bytes]) -> dict[bytes, Settled]:
    """Give what is known of those questions that are not open, by key, whether a plan has them or not."""
    found: dict[bytes, Settled] = {}
    for start in range(0, len(keys), _LOOKED_UP):
        some = keys[start : start + _LOOKED_UP]
        sql = (
            "SELECT q.key, a.status, a.prompt_tokens, a.completion_tokens, a.seconds "  # noqa: S608  (marks only)
            "FROM questions q JOIN answers a ON a.id = q.id, (SELECT 1 AS first) r "
            f"WHERE ({which.sql}) IS NOT TRUE AND q.key IN ({', '.join('?' * len(some))})"
        )
        found.update((row[0], Settled(*row[1:])) for row in connection.rows(sql, (*which.values, *some)))
    return found


def _end(connection: Connection) -> int:
    return int(connection.value("SELECT coalesce(max(position) + 1, 0) FROM rows"))


def outcomes(connection: Connection, start: int, count: int, columns: Sequence[str]) -> list[Row]:
    """Give the chosen columns (of OUTCOME_COLUMNS) of `count` rows from position `start` on, in input order."""
    chosen = ", ".join(OUTCOME_COLUMNS[name] for name in columns)
    return connection.rows(
        f"SELECT {chosen} FROM {_JOIN} WHERE r.position >= ? AND r.position < ? ORDER BY r.position",  # noqa: S608  (from the table)
        (start, start + count),
    )


def counts(connection: Connection) -> Counts:
    """Count the rows of the current plan; instantly after a finished run, else by reading them all."""
    kept = connection.value("SELECT counts FROM plans WHERE current")
    if kept is not None:
        return counts_from(kept, connection)
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
        errors=_errors(connection) if failed or problems else {},
    )


def _errors(connection: Connection) -> dict[str, int]:
    """Count failed rows by error_type."""
    failed = "SELECT id FROM answers INDEXED BY answers_failed WHERE status = 'failed'"
    return dict(
        connection.rows(
            f"SELECT coalesce(r.error_type, a.error_type), count(*) FROM {_NARROW_JOIN} "  # noqa: S608  (constants only)
            f"WHERE r.error_type IS NOT NULL OR r.question_id IN ({failed}) GROUP BY 1 ORDER BY 1"
        )
    )


def counts_to(numbers: Counts) -> str:
    """Give counts as the JSON text that is kept."""
    return json.dumps(asdict(numbers))


def counts_from(text: str, connection: Connection) -> Counts:
    """Give counts from the text that is kept."""
    try:
        return Counts(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise damaged(connection.path, f"its counts can't be read: {error}") from error


def usage(connection: Connection) -> Usage:
    """Sum the tokens of the newest 10,000 answers that tell them."""
    found = connection.rows(
        "SELECT coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0), count(*) FROM ("
        "SELECT prompt_tokens, completion_tokens FROM answers WHERE status = 'ok' AND prompt_tokens IS NOT NULL "
        "ORDER BY id DESC LIMIT ?)",
        (_SAMPLE,),
    )
    return Usage(*found[0])


def spent(connection: Connection, *, day: str | None, run_id: int | None) -> Pico:
    """Give what was spent: on one UTC day (2026-11-22), by one run, or in all."""
    return Pico(
        connection.value(
            "SELECT coalesce(sum(cost), 0) FROM spending "
            "WHERE (?1 IS NULL OR day = ?1) AND (?2 IS NULL OR run_id = ?2)",
            (day, run_id),
        )
    )


def possibly_billed(connection: Connection) -> int:
    """Count the requests of all runs whose replies were lost."""
    return int(connection.value("SELECT coalesce(sum(possibly_billed), 0) FROM runs"))


def reopen_failed(connection: Connection, types: Collection[str] | None) -> int:
    """Make failed answers of the current plan pending: all, or of some types. Give their number."""
    marks = "" if types is None else f"AND error_type IN ({', '.join('?' * len(types))})"
    with connection.transaction():
        number = connection.run(
            "UPDATE answers SET status = 'pending' WHERE id IN ("  # noqa: S608  (marks only)
            "SELECT a.id FROM rows r CROSS JOIN answers a INDEXED BY answers_state ON a.id = r.question_id "
            f"WHERE r.first AND a.status = 'failed') {marks}",
            tuple(types or ()),
        )
        if number:
            connection.run("UPDATE plans SET low_water = 0, counts = NULL")
    return number


def prune(connection: Connection, *, older_than: float) -> int:
    """Drop answers that no row of the current plan asks and that are older than a Unix time; give their number."""
    planned = "(SELECT question_id FROM rows WHERE question_id IS NOT NULL)"
    with connection.transaction():
        number = connection.run(f"DELETE FROM answers WHERE finished_at < ? AND id NOT IN {planned}", (older_than,))  # noqa: S608
        connection.run(f"DELETE FROM questions WHERE id NOT IN {planned} AND id NOT IN (SELECT id FROM answers)")  # noqa: S608
        connection.run("DELETE FROM failures WHERE question_id NOT IN (SELECT id FROM questions)")
    if number:
        connection.run("VACUUM")
    return number


_INVARIANTS = {
    "a row's question is missing": (
        "SELECT count(*) FROM rows r LEFT JOIN questions q ON q.key = r.key "
        "WHERE r.question_id IS NOT NULL AND q.id IS NOT r.question_id"
    ),
    "a question of the plan has not exactly one first row": (
        "SELECT count(*) FROM (SELECT 1 FROM rows WHERE question_id IS NOT NULL "
        "GROUP BY question_id HAVING sum(first) <> 1)"
    ),
    "the plan does not have as many rows as it says": (
        "SELECT count(*) FROM plans WHERE current AND (rows <> (SELECT count(*) FROM rows) "
        "OR questions <> (SELECT coalesce(sum(first), 0) FROM rows) "
        "OR rows <> (SELECT coalesce(max(position) + 1, 0) FROM rows))"
    ),
    "an answer belongs to no question": "SELECT count(*) FROM answers WHERE id NOT IN (SELECT id FROM questions)",
    "an answer has an unknown status": (
        "SELECT count(*) FROM answers WHERE status NOT IN ('ok', 'failed', 'pending') "
        "OR status = 'ok' AND answer IS NULL OR status = 'failed' AND error_type IS NULL"
    ),
    "a run's cost is not what its days add up to": (
        "SELECT count(*) FROM runs r WHERE cost <> (SELECT coalesce(sum(cost), 0) FROM spending WHERE run_id = r.id)"
    ),
    "the answers cost more than was spent": (
        "SELECT (SELECT coalesce(sum(cost), 0) FROM answers) > (SELECT coalesce(sum(cost), 0) FROM spending)"
    ),
}


def verify(connection: Connection) -> list[str]:
    """Check the whole file and the books; give what is wrong, nothing when all is sound."""
    found = [str(row[0]) for row in connection.rows("PRAGMA integrity_check(20)")]
    if found != ["ok"]:
        return found
    wrong: list[str] = []
    for what, sql in _INVARIANTS.items():
        number: Any = connection.value(sql)
        if number:
            wrong.append(f"{what} ({number})")
    return wrong
