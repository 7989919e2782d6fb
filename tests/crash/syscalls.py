"""Kills runs, or lets the disk fail them, at single system calls of commit and output, by strace."""

import random
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crash.harness import STORAGE, CrashJob, Ended, reference, sample_texts, write_job
from crash.ledger import Ledger, serving

CALLS = {
    "rename": 2, "fdatasync": 8, "fsync": 3, "pwrite64": 90, "write": 120, "unlink": 4, "ftruncate": 4, "openat": 9,
}  # fmt: skip
"""System calls of commit and output, and how often one thread makes them in a run of a part of the job."""

FAILURES = (
    ("fdatasync", "EIO"), ("pwrite64", "ENOSPC"), ("pwrite64", "EIO"), ("ftruncate", "ENOSPC"), ("fsync", "EIO"),
    ("rename", "ENOSPC"), ("rename", "EIO"), ("openat", "ENOSPC"), ("openat", "EIO"),
)  # fmt: skip
ROWS = 300
PART = 60
IN_A_JOB = 8
"""Kills, before a job is run to its end."""

KILLED = (-9, 137)
STRACE = ("strace", "-f", "-qq")


@dataclass
class Points:
    """How many kills landed by call, how many failures hit, how they ended, and what was checked after each."""

    landed: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    jobs: int = 0

    def lines(self) -> list[str]:
        """Return the numbers for people."""
        kills = ", ".join(f"{call} {number}" for call, number in sorted(self.landed.items()))
        failures = ", ".join(f"{name} {number}" for name, number in sorted(self.failed.items()))
        said = [f"{self.landed.total()} kills at calls in {self.jobs} jobs: {kills}"] if kills else []
        return said + ([f"{self.failed.total()} runs whose calls failed: {failures}"] if failures else [])


def why_not() -> str:
    """Return why strace can't be used here; empty where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    with tempfile.NamedTemporaryFile() as log:
        tried = subprocess.run([*STRACE, "-o", log.name, "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"strace is not permitted: {tried.stderr.strip()}"


def _filters(job: CrashJob, call: str) -> list[str]:
    """Leave out the interpreter's own opening of files; other calls are few, or happen while requests are in flight."""
    if call != "openat":
        return []
    places = [str(job.checkpoint) + ending for ending in ("", "-wal", "-shm", ".new", ".lock", ".reserve")]
    return [word for place in places for word in ("-P", place)]


def _strace(job: CrashJob, call: str, action: str) -> list[str]:
    return [*STRACE, "-o", str(job.folder / "log"), *_filters(job, call), "-e", f"trace={call}", "-e", action]


def kill_at_calls(each: int, folder: Path, seed: int, calls: Sequence[str] = tuple(CALLS)) -> Points:
    """Kill runs at that many points of each call; a resumed job must end like one that was never killed."""
    points, chance = Points(), random.Random(seed)  # noqa: S311  (a seed, not a secret)
    texts = sample_texts(ROWS)
    with serving(Ledger()) as ledger:
        wanted = reference(folder / "reference", ledger.url, texts)
        while left := [call for call in calls for _ in range(each - points.landed[call])]:
            assert points.missed < 4 * each * len(CALLS), f"kills do not land: {points}"
            points.jobs += 1
            job = write_job(folder / f"job{points.jobs}", ledger.url, texts)
            ledger.forget()
            for call in chance.sample(left, min(IN_A_JOB, len(left))):
                _kill_at(call, job, ledger, wanted, points, chance)
            check_end(job, ledger, wanted)
            shutil.rmtree(job.folder)
    return points


def _kill_at(call: str, job: CrashJob, ledger: Ledger, wanted: bytes, points: Points, chance: random.Random) -> None:
    """Run a part of a job, or the rest of it, to a kill at some call of a kind."""
    part = ["--limit", str(PART)] if chance.random() < 0.7 else []
    action = f"inject={call}:signal=SIGKILL:when={chance.randint(1, CALLS[call])}"
    end = job.run(*part, under=_strace(job, call, action))
    if end.code in KILLED:
        points.landed[call] += 1
    else:
        points.missed += 1
        assert end.code in {0, 1}, end.said
    check_after_harm(job, ledger, wanted, end)
    if chance.random() < 0.2:
        (job.folder / "rows.csv").touch()  # the next run plans anew


def check_after_harm(job: CrashJob, ledger: Ledger, wanted: bytes, end: Ended) -> None:
    """Whatever happened: no traceback, nothing committed came again, and an output is whole or not there."""
    ledger.settle()
    assert "Traceback" not in end.said, end.said
    assert "bug of batchrun" not in end.said, end.said
    assert not ledger.forbidden_came, f"committed, then asked again: {ledger.forbidden_came[:5]}"
    ledger.forbidden |= job.committed()
    if job.output.exists():
        assert job.output.read_bytes() == wanted
    partial = job.folder / "out.partial.csv"
    if partial.exists():
        assert partial.read_bytes().count(b"\n") == wanted.count(b"\n")


def check_end(job: CrashJob, ledger: Ledger, wanted: bytes) -> None:
    """Let the job run to its end: then all is as if nothing had happened."""
    end = job.run()
    assert end.code == 1, end.said
    assert job.output.read_bytes() == wanted
    assert not ledger.forbidden_came, f"committed, then asked again: {ledger.forbidden_came[:5]}"
    assert set(ledger.received) == job.questions
    verified = job.said_by("status", "--verify")
    assert "is intact" in verified, verified


def fail_at_calls(count: int, folder: Path, seed: int) -> Points:
    """Let calls fail from some moment on: the run ends with exit 5 and a line, and resumes once the disk is well."""
    points, chance = Points(), random.Random(seed)  # noqa: S311  (a seed, not a secret)
    texts = sample_texts(ROWS)
    with serving(Ledger()) as ledger:
        wanted = reference(folder / "reference", ledger.url, texts)
        for call, error in (chance.sample(FAILURES, len(FAILURES)) * count)[:count]:
            ledger.forget()
            job = write_job(folder / f"job{points.jobs}", ledger.url, texts)
            if chance.random() < 0.5:
                assert job.run("--limit", str(PART)).code in {0, 1}
                ledger.forbidden |= job.committed()
            action = f"inject={call}:error={error}:when={chance.randint(1, CALLS[call])}+"
            end = job.run(under=_strace(job, call, action))
            assert end.code in {0, 1, STORAGE}, (action, end)
            assert end.code != STORAGE or "run" in end.said, (action, end.said)
            points.failed[f"{call} {error}: exit {end.code}"] += 1
            check_after_harm(job, ledger, wanted, end)
            check_end(job, ledger, wanted)
            points.jobs += 1
    return points
