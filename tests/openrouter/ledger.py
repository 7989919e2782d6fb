"""What the simulator saw and charged: the witness that tests ask.

Written by the server's one thread; read it from another when no request is under way.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any

from openrouter.catalogue import PER_USD


@dataclass(slots=True)
class Question:
    """How often one distinct body was asked, and how often a generation for it was billed."""

    asked: int = 0
    billed: int = 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request as it came: `at` is in seconds since the first, the key is masked."""

    at: float
    path: str
    headers: Mapping[str, str]
    body: str
    ending: str


@dataclass(slots=True)
class Counters:
    """The books. `requests` are those to a model (chat and embeddings); `paths` counts every request under /api.

    `endings` counts by case name, and by `invalid`, `unauthorized`, `cache-hit` and `limit:<case>` for what no case
    chose. `statuses` counts what was to be sent. `peak` is the greatest number of chat requests at once. `billed` is
    the number of billed generations, to which the tokens belong, `billed_pico` their cost in picodollars (10⁻¹² USD),
    exact. `questions` maps the digest of each distinct body to its counts. `clients` are the connections' addresses.
    """

    requests: int = 0
    in_flight: int = 0
    peak: int = 0
    billed: int = 0
    billed_pico: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    questions: dict[bytes, Question] = field(default_factory=dict)
    clients: set[Any] = field(default_factory=set)
    recorded: list[Recorded] = field(default_factory=list)

    def charge(self, amount: int, prompt_tokens: int, completion_tokens: int) -> None:
        """Bill a generation, in picodollars."""
        self.billed += 1
        self.billed_pico += amount
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    @property
    def asked_again(self) -> int:
        """Requests beyond the first for the same body."""
        return sum(question.asked - 1 for question in self.questions.values())

    @property
    def bought_again(self) -> int:
        """Billed generations beyond the first for the same body."""
        return sum(max(0, question.billed - 1) for question in self.questions.values())

    @property
    def billed_usd(self) -> Decimal:
        """What was billed, in USD, exact."""
        return Decimal(self.billed_pico) / PER_USD

    def clear(self) -> None:
        """Begin again; requests under way stay counted as in flight."""
        fresh = Counters(in_flight=self.in_flight, peak=self.in_flight)
        for each in fields(self):
            setattr(self, each.name, getattr(fresh, each.name))

    def snapshot(self) -> dict[str, Any]:
        """Return all of it for JSON: single questions only as sums."""
        plain = ("requests", "in_flight", "peak", "billed", "billed_pico", "prompt_tokens", "completion_tokens",
                 "cached_tokens", "cache_write_tokens", "asked_again", "bought_again", "endings", "paths",
                 "recorded")  # fmt: skip
        return {name: getattr(self, name) for name in plain} | {
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "billed_usd": str(self.billed_usd),
            "distinct": len(self.questions),
            "connections": len(self.clients),
        }
