"""What models cost: OpenRouter's list, kept on disk for a day, or the job's own words."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from batchrun.api.endpoints import SIMULATOR_MODEL, Endpoint, fetch, is_openrouter
from batchrun.api.wording import object_of, objects_of, usd_of
from batchrun.disk import write_whole
from batchrun.errors import StorageError
from batchrun.job import Job
from batchrun.money import ZERO, CostKind, Pico, Price, from_usd
from batchrun.net import is_loopback

KEPT_SECONDS = 86_400
BATCH_VARIANT = ":batch"
"""OpenRouter lists the batch prices of `author/model` as `author/model:batch`, and some models want that name."""

LAYOUT = 2
_FREE = Price(ZERO, ZERO)
_MILLION = 1_000_000
_DEAREST_USD = 1_000
"""USD; a price per token or request above this is a mistake of the server."""
_SAME_PRICE = re.compile(r":(?:nitro|floor|exacto)$")
"""Variants that only choose among a model's providers; `:online` adds a search that tokens do not bound."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model's prices: as listed, and the dearest that overrides, reasoning and writing its prompt cache bring.

    `context` is how many tokens a prompt and its answer may have, `inputs` what a prompt may hold (text, image, file);
    None where the list does not say.
    """

    likely: Price
    worst: Price
    context: int | None = None
    inputs: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Prices:
    """What a job's model and fallbacks cost, by name; one whose price is not known is absent.

    `listed` is the model's own entry, `batch` that of its provider's batches; None where nobody says.

    `names` are all models that the endpoint lists. `fetched_at` is the list's Unix time, None where no list was
    needed or available; `problem` says in one line why a list could not be fetched (an older one may stand in).
    """

    likely: Mapping[str, Price] = field(default_factory=dict)
    worst: Mapping[str, Price] = field(default_factory=dict)
    batch: Listed | None = None
    listed: Listed | None = None
    names: tuple[str, ...] = ()
    fetched_at: float | None = None
    problem: str = ""


def prices_for(job: Job, endpoint: Endpoint, cache_dir: Path, now: float) -> Prices:
    """Return the prices of a job. `endpoint` has its final address; `now` is Unix time.

    The list is read from `cache_dir` where it is younger than a day, else fetched and written there; one of this
    machine is never kept, since its port may be another server's tomorrow. `model.price` stands in for
    models that are not listed.
    """
    names = (endpoint.model, *job.model.fallbacks)
    if endpoint.name == "local":
        free = dict.fromkeys(names, _FREE)
        return Prices(free, free)
    models: Mapping[str, Listed | None] = {}
    fetched_at, problem = None, ""
    if endpoint.openrouter:
        models, fetched_at, problem = _list(endpoint, cache_dir, now)
    if endpoint.name == "simulator" and SIMULATOR_MODEL in models:
        models = {**dict.fromkeys(names, models[SIMULATOR_MODEL]), **models}  # it answers as any model
    own = _own_price(job)
    found = {name: models.get(name) or models.get(_SAME_PRICE.sub("", name)) or own for name in names}
    known = {name: listed for name, listed in found.items() if listed is not None}
    return Prices(
        {name: listed.likely for name, listed in known.items()},
        {name: listed.worst for name, listed in known.items()},
        models.get(endpoint.model.removesuffix(BATCH_VARIANT) + BATCH_VARIANT) or _own_batch_price(job),
        known.get(endpoint.model),
        tuple(models),
        fetched_at,
        problem,
    )


def cost_kind(job: Job) -> CostKind:
    """Return what the costs of a job mean. They are unknown where a server has no price, unless it reports them."""
    endpoint = job.model.endpoint
    if endpoint == "simulator":
        return CostKind.SIMULATED
    priced = endpoint in {"openrouter", "local"} or is_openrouter(endpoint) or job.model.price is not None
    return CostKind.CHARGED if priced else CostKind.UNKNOWN


def parse_models(data: Mapping[str, Any]) -> dict[str, Listed | None]:
    """Read GET /models leniently: prices by model, None where a model has no fixed price."""
    models: dict[str, Listed | None] = {}
    for entry in objects_of(data.get("data")):
        if not isinstance(entry.get("id"), str):
            continue
        models[entry["id"]] = listed = _listed(entry)
        slug = entry.get("canonical_slug")
        if isinstance(slug, str):
            models.setdefault(slug, listed)
    return models


def _listed(entry: Mapping[str, Any]) -> Listed | None:
    """Read one model's entry; anything but prices of at least zero makes them unknown."""
    # Prices of -1 mean a router, whose price is that of the model it picks.
    pricing = object_of(entry.get("pricing"))
    tiers = [pricing, *objects_of(pricing.get("overrides"))]
    try:
        tables = [{name: _amount(tier[name]) for name in _FIELDS if tier.get(name) is not None} for tier in tiers]
        first = tables[0]
        likely = Price(
            first["prompt"],
            first["completion"],
            first.get("request", ZERO),
            first.get("input_cache_read"),
            first.get("input_cache_write"),
        )
    except (KeyError, ValueError):
        return None

    def dearest(*names: str) -> Pico:
        return max((table[name] for table in tables for name in names if name in table), default=ZERO)

    # A provider may write its cache without being asked: then the dearer of the two prices is paid for the prompt.
    prompt = dearest("prompt", "input_cache_write", "input_cache_write_1h")
    worst = Price(prompt, dearest("completion", "internal_reasoning"), dearest("request"))
    context, taken = entry.get("context_length"), object_of(entry.get("architecture")).get("input_modalities")
    inputs = None
    if isinstance(taken, list):
        inputs = frozenset(one for one in taken if isinstance(one, str))
    return Listed(likely, worst, context if isinstance(context, int) else None, inputs)


_FIELDS = (
    "prompt", "completion", "request", "internal_reasoning", "input_cache_read", "input_cache_write",
    "input_cache_write_1h",
)  # fmt: skip


def _amount(value: object) -> Pico:
    """Return USD for one token or request in picodollars. Raises ValueError for anything but a price."""
    usd = usd_of(value, high=_DEAREST_USD)
    if usd is None:
        raise ValueError
    return usd


def _own_price(job: Job) -> Listed | None:
    own = job.model.price
    if own is None:
        return None
    read, write = (None if usd is None else _per_token(usd) for usd in (own.cache_read, own.cache_write))
    price = Price(_per_token(own.prompt), _per_token(own.completion), ZERO, read, write)
    return Listed(price, Price(max(price.prompt, write or ZERO), price.completion))


def _own_batch_price(job: Job) -> Listed | None:
    own = job.model.price and job.model.price.batch
    if not own:
        return None
    price = Price(_per_token(own.prompt), _per_token(own.completion))
    return Listed(price, price)


def _per_token(usd_per_million: Decimal) -> Pico:
    return from_usd(usd_per_million / _MILLION)


def _list(endpoint: Endpoint, cache_dir: Path, now: float) -> tuple[Mapping[str, Listed | None], float | None, str]:
    file = cache_dir / f"models-{_file_name(endpoint)}.json"
    kept, kept_at = _read(file, endpoint.base_url)
    if kept_at is not None and 0 <= now - kept_at < KEPT_SECONDS:
        return kept, kept_at, ""
    page = fetch(endpoint, endpoint.models_path)
    models = {} if page.problem else parse_models(page.data)
    if not models:
        return kept, kept_at, page.problem or "GET /models listed no model"
    if not is_loopback(endpoint.base_url):
        content = {"layout": LAYOUT, "url": endpoint.base_url, "fetched_at": now, "body": page.data}
        with suppress(OSError, StorageError):  # a disk that refuses costs a fetch, no more
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(file, orjson.dumps(content), mode=0o600)
    return models, now, ""


def _file_name(endpoint: Endpoint) -> str:
    name = re.sub(r"[^A-Za-z0-9.-]", "-", urlsplit(endpoint.base_url).netloc)
    return f"{name}-decisions" if endpoint.decisions else name


def _read(file: Path, base_url: str) -> tuple[Mapping[str, Listed | None], float | None]:
    """Return the models of a kept list and its Unix time; none where it is damaged or of another layout or address."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        kept = orjson.loads(file.read_bytes())
        if (kept["layout"], kept["url"]) == (LAYOUT, base_url):
            return parse_models(kept["body"]), float(kept["fetched_at"])
    return {}, None
