"""The models that the simulator lists, with their prices; other well-formed names are served at a default price."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from openrouter import cases

PER_USD = 10**12
DEFAULT = "sim/good"
_SLUG = re.compile(r"[\w.-]+/[\w./-]+(:[\w-]+)?")

_SAMPLING = (
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "top_a", "frequency_penalty",
    "presence_penalty", "repetition_penalty", "seed", "stop", "logit_bias", "logprobs", "top_logprobs", "verbosity",
)  # fmt: skip
_SUPPORTED = (*_SAMPLING, "reasoning", "reasoning_effort", "tools", "tool_choice", "parallel_tool_calls",
              "response_format", "structured_outputs")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    """A model: prices in USD as decimal strings (per token; `request` per request), sizes in tokens.

    Only a model with a price for reading has a prompt cache. `flex`: it is served at half its price, too.
    """

    slug: str
    prompt: str = "0.00000015"
    completion: str = "0.0000006"
    request: str = "0"
    context: int = 128_000
    supported: tuple[str, ...] = _SUPPORTED
    cache_read: str | None = None
    cache_write: str | None = None
    flex: bool = False


LISTED = {
    model.slug: model
    for model in (
        *(Model(f"sim/{name}") for name in cases.names()),
        Model("openai/gpt-4o-mini"),
        Model("openai/gpt-4o", "0.0000025", "0.00001"),
        Model("openai/gpt-4.1-nano", "0.0000001", "0.0000004", context=1_047_576),
        Model("anthropic/claude-3.5-haiku", "0.0000008", "0.000004", context=200_000),
        Model("google/gemini-2.0-flash-001", "0.0000001", "0.0000004", context=1_048_576),
        Model("mistralai/mistral-small-3.2-24b-instruct", "0.00000006", "0.00000018"),
        Model("perplexity/sonar", "0.000001", "0.000001", request="0.005"),
        Model("openai/gpt-oss-20b:free", "0", "0"),
        Model("meta-llama/llama-3.2-1b-instruct", "0.000000027", "0.0000002", supported=_SAMPLING),
        Model("openrouter/auto", "-1", "-1"),
        Model("anthropic/claude-sonnet-4.5", "0.000003", "0.000015", cache_read="0.0000003", cache_write="0.00000375"),
        Model("openai/gpt-4.1", "0.000002", "0.000008", cache_read="0.0000005"),
        Model("openai/gpt-5-mini", "0.00000025", "0.000002", cache_read="0.000000025", flex=True),
    )
}


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in picodollars (10⁻¹² USD): per token, and per request."""

    prompt: int
    completion: int
    request: int
    cache_read: int | None = None
    cache_write: int | None = None

    def of(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Return the most that one request costs, in picodollars."""
        dearest = max(self.prompt, self.cache_write or 0)
        return dearest * prompt_tokens + self.completion * completion_tokens + self.request

    def of_prompt(self, tokens: int, read: int, written: int) -> int:
        """Return the cost of a prompt, of which so much is read from a cache and written to it, in picodollars."""
        plain = self.prompt * (tokens - read - written) + self.request
        return plain + read * (self.cache_read or 0) + written * (self.cache_write or self.prompt)

    def halved(self) -> "Price":
        """Return the price of the flex tier."""
        read, write = (None if one is None else one // 2 for one in (self.cache_read, self.cache_write))
        return Price(self.prompt // 2, self.completion // 2, self.request, read, write)


def pico(usd: str | Decimal) -> int:
    """Return whole picodollars for USD; below zero (a router's price) counts as nothing."""
    return max(0, int(Decimal(usd) * PER_USD))


def find(slug: str) -> Model | None:
    """Return the model of a name; None where the name can't be a model's."""
    if slug.startswith("sim/"):
        try:
            case, _ = cases.find(slug[4:])
        except ValueError:
            return None
        return LISTED[f"sim/{case.name}"]
    return LISTED.get(slug) or (Model(slug) if _SLUG.fullmatch(slug) else None)


@lru_cache(maxsize=1024)
def _price(prompt: str, completion: str, model: Model) -> Price:
    read, write = (None if usd is None else pico(usd) for usd in (model.cache_read, model.cache_write))
    return Price(pico(prompt), pico(completion), pico(model.request), read, write)


def price(model: Model, prices: Mapping[str, tuple[str, str]]) -> Price:
    """Return what a model costs; `prices` (prompt and completion by model) win over the catalogue's."""
    prompt, completion = prices.get(model.slug, (model.prompt, model.completion))
    return _price(prompt, completion, model)


def listing(prices: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Return what GET /models lists."""
    extra = [Model(slug) for slug in prices if slug not in LISTED]
    return [_entry(model, prices) for model in (*LISTED.values(), *extra)]


def _entry(model: Model, prices: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    prompt, completion = prices.get(model.slug, (model.prompt, model.completion))
    cache = {"input_cache_read": model.cache_read, "input_cache_write": model.cache_write}
    return {
        "id": model.slug,
        "canonical_slug": model.slug,
        "name": f"{model.slug} (simulated)",
        "created": 1_700_000_000,
        "context_length": model.context,
        "architecture": {"modality": "text->text", "input_modalities": ["text", "image"],
                         "output_modalities": ["text"], "tokenizer": "Other", "instruct_type": None},
        "pricing": {"prompt": prompt, "completion": completion, "request": model.request, "image": "0",
                    "web_search": "0", "internal_reasoning": "0",
                    **{name: usd for name, usd in cache.items() if usd is not None}},
        "top_provider": {"context_length": model.context, "max_completion_tokens": None, "is_moderated": False},
        "per_request_limits": None,
        "supported_parameters": list(model.supported),
    }  # fmt: skip
