"""All limits that a request must pass: requests in flight, waits that the server asks for, rates, bytes, the budget.

Times are seconds; `now` is monotonic and always an argument.
"""

import math
from http import HTTPStatus
from typing import NamedTuple, Self

from batchrun.api import Blame, Ending
from batchrun.money import Pico
from batchrun.runner.budget import Budget

BYTES_IN_FLIGHT = 256 * 2**20
NOW = 0.0
ON_CHANGE = math.inf
"""Wait until something in flight ends."""

SMALLEST_ROUND = 8  # answers; fewer say nothing about latency
NOISE, TIMES_NOISE = 0.03, 3.0  # the share of refusals at first; as many as usual end a step up
HEAVY = 0.1  # of a limit that held being refused halves it
SOON = 12  # answers per request in flight; a server's wait after fewer does not end a quota: it lowers the limit
QUIET_ANSWERS, QUIET_ROUNDS = 200, 20  # without a refusal before the next step up
SHORTEST_QUIET, QUIET_WAITS, LONGEST_QUIET = 10.0, 40.0, 300.0  # seconds, and times what the server asked to wait
NOTABLE_GROWTH = 1.5  # of the limit, from which latency is compared
SATURATED = 0.7  # of that growth is eaten by latency: more in flight brings no more answers

_RAMP = 0.1  # seconds in which the starts behind an opened gate double
_LONGEST_RAMP = 60.0
_RAMP_OVER = 1024  # starts after which a gate no longer counts
_DENSE, _FEWEST_DENSE = 4, 3  # one refusal in 4 requests closes the gate, once there are 3


class AdaptiveLimit:
    """How many requests may be in flight, by what the server takes: additive increase, multiplicative decrease.

    It doubles from `start` until the server refuses requests or latency grows as fast as the limit (a server that
    queues). After a long quiet time it is raised in steps of 1, 2, 4, …, each held for a round of replies; refusals
    put it back to what held. Many refusals of a limit that held halve it, at most once per round trip. Only answers
    raise it: a proxy that replies 502 within a millisecond has no capacity to offer.
    """

    def __init__(self, ceiling: int, start: int = 8) -> None:
        self.limit = self._held = min(start, ceiling)
        self._ceiling = ceiling
        self._step = start if start < ceiling else 0
        self._reference: tuple[int, float] | None = None
        self._lowered_at = self._wait_asked_at = self._grows_at = -math.inf
        self._answers, self._noise = 0, NOISE
        self._round_at = -math.inf
        self._replies = self._full = self._peak = self._refusals = 0
        self._seconds = 0.0

    def record_answer(self, now: float, seconds: float, in_flight: int) -> None:
        """Learn from an answer: its seconds, and how many other requests were in flight."""
        self._answers += 1
        if now - seconds < self._round_at:
            return
        self._replies += 1
        self._seconds += seconds
        self._full += in_flight + 1 >= self.limit
        if self._peak <= in_flight:
            self._peak = max(self._peak, min(in_flight + 1, self.limit))
        if self._replies >= SMALLEST_ROUND and self._replies >= self._peak:
            self._end_round(now)

    def record_refusal(self, now: float, seconds: float, in_flight: int, wait: float | None = None) -> None:
        """Learn from a refusal; `wait` is the seconds that the server asked for."""
        sent_at = now - seconds
        if sent_at < self._lowered_at:  # it was counted as taken when the limit was lowered
            self.limit = max(self._held, self.limit - 1)
            return
        if sent_at < self._wait_asked_at:
            return
        self._refusals += 1
        taken = max(1, min(in_flight, self.limit))
        if wait is not None:
            if self._step:
                self._lower(now, max(self._held, taken), wait)
            elif self._answers < SOON * self.limit:
                self._held = 1
                self._lower(now, min(taken, max(1, self.limit // 2)), wait)
            self._wait_asked_at, self._answers = now, 0
        elif self.limit > self._held:
            if self._refusals > TIMES_NOISE * self._noise * self.limit:
                self._lower(now, max(self._held, taken))
        elif self._refusals > max(2, HEAVY * self.limit):
            self._held = max(1, self.limit // 2)
            self._lower(now, self._held)

    def _end_round(self, now: float) -> None:
        full = self._full >= self._replies / 2
        if full and self._is_saturated(self._seconds / self._replies):
            self._lower(now, self._held)
            return
        self._held = self.limit
        self._noise += 0.2 * (self._refusals / (self._replies + self._refusals) - self._noise)
        if not self._step:
            quiet = self._answers >= max(QUIET_ANSWERS, QUIET_ROUNDS * self._peak) and now >= self._grows_at
            self._step = int(quiet)
        if full and self._step:
            self.limit = min(self.limit + self._step, self._ceiling)
            self._step = min(self._step * 2, self._ceiling)
        self._start_round(now)

    def _is_saturated(self, mean: float) -> bool:
        """Check whether latency grew as fast as the limit, so that more in flight brings no more answers."""
        if self._reference is None or self.limit <= self._reference[0]:
            usual = self._reference[1] if self._reference else mean
            self._reference = (self.limit, 0.8 * usual + 0.2 * mean)
            return False
        growth = self.limit / self._reference[0]
        if growth < NOTABLE_GROWTH:
            return False
        if mean >= self._reference[1] * (1 + SATURATED * (growth - 1)):
            self._held = self._reference[0]
            return True
        self._reference = (self.limit, mean)
        return False

    def _lower(self, now: float, limit: int, wait: float = 0.0) -> None:
        self.limit, self._step, self._answers = limit, 0, 0
        self._lowered_at = now
        self._grows_at = now + min(max(SHORTEST_QUIET, QUIET_WAITS * wait), LONGEST_QUIET)
        self._start_round(now)

    def _start_round(self, now: float) -> None:
        self._round_at = now
        self._replies = self._full = self._peak = self._refusals = 0
        self._seconds = 0.0


class Gate:
    """Closed for all when the server says "not now".

    A gate that opens lets one request through and then doubles the starts each 0.1 s, so that a server which is still
    at its limit says so to a few. Each closing in a row, without an answer in between, makes that four times slower:
    the first request is then a probe.
    """

    def __init__(self) -> None:
        self._closings = 0
        self._until = self._closed_at = -math.inf
        self._ramp = _RAMP_OVER
        self._starts = self._refusals = 0

    def wait(self, now: float) -> float:
        """Return the seconds until one more request may start; 0: now."""
        if self._ramp >= _RAMP_OVER:
            return 0.0
        doubling = min(_RAMP * 4.0 ** max(0, self._closings - 1), _LONGEST_RAMP)
        return max(0.0, self._until + doubling * math.log2(self._ramp + 1) - now)

    def started(self) -> None:
        """Count a request that starts."""
        self._starts += 1
        if self._ramp < _RAMP_OVER:
            self._ramp += 1

    def refused(self, sent_at: float) -> int:
        """Count a "not now" to a request sent at `sent_at`; return how often the gate closed, at least 1.

        0 where refusals are few among the requests since the last answer: noise closes no gate.
        """
        if sent_at < self._closed_at:
            return 0
        self._refusals += 1
        dense = self._refusals >= _FEWEST_DENSE and self._refusals * _DENSE >= self._starts
        return max(1, self._closings) if dense else 0

    def close(self, now: float, delay: float, sent_at: float) -> None:
        """Close for `delay` seconds, because of the reply to a request sent at `sent_at`; 0 does nothing."""
        if delay <= 0:
            return
        if sent_at >= self._closed_at:
            self._closings += 1
            self._closed_at = now
        self._until = max(self._until, now + delay)
        self._ramp = self._starts = self._refusals = 0

    def answered(self, now: float) -> None:
        """Take note of an answer: the server works, so what waits for the ramp goes faster. It opens nothing early."""
        self._starts = self._refusals = 0
        if self._closings:
            self._closings = 0
            if self._ramp < _RAMP_OVER:
                self._until, self._ramp = max(self._until, now), 0


class TokenBucket:
    """A rate per minute; `burst` is what may be taken at once after a pause (default: one second's worth, at least 1).

    It starts with one token, so that the first minute holds the rate too. More than the burst may be taken when the
    bucket is full; it then goes into debt.
    """

    def __init__(self, per_minute: float, burst: float | None = None) -> None:
        self._rate = per_minute / 60
        self._burst = max(1.0, self._rate if burst is None else burst)
        self._level = 1.0
        self._at = -math.inf

    @classmethod
    def of(cls, per_minute: float | None) -> Self | None:
        """Return a bucket for a rate that may be missing."""
        return cls(per_minute) if per_minute else None

    def wait(self, now: float, n: float = 1) -> float:
        """Return the seconds until `n` can be taken; 0: now."""
        self._fill(now)
        missing = min(n, self._burst) - self._level
        return missing / self._rate if missing > 1e-9 else 0.0  # noqa: PLR2004  (what rounding leaves)

    def take(self, now: float, n: float = 1) -> float:
        """Take `n` and return 0; or take nothing and return the seconds to wait."""
        wait = self.wait(now, n)
        if not wait:
            self._level -= n
        return wait

    def refund(self, now: float, n: float) -> None:
        """Return an unused amount; a negative `n` charges more."""
        self._fill(now)
        self._level = min(self._burst, self._level + n)

    def _fill(self, now: float) -> None:
        if self._at == -math.inf:
            self._at = now
        elif now > self._at:
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
            self._at = now


class Permit(NamedTuple):
    """What one request needs: bytes, tokens, picodollars. It is given back when the request ends."""

    size: int
    tokens: int
    reserved: Pico
    estimate: Pico


class Limits:
    """Grants a request all that it needs, or nothing."""

    def __init__(
        self,
        limit: AdaptiveLimit,
        gate: Gate,
        budget: Budget,
        *,
        requests: TokenBucket | None = None,
        tokens: TokenBucket | None = None,
        fixed: bool = False,
    ) -> None:
        self._fixed = fixed
        self.limit, self.gate, self.budget = limit, gate, budget
        self._requests, self._tokens = requests, tokens
        self.in_flight = 0
        self._bytes = 0
        self.over_cap: Pico | None = None

    def permit(self, size: int, tokens: int, estimate: Pico) -> Permit:
        """Return what a request needs that is expected to cost an estimate at most."""
        return Permit(size, tokens, self.budget.amount(estimate), estimate)

    def wait_before_any(self, now: float) -> float:
        """Return the seconds until any request may start, ON_CHANGE if all slots are taken."""
        if self.in_flight >= self.limit.limit:
            return ON_CHANGE
        return self.gate.wait(now)

    def take(self, now: float, permit: Permit) -> float:
        """Grant the permit and return NOW, or the seconds after which to try again; ON_CHANGE if time alone won't do.

        `over_cap` is the amount that the budget refused, if that was the reason.
        """
        self.over_cap = None
        if self.in_flight and self._bytes + permit.size > BYTES_IN_FLIGHT:
            return ON_CHANGE
        if self._requests and (wait := self._requests.wait(now, 1)) > 0:
            return wait
        if self._tokens and (wait := self._tokens.wait(now, permit.tokens)) > 0:
            return wait
        if (wait := self.budget.wait(permit.reserved)) > 0:
            return wait
        if not self.budget.reserve(permit.reserved):
            self.over_cap = permit.reserved
            return ON_CHANGE
        if self._requests:
            self._requests.take(now, 1)
        if self._tokens:
            self._tokens.take(now, permit.tokens)
        self.gate.started()
        self.in_flight += 1
        self._bytes += permit.size
        return NOW

    def learn(self, ending: Ending, now: float, seconds: float, wait: float | None, *, answered: bool) -> None:
        """Let the limit learn from a reply that took `seconds` and asked for a `wait`; faults teach nothing.

        `answered` says whether the model wrote something while no outage was declared.

        A number that the job fixes is lowered only where the account's budget forces it. A wait counts only with a rate
        limit: a 503 with Retry-After may come from a restart.
        """
        if answered and ending.blames is not Blame.SERVER:
            self.limit.record_answer(now, seconds, self.in_flight)
        elif ending.slows and (not self._fixed or ending.code == HTTPStatus.PAYMENT_REQUIRED):
            asked = wait if ending.code == HTTPStatus.TOO_MANY_REQUESTS else None
            self.limit.record_refusal(now, seconds, self.in_flight, asked)

    def give_back(self, now: float, permit: Permit, *, spent: Pico, keep: bool, tokens: int | None) -> None:
        """End a request: `spent` is settled, `keep` leaves the reservation (it may be billed), `tokens` were used."""
        self.in_flight -= 1
        self._bytes -= permit.size
        self.budget.settle(permit.reserved, spent, keep=keep, estimate=permit.estimate)
        if self._tokens and tokens is not None:
            self._tokens.refund(now, permit.tokens - tokens)
