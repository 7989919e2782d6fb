"""What can be read off the checkpoint: open questions, rows, counts, money, soundness."""

import sqlite3
import time
from pathlib import Path

import pytest
from checkpoint_samples import NOON, begin, failed, keep, made, ok, plan
from sqlite_utils import Database

from batchrun.checkpoint import FOR_BATCH, OUTCOME_COLUMNS, Checkpoint, Counts, Failed, utc_day
from batchrun.checkpoint.records import OpenRule
from batchrun.money import Pico
from batchrun.records import Outcome, Status


def positions(path: Path, again: tuple[str, ...], max_tokens: int | None, start: int = 0) -> list[int]:
    with Checkpoint.open(path, read_only=True) as checkpoint:
        blocks = list(checkpoint.open_questions(OpenRule(again, max_tokens), start=start, batch=2))
        found = [position for block in blocks for position, _ in block]
        assert checkpoint.count_open(OpenRule(again, max_tokens), start=start) == len(found)
        return found


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Rows: ok, failed for good, transient, truncated at 100, truncated without a limit, pending, never asked."""
    return made(
        tmp_path / "x.sqlite",
        ["ok", "content_policy", "timeout", "cut", "endless", "waits", "new"],
        [
            ok(1, cost=5, prompt_tokens=10, completion_tokens=3),
            failed(2, "content_policy", error_code=403),
            failed(3, "timeout", cost=7),
            failed(4, "truncated", cost=11, max_tokens=100),
            failed(5, "truncated", max_tokens=None),
            Outcome(6, Status.PENDING, NOON, error_type="rate_limited"),
        ],
    )


@pytest.mark.parametrize(
    ("again", "max_tokens", "expected"),
    [
        ((), 100, [5, 6]),
        ((), 101, [3, 5, 6]),
        ((), None, [3, 5, 6]),
        (("timeout", "reset"), 50, [2, 5, 6]),
        (("timeout", "truncated"), 50, [2, 3, 4, 5, 6]),
    ],
)
def test_open_is_what_this_job_asks_again(
    mixed: Path, again: tuple[str, ...], max_tokens: int | None, expected: list[int]
) -> None:
    """Open are new and pending questions, transient failures, and truncated ones whose limit grew."""
    assert positions(mixed, again, max_tokens) == expected
    assert positions(mixed, again, max_tokens, start=4) == [position for position in expected if position >= 4]
    with Checkpoint.open(mixed, read_only=True) as checkpoint:
        for_good = {1, 2, 3, 4} - set(expected)
        assert checkpoint.count_failed(OpenRule(again, max_tokens)) == Failed(len(for_good), len(for_good))
        assert checkpoint.has_truncated(OpenRule((), max_tokens)) == (max_tokens not in {50, 100})


def test_failed_rows_are_counted_with_those_that_could_not_be_asked(tmp_path: Path) -> None:
    """A failed row counts whether its question failed, an equal row's did, or none could be made; others' do not."""
    path = made(tmp_path / "x.sqlite", ["bad", "bad", None, "good"], [failed(1, "content_policy"), ok(2)])
    with Checkpoint.open(path) as checkpoint:
        assert checkpoint.count_failed(OpenRule()) == Failed(rows=2, questions=1)
        plan(checkpoint, ["good", None], {1: ("template_error", "no")})
        assert checkpoint.count_failed(OpenRule()) == Failed(rows=1, questions=0)


def test_counts_and_errors(mixed: Path) -> None:
    """Counts are of rows, the cost is that of the plan's questions, also of failed ones."""
    with Checkpoint.open(mixed, read_only=True) as checkpoint:
        assert checkpoint.counts() == Counts(
            rows=7, ok=1, failed=4, pending=2, questions=7, cost=Pico(23),
            errors={"content_policy": 1, "timeout": 1, "truncated": 2},
        )  # fmt: skip
        assert checkpoint.answer_tokens() == 3


def test_kept_counts_are_never_stale(mixed: Path) -> None:
    """Counts kept by a finished run are given back at once, and forgotten by whatever changes them."""
    with Checkpoint.open(mixed) as checkpoint:
        counts = checkpoint.counts()
        checkpoint.end_run(begin(checkpoint), now=NOON, exit_code=1, reason="done", counts=counts, output="digest")
        statements: list[str] = []
        checkpoint._connection._conn.set_trace_callback(statements.append)
        assert checkpoint.counts() == counts
        checkpoint._connection._conn.set_trace_callback(None)
        assert not any("rows" in statement for statement in statements)
        last = checkpoint.last_run()
        assert last is not None
        assert (last.counts, last.output, last.exit_code) == (counts, "digest", 1)
        checkpoint.writer.start(begin(checkpoint))
        checkpoint.writer.put(ok(6))
        checkpoint.writer.flush()
        assert (checkpoint.counts().ok, checkpoint.counts().pending) == (2, 1)
        checkpoint.end_run(2, now=NOON, exit_code=1, reason="done", counts=checkpoint.counts())
        assert checkpoint.reopen_failed(["timeout"]) == 1
        assert (checkpoint.counts().failed, checkpoint.counts().pending) == (3, 2)


def test_retry_makes_failed_answers_pending(mixed: Path) -> None:
    """All failed answers of the plan are asked again, none outside of it, and what they cost stays."""
    with Checkpoint.open(mixed) as checkpoint:
        plan(checkpoint, ["ok", "timeout", "content_policy"])
        assert checkpoint.reopen_failed() == 2
        assert checkpoint.counts() == Counts(rows=3, ok=1, pending=2, questions=3, cost=Pico(12), errors={})
        plan(checkpoint, ["cut"])
        assert checkpoint.counts().failed == 1


def test_equal_rows_share_the_outcome_and_pay_once(tmp_path: Path) -> None:
    """The cost stands on a question's first row; its other rows have the answer for nothing."""
    path = made(tmp_path / "x.sqlite", ["a", "b", "a"], [ok(1, "A", cost=9), failed(2, "refused", cost=4)])
    with Checkpoint.open(path, read_only=True) as checkpoint:
        rows = checkpoint.outcomes(0, 3, ("position", "status", "answer", "raw", "cost", "first"))
        assert rows == [(0, "ok", "A", None, 9, 1), (1, "failed", None, "half", 4, 1), (2, "ok", "A", None, 0, 0)]
        assert checkpoint.outcomes(2, 5, ("position",)) == [(2,)]
        assert checkpoint.counts().cost == 13
        assert len(checkpoint.outcomes(0, 1)[0]) == len(OUTCOME_COLUMNS)


def test_view_joins_the_tables_for_people(tmp_path: Path) -> None:
    """With sqlite-utils alone the view `results` gives rows with dollars, hex keys and ISO times."""
    path = made(tmp_path / "x.sqlite", ["a", None, "a", "b"], [ok(1, "A", cost=150_000_000)])
    database = Database(path)
    rows = list(database["results"].rows)
    database.close()
    assert [row["status"] for row in rows] == ["ok", "skipped", "ok", "pending"]
    assert [row["cost_usd"] for row in rows] == [0.00015, None, 0.0, None]
    assert rows[0]["finished_at"] == "2025-11-22T12:00:00Z"
    assert len(rows[0]["key"]) == 32
    assert rows[0]["key"] == rows[2]["key"]


def test_money_by_day_run_and_in_all(tmp_path: Path) -> None:
    """Spending is booked on the UTC day on which it ended, exact to the picodollar."""
    path = made(tmp_path / "x.sqlite", ["a", "b", "c"])
    first = keep(path, [ok(1, cost=1), failed(2, "timeout", cost=2, finished_at=NOON + 43_200)])
    second = keep(path, [ok(2, cost=2**52, finished_at=NOON + 43_200)])
    with Checkpoint.open(path) as checkpoint:
        assert checkpoint.spent() == 3 + 2**52
        assert checkpoint.spent(day="2025-11-22") == 1
        assert checkpoint.spent(day="2025-11-23") == 2 + 2**52
        assert checkpoint.spent(run_id=first) == 3
        assert checkpoint.spent(day="2025-11-23", run_id=second) == 2**52
        runs = checkpoint.runs()
        assert [(run.id, run.cost, run.requests) for run in runs[:2]] == [(second, 2**52, 1), (first, 3, 2)]


def test_prune_drops_only_what_is_old_and_unasked(tmp_path: Path) -> None:
    """Answers in the plan stay however old, others as long as they are young; spending stays whole."""
    old, young = NOON - 1000, NOON + 1000
    outcomes = [ok(1, finished_at=old), ok(2, finished_at=old, cost=3), ok(3, finished_at=young)]
    path = made(tmp_path / "x.sqlite", ["a", "b", "c"], outcomes)
    with Checkpoint.open(path) as checkpoint:
        plan(checkpoint, ["a"])
        assert checkpoint.prune(older_than=NOON) == 1
        assert checkpoint.prune(older_than=NOON) == 0
        plan(checkpoint, ["c", "b", "a"])
        assert [row[0] for row in checkpoint.outcomes(0, 3, ("status",))] == ["ok", "pending", "ok"]
        assert checkpoint.spent() == 3
        assert checkpoint.verify() == []


def test_prune_forgets_what_batches_tried(tmp_path: Path) -> None:
    """The next question takes a pruned one's id, but not its failed batches: it goes into one like any other."""
    path = made(tmp_path / "x.sqlite", ["a", "b"], [ok(1, finished_at=NOON - 1000), ok(2, finished_at=NOON - 1000)])
    with Checkpoint.open(path) as checkpoint:
        checkpoint.batches.leave_for_live([2])
        plan(checkpoint, ["a"])
        assert checkpoint.prune(older_than=NOON) == 1
        plan(checkpoint, ["a", "c"])
        assert checkpoint.count_open(OpenRule(), start=0, where=FOR_BATCH) == 1


def test_a_batch_uses_up_no_lease_of_its_run(tmp_path: Path) -> None:
    """A lease is for live requests: what a killed run may have spent on them counts beside what its batches cost."""
    path = made(tmp_path / "x.sqlite", ["a"])
    with Checkpoint.open(path) as checkpoint:
        run = begin(checkpoint)
        checkpoint.writer.start(run)
        checkpoint.writer.lease(Pico(500))
        checkpoint.writer.flush()
        checkpoint.writer.close()
        batch = checkpoint.batches.begin(
            [1], run_id=run, model="m", tag="t", answer_schema=None, price=None, reserved=Pico(1000), now=time.time()
        )
        checkpoint.batches.collect(batch, [], unassigned=Pico(1000), tried=True, now=time.time())
        assert checkpoint.leased(utc_day(time.time())) == 500


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("UPDATE rows SET first = 0 WHERE position = 0", "first row"),
        ("DELETE FROM rows WHERE position = 1", "as many rows"),
        ("DELETE FROM questions", "question is missing"),
        ("UPDATE answers SET id = 77 WHERE id = 1", "no question"),
        ("UPDATE answers SET status = 'great'", "unknown status"),
        ("UPDATE runs SET cost = 1", "days add up"),
        ("UPDATE answers SET cost = 10", "more than was spent"),
    ],
)
def test_verify_finds_broken_books(tmp_path: Path, harm: str, said: str) -> None:
    """A file that SQLite finds whole but whose tables contradict each other is not called sound."""
    path = made(tmp_path / "x.sqlite", ["a", "b"], [ok(1, cost=5)])
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(harm)
    connection.close()
    with Checkpoint.open(path, read_only=True) as checkpoint:
        assert any(said in line for line in checkpoint.verify())
