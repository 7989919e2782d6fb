"""What people see while a run goes on and at its end."""

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_running import run, write_job
from simulator_server import running

from batchrun.api.codes import TABLE
from batchrun.job import RunOptions
from batchrun.records import Summary
from batchrun.runner.closing import closing_lines
from batchrun.runner.progress import PLAIN_EVERY, Bar, Goal, Pace, Plain, Quiet, chosen, line
from batchrun.runner.work import Tally


class Clock:
    """A clock that is set by hand. Seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Screen(io.StringIO):
    """A stream that is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def shown(goal: Goal, tally: Tally, *, rate: float = 0.0, gate: float = 0.0) -> str:
    """Give the line after ten seconds at a rate."""
    pace = Pace(0.0, goal.per_minute)
    pace.observe(10.0, round(rate * 10))
    return line(goal, tally, pace, gate)


def test_the_line_has_all_that_is_asked_of_it() -> None:
    """Share and time left first, then questions done of all, ok, failed, money, rate, waiting for a retry."""
    tally = Tally(ok=380, failed=20, waiting=3, in_flight=16, limit=32, cost=1_230_000_000_000)
    assert shown(Goal(10_000, ok=4_090, failed=10), tally, rate=40) == (
        "45% 2 min 18 s left, 4,500/10,000: 4,470 ok, 30 failed, $1.23, 40.0/s, 3 to retry"
    )


@given(total=st.integers(1, 10**7), missing=st.integers(1, 10**7))
def test_there_is_never_100_percent_while_something_is_open(total: int, missing: int) -> None:
    """One open question of ten million is not 100 %."""
    done = max(0, total - missing)
    assert not shown(Goal(total), Tally(ok=done)).startswith("100%")
    assert shown(Goal(total), Tally(ok=total)).startswith("100%")


def test_a_closed_gate_is_told_with_its_time_and_its_reason() -> None:
    """While all wait for the server, the line says for how long and why, and the time left begins after that."""
    text = shown(Goal(200), Tally(ok=100, waiting_for="too many requests (for 9 s)"), rate=10, gate=300.0)
    assert "waiting: too many requests (for 9 s)" in text
    assert text.startswith("50% 5 min 10 s left, ")


def test_time_left_knows_the_rate_that_the_job_allows() -> None:
    """A burst at the start promises nothing that requests_per_minute forbids; the slower of both counts."""
    assert shown(Goal(160, per_minute=6), Tally(ok=100), rate=10).split("% ")[1].startswith("10 min 00 s left, ")
    assert shown(Goal(160, per_minute=6_000), Tally(ok=100), rate=10).split("% ")[1].startswith("6 s left, ")
    assert shown(Goal(160, per_minute=6), Tally()).split("% ")[1].startswith("26 min 40 s left, ")
    assert "left" not in shown(Goal(160), Tally())


def test_the_rate_is_of_the_last_minute_and_outlives_a_pause() -> None:
    """What was fast an hour ago is forgotten; in a pause longer than the window the whole run's rate stands in."""
    pace = Pace(0.0, None)
    for second in range(1, 101):
        pace.observe(second, second * 10)
    assert pace.rate == pytest.approx(10.0)
    for second in range(101, 201):
        pace.observe(second, 1_000 + second - 100)
    assert pace.rate == pytest.approx(1.0, rel=0.05)
    for second in range(201, 401):
        pace.observe(second, 1_100)
    assert pace.rate == pytest.approx(1_100 / 400)


def test_a_log_gets_a_line_after_5_seconds_and_each_half_minute() -> None:
    """Without a terminal there is a whole line after 5 seconds, then every 30, and no control character."""
    clock, stream = Clock(), io.StringIO()
    ui = Plain(stream, clock)
    ui.start(Goal(1_000))
    for second in range(1, 100):
        clock.now = float(second)
        ui.update(Tally(ok=second))
    ui.end()
    lines = stream.getvalue().splitlines()
    assert [text.split(":")[0].split(", ")[1] for text in lines] == [f"{n}/1,000" for n in (5, 35, 65, 95)]
    assert stream.getvalue().isprintable() or set(re.findall(r"[^ -~]", stream.getvalue())) == {"\n"}
    assert PLAIN_EVERY == 30


def test_the_bar_begins_where_earlier_runs_ended() -> None:
    """On a terminal a resumed run's bar is drawn at once with what is settled already, and text goes above it."""
    screen = Screen()
    ui = chosen(quiet=False, stream=screen)
    assert isinstance(ui, Bar)
    ui.start(Goal(200, ok=90, failed=10))
    assert "50%, 100/200: 90 ok, 10 failed" in screen.getvalue()
    ui.warn("the key\x1b[31m can't be checked")
    ui.update(Tally(ok=100))
    ui.end()
    assert "the key\\x1b[31m can't be checked\n" in screen.getvalue()
    assert "100%, 200/200: 190 ok, 10 failed" in screen.getvalue().splitlines()[-1]


def test_a_closed_stream_never_stops_a_run() -> None:
    """A reader of stderr that is gone loses lines, nothing else."""
    for kind in (Quiet, Plain, Bar):
        stream = Screen()
        ui = kind(stream)
        stream.close()
        ui.start(Goal(2))
        ui.say("said")
        ui.warn("warned")
        ui.update(Tally(ok=1))
        ui.end()


class Recording(Quiet):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.goals: list[Goal] = []
        self.lines: list[str] = []
        self.last = Tally()

    def start(self, goal: Goal) -> None:
        self.goals.append(goal)

    def update(self, tally: Tally, gate: float = 0.0) -> None:  # noqa: ARG002  (the protocol's)
        self.last = tally

    def say(self, line: str) -> None:
        self.lines.append(line)

    warn = say


def test_totals_are_right_across_resumes(tmp_path: Path) -> None:
    """With --limit the total is what is asked; a resumed run counts what stands, and ends where all is settled."""
    with running() as simulator:
        texts = [f"text {number // 2}" for number in range(20)]
        path = write_job(tmp_path, simulator.url, rows=texts)
        first, second = Recording(), Recording()
        run(path, RunOptions(limit=4), ui=first)
        run(path, ui=second)
    assert first.goals == [Goal(4)]
    assert second.goals == [Goal(10, ok=4)]  # equal rows are one question
    assert (second.last.ok, second.last.failed) == (6, 0)


def test_failed_rows_bring_no_lines(tmp_path: Path) -> None:
    """A thousand failures are numbers in the line and in the summary, never a warning for each."""
    with running(faults={"403-moderated:always": 0.5}) as simulator:
        ui = Recording()
        ended = run(write_job(tmp_path, simulator.url, rows=60), ui=ui)
    assert ended.summary.failed > 10
    assert ui.lines == []


def summary(**changes: object) -> Summary:
    """Give a summary with some fields changed."""
    fields = {
        "job": "x", "exit_code": 0, "reason": "done", "rows": 10, "ok": 10, "failed": 0, "pending": 0, "skipped": 0,
        "asked": 10, "requests": 12, "seconds": 65.0, "cost_usd": "0.5", "cost_today_usd": "1", "cost_total_usd": "2",
        "cost_output_usd": "1", "possibly_billed": 0, "errors": {}, "output": "/data/out/x.csv", "output_changed": True,
        "checkpoint": "/data/.batchrun/x.sqlite", "resume_at": None, "next": None,
    }  # fmt: skip
    known = {name: value for name, value in fields.items() if name in Summary.__dataclass_fields__}
    missing = {name: 0 for name in Summary.__dataclass_fields__ if name not in known}
    return Summary(**{**missing, **known, **changes})  # type: ignore[arg-type]  # every field has its type above


def test_the_end_tells_counts_advice_money_time_output_and_what_next() -> None:
    """Each error comes with its number and one sentence of advice; the output is named as the user would write it."""
    errors = {"rate_limited": 2, "content_policy": 3}
    last = summary(exit_code=1, reason="5 rows failed", failed=5, ok=5, errors=errors, next="`batchrun retry x.yaml`")
    lines = list(closing_lines(last, Path("/data")))
    assert lines[0] == "10 rows: 5 ok, 5 failed, 0 pending"
    assert lines[1] == f"  3 content_policy: {TABLE['content_policy'].means}; {TABLE['content_policy'].do}"
    assert lines[2].startswith("  2 rate_limited: ")
    assert lines[3:] == [
        "12 requests in 1 min 05 s, $0.5000 this run, $2.00 in all",
        "output: out/x.csv",
        "5 rows failed",
        "`batchrun retry x.yaml`",
    ]
    assert "output: /data/out/x.csv" in list(closing_lines(last, Path("/home")))


def test_what_a_server_says_cant_move_the_cursor() -> None:
    """A reason is printed with its control characters as escapes, and says that the run stopped."""
    lines = list(closing_lines(summary(exit_code=3, reason="no \x1b[2Jcredit"), Path("/")))
    assert "stopped: no \\x1b[2Jcredit" in lines
