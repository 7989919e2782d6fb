"""pool: whatever comes back in whatever order, it ends, and the books are right."""

import asyncio
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pooling import TYPED, Asked, answered, ask, lost, refused

from batchrun.api.codes import ASKED_AGAIN, TABLE
from batchrun.api.judge import judge
from batchrun.errors import ExitCode
from batchrun.money import Pico
from batchrun.prompt.answers import AnswerForm
from batchrun.records import Fault, Reply
from batchrun.runner.budget import Budget

WORST = Pico(2 * 10**9)
GOOD = answered('{"label": "good"}')
REPLIES: dict[str, Reply] = {
    "ok": GOOD,
    "ok, unpriced": answered('{"label": "bad"}', cost=None),
    "schema_mismatch": answered("no JSON"),
    "truncated": answered('{"lab', finish_reason="length"),
    "content_filter": answered("", finish_reason="content_filter"),
    "empty_response": answered("", cost=None),
    "no_answer": answered(""),
    "interrupted": answered("part", finish_reason="unheard_of"),
    "server_error, in the reply": answered("part", cost=None, finish_reason="error"),
    "invalid_response": Reply(200, body=b'{"choices": [{"mess'),
    "edge_blocked": Reply(403, {"content-type": "text/html"}, b"<html><title>no</title></html>"),
    "bad_request": refused(400),
    "bad_parameters": refused(400, "Invalid schema for response_format 'answer'"),
    "invalid_model": refused(400, "x is not a valid model ID"),
    "provider_rejected": refused(400, "Provider returned error", provider_name="P", raw="no"),
    "unauthorized": refused(401, "User not found."),
    "no_credit": refused(402, "Insufficient credits."),
    "in_flight_budget": refused(402, wait=3, limit_source="openrouter_in_flight_budget"),
    "content_policy": refused(403, reasons=["violence"]),
    "not_found": refused(404),
    "rate_limited": refused(429),
    "rate_limited, told": refused(429, wait=20),
    "rate_limited, long": refused(429, wait=2_000),
    "rate_limited, too long": refused(429, wait=10_000),
    "server_error": refused(500),
    "overloaded": refused(503, wait=1),
    "no_provider_available": refused(503, "There is no available model provider"),
    "bad_request, teapot": refused(418),
    "timeout": lost(Fault.TIMEOUT),
    "reset": lost(Fault.RESET),
    "connection": lost(Fault.DNS, sent=False),
    "tls": lost(Fault.TLS, sent=False),
    "response_too_large": lost(Fault.TOO_LARGE),
}
SECONDS = (0.0, 0.1, 3.0, 90.0)


@dataclass(frozen=True)
class Course:
    """How a run goes: what each request meets, and when somebody stops it."""

    questions: int
    script: tuple[tuple[str, float], ...]
    settings: dict[str, Any]
    cap: int | None
    jitter: float
    closes: float | None
    aborts: float | None


courses = st.builds(
    Course,
    questions=st.integers(0, 8),
    script=st.lists(st.tuples(st.sampled_from(sorted(REPLIES)), st.sampled_from(SECONDS)), max_size=40).map(tuple),
    settings=st.fixed_dictionaries(
        {
            "concurrency": st.integers(1, 5),
            "attempts": st.integers(1, 5),
            "repairs": st.integers(0, 2),
            "breaker": st.integers(0, 4),
            "grace": st.sampled_from([0.0, 2.0, 100.0]),
            "max_failed": st.none() | st.integers(0, 3),
            "deadline": st.none() | st.sampled_from([0.0, 1.0, 50.0]),
            "openrouter": st.booleans(),
        }
    ),
    cap=st.none() | st.integers(0, 12),
    jitter=st.floats(0, 1, exclude_max=True),
    closes=st.none() | st.sampled_from([0.0, 0.05, 1.0, 40.0]),
    aborts=st.none() | st.sampled_from([0.05, 2.0, 60.0]),
)


def follow(course: Course) -> tuple[Asked, Budget]:
    """Run the pool through a course."""
    cap = None if course.cap is None else Pico(course.cap * WORST // 2)
    budget = Budget(cap)
    script = iter(course.script)

    async def answer(_: int, __: int) -> Reply:
        name, seconds = next(script, ("ok", 0.1))
        assert cap is None or budget.spent + budget.reserved <= cap
        await asyncio.sleep(seconds)
        return REPLIES[name]

    moments = {}
    if course.closes is not None:
        moments[course.closes] = lambda asked: asked.valve.close(ExitCode.SIGINT, "interrupted")
    if course.aborts is not None:
        moments[course.aborts] = lambda asked: asked.valve.closed and asked.valve.abort()
    asked = ask(
        answer,
        course.questions,
        form=TYPED,
        budget=budget,
        worst_case=lambda *_: WORST,
        jitter=course.jitter,
        at=moments,
        **course.settings,
    )
    return asked, budget


@settings(max_examples=150)
@given(courses)
def test_every_course_ends_with_each_question_accounted_for(course: Course) -> None:
    """It never hangs; each question is answered, failed, or pending for a reason; requests, counts and money add up."""
    asked, budget = follow(course)
    assert asked.crash is None
    statuses = asked.statuses
    if not asked.valve.closed and course.settings["attempts"] > 1:
        assert "pending" not in statuses
    tally = asked.pool.tally
    assert (tally.ok, tally.failed) == (statuses.count("ok"), statuses.count("failed"))
    assert sum(tally.errors.values()) == tally.failed
    assert tally.requests == len(asked.sent) == sum(one.attempts for one in asked.keep.outcomes)
    assert tally.possibly_billed == sum(one.possibly_billed for one in asked.keep.outcomes)
    assert tally.cost == budget.spent == sum(one.cost for one in asked.keep.outcomes)
    assert asked.peak <= course.settings["concurrency"]
    assert asked.in_flight == 0


@settings(max_examples=150)
@given(courses)
def test_permits_come_back_and_the_cap_holds(course: Course) -> None:
    """What is not in flight holds no slot and no bytes; spent and reserved never exceed the cap."""
    asked, budget = follow(course)
    given_up = sum(one.error_message is not None and "given up" in one.error_message for one in asked.keep.outcomes)
    assert asked.limits.in_flight == given_up
    assert (asked.limits._bytes == 0) is (given_up == 0)
    if not asked.valve.aborted:
        assert given_up == 0
    if course.cap is not None:
        assert budget.spent + budget.reserved <= course.cap * WORST // 2


@settings(max_examples=150)
@given(courses)
def test_no_low_water_passes_an_open_question(course: Course) -> None:
    """Whenever the run had been killed: all below the mark that was noted then was final, and stayed so."""
    asked, _ = follow(course)
    last = asked.keep.last
    for mark in (*asked.low_waters, asked.pool.low_water):
        for number in range(1, min(mark, course.questions) + 1):
            outcome = last[number]
            assert outcome.status != "pending"
            assert outcome.error_type not in ASKED_AGAIN


def test_the_replies_are_what_they_are_called() -> None:
    """Each of them is judged as its name says, so that the courses reach what they are meant to reach."""
    assert isinstance(TYPED, AnswerForm)
    for name, reply in REPLIES.items():
        expected = name.partition(",")[0]
        verdict = judge(reply, TYPED.parse, now=0.0)
        assert verdict.ending == expected
        assert expected in TABLE
