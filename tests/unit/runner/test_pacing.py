"""limits: gates, rates and the adaptive limit, in simulated time."""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.api.codes import TABLE
from batchrun.runner.budget import Budget
from batchrun.runner.limits import AdaptiveLimit, Gate, Limits, TokenBucket
from batchrun.runner.retry import Tries, decide

# -- the gate


def test_a_gate_stays_closed_as_long_as_it_was_asked_to() -> None:
    """Nothing starts in the window, whatever else comes back meanwhile."""
    gate = Gate()
    assert gate.wait(0.0) == 0
    gate.close(10.0, 5.0, sent_at=9.0)
    gate.close(10.1, 2.0, sent_at=9.5)
    gate.answered(11.0)
    assert gate.wait(12.0) == pytest.approx(3.0)
    assert gate.wait(15.0) == 0


def test_an_opened_gate_is_not_a_stampede() -> None:
    """One request starts, then twice as many each 0.1 s."""
    gate = Gate()
    gate.close(0.0, 1.0, sent_at=0.0)
    starts = []
    for millisecond in range(1000, 1400):
        while not gate.wait(millisecond / 1000):
            gate.started()
            starts.append(millisecond)
    assert [sum(start <= end for start in starts) for end in (1000, 1150, 1250, 1350)] == [1, 2, 5, 11]


def test_a_gate_that_closes_again_lets_a_single_probe_through() -> None:
    """Without an answer in between the second request waits ever longer; an answer ends that."""
    gate = Gate()
    for second in range(5):
        gate.close(second, 1.0, sent_at=second)
    assert gate.wait(5.0) == 0
    gate.started()
    assert gate.wait(5.0) > 10
    gate.answered(6.0)
    assert gate.wait(6.0) == 0


def test_few_refusals_close_no_gate() -> None:
    """Noise is distinguished from a server that refuses most of what was sent since its last answer."""
    gate = Gate()
    for _ in range(100):
        gate.started()
    assert [gate.refused(1.0) for _ in range(3)] == [0, 0, 0]
    gate.answered(2.0)
    for _ in range(4):
        gate.started()
    assert [gate.refused(3.0) for _ in range(4)] == [0, 0, 1, 1]
    gate.close(4.0, 1.0, sent_at=3.0)
    assert gate.refused(3.0) == 0


# -- rates


@given(st.floats(1, 10_000), st.lists(st.tuples(st.floats(0, 30), st.integers(1, 3)), max_size=40))
def test_a_bucket_never_exceeds_its_rate(per_minute: float, requests: list[tuple[float, int]]) -> None:
    """In any time no more is taken than the rate gives, one second's worth and what one request may overdraw."""
    bucket, now, taken = TokenBucket(per_minute), 0.0, 0
    for pause, n in requests:
        now += pause
        if not bucket.take(now, n):
            taken += n
        assert taken <= now * per_minute / 60 + max(1.0, per_minute / 60) + 3 + 1e-6


@given(st.floats(1, 10_000), st.integers(1, 20_000))
def test_a_bucket_names_the_wait_exactly(per_minute: float, n: int) -> None:
    """Throttling only delays: after the wait the tokens are there, also more than a full bucket holds."""
    bucket = TokenBucket(per_minute)
    bucket.take(0.0)
    wait = bucket.wait(0.0, n)
    assert bucket.take(wait * 0.9, n) > 0
    assert bucket.take(wait * 1.0001, n) == 0


def test_a_bucket_settles_what_was_really_used() -> None:
    """Unused tokens come back, tokens used beyond the estimate are owed."""
    bucket = TokenBucket(600, burst=100)
    assert bucket.take(0.0) == 0
    assert bucket.take(10.0, 100) == 0
    bucket.refund(10.0, 60)
    assert bucket.wait(10.0, 60) == 0
    bucket.refund(10.0, -70)
    assert bucket.wait(10.0, 10) == pytest.approx(2.0)


# -- the adaptive limit against simulated servers


class Server(Protocol):
    """Takes or refuses a request; `wait` is what a refusal asks for."""

    wait: float | None

    def admit(self, now: float, in_service: int) -> bool: ...


@dataclass
class Concurrency:
    """A hidden limit of requests in service, which may change."""

    hidden: Callable[[float], int]
    wait: float | None = None

    def admit(self, now: float, in_service: int) -> bool:
        return in_service < self.hidden(now)


@dataclass
class Window:
    """A quota per clock minute, whose refusals name the seconds to its end."""

    quota: int
    wait: float | None = None
    minute: int = -1
    used: int = 0

    def admit(self, now: float, in_service: int) -> bool:  # noqa: ARG002  (a server's signature)
        if int(now // 60) != self.minute:
            self.minute, self.used = int(now // 60), 0
        self.wait = (self.minute + 1) * 60 - now
        self.used += 1
        return self.used <= self.quota


@dataclass
class Noise:
    """Refuses at random, whatever the load."""

    share: float
    dice: random.Random
    wait: float | None = None

    def admit(self, now: float, in_service: int) -> bool:  # noqa: ARG002  (a server's signature)
        return self.dice.random() >= self.share


LATENCY, REFUSAL = 0.5, 0.02


def dice() -> random.Random:
    """Return the same throws each time."""
    return random.Random(7)  # noqa: S311  (a simulation, no secret)


class Fixed:
    """A setting of the user: it never changes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def record_answer(self, now: float, seconds: float, in_flight: int) -> None: ...

    def record_refusal(self, now: float, seconds: float, in_flight: int, wait: float | None) -> None: ...


class Simulation:
    """Discrete events: as many requests as gate and limit allow; refusals come at once."""

    def __init__(self, server: Server, limit: AdaptiveLimit | Fixed, spread: float, latency: float = LATENCY) -> None:
        self.server, self.limit, self.gate, self.dice = server, limit, Gate(), dice()
        self.latency, self.spread = latency, spread
        self.now, self.sequence, self.in_service = 0.0, 0, 0
        self.events: list[tuple[float, int, float, bool]] = []
        self.answers = self.refusals = 0

    def run(self, until: float) -> tuple[int, int]:
        """Run on; give the answers and refusals since the last call."""
        before = self.answers, self.refusals
        while self.now < until:
            wait = self._start()
            if self.events and self.events[0][0] <= wait:
                self._reply(*heapq.heappop(self.events))
            else:
                self.now = wait
        return self.answers - before[0], self.refusals - before[1]

    def _start(self) -> float:
        while len(self.events) < self.limit.limit:
            if (wait := self.gate.wait(self.now)) > 0:
                return self.now + wait
            self.gate.started()
            good = self.server.admit(self.now, self.in_service)
            self.in_service += good
            seconds = self.latency * self.dice.lognormvariate(0, self.spread) if good else REFUSAL
            self.sequence += 1
            heapq.heappush(self.events, (self.now + seconds, self.sequence, self.now, good))
        return math.inf

    def _reply(self, at: float, _: int, sent_at: float, good: bool) -> None:  # noqa: FBT001  (an event)
        self.now = at
        if good:
            self.answers += 1
            self.in_service -= 1
            self.gate.answered(at)
            self.limit.record_answer(at, at - sent_at, len(self.events))
        else:
            self.refusals += 1
            closings, ending = self.gate.refused(sent_at), TABLE["rate_limited"]
            jitter = self.dice.random()
            decision = decide(ending, Tries(), attempts=5, wait=self.server.wait, jitter=jitter, closings=closings)
            self.gate.close(at, decision.gate, sent_at)
            self.limit.record_refusal(at, at - sent_at, len(self.events), self.server.wait)


def fall(now: float) -> int:
    """Return a hidden limit that falls."""
    return 200 if now < 100 else 20


def rise(now: float) -> int:
    """Return a hidden limit that rises."""
    return 20 if now < 100 else 200


def steps(now: float) -> int:
    """Return a hidden limit that falls twice in short order."""
    return 20 if now < 60 else 15 if now < 100 else 10


def servers(throws: random.Random) -> dict[str, tuple[Server, float, float, float]]:
    """Return by name a server, its best rate per second at no spread, and when it has settled and the trace ends."""
    rate = 1 / LATENCY
    return {
        "20 at once": (Concurrency(lambda _: 20), 20 * rate, 60, 240),
        "20 at once, told to wait": (Concurrency(lambda _: 20, wait=1.0), 20 * rate, 300, 600),
        "2 at once, told to wait": (Concurrency(lambda _: 2, wait=1.0), 2 * rate, 300, 900),
        "200 at once": (Concurrency(lambda _: 200), 200 * rate, 120, 240),
        "200 at once, told to wait": (Concurrency(lambda _: 200, wait=1.0), 200 * rate, 60, 240),
        "from 200 down to 20": (Concurrency(fall), 20 * rate, 160, 300),
        "from 20 up to 200": (Concurrency(rise), 200 * rate, 200, 300),
        "from 200 down to 20, told to wait": (Concurrency(fall, wait=1.0), 20 * rate, 130, 400),
        "from 20 up to 200, told to wait": (Concurrency(rise, wait=1.0), 200 * rate, 200, 400),
        "20, then 15, then 10 at once, told to wait": (Concurrency(steps, wait=1.0), 10 * rate, 160, 400),
        "20 a minute": (Window(20), 20 / 60, 300, 1500),
        "600 a minute": (Window(600), 10, 300, 1500),
        "one in a hundred refused at random": (Noise(0.01, throws), 0.99 * 256 * rate, 60, 150),
        "no limit": (Concurrency(lambda _: 10_000), 256 * rate, 30, 60),
    }


@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize("name", servers(dice()))
def test_the_limit_converges(name: str, spread: float) -> None:
    """Once settled: 95 % of the best fixed setting's answers and < 1 % refused; of a quota by the minute 90 and 5 %."""
    server, best, settled, end = servers(dice())[name]
    if not isinstance(server, Window):
        best /= math.exp(spread**2 / 2)
    simulation = Simulation(server, AdaptiveLimit(256), spread)
    simulation.run(settled)
    answers, refusals = simulation.run(end)
    natural = server.share if isinstance(server, Noise) else 0.0
    share, refused = (0.9, 0.05) if isinstance(server, Window) else (0.95, 0.01 + natural)
    assert answers >= share * best * (end - settled)
    assert refusals < refused * (answers + refusals)


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_a_limit_falls_while_answers_take_longer_than_the_wait(spread: float) -> None:
    """Refusals one after the other, with no answer to what was sent in between, are one fall and no rate."""
    server, latency = Concurrency(lambda now: 100 if now < 400 else 30, wait=1.0), 5.0
    simulation = Simulation(server, AdaptiveLimit(256), spread, latency)
    simulation.run(600)
    answers, refusals = simulation.run(2_000)
    assert answers >= 0.95 * 30 / (latency * math.exp(spread**2 / 2)) * 1_400
    assert refusals < 0.01 * (answers + refusals)


def test_a_fixed_setting_would_do_no_better() -> None:
    """The yardstick is right: the best fixed concurrency brings what the traces are measured against."""
    best = max(Simulation(Concurrency(lambda _: 20), Fixed(n), 0.0).run(60.0)[0] for n in (10, 19, 20, 21, 30))
    assert best == pytest.approx(20 / LATENCY * 60, rel=0.02)


def test_the_limit_starts_slowly_and_doubles() -> None:
    """Eight, then twice as many each round trip, up to the ceiling."""
    limits, simulation = [], Simulation(Concurrency(lambda _: 999), AdaptiveLimit(256), 0.0)
    for step in range(8):
        limits.append(simulation.limit.limit)
        simulation.run((step + 1) * LATENCY + 0.01)
    assert limits[:7] == [8, 16, 32, 64, 128, 256, 256]


def test_a_server_that_queues_is_not_buried() -> None:
    """Where latency grows in step with the limit the limit stays: more in flight would bring no more answers."""
    limit, now = AdaptiveLimit(256), 0.0
    for _ in range(2_000):
        seconds = LATENCY * max(1.0, limit.limit / 8)
        now += seconds / limit.limit
        limit.record_answer(now, seconds, limit.limit - 1)
    assert limit.limit < 24


def test_a_limit_stays_at_its_ceiling() -> None:
    """Millions of answers at the ceiling, round after round, are nothing to fail at."""
    limit, now = AdaptiveLimit(8, start=8), 0.0
    for _ in range(20_000):
        now += 0.05
        limit.record_answer(now, 0.4, 7)
    assert limit.limit == 8


def test_faults_do_not_raise_the_limit() -> None:
    """A proxy that replies 502 at once, or a connection that breaks, says nothing about capacity."""
    limits = Limits(AdaptiveLimit(256), Gate(), Budget())
    for name in ("server_error", "timeout", "connection", "bad_request"):
        for millisecond in range(600):
            limits.in_flight = limits.limit.limit - 1
            limits.learn(TABLE[name], millisecond / 1000, 0.001, None, answered=False)
    assert limits.limit.limit == 8


@pytest.mark.parametrize("quota", [60, 200, 2_000])
@pytest.mark.parametrize("latency", [0.5, 2.0])
def test_a_quota_by_the_minute_is_used_up(quota: int, latency: float) -> None:
    """At least 90 % of a quota is used, with fewer than 5 % refused, whatever the latency."""
    simulation = Simulation(Window(quota), AdaptiveLimit(256), 0.5, latency)
    simulation.run(300)
    answers, refusals = simulation.run(900)
    assert answers >= 0.9 * quota * 10
    assert refusals < 0.05 * (answers + refusals)


def test_many_refusals_halve_a_limit_that_held_once_a_round_trip() -> None:
    """Refusals of requests that were sent before the decrease do not decrease again."""
    limit = AdaptiveLimit(64, start=64)
    for _ in range(40):
        limit.record_refusal(10.0, 0.5, 63)
    assert limit.limit == 32
    for _ in range(40):
        limit.record_refusal(11.0, 0.5, 31)
    assert limit.limit == 16


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 9), st.booleans(), st.none() | st.floats(0, 90)), max_size=200),
    st.integers(1, 300),
    st.integers(1, 64),
)
def test_the_limit_stays_between_one_and_the_ceiling(
    replies: list[tuple[float, float, bool, float | None]], ceiling: int, start: int
) -> None:
    """Whatever the replies: some request may always be in flight, never more than the ceiling."""
    limit, now = AdaptiveLimit(ceiling, start), 0.0
    for pause, seconds, slows, waits in replies:
        now += pause
        if slows:
            limit.record_refusal(now, seconds, limit.limit - 1, waits)
        else:
            limit.record_answer(now, seconds, limit.limit - 1)
        assert 1 <= limit.limit <= ceiling
