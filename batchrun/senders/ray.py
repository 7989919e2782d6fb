"""Sends through Ray actors, each with one method that sends a list of requests.

Plan, limits, budget, retries, checkpoint and output stay in this process. A call that is lost (a killed actor, a lost
node, a broken network) ends the requests in it as a reset that may be billed, and the pool asks them again.
"""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray as untyped
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from batchrun._version import __version__
from batchrun.errors import SenderError
from batchrun.job import RayOptions
from batchrun.records import Fault, Reply, Request, Send, Target
from batchrun.senders import Events, open_here
from batchrun.senders.ray_cluster import connected

ray: Any = untyped

_NO_SENDER_AT_START, _NO_SENDER = 300.0, 60.0
"""Seconds without any actor after which the run ends; a cluster may have to grow at the start."""
_CREATE = 60.0
_GRACE = 60.0
"""Seconds beyond the timeout of its requests after which a call, and with it its actor, is given up."""
_PAUSE = 2.0  # before another actor is created
_WINDOW = 0.02
"""Seconds between two batches: each costs the driver about a millisecond."""
_BATCH, _BATCH_BYTES = 256, 8 * 2**20
_CALLS = 10_000  # of one actor at a time; Ray's default of 1,000 is reached with few requests in each call
_ALMOST_NO_CPU = 0.001  # keeps a sender, which waits for the network, off nodes without any, such as a cluster's head


@dataclass(frozen=True, slots=True)
class Delivery:
    """What an actor needs. A call carries it, since Ray logs constructors; `headers` hold the key."""

    kind: str
    target: Target
    headers: dict[str, str]

    def __repr__(self) -> str:
        return "Delivery(***)"


class RemoteSender:
    """The actor."""

    async def open(self, delivery: Delivery) -> str:
        """Open the sender; return the version of batchrun that is installed on this node."""
        self._stack = AsyncExitStack()
        opening = open_here(delivery.target, delivery.headers, delivery.kind)
        self._send: Send = await self._stack.enter_async_context(opening)
        return __version__

    async def send(self, requests: list[Request]) -> AsyncIterator[list[tuple[int, Reply]]]:
        """Send all requests at once; yield replies as they come, each with the place of its request."""
        ended: asyncio.Queue[asyncio.Task[Reply]] = asyncio.Queue()
        places: dict[asyncio.Task[Reply], int] = {}
        for place, request in enumerate(requests):
            task: asyncio.Task[Reply] = asyncio.ensure_future(self._send(request))
            places[task] = place
            task.add_done_callback(ended.put_nowait)
        while places:
            task = await ended.get()
            if ended.qsize() + 1 < len(places):
                await asyncio.sleep(_WINDOW)
            batch, size = [(places.pop(task), task.result())], 0
            while not ended.empty() and size < _BATCH_BYTES:
                task = ended.get_nowait()
                batch.append((places.pop(task), task.result()))
                size += len(task.result().body)
            yield batch


@asynccontextmanager
async def open_sender(
    target: Target, headers: dict[str, str], *, kind: str, options: RayOptions, events: Events
) -> AsyncIterator[Send]:
    """Open the Send over actors that send with `kind`, as soon as the first of them is up.

    Raises SenderError where Ray can't be reached, or no actor comes up.
    """
    delivery = Delivery(kind, replace(target, headers={}, key=None), headers)
    resources = dict(options.resources)
    cpus, gpus = resources.pop("CPU", _ALMOST_NO_CPU), resources.pop("GPU", 0)
    async with connected(options.address, target.url, target.key) as nodes:
        made = ray.remote(RemoteSender).options(
            num_cpus=cpus,
            num_gpus=gpus,
            resources=resources,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=_CALLS,
            scheduling_strategy="SPREAD",
        )
        fleet = _Fleet(made.remote, delivery, options.concurrency_per_sender or sys.maxsize, events)
        try:
            await fleet.open(options.senders or nodes)
            yield fleet.send
        finally:
            await fleet.close()


class _NotOpenedError(Exception):
    """An actor can't be used, and the text says why. `is_final`: another one would end alike."""

    def __init__(self, why: str, *, is_final: bool = False) -> None:
        super().__init__(why)
        self.is_final = is_final


@dataclass(slots=True, eq=False)
class _Ask:
    request: Request
    reply: asyncio.Future[Reply]

    def end(self, reply: Reply) -> None:
        if not self.reply.done():  # the caller may have been cancelled
            self.reply.set_result(reply)


class _Actor:
    """One actor and the requests that it has."""

    def __init__(self, handle: Any, delivery: Delivery, on_replies: Callable[[], None]) -> None:  # noqa: ANN401  (Ray has no types)
        self.handle, self._delivery, self._on_replies = handle, delivery, on_replies
        self.asks: set[_Ask] = set()
        self._calls: set[asyncio.Task[None]] = set()
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Ends with the reason when the actor is lost."""

    async def open(self) -> None:
        """Wait until the actor can send. Raises _NotOpenedError."""
        try:
            async with asyncio.timeout(_CREATE):
                version = await self.handle.open.remote(self._delivery)
        except RayError as error:
            is_final = isinstance(error, RayTaskError) or getattr(error, "actor_init_failed", False)
            raise _NotOpenedError(_in_one_line(error), is_final=is_final) from error
        except TimeoutError as error:
            raise _NotOpenedError(f"none was placed within {_CREATE:.0f} s: is there room for it?") from error
        if version != __version__:
            why = f"its node has batchrun {version}, this machine {__version__}: install the same"
            raise _NotOpenedError(why, is_final=True)

    def call(self, asks: list[_Ask]) -> None:
        """Send these requests with one call."""
        self.asks.update(asks)
        call = asyncio.create_task(self._call(asks))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, asks: list[_Ask]) -> None:
        try:
            async with asyncio.timeout(self._delivery.target.timeout + _GRACE):
                async for batch in self.handle.send.remote([ask.request for ask in asks]):
                    for place, reply in await batch:
                        self.asks.discard(asks[place])
                        asks[place].end(reply)
                    self._on_replies()
        except (RayError, TimeoutError) as error:
            if not self.gone.done():
                self.gone.set_result(_in_one_line(error))

    def end_requests(self, why: str) -> int:
        """End the requests that it has; return their number."""
        lost = [ask for ask in self.asks if not ask.reply.done()]
        for ask in lost:  # nobody knows how far it came: asked again once without charging an attempt
            ask.end(Reply(fault=Fault.RESET, detail=f"its sender is gone: {why}", before_reply=True))
        return len(lost)

    def kill(self) -> None:
        ray.kill(self.handle, no_restart=True)
        for call in self._calls:
            call.cancel()


class _Fleet:
    """All actors, and the requests that wait for the next batch."""

    def __init__(self, create: Callable[[], Any], delivery: Delivery, most: int, events: Events) -> None:
        self._create, self._delivery, self._most, self._events = create, delivery, most, events
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Ask] = deque()
        self._actors: list[_Actor] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._opened = asyncio.Event()
        self._dealing: asyncio.TimerHandle | None = None
        self._dealt_at = 0.0
        self._problem = "no node has room for it"
        self._lost = ""
        self._alarm: asyncio.TimerHandle | None = None

    async def open(self, senders: int) -> None:
        self._alarm = self._loop.call_later(_NO_SENDER_AT_START, self._give_up)
        self._keepers = [asyncio.create_task(self._keep()) for _ in range(senders)]
        await self._opened.wait()
        if self._lost:
            raise SenderError(self._lost)

    async def close(self) -> None:
        for timer in (self._alarm, self._dealing):
            if timer is not None:
                timer.cancel()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def send(self, request: Request) -> Reply:
        if self._lost:
            return Reply(fault=Fault.CONNECT, sent=False, detail=self._lost)
        ask = _Ask(request, self._loop.create_future())
        self._waiting.append(ask)
        self._deal_soon()
        return await ask.reply

    def _deal_soon(self) -> None:
        if self._dealing is None and self._waiting and self._actors:
            self._dealing = self._loop.call_at(self._dealt_at + _WINDOW, self._deal)

    def _deal(self) -> None:
        """Hand out what waits, so that all actors have equally many requests."""
        self._dealing, self._dealt_at = None, self._loop.time()
        requests = len(self._waiting) + sum(len(actor.asks) for actor in self._actors)
        share = min(self._most, -(-requests // max(1, len(self._actors))))
        for actor in self._actors:
            while batch := self._batch(share - len(actor.asks)):
                actor.call(batch)

    def _batch(self, room: int) -> list[_Ask]:
        batch: list[_Ask] = []
        size = 0
        while self._waiting and len(batch) < min(room, _BATCH) and size < _BATCH_BYTES:
            ask = self._waiting.popleft()
            if not ask.reply.done():
                batch.append(ask)
                size += len(ask.request.body)
        return batch

    async def _keep(self) -> None:
        """Create an actor whenever the last one is gone."""
        while not self._lost:
            actor = _Actor(self._create(), self._delivery, self._deal_soon)
            try:
                await self._use(actor)
            finally:
                actor.kill()
            await asyncio.sleep(_PAUSE)

    async def _use(self, actor: _Actor) -> None:
        """Use an actor until it is gone."""
        try:
            await actor.open()
        except _NotOpenedError as error:
            self._problem = str(error)
            if error.is_final and not self._opened.is_set():
                self._give_up()
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._actors.append(actor)
        self._opened.set()
        self._deal_soon()
        self._problem = await actor.gone
        self._actors.remove(actor)
        lost = actor.end_requests(self._problem)
        self._events.warn(f"a sender on Ray is gone ({self._problem}); {lost:,} requests in flight are sent again")
        if not self._actors:
            self._alarm = self._loop.call_later(_NO_SENDER, self._give_up)

    def _give_up(self) -> None:
        """Stop: there is no sender, and nothing more is sent."""
        self._lost = f"no sender runs on Ray: {self._problem}"
        for ask in self._waiting:
            ask.end(Reply(fault=Fault.CONNECT, sent=False, detail=self._lost))
        self._waiting.clear()
        if self._opened.is_set():
            self._events.lost(self._lost)
        self._opened.set()


def _in_one_line(error: RayError | TimeoutError) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, ActorDiedError):
        cause = [line.strip() for line in str(error).splitlines() if "Error" in line and "ActorDiedError" not in line]
        if cause and getattr(error, "actor_init_failed", False):
            return cause[-1]
        return "its process or node ended"
    if isinstance(error, RayTaskError):
        return str(error).strip().splitlines()[-1]
    return type(error).__name__
