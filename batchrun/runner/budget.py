"""Caps on spending: amounts are reserved before a request and settled after it, exactly.

A cap for a day must hold over SIGKILLs, which leave nobody to report the requests in flight. So a run spends only
money that it has leased: the most that it may have spent by then, committed to the checkpoint beforehand. A dead run's
lease counts as spent that day. To waste little of the cap, little is at risk: at most 3 % of the cap in the day's first
run, half of it after each kill, and 0.7 % in the end, so that ten kills waste a tenth of it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from importlib.util import find_spec
from typing import Any, Protocol

from batchrun.api import Caching, Prices
from batchrun.checkpoint import Checkpoint
from batchrun.errors import UserError
from batchrun.job import PAGE_USD, PAID_ENGINE, Job
from batchrun.money import ZERO, Pico, Price, from_usd, show
from batchrun.runner.prepare import Prepared
from batchrun.terminal import aside

MESSAGE_TOKENS = 16
"""Tokens that a chat template may add to one message."""

QUESTION_TOKENS = 512
"""Tokens that a decision model's template may add to one question; a title of six words was billed as 287."""

LEASE_WAIT = 0.005
"""Seconds after which a request looks again whether its lease is committed."""

_PER_MILLE = 1_000
_STEP = 5
"""Thousandths of a day's cap that are leased ahead of need."""
_AT_RISK, _ALWAYS = 60, 7
"""Thousandths of a day's cap: half of the first, less what the day's dead runs lost, may be in flight; never less than
the second."""


class Lender(Protocol):
    """Commits leases; the checkpoint's writer."""

    @property
    def leased(self) -> int:
        """What this run may have spent by now, as it is committed."""

    def lease(self, amount: Pico) -> None:
        """Commit soon that this run may have spent this amount; a smaller one than before changes nothing."""


class Budget:
    """The caps of a run and of a day, in picodollars; None: without a cap.

    `spent` + `reserved` never exceeds a cap as long as no request costs more than its reservation.
    `spent_today` is what earlier runs of this job may have spent since 00:00 UTC, `lost_today` the part of it that is
    only known from leases of dead runs. Without a `lender` nothing has to be leased.
    """

    def __init__(
        self,
        cap_run: Pico | None = None,
        cap_day: Pico | None = None,
        spent_today: Pico = ZERO,
        *,
        lost_today: Pico = ZERO,
        lender: Lender | None = None,
    ) -> None:
        caps: list[int] = []
        if cap_run is not None:
            caps.append(cap_run)
        if cap_day is not None:
            caps.append(max(0, cap_day - spent_today))
        self._cap = min(caps, default=None)
        self._spent = self._in_flight = self._held = 0
        self.surpassed: Callable[[Pico, Pico], None] = lambda *_: None
        """Called where a request cost more than was reserved for it."""
        self._lender = None if cap_day is None else lender
        day = cap_day or 0
        self._step = day * _STEP // _PER_MILLE
        self._risk = max(day * _ALWAYS // _PER_MILLE, (day * _AT_RISK // _PER_MILLE - lost_today) // 2)

    @property
    def spent(self) -> Pico:
        """What this run is known to have spent."""
        return Pico(self._spent)

    @property
    def reserved(self) -> Pico:
        """What requests in flight may still cost, and what may have been billed."""
        return Pico(self._in_flight + self._held)

    def wait(self, amount: Pico) -> float:
        """Return the seconds until this amount may be reserved: 0 when it is leased, or when the cap will refuse it.

        Infinity where a request in flight must end first.
        """
        needed = self._spent + self._in_flight + self._held + amount
        if self._lender is None or self._cap is None or needed > self._cap:
            return 0.0
        if self._in_flight and self._in_flight + amount > self._risk:
            return math.inf
        if needed + self._step // 2 > self._lender.leased:
            ahead = min(needed + self._step, self._spent + self._held + self._risk, self._cap)
            self._lender.lease(Pico(max(needed, ahead)))
        return 0.0 if needed <= self._lender.leased else LEASE_WAIT

    def reserve(self, amount: Pico) -> bool:
        """Reserve a request's worst case; False, and nothing reserved, if a cap would not hold."""
        if self._cap is not None and self._spent + self._in_flight + self._held + amount > self._cap:
            return False
        self._in_flight += amount
        return True

    def settle(self, reserved: Pico, spent: Pico, *, keep: bool = False) -> None:
        """End a request: its cost is spent and its reservation freed; `keep` holds on to it, since it may be billed."""
        self._spent += spent
        self._in_flight -= reserved
        if spent > reserved:
            self.surpassed(reserved, spent)
        if keep:
            self._held += max(0, reserved - spent)


class Reserve:
    """The amount to reserve for a body: its worst case, and more once a bill was higher than that."""

    def __init__(self, worst: Callable[[int], Pico], warn: Callable[[str], None]) -> None:
        self._worst, self._warn = worst, warn
        self._percent = 100

    def amount(self, body: bytes) -> Pico:
        """Return the amount for a request's body, in picodollars."""
        return Pico(-(-self._worst(len(body)) * self._percent // 100))

    def raise_to(self, reserved: Pico, billed: Pico) -> None:
        """Raise all amounts so that this bill would have been covered, and report it."""
        if not reserved:
            return
        self._percent = max(self._percent, -(-self._percent * billed // reserved))
        self._warn(
            f"a request cost {show(billed)}, more than the {show(reserved)} that was reserved for it; from here on "
            f"{self._percent / 100:g} times the estimate is reserved, and requests in flight may pass the cap"
        )


def batch_prices(prepared: Prepared, prices: Prices) -> Prices:
    """Return prices with those of batches in the place of the live ones.

    Raises UserError where there is a cap and nobody says what a batch costs.
    """
    model = prepared.endpoint.model
    if prices.batch is not None:
        return replace(prices, likely={model: prices.batch.likely}, worst={model: prices.batch.worst})
    if prepared.job.limits.max_cost_usd is not None:
        raise UserError(
            f'limits.max_cost_usd is set, but the price of "{model}" in a batch is unknown: set model.price.batch'
        )
    return replace(prices, likely={}, worst={})


def budget_of(
    prepared: Prepared, prices: Prices, checkpoint: Checkpoint | None, today: str, run_id: int | None = None
) -> Budget:
    """Return the budget of a run on a UTC day; a cap that can't be kept is a UserError.

    What the run has spent in batches so far, and what open batches may cost, counts as spent.
    """
    cap = prepared.job.limits.cap
    if prepared.job.limits.max_cost_usd is None:
        return Budget()
    if prepared.job.model.max_request_usd is None:
        _refuse_unbounded(prepared, prices)
    if checkpoint is None:
        return Budget(_amount(cap.run), _amount(cap.day))
    cap_run, batches = _amount(cap.run), checkpoint.batches
    if cap_run is not None and run_id is not None:
        cap_run = Pico(max(0, cap_run - checkpoint.spent(run_id=run_id) - batches.reserved(run_id=run_id)))
    return Budget(
        cap_run,
        _amount(cap.day),
        Pico(checkpoint.spent(day=today) + checkpoint.leased(today) + batches.reserved(day=today)),
        lost_today=checkpoint.leased(today, dead=True),
        lender=checkpoint.writer,
    )


def unsettled(budget: Budget, checkpoint: Checkpoint, run_id: int | None) -> Pico:
    """Return what a run may be billed for in addition to its known spending: lost replies, open batches."""
    if run_id is None:
        return ZERO
    return Pico(budget.reserved + checkpoint.batches.reserved(run_id=run_id))


def _amount(usd: Decimal | None) -> Pico | None:
    return None if usd is None else from_usd(usd)


def _refuse_unbounded(prepared: Prepared, prices: Prices) -> None:
    models = (prepared.endpoint.model, *prepared.job.model.fallbacks)
    if unknown := [name for name in models if name not in prices.worst]:
        raise UserError(
            f'limits.max_cost_usd is set, but the price of "{unknown[0]}" is unknown{aside(prices.problem)}: set '
            "model.price or model.max_request_usd"
        )
    if prepared.max_tokens is None:
        raise UserError("limits.max_cost_usd is set, but nothing bounds the answers: set model.params.max_tokens")
    if causes := unbounded(prepared.job):
        raise UserError(
            f"limits.max_cost_usd is set, but the cost of a request is not bounded ({', '.join(causes)}): set "
            "model.max_request_usd"
        )


def worst_case(prepared: Prepared, prices: Prices) -> Callable[[int], Pico] | None:
    """Return what a body of that many bytes can cost at most, at the dearest of its models; None where nobody knows.

    No tokenizer makes more tokens than UTF-8 bytes. For a decision model it is an estimate: each question may be put to
    the state alone, in a template that nobody shows.
    """
    if prepared.job.model.max_request_usd is not None:
        most = from_usd(prepared.job.model.max_request_usd)
        return lambda _: most
    questions = len(prepared.form.questions)
    models = (prepared.endpoint.model, *prepared.job.model.fallbacks)
    if prepared.max_tokens is None or unbounded(prepared.job) or any(name not in prices.worst for name in models):
        return None
    if questions:
        price = prices.worst[prepared.endpoint.model]
        return lambda size: price.cost(questions * (size + QUESTION_TOKENS), 0)
    worst = [_with_writes(price, prices.likely[name], prepared.caching) for name, price in prices.worst.items()]
    return bound(worst, messages=len(prepared.job.prompt.turns) + 1, max_tokens=prepared.max_tokens)


def unknown(_size: int) -> Pico:
    """Return the worst case where nobody knows it: nothing is reserved."""
    return ZERO


def _with_writes(worst: Price, likely: Price, caching: Caching | None) -> Price:
    """Return a worst price that covers writing the prompt cache, also where nobody lists what that costs."""
    if caching is None or likely.cache_write is not None:
        return worst
    return replace(worst, prompt=Pico(max(worst.prompt, -(-likely.prompt * caching.write_percent // 100))))


def page_fee(prepared: Prepared) -> Callable[[Sequence[Any]], Pico]:
    """Return the fee for the pages of a row's local PDFs; 0 for a row whose pages nobody knows."""
    if prepared.job.prompt.pdf_engine != PAID_ENGINE or find_spec("pypdf") is None:
        return lambda _: ZERO
    each = from_usd(PAGE_USD)
    return lambda values: Pico(each * prepared.renderer.pages(values))


def bound(prices: Sequence[Price], *, messages: int, max_tokens: int) -> Callable[[int], Pico]:
    """Return what bounds the cost of a request of text by the bytes of its body, at the dearest of the prices."""
    around = MESSAGE_TOKENS * messages
    return lambda size: max(price.cost(size + around, max_tokens) for price in prices)


# What can make a request cost more than its worst case by bytes.


def _items(value: Any) -> Sequence[Any]:  # noqa: ANN401  (JSON)
    return value if isinstance(value, list | tuple) else ()


def _plugins(value: Any) -> Iterator[str]:  # noqa: ANN401  (JSON)
    for plugin in _items(value):
        name = plugin.get("id") if isinstance(plugin, dict) else plugin
        if name not in {"response-healing", "context-compression", "moderation"}:
            yield f"the plugin {name}"


def _tools(value: Any) -> Iterator[str]:  # noqa: ANN401  (JSON)
    for tool in _items(value):
        if isinstance(tool, dict) and tool.get("type", "function") != "function":
            yield f"the tool {tool['type']}"


def _tier(value: Any) -> Iterator[str]:  # noqa: ANN401  (JSON)
    if value and value not in {"auto", "default", "flex"}:
        yield f"params.service_tier: {value}"


def _modalities(value: Any) -> Iterator[str]:  # noqa: ANN401  (JSON)
    if list(value) != ["text"]:
        yield "params.modalities"


_UNBOUNDED: Mapping[str, Callable[[Any], Iterator[str]]] = {
    "plugins": _plugins,
    "tools": _tools,
    "web_search_options": lambda _: iter(["params.web_search_options"]),
    "audio": lambda _: iter(["params.audio"]),
    "prediction": lambda _: iter(["params.prediction"]),
    "modalities": _modalities,
    "service_tier": _tier,
}
_UNBOUNDED_VARIANTS = (":online", ":nitro")


def unbounded(job: Job) -> tuple[str, ...]:
    """Name what can make a request cost more than its worst case by bytes; a cap then needs model.max_request_usd."""
    named: list[str] = []
    if any(part.image for part in job.prompt.parts):
        named.append("an image in the prompt")
    if job.prompt.pdf_engine:
        named.append("a PDF in prompt.messages")
    for name, look in _UNBOUNDED.items():
        if (value := job.model.params.get(name)) is not None:
            named += look(value)
    models = (job.model.name or "", *job.model.fallbacks)
    return (*named, *(f"the model variant {name}" for name in models if name.endswith(_UNBOUNDED_VARIANTS)))
