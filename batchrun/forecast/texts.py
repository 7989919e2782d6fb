"""Lines that `check` and `preview` share: rows, cost, price and time before a run."""

import time
from decimal import Decimal

from batchrun.api import Prices
from batchrun.forecast.likely import family, is_marked
from batchrun.job import PAGE_USD, PAID_ENGINE
from batchrun.money import Price, from_usd, show, to_usd
from batchrun.prepare import Prepared, unbounded
from batchrun.records import Preview, Unasked
from batchrun.terminal import aside, duration, plural

_MILLION = 10**6
_HOUR = 3600
_NOTABLE = 100
"""Tokens with which all requests begin, from which on the prompt cache is worth a line."""


def rows_line(found: Preview) -> str:
    """Return how the rows stand and how many requests that makes."""
    parts = [
        (found.answered, "answered"),
        (found.failed, "failed permanently"),
        (found.in_batch, "out in a batch"),
        (found.skipped, "filtered out by input.where"),
        (sum(reason.rows for reason in found.unasked), "could not be rendered"),
        (found.open, "to ask"),
    ]
    states = ", ".join(f"{number:,} {what}" for number, what in parts if number or what == "to ask")
    about = _about(found)
    text = f"{plural(found.rows, 'row')}: {about}{states}; {about}{plural(found.questions, 'request')}"
    if found.sample is not None:
        text += f" of the {found.sample:,} questions of --sample"
    elif found.questions < found.open:
        text += " (equal questions are asked once)"
    return text


def _about(found: Preview) -> str:
    return "" if found.exact else "about "


def unasked_text(reason: Unasked) -> str:
    """Return why some rows can't be asked, with the first of them."""
    return f"{plural(reason.rows, 'row')} could not be rendered, first row {reason.row:,}: {reason.message}"


def cost_text(prepared: Prepared, found: Preview, prices: Prices) -> str:
    """Return what the open questions will cost."""
    if found.cost_usd is None:
        text = f'unknown: no price is known for "{prepared.endpoint.model}"{aside(prices.problem)}; set model.price'
    else:
        text = f"likely {_dollars(found.cost_usd)}"
        if found.uncached_cost_usd is not None and found.uncached_cost_usd != found.cost_usd:
            text += f" with the prompt cache, {_dollars(found.uncached_cost_usd)} without it"
        if prepared.job.prompt.pdf_engine and not found.answers:
            # OpenRouter turns pages into text or images; how many tokens that makes shows only in the bill.
            text += " and the tokens of the PDFs, which nobody knows before"
        if prepared.endpoint.name == "simulator":
            text += " (simulated: nothing is charged)"
    if found.cost_usd is not None and found.max_cost_usd == 0:
        return "$0"
    if found.max_cost_usd is not None:
        if prepared.form.questions:
            return f"{text}, at most about {_dollars(found.max_cost_usd)} (the server's own templates are estimated)"
        return f"{text}, at most {_about(found)}{_dollars(found.max_cost_usd)} (if every answer uses all of max_tokens)"
    if found.cost_usd is None:
        return text
    causes = ", ".join(unbounded(prepared.job)) or "a fallback without a known price"
    if prepared.max_tokens is None:
        causes = "no max_tokens"
    return f"{text}, with no upper bound ({causes})"


def basis_text(likely: Preview) -> str:
    """Return what the estimate rests on."""
    if likely.answers:
        answers = plural(likely.answers, "answer")
        return f"from {answers} of this job, {likely.characters_per_token:.1f} characters a token"
    return f"estimated at {likely.characters_per_token:g} characters a token until there are answers"


def time_text(prepared: Prepared, likely: Preview) -> str:
    """Return how long the open questions take, and at what pace."""
    limits = prepared.job.limits
    took = duration(max(1.0, likely.seconds))
    pace = f"{likely.in_flight:,} in flight"
    if isinstance(limits.concurrency, str) and prepared.endpoint.name != "local":
        # The limit that the server has is found during the run, never before.
        took, pace = f"at least {took}", f"up to {pace}, as many as the server takes"
    else:
        took = f"about {took}"
    if limits.requests_per_minute:
        pace += f", {plural(limits.requests_per_minute, 'request')} a minute"
    if limits.tokens_per_minute:
        pace += f", {limits.tokens_per_minute:,} tokens a minute"
    return f"{took} ({pace})"


def price_text(prepared: Prepared, prices: Prices) -> str | None:
    """Return what the model costs and how old that knowledge is; None where it is unknown."""
    price = prices.likely.get(prepared.endpoint.model)
    if price is None:
        return None
    text = _per_million(price)
    if price.request:
        text += f", {_usd(price.request)} a request"
    if prepared.form.questions and prices.listed is not None and prices.listed.context is not None:
        text += f", {prices.listed.context:,} tokens of context"
    if (engine := prepared.job.prompt.pdf_engine) == PAID_ENGINE:
        text += f", {_usd(from_usd(1_000 * PAGE_USD))} per 1,000 pages that {engine} reads"
    if prices.fetched_at is not None:
        hours = int((time.time() - prices.fetched_at) / _HOUR)
        text += f", listed {hours} h ago" if hours > 0 else ", listed just now"
    return text


def batch_price_text(found: Preview, prices: Prices) -> str | None:
    """Return what the model and the open questions cost in the provider's batches; None where nobody says."""
    if prices.batch is None or found.batch_cost_usd is None:
        return None
    return f"{_per_million(prices.batch.likely)}, likely {_dollars(found.batch_cost_usd)}"


def cache_text(prepared: Prepared, found: Preview) -> str | None:
    """Return what the prompt cache can hold of this job; None where that is next to nothing."""
    loose = 0
    if is_marked(prepared):
        loose = round(prepared.beginning.loose / (found.characters_per_token or 1))
    if found.beginning_tokens + loose < _NOTABLE or prepared.endpoint.decisions:
        return None
    text = f"all requests begin with the same text, about {found.beginning_tokens:,} tokens"
    caching = prepared.caching or family(prepared)
    if prepared.caching is None and prepared.job.batch is not None:
        return f"{text}; it is not used in batches"
    if prepared.caching is None and not prepared.job.model.prompt_cache:
        return f"{text}; it is not used (model.prompt_cache)"
    if caching is None:
        return f"{text}; nothing is sent for it, since this model is not known to have one"
    text += f"; {prepared.endpoint.model} caches it from {caching.minimum:,} tokens on"
    if prepared.caching is not None and prepared.caching.mark is not None:
        text += " (its end is marked by cache_control)"
    if found.beginning_tokens < caching.minimum <= found.beginning_tokens + loose:
        text += f"; the next text begins with {loose:,} more: move them into prompt.system to have them cached"
    return text


def flex_text(prepared: Prepared, found: Preview) -> str | None:
    """Return what the flex tier costs; None where the job does not ask OpenRouter for it."""
    asked = prepared.job.model.params.get("service_tier") == "flex" and prepared.endpoint.openrouter
    if not asked or found.cost_usd is None:
        return None
    half = _dollars(found.cost_usd / 2)
    return f"flex costs half at most providers, likely {half}; caps count the full price, since another tier may serve"


def _per_million(price: Price) -> str:
    prompts, answers = _usd(price.prompt * _MILLION), _usd(price.completion * _MILLION)
    return f"{prompts} for prompts, {answers} for answers per million tokens"


def _dollars(usd: Decimal) -> str:
    return show(from_usd(usd))


def _usd(amount: int) -> str:
    """Return a price as it is listed: all its digits."""
    return f"${to_usd(amount).normalize():f}"
