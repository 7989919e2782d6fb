"""Serves the simulator on loopback, with asyncio's streams: enough HTTP/1.1 for clients on the same machine.

A framework would be two more dependencies, 0.1 s of CPU at each start of a run, and more code than this.
"""

import asyncio
import contextlib
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus

import orjson
import uvloop

from batchrun.servers.simulator.account import Config
from batchrun.servers.simulator.app import Request, Simulator

_BACKLOG = 8_192
_MAX_HEAD = 1 << 20


def serve(config: Config, port: int = 0, *, until_stdin_closes: bool = False) -> None:
    """Serve until a signal comes (or stdin ends). Raises OSError when the port is taken.

    Prints one line of JSON with the address once connections are accepted.
    """
    _allow_many_connections()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(Simulator(config), port, until_stdin_closes=until_stdin_closes))


async def _serve(app: Simulator, port: int, *, until_stdin_closes: bool) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if until_stdin_closes:
        _call_when_stdin_ends(lambda: loop.call_soon_threadsafe(stop.set))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled when the server stops; Python 3.11 would print that.
        with contextlib.suppress(asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
            await _converse(app, reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port, backlog=_BACKLOG, limit=_MAX_HEAD)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api/v1"
    sys.stdout.write(orjson.dumps({"ready": True, "url": url}).decode() + "\n")
    sys.stdout.flush()
    await stop.wait()


async def _converse(app: Simulator, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection, one after the other, until the client closes it."""
    while True:
        request = await _read(reader, writer)
        reply = await app.answer(request)
        head = [f"HTTP/1.1 {reply.status} {_phrase(reply.status)}", f"content-length: {len(reply.body)}"]
        head += [f"{name}: {value}" for name, value in reply.headers.items()]
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + reply.body)
        await writer.drain()
        if request.headers.get("connection") == "close":
            return


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    """Read one request. Raises IncompleteReadError at the end of the connection."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("expect") == "100-continue":  # curl asks so before it sends more than a megabyte
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, target, headers, body)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _call_when_stdin_ends(callback: Callable[[], object]) -> None:
    """Call back from another thread. Stdin ends when the parent is gone, even after a SIGKILL."""

    def watch() -> None:
        with contextlib.suppress(OSError):  # a closed stdin has ended, too
            while os.read(0, 65_536):
                pass
        callback()

    threading.Thread(target=watch, daemon=True, name="stdin").start()


def _allow_many_connections() -> None:
    """Raise the soft limit of open files to the hard one: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
