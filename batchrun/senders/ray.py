"""Sends through Ray actors: the driver's side of the exchanges, and the life of the actors.

Plan, pacing, budget, retry, checkpoint and output stay in this process; an actor sends what it is handed. Requests are
dealt to the actor with the least in flight and travel in batches. An actor that is gone leaves its requests in doubt:
they end as a reset that may be billed, and the pool asks again.
"""

import asyncio
import heapq
import random
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import ray as untyped

from batchrun.errors import SenderError
from batchrun.job import RayOptions
from batchrun.records import Fault, Reply, Request, Send, Target
from batchrun.senders.ray_actor import Delivery, Events, RemoteSender
from batchrun.senders.ray_cluster import connected
from batchrun.senders.ray_remote import Ask, GoneError, RefusedError, Remote, Timing

ray: Any = untyped

ALMOST_NO_CPU = 0.001
"""A sender waits for the network. Asking for a little keeps it off nodes that offer none, such as a cluster's head."""


_LONGEST_BACKOFF = 30.0
_FEW, _LONG_WINDOW = 4, 0.05  # beyond so many senders exchanges are rarer: each costs the driver about a millisecond


@asynccontextmanager
async def open_sender(
    target: Target,
    headers: dict[str, str],
    *,
    kind: str,
    options: RayOptions,
    events: Events,
    timing: Timing | None = None,
) -> AsyncIterator[Send]:
    """Give the Send over actors that send with `kind`; it opens when the first of them is up.

    Raises SenderError where Ray can't be reached, or no actor comes up.
    """
    timing = timing or Timing()
    most = options.concurrency_per_sender or sys.maxsize  # else the permits of the caller are the bound
    plain = replace(target, headers={}, key=None)
    async with connected(options.address, target.url, target.key) as nodes:
        senders = options.senders or nodes
        window = timing.window if senders <= _FEW else max(timing.window, _LONG_WINDOW)
        delivery = Delivery(kind, plain, headers, window, timing.poll, timing.lease)
        resources = dict(options.resources)
        cpus = resources.pop("CPU", ALMOST_NO_CPU)
        made = ray.remote(RemoteSender).options(
            num_cpus=cpus,
            num_gpus=resources.pop("GPU", 0),
            resources=resources,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        fleet = _Fleet(made.remote, delivery, most, timing, events)
        try:
            await fleet.open(senders)
            yield fleet.send
        finally:
            await fleet.close()


class _Fleet:
    """All actors and the requests that wait for one."""

    def __init__(
        self, create: Callable[[], Any], delivery: Delivery, most: int, timing: Timing, events: Events
    ) -> None:
        self._create, self._delivery, self._most, self._timing, self._events = create, delivery, most, timing, events
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Ask] = deque()
        self._live: list[Remote] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._up = asyncio.Event()
        self._dealing = False
        self._count = 0
        self._problem = "no node has room for it"
        self._lost: str | None = None
        self._alarm: asyncio.TimerHandle | None = None

    async def open(self, senders: int) -> None:
        """Create the actors; return with the first one. Raises SenderError if there is none."""
        self._alarm = self._loop.call_later(self._timing.first, self._give_up)
        self._keepers = [asyncio.create_task(self._keep()) for _ in range(senders)]
        await self._up.wait()
        if self._lost is not None:
            raise SenderError(self._lost)

    async def close(self) -> None:
        """End the actors."""
        if self._alarm is not None:
            self._alarm.cancel()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def send(self, request: Request) -> Reply:
        """Send through the actor that has the least to do."""
        if self._lost is not None:
            return self._unsent()
        self._count += 1
        ask = Ask(self._count, request.body, self._loop.create_future())
        self._waiting.append(ask)
        self._deal_soon()
        return await ask.reply

    def _unsent(self) -> Reply:
        return Reply(fault=Fault.CONNECT, sent=False, detail=self._lost or "")

    def _deal_soon(self) -> None:
        """Deal once for all that is sent or answered in this turn of the loop."""
        if not self._dealing:
            self._dealing = True
            self._loop.call_soon(self._deal)

    def _deal(self) -> None:
        self._dealing = False
        heap = [(remote.load, number) for number, remote in enumerate(self._live) if remote.load < self._most]
        heapq.heapify(heap)
        while self._waiting and heap:
            ask = self._waiting.popleft()
            if ask.reply.done():
                continue
            load, number = heap[0]
            self._live[number].hand(ask)
            if load + 1 < self._most:
                heapq.heapreplace(heap, (load + 1, number))
            else:
                heapq.heappop(heap)

    # -- the life of actors

    async def _keep(self) -> None:
        """Keep one actor alive, with a backoff between two of them; none is created once all are given up."""
        delay = self._timing.backoff
        while self._lost is None:
            remote = Remote(self._create(), self._timing, self._deal_soon)
            began = self._loop.time()
            try:
                await remote.open(self._delivery)
                self._joined(remote)
                await remote.serve()
            except GoneError as gone:
                self._left(remote, gone)
            finally:
                ray.kill(remote.actor, no_restart=True)
                if remote in self._live:
                    self._live.remove(remote)
            if self._loop.time() - began > 2 * _LONGEST_BACKOFF:
                delay = self._timing.backoff
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  (jitter)
            delay = min(2 * delay, _LONGEST_BACKOFF)

    def _joined(self, remote: "Remote") -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._live.append(remote)
        self._up.set()
        self._deal_soon()

    def _left(self, remote: "Remote", gone: GoneError) -> None:
        """Take back what the actor was not handed yet; what it had is in doubt."""
        self._problem = str(gone)
        if remote not in self._live:
            if isinstance(gone, RefusedError) and not self._up.is_set():
                self._give_up()
            return
        self._live.remove(remote)
        self._waiting.extendleft(reversed(remote.outbox))
        in_doubt = remote.settle(Reply(fault=Fault.RESET, sent=True, detail=f"its sender is gone: {gone}"))
        self._events.tell(
            f"a sender on Ray is gone ({gone}): {in_doubt:,} requests in flight may be billed, asked again"
        )
        self._deal_soon()
        if not self._live and self._alarm is None:
            self._alarm = self._loop.call_later(self._timing.patience, self._give_up)

    def _give_up(self) -> None:
        """There is no sender, and nothing more is sent."""
        self._lost = f"no sender runs on Ray: {self._problem}"
        while self._waiting:
            ask = self._waiting.popleft()
            if not ask.reply.done():
                ask.reply.set_result(self._unsent())
        if self._up.is_set():
            self._events.lost(self._lost)
        self._up.set()
