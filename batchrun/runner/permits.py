"""May this request be sent now: the slots, the gate, the rates, the bytes in flight and the budget in one place."""

from http import HTTPStatus
from typing import NamedTuple

from batchrun.api import Ending
from batchrun.money import Pico
from batchrun.runner.adaptive import AdaptiveLimit
from batchrun.runner.budget import Budget
from batchrun.runner.pacing import Gate, TokenBucket

BYTES_IN_FLIGHT = 256 * 2**20
NOW = 0.0
ON_CHANGE = float("inf")
"""Wait until something in flight ends."""


class Permit(NamedTuple):
    """What was granted for one request, to be given back when it ends."""

    size: int
    tokens: int
    reserved: Pico


class Permits:
    """Grants all permits for a request, or none. Seconds; `now` is monotonic."""

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
        self.starved: Pico | None = None

    def open_at(self, now: float) -> float:
        """Give the seconds until any request may start, before knowing which: slots and gate."""
        if self.in_flight >= self.limit.limit:
            return ON_CHANGE
        return max(self.gate.wait(now), self.limit.wait(now))

    def take(self, now: float, permit: Permit) -> float:
        """Grant the permit (NOW) or give the seconds until it is worth asking again; ON_CHANGE if time alone won't do.

        `starved` is then the amount that the budget refused, if it was the budget.
        """
        self.starved = None
        if self.in_flight and self._bytes + permit.size > BYTES_IN_FLIGHT:
            return ON_CHANGE
        if self._requests and (wait := self._requests.wait(now, 1)) > 0:
            return wait
        if self._tokens and (wait := self._tokens.wait(now, permit.tokens)) > 0:
            return wait
        if (wait := self.budget.wait(permit.reserved)) > 0:
            return wait
        if not self.budget.reserve(permit.reserved):
            self.starved = permit.reserved
            return ON_CHANGE
        if self._requests:
            self._requests.take(now, 1)
        if self._tokens:
            self._tokens.take(now, permit.tokens)
        self.gate.started()
        self.limit.started(now)
        self.in_flight += 1
        self._bytes += permit.size
        return NOW

    def learn(self, ending: Ending, now: float, seconds: float, wait: float | None) -> None:
        """Let the limit learn from a reply that took `seconds` and asked for a `wait`.

        A number that the user fixed is lowered only where the account's budget forces it; a wait that is told teaches
        a pace only where it comes with a rate limit.
        """
        slows = ending.slows and (not self._fixed or ending.code == HTTPStatus.PAYMENT_REQUIRED)
        waits = wait if wait is not None and ending.code == HTTPStatus.TOO_MANY_REQUESTS else None
        self.limit.on_reply(now, seconds, slows=slows, in_flight=self.in_flight, waits=waits)

    def give_back(self, now: float, permit: Permit, *, spent: Pico, keep: bool, tokens: int | None) -> None:
        """End a request: `spent` is settled, `keep` leaves the reservation (it may be billed), `tokens` were used."""
        self.in_flight -= 1
        self._bytes -= permit.size
        self.budget.settle(permit.reserved, spent, keep=keep)
        if self._tokens and tokens is not None:
            self._tokens.refund(now, permit.tokens - tokens)
