"""Provider batches: submitted ones, the questions that are out, and their answers.

A batch is committed before it is submitted, so that a kill at any moment leaves a record to look for. A question is
out in one batch at most; while it is, nothing else asks it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from batchrun.checkpoint.connection import Connection
from batchrun.checkpoint.schema import BATCH_TRIES, NOT_OUT
from batchrun.checkpoint.writer import keep, utc_day
from batchrun.money import ZERO, Pico, Price
from batchrun.records import Outcome


class BatchState(StrEnum):
    """How a batch stands here; the provider's own status is asked when it is needed."""

    SUBMITTING = "submitting"
    """Committed, and the provider may have it or not: the reply to the submission was lost, or never came; or it is not
    found under its id."""
    OUT = "out"
    COLLECTED = "collected"
    RELEASED = "released"
    """Given up: its questions are open again."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that is not ended. Money is in picodollars, times are Unix seconds.

    `tag` begins each custom_id. `answer_schema` is the JSON Schema of its answers (None: text), and `price` what their
    tokens cost (None: unknown), by the job file from which it was submitted. `looks` counts how often the provider's
    list was searched for it in vain since its reply was lost, `foreign_ids` names batches in that list that turned out
    to be another job's.
    """

    number: int
    run_id: int
    state: BatchState
    model: str
    tag: str
    answer_schema: dict[str, Any] | None
    price: Price | None
    provider_id: str | None
    file_id: str | None
    questions: int
    reserved: Pico
    submitted_at: float
    looks: int
    looked_at: float | None
    foreign_ids: frozenset[str]
    problem: str | None


_COLUMNS = ", ".join(Batch.__dataclass_fields__)


def _batch(row: Sequence[Any]) -> Batch:
    """Return the batch of a line of the table."""
    read = dict(zip(Batch.__dataclass_fields__, row, strict=True))
    schema, price = read["answer_schema"], read["price"]
    read |= {
        "state": BatchState(read["state"]),
        "foreign_ids": frozenset(json.loads(read["foreign_ids"])),
        "answer_schema": None if schema is None else json.loads(schema),
        "price": None if price is None else Price(**json.loads(price)),
    }
    return Batch(**read)


class Batches:
    """The batches of one checkpoint; raises StorageError and CheckpointError as the checkpoint does."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def open(self, endpoint: str | None = None) -> list[Batch]:
        """Return the batches that are not ended, oldest first: all, or those of runs with this endpoint."""
        rows = self._connection.rows(
            f"SELECT {_COLUMNS} FROM batches b WHERE state IN ('submitting', 'out') "  # noqa: S608  (constants)
            "AND (?1 IS NULL OR ?1 = (SELECT r.endpoint FROM runs r WHERE r.id = b.run_id)) ORDER BY number",
            (endpoint,),
        )
        return [_batch(row) for row in rows]

    def out(self) -> int:
        """Count the questions that are out."""
        return int(self._connection.value("SELECT count(*) FROM batched WHERE batch IS NOT NULL"))

    def out_among(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return those of these questions that are out, by key."""
        sql = (
            "SELECT q.key FROM questions q JOIN batched b ON b.question_id = q.id "
            "WHERE b.batch IS NOT NULL AND q.key IN ({})"
        )
        return {key for (key,) in self._connection.rows_in(sql, keys)}

    def out_rows(self) -> int:
        """Count the rows of the current plan whose questions are out."""
        return int(self._connection.value(f"SELECT count(*) FROM rows r WHERE NOT {NOT_OUT}"))  # noqa: S608  (a constant)

    def reserved(self, *, day: str | None = None, run_id: int | None = None) -> Pico:
        """Return what batches without a known cost may cost, of those submitted on a UTC day or by a run; picodollars.

        That are open ones, and those that were given up: the provider works on them, and bills them.
        """
        rows = self._connection.rows("SELECT reserved, submitted_at, run_id FROM batches WHERE reserved > 0")
        return Pico(sum(reserved for reserved, at, run in rows if day in {None, utc_day(at)} and run_id in {None, run}))

    def last_model(self, names: Sequence[str]) -> str | None:
        """Return which of a model's names the provider took last; None before the first."""
        sql = "SELECT model FROM batches WHERE provider_id IS NOT NULL AND model IN ({}) ORDER BY number DESC LIMIT 1"
        return next((model for (model,) in self._connection.rows_in(sql, names)), None)

    def keys(self, positions: Sequence[int]) -> dict[int, bytes]:
        """Return the keys of the questions of rows, by question."""
        return dict(self._connection.rows_in("SELECT question_id, key FROM rows WHERE position IN ({})", positions))

    def begin(
        self,
        questions: Sequence[int],
        *,
        run_id: int,
        model: str,
        tag: str,
        answer_schema: Mapping[str, Any] | None,
        price: Price | None,
        reserved: Pico,
        now: float,
    ) -> Batch:
        """Commit that these questions are about to be submitted as one batch."""
        row = {
            "run_id": run_id,
            "state": BatchState.SUBMITTING.value,
            "model": model,
            "tag": tag,
            "answer_schema": None if answer_schema is None else json.dumps(answer_schema),
            "price": None if price is None else json.dumps(asdict(price)),
            "questions": len(questions),
            "reserved": reserved,
            "submitted_at": now,
        }
        with self._connection.transaction():
            number = self._connection.insert_row("batches", row)
            self._connection.many(
                "INSERT INTO batched(question_id, batch) VALUES (?, ?) "
                "ON CONFLICT DO UPDATE SET batch = excluded.batch WHERE batch IS NULL",
                ((question, number) for question in questions),
            )
        return next(batch for batch in self.open() if batch.number == number)

    def submitted(self, batch: Batch, *, provider_id: str, model: str, file_id: str | None = None) -> None:
        """Note that the provider has the batch, under this id."""
        has: dict[str, object] = {"state": BatchState.OUT.value, "provider_id": provider_id, "model": model}
        if provider_id != batch.provider_id:
            has["looks"] = 0
        self._connection.update_row("batches", batch.number, {**has, "file_id": file_id or batch.file_id})

    def in_doubt(self, batch: Batch, file_id: str) -> None:
        """Note the file of a batch whose reply was lost, by which it can be found."""
        self._connection.update_row("batches", batch.number, {"file_id": file_id})

    def looked(self, batch: Batch, now: float) -> None:
        """Note that the provider's list was searched for a batch that is in doubt."""
        self._connection.run(
            "UPDATE batches SET looks = looks + 1, looked_at = ? WHERE number = ?", (now, batch.number)
        )

    def missing(self, batch: Batch, now: float) -> None:
        """Note that the provider does not find the batch under its id, so that its list must be searched."""
        self._connection.update_row("batches", batch.number, {"state": BatchState.SUBMITTING.value, "looked_at": now})

    def is_foreign(self, batch: Batch) -> None:
        """Note that the batch of that id is another job's, so that this one must be looked for again."""
        foreign = json.dumps(sorted(batch.foreign_ids | {batch.provider_id or ""}))
        lost = {"state": BatchState.SUBMITTING.value, "provider_id": None, "looks": 0, "looked_at": None}
        self._connection.update_row("batches", batch.number, {**lost, "foreign_ids": foreign})

    def warn(self, batch: Batch, problem: str) -> bool:
        """Keep the problem of an open batch, for `status`; return whether it is new."""
        sql = "UPDATE batches SET problem = ? WHERE number = ? AND problem IS NOT ?"
        return self._connection.run(sql, (problem, batch.number, problem)) > 0

    def release(self, batch: Batch, problem: str, now: float, *, reserved: Pico = ZERO) -> None:
        """End a batch without its answers: its questions are open again, and nothing was tried.

        `reserved` is what it may cost all the same, 0 where the provider does not have it.
        """
        with self._connection.transaction():
            # Tries in earlier batches still count; a question without any leaves the table.
            self._connection.run("DELETE FROM batched WHERE batch = ? AND tries = 0", (batch.number,))
            self._connection.run("UPDATE batched SET batch = NULL WHERE batch = ?", (batch.number,))
            self._end(batch, BatchState.RELEASED, now, problem, reserved=reserved)

    def give_up(self, now: float) -> int:
        """End all open batches without their answers; return how many questions are open again."""
        number = self.out()
        for batch in self.open():
            self.release(batch, "given up", now, reserved=batch.reserved)
        return number

    def questions(self, batch: Batch) -> list[tuple[bytes, int, int]]:
        """Return the questions of a batch: key, id, and how many earlier batches did not answer it."""
        return self._connection.rows(
            "SELECT q.key, q.id, b.tries FROM questions q JOIN batched b ON b.question_id = q.id WHERE b.batch = ?",
            (batch.number,),
        )

    def provider_ids(self) -> set[str]:
        """Return the providers' ids of all batches that are known here."""
        return {row[0] for row in self._connection.rows("SELECT provider_id FROM batches WHERE provider_id NOT NULL")}

    def leave_for_live(self, questions: Sequence[int]) -> None:
        """Note that these questions fit into no batch, so that they are asked live."""
        with self._connection.transaction():
            self._connection.many(
                "INSERT INTO batched(question_id, tries) VALUES (?, ?) "
                "ON CONFLICT DO UPDATE SET tries = excluded.tries",
                ((question, BATCH_TRIES) for question in questions),
            )

    def fail(self, run_id: int, outcomes: Sequence[Outcome]) -> None:
        """Commit rows for which no request can be made."""
        with self._connection.transaction():
            keep(self._connection, run_id, outcomes, [])
            self._connection.run("UPDATE plans SET counts = NULL")

    def collect(
        self,
        batch: Batch,
        outcomes: Sequence[Outcome],
        *,
        unassigned: Pico,
        tried: bool,
        now: float,
        problem: str | None = None,
        reserved: Pico = ZERO,
    ) -> None:
        """Commit all that a batch brought, at once: outcomes, money, and which of its questions are open again.

        `tried`: the batch counts as a try of those that it did not answer; not so where the account was refused.
        Each that is not ok counts as one failed attempt. The money belongs to the run and the day of the submission;
        `unassigned` is what no question cost, `reserved` what the batch may have cost beyond the known cost.
        """
        settled = [(outcome.question,) for outcome in outcomes if outcome.status in {"ok", "failed"}]
        with self._connection.transaction():
            keep(
                self._connection,
                batch.run_id,
                outcomes,
                [outcome for outcome in outcomes if outcome.status != "ok"],
                day=utc_day(batch.submitted_at),
                unassigned=unassigned,
            )
            self._connection.many("DELETE FROM batched WHERE question_id = ?", settled)
            self._connection.run(
                "UPDATE batched SET batch = NULL, tries = tries + ? WHERE batch = ?", (int(tried), batch.number)
            )
            cost = sum(outcome.cost for outcome in outcomes) + unassigned
            self._connection.update_row("batches", batch.number, {"cost": cost})
            self._connection.run("UPDATE plans SET counts = NULL")
            self._end(batch, BatchState.COLLECTED, now, problem, reserved=reserved)

    def _end(self, batch: Batch, state: BatchState, now: float, problem: str | None, *, reserved: Pico = ZERO) -> None:
        ended = {"state": state.value, "ended_at": now, "problem": problem, "reserved": reserved}
        self._connection.update_row("batches", batch.number, ended)
