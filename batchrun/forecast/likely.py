"""What questions will likely need: tokens, money and time.

Likely tokens need no tokenizer: a token has as many characters as in the job's own answers, else four.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from batchrun.api import Family, Prices, family_of
from batchrun.job import Limits
from batchrun.money import Pico, Price
from batchrun.prepare import Prepared, most_in_flight, page_fee
from batchrun.prompt import RowProblem

CHARACTERS_PER_TOKEN = 4.0
"""Where nothing is answered yet. Measured with a tokenizer of 49,000 tokens: English sentences have 4.3 to 4.4, names
3.0, JSON with numbers and addresses 2.3."""

MESSAGE_TOKENS = 4
"""What a chat template adds to a message, where nothing is answered yet."""

HIDDEN_TOKENS = 150
"""What a decision model's template adds to a question, where nothing is answered yet."""

TEXT_TOKENS = 150
OBJECT_TOKENS, COLUMN_TOKENS = 8, 12
"""Tokens of an answer, where nothing is answered yet: a text; an object and each of its columns."""

LATENCY = 2.0
"""Seconds for one answer, where nothing is answered yet."""


@dataclass(slots=True)
class Used:
    """What answers of this job used, the base of an estimate; seconds. `others`: the mean tokens of others, if none."""

    answers: int = 0
    characters: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    others: float | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What questions will likely need, each asked once; the fields are those of a Preview.

    `cost` follows where all requests but the first read the beginning from the provider's prompt cache, `uncached`
    where none does; both are None where the price is unknown.
    """

    prompt_tokens: int
    completion_tokens: int
    cost: Pico | None
    uncached: Pico | None
    seconds: float
    in_flight: int
    characters_per_token: float
    beginning_tokens: int


def forecast(
    prepared: Prepared, prices: Prices, number: int, characters: int, fees: Pico, used: Used | None = None
) -> Forecast:
    """Return the likely need of `number` questions with `characters` in their messages; `fees` are for PDFs."""
    used = used or Used()
    # The job's own answers know its tokenizer, its language and the server's template.
    if used.answers and used.prompt_tokens:
        ratio = used.characters / used.prompt_tokens
        prompt = characters / ratio if ratio else number * used.prompt_tokens / used.answers
        completion = number * used.completion_tokens / used.answers
    else:
        ratio = CHARACTERS_PER_TOKEN
        prompt = _prompt_tokens(prepared, number, characters)
        completion = float(number * (_answer_tokens(prepared) if used.others is None else used.others))
    # Long answers to the rows before say nothing where a lower bound cuts them now.
    if prepared.max_tokens is not None:
        completion = min(completion, number * prepared.max_tokens)
    price = prices.likely.get(prepared.endpoint.model)
    tokens = (round(prompt), round(completion))
    beginning = round(_beginning(prepared) / (ratio or math.inf))
    cost = uncached = None
    if price is not None:
        # The price adds the fee of one request to the tokens of all.
        more = price.request * (number - 1) + fees
        cost = Pico(price.cost(*tokens, *_from_cache(prepared, price, beginning, number)) + more)
        uncached = Pico(price.cost(*tokens) + more)
    latency = used.seconds / max(1, used.answers) or LATENCY
    at_once = most_in_flight(prepared.job, prepared.endpoint)
    seconds = likely_seconds(number, sum(tokens), latency, prepared.job.limits, at_once)
    return Forecast(*tokens, cost, uncached, seconds, at_once, ratio, beginning)


def likely_cost(prepared: Prepared, prices: Prices, some: Sequence[tuple[Any, ...]], questions: int) -> Pico | None:
    """Return what that many questions will likely cost, by the rows of some; None where the price is unknown.

    No prompt cache is counted on: whether it works shows only in the run.
    """
    if not some or prepared.endpoint.model not in prices.likely:
        return None
    fee = page_fee(prepared)
    characters = sum(characters_of(prepared, values) for values in some) * questions // len(some)
    fees = Pico(sum(map(fee, some)) * questions // len(some))
    return forecast(prepared, prices, questions, characters, fees).uncached


def characters_of(prepared: Prepared, values: tuple[Any, ...]) -> int:
    """Return the characters of a row's messages; 0 if it can't be rendered."""
    messages = prepared.renderer.messages(values)
    if isinstance(messages, RowProblem):
        return 0
    return sum(len(text) for message in messages for text in _texts(message["content"]))


def _texts(content: str | Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    else:
        yield from (part.get("text", "") for part in content)


def _prompt_tokens(prepared: Prepared, number: int, characters: int) -> float:
    """Return the tokens of prompts by a rule of thumb, with what the server puts around them."""
    form = prepared.form
    if form.questions:
        parts = sum(characters + number * len(one.instructions) for one in form.questions) / CHARACTERS_PER_TOKEN
        return parts + number * HIDDEN_TOKENS * len(form.questions)
    # The schema is sent with each question, and servers count it as a part of the prompt.
    around = 0 if form.response_format is None else len(orjson.dumps(form.response_format))
    messages = MESSAGE_TOKENS * len(prepared.job.prompt.turns)
    return (characters + number * around) / CHARACTERS_PER_TOKEN + number * messages


def _answer_tokens(prepared: Prepared) -> int:
    if prepared.form.schema is None:
        return TEXT_TOKENS
    return OBJECT_TOKENS + COLUMN_TOKENS * len(prepared.form.columns)


def _beginning(prepared: Prepared) -> int:
    """Return the characters with which all requests begin, as far as a prompt cache can hold them."""
    beginning = prepared.beginning
    return beginning.characters if is_marked(prepared) else beginning.characters + beginning.loose


def is_marked(prepared: Prepared) -> bool:
    """Check whether the model caches only what a mark ends: whole texts, no part of one."""
    if prepared.caching is not None:
        return prepared.caching.mark is not None
    known = family(prepared)
    return known is not None and known.marked


def family(prepared: Prepared) -> Family | None:
    """Return how the model's family caches prompts, where that is known."""
    return family_of(prepared.endpoint.model) if prepared.endpoint.openrouter else None


def _from_cache(prepared: Prepared, price: Price, beginning: int, number: int) -> tuple[int, int]:
    """Return how many tokens of that many requests are read from the prompt cache, and how many are written to it."""
    if prepared.caching is None or price.cache_read is None or beginning < prepared.caching.minimum or not number:
        return 0, 0
    # Only where a mark is needed does writing cost; other families cache for nothing.
    written = beginning if prepared.caching.mark is not None else 0
    return beginning * (number - 1), written


def likely_seconds(questions: int, tokens: int, latency: float, limits: Limits, at_once: int) -> float:
    """Return the seconds that the slowest of the limits takes for that many questions."""
    if not questions:
        return 0.0
    return max(
        latency * -(-questions // at_once),
        60.0 * questions / (limits.requests_per_minute or math.inf),
        60.0 * tokens / (limits.tokens_per_minute or math.inf),
    )
