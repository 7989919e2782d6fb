"""A job in a folder of its own, run as a process by the real command line, and what its checkpoint has committed."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forking

TESTS = Path(__file__).resolve().parents[1]
DONE, SOME_FAILED, STORAGE, BUSY = 0, 1, 5, 75
"""Exit codes."""

MINUTES = 180
"""Seconds; a process that takes longer hangs."""


@dataclass(frozen=True)
class CrashJob:
    """A job file with its input. `texts` are its rows' questions, None where `input.where` leaves a row out.

    `settled` are the statuses of answers that are never asked again.
    """

    folder: Path
    texts: tuple[str | None, ...]
    settled: tuple[str, ...] = ("ok", "failed")

    @property
    def path(self) -> Path:
        """The job file."""
        return self.folder / "job.yaml"

    @property
    def output(self) -> Path:
        """The finished output."""
        return self.folder / "out.csv"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's file."""
        return self.folder / ".batchrun" / "job.sqlite"

    @property
    def questions(self) -> set[str]:
        """The distinct questions."""
        return {text for text in self.texts if text is not None}

    def said_by(self, *words: str) -> str:
        """Run another command on the job, its name first, and give all that it says."""
        done = forking.run(words[0], str(self.path), *words[1:], cwd=self.folder, env=environment())
        return done.stdout + done.stderr

    def start(self, *flags: str) -> forking.Started:
        """Start a run as the leader of a process group of its own."""
        return forking.start(str(self.path), *flags, cwd=self.folder, env=environment())

    def run(self, *flags: str, under: Sequence[str] = ()) -> "Ended":
        """Run the job to its end, `under` another program as a process of its own from the start."""
        if not under:
            return ended(self.start(*flags))
        done = subprocess.run(
            [*under, sys.executable, "-m", "batchrun", str(self.path), *flags],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
            start_new_session=True, env=environment(), cwd=self.folder, timeout=MINUTES,
        )  # fmt: skip
        return Ended(done.returncode, done.stderr)

    def committed(self) -> set[str]:
        """Read with a connection of our own which questions are settled by what is committed.

        A refusal that came before the first success of its run is "unexplained": by design the next run asks it again.
        """
        if not self.checkpoint.exists():
            return set()
        with closing(sqlite3.connect(f"file:{self.checkpoint}?mode=ro", uri=True, timeout=30)) as connection:
            found = connection.execute(
                "SELECT r.position FROM rows r JOIN answers a ON a.id = r.question_id "  # noqa: S608  (marks only)
                f"WHERE a.status IN ({', '.join('?' * len(self.settled))}) AND a.error_type IS NOT 'unexplained'",
                self.settled,
            )
            return {text for (position,) in found if (text := self.texts[position]) is not None}


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal that killed it) and what it wrote to stderr."""

    code: int
    said: str


def ended(process: forking.Started) -> Ended:
    """Wait for a process; one that hangs is killed and reported."""
    done = process.wait(MINUTES)
    return Ended(done.returncode, done.stderr)


def environment() -> dict[str, str]:
    """Return the variables of a run: nothing of ours but what finds the interpreter's things."""
    names = ("PATH", "HOME", "TMPDIR", "LANG", "PYTHONPATH")
    return {name: os.environ[name] for name in names if name in os.environ}


def write_job(folder: Path, url: str, texts: Sequence[str | None], **sections: Any) -> CrashJob:  # noqa: ANN401  (JSON)
    """Write a job and its input; `sections` are put over the job's, key by key. Each request costs $0.0002."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{number},{text or ''},note {number}\n" for number, text in enumerate(texts))
    (folder / "rows.csv").write_text("id,text,note\n" + rows)
    os.utime(folder / "rows.csv", (1_600_000_000, 1_600_000_000))
    job: dict[str, Any] = {
        "input": {"path": "rows.csv", "where": "text is not null"},
        "prompt": {"user": "{{ text }}"},
        "model": {"endpoint": url, "name": "m", "price": {"prompt": 1, "completion": 1}, "params": {"max_tokens": 200}},
        "limits": {"concurrency": 64, "timeout": 20},
        "output": {"path": "out.csv"},
    }
    for name, section in sections.items():
        job[name] = {**job.get(name, {}), **section}
    (folder / "job.yaml").write_text(json.dumps(job))
    return CrashJob(folder, tuple(texts))


def sample_texts(rows: int) -> list[str | None]:
    """Return rows of all kinds: mostly distinct, some equal to an earlier one, refused by the server, or null."""
    texts: list[str | None] = []
    for number in range(rows):
        if number % 17 == 16:
            texts.append(f"text {number - 5}")
        elif number % 97 == 50:
            texts.append(f"bad {number}")
        else:
            texts.append(None if number % 101 == 100 else f"text {number}")
    return texts


def reference(folder: Path, url: str, texts: Sequence[str | None], **sections: Any) -> bytes:  # noqa: ANN401  (JSON)
    """Return the output of a run that nobody interrupts."""
    job = write_job(folder, url, texts, **sections)
    end = job.run()
    assert end.code == 1, end.said  # some rows are refused
    return job.output.read_bytes()
