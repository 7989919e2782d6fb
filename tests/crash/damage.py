"""Damages a checkpoint at random places: it is refused with a line that says how to go on, or it does no harm."""

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from crash.harness import STORAGE, CrashJob, sample_texts, write_job
from crash.kills import Killer
from crash.ledger import Ledger, serving

ROWS = 400
MOST_HARM = 40
"""Questions; where a damaged page holds them they are asked again, all the others are not."""


def damage_at(places: int, folder: Path, seed: int) -> Counter[str]:
    """Damage the checkpoints of a finished and of a killed job at that many places; count how the next runs end."""
    ends: Counter[str] = Counter()
    chance = random.Random(seed)  # noqa: S311  (a seed, not a secret)
    with serving(Ledger()) as ledger:
        jobs = [_finished(folder / "finished", ledger), _killed(folder / "killed", ledger)]
        for number in range(places):
            job = jobs[number % 2]
            whole = {file: file.read_bytes() for file in job.checkpoint.parent.iterdir()}
            open_before = job.questions - job.committed()
            harmed = _harm(job, chance)
            ledger.settle()
            ledger.forget()
            end = job.run()
            again = set(ledger.received) - open_before
            assert end.code in {0, 1, STORAGE}, (harmed, end)
            assert "Traceback" not in end.said, (harmed, end.said)
            assert len(again) <= MOST_HARM, (harmed, len(again), end.said)
            if end.code == STORAGE:
                assert not ledger.received, harmed
                assert "--fresh" in end.said or "set checkpoint:" in end.said, (harmed, end.said)
                assert job.checkpoint.exists()
            ends["refused" if end.code == STORAGE else "harmless" if not again else "asked some again"] += 1
            shutil.rmtree(job.checkpoint.parent)
            job.checkpoint.parent.mkdir(mode=0o700)
            for file, content in whole.items():
                file.write_bytes(content)
    return ends


def _finished(folder: Path, ledger: Ledger) -> CrashJob:
    job = write_job(folder, ledger.url, sample_texts(ROWS))
    job.run()
    return job


def _killed(folder: Path, ledger: Ledger) -> CrashJob:
    job = write_job(folder, ledger.url, sample_texts(ROWS))
    process = job.start()
    Killer(job, ledger, process.pid, "SIGKILL", ROWS)
    process.wait()
    ledger.on_event = None
    return job


def _harm(job: CrashJob, chance: random.Random) -> str:
    """Flip bytes or cut off the end of one of the files; the log's frames have checksums, so SQLite drops them."""
    file = job.checkpoint
    content = bytearray(file.read_bytes())
    kind = chance.choice(["one byte", "some bytes", "a page", "the end", "the head"])
    start = chance.randrange(100 if kind == "the head" else len(content))
    if kind == "the end":
        del content[start:]
    else:
        length = {"one byte": 1, "some bytes": 16, "a page": 4096, "the head": 4}[kind]
        for place in range(start, min(start + length, len(content))):
            content[place] ^= chance.randrange(1, 256)
    file.write_bytes(content)
    return f"{kind} at {start} of {file.name}"


def lines(ends: Counter[str]) -> Iterator[str]:
    """Yield the numbers for people."""
    yield f"{ends.total()} damaged checkpoints: " + ", ".join(f"{number} {name}" for name, number in ends.most_common())
