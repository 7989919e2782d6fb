"""Errors through the whole job: nothing retried, lost or stopped wrongly, whatever sends."""

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from job_running import fast, run, write_job
from simulator_server import Running, running

from batchrun.api.judge import judge
from batchrun.api.masking import Mask
from batchrun.errors import ExitCode
from batchrun.job import RunOptions
from batchrun.records import Parse, Reply, Verdict
from batchrun.runner import pool
from batchrun.runner.work import REAL_TIME

API, LIMIT, SOME = ExitCode.STOPPED_BY_API, ExitCode.STOPPED_BY_LIMIT, ExitCode.SOME_FAILED
both_senders = pytest.mark.parametrize("sender", ["reqwest", "httpx"])


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with running(retry_after=0.02, keep_requests=2_000) as server:
        yield server


@pytest.fixture
def simulator(shared: Running) -> Running:
    shared.reset()
    return shared


def rows_of(folder: Path, sql: str) -> list[Any]:
    """Ask the checkpoint, as datasette would."""
    with closing(sqlite3.connect(folder / ".batchrun" / "job.sqlite")) as connection:
        return connection.execute(sql).fetchall()


# -- what stops a run


@both_senders
def test_a_wrong_key_costs_no_request_to_the_model(sender: str, simulator: Running, tmp_path: Path) -> None:
    """The key is asked first: exit 3, all rows pending, and the next run with a good key asks them all."""
    path = write_job(tmp_path, simulator.url, rows=100)
    ran = run(path, sender=sender, key="sk-or-v1-wrong")
    assert (ran.summary.exit_code, ran.summary.pending, simulator.counters.requests) == (API, 100, 0)
    assert "User not found" in ran.summary.reason
    assert run(path, sender=sender).summary.ok == 100


@both_senders
def test_a_key_that_stops_working_costs_one_confirmation(sender: str, simulator: Running, tmp_path: Path) -> None:
    """100 rows, 10 at once, each request refused with 401: at most 11 requests, exit 3, all rows pending."""
    ran = run(write_job(tmp_path, simulator.url, rows=100, model="sim/401"), sender=sender)
    assert (ran.summary.exit_code, ran.count("status")) == (API, {"pending": 100})
    assert simulator.counters.requests <= 11
    assert "100" in ran.summary.commands[0][1]


@both_senders
def test_a_closed_window_is_kept_and_no_row_lost(sender: str, simulator: Running, tmp_path: Path) -> None:
    """429 with Retry-After for a while: nothing is sent in the window but what is in flight, and all are answered."""
    wait = 0.6
    simulator.change(
        latency=0.02,
        retry_after=wait,
        schedule=[[0.2, {"faults": {"429-retry-after": 1.0}}], [0.2 + wait, {"faults": {}}]],
    )
    ran = run(write_job(tmp_path, simulator.url, rows=400), sender=sender, clock=REAL_TIME)
    assert ran.count("status") == {"ok": 400}
    refusals = [one.at for one in simulator.counters.recorded if one.ending == "429-retry-after"]
    first = min(refusals)
    in_flight = [one.at for one in simulator.counters.recorded if first <= one.at < first + wait]
    assert len(in_flight) <= 10 + 10
    assert max(in_flight) < first + wait / 2
    assert simulator.counters.requests == 400 + len(refusals) <= 400 + 12


@both_senders
def test_an_error_inside_a_200_loses_no_row(sender: str, simulator: Running, tmp_path: Path) -> None:
    """20 rows that each once get HTTP 200 with an error in place of choices: 40 requests, 20 answers."""
    ran = run(write_job(tmp_path, simulator.url, rows=20, model="sim/200-error-524:1"), sender=sender)
    assert (ran.count("status"), ran.summary.exit_code, simulator.counters.requests) == ({"ok": 20}, 0, 40)
    assert ran.column("attempts") == [2] * 20


@both_senders
def test_rows_that_are_always_refused_are_asked_once(sender: str, simulator: Running, tmp_path: Path) -> None:
    """11 rows answered with 400: 11 requests, exit 1; the same command again sends nothing."""
    path = write_job(tmp_path, simulator.url, rows=11, model="sim/400", limits={"breaker": 0})
    for _ in range(2):
        ran = run(path, sender=sender)
        assert (ran.count("error_code"), ran.summary.exit_code) == ({400: 11}, SOME)
    assert simulator.counters.requests == 11


def test_refused_rows_among_good_ones_trip_no_breaker(simulator: Running, tmp_path: Path) -> None:
    """Each of them is asked once and fails alone."""
    simulator.change(faults={"400:always": 0.2})
    ran = run(write_job(tmp_path, simulator.url, rows=200, limits={"concurrency": 4}))
    failed = ran.count("status")["failed"]
    assert failed > 11
    assert simulator.counters.endings["400"] == failed
    assert (simulator.counters.requests, ran.summary.exit_code) == (200, SOME)


def test_equal_unexplained_failures_stop_the_run(simulator: Running, tmp_path: Path) -> None:
    """The breaker leaves its rows pending; a run after the cause is gone asks them all, with nothing lost."""
    simulator.change(faults={"422": 1.0})
    path = write_job(tmp_path, simulator.url, rows=50, limits={"concurrency": 5})
    ran = run(path)
    assert (ran.summary.exit_code, ran.count("status")) == (API, {"pending": 50})
    assert 25 <= simulator.counters.requests <= 29
    assert ran.summary.errors == {}
    simulator.change(faults={})
    ran = run(path)
    assert (ran.count("status"), ran.summary.exit_code) == ({"ok": 50}, 0)


@both_senders
def test_a_drip_ends_with_the_timeout(sender: str, simulator: Running, tmp_path: Path) -> None:
    """A reply that drips for 7 s is given up after the timeout, which is for the whole attempt; twice, no more."""
    simulator.change(slow=7.0)
    limits = {"timeout": 0.5}
    ran = run(write_job(tmp_path, simulator.url, rows=2, model="sim/drip", limits=limits), sender=sender)
    assert (ran.count("error_type"), ran.summary.possibly_billed) == ({"timeout": 2}, 4)
    seconds = [value for (value,) in rows_of(tmp_path, "SELECT seconds FROM failures")]
    assert len(seconds) == 4
    assert all(0.4 < value < 3.5 for value in seconds)
    assert rows_of(tmp_path, "SELECT possibly_billed FROM runs") == [(4,)]


@both_senders
def test_a_daily_quota_says_when_to_come_back(sender: str, simulator: Running, tmp_path: Path) -> None:
    """Exit 3 with the time of the reset, in the summary and in the checkpoint; then only the rest is asked."""
    simulator.change(day_quota=7)
    path = write_job(tmp_path, simulator.url, rows=20, limits={"concurrency": 2})
    ran = run(path, sender=sender)
    assert (ran.summary.exit_code, ran.count("status")) == (API, {"ok": 7, "pending": 13})
    assert simulator.counters.requests <= 10
    assert ran.summary.resume_at is not None
    moment = datetime.fromtimestamp(ran.summary.resume_at, UTC)
    assert (moment.hour, moment.minute, moment.second) == (0, 0, 0)
    assert 0 < ran.summary.resume_at - time.time() <= 86_400
    assert rows_of(tmp_path, "SELECT resume_at FROM runs") == [(ran.summary.resume_at,)]
    simulator.reset()
    assert run(path, sender=sender).summary.ok == 20
    assert simulator.counters.requests == 13


def test_nothing_but_not_now_is_given_up(simulator: Running, tmp_path: Path) -> None:
    """After fifteen minutes without any success the run stops, resumable."""
    simulator.change(retry_after=20)
    ran = run(write_job(tmp_path, simulator.url, rows=30, model="sim/503"), clock=fast(3_000))
    assert (ran.summary.exit_code, ran.count("status")) == (API, {"pending": 30})
    assert "15 min" in ran.summary.reason


def test_a_wait_beyond_an_hour_stops_at_once(simulator: Running, tmp_path: Path) -> None:
    """The time to come back is named; with a deadline before it, the deadline is what stops the run."""
    simulator.change(retry_after=7_000)
    ran = run(write_job(tmp_path, simulator.url, rows=5, model="sim/503"))
    assert (ran.summary.exit_code, ran.summary.pending) == (API, 5)
    assert ran.summary.resume_at == pytest.approx(time.time() + 7_000, abs=800)
    simulator.change(retry_after=1_800)
    ran = run(write_job(tmp_path, simulator.url, rows=5, model="sim/503", limits={"deadline": "10m"}))
    assert (ran.summary.exit_code, ran.summary.pending) == (LIMIT, 5)
    assert ran.summary.resume_at is not None


def test_the_deadline_stops_the_run(simulator: Running, tmp_path: Path) -> None:
    """Exit 4; what is answered is kept, the same command resumes."""
    simulator.change(latency=0.05)
    path = write_job(tmp_path, simulator.url, rows=200, limits={"concurrency": 2, "deadline": "200s"})
    ran = run(path, clock=fast(100))  # two seconds, in which a slow machine gets an answer as well
    assert (ran.summary.exit_code, ran.summary.reason) == (LIMIT, "limits.deadline is reached")
    assert 0 < ran.summary.pending < 200
    assert simulator.counters.requests == ran.summary.ok


def test_a_bug_of_ours_loses_no_answer(simulator: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised after what is in flight has ended and is committed; the run, on record as 70, can be resumed."""
    replies = 0

    def broken(reply: Reply, parse: Parse, *, now: float, prompt: bytes = b"", mask: Mask | None = None) -> Verdict:
        nonlocal replies
        replies += 1
        if replies == 15:
            raise RuntimeError("a bug")
        return judge(reply, parse, now=now, prompt=prompt, mask=mask)

    monkeypatch.setattr(pool, "judge", broken)
    simulator.change(latency=0.05)
    path = write_job(tmp_path, simulator.url, rows=50)
    with pytest.raises(RuntimeError, match="a bug"):
        run(path)
    sent = simulator.counters.requests
    assert 20 <= sent <= 30
    assert rows_of(tmp_path, "SELECT exit_code, requests, possibly_billed FROM runs") == [(70, sent, 1)]
    assert rows_of(tmp_path, "SELECT count(*) FROM answers WHERE status = 'ok'") == [(sent - 1,)]
    assert run(path).count("status") == {"ok": 50}
    assert simulator.counters.requests == 51


# -- what is accepted, and what is asked again


def moderated(simulator: Running, folder: Path, rows: int = 200, **limits: Any) -> Path:  # noqa: ANN401  (JSON)
    """Write a job some of whose rows are always flagged by moderation, the same ones each time."""
    simulator.change(faults={"403-moderated:always": 0.1})
    return write_job(folder, simulator.url, rows=rows, limits={"concurrency": 2, **limits})


def test_accepted_failures_end_well(simulator: Running, tmp_path: Path) -> None:
    """limits.max_failed as a number and as a share: as many are exit 0, one more stops the run with exit 4."""
    all_of_them = run(moderated(simulator, tmp_path)).summary.failed
    assert all_of_them > 9
    for number, (accepted, exit_code) in enumerate(
        [(all_of_them, 0), (f"{all_of_them / 2}%", 0), (all_of_them - 1, LIMIT), (f"{all_of_them / 2 - 0.1}%", LIMIT)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        summary = run(moderated(simulator, folder, max_failed=accepted)).summary
        assert (summary.exit_code, summary.failed) == (exit_code, all_of_them)


def test_failures_of_earlier_runs_count(simulator: Running, tmp_path: Path) -> None:
    """Failures that stand are counted with the new ones; beyond what is accepted nothing is sent."""
    path = moderated(simulator, tmp_path, max_failed=5)
    first = run(path)
    assert (first.summary.exit_code, 6 <= first.summary.failed <= 7) == (LIMIT, True)
    sent = simulator.counters.requests
    again = run(path)
    assert (again.summary.exit_code, simulator.counters.requests) == (LIMIT, sent)
    path = moderated(simulator, tmp_path, max_failed=first.summary.failed + 2)
    last = run(path)
    assert last.summary.exit_code == LIMIT
    assert first.summary.failed + 3 <= last.summary.failed <= first.summary.failed + 4


def test_truncated_rows_are_asked_again_when_max_tokens_grew(simulator: Running, tmp_path: Path) -> None:
    """Never before, then exactly those, also where limits.max_failed does not accept them."""

    def asked(max_tokens: int) -> tuple[int, dict[str, int], int]:
        simulator.counters.clear()
        simulator.change(faults={"truncated:always": 0.2} if max_tokens < 100 else {})
        model = {"name": "sim/good", "params": {"max_tokens": max_tokens}}
        ran = run(write_job(tmp_path, simulator.url, rows=rows, model=model, limits={"max_failed": accepted}))
        return simulator.counters.requests, ran.count("status"), ran.summary.exit_code

    rows, accepted = 60, 60
    requests, first, _ = asked(50)
    assert (requests, first["failed"] > 2) == (60, True)
    assert asked(50) == (0, first, 0)
    assert asked(40) == (0, first, 0)
    accepted = 1
    assert asked(200) == (first["failed"], {"ok": 60}, 0)


def test_rows_that_failed_for_good_are_asked_by_retry_alone(simulator: Running, tmp_path: Path) -> None:
    """`retry --only` asks those types, `retry` all; a plain run asks only what is transient."""
    simulator.change(faults={"403-moderated:always": 0.2, "400:always": 0.2, "500:always": 0.2})
    path = write_job(tmp_path, simulator.url, rows=60, limits={"breaker": 0})
    failed = run(path).summary.errors
    assert set(failed) == {"content_policy", "bad_request", "server_error"}
    simulator.change(faults={})
    for options, types in (
        (RunOptions(), ["server_error"]),
        (RunOptions(), []),
        (RunOptions(retry=frozenset({"content_policy"})), ["content_policy"]),
        (RunOptions(retry=frozenset()), ["bad_request"]),
    ):
        simulator.counters.clear()
        ran = run(path, options)
        assert simulator.counters.requests == sum(failed[name] for name in types)
    assert (ran.count("status"), ran.summary.exit_code) == ({"ok": 60}, 0)


def test_one_attempt_leaves_a_rate_limited_row_pending(simulator: Running, tmp_path: Path) -> None:
    """attempts: 1 never asks twice in one run; the next run asks what is pending."""
    path = write_job(tmp_path, simulator.url, rows=5, model="sim/429:1", limits={"attempts": 1})
    ran = run(path)
    assert (ran.count("status"), ran.summary.exit_code, simulator.counters.requests) == ({"pending": 5}, API, 5)
    assert ran.summary.reason == "the API refused 5 questions for now"
    assert ran.count("error_type") == {"rate_limited": 5}
    assert (run(path).summary.ok, simulator.counters.requests) == (5, 10)


def test_a_limited_run_whose_rows_met_a_rate_limit_is_not_done(simulator: Running, tmp_path: Path) -> None:
    """With attempts: 1 and --limit 2 nothing may be answered: exit 3, not 0, though others were to stay pending."""
    path = write_job(tmp_path, simulator.url, rows=5, model="sim/429:1", limits={"attempts": 1})
    assert [run(path, RunOptions(limit=2)).summary.exit_code for _ in range(2)] == [API, 0]


@both_senders
def test_the_model_really_used_is_reported(sender: str, simulator: Running, tmp_path: Path) -> None:
    """When a fallback answers, the output names it, and its price is what was paid."""
    model = {"name": "sim/502", "fallbacks": ["openai/gpt-4o"]}
    ran = run(write_job(tmp_path, simulator.url, rows=2, model=model), sender=sender)
    assert ran.count("status") == {"ok": 2}
    assert all("gpt-4o" in name for name in ran.column("model"))
    assert sum(ran.column("cost_usd")) == pytest.approx(float(simulator.counters.billed_usd), rel=1e-12)


def test_the_in_flight_budget_charges_no_attempt(simulator: Running, tmp_path: Path) -> None:
    """402 for credit held by requests in flight: all rows are answered though each has few attempts."""
    simulator.change(latency=0.01, in_flight_budget="0.004")
    limits = {"attempts": 2, "concurrency": 20}
    ran = run(write_job(tmp_path, simulator.url, rows=60, limits=limits), clock=fast(20))
    assert ran.count("status") == {"ok": 60}
    assert simulator.counters.endings["limit:402-in-flight"] > 0


def test_a_rate_per_minute_of_the_server_loses_no_row(simulator: Running, tmp_path: Path) -> None:
    """20 requests a minute (here a shorter minute): all are answered, few are refused."""
    simulator.change(requests_per_minute=20, minute=0.3)
    ran = run(write_job(tmp_path, simulator.url, rows=80), clock=REAL_TIME)
    assert ran.count("status") == {"ok": 80}
    assert simulator.counters.requests < 80 + 60


# -- money


def test_a_cap_stops_the_run(simulator: Running, tmp_path: Path) -> None:
    """Exit 4 when no waiting question is admitted; what was spent stays below the cap; the next run resumes."""
    path = write_job(
        tmp_path,
        simulator.url,
        rows=50,
        model={"name": "openai/gpt-4o", "params": {"max_tokens": 100}},
        limits={"max_cost_usd": "0.003"},
    )
    ran = run(path)
    assert (ran.summary.exit_code, "max_cost_usd" in ran.summary.reason) == (LIMIT, True)
    assert 0 < ran.summary.ok < 50
    assert float(ran.summary.cost_usd) == float(simulator.counters.billed_usd) <= 0.003
    assert run(path, RunOptions(limit=1)).summary.ok == ran.summary.ok + 1


def test_repairs_are_requests_that_are_paid(simulator: Running, tmp_path: Path) -> None:
    """Rows + repairs requests, each in the cost; an answer that was repaired is ok."""
    columns = {"label": ["good", "bad"], "score": "integer"}
    path = write_job(tmp_path, simulator.url, rows=6, model="sim/not-json", answer={"columns": columns, "repairs": 2})
    ran = run(path)
    assert (simulator.counters.requests, ran.count("error_type")) == (18, {"schema_mismatch": 6})
    assert float(ran.summary.cost_usd) == float(simulator.counters.billed_usd)
    assert ran.column("attempts") == [3] * 6
    assert "prose" in ran.column("answer_raw")[0]


# -- signals


def signals(simulator: Running, *numbers: signal.Signals, after: int) -> threading.Thread:
    """Send signals to this process once that many requests have come, the second when the first has had its effect."""

    def send() -> None:
        end = time.monotonic() + 20
        while simulator.counters.requests < after:
            if time.monotonic() > end:
                return
            time.sleep(0.005)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@both_senders
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_what_is_in_flight_finish(
    sender: str, number: signal.Signals, exit_code: int, simulator: Running, tmp_path: Path
) -> None:
    """No new request starts, those under way are answered and kept, and the same command resumes."""
    simulator.change(latency=0.4)
    path = write_job(tmp_path, simulator.url, rows=60)
    thread = signals(simulator, number, after=10)
    ran = run(path, sender=sender, clock=REAL_TIME)
    thread.join()
    assert ran.summary.exit_code == exit_code
    assert 10 <= ran.summary.ok == simulator.counters.requests <= 30
    assert ran.summary.possibly_billed == 0
    simulator.change(latency=0.0)
    assert run(path, sender=sender).summary.exit_code == 0
    assert simulator.counters.requests == 60


@both_senders
def test_a_second_signal_aborts(sender: str, simulator: Running, tmp_path: Path) -> None:
    """It ends at once, though the server hangs; what was in flight is pending, and counted as possibly billed.

    Of a server that never answered nothing is known, so that the first request is the only one.
    """
    path = write_job(tmp_path, simulator.url, rows=60, model="sim/hang", limits={"timeout": 60})
    thread = signals(simulator, signal.SIGINT, signal.SIGINT, after=1)
    ran = run(path, sender=sender, clock=REAL_TIME)
    thread.join()
    assert (ran.summary.exit_code, ran.summary.pending, ran.summary.possibly_billed) == (130, 60, 1)
    assert ran.summary.seconds < 30
    assert rows_of(tmp_path, "SELECT sum(possibly_billed), sum(attempts), count(*) FROM answers") == [(1, 1, 1)]
