"""breaker: what stops a run whose requests are refused for no known reason."""

from batchrun.money import ZERO
from batchrun.records import Outcome, Status
from batchrun.runner.blame import NOWHERE, PROBES, Breaker


def failure(number: int, error_type: str = "bad_request", code: int = 400) -> Outcome:
    """Return a failed outcome."""
    return Outcome(number, Status.FAILED, 0.0, error_type=error_type, error_code=code, cost=ZERO)


def test_equal_failures_probe_and_then_trip() -> None:
    """After that many equal failures requests go one at a time; fifteen more stop the run."""
    breaker = Breaker(3)
    for number in range(3 + PROBES):
        assert breaker.probing == (number >= 3)
        assert not breaker.tripped
        breaker.failure(failure(number), number)
    assert breaker.tripped
    assert len(breaker.unproven) == 3 + PROBES
    assert breaker.position == 0


def test_other_failures_begin_a_new_count() -> None:
    """Failures of another kind are not a streak, but stay without proof."""
    breaker = Breaker(2)
    breaker.failure(failure(1), 5)
    breaker.failure(failure(2, code=422), 6)
    assert not breaker.probing
    assert (len(breaker.unproven), breaker.position) == (2, 5)


def test_a_success_proves_the_failures_before_it() -> None:
    """After a success nothing is taken back any more."""
    breaker = Breaker(1)
    breaker.failure(failure(1), 5)
    breaker.success()
    assert (breaker.probing, breaker.unproven, breaker.position) == (False, [], NOWHERE)


def test_zero_never_trips() -> None:
    """`limits.breaker: 0` turns it off."""
    breaker = Breaker(0)
    for number in range(100):
        breaker.failure(failure(number), number)
    assert (breaker.probing, breaker.tripped) == (False, False)
