"""A server that keeps its own books: each question that came, each answer that left; equal questions, equal answers."""

import asyncio
import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

TOKENS = 100
"""What each request uses, as prompt and as completion; the jobs' price makes each cost $0.0002."""


@dataclass
class Ledger:
    """The books, by the text of the question. Everything happens in the server's thread, `on_event` as well.

    `received` and `answered` count requests; `forbidden` holds questions that must not come again, and `forbidden_came`
    those that did. `on_event` is called after each arrival and after each reply. While `held` no reply leaves.
    `refuse` says of a question which HTTP status it gets instead of an answer.
    """

    received: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    forbidden: set[str] = field(default_factory=set)
    forbidden_came: list[str] = field(default_factory=list)
    in_flight: int = 0
    connections: int = 0
    latency: tuple[float, float] = (0.005, 0.03)
    on_event: Callable[[], None] | None = None
    held: bool = False
    refuse: Callable[[str], int] = lambda text: 400 if text.startswith("bad ") else 0
    url: str = ""
    chance: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311  (a seed, not a secret)
    waiting: list[Callable[[], None]] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop | None = None

    @property
    def requests(self) -> int:
        """How many requests came."""
        return self.received.total()

    def forget(self) -> None:
        """Begin the books again, for another job."""
        self.received.clear()
        self.answered.clear()
        self.bodies.clear()
        self.forbidden.clear()
        self.forbidden_came.clear()

    def settle(self) -> None:
        """Wait until all that an ended process had sent is in the books: its last bytes may still be on their way."""
        patience = time.monotonic() + 30
        while self.connections or self.in_flight:
            if time.monotonic() > patience:
                raise RuntimeError("connections of an ended process stay open")
            time.sleep(0.001)

    def release(self) -> None:
        """Let the replies leave that were held; from any thread."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        self.held = False
        waiting, self.waiting = self.waiting, []
        for reply in waiting:
            reply()

    def tell(self) -> None:
        """Call `on_event`."""
        if self.on_event is not None:
            self.on_event()


def reply_to(text: str, status: int, decisions: Collection[str] = ()) -> bytes:
    """Return the reply to a question, the same each time; `decisions` are yes-or-no questions about the text."""
    if status:
        body: dict[str, Any] = {"error": {"code": status, "message": "not like this"}}
    elif decisions:
        draws = {name: hashlib.sha256(f"{name} {text}".encode()).digest()[0] / 256 for name in decisions}
        usage = {"input_tokens": 2 * TOKENS, "output_tokens": 0}
        body = {"model": "m", "answers": {name: {"type": "noul", "noul": yes} for name, yes in draws.items()}}
        body["usage"] = usage
    else:
        words = hashlib.sha256(text.encode()).hexdigest()[:12]
        message = {"role": "assistant", "content": f"answer {words}, with a tail that makes it longer: {words * 8}"}
        usage = {"prompt_tokens": TOKENS, "completion_tokens": TOKENS, "total_tokens": 2 * TOKENS}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body = {"id": f"gen-{words}", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status or 200} X\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


class _Conversation(asyncio.Protocol):
    """One connection: requests of a known length, one after the other."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._read = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ledger.connections += 1

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, rest = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].split(b":")[1]) if lengths else 0
        if len(rest) >= length:
            self._read = rest[length:]
            self._came(json.loads(rest[:length]))

    def _came(self, body: dict[str, Any]) -> None:
        ledger = self._ledger
        decisions = body.get("questions", ())
        text = str(body["state"] if decisions else body["messages"][-1]["content"])
        ledger.received[text] += 1
        ledger.bodies.append(body)
        ledger.in_flight += 1
        if text in ledger.forbidden:
            ledger.forbidden_came.append(text)
        if ledger.held:
            ledger.waiting.append(lambda: self._reply(text, decisions))
        else:
            delay = ledger.chance.uniform(*ledger.latency)
            asyncio.get_running_loop().call_later(delay, self._reply, text, decisions)
        ledger.tell()

    def _reply(self, text: str, decisions: Collection[str]) -> None:
        ledger = self._ledger
        ledger.in_flight -= 1
        if self._transport is None or self._transport.is_closing():
            return
        status = ledger.refuse(text)
        self._transport.write(reply_to(text, status, decisions))
        ledger.answered[text] += 1
        ledger.tell()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._transport = None
        self._ledger.connections -= 1


@contextmanager
def serving(ledger: Ledger) -> Iterator[Ledger]:
    """Serve while the block runs; `url` is the base address of the API."""
    ready = threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(_serve(ledger, ready),), name="ledger")
    thread.start()
    if not ready.wait(10) or ledger.loop is None:
        raise RuntimeError("the ledger's server does not start")
    try:
        yield ledger
    finally:
        for task in asyncio.all_tasks(ledger.loop):
            ledger.loop.call_soon_threadsafe(task.cancel)
        thread.join()


async def _serve(ledger: Ledger, ready: threading.Event) -> None:
    loop = ledger.loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Conversation(ledger), "127.0.0.1", 0, backlog=4096)
    ledger.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    ready.set()
    try:
        await loop.create_future()
    except asyncio.CancelledError:
        server.close()
