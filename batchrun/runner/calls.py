"""Blocking calls of the event loop, in threads that nobody has to wait for."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class GivenUpError(Exception):
    """The result of a call is not waited for any more; the call itself may still have its effect."""


class Calls:
    """Runs blocking calls, each in a thread of its own, until they are given up."""

    def __init__(self) -> None:
        self._given_up = asyncio.Event()

    def give_up(self) -> None:
        """Let the call that runs, and all later ones, raise GivenUpError. Call this in the event loop."""
        self._given_up.set()

    async def __call__(self, function: Callable[..., T], *args: object, **named: object) -> T:
        """Return what the function returns, or raise what it raises."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                result = function(*args, **named)
            except BaseException as problem:  # noqa: BLE001  (raised again in the loop)
                settle(done.set_exception, problem)
            else:
                settle(done.set_result, result)

        def settle(how: Callable[..., object], value: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: the call was given up
                loop.call_soon_threadsafe(lambda: None if done.done() else how(value))

        # Not by asyncio.to_thread: its threads are joined when the loop ends, for as long as a reply takes.
        threading.Thread(target=work, daemon=True).start()
        given_up = asyncio.ensure_future(self._given_up.wait())
        try:
            await asyncio.wait((done, given_up), return_when=asyncio.FIRST_COMPLETED)
        finally:
            given_up.cancel()
        if not done.done():
            done.cancel()
            raise GivenUpError
        return done.result()
