"""One account at the simulated API: its settings, the faults and limits that requests meet, and its money."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import blake2b
from typing import Any, TypeVar

from batchrun.servers.simulator.models import TEXT, Model, find, to_pico, to_usd

T = TypeVar("T")
_ERRORS = range(400, 600)
_MINUTE = 60.0


class ApiError(Exception):
    """An error reply: HTTP status, message, and further headers (with _ for -)."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def find_model(name: object, answers: str) -> Model:
    """Return the model of a request for text or for decisions. Raises ApiError."""
    model = find(name)
    if model is None:
        raise ApiError(400, f"{name} is not a valid model ID")
    if answers in model.answers:
        return model
    if answers == TEXT:
        raise ApiError(
            400,
            f"{name} is a decisions model and cannot be used with the chat/completions endpoint. "
            "Use /api/alpha/decisions instead.",
        )
    raise ApiError(501, "This model is not a decision model")


@dataclass(frozen=True, slots=True)
class Config:
    """How the simulator behaves.

    `seed`: the same seed gives the same answers and faults. `latency`: least and greatest duration of a generation, in
    seconds. `faults`: HTTP statuses and the share of requests that get them. `requests_per_minute` and `credit` (USD)
    are None where there is no limit.
    """

    seed: int = 0
    latency: tuple[float, float] = (0.0, 0.0)
    faults: Mapping[int, float] = field(default_factory=dict)
    requests_per_minute: int | None = None
    credit: Decimal | None = None

    def digest(self, *parts: bytes) -> bytes:
        """Return 16 bytes that depend on the seed and the parts alone."""
        return blake2b(b"".join(parts), key=self.seed.to_bytes(16, signed=True), digest_size=16).digest()

    def draw(self, *parts: bytes) -> float:
        """Return a number from 0 up to 1 that depends on the seed and the parts alone."""
        return int.from_bytes(self.digest(*parts)[:8]) / 2**64


def parse_config(seed: int, latency: str, faults: Iterable[str], rpm: int | None, credit: Decimal | None) -> Config:
    """Return the settings that the options of a command line name. Raises ValueError."""
    rates = dict(map(_parse_fault, faults))
    if sum(rates.values()) > 1:
        raise ValueError("the rates of all faults together must not be above 1")
    return Config(seed, _parse_latency(latency), rates, rpm, credit)


def _parse_latency(text: str) -> tuple[float, float]:
    low, _, high = text.partition("..")
    try:
        bounds = float(low), float(high or low)
        if 0 <= bounds[0] <= bounds[1]:
            return bounds
    except ValueError:
        pass
    raise ValueError(f"latency '{text}' is not valid: write seconds such as 0.5, or a range such as 0.2..0.8")


def _parse_fault(text: str) -> tuple[int, float]:
    status, _, rate = text.partition("=")
    try:
        if int(status) in _ERRORS and 0 <= float(rate) <= 1:
            return int(status), float(rate)
    except ValueError:
        pass
    raise ValueError(f"fault '{text}' is not valid: write an HTTP status from 400 to 599 and a rate, such as 429=0.02")


class Account:
    """The state of the account. It changes only between two awaits of one event loop."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.generations = 0
        self.billed = 0
        self._minute_end = 0.0
        self._minute_used = 0
        self._faults_met: Counter[bytes] = Counter()

    async def generate(self, request: bytes, worst_cost: int, write: Callable[[], tuple[T, int]]) -> T:
        """Return the reply that `write` makes, with its cost billed (picodollars). Raises ApiError.

        `request` is the body: equal bodies get equal faults and latencies, in any order.
        """
        # As OpenRouter does: it refuses what the account could not pay at worst.
        self._check_credit(worst_cost)
        self._check_minute()
        self._check_faults(request)
        low, high = self.config.latency
        if high:
            await asyncio.sleep(low + (high - low) * self.config.draw(b"latency", request))
        reply, cost = write()
        self.generations += 1
        self.billed += cost
        return reply

    def key_info(self) -> dict[str, Any]:
        """Return what GET /key says of the account."""
        limit, used = self.config.credit, to_usd(self.billed)
        left = self._credit_left()
        return {
            "label": "sk-or-v1-sim...ulator",
            "limit": None if limit is None else float(limit),
            "limit_remaining": None if left is None else to_usd(left),
            "limit_reset": None,
            "usage": used,
            "usage_daily": used,
            "is_free_tier": False,
        }

    def _credit_left(self) -> int | None:
        credit = self.config.credit
        return None if credit is None else to_pico(credit) - self.billed

    def _check_credit(self, worst_cost: int) -> None:
        left = self._credit_left()
        if left is not None and worst_cost > left:
            raise ApiError(402, "Insufficient credits. Add more using https://openrouter.ai/credits")

    def _check_minute(self) -> None:
        limit = self.config.requests_per_minute
        if limit is None:
            return
        now = time.monotonic()
        if now >= self._minute_end:
            self._minute_end, self._minute_used = now + _MINUTE, 0
        self._minute_used += 1
        if self._minute_used > limit:
            wait = math.ceil(self._minute_end - now)
            raise ApiError(429, f"Rate limit exceeded: {limit} requests per minute", retry_after=str(wait))

    def _check_faults(self, request: bytes) -> None:
        if not self.config.faults:
            return
        met = self._faults_met[request]
        # A repeated request is drawn for again; else one that failed would fail for ever.
        drawn = self.config.draw(b"fault", met.to_bytes(4), request)
        for status, rate in self.config.faults.items():
            if drawn < rate:
                self._faults_met[request] = met + 1
                raise ApiError(status, f"Simulated error {status}")
            drawn -= rate  # the rates lie side by side on [0, 1): a request meets at most one fault
