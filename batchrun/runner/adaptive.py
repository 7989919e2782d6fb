"""How many requests in flight: a limit that adapts to what the server takes.

Time is an argument everywhere: `now` in seconds on a monotonic clock.
"""

import math

from batchrun.runner.pacing import TokenBucket

_SMALLEST_ROUND = 8  # replies; fewer say nothing about latency
_TOLERATED_DOUBLING = 0.1  # of a round's replies may be "not now" before a doubled limit is given up
_TIMES_NOISE = 3.0  # as many as usual may be "not now" before a slightly larger limit is given up
_HEAVY = 0.1  # of a round's replies being "not now" halves a limit that had held
_FEWEST_HEAVY = 3
_QUIET_REPLIES, _QUIET_ROUNDS = 200, 20  # without any "not now" before the next cautious step up
_QUIET_SECONDS, _QUIET_PAUSES, _LONGEST_QUIET = 10.0, 40.0, 300.0
_NOTABLE = 1.5  # growth of the limit from which latency is compared
_SATURATED = 0.7  # of the growth in flight is eaten by latency: more in flight brings no more answers

_LOWERINGS = 2  # of the limit, with answers after each, that do not end the told waits: then the server counts by time
_FEWEST_TO_LEARN = 10  # answers between two told waits that tell a rate
_LONG_ENOUGH = 10.0  # seconds; in a shorter time the pause behind the gate hides the true rate
_NOISE = 100  # fewer refusals than one in so many answers are noise
_PACE_STEP = 0.02
_PACE_BURST = 0.02  # seconds' worth: a pause is not followed by a crowd, which a server may refuse by itself
_IDLE_PACE = 4.0  # times the answers per second: such a pace holds nothing back
_TRIAL_STEP = 4  # times _PACE_STEP above what the limit brought: where a pace begins that is tried in its stead
_TRIAL_GAIN = 1.3  # times what the limit brought: from there on the pace is kept


class AdaptiveLimit:
    """How many requests may be in flight, learned from the server's replies.

    Doubles from `start` until the server says "not now" or latency grows in step with the limit (a server that queues).
    As many as were not refused are then kept in flight, and more are tried in growing steps after a long quiet time
    only, so that fewer than one reply in a hundred is a refusal.

    Refusals at a limit that had held: they are few, then they are noise; many, then the limit halves, at most once per
    round trip. With a wait told by the server each of them is costly, so the limit at once becomes what was not
    refused. Where that does not end them the server counts requests per time: then the limit goes back to where it
    was, and the rate that came through is kept as a pace. Where it ends them but the limit fell far, the other reading
    is tried once: the limit of before, with a pace that grows from what the low limit brings.
    """

    def __init__(self, ceiling: int, start: int = 8) -> None:
        self.limit = self._good = min(start, ceiling)
        self._ceiling = ceiling
        self._doubling = self._brakes = start < ceiling
        self._step = 0
        self._reference: tuple[int, float] | None = None
        self._noise = 0.0

        self._failed_at = self._refused_at = -math.inf
        self._quiet, self._quiet_seconds = 0, _QUIET_SECONDS

        self._pace: TokenBucket | None = None
        self._rate = self._good_rate = self._quiet_rate = math.inf
        self._trial_rate = 0.0
        self._told_at = self._open_at = -math.inf
        self._answers = self._told = 0
        self._lowerings, self._lowered_at, self._limit_before = 0, math.inf, self.limit

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
        if slows:
            self._on_refusal(now, now - seconds, in_flight, waits)
        else:
            self._on_answer(now, seconds, in_flight)

    def _on_answer(self, now: float, seconds: float, in_flight: int) -> None:
        sent_at = now - seconds
        self._answers += 1
        self._quiet += 1
        if sent_at >= self._lowered_at:
            self._lowerings, self._lowered_at = self._lowerings + 1, math.inf
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

    def _on_refusal(self, now: float, sent_at: float, in_flight: int, waits: float | None) -> None:
        if self._refused_at == -math.inf:
            self._refused_at = now
        if sent_at < self._failed_at:  # it was counted as not refused when the limit was lowered
            self.limit = max(self._good, self.limit - 1)
        if sent_at < self._round_at:
            return
        self._refusals += 1
        if waits is not None:
            self._on_told(now, sent_at, in_flight, waits)
        elif self.limit > self._good or self._rate > self._good_rate:
            tolerated = _TOLERATED_DOUBLING if self._doubling else _TIMES_NOISE * self._noise
            if self._refusals > tolerated * self.limit:
                self._give_up(now, self._not_refused(in_flight), self._good_rate)
        elif self._refusals >= max(_FEWEST_HEAVY, _HEAVY * min(self._peak or self.limit, self.limit)):
            self._good = max(1, self.limit // 2)
            self._give_up(now, self._good, self._rate)

    def _not_refused(self, in_flight: int) -> int:
        return max(self._good, min(in_flight, self.limit))

    def _on_told(self, now: float, sent_at: float, in_flight: int, waits: float) -> None:
        self._told += 1
        if sent_at < self._told_at:
            return
        if self._doubling or self._step:
            measured = self._measure(now, waits)
            if self._good_rate < math.inf:
                self._good_rate = max(math.sqrt(self._good_rate * self._rate), measured)
            self._give_up(now, self._not_refused(in_flight), self._good_rate)
        elif self._lowerings < _LOWERINGS:
            self._measure(now, waits)
            if not self._lowerings and self._lowered_at == math.inf:
                self._limit_before = self.limit
            self._lowered_at = min(self._lowered_at, now)
            self._good = 1
            self._give_up(now, self._not_refused(in_flight), self._rate)
        else:
            self._learn(now, waits)

    def _learn(self, now: float, waits: float) -> None:
        """Take the rate of the answers since an earlier told wait as the pace, unless refusals are rare."""
        if self._answers < _FEWEST_TO_LEARN:
            return
        rare, unsure = self._told * _NOISE <= self._answers, now + waits - self._open_at < _LONG_ENOUGH
        measured = self._measure(now, waits)
        if rare or not measured:
            return
        if self._rate == math.inf or not unsure:
            self._rate = min(measured, self._rate)
        self._good_rate = self._rate * (1 - _PACE_STEP)
        if self._quiet_rate < self._good_rate:
            self._good_rate = math.sqrt(self._quiet_rate * self._good_rate)
        else:
            self._quiet_rate = math.inf
        self._good = max(self.limit, self._limit_before)
        self._give_up(now, self._good, self._good_rate)

    def _measure(self, now: float, waits: float) -> float:
        """Give the answers per second since the last call, 0 at the first; from the end of its wait to that of this.

        A server that counts by the minute tells when the minute ends: so whole minutes are measured.
        """
        seconds = now + waits - self._open_at
        measured = self._answers / seconds if seconds > 0 else 0.0
        self._told_at, self._open_at, self._answers, self._told = now, now + waits, 0, 0
        return measured

    def _give_up(self, now: float, limit: int, rate: float) -> None:
        self._failed_at, self._quiet, self._doubling, self._step, self._trial_rate = now, 0, False, 0, 0.0
        self._go_to(now, limit, rate)

    def _end_round(self, now: float) -> None:
        full = self._full >= self._replies / 2
        if full and self._brakes and self._saturated(self._seconds / self._replies):
            self._give_up(now, self._good, self._good_rate)
            return
        self._noise += 0.2 * (self._refusals / (self._replies + self._refusals) - self._noise)
        self._keep()
        quiet = self._quiet >= max(_QUIET_REPLIES, _QUIET_ROUNDS * min(self._peak, self.limit))
        if quiet and self._rate == math.inf:
            self._lowerings = 0
        if self._doubling:
            self._go_to(now, self.limit * 2 if full else self.limit, self._rate)
        elif self._step or (quiet and now - self._failed_at >= self._quiet_seconds):
            self._try_more(now, full=full)
        else:
            self._new_round(now)

    def _keep(self) -> None:
        """Take limit and pace as good: they held for a round. A pace in trial must have brought more, too."""
        if self._rate < self._trial_rate:
            return
        self._good = self.limit
        if self._trial_rate:
            self._lowerings, self._trial_rate, self._good_rate = _LOWERINGS, 0.0, self._rate
        elif not self._step:
            self._good_rate = self._rate

    def _try_more(self, now: float, *, full: bool) -> None:
        if not self._step:
            self._quiet_rate = self._rate
            if self._rate == math.inf and self._limit_before > 2 * self.limit:
                self._try_pace(now)
                return
        self._step = min(self._step * 2, self._ceiling) or 1
        limit = self.limit + self._step if full else self.limit
        held_back = self._rate < _IDLE_PACE * self._replies / max(now - self._round_at, 1e-9)
        self._go_to(now, limit, self._rate * (1 + _PACE_STEP * self._step * held_back))

    def _try_pace(self, now: float) -> None:
        brought = self._quiet / (now - self._failed_at)
        self._step, self._trial_rate = _TRIAL_STEP, _TRIAL_GAIN * brought
        limit, self._limit_before = self._limit_before, self.limit
        self._go_to(now, limit, brought * (1 + _PACE_STEP * self._step))

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
        if rate == math.inf:
            self._pace = None
        elif self._pace is None:
            self._pace = TokenBucket(rate * 60, burst=rate * _PACE_BURST)
        elif rate != self._rate:
            self._pace.change(now, rate * 60, burst=rate * _PACE_BURST)
        self._rate = rate
        self._new_round(now)

    def _new_round(self, now: float) -> None:
        self._round_at = now
        self._replies = self._full = self._peak = self._refusals = 0
        self._seconds = 0.0
