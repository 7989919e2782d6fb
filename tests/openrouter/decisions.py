"""A server of decision models that shares no code with batchrun: TypeSafe's form, OpenRouter's and OpenAI's.

Its answers follow the text: a label or a yes that the state contains is likely. It bills what its template adds, too.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from openrouter.server import Server

MODEL, BUILD = "maker/judge-1", "maker/judge-1-20261120"
PRICE = Decimal("0.000000042")
TEMPLATE_TOKENS = 287

Fault = Callable[[dict[str, Any]], tuple[int, Any] | None]
"""Returns the reply in place of an answer for a body, None where there is none. A text is sent as it is."""

Spoil = Callable[[dict[str, Any]], None]
"""Changes a good reply."""


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


def _each(kind: str, change: Callable[[dict[str, Any]], None]) -> Spoil:
    """Change each answer of one type."""

    def spoil(reply: dict[str, Any]) -> None:
        for answer in reply["answers"].values():
            if answer["type"] == kind:
                change(answer)

    return spoil


def _scaled(factor: float) -> Callable[[dict[str, Any]], None]:
    def change(answer: dict[str, Any]) -> None:
        answer["probabilities"] = {name: one * factor for name, one in answer["probabilities"].items()}

    return change


def _renamed(answer: dict[str, Any]) -> None:
    answer["probabilities"] = {name.upper(): one for name, one in answer["probabilities"].items()}


def _counted_from_one(answer: dict[str, Any]) -> None:
    answer["probabilities"] = {str(int(name) + 1): one for name, one in answer["probabilities"].items()}


HARMLESS: Mapping[str, Spoil] = {
    "no usage": lambda reply: reply.pop("usage"),
    "counts as floats": lambda reply: reply["usage"].update(input_tokens=float(reply["usage"]["input_tokens"])),
    "an answer nobody asked for": lambda reply: reply["answers"].update(more={"type": "noul", "noul": 0.5}),
    "an unknown type beside": lambda reply: reply["answers"].update(face={"type": "box", "box": {"left": 0.1}}),
    "yes or no is called boolean": _each("noul", lambda answer: answer.update(type="boolean")),
    "unknown fields": lambda reply: reply.update(latency_ms=3, trace=None),
    "no confidence": _each("choice", lambda answer: answer.pop("confidence")),
    "confidence above 1": _each("choice", lambda answer: answer.update(confidence=1.5)),
    "no legend": _each("score", lambda answer: answer.pop("legend")),
    "a legend from 1": _each("score", lambda answer: answer.update(legend={"1": "low", "2": "soon", "3": "now"})),
    "a choice adds up to 1.1": _each("choice", _scaled(1.1)),
    "a score adds up to 0.8": _each("score", _scaled(0.8)),
    "the score is a level": _each("score", lambda answer: answer.update(score=float(round(answer["score"])))),
}
"""Faults of servers that change no answer and no probability."""

UNSURE: Mapping[str, tuple[str, Spoil]] = {
    "labels in capitals": ("team", _each("choice", _renamed)),
    "levels from 1": ("urgency", _each("score", _counted_from_one)),
    "no probabilities": ("team", _each("choice", lambda answer: answer.update(probabilities=None))),
    "half of the levels": ("urgency", _each("score", lambda answer: answer["probabilities"].pop("1"))),
    "texts": ("team", _each("choice", lambda answer: answer.update(probabilities=dict.fromkeys("ab", "high")))),
}
"""Faults after which an answer's probabilities are unknown, with the column that they concern."""

UNFIT: Mapping[str, Spoil] = {
    "the first question only": lambda reply: reply.update(answers={"team": reply["answers"]["team"]}),
    "yes above 1": _each("noul", lambda answer: answer.update(noul=1.2)),
    "a label in capitals": _each("choice", lambda answer: answer.update(choice=answer["choice"].upper())),
    "a label nobody offered": _each("choice", lambda answer: answer.update(choice="nobody")),
    "no answer": _each("noul", lambda answer: answer.update(noul=None)),
    "answers as texts": lambda reply: reply.update(answers=dict.fromkeys(reply["answers"], "yes")),
}
"""Faults after which a row has no answer, though it is billed."""


def _located(*place: str | int) -> dict[str, Any]:
    return {"detail": [{"loc": ["body", *place], "msg": "Input should be valid", "type": "string_type"}]}


REFUSALS: Mapping[str, tuple[int, Any, str]] = {
    "no such path": (404, {"detail": {"error_type": "not_found", "message": "No route /x"}}, "not_found"),
    "no such path, as text": (404, "Not Found", "not_found"),
    "wrong key": (401, {"detail": {"error_type": "authentication_error", "message": "Unknown."}}, "unauthorized"),
    "wrong key, flat": (401, {"error": "bad key"}, "unauthorized"),
    "wrong key, as text": (401, "Unauthorized", "unauthorized"),
    "no key": (403, {"detail": {"error_type": "authentication_error", "message": "Must supply an API key!"}},
               "unauthorized"),
    "model": (400, {"detail": {"error_type": "api_usage_error", "message": "Unknown model: x"}}, "invalid_model"),
    "model, flat": (400, {"error": "Unknown model: x"}, "invalid_model"),
    "model, 404": (404, {"detail": {"error_type": "not_found", "message": "Model not served: x"}}, "invalid_model"),
    "model, by its field": (422, _located("model"), "invalid_model"),
    "not a decision model": (501, {"error": {"code": 501, "message": "This model is not a decision model",
                                             "type": "not_supported_error"}}, "wrong_mode"),
    "training": (404, {"error": {"code": 404, "message": "No endpoints found matching your data policy (Free model "
                                                         "training violation)"}}, "no_endpoint"),
    "credit": (402, {"error": {"code": 402, "message": "Insufficient credits"}}, "no_credit"),
    "a question's description": (422, _located("questions", "team", "choice", "criteria", "a"), "bad_parameters"),
    "a question, flat": (400, {"error": "Input should be a valid string"}, "bad_request"),
    "the state": (422, _located("state"), "bad_request"),
    "too long": (400, {"error": {"code": 400, "type": "exceed_context_size_error", "n_ctx": 2048,
                                 "message": "request (6045 tokens) exceeds the available context size"}},
                 "context_length"),
    "too large": (413, {"error": {"code": 413, "message": "Payload too large"}}, "payload_too_large"),
    "broken": (500, {"detail": {"error_type": "internal_error", "message": "KeyError: 'type'"}}, "server_error"),
    "edge": (524, "<html><title>A timeout occurred</title></html>", "server_error"),
    "prefix of other APIs": (200, ")]}'\n{}", "invalid_response"),
}  # fmt: skip
"""What servers of decision models refuse with: status, body, and the ending it should have."""


def _get(path: str, inputs: Sequence[str]) -> tuple[int, Any]:
    if path.endswith("/key"):
        return 200, {"data": {"label": "k", "limit": None, "limit_remaining": None, "usage": 0, "is_free_tier": False}}
    pricing = {"prompt": str(PRICE), "completion": "0"}
    model = {"id": MODEL, "canonical_slug": BUILD, "context_length": 32_768, "pricing": pricing}
    return 200, {"data": [{**model, "architecture": {"input_modalities": list(inputs)}}]}


@contextmanager
def deciding(
    *paths: str,
    fault: Fault | None = None,
    spoil: Spoil | None = None,
    bare: bool = False,
    inputs: Sequence[str] = ("text",),
) -> Iterator[Deciding]:
    """Serve decisions at these paths while the block runs; any other path answers 404. `bare`: no probabilities.

    `inputs` are what the catalogue says that the model takes.
    """
    books, ready = Books(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401  (ASGI)
        raw, more = b"", True
        while more:
            event = await receive()
            raw += event["body"]
            more = event.get("more_body", False)
        path = scope["path"]
        if scope["method"] == "GET":
            status, reply = _get(path, inputs)
        elif path not in paths:
            status, reply = 404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}
        else:
            body = json.loads(raw)
            with books.lock:
                books.bodies.append(body)
                books.paths.append(path)
            status, reply = (fault and fault(body)) or (200, _answered(body, path, books, bare=bare))
            if spoil is not None:
                spoil(reply)
        headers = [(b"content-type", b"text/plain" if isinstance(reply, str) else b"application/json")]
        content = reply if isinstance(reply, str) else json.dumps(reply)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content.encode()})

    server = Server(app, ready=ready.set)  # type: ignore[arg-type]  # any application would do
    thread = threading.Thread(target=server.serve_until_stopped, name="deciding")
    thread.start()
    try:
        assert ready.wait(10)
        yield Deciding(server.url.removesuffix("/api/v1"), books)
    finally:
        server.should_exit = True
        thread.join()
