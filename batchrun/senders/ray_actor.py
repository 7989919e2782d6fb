"""What runs in a Ray actor: an HTTP sender that takes requests and gives replies in numbered, repeatable exchanges.

It imports nothing of Ray. A number that comes again is the same exchange again: requests are not sent twice, replies
are read anew, and the next number says that they arrived.
"""

import asyncio
import os
import resource
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from batchrun._version import __version__
from batchrun.records import Reply, Request, Send, Target

BATCH = 256
BATCH_BYTES = 8 * 2**20
"""A batch ends with the first request or reply that fills it: what Ray moves at once stays small."""

SPARE_FILES = 64

Ask = tuple[int, bytes]
"""A request's number and its body."""

Done = tuple[int, Reply]
"""A request's number and what came back."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What an actor needs to send; it comes by a call, so that the key is in no constructor and no environment.

    `headers` hold the key. Seconds: `window` is the least time between two batches of replies while others are under
    way, `poll` how long an exchange waits for the first one, `lease` after how long without a call the actor ends.
    """

    kind: str
    target: Target
    headers: dict[str, str]
    window: float
    poll: float
    lease: float

    def __repr__(self) -> str:
        return "Delivery(***)"


@dataclass(frozen=True, slots=True)
class Events:
    """What the owner is told: `tell` takes a line for people; `lost` the reason why nothing can be sent any more."""

    tell: Callable[[str], None] = lambda _: None
    lost: Callable[[str], None] = lambda _: None


NO_EVENTS = Events()


def _end() -> NoReturn:
    os._exit(1)


class RemoteSender:
    """One actor. Its owner calls `open` once, then `put` and `take` side by side, each with numbers from 1 on."""

    def __init__(self, end: Callable[[], None] = _end) -> None:
        self._end = end
        self._stack = AsyncExitStack()
        self._send: Send | None = None
        self._done: deque[Done] = deque()
        self._asking: set[asyncio.Task[None]] = set()
        self._put = self._taken = 0
        self._taking: asyncio.Task[list[Done]] | None = None
        self._came = asyncio.Event()
        self._given_at = self._heard_at = 0.0

    async def open(self, delivery: Delivery) -> str:
        """Open the HTTP sender; give the version of batchrun that is installed here."""
        self._hear()
        if self._send is None:
            self._delivery = delivery
            opener = import_module("batchrun.senders").open_here
            sending = opener(delivery.target, delivery.headers, delivery.kind)
            self._send = await self._stack.enter_async_context(sending)
            self._guard = asyncio.create_task(self._watch())
        return __version__

    async def put(self, number: int, asks: list[Ask]) -> None:
        """Send these requests, unless this number came before."""
        self._hear()
        if number <= self._put:
            return
        self._put = number
        for ask in asks:
            task = asyncio.create_task(self._ask(*ask))
            self._asking.add(task)
            task.add_done_callback(self._left)

    async def take(self, number: int) -> list[Done]:
        """Give a batch of replies, or nothing after a while; the same number gives the same batch again."""
        self._hear()
        if number < self._taken:
            return []
        if number != self._taken or self._taking is None:
            self._taken = number
            self._taking = asyncio.create_task(self._collect())
        return await asyncio.shield(self._taking)

    async def close(self) -> None:
        """End the connections; the process of an actor is killed instead."""
        self._guard.cancel()
        await self._stack.aclose()

    async def _ask(self, number: int, body: bytes) -> None:
        send = self._send
        assert send is not None  # noqa: S101  (open comes first)
        reply = await send(Request(body))
        self._done.append((number, reply))

    def _left(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        self._came.set()
        if not task.cancelled() and task.exception() is not None:
            self._end()  # a bug: the owner learns of it as of a killed actor, and asks again

    async def _collect(self) -> list[Done]:
        """Wait for a reply, then for the window, a full batch, or the last request under way."""
        loop = asyncio.get_running_loop()
        await self._until(loop.time() + self._delivery.poll, lambda: bool(self._done))
        await self._until(self._given_at + self._delivery.window, lambda: len(self._done) >= BATCH or not self._asking)
        self._given_at = loop.time()
        self._hear()
        given: list[Done] = []
        size = 0
        while self._done and len(given) < BATCH and size < BATCH_BYTES:
            given.append(self._done.popleft())
            size += len(given[-1][1].body)
        return given

    async def _until(self, end: float, condition: Callable[[], bool]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while not condition():
                    self._came.clear()
                    await self._came.wait()

    def _hear(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()

    async def _watch(self) -> None:
        """End when nobody has called for the lease: the owner is gone, or has given this actor up by then."""
        lease = self._delivery.lease
        while (left := self._heard_at + lease - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110  (a deadline that moves, no event)
            await asyncio.sleep(left)
        self._end()


def allow_open_files(connections: int) -> None:
    """Let this process hold so many connections, as far as the hard limit allows; each is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft < wanted:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
