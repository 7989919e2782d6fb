"""retry: when a question is asked again, and when not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.api.codes import TABLE, Action, Count
from batchrun.records import Status
from batchrun.runner.retry import BASE, CAP, LONGEST_WAIT, Decision, Tries, backoff, decide

jitters = st.floats(0, 1, exclude_max=True)


def asked(name: str, attempts: int = 5, limit: int = 50) -> tuple[int, Decision]:
    """Return how often a question is asked that always ends so, and the last decision."""
    tries = Tries()
    for number in range(1, limit + 1):
        decision = decide(TABLE[name], tries, attempts=attempts, jitter=0.5)
        if decision.becomes is not None:
            return number, decision
    return limit, decision


@pytest.mark.parametrize(
    ("name", "times", "action", "becomes"),
    [
        ("ok", 1, Action.ACCEPT, Status.OK),
        ("bad_request", 1, Action.FAIL, Status.FAILED),
        ("truncated", 1, Action.FAIL, Status.FAILED),
        ("schema_mismatch", 1, Action.FAIL, Status.FAILED),
        ("no_credit", 1, Action.STOP, Status.PENDING),
        ("daily_quota", 1, Action.STOP, Status.PENDING),
        ("server_error", 5, Action.FAIL, Status.FAILED),
        ("provider_rejected", 2, Action.FAIL, Status.FAILED),
        ("unauthorized", 2, Action.STOP, Status.PENDING),
        ("tls", 2, Action.STOP, Status.PENDING),
        ("timeout", 2, Action.FAIL, Status.FAILED),
        ("reset", 2, Action.FAIL, Status.FAILED),
        ("invalid_response", 2, Action.FAIL, Status.FAILED),
        ("empty_response", 4, Action.FAIL, Status.FAILED),
        ("connection", 5, Action.FAIL, Status.FAILED),
        ("edge_blocked", 5, Action.FAIL, Status.FAILED),
        ("no_provider_available", 5, Action.STOP, Status.PENDING),
        ("rate_limited", 50, Action.GATE, None),
        ("in_flight_budget", 50, Action.GATE, None),
        ("overloaded", 5, Action.FAIL, Status.FAILED),
    ],
)
def test_a_question_is_asked_so_often(name: str, times: int, action: Action, becomes: Status | None) -> None:
    """Each kind of failure has its own bound, and what comes after it."""
    number, decision = asked(name)
    assert (number, decision.action, decision.becomes) == (times, action, becomes)


@pytest.mark.parametrize("name", [ending.name for ending in TABLE.values() if ending.action is not Action.ACCEPT])
def test_one_attempt_means_never_again(name: str) -> None:
    """With limits.attempts = 1 no question is asked twice; behind a gate it stays pending."""
    number, decision = asked(name, attempts=1)
    assert number == 1
    if TABLE[name].count is Count.TIME:
        assert (decision.action, decision.becomes) == (Action.GATE, Status.PENDING)


def test_mixed_failures_never_exceed_the_attempts() -> None:
    """Counts are separate, their sum is bounded, and rate limits cost nothing."""
    tries = Tries()
    for name in ("server_error", "timeout", "rate_limited", "empty_response", "rate_limited", "server_error"):
        assert decide(TABLE[name], tries, attempts=5).becomes is None
    assert (tries.charged, tries.gated) == (4, 2)
    assert decide(TABLE["server_error"], tries, attempts=5).becomes is Status.FAILED


def test_a_mistake_of_the_job_stops_until_an_answer_has_come() -> None:
    """Bad parameters stop a run that has no answer yet, and fail one row of a run that has."""
    for proven, action in ((False, Action.STOP), (True, Action.FAIL)):
        assert decide(TABLE["bad_parameters"], Tries(), attempts=5, proven=proven).action is action


@given(st.integers(1, 200), jitters)
def test_backoff_is_exponential_with_full_jitter(number: int, jitter: float) -> None:
    """The wait lies between nothing and the doubled bound, which is capped."""
    assert 0 <= backoff(number, jitter) <= min(CAP, BASE * 2.0 ** min(number - 1, 60))
    assert backoff(1, 0.5) == 0.25
    assert backoff(4, 0.5) == 2.0


@given(st.floats(0, LONGEST_WAIT), jitters, st.sampled_from(["rate_limited", "server_error", "overloaded"]))
def test_no_retry_comes_before_the_server_asked(wait: float, jitter: float, name: str) -> None:
    """The server's wait is never shortened, and lengthened a little at most: by a tenth without a gate."""
    decision = decide(TABLE[name], Tries(), attempts=5, wait=wait, jitter=jitter)
    longest = wait * 1.1 if name == "server_error" else wait + 0.1
    assert wait <= decision.delay <= max(longest, wait + 0.1, BASE)
    assert decision.gate == (decision.delay if name != "server_error" else 0)


def test_a_wait_beyond_an_hour_stops_the_run() -> None:
    """Nobody waits longer than an hour: the question stays pending."""
    decision = decide(TABLE["rate_limited"], Tries(), attempts=5, wait=LONGEST_WAIT + 1)
    assert (decision.action, decision.becomes, decision.delay) == (Action.STOP, Status.PENDING, LONGEST_WAIT + 1)


def test_a_lone_refusal_without_a_wait_closes_no_gate() -> None:
    """The question backs off; all wait only when the refusals go on, each time longer."""
    gates = [decide(TABLE["rate_limited"], Tries(), attempts=5, jitter=0.5, closings=n).gate for n in range(4)]
    assert gates == [0.0, 0.5, 1.0, 2.0]


def test_empty_answers_wait_longer() -> None:
    """A cold model gets seconds, then half a minute; one that answers other rows is asked again soon."""
    tries = Tries()
    assert [decide(TABLE["empty_response"], tries, attempts=9).delay for _ in range(4)] == [4, 12, 30, 0]
    tries = Tries()
    delays = [decide(TABLE["empty_response"], tries, attempts=9, proven=True, jitter=1.0).delay for _ in range(4)]
    assert delays == [0.5, 1, 2, 0]


@given(st.lists(st.sampled_from(sorted(TABLE)), max_size=30), st.integers(1, 9), jitters)
def test_every_sequence_of_endings_is_bounded(names: list[str], attempts: int, jitter: float) -> None:
    """Whatever comes in whatever order: a question that is asked again has tries left, and waits a finite time."""
    tries = Tries()
    for name in names:
        decision = decide(TABLE[name], tries, attempts=attempts, jitter=jitter)
        assert 0 <= decision.gate <= decision.delay <= 72
        if decision.becomes is None:
            assert TABLE[name].count is not Count.NONE
            assert TABLE[name].count is Count.TIME or tries.charged < attempts
