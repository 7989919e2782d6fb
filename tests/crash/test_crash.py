"""Kills, full disks, damage, lost terminals: samples of what `make crash` does in full, on real processes."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchrun.checkpoint import Checkpoint
from batchrun.errors import StorageError
from crash import damage, disk, kills, starts, syscalls
from crash.harness import DONE, STORAGE, CrashJob, ended, environment, write_job
from crash.ledger import Ledger, serving

SAMPLE = {"SIGKILL": 4, "SIGTERM": 1, "SIGINT": 1, "SIGINT twice": 1, "SIGTERM, then SIGKILL": 1}
SLOW_MACHINE = pytest.mark.timeout(600)
TEXTS = [f"text {number}" for number in range(200)]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with serving(Ledger()) as server:
        yield server


@pytest.fixture
def strace() -> None:
    if reason := syscalls.why_not():
        print(f"\nkills at system calls are not tested: {reason}")  # noqa: T201  (who reads the log should know)
        pytest.skip(reason)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disk.small_disk(tmp_path / "disk") as folder:
        if folder is None:
            print("\nfull disks are not tested: no right to mount a small one")  # noqa: T201  (as above)
            pytest.skip("no right to mount a small disk")
        yield folder


def seed() -> int:
    """Return another seed each time: the sample wanders, and a failure names it."""
    return random.SystemRandom().randrange(10**6)


@SLOW_MACHINE
def test_kills_in_flight(tmp_path: Path) -> None:
    """Whatever kills a run: nothing committed is asked again, drains lose nothing, the output is as if unkilled."""
    print(f"seed {(number := seed())}")  # noqa: T201  (to repeat a failure)
    figures = kills.kill_until(SAMPLE, tmp_path, number, rows=1_500)
    assert sum(figures.landed.values()) >= sum(SAMPLE.values())
    assert figures.twice["SIGTERM"] == figures.twice["SIGINT"] == 0
    assert all(figures.twice[kind] <= figures.exposed[kind] for kind in SAMPLE)


@SLOW_MACHINE
def test_kills_of_decisions_in_flight(tmp_path: Path) -> None:
    """A killed job of a decision model asks nothing again that is committed; its probabilities are as if unkilled."""
    print(f"seed {(number := seed())}")  # noqa: T201  (to repeat a failure)
    columns = {"first": "boolean", "second": "boolean", "third": "boolean", "fourth": "boolean"}
    sections: dict[str, Any] = {"answer": {"mode": "decision", "columns": columns}, "model": {"params": {}}}
    figures = kills.kill_until({"SIGKILL": 3, "SIGTERM": 1}, tmp_path, number, rows=1_500, **sections)
    assert figures.landed.total() >= 4
    assert figures.twice["SIGTERM"] == 0
    assert figures.twice["SIGKILL"] <= figures.exposed["SIGKILL"]
    assert "first_prob" in (tmp_path / "reference" / "out.csv").read_text().partition("\n")[0]


@SLOW_MACHINE
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize(("calls", "each"), [(3, 1), pytest.param(len(syscalls.CALLS), 3, marks=pytest.mark.slow)])
def test_kills_at_system_calls(tmp_path: Path, calls: int, each: int) -> None:
    """Killed at a call of commit or output, a file is the whole old or the whole new one, and nothing is asked again.

    The fast sample draws other calls each time, since every kill under strace takes seconds.
    """
    print(f"seed {(number := seed())}")  # noqa: T201  (as above)
    drawn = random.Random(number).sample(list(syscalls.CALLS), calls)  # noqa: S311  (a seed, not a secret)
    points = syscalls.kill_at_calls(each, tmp_path, number, drawn)
    assert set(points.landed) == set(drawn)


@SLOW_MACHINE
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("count", [2, pytest.param(len(syscalls.FAILURES), marks=pytest.mark.slow)])
def test_calls_that_fail(tmp_path: Path, count: int) -> None:
    """ENOSPC and EIO from calls end a run with exit 5 and a line; once the disk is well, it continues."""
    print(f"seed {(number := seed())}")  # noqa: T201  (as above)
    points = syscalls.fail_at_calls(count, tmp_path, number)
    # Of two draws both may come after the last call of their kind, and then nothing fails.
    assert count == 2 or any("exit 5" in name for name in points.failed)


@SLOW_MACHINE
def test_damaged_checkpoints(tmp_path: Path) -> None:
    """A damaged checkpoint is refused with advice, or does no harm: never a traceback, never a start from nothing."""
    print(f"seed {(number := seed())}")  # noqa: T201  (as above)
    assert damage.damage_at(8, tmp_path, number).total() == 8


def test_many_starts_at_once(tmp_path: Path) -> None:
    """Of ten starts at the same time exactly one sends; the others leave with exit 75 and name it."""
    assert len(starts.start_together(10, tmp_path)) == 10


def test_checkpoint_disk_fills_in_midst(tmp_path: Path, small_disk: Path, ledger: Ledger) -> None:
    """The sending stops, the reserve takes in what was in flight, exit 5; with space again nothing is bought twice."""
    job = disk.job_on(small_disk, tmp_path / "job", ledger.url, full="checkpoint")
    end, filler = disk.fill_in_midst(job, ledger, 1_000, lambda: disk.fill_up(small_disk))
    assert end.code == STORAGE, end.said
    assert "free some, then run the same command again" in end.said
    assert "could not be kept" not in end.said
    assert ledger.requests < len(disk.TEXTS)
    filler.unlink()
    assert (end := job.run()).code == DONE, end.said
    assert set(ledger.received.values()) == {1}
    assert len(ledger.received) == len(disk.TEXTS)


def test_checkpoint_disk_is_full_before(tmp_path: Path, small_disk: Path, ledger: Ledger) -> None:
    """On a full disk a run ends with exit 5 before its first request."""
    job = disk.job_on(small_disk, tmp_path / "job", ledger.url, full="checkpoint")
    filler = disk.fill_up(small_disk)
    assert (end := job.run()).code == STORAGE, end.said
    assert "run" in end.said.splitlines()[-1]
    assert ledger.requests == 0
    filler.unlink()
    assert job.run().code == DONE


def test_a_new_checkpoint_gets_its_name_whole(small_disk: Path) -> None:
    """Wherever the disk fills while a checkpoint is made, there is none afterwards or a sound one, never a half one."""
    made = 0
    for pages in range(40):
        filler = disk.fill_up(small_disk)
        os.truncate(filler, filler.stat().st_size - pages * 4096)
        path = small_disk / f"{pages}.sqlite"
        with contextlib.suppress(StorageError):
            Checkpoint.open(path).close()
        filler.unlink()
        if path.exists():
            made += 1
            with Checkpoint.open(path) as checkpoint:
                assert checkpoint.verify() == []
    assert 0 < made < 40


def test_output_disk_fills_in_midst(tmp_path: Path, small_disk: Path, ledger: Ledger) -> None:
    """The answers are kept, exit 5; with space again the output is written without a request."""
    job = disk.job_on(small_disk, tmp_path / "job", ledger.url, full="output")
    end, filler = disk.fill_in_midst(job, ledger, 1_000, lambda: disk.fill_up(small_disk))
    assert end.code == STORAGE, end.said
    assert "No space left" in end.said
    (following,) = [line for line in end.said.splitlines() if line.startswith("  next ")]
    assert following.endswith("writes the output: all rows are answered")
    filler.unlink()
    before = ledger.requests
    assert job.run().code == DONE
    assert ledger.requests == before == len(disk.TEXTS)
    assert sorted(file.name for file in small_disk.iterdir()) == ["out.csv"]


def test_temporary_disk_is_full(
    tmp_path: Path, small_disk: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room to unpack an input is one line before the first request."""
    job = disk.job_on(small_disk, tmp_path / "job", ledger.url, full="temporary")
    disk.fill_up(small_disk)
    monkeypatch.setenv("TMPDIR", str(small_disk))
    end = job.run()
    assert end.code in {STORAGE, DONE}, end.said  # where another folder for temporary files has room, it is taken
    assert "Traceback" not in end.said
    assert ledger.requests == (0 if end.code else len(disk.TEXTS))


def test_file_size_limit(tmp_path: Path, ledger: Ledger) -> None:
    """A limit on the size of files (ulimit -f) that no reserve fits in is reported before the first request."""
    job = write_job(tmp_path, ledger.url, TEXTS)
    end = job.run(under=["bash", "-c", 'ulimit -f 2000; exec "$@"', "bash"])
    assert end.code == STORAGE, end.said
    assert "4 MB must be free" in end.said
    assert ledger.requests == 0


LOST = {
    "stderr is closed": '"$@" 2>&-',
    "all is closed": '"$@" <&- >&- 2>&-',
    "stdout's reader leaves": 'set -o pipefail; "$@" --json | true',
    "stderr's reader leaves": 'set -o pipefail; "$@" 2>&1 >/dev/null | true',
    "no terminal": 'setsid -w "$@" < /dev/null',
    "full device": '"$@" > /dev/full 2>&1',
}


@pytest.mark.parametrize("how", LOST)
def test_lost_streams_change_nothing(tmp_path: Path, ledger: Ledger, how: str) -> None:
    """Whatever the caller closes or leaves: the run is done, the exit code is right, no file of ours is written to."""
    job = write_job(tmp_path, ledger.url, TEXTS)
    end = job.run(under=["bash", "-c", LOST[how], "bash"])
    assert end.code == DONE, end.said
    assert "Traceback" not in end.said
    assert "Exception ignored" not in end.said
    assert ledger.requests == len(TEXTS)
    assert job.output.read_text().count(",ok,") == len(TEXTS)
    assert "the checkpoint is intact" in job.said_by("status", "--verify")


def strike(job: CrashJob, ledger: Ledger, action: Callable[[int], None], after: int = 100) -> tuple[int, str]:
    """Run a job, and do something to it after that many arrivals and replies; return its exit code and output."""
    process = job.start()
    left = [after]

    def event() -> None:
        left[0] -= 1
        if left[0] == 0:
            action(process.pid)

    ledger.on_event = event
    end = ended(process)
    ledger.on_event = None
    return end.code, end.said


def test_hangup_drains(tmp_path: Path, ledger: Ledger) -> None:
    """A terminal that goes (SIGHUP) ends a run like SIGTERM: what is in flight is kept, the same command resumes."""
    job = write_job(tmp_path, ledger.url, TEXTS)
    code, said = strike(job, ledger, lambda pid: os.kill(pid, signal.SIGHUP))
    assert code == 143, said
    assert set(ledger.received) <= job.committed()
    assert job.run().code == DONE
    assert set(ledger.received.values()) == {1}


def test_a_drain_that_answers_the_last_question_says_so(tmp_path: Path, ledger: Ledger) -> None:
    """A stop with everything in flight is an interruption that says that all is answered; the next asks nothing."""
    job = write_job(tmp_path, ledger.url, TEXTS[:1])
    ledger.held = True
    process = job.start()

    def event() -> None:
        if len(ledger.waiting) == 1:
            ledger.on_event = None
            os.kill(process.pid, signal.SIGTERM)
            ledger.release()

    ledger.on_event = event
    end = ended(process)
    assert end.code == 143, end.said
    assert "all rows are answered" in end.said
    assert job.run().code == DONE
    assert ledger.requests == 1


def test_grace_bounds_a_drain(tmp_path: Path, ledger: Ledger) -> None:
    """What is still in flight after the grace is given up and counted; the rest is kept and in the partial output."""
    job = write_job(tmp_path, ledger.url, TEXTS, limits={"concurrency": 8, "grace": 0.2})

    process = job.start()

    def event() -> None:
        ledger.held = ledger.held or ledger.requests > 60
        if len(ledger.waiting) == 8 == ledger.in_flight:
            ledger.on_event = None
            os.kill(process.pid, signal.SIGTERM)

    ledger.on_event = event
    end = ended(process)
    assert end.code == 143, end.said
    assert "8 more requests may have been billed" in end.said
    assert (tmp_path / "out.partial.csv").read_text().count("\n") == len(TEXTS) + 1
    ledger.release()
    assert job.run().code == DONE
    assert ledger.requests == len(TEXTS) + 8


def test_deadline_stops_and_resumes(tmp_path: Path, ledger: Ledger) -> None:
    """A deadline ends the run with exit 4; the same command resumes."""
    job = write_job(tmp_path, ledger.url, TEXTS, limits={"concurrency": 4, "deadline": "2s"})
    ledger.latency = (0.2, 0.3)
    end = job.run()
    assert end.code == 4, end.said
    assert "limits.deadline" in end.said
    assert "asks the other" in end.said
    ledger.latency = (0.0, 0.001)
    assert job.run().code == DONE
    assert set(ledger.received.values()) == {1}


def test_export_during_a_run(tmp_path: Path, ledger: Ledger) -> None:
    """During a run, export and status show what is committed, prune is asked to wait, and the run ends well."""
    job = write_job(tmp_path, ledger.url, TEXTS)
    said: dict[str, str] = {}

    def look(_: int) -> None:
        said["export"] = job.said_by("export", "-o", str(tmp_path / "now.csv"))
        said["status"] = job.said_by("status")
        said["prune"] = job.said_by("prune")

    code, output = strike(job, ledger, look, after=300)
    assert code == DONE, output
    assert "200 rows in" in said["export"]
    lines = (tmp_path / "now.csv").read_text().splitlines()[1:]
    assert len(lines) == 200
    assert {line.split(",")[0] for line in lines} == {str(number) for number in range(200)}
    assert "200 rows" in said["status"]
    assert "this job is already running" in said["prune"]
    assert set(ledger.received.values()) == {1}


def test_read_only_places_are_found_before_a_request(tmp_path: Path, small_disk: Path, ledger: Ledger) -> None:
    """A checkpoint or an output on a disk that is mounted read-only costs no request."""
    jobs = [disk.job_on(small_disk, tmp_path / full, ledger.url, full=full) for full in ("checkpoint", "output")]
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for job in jobs:
        end = job.run()
        assert end.code in {2, STORAGE}, end.said
        assert "written" in end.said or "write" in end.said
    assert ledger.requests == 0


def test_start_needs_no_home(tmp_path: Path, ledger: Ledger) -> None:
    """Cron's poor environment (no HOME, no TERM, a short PATH, / as working directory) is enough."""
    job = write_job(tmp_path, ledger.url, TEXTS[:5])
    poor = {name: value for name, value in environment().items() if name == "PYTHONPATH"} | {"PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "batchrun", str(job.path)]
    done = subprocess.run(command, env=poor, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == DONE, done.stderr
    assert job.output.exists()


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE questions SET id = x'41' WHERE id = (SELECT max(id) FROM questions)",
        "UPDATE plans SET baseline = 'zz'",
    ],
)
def test_values_of_a_wrong_type_are_damage(tmp_path: Path, ledger: Ledger, harm: str) -> None:
    """A flipped bit makes a text of a number, and SQLite does not notice: exit 5 with advice, nothing is asked."""
    job = write_job(tmp_path, ledger.url, TEXTS[:40])
    job.run("--limit", "20")
    with contextlib.closing(sqlite3.connect(job.checkpoint)) as connection:
        connection.execute(harm)
        connection.commit()
    write_job(tmp_path, ledger.url, TEXTS[:41])  # one more row, so that the input is planned again
    ledger.forget()
    ended = job.run()
    assert (ended.code, len(ledger.received)) == (STORAGE, 0), ended
    assert "is damaged" in ended.said
    assert "--fresh" in ended.said
