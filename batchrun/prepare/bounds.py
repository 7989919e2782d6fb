"""What a request can cost at most, so that a cap holds before its bill is known; and what leaves it without a bound."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from batchrun.api import Caching, Prices
from batchrun.errors import UserError
from batchrun.job import PAGE_USD, PAID_ENGINE, Job
from batchrun.money import ZERO, Pico, Price, from_usd
from batchrun.prepare.prepared import Prepared
from batchrun.terminal import aside

MESSAGE_TOKENS = 16
"""Tokens that a chat template may add to one message."""

QUESTION_TOKENS = 512
"""Tokens that a decision model's template may add to one question; a title of six words was billed as 287."""

Worst = Callable[[int, Sequence[Any]], Pico]
"""The most that a request can cost, in picodollars, by the bytes of its body and the values of its row."""


def worst_case(prepared: Prepared, prices: Prices) -> Worst | None:
    """Return what a request can cost at most, at the dearest of its models; None where nobody knows.

    For a decision model it is an estimate: each question may be put to the state alone, in a template that nobody
    shows.
    """
    by_size, fee = _by_size(prepared, prices), page_fee(prepared)
    if by_size is None:
        return None
    return lambda size, values: Pico(by_size(size) + fee(values))


def _by_size(prepared: Prepared, prices: Prices) -> Callable[[int], Pico] | None:
    if prepared.job.model.max_request_usd is not None:
        most = from_usd(prepared.job.model.max_request_usd)
        return lambda _: most
    if prepared.max_tokens is None or unbounded(prepared.job) or _unpriced(prepared, prices):
        return None
    if questions := len(prepared.form.questions):
        price = prices.worst[prepared.endpoint.model]
        return lambda size: price.cost(questions * (size + QUESTION_TOKENS), 0)
    worst = [_with_writes(price, prices.likely[name], prepared.caching) for name, price in prices.worst.items()]
    return bound(worst, messages=len(prepared.job.prompt.turns) + 1, max_tokens=prepared.max_tokens)


def bound(prices: Sequence[Price], *, messages: int, max_tokens: int) -> Callable[[int], Pico]:
    """Return what bounds the cost of a request of text by the bytes of its body, at the dearest of the prices.

    No tokenizer makes more tokens than UTF-8 bytes.
    """
    around = MESSAGE_TOKENS * messages
    return lambda size: max(price.cost(size + around, max_tokens) for price in prices)


def _with_writes(worst: Price, likely: Price, caching: Caching | None) -> Price:
    """Return a worst price that covers writing the prompt cache, also where nobody lists what that costs."""
    # Anthropic bills 125 % for tokens that are written to its cache; a list without that price must not break a cap.
    if caching is None or likely.cache_write is not None:
        return worst
    return replace(worst, prompt=Pico(max(worst.prompt, -(-likely.prompt * caching.write_percent // 100))))


def page_fee(prepared: Prepared) -> Callable[[Sequence[Any]], Pico]:
    """Return the fee for the pages of a row's local PDFs; 0 for a row whose pages nobody knows."""
    if prepared.job.prompt.pdf_engine != PAID_ENGINE or find_spec("pypdf") is None:
        return lambda _: ZERO
    each = from_usd(PAGE_USD)
    return lambda values: Pico(each * prepared.renderer.pages(values))


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


def refuse_unbounded(prepared: Prepared, prices: Prices) -> None:
    """Raise UserError where a cap is set that can't be kept, since nobody knows what a request costs at most."""
    job = prepared.job
    if job.limits.max_cost_usd is None or job.model.max_request_usd is not None:
        return
    if unpriced := _unpriced(prepared, prices):
        raise UserError(
            f'limits.max_cost_usd is set, but the price of "{unpriced[0]}" is unknown{aside(prices.problem)}: set '
            "model.price or model.max_request_usd",
            quotes_data=bool(prices.problem),
        )
    if prepared.max_tokens is None:
        raise UserError("limits.max_cost_usd is set, but nothing bounds the answers: set model.params.max_tokens")
    if causes := unbounded(job):
        raise UserError(
            f"limits.max_cost_usd is set, but the cost of a request is not bounded ({', '.join(causes)}): set "
            "model.max_request_usd"
        )


def _unpriced(prepared: Prepared, prices: Prices) -> list[str]:
    models = (prepared.endpoint.model, *prepared.job.model.fallbacks)
    return [name for name in models if name not in prices.worst]


_FREE_PLUGINS = {"response-healing", "context-compression", "moderation"}

_HARMLESS: Mapping[str, Callable[[Any], bool]] = {
    "plugins": lambda value: {_name_of(plugin) for plugin in _items(value)} <= _FREE_PLUGINS,
    "tools": lambda value: all(_is_function(tool) for tool in _items(value)),
    "web_search_options": lambda _: False,
    "audio": lambda _: False,
    "prediction": lambda _: False,
    "modalities": lambda value: list(value) == ["text"],
    "service_tier": lambda value: value in {"", "auto", "default", "flex"},
}
"""Parameters that can make a request cost more than its worst case by bytes, and with which values they do not."""

_UNBOUNDED_VARIANTS = (":online", ":nitro")


def unbounded(job: Job) -> tuple[str, ...]:
    """Name what can make a request cost more than its worst case by bytes; a cap then needs model.max_request_usd."""
    named: list[str] = []
    if any(part.image for _, part in job.prompt.parts):
        named.append("an image in the prompt")
    if job.prompt.pdf_engine:
        named.append("a PDF in prompt.messages")
    for name, is_harmless in _HARMLESS.items():
        value = job.model.params.get(name)
        if value is not None and not is_harmless(value):
            named.append(f"params.{name}")
    models = (job.model.name or "", *job.model.fallbacks)
    return (*named, *(f"the model variant {name}" for name in models if name.endswith(_UNBOUNDED_VARIANTS)))


def _items(value: Any) -> Sequence[Any]:  # noqa: ANN401  (JSON)
    return value if isinstance(value, list | tuple) else ()


def _name_of(plugin: Any) -> Any:  # noqa: ANN401  (JSON)
    return plugin.get("id") if isinstance(plugin, dict) else plugin


def _is_function(tool: Any) -> bool:  # noqa: ANN401  (JSON)
    return not isinstance(tool, dict) or tool.get("type", "function") == "function"
