"""The history of runs: when, by whom, with what end and at what cost."""

from dataclasses import dataclass

from batchrun.checkpoint.connection import Connection, Row
from batchrun.checkpoint.queries import Counts, counts_from, counts_to
from batchrun.money import Pico

_FIELDS = (
    "id, plan, started_at, ended_at, exit_code, reason, host, pid, version, requests, cost, possibly_billed, cached, "
    "output, resume_at, counts"
)


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run. `ended_at` is None while it goes on, and for ever if it was killed; `plan` is the plan's number.

    `output` is what the caller noted of the output that it left. `requests`, `cost` (picodollars),
    `possibly_billed` and `cached` (answers from OpenRouter's cache) are what was committed, also of a killed run.
    """

    id: int
    plan: int | None
    started_at: float
    ended_at: float | None
    exit_code: int | None
    reason: str | None
    host: str
    pid: int
    version: str
    requests: int
    cost: Pico
    possibly_billed: int
    cached: int
    output: str | None
    resume_at: float | None
    counts: Counts | None


def begin_run(connection: Connection, *, now: float, host: str, pid: int, version: str, job_text: str) -> int:
    """Note that a run begins with the current plan; give its id."""
    with connection.transaction():
        connection.run("UPDATE plans SET counts = NULL")
        connection.run(
            "INSERT INTO runs(plan, started_at, host, pid, version, job) "
            "VALUES ((SELECT number FROM plans WHERE current), ?, ?, ?, ?, ?)",
            (now, host, pid, version, job_text),
        )
        return int(connection.value("SELECT last_insert_rowid()"))


def end_run(
    connection: Connection, run_id: int, *, now: float, exit_code: int, reason: str, counts: Counts | None,
    resume_at: float | None, output: str | None,
) -> None:  # fmt: skip
    """Note how a run ended; `counts` are kept, so that the next look at them is instant."""
    text = None if counts is None else counts_to(counts)
    with connection.transaction():
        connection.run(
            "UPDATE runs SET ended_at = ?, exit_code = ?, reason = ?, counts = ?, resume_at = ?, output = ? "
            "WHERE id = ?",
            (now, exit_code, reason, text, resume_at, output, run_id),
        )
        connection.run("UPDATE plans SET counts = ? WHERE current", (text,))


def list_runs(connection: Connection, limit: int) -> list[RunInfo]:
    """Give the newest runs, newest first."""
    found = connection.rows(f"SELECT {_FIELDS} FROM runs ORDER BY id DESC LIMIT ?", (limit,))  # noqa: S608  (a constant)
    return [_run_info(row, connection) for row in found]


def _run_info(row: Row, connection: Connection) -> RunInfo:
    values, counts = row[:-1], row[-1]
    return RunInfo(*(*values, None if counts is None else counts_from(counts, connection)))
