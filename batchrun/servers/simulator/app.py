"""The simulated API: which request gets which reply."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import orjson

from batchrun.servers.simulator import chat, decisions, models
from batchrun.servers.simulator.account import Account, ApiError, Config
from batchrun.servers.simulator.batches import Batches


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; header names are lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP reply."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Simulator:
    """The API with the state of one account."""

    def __init__(self, config: Config) -> None:
        self._account = Account(config)
        self._batches = Batches(self._account)

    async def answer(self, request: Request) -> Reply:
        """Return the reply to one request."""
        headers = {"content-type": "application/json"}
        try:
            found = await self._route(request)
            if not isinstance(found, bytes):
                found = orjson.dumps(found)
            is_batch = request.method == "POST" and request.target == "/api/v1/batches"
            return Reply(202 if is_batch else 200, found, headers)
        except ApiError as error:
            body = {"error": {"code": error.status, "message": error.message}}
            return Reply(error.status, orjson.dumps(body), headers | error.headers)

    async def _route(self, request: Request) -> Any:  # noqa: ANN401  (JSON)
        path, _, query = request.target.partition("?")
        route = f"{request.method} {path}"
        # The list is public, as OpenRouter's is.
        if route == "GET /api/v1/models":
            if "output_modalities=decisions" in query:
                return {"data": models.catalogue(models.DECISIONS)}
            return {"data": models.catalogue(models.TEXT)}
        _check_key(request.headers.get("authorization", ""))
        match route:
            case "POST /api/v1/chat/completions":
                return await chat.reply(self._account, request.body)
            case "POST /api/v1/systemone" | "POST /api/alpha/decisions":
                return await decisions.reply(self._account, request.body)
            case "GET /api/v1/key":
                return {"data": self._account.key_info()}
        return self._batch_route(request.method, path.removeprefix("/api/v1/").split("/"), query, request.body)

    def _batch_route(self, method: str, path: list[str], query: str, body: bytes) -> Any:  # noqa: ANN401, PLR0911  (a table)
        match method, path:
            case "POST", ["batches"]:
                return self._batches.submit(body)
            case "GET", ["batches"]:
                return self._batches.list()
            case "GET", ["batches", name]:
                return self._batches.show(name)
            case "GET", ["batches", name, "results"]:
                return self._batches.results(name, dict(parse_qsl(query)))
            case "POST", ["files"]:
                return self._batches.upload(body)
            case "GET", ["files", name, "content"]:
                return self._batches.content(name)
            case "DELETE", ["files", name]:
                return self._batches.delete_file(name)
            case "DELETE", ["batches", name]:
                return self._batches.delete(name)
        raise ApiError(404, "Not Found")


def _check_key(authorization: str) -> None:
    """Raise ApiError for a missing key, and for one that contains "wrong": so that a bad key can be tried as well."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise ApiError(401, "Missing Authentication header")
    if "wrong" in key:
        raise ApiError(401, "User not found.")
