"""The writer: what is committed stays, sums are exact, a failing disk stops the run and loses nothing uncounted."""

import asyncio
import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from checkpoint_samples import NOON, begin, failed, keep, made, ok
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.checkpoint import Checkpoint, schema, writer
from batchrun.checkpoint.records import OpenRule
from batchrun.errors import BatchrunError, StorageError
from batchrun.money import Pico
from batchrun.records import Outcome, Status

TraceFunction = Callable[[FrameType, str, Any], Any]
TEXTS = [str(number) for number in range(5)]
FOLDER = Path(__file__).parents[2] / "support"

OUTCOMES = st.builds(
    Outcome,
    question=st.integers(1, 5),
    status=st.sampled_from([Status.OK, Status.FAILED, Status.PENDING]),
    finished_at=st.sampled_from([NOON, NOON + 43_199.9, NOON + 43_200]),
    answer=st.just("text"),
    error_type=st.just("timeout"),
    attempts=st.integers(0, 5),
    cost=st.integers(0, 2**45).map(Pico),
    possibly_billed=st.integers(0, 3),
)


@settings(max_examples=25)
@given(st.lists(st.lists(OUTCOMES, max_size=8), min_size=1, max_size=3))
def test_money_adds_up_over_runs(runs: list[list[Outcome]]) -> None:
    """Attempts, cost and possible bills of a question add up over all runs; the last status stands; books agree."""
    with tempfile.TemporaryDirectory() as folder:
        path = made(Path(folder) / "x.sqlite", TEXTS)
        ids = [keep(path, outcomes) for outcomes in runs]
        every = [outcome for outcomes in runs for outcome in outcomes]
        with Checkpoint.open(path, read_only=True) as checkpoint:
            columns = ("question", "status", "attempts", "cost", "possibly_billed")
            for question, *found in checkpoint.outcomes(0, 5, columns):
                own = [outcome for outcome in every if outcome.question == question]
                assert found == (
                    [own[-1].status, *(sum(values) for values in zip(*map(_sums, own), strict=True))]
                    if own
                    else ["pending", None, None, None]
                )
            assert checkpoint.spent() == sum(outcome.cost for outcome in every)
            night = sum(outcome.cost for outcome in every if outcome.finished_at >= NOON + 43_200)
            assert checkpoint.spent(day="2025-11-23") == night
            for number, outcomes in zip(ids, runs, strict=True):
                assert checkpoint.spent(run_id=number) == sum(outcome.cost for outcome in outcomes)
            assert checkpoint.verify() == []


def _sums(outcome: Outcome) -> tuple[int, int, int]:
    return outcome.attempts, outcome.cost, outcome.possibly_billed


def test_every_field_of_an_outcome_is_kept(tmp_path: Path) -> None:
    """What is put is what is stored, field by field, and a later outcome replaces the texts of an earlier one."""
    path = made(tmp_path / "x.sqlite", ["a"], [failed(1, "timeout", http_status=504, model="m")])
    whole = Outcome(
        1, Status.OK, NOON, "answer", "raw", "none", 200, "message", 201, 3, 10, 20, Pico(5), 1, True, "model",
        "provider", "stop", "gen-1", 0.5, 99,
    )  # fmt: skip
    keep(path, [whole])
    with Checkpoint.open(path, read_only=True) as checkpoint:
        found = checkpoint._connection.rows(f"SELECT {', '.join(schema.COLUMNS)} FROM answers")[0]  # noqa: S608
    expected = {name: getattr(whole, name) for name in schema.COLUMNS} | {"attempts": 4}
    assert dict(zip(schema.COLUMNS, found, strict=True)) == expected


def test_failed_attempts_are_listed(tmp_path: Path) -> None:
    """Each failed attempt is a row of its own, and its money is not counted twice."""
    path = made(tmp_path / "x.sqlite", ["a"])
    with Checkpoint.open(path) as checkpoint:
        checkpoint.writer.start(begin(checkpoint))
        attempt = Outcome(1, Status.FAILED, NOON, error_type="timeout", seconds=2.5, cost=Pico(4), provider="P")
        checkpoint.writer.failed_attempt(attempt)
        checkpoint.writer.put(ok(1, cost=9, attempts=2))
        checkpoint.writer.flush()
        found = checkpoint._connection.rows("SELECT question_id, error_type, seconds, cost, provider FROM failures")
        assert found == [(1, "timeout", 2.5, 4, "P")]
        assert checkpoint.spent() == 9


def test_what_sqlite_cannot_hold_is_made_to_fit(tmp_path: Path) -> None:
    """Lone surrogates and absurd numbers of a server stop nobody else's answer."""
    path = made(tmp_path / "x.sqlite", ["a", "b", "c"])
    keep(path, [ok(1), failed(2, "timeout", raw="\ud800 half"), ok(3, "fine", prompt_tokens=10**30)])
    with Checkpoint.open(path, read_only=True) as checkpoint:
        rows = checkpoint.outcomes(0, 3, ("status", "raw", "prompt_tokens"))
    assert rows == [("ok", None, None), ("failed", "? half", None), ("ok", None, 2**53)]


def test_backlog_holds_the_asker_back(tmp_path: Path) -> None:
    """`room` waits while 500 outcomes are uncommitted, and ends when there are fewer."""
    path = made(tmp_path / "x.sqlite", TEXTS)

    async def fill() -> tuple[bool, int]:
        with Checkpoint.open(path) as checkpoint:
            keeper = checkpoint.writer
            keeper.start(begin(checkpoint))
            room = True
            for number in range(6_000):
                keeper.put(ok(number % 5 + 1))
                await keeper.room()
                room = room and not keeper.is_full
            keeper.flush()
            return room, checkpoint.counts().ok

    assert asyncio.run(fill()) == (True, len(TEXTS))


def test_low_water_never_runs_ahead(tmp_path: Path) -> None:
    """The mark is committed with what was put before it, not earlier."""
    path = made(tmp_path / "x.sqlite", [str(number) for number in range(3_000)])
    with Checkpoint.open(path) as checkpoint, Checkpoint.open(path, read_only=True) as reader:
        checkpoint.writer.start(begin(checkpoint))
        seen = []
        for number in range(3_000):
            checkpoint.writer.put(ok(number + 1))
            checkpoint.writer.note_low_water(number + 1)
            if number % 100 == 0:
                seen.append(_marks(reader))
        checkpoint.writer.flush()
        seen.append(_marks(reader))
    assert all(mark <= answers for mark, answers in seen)
    assert seen[-1] == (3_000, 3_000)


def test_nothing_new_commits_nothing(tmp_path: Path) -> None:
    """A low-water mark that did not move is not a change, and without a change there is no commit."""
    path = made(tmp_path / "x.sqlite", TEXTS)
    with Checkpoint.open(path) as checkpoint, contextlib.closing(sqlite3.connect(path)) as reader:
        checkpoint.writer.start(begin(checkpoint))
        checkpoint.writer.put(ok(1))
        checkpoint.writer.note_low_water(1)
        checkpoint.writer.flush()
        version = reader.execute("PRAGMA data_version").fetchone()
        for _ in range(20):
            checkpoint.writer.note_low_water(1)
            checkpoint.writer.flush()
        assert reader.execute("PRAGMA data_version").fetchone() == version


def test_a_held_lock_bounds_what_is_uncommitted(tmp_path: Path) -> None:
    """While another program locks the checkpoint the writer is full at 500; afterwards all of it is committed."""
    path = made(tmp_path / "x.sqlite", [str(number) for number in range(3_000)])

    async def fill(other: sqlite3.Connection) -> tuple[int, bool]:
        with Checkpoint.open(path) as checkpoint:
            keeper = checkpoint.writer
            keeper.start(begin(checkpoint))
            other.execute("BEGIN IMMEDIATE")
            put = 0
            while not keeper.is_full:
                keeper.put(ok(put := put + 1))
            waiting = asyncio.create_task(keeper.room())
            await asyncio.sleep(0.05)
            held = waiting.done()
            other.execute("ROLLBACK")
            await waiting
            keeper.flush()
            assert checkpoint.counts().ok == put
            return put, held

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        put, went_on = asyncio.run(fill(other))
    assert put == writer.GROUP
    assert not went_on


def _marks(reader: Checkpoint) -> tuple[int, int]:
    low_water, answers = reader._connection.rows("SELECT low_water, (SELECT count(*) FROM answers) FROM plans")[0]
    return low_water, answers


KILLED = """
import sys
from pathlib import Path
from checkpoint_samples import begin, ok
from batchrun.checkpoint import Checkpoint
with Checkpoint.open(Path(sys.argv[1])) as checkpoint:
    checkpoint.writer.start(begin(checkpoint))
    for number in range(1, 100_001):
        checkpoint.writer.put(ok(number, "answer " * 50, cost=3))
        if number % 50 == 0:
            checkpoint.writer.flush()
            print(number, flush=True)
"""


@pytest.mark.parametrize("seed", range(3))
def test_sigkill_loses_nothing_committed(tmp_path: Path, seed: int) -> None:
    """What was committed before SIGKILL is there after it, the books agree, and the file opens."""
    path = made(tmp_path / "x.sqlite", [str(number) for number in range(20_000)])
    lines = random.Random(seed).randrange(1, 40)  # noqa: S311  (a seed, not a secret)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, env={"PYTHONPATH": str(FOLDER)}
    ) as child:
        assert child.stdout is not None
        committed = [int(child.stdout.readline()) for _ in range(lines)][-1]
        child.send_signal(signal.SIGKILL)
    with Checkpoint.open(path) as checkpoint:
        kept = checkpoint.counts().ok
        assert kept >= committed
        assert checkpoint.spent() == 3 * kept
        assert checkpoint.verify() == []
        last = checkpoint.last_run()
        assert last is not None
        assert last.ended_at is None
        assert checkpoint.count_open(OpenRule(), start=0) == 20_000 - kept


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 32 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return filler


@pytest.mark.parametrize("word", ["answer ", "answer\ud800 "], ids=["plain", "no UTF-8"])
def test_full_disk_gives_up_the_reserve_first(small_disk: Path, word: str) -> None:
    """On a full disk the last outcomes are kept in the space of the reserve, also texts that have to be changed."""
    path = made(small_disk / "x.sqlite", [str(number) for number in range(300)])
    with Checkpoint.open(path) as checkpoint:
        checkpoint.writer.start(begin(checkpoint))
        fill_up(small_disk)
        for number in range(300):
            checkpoint.writer.put(ok(number + 1, word * 150))
        checkpoint.writer.close()
        assert checkpoint.writer.failure is None
        assert not (small_disk / "x.sqlite.reserve").exists()
        assert checkpoint.counts().ok == 300


def test_full_disk_stops_and_counts(small_disk: Path) -> None:
    """Beyond the reserve the failure is reported once in the loop, `room` raises it, and what is lost is counted."""
    path = made(small_disk / "x.sqlite", [str(number) for number in range(20_000)])
    reported: list[BatchrunError] = []

    async def ask() -> tuple[int, int]:
        with Checkpoint.open(path) as checkpoint:
            keeper = checkpoint.writer
            keeper.start(begin(checkpoint), reported.append)
            filler = fill_up(small_disk)
            put = 0
            while keeper.failure is None:
                put += 1
                keeper.put(ok(put, "answer " * 500))
                await asyncio.sleep(0)
            with pytest.raises(StorageError, match="no space left"):
                await keeper.room()
            keeper.close()
            filler.unlink()
            return put, keeper.lost

    put, lost = asyncio.run(ask())
    assert 0 < lost < put
    assert len(reported) == 1
    with Checkpoint.open(path) as checkpoint:
        assert checkpoint.counts().ok == put - lost
        assert checkpoint.verify() == []


def test_no_room_for_the_reserve_is_found_before_the_first_request(small_disk: Path) -> None:
    """A run on a full disk does not begin."""
    path = made(small_disk / "x.sqlite", ["a"])
    with Checkpoint.open(path) as checkpoint:
        run = begin(checkpoint)
        filler = fill_up(small_disk)
        with pytest.raises(StorageError, match="4 MB must be free"):
            checkpoint.writer.start(run)
        filler.unlink()


LIMITED = """
import resource, sys
from pathlib import Path
from checkpoint_samples import begin, ok
from batchrun.checkpoint import Checkpoint
with Checkpoint.open(Path(sys.argv[1])) as checkpoint:
    run = begin(checkpoint)
    checkpoint.writer.start(run)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))
    for number in range(1, 2_001):
        checkpoint.writer.put(ok(number, "answer " * 300))
    checkpoint.writer.close()
    print(type(checkpoint.writer.failure).__name__, checkpoint.writer.lost)
"""


def test_failing_disk_is_a_line_and_a_count(tmp_path: Path) -> None:
    """An I/O error is not a traceback: the failure is held, the rest is counted, what was committed is there."""
    path = made(tmp_path / "x.sqlite", [str(number) for number in range(2_000)])
    command, environment = [sys.executable, "-c", LIMITED, str(path)], {"PYTHONPATH": str(FOLDER)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    name, lost = done.stdout.split()
    assert (name, done.stderr) == ("StorageError", "")
    with Checkpoint.open(path) as checkpoint:
        assert checkpoint.counts().ok == 2_000 - int(lost)
        assert 0 < int(lost) < 2_000


def test_outcomes_may_come_at_any_instant(tmp_path: Path) -> None:
    """One comes between any two instructions of the thread that takes what is there: nothing breaks or is lost."""
    path = made(tmp_path / "x.sqlite", TEXTS)
    with Checkpoint.open(path) as checkpoint:
        keeper, left = checkpoint.writer, iter(range(300))

        def interrupt(frame: FrameType, event: str, _: object) -> TraceFunction:
            frame.f_trace_opcodes = True
            if event == "opcode" and frame.f_code.co_filename == writer.__file__ and next(left, None) is not None:
                keeper.put(ok(1))
            return interrupt

        threading.settrace(interrupt)
        try:
            keeper.start(begin(checkpoint))
        finally:
            threading.settrace(None)
        keeper.put(ok(2))
        keeper.close()
        assert (keeper.failure, keeper.lost) == (None, 0)
        assert next(left, None) is None


def test_bug_beside_a_commit_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that ended in silence between two commits let a run wait for ever."""
    path = made(tmp_path / "x.sqlite", ["a"])

    def broken(_: Path) -> None:
        raise RuntimeError("a bug")

    with Checkpoint.open(path) as checkpoint:
        checkpoint.writer.start(begin(checkpoint))
        monkeypatch.setattr(writer, "low_space", broken)
        monkeypatch.setattr(writer, "LOOK", 0.0)
        checkpoint.writer.put(ok(1))
        with pytest.raises(BatchrunError, match="a bug in batchrun"):
            checkpoint.writer.flush()


def test_bug_in_the_thread_is_reported(tmp_path: Path) -> None:
    """Whatever goes wrong in the thread reaches the asker; nobody waits for ever."""
    path = made(tmp_path / "x.sqlite", ["a"])
    with Checkpoint.open(path) as checkpoint:
        checkpoint.writer.start(begin(checkpoint))
        checkpoint.writer.put(Outcome(1, None, NOON))  # type: ignore[arg-type]
        with pytest.raises(BatchrunError, match="a bug in batchrun"):
            checkpoint.writer.flush()
        checkpoint.writer.close()
        assert checkpoint.writer.lost == 1
