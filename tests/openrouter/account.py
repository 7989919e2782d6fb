"""One account at the simulated API: its key, its limits, its credit with in-flight holds, its response cache."""

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any

from openrouter.catalogue import pico
from openrouter.config import Config
from openrouter.ledger import Counters
from openrouter.prompt_cache import PromptCache

DAY = 86_400
KEPT_GENERATIONS = 1_000
UNSET_MAX_TOKENS = 4_096
"""What a request without max_tokens holds."""


@dataclass(slots=True)
class Window:
    """A count that begins again at `ends` (Unix time)."""

    ends: float = 0.0
    used: int = 0

    def take(self, limit: int, now: float, next_end: float) -> bool:
        """Count one if the limit allows it; tell whether it did."""
        if now >= self.ends:
            self.ends, self.used = next_end, 0
        if self.used >= limit:
            return False
        self.used += 1
        return True


@dataclass(frozen=True, slots=True)
class Hold:
    """What a request in flight may cost at most, in picodollars, with the tokens that it is made of."""

    cost: int
    tokens: int = 0
    per_token: int = 0


@dataclass(slots=True)
class Account:
    """The account's state. All times are Unix times given by the caller; changes only between two awaits."""

    initial: Config
    config: Config = field(init=False)
    counters: Counters = field(default_factory=Counters)
    minute: Window = field(default_factory=Window)
    day: Window = field(default_factory=Window)
    running: int = 0
    held: int = 0
    began: float | None = None
    due: list[tuple[float, Mapping[str, Any]]] = field(default_factory=list)
    cache: dict[tuple[str, bytes], tuple[str, float, float]] = field(default_factory=dict)
    prompt_cache: PromptCache = field(default_factory=PromptCache)
    generations: OrderedDict[str, dict[str, Any]] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.config = self.initial
        self.due = list(self.initial.schedule)

    def reset(self) -> None:
        """Begin again with the first settings; what is in flight stays counted."""
        self.config, self.due, self.began = self.initial, list(self.initial.schedule), None
        self.minute, self.day = Window(), Window()
        self.counters.clear()
        self.cache.clear()
        self.prompt_cache.clear()
        self.generations.clear()

    def change(self, changes: Mapping[str, Any]) -> None:
        """Change settings. Raises ValueError."""
        self.config = self.config.changed(changes)
        if "schedule" in changes:
            self.due = list(self.config.schedule)

    def advance(self, now: float) -> None:
        """Make the scheduled changes that are due."""
        if self.began is None:
            self.began = now
        while self.due and now >= self.began + self.due[0][0]:
            self.config = self.config.changed(self.due.pop(0)[1])

    def refused_key(self, authorization: str) -> str | None:
        """Return the case by which a key is refused."""
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key:
            return "401-missing"
        required = self.config.require_key
        if key != required if required is not None else "wrong" in key:
            return "401"
        return None

    def admit(self, hold: Hold, now: float) -> str | None:
        """Start a generation and hold its cost, or give the case by which a limit refuses it."""
        refused = self._refused_credit(hold) or self._refused_rate(now)
        if refused is None:
            self.running += 1
            self.held += hold.cost
        return refused

    def release(self, hold: Hold) -> None:
        """End a generation: its hold is given back, what it cost is in the books."""
        self.running -= 1
        self.held -= hold.cost

    @property
    def left(self) -> int | None:
        """The credit left, in picodollars."""
        return None if self.config.credit is None else pico(self.config.credit) - self.counters.billed_pico

    def _refused_credit(self, hold: Hold) -> str | None:
        left, budget = self.left, self.config.in_flight_budget
        if left is not None and left <= 0:
            return "402-insufficient"
        if left is not None and hold.cost > left:
            return "402-credits"
        if budget is not None and hold.cost > pico(budget):
            return "402-weight"
        rooms = [room for room in (left, None if budget is None else pico(budget)) if room is not None]
        return "402-in-flight" if rooms and hold.cost and self.held + hold.cost > min(rooms) else None

    def _refused_rate(self, now: float) -> str | None:
        config = self.config
        if config.hidden_concurrency is not None and self.running >= config.hidden_concurrency:
            return "429"
        per_minute, quota = config.requests_per_minute, config.day_quota
        if per_minute is not None and not self.minute.take(per_minute, now, now + config.minute):
            return "429-per-minute"
        if quota is not None and not self.day.take(quota, now, midnight(now)):
            return "429-daily"
        return None

    def values(self, model: str, hold: Hold, now: float) -> dict[str, str]:
        """Return what the $NAMES in the bodies of refusals stand for."""
        config, wait = self.config, self.config.retry_after
        afford = (self.left or 0) // hold.per_token if hold.per_token else 0
        minute = self.minute.ends if self.minute.ends > now else now + config.minute
        return {
            '"$WAIT_NUMBER"': f"{wait:g}",
            "$WAIT_MS": str(round(wait * 1000)),
            "$WAIT": f"{wait:g}",
            "$DATE": formatdate(now + wait, usegmt=True),
            "$MINUTE_MS": str(round(minute * 1000)),
            "$MINUTE_LIMIT": str(config.requests_per_minute or 20),
            "$DAY_MS": str(round(midnight(now) * 1000)),
            "$DAY_ISO": datetime.fromtimestamp(midnight(now), UTC).isoformat(),
            "$DAY_LIMIT": str(config.day_quota or 50),
            "$MODEL": model,
            "$TOKENS": str(hold.tokens),
            "$AFFORD": str(max(0, afford)),
        }

    def keep(self, generation: str, facts: dict[str, Any]) -> None:
        """Remember a generation for GET /generation, the last thousand of them."""
        self.generations[generation] = facts
        if len(self.generations) > KEPT_GENERATIONS:
            self.generations.popitem(last=False)


def midnight(now: float) -> float:
    """Return the next 00:00 UTC as Unix time."""
    return (now // DAY + 1) * DAY


def clock() -> float:
    """Return Unix time."""
    return time.time()
