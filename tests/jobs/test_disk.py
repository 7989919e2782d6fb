"""The checkpoint's disk in whole jobs: files deleted or replaced in mid-run, a dying disk, a disk that fills up."""

import asyncio
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from crash import disk, syscalls
from crash.harness import DONE, STORAGE, CrashJob, Ended, ended, write_job
from crash.ledger import Ledger, serving
from outages import Night, Server, good

from batchrun.records import Reply, Request

TEXTS = [f"text {number}" for number in range(3_000)]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with serving(Ledger()) as server:
        yield server


def harmed(job: CrashJob, ledger: Ledger, harm: Callable[[], object]) -> Ended:
    """Run a job, and do something to its files after 100 answers."""
    process = job.start()

    def event() -> None:
        if ledger.answered.total() == 100:
            ledger.on_event = None
            harm()

    ledger.on_event = event
    return ended(process)


def test_a_deleted_checkpoint_stops_the_run_and_is_written_again(tmp_path: Path, ledger: Ledger) -> None:
    """A checkpoint deleted in mid-run ends the run with exit 5; it is there again, and no answer is paid twice."""
    job = write_job(tmp_path, ledger.url, TEXTS, limits={"concurrency": 8, "requests_per_minute": 30_000})
    end = harmed(job, ledger, job.checkpoint.unlink)
    assert end.code == STORAGE, end.said
    assert "job.sqlite was deleted while this run used it" in end.said
    assert "written again" in end.said
    assert ledger.requests < len(TEXTS)
    assert len(job.committed()) == ledger.answered.total()
    assert job.run().code == DONE
    assert set(ledger.received.values()) == {1}


def test_a_deleted_folder_stops_the_run_as_well(tmp_path: Path, ledger: Ledger) -> None:
    """The folder with checkpoint and lock may go as a whole: the answers come back."""
    job = write_job(tmp_path, ledger.url, TEXTS, limits={"concurrency": 8, "requests_per_minute": 30_000})
    end = harmed(job, ledger, lambda: shutil.rmtree(job.checkpoint.parent))
    assert end.code == STORAGE, end.said
    assert len(job.committed()) == ledger.answered.total()


def test_a_replaced_checkpoint_stops_the_run_and_stays(tmp_path: Path, ledger: Ledger) -> None:
    """Where another file has taken the name, the run's answers are kept under another one, which is named."""
    job = write_job(tmp_path, ledger.url, TEXTS, limits={"concurrency": 8, "requests_per_minute": 30_000})
    other = tmp_path / "other"
    other.write_bytes(b"another file")
    end = harmed(job, ledger, lambda: other.replace(job.checkpoint))
    assert end.code == STORAGE, end.said
    assert "was replaced by another file" in end.said
    assert job.checkpoint.read_bytes() == b"another file"
    rescued = job.checkpoint.with_name("job.rescued-1.sqlite")
    assert str(rescued) in end.said
    with closing(sqlite3.connect(rescued)) as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (ledger.answered.total(),)


def test_a_deleted_lock_stops_the_run(tmp_path: Path, ledger: Ledger) -> None:
    """Without its lock file a run can't keep a second one away, so it stops; the next one resumes."""
    job = write_job(tmp_path, ledger.url, TEXTS, limits={"concurrency": 8, "requests_per_minute": 30_000})
    end = harmed(job, ledger, job.checkpoint.with_name("job.sqlite.lock").unlink)
    assert end.code == STORAGE, end.said
    assert "job.sqlite.lock was deleted" in end.said
    assert job.run().code == DONE
    assert set(ledger.received.values()) == {1}


def test_a_stalled_commit_bounds_what_waits_for_it(tmp_path: Path, ledger: Ledger) -> None:
    """While another program locks the checkpoint nothing new starts beyond 500 uncommitted answers; none is lost."""
    job = write_job(tmp_path, ledger.url, TEXTS, limits={"concurrency": 64})
    held: list[sqlite3.Connection] = []
    committed = len(TEXTS)
    quiet = threading.Event()

    def event() -> None:
        nonlocal committed
        if ledger.answered.total() >= 200 and not held:
            held.append(sqlite3.connect(job.checkpoint, isolation_level=None, check_same_thread=False))
            held[0].execute("BEGIN IMMEDIATE")
            committed = len(job.committed())
        if ledger.in_flight == 0 and ledger.answered.total() - committed >= 500:
            ledger.on_event = None
            quiet.set()

    ledger.on_event = event
    process = job.start()
    assert quiet.wait(60)
    assert len(job.committed()) == committed
    sent = ledger.requests
    held[0].execute("ROLLBACK")
    held[0].close()
    assert sent - committed < 500 + 64
    assert ended(process).code == DONE
    assert set(ledger.received.values()) == {1}


class Slow(Server):
    """A server whose second answer takes ten minutes; it notes the version of the checkpoint's content meanwhile."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(lambda *_: good())
        self.checkpoint, self.versions = checkpoint, list[int]()

    async def __call__(self, request: Request) -> Reply:
        reply = await super().__call__(request)
        if len(self.received) == len(SLOW_ROWS):
            with closing(sqlite3.connect(self.checkpoint)) as reader:
                for _ in range(MINUTES):
                    await asyncio.sleep(60)
                    time.sleep(0.03)  # noqa: ASYNC251  (virtual minutes pass at once; a commit takes real time)
                    self.versions += reader.execute("PRAGMA data_version").fetchone()
        return reply


SLOW_ROWS = ("fast", "slow")
MINUTES = 10


def test_while_nothing_changes_nothing_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for one reply leaves the disk alone: each commit is an fsync, five times a second otherwise."""
    night = Night(tmp_path, monkeypatch, SLOW_ROWS, {"concurrency": 1})
    server = Slow(tmp_path / ".batchrun" / "job.sqlite")
    assert night.run(server).ok == len(SLOW_ROWS)
    assert len(server.versions) == MINUTES
    assert len(set(server.versions)) <= 2  # the first answer may be committed meanwhile


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("call", "first", "error"), [("pread64", 1, "EIO"), ("pread64", 8, "EIO"), ("pwrite64", 3, "EROFS")]
)
def test_a_dying_disk_is_not_called_a_damaged_checkpoint(
    tmp_path: Path, ledger: Ledger, call: str, first: int, error: str
) -> None:
    """Where the disk can't be read or written nobody is advised to start over: the file on it may be whole."""
    if reason := syscalls.why_not():
        pytest.skip(reason)
    job = write_job(tmp_path, ledger.url, TEXTS[:600])
    assert job.run("--limit", "400").code == DONE
    killed = job.start()
    ledger.on_event = lambda: os.kill(killed.pid, signal.SIGKILL) if ledger.answered.total() == 450 else None
    assert ended(killed).code == -signal.SIGKILL
    ledger.on_event = None
    ending = ("", "-wal", "-shm")
    places = [word for name in ending for word in ("-P", f"{job.checkpoint}{name}")]
    strace = [*syscalls.STRACE, "-o", str(tmp_path / "log"), *places, "-e", f"trace={call}"]
    end = job.run(under=[*strace, "-e", f"inject={call}:error={error}:when={first}+"])
    assert end.code == STORAGE, end.said
    assert "--fresh" not in end.said
    assert "damaged" not in end.said
    assert "Traceback" not in end.said
    assert job.run().code == DONE


def test_a_disk_that_fills_up_stops_the_run_before_it_is_full(tmp_path: Path, ledger: Ledger) -> None:
    """With less than 8 MB free a run stops with exit 5 and loses nothing; it does not begin with less either."""
    with disk.small_disk(tmp_path / "disk") as folder:
        if folder is None:
            pytest.skip("no right to mount a small disk")
        job = disk.job_on(folder, tmp_path / "job", ledger.url, full="checkpoint")
        filler = folder / "filler"
        free = shutil.disk_usage(folder).free
        end = harmed(job, ledger, lambda: filler.write_bytes(bytes(free - 12 * 2**20)))
        assert end.code == STORAGE, end.said
        assert "8 MB must be free" in end.said
        sent = ledger.requests
        assert 100 < sent < len(TEXTS)
        assert (end := job.run()).code == STORAGE, end.said
        assert ledger.requests == sent
        filler.unlink()
        assert job.run().code == DONE
        assert set(ledger.received.values()) == {1}
