"""One Ray actor as the driver sees it: what it is handed, what it has, and the exchanges with it."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    RayError,
    RayTaskError,
)

from batchrun._version import __version__
from batchrun.records import Fault, Reply
from batchrun.senders.ray_actor import BATCH, BATCH_BYTES, Delivery, Done

_REPEATABLE = (ActorUnavailableError, ObjectLostError, GetTimeoutError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Timing:
    """Times in seconds, as they suit clusters and networks; a test takes shorter ones."""

    window: float = 0.02
    """The least time between two batches of an actor while requests are under way."""
    poll: float = 5.0
    """How long an exchange waits for a first reply."""
    call: float = 20.0
    """How long a call may take beyond that."""
    grace: float = 45.0
    """How long an exchange with an unreachable actor is repeated."""
    lease: float = 30.0
    """After how long without a call an actor ends: below `grace`, so that no request has two senders."""
    create: float = 60.0
    """How long an actor may take to come up."""
    backoff: float = 1.0
    """Before another one is created; doubled each time, up to half a minute."""
    first: float = 300.0
    """How long there may be no actor at the start: a cluster may have to grow."""
    patience: float = 60.0
    """How long there may be none later."""


class GoneError(Exception):
    """An actor is lost; the text says why."""


class RefusedError(GoneError):
    """An actor can't be made, and another try would end alike."""


@dataclass(slots=True, eq=False)
class Ask:
    """One request on its way. `due` is the loop's time at which its reply is given up."""

    number: int
    body: bytes
    reply: asyncio.Future[Reply]
    due: float = 0.0


class Remote:
    """One actor as the driver sees it: what it is handed, what it has, its exchanges."""

    def __init__(self, actor: Any, timing: Timing, on_room: Callable[[], None]) -> None:  # noqa: ANN401  (Ray has no types)
        self.actor = actor
        self.outbox: deque[Ask] = deque()
        self._timing, self._on_room = timing, on_room
        self._loop = asyncio.get_running_loop()
        self._asked: dict[int, Ask] = {}
        self._filled = asyncio.Event()
        self._patience = 0.0
        self._window = 0.0

    @property
    def load(self) -> int:
        """How many requests it has or is to have."""
        return len(self._asked) + len(self.outbox)

    def hand(self, ask: Ask) -> None:
        """Put a request into the next batch."""
        self.outbox.append(ask)
        if len(self.outbox) == 1 or len(self.outbox) >= BATCH:
            self._filled.set()

    def settle(self, reply: Reply) -> int:
        """End all that the actor has with this reply; give how many that were."""
        in_doubt = [ask for ask in self._asked.values() if not ask.reply.done()]
        for ask in in_doubt:
            ask.reply.set_result(reply)
        self._asked.clear()
        return len(in_doubt)

    async def open(self, delivery: Delivery) -> None:
        """Wait until the actor can send. Raises GoneError."""
        self._window = delivery.window
        self._patience = delivery.target.timeout + self._timing.grace + self._timing.call
        try:
            async with asyncio.timeout(self._timing.create):
                version = await self.actor.open.remote(delivery)
        except RayError as error:
            final = isinstance(error, RayTaskError) or getattr(error, "actor_init_failed", False)
            raise (RefusedError if final else GoneError)(_line(error)) from error
        except TimeoutError as error:
            raise GoneError(f"none was placed within {self._timing.create:.0f} s: is there room for it?") from error
        if version != __version__:
            raise RefusedError(f"its node has batchrun {version}, this machine {__version__}: install the same")

    async def serve(self) -> None:
        """Exchange requests and replies until the actor is gone; always raises GoneError."""
        exchanges = [asyncio.create_task(self._feed()), asyncio.create_task(self._collect())]
        try:
            await asyncio.wait(exchanges, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for exchange in exchanges:
                exchange.cancel()
            ended = await asyncio.gather(*exchanges, return_exceptions=True)
        raise next(problem for problem in ended if not isinstance(problem, asyncio.CancelledError))  # type: ignore[misc]

    async def _feed(self) -> None:
        """Hand over batches; at once when the actor is idle, else no more often than the window."""
        number, begun = 0, 0.0
        while True:
            while not self.outbox:
                self._filled.clear()
                await self._filled.wait()
            while (left := begun + self._window - self._loop.time()) > 0 and self._asked and len(self.outbox) < BATCH:
                self._filled.clear()
                await _first(self._filled, left)
            begun = self._loop.time()
            number += 1
            batch = self._batch(begun)
            await self._exchange(partial(self.actor.put.remote, number, batch))

    def _batch(self, now: float) -> list[tuple[int, bytes]]:
        batch: list[tuple[int, bytes]] = []
        size = 0
        while self.outbox and len(batch) < BATCH and size < BATCH_BYTES:
            ask = self.outbox.popleft()
            ask.due = now + self._patience
            self._asked[ask.number] = ask
            batch.append((ask.number, ask.body))
            size += len(ask.body)
            ask.body = b""
        return batch

    async def _collect(self) -> None:
        """Take replies as they come."""
        number = 0
        while True:
            number += 1
            batch: list[Done] = await self._exchange(partial(self.actor.take.remote, number), self._timing.poll)
            for ask_number, reply in batch:
                ask = self._asked.pop(ask_number, None)
                if ask is not None and not ask.reply.done():
                    ask.reply.set_result(reply)
            self._give_up_overdue()
            self._filled.set()
            self._on_room()

    def _give_up_overdue(self) -> None:
        """End requests that the actor must have forgotten; the oldest come first."""
        now = self._loop.time()
        while self._asked and (ask := next(iter(self._asked.values()))).due < now:
            del self._asked[ask.number]
            if not ask.reply.done():
                ask.reply.set_result(Reply(fault=Fault.TIMEOUT, sent=True, detail="its sender gave no reply"))

    async def _exchange(self, call: Callable[[], Any], takes: float = 0.0) -> Any:  # noqa: ANN401  (what the call gives)
        """Call until it is answered: an unreachable actor gets the same number again. Raises GoneError."""
        until = None
        while True:
            try:
                async with asyncio.timeout(takes + self._timing.call):
                    return await call()
            except _REPEATABLE as error:
                now = self._loop.time()
                until = now + self._timing.grace if until is None else until
                if now >= until:
                    raise GoneError(f"it was not reachable for {self._timing.grace:.0f} s") from error
                await asyncio.sleep(min(1.0, self._timing.grace / 50))
            except RayError as error:
                raise GoneError(_line(error)) from error


async def _first(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _line(error: RayError) -> str:
    """Give what Ray says in one line: the last one of a traceback, else a name for the loss of a process."""
    if isinstance(error, RayTaskError):
        return str(error).strip().splitlines()[-1]
    if isinstance(error, ActorDiedError):
        cause = [line.strip() for line in str(error).splitlines() if "Error" in line and "ActorDiedError" not in line]
        return cause[-1] if getattr(error, "actor_init_failed", False) and cause else "its process or node ended"
    return type(error).__name__
