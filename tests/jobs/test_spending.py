"""Money in whole jobs: a day's cap over kills, what a server reports, what nobody knows, what is simulated."""

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from crash.harness import CrashJob, ended, write_job
from crash.ledger import Ledger, serving

PICO = 10**12
EACH = 200_000_000
"""Picodollars that the ledger's server charges for a request."""


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with serving(Ledger()) as server:
        yield server


def kill_in_flight(job: CrashJob, ledger: Ledger, in_flight: int, events: int) -> None:
    """Run a job and SIGKILL it when that many requests are in flight, or after some arrivals and replies."""
    process, left = job.start(), [events]

    def event() -> None:
        left[0] -= 1
        if ledger.in_flight >= in_flight or left[0] == 0:
            ledger.on_event = None
            os.kill(process.pid, signal.SIGKILL)

    ledger.on_event = event
    assert ended(process).code == -signal.SIGKILL
    ledger.settle()


def books(job: CrashJob) -> tuple[int, int]:
    """Return the picodollars in `spending`, and how many answers are committed."""
    with closing(sqlite3.connect(job.checkpoint)) as connection:
        sql = "SELECT (SELECT coalesce(sum(cost), 0) FROM spending), (SELECT count(*) FROM answers)"
        spent, answers = connection.execute(sql).fetchone()
        return int(spent), int(answers)


@pytest.mark.timeout(300)
def test_a_days_cap_holds_over_ten_kills(tmp_path: Path, ledger: Ledger) -> None:
    """After ten SIGKILLs with up to 50 requests in flight the server billed at most the cap, and nine tenths of it."""
    texts, cap = [f"text {number}" for number in range(4_000)], 0.6
    job = write_job(tmp_path, ledger.url, texts, limits={"concurrency": 50, "max_cost_usd": {"day": cap}})
    for _ in range(10):
        kill_in_flight(job, ledger, 50, 200)
        spent, answers = books(job)
        assert spent == answers * EACH
    last = job.run()
    assert last.code == 4, last.said
    spent, answers = books(job)
    assert spent == answers * EACH
    billed = ledger.requests * EACH / PICO
    assert 0.9 * cap <= billed <= cap
    assert job.run().code == 4
    assert ledger.requests * EACH / PICO == billed


def test_a_fresh_start_does_not_forget_a_dead_runs_lease(tmp_path: Path, ledger: Ledger) -> None:
    """What a killed run may have spent counts against the day's cap in the next checkpoint as well."""
    job = write_job(
        tmp_path, ledger.url, [f"text {number}" for number in range(60)],
        limits={"concurrency": 8, "max_cost_usd": {"day": 0.01}},
    )  # fmt: skip
    kill_in_flight(job, ledger, 1, 10)
    assert ledger.requests == 1
    end = job.run("--fresh")
    assert end.code == 4, end.said
    assert 45 <= ledger.requests <= 50
