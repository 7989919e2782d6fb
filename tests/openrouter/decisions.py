"""A server of decision models that shares no code with batchrun: TypeSafe's form, OpenRouter's and OpenAI's.

Its answers follow the text: a label or a yes that the state contains is likely. It bills what its template adds, too.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from openrouter.server import Server

MODEL, BUILD = "maker/judge-1", "maker/judge-1-20261120"
PRICE = Decimal("0.000000042")
TEMPLATE_TOKENS = 287

Fault = Callable[[dict[str, Any]], tuple[int, Any] | None]
"""Returns the reply in place of an answer for a body, None where there is none."""


@dataclass(slots=True)
class Books:
    """What the server saw and charged."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    charged: Decimal = Decimal(0)
    build: str = BUILD
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class Deciding:
    """A running server: the address without a path, and its books."""

    url: str
    books: Books


def _weights(state: str, labels: list[str]) -> list[float]:
    """Return a probability for each label, rounded to two places like the real ones: 0.8 shared by those it names."""
    digest = hashlib.sha256(state.encode()).digest()
    raw = [1 + digest[at % 32] / 512 + (20 if label.lower() in state.lower() else 0) for at, label in enumerate(labels)]
    return [round(one / sum(raw), 2) for one in raw]


def _map_answer(state: str, question: Mapping[str, Any], *, bare: bool) -> dict[str, Any]:
    match question["type"]:
        case "noul":
            return {"type": "noul", "noul": 0.93 if "broken" in state else 0.07}
        case "choice":
            labels = list(question["criteria"])
            weights = _weights(state, labels)
            found = {"type": "choice", "choice": labels[weights.index(max(weights))]}
            return (
                found
                if bare
                else {**found, "probabilities": dict(zip(labels, weights, strict=True)), "confidence": 0.5}
            )
        case _:
            levels = question["criteria"]
            weights = _weights(state, [level.partition(":")[0] for level in levels])
            score = sum(at * one for at, one in enumerate(weights)) / sum(weights)
            found = {"type": "score", "score": score}
            by_level = {str(at): one for at, one in enumerate(weights)}
            return found if bare else {**found, "probabilities": by_level, "legend": {}, "confidence": 0.5}


def _list_answer(state: str, question: Mapping[str, Any]) -> dict[str, Any]:
    name = question["name"]
    match question["type"]:
        case "predicate":
            return {"type": "predicate", "name": name, "probability": 0.93 if "broken" in state else 0.07}
        case "choice":
            labels = [one["value"] for one in question["choices"]]
            weights = _weights(state, labels)
            table = [{"value": label, "probability": one} for label, one in zip(labels, weights, strict=True)]
            chosen = labels[weights.index(max(weights))]
            return {"type": "choice", "name": name, "choice": chosen, "probabilities": table, "confidence": 0.5}
        case _:
            labels = [one["label"] for one in question["levels"]]
            weights = _weights(state, labels)
            table = [
                {"label": label, "value": at, "probability": one}
                for at, (label, one) in enumerate(zip(labels, weights, strict=True))
            ]
            score = sum(at * one for at, one in enumerate(weights)) / sum(weights)
            return {"type": "score", "name": name, "score": score, "probabilities": table, "confidence": 0.5}


def _answered(body: dict[str, Any], path: str, books: Books, *, bare: bool) -> dict[str, Any]:
    questions = body["questions"]
    tokens = len(json.dumps(body)) // 4 + TEMPLATE_TOKENS * len(questions)
    if path.endswith("/v1/decisions"):
        state = json.dumps(body["input"])
        answers: Any = [_list_answer(state, question) for question in questions]
        usage: dict[str, Any] = {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}
        return {"model": body["model"], "answers": answers, "usage": usage}
    state = json.dumps(body["state"])
    answers = {name: _map_answer(state, question, bare=bare) for name, question in questions.items()}
    cost = tokens * PRICE
    with books.lock:
        books.charged += cost
    usage = {"input_tokens": tokens, "output_tokens": 0, "cost": float(cost)}
    return {"id": "gen-dec-1", "model": books.build, "provider": "Maker", "answers": answers, "usage": usage}


def _get(path: str) -> tuple[int, Any]:
    if path.endswith("/key"):
        return 200, {"data": {"label": "k", "limit": None, "limit_remaining": None, "usage": 0, "is_free_tier": False}}
    pricing = {"prompt": str(PRICE), "completion": "0"}
    return 200, {"data": [{"id": MODEL, "canonical_slug": BUILD, "context_length": 32_768, "pricing": pricing}]}


@contextmanager
def deciding(*paths: str, fault: Fault | None = None, bare: bool = False) -> Iterator[Deciding]:
    """Serve decisions at these paths while the block runs; any other path answers 404. `bare`: no probabilities."""
    books, ready = Books(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401  (ASGI)
        raw, more = b"", True
        while more:
            event = await receive()
            raw += event["body"]
            more = event.get("more_body", False)
        path = scope["path"]
        if scope["method"] == "GET":
            status, reply = _get(path)
        elif path not in paths:
            status, reply = 404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}
        else:
            body = json.loads(raw)
            with books.lock:
                books.bodies.append(body)
                books.paths.append(path)
            status, reply = (fault and fault(body)) or (200, _answered(body, path, books, bare=bare))
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(reply).encode()})

    server = Server(app, ready=ready.set)  # type: ignore[arg-type]  # any application would do
    thread = threading.Thread(target=server.serve_until_stopped, name="deciding")
    thread.start()
    try:
        assert ready.wait(10)
        yield Deciding(server.url.removesuffix("/api/v1"), books)
    finally:
        server.should_exit = True
        thread.join()
