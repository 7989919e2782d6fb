"""outage: what a server that is down costs, form by form, in requests, rows and time. The clock is virtual."""

import asyncio
import itertools

import pytest
from pooling import Asked, answered, ask, lost, refused

from batchrun.errors import ExitCode
from batchrun.records import Fault, Reply

FORMS = {
    "refused connection": lost(Fault.CONNECT, sent=False),
    "unknown host": lost(Fault.DNS, sent=False),
    "reset": lost(Fault.RESET),
    "timeout": lost(Fault.TIMEOUT),
    **{str(code): refused(code) for code in (500, 502, 503, 504, 520, 529)},
    "a web page": Reply(502, {"content-type": "text/html"}, b"<html>Bad gateway</html>"),
    "a web page inside a 200": Reply(200, {"content-type": "text/html"}, b"<html>maintenance</html>"),
    "broken JSON": Reply(200, body=b'{"choices": [{"mess'),
    "an error inside a 200": Reply(200, body=b'{"error": {"code": 500, "message": "failed"}}'),
}
forms = pytest.mark.parametrize("form", FORMS)
ROWS = 196


def down(form: str, begin: float = 0.0, end: float = float("inf"), *, part: int = 1, questions: int = ROWS) -> Asked:
    """Ask a server that answers in 0.2 s and is down from `begin` to `end`, for one request in `part`."""
    count = 0

    async def answer(_: int, __: int) -> Reply:
        nonlocal count
        count += 1
        number = count
        now = asyncio.get_running_loop().time() - 1000
        await asyncio.sleep(0.2)
        return FORMS[form] if begin <= now < end and number % part == 0 else answered()

    return ask(answer, questions, concurrency=8, first_alone=True)


def rates_are_low(asked: Asked, begin: float) -> bool:
    """Check that from 2 s on the server gets one request a second for the first ten, later ever fewer."""
    times = [at for at, _ in asked.sent if at >= begin + 2]
    gaps = [second - first for first, second in itertools.pairwise(times)]
    return all(gap >= 0.99 for gap in gaps) and all(gap >= 29 for gap in gaps[18:])


@forms
def test_a_server_that_is_down_for_ever_fails_no_row(form: str) -> None:
    """The run ends with exit 3 after limits.patience, all rows pending, after a few dozen probes at most."""
    asked = down(form)
    assert asked.valve.exit_code == ExitCode.STOPPED_BY_API
    assert asked.statuses == ["pending"] * ROWS
    assert rates_are_low(asked, 0.0)
    assert len(asked.sent) < 65
    unreached = form in ("refused connection", "unknown host")
    assert asked.seconds == pytest.approx(60 if unreached else 900, abs=31)


@forms
def test_a_server_that_fails_in_mid_run_for_ever_leaves_rows_pending(form: str) -> None:
    """What was answered stays; the rest is pending, none failed."""
    asked = down(form, begin=1.0)
    assert asked.valve.exit_code == ExitCode.STOPPED_BY_API
    assert set(asked.statuses) == {"ok", "pending"}
    assert rates_are_low(asked, 1.0)


@forms
@pytest.mark.parametrize("begin", [0.0, 1.0])
def test_an_outage_of_twenty_seconds_fails_no_row(form: str, begin: float) -> None:
    """All rows are answered, and the server gets some twenty requests for nothing."""
    asked = down(form, begin=begin, end=begin + 20)
    assert asked.valve.exit_code == ExitCode.DONE
    assert asked.statuses == ["ok"] * ROWS
    assert len(asked.sent) <= ROWS + 36
    assert asked.seconds < 45


@forms
def test_a_server_that_fails_half_of_the_requests_fails_no_row(form: str) -> None:
    """Attempts of a row are apart in time, and a last round comes before a row is failed."""
    asked = down(form, part=2)
    assert asked.statuses == ["ok"] * ROWS
    assert len(asked.sent) < 2.2 * ROWS


@pytest.mark.parametrize("questions", [1, 2, 3, 9])
@pytest.mark.parametrize("form", ["500", "503", "broken JSON", "an error inside a 200", "reset", "timeout"])
def test_a_few_rows_that_always_fail_end_a_run_within_a_minute(form: str, questions: int) -> None:
    """With fewer than ten rows nobody knows whether rows or server are to blame: they fail, and are asked again."""
    asked = down(form, questions=questions)
    assert asked.statuses == ["failed"] * questions
    assert asked.valve.exit_code == ExitCode.DONE
    assert 30 <= asked.seconds < 60
    if form in ("broken JSON", "reset", "timeout"):
        assert len(asked.sent) <= 2 * questions


def poison(bad: set[int], reply: Reply, questions: int = 40, *, concurrency: int = 8, doubtful: bool = False) -> Asked:
    """Ask a server that always answers some questions with this reply, and all others well."""

    async def answer(number: int, _: int) -> Reply:
        await asyncio.sleep(0.2)
        return reply if number in bad else answered()

    return ask(answer, questions, concurrency=concurrency, first_alone=True, doubtful=len(bad) if doubtful else 0)


POISON = {"500": refused(500), "503": refused(503), "400": refused(400, "no"), "broken JSON": FORMS["broken JSON"]}


@pytest.mark.parametrize("reply", POISON)
@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("bad", [{1}, {40}, {20}, set(range(1, 21)), set(range(32, 41)), {3, 17, 33}], ids=str)
def test_rows_that_the_server_cannot_take_fail_alone(bad: set[int], concurrency: int, reply: str) -> None:
    """First, last, twenty at the start, nine at the end: they fail within a minute, others are untouched."""
    asked = poison(bad, POISON[reply], concurrency=concurrency)
    assert asked.valve.exit_code == ExitCode.DONE
    assert [number for number, status in enumerate(asked.statuses, 1) if status != "ok"] == sorted(bad)
    assert asked.statuses.count("failed") == len(bad)
    assert asked.seconds < 75


def test_a_row_that_is_refused_as_too_many_requests_for_ever_fails_alone() -> None:
    """Ten thousand tokens in one prompt never pass a limit of a minute: the row fails when the server works."""
    asked = poison({5}, refused(429, wait=1), 20)
    assert asked.statuses[4] == "failed"
    assert asked.statuses.count("ok") == 19
    assert asked.seconds < 90
