"""breaker: what stops a run that gets nowhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.records import Outcome, Status
from batchrun.runner.breaker import NOWHERE, Breaker, Patience
from batchrun.runner.retry import GATE_PATIENCE


def failure(question: int, error_type: str = "bad_request", code: int = 400) -> Outcome:
    return Outcome(question, Status.FAILED, 0.0, error_type=error_type, error_code=code)


def test_it_trips_after_so_many_equal_failures() -> None:
    """The last one that is needed brings back all of them; later ones come back alone, whatever they are."""
    breaker = Breaker(3)
    first, second, third = (failure(number) for number in (1, 2, 3))
    given_back = [breaker.failure(outcome, outcome.question) for outcome in (first, second, third)]
    assert given_back == [[], [], [first, second, third]]
    assert breaker.tripped
    late = failure(4, "forbidden", 403)
    assert breaker.failure(late, 3) == [late]


@pytest.mark.parametrize("other", [failure(9, "forbidden"), failure(9, code=418)])
def test_another_failure_begins_another_streak(other: Outcome) -> None:
    """Equal is the type and the code."""
    breaker = Breaker(2)
    assert breaker.failure(failure(1), 0) == []
    assert breaker.failure(other, 1) == []
    assert breaker.failure(failure(2), 2) == []
    assert not breaker.tripped


def test_a_success_begins_the_count_anew_but_mends_no_tripped_breaker() -> None:
    """Rows that were taken back stay so when a reply in flight turns out well."""
    breaker = Breaker(2)
    breaker.failure(failure(1), 0)
    breaker.success()
    assert breaker.failure(failure(2), 1) == []
    assert breaker.failure(failure(3), 2) != []
    breaker.success()
    assert breaker.tripped
    assert breaker.position == 1


def test_zero_never_trips_and_holds_nothing() -> None:
    """Without a breaker no failure is taken back, however many."""
    breaker = Breaker(0)
    assert [breaker.failure(failure(number), number) for number in range(100)] == [[]] * 100
    assert (breaker.tripped, breaker.position) == (False, NOWHERE)


@given(st.integers(1, 6), st.lists(st.sampled_from(["ok", "bad_request", "forbidden"]), max_size=30))
def test_what_may_be_taken_back_is_never_below_the_position(after: int, events: list[str]) -> None:
    """Whatever comes: what the breaker gives back once lies at or behind the position that it told before."""
    breaker = Breaker(after)
    streak: list[int] = []
    for position, event in enumerate(events):
        if event == "ok":
            breaker.success()
            streak.clear()
            continue
        told = breaker.position
        outcome = failure(position, event)
        taken_back = breaker.failure(outcome, position)
        if len(taken_back) > 1:
            assert told <= min(one.question for one in taken_back)
            assert len(taken_back) == after
            assert {one.error_type for one in taken_back} == {event}
            return


def test_patience_lasts_fifteen_minutes_since_the_first_refusal() -> None:
    """Waiting before the first "not now" does not count, and an answer makes it whole."""
    patience = Patience()
    assert patience.lost(1e6) == 0
    patience.refused(1e6, 10)
    patience.refused(1e6 + 800, 10)
    assert patience.lost(1e6 + GATE_PATIENCE) == 0
    assert patience.lost(1e6 + GATE_PATIENCE + 1) == GATE_PATIENCE + 1
    patience.answered()
    assert patience.lost(2e6) == 0


def test_a_longer_wait_that_was_told_extends_the_patience_once() -> None:
    """There is a try after the wait; a server that goes on like that is given up within twice an hour."""
    patience = Patience()
    patience.refused(0, 2_400)
    assert patience.lost(2_401) == 0
    patience.refused(2_401, 2_400)
    assert patience.lost(4_801) > 0
