"""How many requests now: one gate for all, rates as token buckets, and a limit that adapts to the server.

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

    def change(self, now: float, per_minute: float) -> None:
        """Go on at another rate; what was taken stays taken."""
        self._fill(now)
        self._rate = per_minute / 60

    def _fill(self, now: float) -> None:
        if self._at == -math.inf:
            self._at = now
        elif now > self._at:
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
            self._at = now


_SMALLEST_ROUND = 8  # replies; fewer say nothing about latency
_TOLERATED_DOUBLING = 0.1  # of a round's replies may be "not now" before a doubled limit is given up
_TIMES_NOISE = 3.0  # as many as usual may be "not now" before a slightly larger limit is given up
_HEAVY = 0.1  # of a round's replies being "not now" halves a limit that had held
_FEWEST_HEAVY = 3
_QUIET_REPLIES, _QUIET_ROUNDS = 200, 20  # without any "not now" before the next cautious step up
_QUIET_SECONDS, _QUIET_PAUSES, _LONGEST_QUIET = 10.0, 40.0, 300.0
_IDLE_PACE = 4.0  # times the answers per second: such a pace holds nothing back
_NOISE = 100  # fewer refusals than one in so many answers are noise
_LONG_ENOUGH = 10.0  # seconds; in a shorter time the pause behind the gate hides the true rate
_FEWEST_TO_LEARN = 10  # answers between two "wait" that tell a rate
_PACE_STEP = 0.02
_PACE_BURST = 0.1  # seconds' worth, so that a pause is not followed by a crowd
_NOTABLE = 1.5  # growth of the limit from which latency is compared
_SATURATED = 0.7  # of the growth in flight is eaten by latency: more in flight brings no more answers


class AdaptiveLimit:
    """How many requests may be in flight, learned from the server's replies.

    Doubles from `start` until the server says "not now" or latency grows in step with the limit (a server that queues).
    The last limit that held a whole round is then kept, and a larger one tried in growing steps after a long quiet
    time only, so that fewer than one reply in a hundred is a refusal. Refusals at a limit that had held: they are few,
    then they are noise; many, then the limit halves, at most once per round trip; with a wait told by the server,
    then it counts requests per time, and the rate that came through is kept as a pace.
    """

    def __init__(self, ceiling: int, start: int = 8) -> None:
        self.limit = self._good = min(start, ceiling)
        self._ceiling = ceiling
        self._doubling = self._brakes = start < ceiling
        self._step = 0
        self._pace: TokenBucket | None = None
        self._rate = self._good_rate = math.inf
        self._reference: tuple[int, float] | None = None
        self._failed_at = self._told_at = self._open_at = self._refused_at = -math.inf
        self._noise = 0.0
        self._answers = self._told = self._quiet = 0
        self._quiet_seconds = _QUIET_SECONDS
        self._round_at = -math.inf
        self._replies = self._full = self._peak = self._refusals = 0
        self._seconds = 0.0

    def wait(self, now: float) -> float:
        """Give the seconds until the learned pace lets one more request start; 0 means now."""
        return self._pace.wait(now) if self._pace else 0.0

    def started(self, now: float) -> None:
        """Count a request that starts."""
        if self._pace:
            self._pace.refund(now, -1)

    def on_reply(self, now: float, seconds: float, *, slows: bool, in_flight: int, waits: float | None = None) -> None:
        """Learn from a reply that took `seconds`; `in_flight` are the others, `waits` is the wait the server told."""
        sent_at = now - seconds
        if slows:
            self._on_refusal(now, sent_at, waits)
            return
        self._answers += 1
        self._quiet += 1
        if sent_at > self._refused_at > -math.inf:
            pauses = (sent_at - self._refused_at) * _QUIET_PAUSES
            self._quiet_seconds = min(max(_QUIET_SECONDS, pauses), _LONGEST_QUIET)
            self._refused_at = -math.inf
        if sent_at < self._round_at:
            return
        self._replies += 1
        self._seconds += seconds
        self._full += in_flight + 1 >= self.limit
        self._peak = max(self._peak, in_flight + 1)
        if self._replies >= max(min(self._peak, self.limit), _SMALLEST_ROUND):
            self._end_round(now)

    def _on_refusal(self, now: float, sent_at: float, waits: float | None) -> None:
        if self._refused_at == -math.inf:
            self._refused_at = now
        if sent_at < self._round_at:
            return
        self._refusals += 1
        if self.limit > self._good or self._rate > self._good_rate:
            tolerated = _TOLERATED_DOUBLING if self._doubling else _TIMES_NOISE * self._noise
            if waits is not None and self._rate < math.inf:
                self._good_rate = max(math.sqrt(self._good_rate * self._rate), self._measure(now, waits))
            if waits is not None or self._refusals > tolerated * self.limit:
                self._give_up(now, self._good, self._good_rate)
        elif waits is not None:
            self._learn(now, sent_at, waits)
        elif self._refusals >= max(_FEWEST_HEAVY, _HEAVY * self.limit):
            self._good = max(1, self.limit // 2)
            self._give_up(now, self._good, self._rate)

    def _learn(self, now: float, sent_at: float, waits: float) -> None:
        """Take the rate of the answers since an earlier told wait as the pace, unless refusals are rare."""
        self._told += 1
        if sent_at < self._told_at or self._answers < _FEWEST_TO_LEARN:
            return
        rare, unsure = self._told * _NOISE <= self._answers, now + waits - self._open_at < _LONG_ENOUGH
        measured = self._measure(now, waits)
        if rare or not measured:
            return
        if self._pace is None or not unsure:
            self._rate = min(measured, self._rate)
        self._good_rate = self._rate * (1 - _PACE_STEP)
        self._give_up(now, self.limit, self._good_rate)

    def _measure(self, now: float, waits: float) -> float:
        """Give the answers per second since the last call, 0 at the first; from the end of its wait to that of this.

        A server that counts by the minute tells when the minute ends: so whole minutes are measured.
        """
        seconds = now + waits - self._open_at
        measured = self._answers / seconds if seconds > 0 else 0.0
        self._told_at, self._open_at, self._answers, self._told = now, now + waits, 0, 0
        return measured

    def _give_up(self, now: float, limit: int, rate: float) -> None:
        self._failed_at, self._quiet, self._doubling, self._step = now, 0, False, 0
        self._go_to(now, limit, rate)

    def _end_round(self, now: float) -> None:
        full = self._full >= self._replies / 2
        if full and self._brakes and self._saturated(self._seconds / self._replies):
            self._give_up(now, self._good, self._good_rate)
            return
        self._noise += 0.2 * (self._refusals / (self._replies + self._refusals) - self._noise)
        self._good = self.limit
        if not self._step:
            self._good_rate = self._rate
        if self._doubling:
            self._go_to(now, self.limit * 2 if full else self.limit, self._rate)
        elif self._step or self._is_quiet(now):
            self._step = min(self._step * 2, self._ceiling) or 1
            limit = self.limit + self._step if full else self.limit
            held_back = self._rate < _IDLE_PACE * self._replies / max(now - self._round_at, 1e-9)
            self._go_to(now, limit, self._rate * (1 + _PACE_STEP * self._step * held_back))
        else:
            self._new_round(now)

    def _is_quiet(self, now: float) -> bool:
        enough = max(_QUIET_REPLIES, _QUIET_ROUNDS * min(self._peak, self.limit))
        return self._quiet >= enough and now - self._failed_at >= self._quiet_seconds

    def _saturated(self, mean: float) -> bool:
        """Tell whether latency grew in step with the limit since the last one that was half as large."""
        if self._reference is None or self.limit <= self._reference[0]:
            self._reference = (self.limit, mean if self._reference is None else 0.8 * self._reference[1] + 0.2 * mean)
            return False
        growth = self.limit / self._reference[0]
        if growth < _NOTABLE:
            return False
        if mean >= self._reference[1] * (1 + _SATURATED * (growth - 1)):
            self._good = self._reference[0]
            return True
        self._reference = (self.limit, mean)
        return False

    def _go_to(self, now: float, limit: int, rate: float) -> None:
        self.limit = min(limit, self._ceiling)
        if rate != self._rate:
            self._rate = rate
            if self._pace is None:
                self._pace = TokenBucket(rate * 60, burst=rate * _PACE_BURST)
            self._pace.change(now, rate * 60)
        self._new_round(now)

    def _new_round(self, now: float) -> None:
        self._round_at = now
        self._replies = self._full = self._peak = self._refusals = 0
        self._seconds = 0.0
