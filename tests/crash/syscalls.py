"""Kills runs, or lets the disk fail them, at single system calls of commit and output, by strace."""

import random
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from crash.harness import CrashJob, Ended, reference, sample_texts, write_job
from crash.ledger import Ledger, serving

CALLS = ("rename", "fdatasync", "fsync", "pwrite64", "write", "unlink", "ftruncate", "openat")
FAILURES = (
    ("fdatasync", "EIO"), ("pwrite64", "ENOSPC"), ("pwrite64", "EIO"), ("ftruncate", "ENOSPC"), ("fsync", "EIO"),
    ("rename", "ENOSPC"), ("rename", "EIO"), ("openat", "ENOSPC"), ("openat", "EIO"),
)  # fmt: skip
ROWS = 300
PART = 60
KILLED = (-9, 137)
STRACE = ("strace", "-f", "-qq", "--seccomp-bpf")


@dataclass
class Points:
    """How many kills landed by call, how many failures hit, how they ended, and what was checked after each."""

    landed: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    jobs: int = 0

    def lines(self) -> list[str]:
        """Give the numbers for people."""
        kills = ", ".join(f"{call} {number}" for call, number in sorted(self.landed.items()))
        failures = ", ".join(f"{name} {number}" for name, number in sorted(self.failed.items()))
        return [f"{self.landed.total()} kills at calls in {self.jobs} jobs: {kills}", f"injected failures: {failures}"]


def why_not() -> str:
    """Say why strace can't be used here; empty where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    with tempfile.NamedTemporaryFile() as log:
        tried = subprocess.run([*STRACE, "-o", log.name, "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"strace is not permitted: {tried.stderr.strip()}"


def _filters(job: CrashJob, call: str) -> list[str]:
    """Leave out the interpreter's own opening of files; other calls are few, or happen while requests are in flight."""
    if call != "openat":
        return []
    places = [job.checkpoint, *(Path(f"{job.checkpoint}{end}") for end in ("-wal", "-shm", ".new", ".lock", ".reserve"))]
    return [word for place in [*places, job.folder] for word in ("-P", str(place))]


def _strace(job: CrashJob, call: str, action: str, log: Path) -> list[str]:
    return [*STRACE, "-o", str(log), *_filters(job, call), "-e", f"trace={call}", *(["-e", action] if action else [])]


def _how_many(folder: Path, url: str, call: str) -> int:
    """Count how often one thread of a whole run makes a call at most."""
    job = write_job(folder, url, sample_texts(ROWS))
    log = folder / "log"
    job.run(under=_strace(job, call, "", log))
    threads = Counter(re.findall(rf"^(\d+) +{call}\(", log.read_text(), re.MULTILINE))
    return max(threads.values(), default=1)


def kill_at_calls(each: int, folder: Path, seed: int) -> Points:
    """Kill runs at so many points of each call; a resumed job must end like one that was never killed."""
    points, chance = Points(), random.Random(seed)  # noqa: S311  (a seed, not a secret)
    texts = sample_texts(ROWS)
    with serving(Ledger()) as ledger:
        wanted = reference(folder / "reference", ledger.url, texts)
        for call in CALLS:
            most = _how_many(folder / f"count-{call}", ledger.url, call)
            while points.landed[call] < each:
                points.jobs += 1
                job = write_job(folder / f"job{points.jobs}", ledger.url, texts)
                _kill_one_job(job, ledger, call, each, most, wanted, points, chance)
                shutil.rmtree(job.folder)
    return points


def _kill_one_job(
    job: CrashJob,
    ledger: Ledger,
    call: str,
    each: int,
    most: int,
    wanted: bytes,
    points: Points,
    chance: random.Random,
) -> None:
    """Run a job in parts, each to a kill at a call, then to its end."""
    ledger.forbidden.clear()
    ledger.received.clear()
    log = job.folder / "log"
    for _ in range(6):
        when = chance.randint(1, most)
        part = ["--limit", str(PART)] if chance.random() < 0.6 else []
        end = job.run(*part, under=_strace(job, call, f"inject={call}:signal=SIGKILL:when={when}", log))
        if end.code in KILLED:
            points.landed[call] += 1
        else:
            points.missed += 1
            assert end.code in {0, 1}, end.said
        check_after_harm(job, ledger, wanted, end)
        if chance.random() < 0.3:
            (job.folder / "rows.csv").touch()  # the next run plans anew
        if points.landed[call] >= each:
            break
    check_end(job, ledger, wanted)


def check_after_harm(job: CrashJob, ledger: Ledger, wanted: bytes, end: Ended) -> None:
    """Whatever happened: no traceback, nothing committed came again, and an output is whole or not there."""
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
    """Let the job run to its end, twice: then all is as if nothing had happened."""
    for _ in range(2):
        end = job.run()
        assert end.code == 1, end.said
        assert job.output.read_bytes() == wanted
        assert not ledger.forbidden_came, f"committed, then asked again: {ledger.forbidden_came[:5]}"
        ledger.forbidden |= set(ledger.received)
    verified = subprocess.run(job.command_of("status", "--verify"), capture_output=True, text=True, check=False)
    assert "is sound" in verified.stderr, verified.stderr


def fail_at_calls(each: int, folder: Path, seed: int) -> Points:
    """Let calls fail from some moment on: the run ends with exit 5 and a line, and goes on once the disk is well."""
    points, chance = Points(), random.Random(seed)  # noqa: S311  (a seed, not a secret)
    texts = sample_texts(ROWS)
    with serving(Ledger()) as ledger:
        wanted = reference(folder / "reference", ledger.url, texts)
        for call, error in FAILURES:
            most = _how_many(folder / f"count-{call}-{error}", ledger.url, call)
            for number in range(each):
                ledger.forbidden.clear()
                ledger.received.clear()
                job = write_job(folder / f"{call}-{error}-{number}", ledger.url, texts)
                if number % 2:
                    assert job.run("--limit", str(PART)).code in {0, 1}
                action = f"inject={call}:error={error}:when={chance.randint(1, most)}+"
                end = job.run(under=_strace(job, call, action, job.folder / "log"))
                assert end.code in {0, 1, 5}, (action, end)
                assert end.code != 5 or end.said.strip(), action
                points.failed[f"{call} {error}: exit {end.code}"] += 1
                check_after_harm(job, ledger, wanted, end)
                check_end(job, ledger, wanted)
                points.jobs += 1
    return points
