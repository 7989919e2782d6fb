"""POST /chat/completions: one request from its bytes to its reply, with its cost in the books."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from openrouter import catalogue, generate, validate
from openrouter.account import UNSET_MAX_TOKENS, Account, Hold, clock
from openrouter.altering import ALTER, HEALED, Draft
from openrouter.cases import GOOD, Case, find
from openrouter.completion import Bill, pieces, tokens, written
from openrouter.config import Config
from openrouter.ledger import Question
from openrouter.prompt_cache import NOT_CACHED, Served
from openrouter.replies import generation_id, head, problem, refusal
from openrouter.wire import Reply

IMAGE_TOKENS = 258
_SLOW_REFUSALS = 500
"""From this status on a refusal is the upstream's and takes a generation's time."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One chat request that is valid: which model serves it, and as what case."""

    body: Mapping[str, Any]
    digest: bytes
    attempt: int
    model: catalogue.Model
    slug: str
    case: Case
    prompt_tokens: int
    max_tokens: int | None
    price: catalogue.Price
    tier: str

    @property
    def hold(self) -> Hold:
        """What it may cost at most."""
        most = self.max_tokens or UNSET_MAX_TOKENS
        return Hold(self.price.of(self.prompt_tokens, most), most, self.price.completion)


async def answer(account: Account, headers: Mapping[bytes, bytes], raw: bytes) -> Reply:
    """Return the reply to one chat request."""
    digest = blake2b(raw, digest_size=16).digest()
    question = account.counters.questions.setdefault(digest, Question())
    question.asked += 1
    key = headers.get(b"authorization", b"").decode("latin-1")
    refused = account.refused_key(key)
    if refused:
        return refusal(account, refused, "unauthorized")
    ask = _understood(account, raw, digest, question.asked - 1)
    if isinstance(ask, Reply):
        return ask
    wanted = headers.get(b"x-openrouter-cache") == b"true"
    hit = _cached(account, key, ask, headers) if wanted else None
    if hit is not None:
        return hit
    if ask.case.error is not None and ask.case.status < _SLOW_REFUSALS and ask.case.status != 408:
        return refusal(account, ask.case.name, model=ask.slug, hold=ask.hold)
    reply = await _generated(account, ask, question)
    return _stored(account, key, ask, headers, reply) if wanted else reply


def _understood(account: Account, raw: bytes, digest: bytes, attempt: int) -> Ask | Reply:
    """Read and check a request; choose the model that serves it and the case that it meets."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return problem(account, *validate.bad("Invalid JSON in request body"))
    if not isinstance(body, dict):
        return problem(account, *validate.bad("Expected object"))
    found = validate.request_problem(body)
    if found:
        return problem(account, *found)
    chosen = _model(account, body, attempt)
    if isinstance(chosen, Reply):
        return chosen
    slug, model, case = chosen
    if case is GOOD and account.config.faults:
        case = _fault(account.config, digest, attempt)
    price = catalogue.price(model, account.config.prices)
    tier = "flex" if model.flex and body.get("service_tier") == "flex" else "default"
    price = price.halved() if tier == "flex" else price
    return Ask(body, digest, attempt, model, slug, case, _prompt_tokens(body), _max_tokens(body), price, tier)


def _model(account: Account, body: Mapping[str, Any], attempt: int) -> tuple[str, catalogue.Model, Case] | Reply:
    """Choose among model and fallbacks the first that serves the request, else the last one's failure."""
    slugs = [*([body["model"]] if body.get("model") else []), *(body.get("models") or ())] or [catalogue.DEFAULT]
    models = [catalogue.find(slug) if isinstance(slug, str) else None for slug in slugs]
    for slug, model in zip(slugs, models, strict=True):
        if model is None:
            return problem(account, *validate.bad(f"{slug} is not a valid model ID"))
    size = _prompt_tokens(body) + (_max_tokens(body) or 0)
    outcome: tuple[str, catalogue.Model, Case] | Reply | None = None
    for slug, model in zip(slugs, models, strict=True):
        if model is None:
            continue
        found = validate.routing_problem(body, model, size)
        case = _named(slug, attempt)
        outcome = problem(account, *found) if found else (slug, model, case)
        if not found and case.error is None:
            break
    return outcome or problem(account, *validate.bad("No models provided"))


def _named(slug: str, attempt: int) -> Case:
    """Return the case that a model's name asks for."""
    if not slug.startswith("sim/"):
        return GOOD
    case, times = find(slug[4:])
    return case if times is None or attempt < times else GOOD


def _unit(config: Config, *parts: bytes) -> float:
    """Draw a number from 0 up to 1 that depends on the seed and on what is given, alone."""
    seed = config.seed.to_bytes(16, signed=True)
    return int.from_bytes(blake2b(b"".join(parts), key=seed, digest_size=8).digest()) / 2**64


def _fault(config: Config, digest: bytes, attempt: int) -> Case:
    """Draw the fault that an attempt meets, or the good case."""
    each, whole = _unit(config, digest, attempt.to_bytes(8)), _unit(config, digest)
    for name, rate in config.faults.items():
        case, times = find(name)
        if times is None:
            if each < rate:
                return case
            each -= rate
        else:
            if whole < rate:
                return case if attempt < times else GOOD
            whole -= rate
    return GOOD


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    most: int | None = body.get("max_completion_tokens") or body.get("max_tokens")
    return most


def _prompt_tokens(body: Mapping[str, Any]) -> int:
    total = 0
    for message in _messages(body):
        content = message.get("content")
        if isinstance(content, str):
            total += tokens(content)
        else:
            for part in content or ():
                total += tokens(part["text"]) if part["type"] == "text" else IMAGE_TOKENS
    return total


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] | None = body.get("messages")
    return messages if messages is not None else [{"role": "user", "content": body["prompt"]}]


async def _generated(account: Account, ask: Ask, question: Question) -> Reply:
    """Generate within the account's limits: hold, take time, bill, give the reply."""
    hold = ask.hold
    refused = account.admit(hold, clock())
    if refused:
        return refusal(account, refused, f"limit:{refused}", ask.slug, hold)
    try:
        served = _served(account, ask)
        await _latency(account.config, ask)
        if ask.case.error is not None:
            return refusal(account, ask.case.name, model=ask.slug, hold=hold)
        account.prompt_cache.begun(served, clock())
        return _completed(account, ask, question, served)
    except generate.SchemaError:
        return problem(account, *validate.unusable_schema())
    finally:
        account.release(hold)


def _served(account: Account, ask: Ask) -> Served:
    """Choose the provider of a request that arrives now, and look into its prompt cache."""
    if ask.model.cache_read is None:
        return NOT_CACHED
    config = account.config
    life, providers = config.prompt_cache_life, config.providers
    return account.prompt_cache.look(ask.body, ask.slug, clock(), life=life, providers=providers)


async def _latency(config: Config, ask: Ask) -> None:
    low, high = config.bounds
    if low < high:
        low += (high - low) * _unit(config, b"latency", ask.digest, ask.attempt.to_bytes(8))
    if low:
        await asyncio.sleep(low)


def _completed(account: Account, ask: Ask, question: Question, served: Served) -> Reply:
    """Write the answer, alter it as the case says, and bill it: whatever is lost on its way was generated."""
    draft = _draft(account.config, ask)
    healed = ask.case.name in HEALED and _heals(ask.body)
    if ask.case.alter and not healed:
        ALTER[ask.case.alter](draft)
    now = clock()
    generation = generation_id(account, now)
    bill = Bill.of(draft, ask.prompt_tokens, ask.price, served)
    billed = draft.billed and ask.case.billed
    if billed:
        account.counters.charge(bill.total, bill.prompt_tokens, bill.completion_tokens)
        account.counters.cached_tokens += bill.read
        account.counters.cache_write_tokens += bill.written
        question.billed += 1
    account.keep(generation, {"model": ask.slug, "bill": bill, "finish": draft.finish, "billed": billed})
    completion = written(draft, bill, generation, ask.slug, int(now))
    if ask.model.cache_read is not None:
        completion |= {"provider": f"Simulator {served.provider + 1}"}
    if "service_tier" in ask.body:
        completion |= {"service_tier": ask.tier}
    return _reply(account, ask, completion, generation)


def _reply(account: Account, ask: Ask, completion: dict[str, Any], generation: str) -> Reply:
    headers = head(account, generation)
    if not ask.body.get("stream"):
        return Reply(200, headers, orjson.dumps(completion), ask.case.name, (), ask.case.wire)
    parts = pieces(completion)
    return Reply(
        200, ((b"content-type", b"text/event-stream"), headers[1]), b"".join(parts), ask.case.name, parts, ask.case.wire
    )


def _draft(config: Config, ask: Ask) -> Draft:
    """Write a good answer: a function of the seed, the messages and the schema, of nothing else."""
    asked = ask.body.get("response_format") or {}
    kind = asked.get("type") if "response_format" in ask.model.supported else None
    schema = asked["json_schema"]["schema"] if kind == "json_schema" else None
    key = orjson.dumps([_messages(ask.body), schema])
    draw = generate.Draw(blake2b(key, key=config.seed.to_bytes(16, signed=True), digest_size=16).digest())
    if schema is not None:
        value = generate.valid(schema, draw)
        return Draft(orjson.dumps(value).decode(), value if isinstance(value, dict) else None, schema, ask.max_tokens)
    if kind == "json_object":
        value = {"answer": generate.text(draw)}
        return Draft(orjson.dumps(value).decode(), value, None, ask.max_tokens)
    return Draft(generate.text(draw), None, None, ask.max_tokens)


def _heals(body: Mapping[str, Any]) -> bool:
    plugins = body.get("plugins") or ()
    return bool(body.get("response_format")) and any(
        plugin.get("id") == "response-healing" and plugin.get("enabled", True) for plugin in plugins
    )


def _cached(account: Account, key: str, ask: Ask, headers: Mapping[bytes, bytes]) -> Reply | None:
    """Return a reply from the response cache: the same answer, no usage, no bill, an id of its own."""
    if headers.get(b"x-openrouter-cache-clear") == b"true":
        account.cache.pop((key, ask.digest), None)
    source, stored, expires = account.cache.get((key, ask.digest), ("", 0.0, 0.0))
    now = clock()
    if now >= expires:
        return None
    draft = _draft(account.config, ask)
    generation = generation_id(account, now)
    completion = written(draft, Bill(0, 0, 0, 0), generation, ask.slug, int(now))
    reply = _reply(account, ask, completion, generation)
    extra = {
        b"x-openrouter-cache-status": b"HIT",
        b"x-openrouter-cache-age": b"%d" % (now - stored),
        b"x-openrouter-cache-ttl": b"%d" % (expires - now),
        b"x-openrouter-cache-source-id": source.encode(),
    }
    return Reply(200, (*reply.headers, *extra.items()), reply.body, "cache-hit", reply.pieces)


def _stored(account: Account, key: str, ask: Ask, headers: Mapping[bytes, bytes], reply: Reply) -> Reply:
    """Remember a good reply for the response cache; say that it was a miss."""
    ttl = headers.get(b"x-openrouter-cache-ttl", b"300")
    if reply.ending == "good":
        now = clock()
        source = dict(reply.headers)[b"x-generation-id"].decode()
        account.cache[key, ask.digest] = (source, now, now + min(86_400, int(ttl) if ttl.isdigit() else 300))
    marks = ((b"x-openrouter-cache-status", b"MISS"), (b"x-openrouter-cache-ttl", ttl))
    return Reply(reply.status, (*reply.headers, *marks), reply.body, reply.ending, reply.pieces, reply.wire)
