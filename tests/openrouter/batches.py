"""A provider of batches that keeps its own books, in both dialects, and fails as it is set to.

OpenRouter's API is below /api/v1, the files + batches of OpenAI below /v1; both answer live requests too.
"""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PROMPT_TOKENS, COMPLETION_TOKENS = 100, 50
LIVE, BATCH = ("0.000003", "0.000009"), ("0.0000015", "0.0000045")
"""USD a token of prompt and completion."""

LIVE_COST = PROMPT_TOKENS * 3_000_000 + COMPLETION_TOKENS * 9_000_000
"""What a live request costs, in picodollars; one in a batch costs half of it."""

MODEL = "maker/model"


@dataclass
class OneBatch:
    """A batch as the provider has it. `polls` counts how often it was asked for."""

    id: str
    model: str
    requests: list[dict[str, Any]]
    created_at: float
    metadata: dict[str, str] = field(default_factory=dict)
    input_file: str = ""
    polls: int = 0
    status: str = "in_progress"
    problem: str = ""
    lines: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Provider:
    """The books, and the faults.

    `submitted` counts each question's key over all batches, `live` each live question's text. `line_cost` is what an
    answer in a batch costs, in picodollars. `polls` is how often a batch is asked for until it is done. `lose` says of
    the n-th submission (from 0) whether it never arrives ("before") or its reply is lost ("after"); `refuse` answers
    it with a status and a body; `ends` says of the n-th batch how it ends; `alter` changes or drops (None) a line.
    `missing` is how many times a batch that is there is not found by its id; `deleted` are those that were collected.
    `hidden` is how many times the results of a batch that is done are not there, `no_errors` hides its file of errors,
    `no_metadata` forgets a batch's metadata; `unprocessed` is how many looks it takes until a file may be used;
    `refusals` are the statuses that answer the next looks at a batch. `down` closes each connection without a reply;
    with `odd_pages` lists have texts for times, and lists and results show their first page for ever. `wrong` is a
    prompt for which a batch fails as a whole. `reported` is a batch's cost in files + batches, in no known currency.
    `largest` is how many bytes the largest request had. `on_event` is called with a name at each arrival and before
    each reply.
    """

    polls: int = 1
    line_cost: int = LIVE_COST // 2
    lose: dict[int, str] = field(default_factory=dict)
    refuse: dict[int, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    ends: dict[int, tuple[str, str]] = field(default_factory=dict)
    alter: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda line: line
    withheld: bool = False
    missing: int = 0
    hidden: int = 0
    no_errors: bool = False
    no_metadata: bool = False
    unprocessed: int = 0
    wrong: str | None = None
    reported: float | None = None
    refusals: list[int] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    down: bool = False
    odd_pages: bool = False
    on_event: Callable[[str], None] = lambda _: None
    submissions: int = 0
    largest: int = 0
    submitted: Counter[str] = field(default_factory=Counter)
    live: Counter[str] = field(default_factory=Counter)
    batches: dict[str, OneBatch] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    billed: int = 0
    url: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer one question, the same each time; typed questions get the first value of each property."""
        text = body["messages"][-1]["content"]
        word = hashlib.sha256(text.encode()).hexdigest()[:12]
        message = {"role": "assistant", "content": f"answer {word}"}
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return {"id": f"gen-{word}", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}

    def submit(self, model: str, requests: list[dict[str, Any]], **more: Any) -> OneBatch:  # noqa: ANN401  (fields)
        """Take a batch into the books."""
        number = len(self.batches)
        batch = OneBatch(f"batch_{number}", model, requests, time.time(), **more)
        self.batches[batch.id] = batch
        self.submitted.update(request["custom_id"].partition("-")[2] for request in requests)
        return batch

    def poll(self, batch: OneBatch) -> None:
        """Let a batch grow older; it ends after that many polls, and only then is it billed."""
        batch.polls += 1
        if batch.status != "in_progress" or batch.polls < self.polls:
            return
        number = int(batch.id.rpartition("_")[2])
        batch.status, batch.problem = self.ends.get(number, ("completed", ""))
        if any(request["body"]["messages"][-1]["content"] == self.wrong for request in batch.requests):
            batch.status, batch.problem = "failed", f"a request is not valid: {self.wrong}"
        if batch.status in {"completed", "expired"}:
            for request in batch.requests:
                line = self.alter(
                    {
                        "id": f"batch_req_{request['custom_id']}",
                        "custom_id": request["custom_id"],
                        "response": {"status_code": 200, "request_id": "q", "body": self.chat(request["body"])},
                        "error": None,
                    }
                )
                if line is not None:
                    batch.lines.append(line)
                    self.billed += self.line_cost if (line.get("response") or {}).get("status_code") == 200 else 0

    def cost(self, batch: OneBatch) -> int:
        """Return what a batch cost, in picodollars."""
        good = [line for line in batch.lines if (line.get("response") or {}).get("status_code") == 200]
        return len(good) * self.line_cost

    def finds(self, id_: str) -> bool:
        """Check whether a batch is shown under its id now."""
        if id_ in self.batches and self.missing:
            self.missing -= 1
            return False
        return id_ in self.batches and id_ not in self.deleted

    def file_status(self) -> str:
        """Return how the newest file stands, as Azure says it."""
        if not self.unprocessed:
            return "processed"
        self.unprocessed -= 1
        return "pending"

    def has_results(self, name: str = "") -> bool:
        """Check whether the results of a batch, or one of its files, are there now."""
        self.hidden -= self.hidden > 0
        return not self.hidden and not (self.no_errors and name.startswith("err-"))

    def forget(self) -> None:
        """Begin with empty books and no faults."""
        fresh = Provider(url=self.url)
        for name in self.__dataclass_fields__:
            if name not in {"url", "lock"}:
                setattr(self, name, getattr(fresh, name))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    provider: Provider

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401  (the signature)
        """Stay silent."""

    def do_GET(self) -> None:
        """Route."""
        self._route("GET")

    def do_POST(self) -> None:
        """Route."""
        self._route("POST")

    def do_DELETE(self) -> None:
        """Route."""
        self._route("DELETE")

    def _route(self, method: str) -> None:  # noqa: C901, PLR0912  (a table of pages)
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        parts = urlsplit(self.path)
        openrouter = parts.path.startswith("/api/v1/")
        path = parts.path.removeprefix("/api/v1/" if openrouter else "/v1/").split("/")
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        provider = self.provider
        if provider.down:
            self.close_connection = True
            self.connection.close()
            return
        with provider.lock:
            provider.largest = max(provider.largest, length)
            provider.keys.append(self.headers.get("authorization") or "")
            match method, path:
                case "GET", ["key"]:
                    self._send(200, {"data": {"label": "k", "limit": None, "usage": 0}})
                case "GET", ["models"]:
                    self._send(200, {"data": [_model(MODEL, LIVE), _model(f"{MODEL}:batch", BATCH)]})
                case "POST", ["chat", "completions"]:
                    self._live(json.loads(body))
                case "POST", ["batches"]:
                    self._submit(json.loads(body), openrouter=openrouter)
                case "GET", ["batches"]:
                    self._list(query, openrouter=openrouter)
                case "GET", ["batches", id_] if provider.finds(id_):
                    self._show(provider.batches[id_], openrouter=openrouter)
                case "GET", ["batches", id_, "results"] if id_ in provider.batches and provider.has_results():
                    self._results(provider.batches[id_], query)
                case "POST", ["files"]:
                    name = f"file-{len(provider.files)}"
                    provider.files[name] = body.split(b"\r\n\r\n", 2)[2].rpartition(b"\r\n--")[0]
                    self._send(200, {"id": name, "object": "file", "status": provider.file_status()})
                case "GET", ["files", id_] if id_ in provider.files:
                    self._send(200, {"id": id_, "object": "file", "status": provider.file_status()})
                case "GET", ["files", id_, "content"] if id_ in provider.files and provider.has_results(id_):
                    self._send_bytes(200, provider.files[id_], "application/jsonl")
                case "DELETE", ["files", id_]:
                    self._send(200, {"id": id_, "deleted": provider.files.pop(id_, None) is not None})
                case "DELETE", ["batches", id_]:
                    provider.deleted.add(id_)
                    self._send(200, {"id": id_, "deletion": {"openrouter": "deleted"}})
                case _:
                    self._send(404, {"error": {"code": 404, "message": f"no such page: {self.path}"}})

    def _live(self, body: dict[str, Any]) -> None:
        provider = self.provider
        provider.live[body["messages"][-1]["content"]] += 1
        provider.billed += LIVE_COST
        reply = provider.chat(body)
        reply["usage"]["cost"] = LIVE_COST / 10**12
        self._send(200, reply)

    def _submit(self, body: dict[str, Any], *, openrouter: bool) -> None:
        provider = self.provider
        provider.on_event("submission arrives")
        number = provider.submissions
        provider.submissions += 1
        if provider.unprocessed:
            self._send(400, {"error": {"code": "invalid_request", "message": "The input file is not processed yet"}})
            return
        if number in provider.refuse:
            self._send(*provider.refuse[number])
            return
        fault = provider.lose.get(number)
        if fault != "before":
            if openrouter:
                assert list(body)[-1] == "requests", "every other key stands before requests"
                assert all("plugins" not in one["body"] and "model" not in one["body"] for one in body["requests"])
                batch = provider.submit(body["model"], body["requests"])
            else:
                lines = [json.loads(line) for line in provider.files[body["input_file_id"]].splitlines()]
                batch = provider.submit(
                    lines[0]["body"]["model"],
                    lines,
                    metadata={} if provider.no_metadata else body["metadata"],
                    input_file=body["input_file_id"],
                )
        if fault is not None:
            self.close_connection = True
            self.connection.close()
            return
        provider.on_event("submission is answered")
        self._send(202 if openrouter else 200, _shown(provider, batch, openrouter=openrouter), wait=0.05)

    def _list(self, query: dict[str, str], *, openrouter: bool) -> None:
        provider = self.provider
        provider.on_event("list")
        there = [batch for batch in provider.batches.values() if batch.id not in provider.deleted]
        newest = sorted(there, key=lambda batch: -batch.created_at)
        data = [{**_shown(provider, batch, openrouter=openrouter), "results": None} for batch in newest]
        del query
        if provider.odd_pages:
            for shown in data:
                shown["created_at"] = datetime.fromtimestamp(shown["created_at"], UTC).isoformat()
        self._send(200, {"object": "list", "data": data, "has_more": provider.odd_pages}, wait=0.05)

    def _show(self, batch: OneBatch, *, openrouter: bool) -> None:
        provider = self.provider
        provider.on_event("poll")
        if provider.refusals:
            status = provider.refusals.pop(0)
            self._send(status, {"error": {"code": status, "message": "User not found."}})
            return
        provider.poll(batch)
        shown = _shown(provider, batch, openrouter=openrouter)
        if provider.withheld and batch.status == "completed":
            error = {"code": 402, "message": "Insufficient credits: add some to see the results"}
            self._send(402, {**shown, "results": None, "error": error}, wait=0.05)
            return
        self._send(200, shown, wait=0.05)

    def _results(self, batch: OneBatch, query: dict[str, str]) -> None:
        self.provider.on_event("results")
        start, limit = int(query.get("cursor") or 0), int(query["limit"])
        data = batch.lines[start : start + limit]
        more, following = start + limit < len(batch.lines), start + limit
        if self.provider.odd_pages:
            more, following = True, 0
        self._send(200, {"object": "list", "data": data, "has_more": more, "next_cursor": str(following)})

    def _send(self, status: int, body: dict[str, Any], *, wait: float | None = None) -> None:
        self._send_bytes(status, json.dumps(body).encode(), "application/json", wait=wait)

    def _send_bytes(self, status: int, body: bytes, kind: str, *, wait: float | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        if wait is not None:
            self.send_header("retry-after", str(wait))
        self.end_headers()
        self.wfile.write(body)


def _model(name: str, prices: tuple[str, str]) -> dict[str, Any]:
    return {"id": name, "context_length": 100_000, "pricing": {"prompt": prices[0], "completion": prices[1]}}


def _shown(provider: Provider, batch: OneBatch, *, openrouter: bool) -> dict[str, Any]:
    done = len(batch.lines)
    failed = sum((line.get("response") or {}).get("status_code") != 200 for line in batch.lines)
    shown: dict[str, Any] = {
        "id": batch.id, "object": "batch", "endpoint": "/v1/chat/completions", "status": batch.status,
        "created_at": batch.created_at, "expires_at": None,
        "request_counts": {"total": len(batch.requests), "completed": done - failed, "failed": failed},
    }  # fmt: skip
    if openrouter:
        cost = {"cost": provider.cost(batch) / 10**12} if batch.lines else None
        error = {"message": batch.problem} if batch.problem else None
        return {**shown, "model": batch.model, "usage": cost, "results": None, "error": error}
    if batch.lines and f"out-{batch.id}" not in provider.files:
        good = [line for line in batch.lines if (line.get("response") or {}).get("status_code") == 200]
        bad = [line for line in batch.lines if line not in good]
        provider.files[f"out-{batch.id}"] = b"\n".join(json.dumps(line).encode() for line in good)
        provider.files[f"err-{batch.id}"] = b"\n".join(json.dumps(line).encode() for line in bad)
    errors = {"object": "list", "data": [{"code": batch.problem, "message": batch.problem}]} if batch.problem else None
    files: dict[str, Any] = {}
    if batch.lines:
        files = {"output_file_id": f"out-{batch.id}", "error_file_id": f"err-{batch.id}"}
    usage = None if provider.reported is None else {"cost": provider.reported}
    shown |= {"usage": usage, "metadata": batch.metadata, "input_file_id": batch.input_file, "errors": errors}
    return {**shown, **files}


@contextmanager
def serving(provider: Provider) -> Iterator[Provider]:
    """Serve while the block runs; `url` is the address without a path."""
    handler = type("Handler", (_Handler,), {"provider": provider})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="provider", kwargs={"poll_interval": 0.05})
    thread.start()
    provider.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
