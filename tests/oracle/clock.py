"""The clock of a life: hours of waiting pass at once, requests take the time that they take.

While a request is in flight, or too much waits for the disk, the event loop's time is real. Otherwise a wait moves the
clock and ends at once: how long an outage lasts for a run does not depend on how busy the machine is.
"""

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable
from typing import Any


class Clock:
    """Seconds since the start, and what they depend on; all event loops of a process share them."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.in_flight = 0
        self.disk_is_behind: Callable[[], bool] = lambda: False

    def counted(self, send: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """Return the same sender, whose requests count as in flight."""

        async def sent(request: Any) -> Any:  # noqa: ANN401  (the package's records)
            self.in_flight += 1
            try:
                return await send(request)
            finally:
                self.in_flight -= 1

        return sent


class _Selector(selectors.DefaultSelector):
    """A selector that moves the clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for an event; a timer ends the wait at once while nothing happens elsewhere."""
        if timeout is None or self._clock.in_flight or self._clock.disk_is_behind():
            began = time.monotonic()
            ready = super().select(timeout)
            self._clock.now += time.monotonic() - began
            return ready
        if not (ready := super().select(0)):
            self._clock.now += max(timeout, 1e-6)
        return ready


class Loop(asyncio.SelectorEventLoop):
    """An event loop with this clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(_Selector(clock))
        self._oracle_clock = clock

    def time(self) -> float:
        """Return the clock's time."""
        return self._oracle_clock.now
