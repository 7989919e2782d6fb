"""The simulated API as an ASGI application, with the books at /_sim."""

import base64
import struct
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from openrouter import catalogue, chat, validate
from openrouter.account import Account, Hold, clock
from openrouter.completion import tokens, usd
from openrouter.config import Config
from openrouter.ledger import Recorded
from openrouter.replies import head, problem, refusal
from openrouter.wire import Line, Reply, deliver

CHAT = "/api/v1/chat/completions"
_DIMENSIONS, _MOST_DIMENSIONS = 16, 4096


class Simulator(Starlette):
    """The application. Chat requests take no detour through routing and middleware, everything else does."""

    def __init__(self, config: Config) -> None:
        self.account = Account(config)
        get, post = ["GET"], ["POST"]
        super().__init__(
            routes=[
                Route("/api/v1/key", self._key, methods=get),
                Route("/api/v1/auth/key", self._key, methods=get),
                Route("/api/v1/credits", self._credits, methods=get),
                Route("/api/v1/models", self._models, methods=get),
                Route("/api/v1/generation", self._generation, methods=get),
                Route("/api/v1/embeddings", self._embeddings, methods=post),
                Route("/_sim/counters", self._counters, methods=get),
                Route("/_sim/reset", self._reset, methods=post),
                Route("/_sim/config", self._config, methods=post),
            ],
            exception_handlers={404: self._not_found},
        )
        self.state.counters = self.account.counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI defines it."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        counters = self.account.counters
        if scope["path"].startswith("/api/"):
            counters.paths[scope["path"]] += 1
            counters.clients.add(scope["client"])
        if scope["path"] == CHAT and scope["method"] == "POST":
            await self._chat(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await _read(receive)
        if raw is None:
            return
        account = self.account
        account.advance(clock())
        counters = account.counters
        counters.requests += 1
        counters.in_flight += 1
        counters.peak = max(counters.peak, counters.in_flight)
        at, headers = clock(), dict(scope["headers"])
        try:
            reply = await chat.answer(account, headers, raw)
            counters.statuses[reply.status] += 1
            counters.endings[reply.ending] += 1
            if len(counters.recorded) < account.config.keep_requests:
                counters.recorded.append(_recorded(at - (account.began or at), headers, raw, reply))
            await deliver(reply, Line(receive, send, account.config.slow))
        finally:
            counters.in_flight -= 1

    def _refused(self, request: Request) -> Response | None:
        name = self.account.refused_key(request.headers.get("authorization", ""))
        return None if name is None else _response(refusal(self.account, name))

    async def _key(self, request: Request) -> Response:
        account = self.account
        limit, left, used = account.config.credit, account.left, usd(account.counters.billed_pico)
        quota = account.config.day_quota
        spent = account.day.used if account.day.ends > clock() else 0
        data = {
            "label": "sk-or-v1-sim...ulator",
            "limit": None if limit is None else float(limit),
            "limit_remaining": None if left is None else usd(left),
            "limit_reset": None,
            "usage": used,
            "usage_daily": used,
            "usage_weekly": used,
            "usage_monthly": used,
            "byok_usage": 0,
            "include_byok_in_limit": False,
            "is_free_tier": quota is not None,
            "is_management_key": False,
            "is_provisioning_key": False,
            "rate_limit": {"requests": -1, "interval": "10s", "note": "deprecated"},
        }
        if quota is not None:
            data["free_model_daily_requests"] = {"used": spent, "limit": quota, "remaining": max(0, quota - spent)}
        return self._refused(request) or _json({"data": data})

    async def _credits(self, request: Request) -> Response:
        refused = self._refused(request)
        if refused:
            return refused
        if "management" not in request.headers["authorization"]:
            return _json({"error": {"code": 403, "message": "Only management keys can fetch credits"}}, 403)
        total = self.account.config.credit
        used = usd(self.account.counters.billed_pico)
        return _json({"data": {"total_credits": 0 if total is None else float(total), "total_usage": used}})

    async def _models(self, _: Request) -> Response:
        return _json({"data": catalogue.listing(self.account.config.prices)})

    async def _generation(self, request: Request) -> Response:
        refused = self._refused(request)
        if refused:
            return refused
        asked = request.query_params.get("id", "")
        facts = self.account.generations.get(asked)
        if facts is None:
            return _json({"error": {"code": 404, "message": f"Generation {asked} not found"}}, 404)
        bill = facts["bill"]
        data = {
            "id": asked,
            "model": facts["model"],
            "provider_name": "Simulator",
            "total_cost": usd(bill.total if facts["billed"] else 0),
            "usage": usd(bill.total if facts["billed"] else 0),
            "tokens_prompt": bill.prompt_tokens,
            "tokens_completion": bill.completion_tokens,
            "native_tokens_prompt": bill.prompt_tokens,
            "native_tokens_completion": bill.completion_tokens,
            "finish_reason": facts["finish"],
            "native_finish_reason": facts["finish"],
            "cancelled": False,
        }
        return _json({"data": data})

    async def _embeddings(self, request: Request) -> Response:
        self.account.advance(clock())
        refused = self._refused(request)
        if refused:
            return refused
        return _response(_embedded(self.account, await request.body()))

    async def _counters(self, _: Request) -> Response:
        return _json(self.account.counters.snapshot())

    async def _reset(self, _: Request) -> Response:
        self.account.reset()
        return _json({})

    async def _config(self, request: Request) -> Response:
        try:
            changes = orjson.loads(await request.body())
            self.account.change(changes)
        except (ValueError, TypeError, AttributeError) as error:
            return _json({"error": str(error)}, 400)
        return _json({})

    async def _not_found(self, _: Request, __: Exception) -> Response:
        return _response(refusal(self.account, "404"))


def create_app(config: Config) -> Simulator:
    """Return the application; `app.state.counters` are its books."""
    return Simulator(config)


async def _read(receive: Receive) -> bytes | None:
    """Read a request's body; None where the client hung up before its end."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


def _json(value: Any, status: int = 200) -> Response:  # noqa: ANN401  (JSON)
    return Response(orjson.dumps(value), status, media_type="application/json")


def _response(reply: Reply) -> Response:
    headers = {key.decode(): value.decode() for key, value in reply.headers}
    return Response(reply.body, reply.status, headers)


def _recorded(at: float, headers: Mapping[bytes, bytes], raw: bytes, reply: Reply) -> Recorded:
    """Return a request for the books, its key masked."""
    named = {key.decode(): value.decode("latin-1") for key, value in headers.items()}
    if "authorization" in named:
        named["authorization"] = "***"
    return Recorded(at, CHAT, named, raw.decode(errors="replace"), reply.ending)


def _embedded(account: Account, raw: bytes) -> Reply:
    """Return the reply to POST /embeddings: vectors that are a function of the seed and each input."""
    try:
        body = orjson.loads(raw)
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        inputs = [inputs] if inputs and isinstance(inputs[0], int) else inputs
        size = min(_MOST_DIMENSIONS, max(1, int(body.get("dimensions") or _DIMENSIONS)))
        model = catalogue.find(body["model"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return problem(account, *validate.bad("input and model: Required"))
    if model is None:
        return problem(account, *validate.bad(f"{body['model']} is not a valid model ID"))
    texts = [each if isinstance(each, str) else orjson.dumps(each).decode() for each in inputs]
    used = sum(map(tokens, texts))
    cost = catalogue.price(model, account.config.prices).of(used, 0)
    refused = account.admit(Hold(cost, used), clock())
    if refused:
        return refusal(account, refused, f"limit:{refused}", model.slug)
    account.release(Hold(cost))
    account.counters.requests += 1
    account.counters.charge(cost, used, 0)
    packed = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": at, "embedding": _vector(account.config.seed, text, size, packed=packed)}
        for at, text in enumerate(texts)
    ]
    use = {"prompt_tokens": used, "total_tokens": used, "cost": usd(cost)}
    reply = {"object": "list", "data": data, "model": f"sim/{model.slug.removeprefix('sim/')}", "usage": use}
    return Reply(200, head(account), orjson.dumps(reply), "good")


def _vector(seed: int, text: str, size: int, *, packed: bool) -> list[float] | str:
    key = seed.to_bytes(16, signed=True)
    values = [
        int.from_bytes(blake2b(f"{at}:{text}".encode(), key=key, digest_size=4).digest(), signed=True) / 2**31
        for at in range(size)
    ]
    return base64.b64encode(struct.pack(f"<{size}f", *values)).decode() if packed else values
