"""Providers' prompt caches: the fields of a request that let a constant beginning of all prompts be paid once.

Each family of models has its rules (OpenRouter's guide, the providers' documentation, November 2026): some cache by
themselves, others only what a `cache_control` mark ends. A prefix below the minimum is not cached, without a word and
at no cost. OpenRouter sends a conversation to one provider, whose cache is warm; to it each row is a new conversation,
unless all name one `session_id`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from batchrun.api.endpoints import Endpoint
from batchrun.job import Job

_DENSE = 2
"""Characters of the densest usual text (JSON, identifiers) in a token: a prompt that may be long enough is marked."""


@dataclass(frozen=True, slots=True)
class Family:
    """How a family of models caches.

    `minimum`: tokens below which nothing is cached. `marked`: only what a mark ends is cached. `life`: seconds after
    its last use for which an entry stays. `write_percent`: what writing costs, in percent of the prompt's price.
    """

    minimum: int = 1024
    marked: bool = False
    life: float = 300.0
    write_percent: int = 100


_MARKED = Family(marked=True, write_percent=125)

_FAMILIES: tuple[tuple[str, Family], ...] = (
    (r"anthropic/claude-opus-5\b", Family(512, marked=True, write_percent=125)),
    (r"anthropic/claude-(opus-4[.-][567]|haiku-4[.-]5)", Family(4096, marked=True, write_percent=125)),
    (r"anthropic/claude-(sonnet-4[.-]6|haiku-3|3(\.5)?-haiku)", Family(2048, marked=True, write_percent=125)),
    (r"anthropic/", _MARKED),
    # Those that Alibaba serves; open weights are served by others, which take no marks.
    (r"qwen/qwen.*-(max|plus|flash)", _MARKED),
    # Since GPT-5.6 writing costs, and without a mark the row itself would be written as well.
    (r"openai/gpt-(5\.[6-9]|[6-9])", Family(marked=True, life=1_800.0, write_percent=125)),
    (r"openai/", Family()),
    # Explicit caches of Gemini cost storage; those that it makes by itself cost nothing.
    (r"google/gemini-.*pro", Family(4096)),
    (r"google/gemini-", Family()),
    (r"(deepseek|x-ai|moonshotai|z-ai)/", Family()),
)
"""By the beginning of a model's name on OpenRouter, the first that matches. A model that is not here is not known to
cache anything: a session would only tie its rows to one provider."""

_TAKE_A_KEY = {"api.openai.com": "openai/", "api.mistral.ai": "mistralai/"}
"""Hosts whose APIs send requests with one prompt_cache_key to one machine, and the author of their models."""


@dataclass(frozen=True, slots=True)
class Caching:
    """How the requests of a job use the provider's prompt cache.

    `fields` are added to the body; `mark` is put on the last text of the constant beginning, where the family needs
    one. `minimum` is in tokens, `life` in seconds, `write_percent` what writing costs in percent of the prompt's price.
    """

    minimum: int
    life: float
    write_percent: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    mark: Mapping[str, Any] | None = None


def family_of(model: str) -> Family | None:
    """Return how a model caches, by its name on OpenRouter; None where nothing is known of it."""
    return next((family for pattern, family in _FAMILIES if re.match(pattern, model)), None)


def caching_of(job: Job, endpoint: Endpoint, characters: int, loose: int, name: str) -> Caching | None:
    """Return how a job's requests use the provider's prompt cache; None where nothing is sent for it.

    `characters` is the length of the constant beginning that can be marked, `loose` of what follows and can't; `name`
    stands for both in the same way on each day. A `cache_control` of the job's own params is the mark wherever the job
    is asked, also in a batch.
    """
    own = job.model.params.get("cache_control")
    author = _author(endpoint)
    family = None
    if author is not None:
        family = family_of(author + endpoint.model)
    session: dict[str, Any] = {}
    # Lines of a batch run in any order and at once: each might pay for writing, and none read.
    if job.batch is None and job.model.prompt_cache:
        if endpoint.openrouter:
            session["session_id"] = name
        elif author is not None:
            session["prompt_cache_key"] = name
    if own is not None:
        minimum = (family or _MARKED).minimum
        if own.get("ttl") == "1h":
            return Caching(minimum, 3_600.0, 200, session, own)
        return Caching(minimum, 300.0, 125, session, own)
    if not session or (endpoint.openrouter and family is None):
        return None
    family = family or Family()
    mark = None
    # The cached part ends at the mark: text behind it does not count towards the minimum.
    if family.marked and endpoint.openrouter:
        mark, loose = {"type": "ephemeral"}, 0
    if characters + loose < family.minimum * _DENSE:
        return None
    return Caching(family.minimum, family.life, family.write_percent, session, mark)


def _author(endpoint: Endpoint) -> str | None:
    """Return the author of the models of an API that takes a prompt_cache_key; None for other APIs.

    It is empty for OpenRouter, whose names of models begin with the author.
    """
    if endpoint.openrouter:
        return ""
    host = urlsplit(endpoint.base_url).hostname or ""
    return next((author for name, author in _TAKE_A_KEY.items() if host == name or host.endswith(f".{name}")), None)
