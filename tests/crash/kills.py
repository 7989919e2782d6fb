"""Kills runs while requests are in flight, resumes them, and holds server and checkpoint against each other."""

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash.harness import SOME_FAILED, CrashJob, Ended, ended, reference, sample_texts, write_job
from crash.ledger import Ledger, serving

ROWS = 6_000
IN_FLIGHT = 64
UNCOMMITTED = 600
"""Answers that may be on their way to the disk at most: a group of 500 that is being committed, and the next one."""

MOST_JOBS = 50
"""Jobs beyond the number of kills; if that many are needed, some kind never lands."""

EARLY = 0.9
"""This share of the kills comes early in a run; the others when the commits are in full swing."""

KINDS = {
    "SIGKILL": (signal.SIGKILL,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGINT": (signal.SIGINT,),
    "SIGINT twice": (signal.SIGINT, signal.SIGINT),
    "SIGTERM, then SIGKILL": (signal.SIGTERM, signal.SIGKILL),
}
DRAINS = {"SIGTERM": 143, "SIGINT": 130}


@dataclass
class Figures:
    """What the kills did, by their kind: how many, how many questions were bought twice, the most at one kill."""

    landed: Counter[str] = field(default_factory=Counter)
    in_flight: Counter[str] = field(default_factory=Counter)
    exposed: Counter[str] = field(default_factory=Counter)
    twice: Counter[str] = field(default_factory=Counter)
    most_uncommitted: int = 0
    jobs: int = 0
    requests: int = 0

    def lines(self) -> list[str]:
        """Return a table for people."""
        head = "kind | landed with requests in flight | in flight, mean | bought twice, mean, and in all | allowed"
        rows = [
            f"{kind} | {self.landed[kind]} | {self.in_flight[kind] / self.landed[kind]:.1f} | "
            f"{self.twice[kind] / self.landed[kind]:.1f} | {self.twice[kind]} | {self.exposed[kind]}"
            for kind in KINDS
            if self.landed[kind]
        ]
        most = f"most answers not yet committed at a kill: {self.most_uncommitted}"
        return [head, *rows, f"{self.jobs} jobs, {self.requests} requests; {most}"]


class Killer:
    """Kills one run: arms the ledger, which then strikes in the server's thread, so that nothing moves meanwhile."""

    def __init__(self, job: CrashJob, ledger: Ledger, process_group: int, kind: str, after: int) -> None:
        self._job, self._ledger, self._group, self._kind = job, ledger, process_group, kind
        self._signals = list(KINDS[kind])
        self._events_left = after
        self.struck = False
        self.in_flight = 0
        self.committed: set[str] = set()
        self.failure: BaseException | None = None
        ledger.on_event = self._event

    def _event(self) -> None:
        self._events_left -= 1
        if self._events_left > 0 or not self._signals or not self._ledger.in_flight:
            return
        try:
            self._strike()
        except BaseException as failure:  # noqa: BLE001  (the server's thread would swallow it)
            self.failure = failure
            os.killpg(self._group, signal.SIGKILL)

    def _strike(self) -> None:
        """Read what is committed, then signal; whatever was committed must never be asked again."""
        ledger = self._ledger
        committed = self._job.committed()
        number = self._signals.pop(0)
        os.killpg(self._group, number)
        ledger.forbidden |= committed
        self.struck = True
        self.in_flight = ledger.in_flight
        self.committed = committed
        # A drain lasts a reply or more, so that what is left of the signals meets it in its midst.
        self._events_left = 2


def kill_until(
    counts: dict[str, int],
    folder: Path,
    seed: int,
    rows: int = ROWS,
    tell: Callable[[str], None] | None = None,
    **sections: Any,  # noqa: ANN401  (JSON)
) -> Figures:
    """Kill runs of jobs until that many kills of each kind have landed with requests in flight; check each job's end.

    `tell` is called with how far it is, after each job. `sections` are put over the job's, key by key.
    """
    figures = Figures()
    chance = random.Random(seed)  # noqa: S311  (a seed, not a secret)
    texts = sample_texts(rows)
    with serving(Ledger()) as ledger:
        wanted = reference(folder / "reference", ledger.url, texts, **sections)
        while any(figures.landed[kind] < count for kind, count in counts.items()):
            assert figures.jobs < MOST_JOBS + sum(counts.values()), f"kills do not land: {figures}"
            ledger.forget()
            job = write_job(folder / f"job{figures.jobs}", ledger.url, texts, **sections)
            _kill_one_job(job, ledger, counts, chance, figures)
            assert job.output.read_bytes() == wanted, "the output differs from an uninterrupted run's"
            assert not list(job.folder.glob("out.partial*"))
            assert set(ledger.received) == job.questions
            figures.jobs += 1
            figures.requests += ledger.requests
            if tell is not None:
                tell(f"{figures.jobs} jobs, {figures.landed.total()} kills")
    return figures


def _kill_one_job(
    job: CrashJob, ledger: Ledger, counts: dict[str, int], chance: random.Random, figures: Figures
) -> None:
    """Run a job again and again, each time to a kill, until it is done."""
    exposed_by: dict[str, str] = {}
    while True:
        left = [kind for kind, count in counts.items() for _ in range(max(0, count - figures.landed[kind]))]
        kind = chance.choice(left or ["SIGKILL"])
        before = Counter(ledger.received)
        process = job.start()
        killer = Killer(job, ledger, process.pid, kind, _moment(chance) if left else 10**9)
        end = ended(process)
        ledger.on_event = None
        ledger.settle()
        if killer.failure is not None:
            raise killer.failure
        assert not ledger.forbidden_came, f"committed, then asked again: {ledger.forbidden_came[:5]}"
        asked = ledger.received - before
        more = [text for text, number in asked.items() if number > 1]
        assert not more, f"asked twice by one run ({kind}): {more[:5]} of {len(more)}; {end.said}"
        # A KeyError here would be a question that is asked again though no kill had exposed it.
        figures.twice.update(exposed_by.pop(text) for text in list(asked) if text in before)
        if not killer.struck or end.code == SOME_FAILED:
            # All is answered; a signal that came with the last replies had nothing left to stop.
            assert end.code == SOME_FAILED, end.said
            return
        _check_end(kind, end)
        figures.landed[kind] += 1
        figures.in_flight[kind] += killer.in_flight
        exposed = set(asked) - killer.committed
        if kind in DRAINS:
            lost = set(asked) - job.committed()
            assert not lost, f"a drain lost {len(lost)} replies: {end.said}"
            exposed = set()
        uncommitted = len(set(ledger.answered - before) & exposed)
        figures.exposed[kind] += len(exposed)
        figures.most_uncommitted = max(figures.most_uncommitted, uncommitted)
        assert uncommitted <= UNCOMMITTED, "answers stay too long without a commit"
        exposed_by.update(dict.fromkeys(exposed, kind))


def _moment(chance: random.Random) -> int:
    """Choose after how many arrivals and replies to strike: mostly few, so that a job takes many kills."""
    return 1 + (int(chance.expovariate(1 / 200)) if chance.random() < EARLY else chance.randrange(1_000, 5_000))


def _check_end(kind: str, end: Ended) -> None:
    """Check that a signal which a program can see ended with its exit code and a line on how to go on."""
    if kind in {"SIGKILL", "SIGTERM, then SIGKILL"}:
        assert end.code in {-signal.SIGKILL, 143}, end.said
        return
    assert end.code == DRAINS.get(kind, 130), (end.code, end.said)
    assert "asks the" in end.said or "all rows are answered" in end.said, end.said
    assert "Traceback" not in end.said, end.said
