"""One question in work: the rules for it, what this run has tried and paid, the records of that and who keeps them."""

import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from decimal import ROUND_CEILING
from typing import Any, NamedTuple, Protocol

from batchrun.api import TABLE, Blame, Ending, Mask
from batchrun.money import ZERO, Pico, Price, show
from batchrun.prompt import RowProblem
from batchrun.records import Outcome, Reply, Status, Usage, Verdict
from batchrun.runner.limits import Permit
from batchrun.runner.retry import Decision, Tries

_GATEWAY_TIMEOUTS = (504, 524)  # 524 is Cloudflare's


class Keep(Protocol):
    """Where outcomes go; the checkpoint's writer."""

    @property
    def is_full(self) -> bool:
        """Whether so much is uncommitted that nothing new should start."""

    def put(self, outcome: Outcome) -> None:
        """Take an outcome; the question is answered only when it is committed."""

    def failed_attempt(self, attempt: Outcome) -> None:
        """Take a failed attempt, with its own cost, for the record."""

    async def room(self) -> None:
        """Wait until there is room."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a run. Seconds; `max_failed` counts questions, `deadline` is a time on the monotonic clock.

    `questions` is how many the run is to ask, `doubtful` how many of them failed in an earlier run,
    the first one at the row position `first_doubtful`. `patience` is what
    the job writes about outages (None: nothing), `loopback` whether the server is on this machine. `first_alone`: the
    first request goes alone, since nothing is known of the server; `cache_life` is its prompt cache's (None: not used).
    `details` are those of the output: long ones are kept only if they are among them. `cap` is what a run may spend at
    most when nothing is spent yet, in picodollars (None: no cap).
    """

    attempts: int
    repairs: int
    breaker: int
    grace: float
    max_failed: int | None = None
    deadline: float | None = None
    max_tokens: int | None = None
    cap: Pico | None = None
    openrouter: bool = True
    price: Price | None = None
    questions: int = 0
    doubtful: int = 0
    first_doubtful: int = 0
    patience: float | None = None
    loopback: bool = False
    first_alone: bool = False
    cache_life: float | None = None
    mask: Mask | None = None
    details: Collection[str] = ()

    def charge(self, verdict: Verdict) -> "Charge":
        """Return what one attempt costs: as the server says, else by its tokens and the price."""
        ending, usage, cost = TABLE[verdict.ending], verdict.usage, verdict.usage.cost
        if not self.openrouter and self.price is not None:
            cost = None  # the price is the job's own word; what another server reports need not be in USD
        if cost is None and usage.completion_tokens is not None:
            cost = self.cost_by_tokens(usage)
        if cost is not None:
            # Of a request in parts the first may be billed, and the last be lost.
            return Charge(cost, maybe=ending.maybe_billed, keep=ending.maybe_billed)
        # What a model wrote was computed, and so it is billed, though this reply reports no cost.
        wrote = verdict.text is not None and ending.blames is not Blame.SERVER
        maybe = ending.maybe_billed or (wrote and (self.openrouter or self.price is not None))
        # The model behind a gateway that did not wait continues to write. OpenRouter bills nothing then.
        maybe = maybe or (verdict.code in _GATEWAY_TIMEOUTS and self.price is not None and not self.openrouter)
        return Charge(None, maybe, keep=maybe or wrote)

    def cost_by_tokens(self, usage: Usage) -> Pico | None:
        """Return what these tokens cost by the price; None where there is none, or nobody counted them."""
        if self.price is None or usage.prompt_tokens is None:
            return None
        read, written = usage.cached_tokens or 0, usage.cache_write_tokens or 0
        return self.price.cost(usage.prompt_tokens, usage.completion_tokens or 0, read, written)


class Charge(NamedTuple):
    """What one attempt costs, in picodollars; None where nobody says.

    `maybe`: it may be billed, and nobody said how much. `keep`: its reservation stays; so does the worst case of an
    answer without any price, since nothing else would hold a cap.
    """

    cost: Pico | None
    maybe: bool
    keep: bool


@dataclass(frozen=True, slots=True)
class Time:
    """Where time and jitter come from: seconds, monotonic and Unix; jitter in [0, 1).

    `speed` is how many seconds of `clock` pass in one second of the event loop: a rehearsal may run faster.
    """

    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    jitter: Callable[[], float] = random.random
    speed: float = 1.0


REAL_TIME = Time()


@dataclass(slots=True)
class Tally:
    """What people see of a pool while it works; counts are of questions in this run, money is in picodollars.

    `left` counts the questions that were asked, or might have been, and are left to the next run.
    """

    ok: int = 0
    failed: int = 0
    left: int = 0
    requests: int = 0
    in_flight: int = 0
    waiting: int = 0
    limit: int = 0
    cost: int = 0
    possibly_billed: int = 0
    gate_why: str = ""
    waiting_for: str = ""
    oldest: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)
    answered_at: float | None = None

    def add(self, other: "Tally") -> None:
        """Add the counts and the money of another pool, or of the batch lane, of the same run."""
        self.ok += other.ok
        self.left += other.left
        self.requests += other.requests
        self.cost += other.cost
        self.possibly_billed += other.possibly_billed
        for error_type, number in other.errors.items():
            self.count_failure(error_type, number)

    def count_failure(self, error_type: str, number: int = 1) -> None:
        """Count failed questions; a negative number takes them back."""
        self.failed += number
        self.errors[error_type] = self.errors.get(error_type, 0) + number

    def count_abandoned(self) -> None:
        """Count a request whose reply nobody waits for."""
        self.in_flight -= 1
        self.requests += 1
        self.possibly_billed += 1

    def cap_reached(self, questions: int, least: Pico) -> str:
        """Return why the cap stops a run of that many questions, of which the next one costs at least `least` at worst.

        The need of the rest is estimated from the cost of the others, rounded up.
        """
        done = self.ok + self.failed
        rest = max(1, questions - done)
        needed = least * rest
        if self.cost and done:
            needed = least - (-self.cost * rest // done)
        return (
            f"limits.max_cost_usd is reached: {show(self.cost)} is spent and the next request may cost {show(least)}; "
            f"the other {rest:,} questions need about {show(needed, ROUND_CEILING)}"
        )


CAP_TOO_LOW = "cap_too_low"
"""The ending of a run whose cap admits no question that is left, even when nothing is spent."""


def cap_too_low(cap: Pico, questions: int, least: Pico) -> str:
    """Return why a cap admits none of a run's questions; `least` is the worst case of the cheapest."""
    one, every = show(least, ROUND_CEILING), show(Pico(least * questions), ROUND_CEILING)
    more = f", all {questions:,} about {every}" if questions > 1 else ""
    return f"limits.max_cost_usd ({show(cap)}) is too low: one question may cost {one}{more}"


@dataclass(slots=True)
class Work:
    """One question: where its row is, the values its prompt needs, and how far it got. Money is in picodollars.

    `doubtful`: it failed before while others succeeded, in this run or an earlier one, so that its failures prove
    nothing about the server. `alone` counts the refusals for which the server had nothing else to do, `bought` the
    replies that may be billed and were lost while no outage of the server was certain. `refusals` counts replies that
    would stop or hold the run, if others succeeded after them; `witness`: it was sent while others waited to learn
    whose such a reply is. `refused_since` is when the first of the requests was sent that were refused again and again.
    """

    question: int
    position: int
    values: tuple[Any, ...]
    body: bytes | None = None
    turns: list[dict[str, Any]] = field(default_factory=list)
    repairs: int = 0
    tries: Tries = field(default_factory=Tries)
    attempts: int = 0
    cost: int = 0
    possibly_billed: int = 0
    permit: Permit | None = None
    sent_at: float = 0.0
    last: Outcome | None = None
    doubtful: bool = False
    alone: int = 0
    bought: int = 0
    failed_at: float | None = None
    probe: bool = False
    deferred: bool = False
    reconnects: bool = False
    refusals: int = 0
    refused_since: float | None = None
    witness: bool = False

    def paid(self, charge: Charge) -> None:
        """Count one attempt and its money."""
        self.attempts += 1
        self.cost += charge.cost or 0
        self.possibly_billed += charge.maybe

    def outcome(
        self,
        status: Status,
        verdict: Verdict,
        reply: Reply,
        *,
        at: float,
        rules: Rules,
    ) -> Outcome:
        """Return how the question stands after this reply."""
        usage, failed = verdict.usage, status is not Status.OK
        # By position, 0.8 µs: with 26 names it takes 2.4.
        return Outcome(
            self.question,
            status,
            at,
            verdict.answer,
            verdict.text if failed else None,
            verdict.ending if failed else None,
            verdict.code if failed else None,
            verdict.message if failed else None,
            verdict.http_status,
            self.attempts,
            usage.prompt_tokens,
            usage.completion_tokens,
            Pico(self.cost),
            self.possibly_billed,
            usage.cached,
            verdict.model,
            verdict.provider,
            verdict.finish_reason,
            verdict.generation_id,
            reply.seconds,
            rules.max_tokens,
            usage.cached_tokens,
            usage.cache_write_tokens,
            verdict.service_tier,
            verdict.reasoning if "reasoning" in rules.details else None,
            verdict.citations if "citations" in rules.details else None,
        )

    def unsent(self, problem: RowProblem, *, at: float) -> Outcome:
        """Return the outcome of a row for which no request can be made."""
        return Outcome(
            self.question,
            Status.FAILED,
            at,
            error_type=problem.error_type,
            error_message=problem.message,
            attempts=self.attempts,
            cost=Pico(self.cost),
            possibly_billed=self.possibly_billed,
        )

    def abandoned(self, *, at: float) -> Outcome:
        """Return the outcome of a question that was in flight when the run gave up waiting."""
        return Outcome(
            self.question,
            Status.PENDING,
            at,
            error_type="timeout",
            error_message="given up when the run stopped; the request may be billed",
            attempts=self.attempts + 1,
            cost=Pico(self.cost),
            possibly_billed=self.possibly_billed + 1,
        )


class Refusal(NamedTuple):
    """A question whose reply would stop or hold the whole run, and what would be done about that."""

    work: Work
    outcome: Outcome
    verdict: Verdict
    ending: Ending
    decision: Decision


def recorded(outcome: Outcome) -> Outcome:
    """Return an outcome to be put again: the checkpoint adds up, and what it has cost is recorded already."""
    return outcome._replace(attempts=0, cost=ZERO, possibly_billed=0)
