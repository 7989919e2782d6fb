"""What people see during a run and at its end."""

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
from batchrun.runner.progress import PLAIN_EVERY, Bar, Goal, Pace, Plain, Ui, chosen, line
from batchrun.runner.work import Tally
from batchrun.terminal import coloured


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
    """Return the line after ten seconds at a rate."""
    pace = Pace(0.0, goal.per_minute)
    pace.observe(10.0, round(rate * 10))
    return line(goal, tally, pace, gate)


def test_the_line_has_all_that_is_asked_of_it() -> None:
    """Share and time left first, then questions done of all, ok, failed, money, rate, waiting for a retry."""
    tally = Tally(ok=380, failed=20, waiting=3, in_flight=16, limit=32, cost=1_230_000_000_000)
    assert shown(Goal(10_000, ok=4_090, failed=10), tally, rate=40) == (
        "45% 2 min 18 s left, 4,500/10,000: 4,470 ok, 30 failed, $1.23, 40.0/s, 3 to retry"
    )


@pytest.mark.parametrize("width", range(20, 120))
def test_the_line_fits_the_terminal(width: int) -> None:
    """Whatever the width, no part is cut off; share and time left come first, then failures, then money."""
    tally = Tally(ok=380, failed=20, waiting=3, oldest=30.0, cost=1_230_000_000_000)
    pace = Pace(0.0, None)
    pace.observe(10.0, 400)
    text = line(Goal(10_000, ok=4_090, failed=10), tally, pace, 0.0, width)
    assert len(text) <= width
    assert text.startswith("45% 2 min 18 s left")
    assert ("30 failed" in text) == (width >= len("45% 2 min 18 s left, 30 failed"))
    assert "$1.23" in text or width < len("45% 2 min 18 s left, 30 failed, $1.23")


def test_reading_a_large_input_shows_itself() -> None:
    """Nothing in the first second; then a line on a terminal, which goes away; in a pipe it comes after 5 s."""
    screen, clock = Screen(), Clock()
    bar = Bar(screen, clock)
    bar.plan(1_000)
    assert screen.getvalue() == ""
    clock.now = 1.5
    bar.plan(250_000)
    assert "reading the input: 250,000 rows" in screen.getvalue()
    bar.end()
    assert screen.getvalue().rpartition("\r")[0].endswith(" ")
    pipe, clock.now = io.StringIO(), 0.0
    plain = Plain(pipe, clock)
    for clock.now in (1.5, 4.9, 5.1, 20.0):
        plain.plan(int(clock.now * 10))
    assert pipe.getvalue() == "reading the input: 51 rows\n"


def test_colours_are_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """ok, warnings and failures are coloured on a terminal; NO_COLOR and pipes get plain text."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    text = "ok       key: x\nwarning  price: y\n5 of 9 rows answered, 4 failed, 0 failed"
    shown = coloured(text, Screen())
    assert shown.count("\x1b[0m") == 3
    assert re.sub("\x1b\\[[0-9]+m", "", shown) == text
    assert coloured(text, io.StringIO()) == text
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured(text, Screen()) == text


@given(total=st.integers(1, 10**7), missing=st.integers(1, 10**7))
def test_there_is_never_100_percent_while_something_is_open(total: int, missing: int) -> None:
    """One open question of ten million is not 100 %."""
    done = max(0, total - missing)
    assert not shown(Goal(total), Tally(ok=done)).startswith("100%")
    assert shown(Goal(total), Tally(ok=total)).startswith("100%")


def test_a_closed_gate_is_reported_with_its_time_and_its_reason() -> None:
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
    for kind in (Ui, Plain, Bar):
        stream = Screen()
        ui = kind(stream)
        stream.close()
        ui.start(Goal(2))
        ui.say("said")
        ui.warn("warned")
        ui.update(Tally(ok=1))
        ui.end()


class Recording(Ui):
    """Keeps what it is given."""

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
    """Return a summary with some fields changed."""
    fields = {
        "job": "x", "exit_code": 0, "reason": "done", "rows": 10, "ok": 10, "failed": 0, "pending": 0, "skipped": 0,
        "asked": 10, "requests": 12, "seconds": 65.0, "cost_usd": "0.5", "cost_today_usd": "1", "cost_total_usd": "2",
        "cost_output_usd": "1", "possibly_billed": 0, "errors": {}, "output": "/data/out/x.csv", "output_changed": True,
        "checkpoint": "/data/.batchrun/x.sqlite", "resume_at": None, "next": None,
    }  # fmt: skip
    known = {name: value for name, value in fields.items() if name in Summary.__dataclass_fields__}
    more: dict[str, object] = {"answers": {}, "failed_rows": {}, "error_messages": {}, "commands": (), "advice": None}
    missing = {name: more.get(name, 0) for name in Summary.__dataclass_fields__ if name not in known}
    return Summary(**{**missing, **known, **changes})  # type: ignore[arg-type]  # every field has its type above


def test_the_end_shows_counts_advice_money_time_output_and_what_next() -> None:
    """Each error comes with its number, one sentence of advice and its first rows; nothing is said twice."""
    last = summary(
        exit_code=1,
        reason="5 rows failed",
        failed=5,
        ok=5,
        errors={"rate_limited": 2, "content_policy": 3},
        answers={"topic": {"card": 3, "cash": 2}, "ok": {"true": 5}},
        failed_rows={"content_policy": (2, 7), "rate_limited": (1, 10)},
        commands=(("batchrun retry x.yaml", "asks the 5 failed rows again"), ("batchrun report x.yaml", "a page")),
    )
    means = {name: f"{TABLE[name].means}; {TABLE[name].do}" for name in last.errors}
    assert list(closing_lines(last, Path("/data"))) == [
        "x: 5 of 10 rows answered, 5 failed        1 min 05 s · 0.2 rows/s · $0.5000, $2.00 in all runs",
        "  topic  card 3 · cash 2",
        "  ok     true 5",
        f"  3 content_policy: {means['content_policy']}   (rows 2, 7, …)",
        f"  2 rate_limited: {means['rate_limited']}   (rows 1, 10)",
        "  written out/x.csv",
        "  next    batchrun retry x.yaml    asks the 5 failed rows again",
        "          batchrun report x.yaml   a page",
    ]
    assert "  written /data/out/x.csv" in list(closing_lines(last, Path("/home")))


def test_what_a_server_says_cant_move_the_cursor() -> None:
    """A reason is printed with its control characters as escapes, and says that the run stopped."""
    lines = list(closing_lines(summary(exit_code=3, reason="no \x1b[2Jcredit"), Path("/")))
    assert "  stopped: no \\x1b[2Jcredit" in lines
