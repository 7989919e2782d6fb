"""A scripted server (wire_server.py) in a thread of its own, for tests whose own code runs no event loop."""

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager

from wire_server import Script, Seen, Wire, wire

Scripts = Mapping[str, Script | Callable[[Seen], Script]]


class Everywhere(dict[str, Script | Callable[[Seen], Script]]):
    """One script for every address."""

    def __init__(self, script: Script | Callable[[Seen], Script]) -> None:
        super().__init__()
        self._script = script

    def __missing__(self, _target: str) -> Script | Callable[[Seen], Script]:
        return self._script


@contextmanager
def served(scripts: Scripts, *, greeting: Script = (), tls: ssl.SSLContext | None = None) -> Iterator[Wire]:
    """Serve the scripts while the block runs; read the notes after the block, or between requests."""
    ready: Future[Wire] = Future()
    ended = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        async with wire(scripts, greeting=greeting, tls=tls) as notes:
            ready.set_result(notes)
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="wire")
    thread.start()
    try:
        yield ready.result(10)
    finally:
        loops[0].call_soon_threadsafe(ended.set)
        thread.join()
