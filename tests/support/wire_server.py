"""A server on loopback whose every byte is scripted, and which notes what it was sent."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import cast


class End(Enum):
    """Ways to end a conversation other than leaving the connection open for the next request."""

    CLOSE = "close"
    RESET = "reset"
    HANG = "hang until the client goes"


Step = bytes | float | End | Iterable[bytes]
"""Bytes are sent, a number is waited (seconds), chunks are sent one by one while the client still takes them."""

Script = tuple[Step, ...]


@dataclass(frozen=True)
class Seen:
    """One request as it came over the wire; `connection` counts from 1. Header names are lower case."""

    connection: int
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Wire:
    """The server's scripts by request target, and its notes.

    `greeting` is played when a connection opens, before a request is read. `sent` counts the bytes that left, `gone`
    the clients that left while the server was still talking or waiting.
    """

    scripts: Mapping[str, Script | Callable[[Seen], Script]]
    greeting: Script = ()
    port: int = 0
    scheme: str = "http"
    host: str = "127.0.0.1"
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    peak: int = 0
    sent: int = 0
    gone: int = 0
    closing: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def url(self, path: str = "/") -> str:
        """Return the address of one script."""
        return f"{self.scheme}://{self.host}:{self.port}{path}"

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side ends it."""
        self.connections += 1
        self.open += 1
        number = self.connections
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        try:
            alive = await self._play(self.greeting, reader, writer)
            while alive and (seen := await _read_request(number, reader)):
                self.seen.append(seen)
                script = self.scripts[seen.target]
                alive = await self._play(script(seen) if callable(script) else script, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone += 1
        except asyncio.CancelledError:
            if not self.closing:  # else it is ours, and asyncio's streams of Python 3.11 would report it
                raise
        finally:
            self.open -= 1
            if self.closing:
                writer.transport.abort()
            else:
                writer.close()

    async def _play(self, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        self.peak = max(self.peak, self.open)
        for step in script:
            if isinstance(step, End):
                await self._end(step, reader, writer)
                return False
            if isinstance(step, float):
                await asyncio.sleep(step)
                continue
            for chunk in (step,) if isinstance(step, bytes) else step:
                writer.write(chunk)
                await writer.drain()
                self.sent += len(chunk)
        return True

    async def _end(self, end: End, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if end is End.HANG:
            while await reader.read(65536):
                pass
            self.gone += 1
        elif end is End.RESET:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


async def _read_request(connection: int, reader: asyncio.StreamReader) -> Seen | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Seen(connection, method, target, headers, body)


@contextlib.asynccontextmanager
async def wire(
    scripts: Mapping[str, Script | Callable[[Seen], Script]],
    *,
    greeting: Script = (),
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Wire]:
    """Serve the scripts on a free port of 127.0.0.1 until the block ends."""
    notes = Wire(scripts, greeting, scheme="https" if tls else "http")
    server = await asyncio.start_server(notes.converse, "127.0.0.1", 0, ssl=tls, backlog=4096)
    notes.port = server.sockets[0].getsockname()[1]
    try:
        yield notes
    finally:
        server.close()
        notes.closing = True
        for task in notes.tasks:
            task.cancel()
        await asyncio.gather(*notes.tasks)
        await asyncio.sleep(0)  # for the transports to close


def answer(body: bytes, *, status: str = "200 OK", headers: Iterable[str] = ()) -> bytes:
    """Return a whole well-formed answer."""
    lines = (f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers)
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield each chunk in chunked framing, and the end."""
    for chunk in chunks:
        yield b"%x\r\n%b\r\n" % (len(chunk), chunk)
    yield b"0\r\n\r\n"
