"""Where a run runs: here in a script, in a thread of its own inside an event loop such as a notebook's."""

import asyncio
import contextvars
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from batchrun import net
from batchrun.runner import INTERRUPTS, Interrupts

_Result = TypeVar("_Result")


def outside_of_loops(work: Callable[[], _Result]) -> _Result:
    """Call `work` here in a main thread without an event loop, else in a thread, to which Ctrl-C is handed on."""
    if threading.current_thread() is threading.main_thread() and not _loop_is_running():
        return work()
    net.load()
    interrupts = Interrupts()
    context = contextvars.copy_context()
    context.run(INTERRUPTS.set, interrupts)
    with _handing_on(interrupts), ThreadPoolExecutor(1, thread_name_prefix="batchrun") as thread:
        return thread.submit(context.run, work).result()


@contextmanager
def _handing_on(interrupts: Interrupts) -> Iterator[None]:
    """Hand Ctrl-C on to a run in another thread: asyncio's own handler would wait for the run to return."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in {signal.SIG_IGN, None}:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: interrupts.send())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
