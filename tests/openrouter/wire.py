"""How a reply's bytes reach the client: well, or in one of the ways that a client must survive.

What HTTP does not allow is written past the server, straight to the connection's transport. The transport is found on
the object that ASGI's `send` belongs to, which holds for uvicorn's protocols as long as no middleware wraps `send`.
"""

import asyncio
import gzip
import os
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PIECES = 20
_PAGE = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"
_MIB = 1 << 20
_BOMB_MIB = 200


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP reply, before it is sent. `pieces` are sent one by one (a stream); `ending` is what the books say."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    ending: str
    pieces: tuple[bytes, ...] = ()
    wire: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """The connection: ASGI's two ends, and how many seconds the slow cases take."""

    receive: Receive
    send: Send
    slow: float

    async def gone(self, seconds: float | None) -> bool:
        """Wait until the client hangs up, at most so long; tell whether it did."""
        try:
            async with asyncio.timeout(seconds):
                while (await self.receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return False
        return True

    @property
    def transport(self) -> asyncio.Transport:
        """The connection below HTTP. Raises RuntimeError where there is none (an in-process ASGI transport)."""
        found = getattr(getattr(self.send, "__self__", None), "transport", None)
        if found is None:
            raise RuntimeError("this case of the simulator needs a real connection: serve it with uvicorn")
        return found  # type: ignore[no-any-return]  # uvicorn's own attribute

    async def start(self, reply: Reply, length: int | None) -> None:
        """Send status and headers; without a length the body is chunked."""
        headers = list(reply.headers)
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        await self.send({"type": "http.response.start", "status": reply.status, "headers": headers})

    async def put(self, piece: bytes, *, more: bool) -> None:
        """Send a piece of the body."""
        await self.send({"type": "http.response.body", "body": piece, "more_body": more})

    async def close(self) -> None:
        """Close the connection after what was written, and wait for it."""
        self.transport.close()
        await self.gone(None)


async def deliver(reply: Reply, line: Line) -> None:
    """Send a reply in its own way."""
    if reply.wire:
        await WIRE[reply.wire](reply, line)
    else:
        await plain(reply, line)


async def plain(reply: Reply, line: Line) -> None:
    """Send a reply as it should be."""
    await line.start(reply, None if reply.pieces else len(reply.body))
    for piece in reply.pieces:
        await line.put(piece, more=True)
    await line.put(b"" if reply.pieces else reply.body, more=False)


def _with_body(
    change: Callable[[bytes], bytes], *headers: tuple[bytes, bytes]
) -> Callable[[Reply, Line], Awaitable[None]]:
    """Return a way to send that only changes the body, and sets headers."""
    names = {name for name, _ in headers}

    async def send(reply: Reply, line: Line) -> None:
        kept = tuple(header for header in reply.headers if header[0] not in names)
        await plain(replace(reply, body=change(reply.body), headers=kept + headers, pieces=()), line)

    return send


def _lone_surrogate(body: bytes) -> bytes:
    return body.replace(b'"content":"', b'"content":"\\ud83d', 1)


def _not_utf8(body: bytes) -> bytes:
    return body.replace(b'"content":"', b'"content":"\xff\xfe', 1)


@lru_cache(maxsize=1)
def _bomb() -> tuple[bytes, int, int]:
    """Return 200 MiB of blanks as one deflate stream without its end, with their checksum and length."""
    block = b" " * _MIB
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    # A full flush forgets what came before: the same bytes may follow one another any number of times.
    packed = deflate.compress(block) + deflate.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(_BOMB_MIB):
        checksum = zlib.crc32(block, checksum)
    return packed * _BOMB_MIB, checksum, _BOMB_MIB * _MIB


def _gzip_bomb(body: bytes) -> bytes:
    blanks, checksum, length = _bomb()
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    last = deflate.compress(body) + deflate.flush()
    end = struct.pack("<II", zlib.crc32(body, checksum), (length + len(body)) & 0xFFFFFFFF)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + blanks + last + end


async def _slow_first_byte(reply: Reply, line: Line) -> None:
    if not await line.gone(line.slow):
        await plain(reply, line)


async def _drip(reply: Reply, line: Line) -> None:
    await line.start(reply, len(reply.body))
    step = -(-len(reply.body) // _PIECES)
    for at in range(0, len(reply.body), step):
        if await line.gone(line.slow / _PIECES):
            return
        await line.put(reply.body[at : at + step], more=at + step < len(reply.body))


async def _hang(_: Reply, line: Line) -> None:
    await line.gone(None)


async def _drop(_: Reply, line: Line) -> None:
    await line.close()


async def _reset(_: Reply, line: Line) -> None:
    descriptor = line.transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=os.dup(descriptor)) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.transport.abort()
    await line.gone(None)


async def _drop_mid_body(reply: Reply, line: Line) -> None:
    await line.start(reply, len(reply.body))
    await line.put(reply.body[: len(reply.body) // 2], more=True)
    await line.close()


async def _wrong_length(reply: Reply, line: Line) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (len(reply.body) // 2)
    line.transport.write(head + reply.body)
    await line.close()


async def _garbage(_: Reply, line: Line) -> None:
    line.transport.write(b"\x00\x16simulated\xff garbage\r\n\r\n" * 8)
    await line.close()


async def _endless_headers(_: Reply, line: Line) -> None:
    line.transport.write(b"HTTP/1.1 200 OK\r\n")
    while not await line.gone(0.001):
        if line.transport.get_write_buffer_size() < _MIB:
            line.transport.write((b"x-simulated: " + b"a" * 1000 + b"\r\n") * 16)


async def _endless_body(reply: Reply, line: Line) -> None:
    await line.start(reply, None)
    await line.put(b'{"choices":[{"message":{"content":"', more=True)
    # A look at the line between two pieces; `send` waits where the client reads slowly.
    while not await line.gone(0):
        await line.put(b"simulated " * 6553, more=True)


WIRE: dict[str, Callable[[Reply, Line], Awaitable[None]]] = {
    "200-cut-json": _with_body(lambda body: body[: len(body) // 2]),
    "200-empty-body": _with_body(lambda _: b""),
    "200-whitespace": _with_body(lambda _: b" \n" * 50),
    "200-html": _with_body(lambda _: _PAGE, (b"content-type", b"text/html; charset=UTF-8")),
    "leading-whitespace": _with_body(lambda body: b"\n         \n" * 20 + body),
    "lone-surrogate": _with_body(_lone_surrogate),
    "not-utf8": _with_body(_not_utf8),
    "deep-json": _with_body(lambda _: b"[" * 100_000 + b"]" * 100_000),
    "gzip": _with_body(lambda body: gzip.compress(body, 1), (b"content-encoding", b"gzip")),
    "bad-gzip": _with_body(lambda body: body, (b"content-encoding", b"gzip")),
    "gzip-bomb": _with_body(_gzip_bomb, (b"content-encoding", b"gzip")),
    "connection-close": _with_body(lambda body: body, (b"connection", b"close")),
    "endless-body": _endless_body,
    "endless-headers": _endless_headers,
    "garbage": _garbage,
    "wrong-length": _wrong_length,
    "slow-first-byte": _slow_first_byte,
    "drip": _drip,
    "hang": _hang,
    "drop": _drop,
    "reset": _reset,
    "drop-mid-body": _drop_mid_body,
}
