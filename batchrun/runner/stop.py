"""How a run stops: the valve that ends the sending, and the signals that close it.

Stopping is the source running dry: nothing is cancelled, requests in flight finish within the grace. A second signal
aborts; the checkpoint stays consistent either way.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

from batchrun.api import Ending
from batchrun.errors import BatchrunError, ExitCode, Terminated
from batchrun.runner.log import event
from batchrun.terminal import plural

STOPPING = "stopping: waiting for requests in flight (once more to abort)"
ABORTING = "aborting: requests in flight are given up and may be billed"

_EXIT_CODES = {
    signal.SIGINT: ExitCode.SIGINT,
    signal.SIGTERM: ExitCode.SIGTERM,
    signal.SIGHUP: ExitCode.SIGTERM,
}


def reason_of(ending: Ending, message: str) -> str:
    """Return what an ending means, with the server's words where it has any of its own."""
    if not message:
        return ending.means
    return message if message.startswith(ending.means) else f"{ending.means}: {message}"


class Valve:
    """Open until something closes it; the first reason wins."""

    def __init__(self) -> None:
        self.closed = False
        self.aborted = False
        self.urgent = False
        self.exit_code: int = ExitCode.DONE
        self.reason = ""
        self.ending: str | None = None
        self.resume_at: float | None = None
        self.on_change: Callable[[], None] = lambda: None

    def close(self, exit_code: int, reason: str, *, ending: str | None = None, resume_at: float | None = None) -> None:
        """Start no new request; `resume_at` is the Unix time after which to try again."""
        # An empty account, then Ctrl-C: the first reason is the one that people must act on.
        if not self.closed:
            self.closed = True
            self.exit_code, self.reason, self.ending, self.resume_at = exit_code, reason, ending, resume_at
            event("stopped", exit_code=exit_code, ending=ending, resume_at=resume_at)
        self.on_change()

    def limit_failures(self, failed: int, accepted: int | None) -> None:
        """Close where more rows failed than limits.max_failed accepts (None: no limit)."""
        if accepted is not None and failed > accepted:
            reason = f"{plural(failed, 'row')} failed, more than limits.max_failed accepts"
            self.close(ExitCode.STOPPED_BY_LIMIT, reason, ending="max_failed")

    def reopen(self) -> None:
        """Forget the reason, so that a better one can be given."""
        self.closed, self.ending, self.resume_at = False, None, None

    def abort(self, *, urgent: bool = False) -> None:
        """Do not wait for requests in flight either; `urgent`: somebody asked twice, so write no output."""
        self.aborted = True
        self.urgent = urgent
        self.on_change()


class Interrupts:
    """Hands Ctrl-C to a run in another thread than the main one, where no signal arrives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._receive: Callable[[], object] | None = None

    def send(self) -> None:
        """Interrupt the run; before it sends, that waits until it does."""
        with self._lock:
            if self._receive is None:
                self._waiting += 1
            else:
                self._receive()

    @contextmanager
    def received_by(self, receive: Callable[[], object]) -> Iterator[None]:
        """Call `receive` for each interrupt, from any thread, also for those before."""
        with self._lock:
            self._receive = receive
            # A notebook's stop button may be pressed while the input is still being read.
            for _ in range(self._waiting):
                receive()
            self._waiting = 0
        try:
            yield
        finally:
            with self._lock:
                self._receive = None


INTERRUPTS: ContextVar[Interrupts | None] = ContextVar("interrupts", default=None)
"""What interrupts the run of this context, where it is not in the main thread."""


@contextmanager
def closed_by_signals(
    valve: Valve, say: Callable[[str], None], *, stopping: str = STOPPING, aborting: str = ABORTING
) -> Iterator[None]:
    """While sending: the first SIGINT, SIGTERM or SIGHUP closes the valve, the second aborts. Needs a running loop.

    Each is said.

    Outside the main thread no signal arrives: there it is what INTERRUPTS sends.
    """
    loop = asyncio.get_running_loop()

    def received(number: signal.Signals) -> None:
        if valve.closed:
            say(aborting)
            valve.abort(urgent=True)
            return
        valve.close(_EXIT_CODES[number], f"interrupted by {number.name}")
        say(stopping)

    if threading.current_thread() is not threading.main_thread():
        interrupts = INTERRUPTS.get() or Interrupts()
        with interrupts.received_by(partial(loop.call_soon_threadsafe, received, signal.SIGINT)):
            yield
        return
    # A signal that the parent ignores for us (nohup) stays ignored.
    watched = [number for number in _EXIT_CODES if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in watched}
    for number in watched:
        loop.add_signal_handler(number, received, number)
    try:
        yield
    finally:
        for number in watched:
            loop.remove_signal_handler(number)
            # A handler that C code installed is None here, and Python cannot install it again.
            signal.signal(number, before[number] or signal.SIG_DFL)


def exit_code_of(problem: BaseException) -> int:
    """Return the exit code of a run that an exception ended."""
    if isinstance(problem, BatchrunError):
        return problem.exit_code
    if isinstance(problem, KeyboardInterrupt):
        return ExitCode.SIGTERM if isinstance(problem, Terminated) else ExitCode.SIGINT
    return ExitCode.BUG
