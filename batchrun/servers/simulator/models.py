"""The models that the simulator lists, their prices, and what a request costs. Amounts are picodollars (10⁻¹² USD)."""

import re
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

PICO = 10**12
"""Picodollars in a US dollar."""
IMAGE_TOKENS = 258
_SLUG = re.compile(r"[\w.-]+/[\w.-]+(:[\w-]+)?")
_PARAMETERS = (
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "frequency_penalty",
    "presence_penalty", "seed", "stop", "reasoning", "response_format", "structured_outputs",
)  # fmt: skip


TEXT, DECISIONS = "text", "decisions"
"""What a model answers with."""

VARIANT = ":batch"
"""The end of a model's name at the price of batches, which is half."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model: `prompt` and `completion` are prices in picodollars per token, `context` is in tokens."""

    slug: str
    prompt: int = 150_000
    completion: int = 600_000
    context: int = 128_000
    answers: tuple[str, ...] = (TEXT,)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Return the price of one request, in picodollars."""
        return self.prompt * prompt_tokens + self.completion * completion_tokens


LISTED = {
    model.slug: model
    for model in (
        Model("sim/good", answers=(TEXT, DECISIONS)),
        Model("openai/gpt-4o-mini"),
        Model("openai/gpt-4o", 2_500_000, 10_000_000),
        Model("openai/gpt-4.1-nano", 100_000, 400_000, 1_047_576),
        Model("anthropic/claude-3.5-haiku", 800_000, 4_000_000, 200_000),
        Model("google/gemini-2.0-flash-001", 100_000, 400_000, 1_048_576),
        Model("mistralai/mistral-small-3.2-24b-instruct", 60_000, 180_000),
        Model("openai/gpt-oss-20b:free", 0, 0),
        Model("typesafe/jev-1.13", 42_000, 0, answers=(DECISIONS,)),
        Model("perplexity/pplx-decider-v1.2", 20_000, 0, 262_144, answers=(DECISIONS,)),
    )
}


def find(slug: object) -> Model | None:
    """Return the model of a name, at the default price if it is not listed; None if the name is malformed."""
    if not isinstance(slug, str) or not _SLUG.fullmatch(slug):
        return None
    base = slug.removesuffix(VARIANT)
    # Any job file runs on the simulator as it is, also with a model that is not listed.
    model = LISTED.get(base) or Model(base, answers=(TEXT, DECISIONS))
    return model if base == slug else _at_half_price(model)


def _at_half_price(model: Model) -> Model:
    return replace(model, slug=model.slug + VARIANT, prompt=model.prompt // 2, completion=model.completion // 2)


def count_tokens(text: str) -> int:
    """Return the number of tokens of a text: one for each four bytes."""
    return -(-len(text.encode()) // 4)


def to_usd(amount: int) -> float:
    """Return picodollars as the JSON number whose decimal text is exact (below a thousand dollars)."""
    return amount / PICO


def to_pico(usd: Decimal) -> int:
    """Return US dollars as picodollars."""
    return int(usd * PICO)


def catalogue(answers: str) -> list[dict[str, Any]]:
    """Return the entries of GET /models for models that answer with text or with decisions."""
    models = [model for model in LISTED.values() if answers in model.answers]
    batches = [_at_half_price(model) for model in models if answers == TEXT and model.prompt]
    return [_entry(model, answers) for model in (*models, *batches)]


def _entry(model: Model, answers: str) -> dict[str, Any]:
    return {
        "id": model.slug,
        "canonical_slug": model.slug,
        "name": f"{model.slug} (simulated)",
        "created": 1_700_000_000,
        "context_length": model.context,
        "architecture": {"input_modalities": ["text", "image"], "output_modalities": [answers], "tokenizer": "Other"},
        "pricing": {"prompt": _price(model.prompt), "completion": _price(model.completion), "request": "0"},
        "top_provider": {"context_length": model.context, "max_completion_tokens": None, "is_moderated": False},
        "supported_parameters": _PARAMETERS,
    }


def _price(amount: int) -> str:
    return f"{Decimal(amount) / PICO:f}"
