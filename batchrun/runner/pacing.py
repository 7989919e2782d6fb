"""When may one more request start: one gate for all, and rates as token buckets.

Time is an argument everywhere: `now` in seconds on a monotonic clock.
"""

import math

_RAMP = 0.1  # seconds in which the starts behind an opened gate double
_LONGEST_RAMP = 60.0
_RAMP_OVER = 1024  # starts after which a gate no longer counts
_DENSE, _FEWEST_DENSE = 4, 3  # one refusal in so many requests closes the gate, once there are so many


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
        """Give the seconds until one more request may start; 0 means now."""
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
        """Count a "not now" to a request sent at `sent_at`; give what retry.decide takes as `closings`.

        That is 0 where refusals are few among the requests since the last answer: noise closes no gate.
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

    def wait(self, now: float, n: float = 1) -> float:
        """Give the seconds until `n` can be taken; 0 means now."""
        self._fill(now)
        missing = min(n, self._burst) - self._level
        return missing / self._rate if missing > 1e-9 else 0.0  # noqa: PLR2004  (what rounding leaves)

    def take(self, now: float, n: float = 1) -> float:
        """Take `n` and give 0; or take nothing and give the seconds to wait."""
        wait = self.wait(now, n)
        if not wait:
            self._level -= n
        return wait

    def refund(self, now: float, n: float) -> None:
        """Give back what was taken but not used; a negative `n` charges what was used beyond."""
        self._fill(now)
        self._level = min(self._burst, self._level + n)

    def change(self, now: float, per_minute: float, burst: float) -> None:
        """Go on at another rate and burst; what was taken stays taken."""
        self._fill(now)
        self._rate, self._burst = per_minute / 60, max(1.0, burst)

    def _fill(self, now: float) -> None:
        if self._at == -math.inf:
            self._at = now
        elif now > self._at:
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
            self._at = now
