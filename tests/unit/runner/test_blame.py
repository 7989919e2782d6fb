"""outage: who is to blame for failures, rows or server. The clock is virtual."""

import asyncio
import itertools
import random
from collections import Counter

import pytest
from pooling import Asked, answered, ask, lost, refused

from batchrun.errors import ExitCode
from batchrun.records import Fault, Reply
from batchrun.runner.work import Work

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
ROWS = 196


def down(
    form: str,
    begin: float = 0.0,
    end: float = float("inf"),
    *,
    part: int = 1,
    questions: int = ROWS,
    attempts: int = 5,
) -> Asked:
    """Ask a server that answers in 0.2 s and is down from `begin` to `end`, for one request in `part`."""
    count = 0

    async def answer(_: int, __: int) -> Reply:
        nonlocal count
        count += 1
        number = count
        now = asyncio.get_running_loop().time() - 1000
        await asyncio.sleep(0.2)
        return FORMS[form] if begin <= now < end and number % part == 0 else answered()

    return ask(answer, questions, concurrency=8, first_alone=True, attempts=attempts)


def rates_are_low(asked: Asked, begin: float) -> bool:
    """Check that from 2 s on the server gets one request a second for the first ten, later ever fewer."""
    times = [at for at, _ in asked.sent if at >= begin + 2]
    gaps = [second - first for first, second in itertools.pairwise(times)]
    return all(gap >= 0.99 for gap in gaps) and all(gap >= 29 for gap in gaps[18:])


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


def poison(
    bad: set[int],
    reply: Reply,
    questions: int = 40,
    *,
    concurrency: int = 8,
    doubtful: bool = False,
    attempts: int = 5,
) -> Asked:
    """Ask a server that always answers some questions with this reply, and all others well."""

    async def answer(number: int, _: int) -> Reply:
        await asyncio.sleep(0.2)
        return reply if number in bad else answered()

    works = [
        Work(number, number - 1, (number,), doubtful=doubtful and number in bad) for number in range(1, questions + 1)
    ]
    return ask(
        answer,
        questions,
        concurrency=concurrency,
        first_alone=True,
        source=lambda: works,
        doubtful=len(bad) if doubtful else 0,
        attempts=attempts,
    )


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


def test_a_lost_reply_is_bought_three_times_at_most_beside_a_row_that_always_fails() -> None:
    """Where only such rows are open, the billed one sets the pace."""
    replies = {1: lost(Fault.RESET), 2: refused(500)}

    async def answer(number: int, _: int) -> Reply:
        await asyncio.sleep(0.2)
        return replies.get(number, answered())

    asked = ask(answer, 8, concurrency=8)
    assert asked.statuses[:3] == ["failed", "failed", "ok"]
    assert asked.order.count(1) == 3


@pytest.mark.parametrize("seed", range(40))
def test_a_lost_reply_is_bought_three_times_at_most_among_rows_of_all_kinds(seed: int) -> None:
    """Few bad rows that are left together look like an outage: its probes buy no fourth reply."""
    chance = random.Random(seed)  # noqa: S311  (a seed, not a secret)
    kinds = [lost(Fault.RESET), refused(500), refused(429), lost(Fault.RESET), refused(400), refused(500)]
    bad = dict(zip(chance.sample(range(1, 13), 6), kinds, strict=True))
    seconds = [chance.choice((0.001, 0.01, 0.2, 1.0)) for _ in range(12)]

    async def answer(number: int, _: int) -> Reply:
        await asyncio.sleep(seconds[number - 1])
        return bad.get(number, answered())

    asked = ask(answer, 12, concurrency=chance.choice((1, 2, 8)), attempts=chance.choice((3, 5)))
    assert max(asked.order.count(number) for number, reply in bad.items() if reply.fault is not None) <= 3


@pytest.mark.parametrize("concurrency", [1, 8])
def test_errors_of_good_rows_explain_no_lost_reply(concurrency: int) -> None:
    """Where the server refuses half of all requests, unbilled, a row whose replies are lost is bought three times."""
    times = Counter[int]()

    async def answer(number: int, _: int) -> Reply:
        prompt = 3 if number == 7 else number
        times[prompt] += 1
        await asyncio.sleep(0.002)
        if times[prompt] % 2:
            return refused(500)
        return FORMS["broken JSON"] if number == 2 else answered()

    asked = ask(answer, 8, concurrency=concurrency, attempts=3)
    assert [number for number, status in enumerate(asked.statuses, 1) if status != "ok"] == [2]
    assert asked.order.count(2) == 6


def test_a_row_that_is_refused_for_ever_is_not_the_only_probe() -> None:
    """In an outage the next probe is another question, where the last one was asked to wait."""
    times = Counter[int]()

    async def answer(number: int, _: int) -> Reply:
        times[number] += 1
        await asyncio.sleep(0.2)
        if number == 12:
            return refused(429)
        return FORMS["broken JSON"] if times[number] == 1 else answered()

    asked = ask(answer, 14, concurrency=1)
    assert [status for number, status in enumerate(asked.statuses, 1) if status != "ok"] == ["failed"]
    assert asked.seconds < 120


def test_a_row_that_is_refused_as_too_many_requests_for_ever_fails_alone() -> None:
    """Ten thousand tokens in one prompt never pass a limit of a minute: the row fails when the server works."""
    asked = poison({5}, refused(429, wait=1), 20)
    assert asked.statuses[4] == "failed"
    assert asked.statuses.count("ok") == 19
    assert asked.seconds < 90


@pytest.mark.parametrize("reply", POISON)
@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("number", [12, 20])
def test_many_bad_rows_at_the_end_of_a_file_are_not_an_outage(number: int, concurrency: int, reply: str) -> None:
    """A question that was kept back succeeds after they failed, so that the rows are to blame, in the first night."""
    bad = set(range(101 - number, 101))
    asked = poison(bad, POISON[reply], 100, concurrency=concurrency)
    assert asked.valve.exit_code == ExitCode.DONE
    assert [number for number, status in enumerate(asked.statuses, 1) if status == "failed"] == sorted(bad)
    assert asked.seconds < 120


@pytest.mark.parametrize("reply", POISON)
def test_questions_that_failed_while_others_succeeded_never_look_like_an_outage(reply: str) -> None:
    """Where only such are open, the run fails them within a minute."""
    asked = poison(set(range(1, 21)), POISON[reply], 20, doubtful=True)
    assert asked.statuses == ["failed"] * 20
    assert asked.seconds < 60


@pytest.mark.parametrize("form", ["refused connection", "500", "503", "broken JSON"])
@pytest.mark.parametrize("begin", [0.0, 1.0])
def test_one_attempt_a_row_outlasts_an_outage(form: str, begin: float) -> None:
    """`limits.attempts: 1` bounds what a row's own failures cost; an outage is none of them."""
    asked = down(form, begin=begin, end=begin + 20, attempts=1)
    assert asked.valve.exit_code == ExitCode.DONE
    assert asked.statuses == ["ok"] * ROWS


def test_a_row_with_one_attempt_is_asked_once() -> None:
    """Its failure is final as soon as another question succeeds."""
    asked = poison({3}, refused(500), attempts=1)
    assert asked.order.count(3) == 1
    assert asked.statuses[2] == "failed"


def test_an_answer_to_an_old_request_ends_no_outage() -> None:
    """A gateway that takes no new requests still brings the answers of those that it had taken before."""

    async def answer(number: int, _: int) -> Reply:
        await asyncio.sleep(5.0 * number if number <= 4 else 0.1)
        return answered() if number <= 4 else refused(502)

    asked = ask(answer, ROWS, concurrency=8, patience=60.0)
    assert asked.statuses[:4] == ["ok"] * 4
    assert set(asked.statuses[4:]) == {"pending"}
    assert rates_are_low(asked, 0.0)


def test_probes_go_on_while_an_old_request_hangs() -> None:
    """A request that was in flight when the server went down may hang for minutes."""

    async def answer(number: int, _: int) -> Reply:
        now = asyncio.get_running_loop().time() - 1000
        await asyncio.sleep(600 if number == 1 else 0.1)
        return answered() if number == 1 or now > 5 else refused(502)

    asked = ask(answer, 40, concurrency=8)
    assert asked.statuses == ["ok"] * 40
    assert max(at for at, _ in asked.sent) < 30
