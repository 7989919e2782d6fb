"""A fake OpenAI-compatible server with seeded faults, on loopback. It bills, and keeps a ledger of all it received.

A row's own fault stands in its text as `!kind` (`KINDS`); the weather of a step (`Weather`) is the server's.
An answer is a function of the question alone, so that a wrong join shows.
"""

import asyncio
import contextlib
import datetime as dt
import hashlib
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from oracle.desk import Batching, Desk, Line

PROMPT_PICO, COMPLETION_PICO = 1_000_000, 2_000_000
"""What a token costs, in picodollars: model.price is 1 and 2 USD per million."""

_MARK = re.compile(r"!([a-z]+)")

KINDS = {
    "bad": "never fits the schema",
    "badrequest": "always 400",
    "broken": "a text with U+FFFD in it, always",
    "busy": "always 429",
    "crash": "always 500",
    "cut": "cut off at max_tokens, in half",
    "draft": "a draft inside the reasoning, then the answer",
    "empty": "an empty message",
    "filter": "cut by a content filter",
    "large": "always 429, in words that say it can never pass",
    "lost": "the reply breaks off on the wire, always; it is billed",
    "mend": "fits the schema after one repair",
    "nan": "a good answer beside a field that is not JSON",
    "odd": "half an answer, with a finish reason that nobody knows",
    "two": "two different answers that fit, and no word of which is meant",
    "whole": "a complete answer, with the finish reason `length`",
}


def kind_of(question: str) -> str | None:
    """Return the fault that a question's text carries, or None."""
    return next((word for word in _MARK.findall(question) if word in KINDS), None)


def good_answer(question: str, columns: dict[str, Any] | None) -> Any:  # noqa: ANN401  (text, or an object)
    """Return the right answer to a question: text, or an object with the job's `answer.columns`."""
    number = int.from_bytes(hashlib.sha256(question.encode()).digest()[:6], "big")
    if columns is None:
        return f"Answer {number} to {question[:20].strip() or '…'}."
    return {name: _value(kind, number // (place + 1)) for place, (name, kind) in enumerate(columns.items())}


def _value(kind: Any, number: int) -> Any:  # noqa: ANN401  (any JSON)
    if isinstance(kind, list):
        return [f"t{place}" for place in range(number % 3)] if kind == ["string"] else kind[number % len(kind)]
    values: dict[str, Any] = {
        "integer": number % 2_001 - 1_000,
        "number": (number % 4_001 - 2_000) / 8,
        "boolean": number % 2 == 0,
        "date": (dt.date(2001, 1, 1) + dt.timedelta(days=number % 9_000)).isoformat(),
        "string?": None if number % 3 == 0 else f"maybe {number % 100}",
        "chance": (17 + number % 15) / 32,
    }
    return values.get(kind, f'text {number % 1_000} é, "quoted"')


def draft_of(question: str, columns: dict[str, Any] | None) -> str:
    """Return an answer that fits too, but is not the right one."""
    return json.dumps(good_answer(question + " (draft)", columns))


def has_two_answers(question: str, columns: dict[str, Any]) -> bool:
    """Check whether the draft says something else than the answer."""
    return draft_of(question, columns) != json.dumps(good_answer(question, columns))


@dataclass(frozen=True)
class Weather:
    """How the server is during a step; `since` and `until` count requests of the step."""

    kind: str = "calm"
    since: int = 0
    until: int = 0
    status: int = 503

    def is_out(self, number: int) -> bool:
        """Check whether the step's request of this number meets an outage."""
        return self.kind == "dead" or (self.kind == "outage" and self.since <= number < self.until)


@dataclass
class Ledger:
    """What the server received and answered; picodollars."""

    received: list[str] = field(default_factory=list)
    systems: set[str] = field(default_factory=set)
    answered: list[tuple[str, int]] = field(default_factory=list)
    lost: list[tuple[str, int]] = field(default_factory=list)
    submitted: int = 0
    """What the lines of this step's batches are billed."""
    fetched: list[tuple[str, int, int]] = field(default_factory=list)
    """Each line of a batch whose results were fetched: question, bill, and day of the submission."""
    read: int = 0
    """How many of these lines are answers."""

    @property
    def has_answers(self) -> bool:
        """Whether anything was answered, live or in a batch."""
        return bool(self.answered or self.read)

    def counts(self) -> Counter[str]:
        """Return how often each question came."""
        return Counter(self.received)


class Server:
    """The server; `columns` is the job's answer.columns, `on_event` is called with "received" or "answered".

    `billed_openly`: replies report their cost. `costs`: the ledger knows it; else it books 0, as everybody must.
    """

    def __init__(self) -> None:
        self.columns: dict[str, Any] | None = None
        self.billed_openly = self.costs = True
        self.weather = Weather()
        self.ledger = Ledger()
        self.on_event: Callable[[str], None] | None = None
        self.url = ""
        self.desk = self.new_desk(Batching(1, 1, ""), dedupe=True)
        self._random = random.Random(0)  # noqa: S311  (a seed, not a secret)
        self._attempts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._open, self._idle = 0, threading.Condition()

    def new_desk(self, batching: Batching, *, dedupe: bool) -> Desk:
        """Forget all batches: a life begins."""
        self.desk = Desk(self._batch_line, self._batch_received, self._batch_fetched, batching, dedupe=dedupe)
        return self.desk

    def begin(self, weather: Weather, columns: dict[str, Any] | None, seed: int) -> Ledger:
        """Begin a step: a new ledger, and this weather."""
        self.weather, self.columns, self.ledger = weather, columns, Ledger()
        self._random, self._attempts, self.on_event = random.Random(seed), Counter(), None  # noqa: S311
        return self.ledger

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._idle:
            self._open += 1
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, OSError):
                while await self._request(reader, writer):
                    pass
        finally:
            writer.close()
            with self._idle:
                self._open -= 1
                self._idle.notify_all()

    def settle(self) -> None:
        """Wait until all connections of the process that ended are closed: what it sent is then in the ledger."""
        with self._idle:
            assert self._idle.wait_for(lambda: not self._open, 10), "a connection stays open"

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = re.search(r"(?i)content-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        method, path, *_ = head.split()
        if path.startswith(("/v1/files", "/v1/batches")):
            if (reply := self.desk.handle(method, path, body)) is None:
                return False
            writer.write(_head(reply[0], len(reply[1])) + reply[1])
            await writer.drain()
            return True
        if method == "GET":
            await _send(writer, 200, {"object": "list", "data": [{"id": "m", "object": "model"}]})
            return True
        number = len(self.ledger.received)
        asked = json.loads(body)
        # A decision model gets a state; what else it gets, it gets in each question.
        messages = asked.get("messages") or [{"role": "user", "content": asked["state"]}]
        repair = any(message["role"] == "assistant" for message in messages)
        question = self._note(messages)
        self._attempts[question] += 1
        self._event("received")
        await asyncio.sleep(self._random.choice((0, 0, 0.001, 0.003)))
        return await self._reply(writer, question, number, repair=repair)

    async def _reply(self, writer: asyncio.StreamWriter, question: str, number: int, *, repair: bool) -> bool:
        weather, odd = self.weather, self._attempts[question] % 2 == 1
        if weather.is_out(number) or (weather.kind == "half" and odd):
            status = weather.status if weather.kind != "half" else 500
            if status == 0:  # a reset
                return False
            await _send(writer, status, {"error": {"message": "the server is in trouble", "code": status}})
            return True
        kind = kind_of(question)
        if refusal := _REFUSALS.get(kind or ""):
            await _send(writer, refusal[0], {"error": {"message": refusal[1], "code": refusal[0]}})
            return True
        raw, billed = self._completion(question, kind, repair=repair)
        if kind == "lost" or (weather.kind == "lossy" and odd):
            self.ledger.lost.append((question, billed))
            writer.write(_head(200, len(raw)) + raw[: len(raw) // 2])
            await writer.drain()
            return False
        # Booked before it is sent: who reads the ledger after the client has the reply finds it there.
        self.ledger.answered.append((question, billed))
        self._event("answered")
        writer.write(_head(200, len(raw)) + raw)
        await writer.drain()
        return weather.kind != "stale"

    def _batch_line(self, question: str) -> tuple[tuple[int, bytes] | None, int]:
        """Return a question's reply in a batch, and its bill: half of a live one's."""
        kind = kind_of(question)
        if refusal := _REFUSALS.get(kind or ""):
            return (refusal[0], json.dumps({"error": {"message": refusal[1], "code": refusal[0]}}).encode()), 0
        if kind == "lost":
            return None, 0
        raw, pico = self._completion(question, kind, repair=False, share=2)
        return (200, raw), pico

    def _batch_received(self, body: dict[str, Any], pico: int) -> None:
        self.ledger.submitted += pico
        self._note(body["messages"])
        self._event("received")

    def _batch_fetched(self, line: Line, day: int) -> None:
        self.ledger.fetched.append((line.question, line.pico, day))
        self.ledger.read += line.reply is not None and line.reply[0] == 200
        self._event("answered")

    def _note(self, messages: list[dict[str, Any]]) -> str:
        """Note in the ledger what came; return the question."""
        question = next(message["content"] for message in messages if message["role"] == "user")
        self.ledger.received.append(question)
        self.ledger.systems |= {message["content"] for message in messages if message["role"] == "system"}
        return str(question)

    def _completion(self, question: str, kind: str | None, *, repair: bool, share: int = 1) -> tuple[bytes, int]:
        """Return a reply's bytes and what it is billed: the price, or its `share`-th part."""
        tokens = 10 + len(question) % 7, 5
        pico = (tokens[0] * PROMPT_PICO + tokens[1] * COMPLETION_PICO) // share * self.costs
        usage: dict[str, float] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
        usage |= {"cost": pico / 1e12} if self.billed_openly else {}
        if "chance" in (self.columns or {}).values():
            answers = {} if kind == "bad" else _decisions(good_answer(question, self.columns))
            answers["other"] = {"type": "noul", "noul": 0.5}
            return json.dumps({"id": "gen-1", "model": "m-2026", "answers": answers, "usage": usage}).encode(), pico
        content, finish = _content(question, kind, self.columns, repair=repair)
        choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content}}
        reply = {"id": "gen-1", "object": "chat.completion", "model": "m-2026", "choices": [choice], "usage": usage}
        raw = json.dumps(reply).encode()
        if kind == "nan":
            raw = raw.replace(b'{"index": 0', b'{"logprobs": NaN, "index": 0')
        return raw, pico

    def _event(self, what: str) -> None:
        if self.on_event is not None:
            self.on_event(what)


_REFUSALS = {
    "badrequest": (400, "this input is not acceptable"),
    "busy": (429, "rate limit reached"),
    "large": (429, "request too large: 90000 tokens requested, the limit is 30000 per minute"),
    "crash": (500, "internal error"),
}


def _content(question: str, kind: str | None, columns: dict[str, Any] | None, *, repair: bool) -> tuple[str, str]:
    """Return a message's text and finish reason."""
    answer = good_answer(question, columns)
    text = answer if columns is None else json.dumps(answer, ensure_ascii=False)
    half = text[: max(1, len(text) // 2)]
    finish = "stop"
    if kind in {"bad", "mend"} and columns is not None and (kind == "bad" or not repair):
        text = "I can not answer that."
    elif kind == "draft":
        text = f"<think>Perhaps {draft_of(question, columns)}? No.</think>\n{text}"
    elif kind == "two" and columns is not None:
        text = f"{draft_of(question, columns)}\n{text}"
    elif kind == "broken" and columns is None:
        text += "\ufffd"
    elif kind == "empty":
        text = ""
    elif kind in {"cut", "odd", "filter"}:
        text, finish = half, {"cut": "length", "odd": "halted", "filter": "content_filter"}[kind]
    elif kind == "whole":
        finish = "length"
    return text, finish


def _decisions(answer: dict[str, Any]) -> dict[str, Any]:
    """Return a decision model's answers to a label and a question of yes or no, with their probabilities."""
    sure, (label, is_fine) = [answer["label_prob"], answer["fine_prob"]], (answer["label"], answer["fine"])
    labels = {name: sure[0] if name == label else 1 - sure[0] for name in ("good", "bad")}
    return {
        "label": {"type": "choice", "choice": label, "probabilities": labels},
        "fine": {"type": "noul", "noul": sure[1] if is_fine else 1 - sure[1]},
    }


def _head(status: int, length: int) -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n".encode()


async def _send(writer: asyncio.StreamWriter, status: int, reply: dict[str, Any]) -> None:
    raw = json.dumps(reply).encode()
    writer.write(_head(status, len(raw)) + raw)
    await writer.drain()


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Serve on a free port of loopback while the block runs."""
    server, started = Server(), threading.Event()
    stop = asyncio.Event()

    async def run() -> None:
        listening = await asyncio.start_server(server._connection, "127.0.0.1", 0, backlog=256)
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        started.set()
        await stop.wait()
        listening.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    loop = server._loop
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), name="oracle's server")
    thread.start()
    try:
        assert started.wait(10)
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
