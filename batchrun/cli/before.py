"""What `check` and `preview` share: where they look up prices, and how they put a forecast."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from batchrun.money import show, to_usd

if TYPE_CHECKING:
    from batchrun.api import Endpoint, Prices
    from batchrun.runner.forecast import Forecast, Survey
    from batchrun.runner.prepare import Prepared

_MILLION = 10**6
_HOUR = 3600


@contextmanager
def reachable(endpoint: "Endpoint") -> "Iterator[Endpoint]":
    """Give the endpoint with an address that tells prices; a local model has none and is not loaded for it."""
    from batchrun.runner.asking import serving

    if endpoint.name == "local":
        yield endpoint
        return
    with serving(endpoint) as served:
        yield served


def rows_line(found: "Survey") -> str:
    """Say how the rows stand and how many requests that makes."""
    parts = [
        (found.answered, "answered"),
        (found.failed, "failed for good"),
        (found.skipped, "left out by input.where"),
        (sum(reason.rows for reason in found.unasked), "can't be asked"),
        (found.open, "to ask"),
    ]
    told = ", ".join(f"{number:,} {what}" for number, what in parts if number or what == "to ask")
    about = "" if found.exact else "about "
    shared = " (equal questions are asked once)" if found.questions < found.open else ""
    requests = "request" if found.questions == 1 else "requests"
    return f"{found.rows:,} rows: {told}; {about}{found.questions:,} {requests}{shared}"


def cost_text(p: "Prepared", found: "Survey", likely: "Forecast", prices: "Prices") -> str:
    """Say what the open questions will cost."""
    from batchrun.runner.budget import unbounded

    if likely.cost is None:
        why = f" ({prices.problem})" if prices.problem else ""
        text = f'unknown: no price is known for "{p.endpoint.model}"{why}; set model.price'
    else:
        text = f"likely {show(likely.cost)}"
        if p.endpoint.name == "simulator":
            text += " (simulated: nothing is charged)"
    if found.worst is not None:
        return f"{text}, at worst {show(found.worst)} if all answers were as long as they may be"
    if likely.cost is None:
        return text
    causes = unbounded(p.job) or (["no max_tokens"] if p.max_tokens is None else ["a fallback without a known price"])
    return f"{text}, with no upper bound ({', '.join(causes)})"


def basis_text(likely: "Forecast") -> str:
    """Say what the estimate rests on."""
    if likely.answers:
        return f"as {likely.answers:,} answers of this job had it, {likely.characters_per_token:.1f} characters a token"
    return f"a rule of thumb, {likely.characters_per_token:g} characters a token, until there are answers"


def price_text(p: "Prepared", prices: "Prices", now: float) -> str | None:
    """Say what the model costs and how old that knowledge is; None where it is unknown."""
    price = prices.likely.get(p.endpoint.model)
    if price is None:
        return None
    text = f"{_usd(price.prompt * _MILLION)} for prompts, {_usd(price.completion * _MILLION)} for answers"
    text += " per million tokens"
    if price.request:
        text += f", {_usd(price.request)} a request"
    if prices.fetched_at is not None:
        hours = max(0, int((now - prices.fetched_at) / _HOUR))
        text += f", listed {hours} h ago" if hours else ", listed just now"
    return text


def _usd(amount: int) -> str:
    """Give a price as it is listed: all its digits."""
    return f"${to_usd(amount).normalize():f}"
