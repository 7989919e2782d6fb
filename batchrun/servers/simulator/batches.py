"""Batches at half price: OpenRouter's inline form, and OpenAI's files + batches. Each is done after the latency."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson

from batchrun.servers.simulator import chat
from batchrun.servers.simulator.account import Account, ApiError
from batchrun.servers.simulator.models import VARIANT, to_usd

MAX_REQUESTS, MAX_LINES = 5_000, 50_000
"""Requests of one batch: in OpenRouter's form, and in OpenAI's."""

_CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class _Batch:
    id: str
    model: str
    created_at: float
    inline: bool
    lines: list[dict[str, Any]]
    cost: int
    metadata: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, str] = ("", "")


class Batches:
    """The batches and files of one account, in memory."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._batches: dict[str, _Batch] = {}
        self._files: dict[str, bytes] = {}
        self._number = itertools.count(1)

    def upload(self, form: bytes) -> dict[str, Any]:
        """Keep the one file of a form (multipart/form-data)."""
        content = form.rpartition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
        return {"id": self._keep(content), "object": "file", "purpose": "batch", "bytes": len(content)}

    def content(self, name: str) -> bytes:
        """Return a file. Raises ApiError."""
        if name not in self._files:
            raise ApiError(404, "No such file")
        return self._files[name]

    def delete_file(self, name: str) -> dict[str, Any]:
        """Delete a file. Raises ApiError."""
        self.content(name)
        del self._files[name]
        return {"id": name, "object": "file", "deleted": True}

    def delete(self, name: str) -> dict[str, Any]:
        """Delete a batch that is done. Raises ApiError."""
        if self.show(name)["status"] != "completed":
            raise ApiError(409, "The batch is not done")
        del self._batches[name]
        return {"id": name, "object": "batch", "deletion": {"openrouter": "deleted"}}

    def submit(self, raw: bytes) -> dict[str, Any]:
        """Answer all requests of a new batch. Raises ApiError for one that is not valid."""
        try:
            body = orjson.loads(raw)
            inline = "requests" in body
            if not inline:
                body["requests"] = _lines(self.content(body["input_file_id"]))
                body["model"] = body["requests"][0]["body"]["model"]
            elif next(reversed(body)) != "requests":
                raise ApiError(400, "endpoint and model must stand before requests")
            requests, model = body["requests"], body["model"]
            pairs = [(one["custom_id"], one["body"]) for one in requests]
        except (ValueError, TypeError, KeyError, IndexError):
            raise ApiError(400, "a batch has endpoint, model and requests, or input_file_id") from None
        most = MAX_REQUESTS if inline else MAX_LINES
        if body.get("endpoint") != _CHAT or not 0 < len(pairs) <= most:
            raise ApiError(400, f"a batch has 1 to {most} requests to {_CHAT}")
        if len({name for name, _ in pairs}) < len(pairs):
            raise ApiError(400, "custom_id must be unique in a batch")
        # All at once: when they are shown depends on the latency alone.
        answered = [self._line(name, request, model) for name, request in pairs]
        batch = _Batch(
            f"batch_{next(self._number)}",
            model,
            time.time(),
            inline,
            [line for line, _ in answered],
            sum(cost for _, cost in answered),
            body.get("metadata") or {},
        )
        if not inline:
            good = [line for line in batch.lines if _is_good(line)]
            bad = [line for line in batch.lines if not _is_good(line)]
            batch.files = (self._keep(_written(good)), self._keep(_written(bad)))
        self._account.generations += len(pairs)
        self._account.billed += batch.cost
        self._batches[batch.id] = batch
        return self._shown(batch)

    def show(self, name: str) -> dict[str, Any]:
        """Return one batch as it stands. Raises ApiError."""
        return self._shown(self._find(name))

    def list(self) -> dict[str, Any]:
        """Return all batches, newest first."""
        return {
            "object": "list",
            "data": [self._shown(one) for one in reversed(self._batches.values())],
            "has_more": False,
        }

    def results(self, name: str, query: dict[str, str]) -> dict[str, Any]:
        """Return a page of a batch's results. Raises ApiError."""
        lines = self._find(name).lines
        start, limit = int(query.get("cursor", 0)), int(query.get("limit", 1_000))
        end = start + limit
        page = {"object": "list", "data": lines[start:end], "has_more": end < len(lines), "next_cursor": None}
        if page["has_more"]:
            page["next_cursor"] = str(end)
        return page

    def _find(self, name: str) -> _Batch:
        if name not in self._batches:
            raise ApiError(404, "No such batch")
        return self._batches[name]

    def _keep(self, content: bytes) -> str:
        name = f"file-{next(self._number)}"
        self._files[name] = content
        return name

    def _line(self, name: str, body: dict[str, Any], model: str) -> tuple[dict[str, Any], int]:
        """Return a line of results and its cost in picodollars."""
        try:
            request = chat.parse(orjson.dumps({**body, "model": model.removesuffix(VARIANT) + VARIANT}))
            written, cost = chat.complete(self._account.config, request, f"gen-batch-{name}")
            status = HTTPStatus.OK.value
        except ApiError as error:
            status, cost, written = error.status, 0, {"error": {"code": error.status, "message": error.message}}
        response = {"status_code": status, "request_id": name, "body": written}
        return {"id": f"batch_req_{name}", "custom_id": name, "response": response, "error": None}, cost

    def _shown(self, batch: _Batch) -> dict[str, Any]:
        counts = {"total": len(batch.lines), "completed": 0, "failed": 0}
        shown: dict[str, Any] = {
            "id": batch.id, "object": "batch", "endpoint": _CHAT, "completion_window": "24h",
            "status": "in_progress", "created_at": int(batch.created_at), "request_counts": counts,
        }  # fmt: skip
        if batch.inline:
            shown |= {"model": batch.model, "usage": None, "results": None, "error": None}
        else:
            shown |= {"metadata": batch.metadata, "output_file_id": None, "error_file_id": None}
        if time.time() >= batch.created_at + self._account.config.latency[1]:
            shown["status"] = "completed"
            counts["completed"] = sum(map(_is_good, batch.lines))
            counts["failed"] = len(batch.lines) - counts["completed"]
            if batch.inline:
                shown["usage"] = {"cost": to_usd(batch.cost)}
            else:
                shown["output_file_id"], shown["error_file_id"] = batch.files
        return shown


def _lines(content: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in content.splitlines() if line.strip()]


def _written(lines: Sequence[dict[str, Any]]) -> bytes:
    return b"\n".join(map(orjson.dumps, lines))


def _is_good(line: dict[str, Any]) -> bool:
    return bool(line["response"]["status_code"] == HTTPStatus.OK)
