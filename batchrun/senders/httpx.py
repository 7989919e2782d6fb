"""Sends with httpcore, the engine inside httpx: pure Python, one connection for each request in flight.

httpx's client and pool search all their connections at every request and keep the place of a cancelled one
(encode/httpcore#1093), so the connections are held here, one to a slot.
"""

import asyncio
import socket
import ssl
import sys
import time
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import httpcore

from batchrun.records import Fault, Reply, Request, Send, Target

_IDLE_SECONDS = 90.0
_UNREAD_BYTES = 2**18
_ENCODINGS = ("identity", "gzip", "x-gzip")
_GZIP = 16 + zlib.MAX_WBITS

_Slot = httpcore.AsyncHTTPConnection | httpcore.AsyncHTTPProxy


@asynccontextmanager
async def open_sender(
    target: Target, headers: dict[str, str], proxy: str | None, certificates: tuple[bytes, ...]
) -> AsyncIterator[Send]:
    """Give the Send over as many connections as there are requests in flight."""
    _settle_sniffio()
    context = _trust(certificates) if target.url.startswith("https:") else None  # 50 ms, so only where it is needed
    sender = _Sender(target, headers, proxy, context)
    try:
        yield sender.send
    finally:
        await sender.close()


def _trust(certificates: tuple[bytes, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if certificates:
        context.load_verify_locations(cadata=b"\n".join(certificates).decode("ascii"))
    return context


def _settle_sniffio() -> None:
    """Make a missing sniffio fail at once: httpcore imports it with each request, which searched sys.path for 80 µs."""
    if "sniffio" not in sys.modules and find_spec("sniffio") is None:
        sys.modules["sniffio"] = None  # type: ignore[assignment]


class _ReplyError(Exception):
    """The reply can't be taken; what is wrong with it, and the fault that it is."""

    def __init__(self, fault: Fault, message: str) -> None:
        self.fault = fault
        super().__init__(message)


class _Body:
    """A request's body that extends the attempt's deadline when it begins to leave: before, nothing was asked."""

    def __init__(self, content: bytes, deadline: asyncio.Timeout, until: float) -> None:
        self._content = content
        self._deadline = deadline
        self._until = until
        self.left = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.left = True
        self._deadline.reschedule(self._until)
        yield self._content


class _Connection(asyncio.Protocol):
    """The receiving end of one connection; what nobody reads stays small, also between requests."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.error: Exception | None = None
        self.ended = False
        self.transport = cast("asyncio.Transport", None)
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if len(self.received) > _UNREAD_BYTES:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self.ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.error = exc
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self, most: int) -> bytes:
        """Give what was received, at most so many bytes; nothing at the end. Raises ReadError where it broke."""
        if not self.received and not self.ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if not self.received and self.error is not None:
            raise httpcore.ReadError(str(self.error))
        taken = bytes(self.received[:most])
        del self.received[:most]
        if self._paused and not self.received and not self.ended:
            self._paused = False
            self.transport.resume_reading()
        return taken


class _Stream(httpcore.AsyncNetworkStream):
    """What httpcore reads and writes; the timeouts are the attempt's own, which holds one deadline over all."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002, ASYNC109
        return await self._connection.take(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109
        if self._connection.ended:
            raise httpcore.WriteError("the server has closed the connection")
        if buffer:
            self._connection.transport.write(buffer)

    async def aclose(self) -> None:
        self._connection.transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        plain, secured = self._connection, _Connection()
        loop = asyncio.get_running_loop()
        transport = await loop.start_tls(plain.transport, secured, ssl_context, server_hostname=server_hostname)
        if transport is None:
            raise ConnectionResetError("the connection ended with the handshake")
        secured.transport = transport
        return _Stream(secured)

    def get_extra_info(self, info: str) -> object:
        if info == "is_readable":
            return self._connection.ended or bool(self._connection.received)
        return self._connection.transport.get_extra_info(info)


class _Network(httpcore.AsyncNetworkBackend):
    """TCP by asyncio alone: anyio, which httpcore uses, costs 90 µs a request and leaks what is cancelled in TLS."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, host, port)
        return _Stream(connection)


class _Sender:
    """One attempt after the other, each through a slot that no other uses at the time."""

    def __init__(
        self, target: Target, headers: dict[str, str], proxy: str | None, context: ssl.SSLContext | None
    ) -> None:
        host = urlsplit(target.url).netloc
        own = {"host": host, "accept": "*/*", "accept-encoding": "gzip", "user-agent": "batchrun"}
        self._headers = [(name.encode("ascii"), value.encode("ascii")) for name, value in {**own, **headers}.items()]
        self._target = target
        self._url = httpcore.URL(target.url)
        self._proxy = proxy
        self._context = context
        self._free: list[_Slot] = []

    async def close(self) -> None:
        while self._free:
            await self._free.pop().aclose()

    async def send(self, request: Request) -> Reply:
        started = time.monotonic()
        slot = await self._take()
        reply: Reply | None = None
        try:
            reply = await self._attempt(slot, request, started)
        finally:
            if reply is not None and reply.fault is None:
                self._free.append(slot)
            else:
                await slot.aclose()
        return reply

    async def _take(self) -> _Slot:
        """Give the slot that was used last, or a new one; connections that the server closed meanwhile are dropped."""
        while self._free:
            slot = self._free.pop()
            if _is_clean(slot):
                return slot
            await slot.aclose()
        if self._proxy is None:
            return httpcore.AsyncHTTPConnection(
                self._url.origin, self._context, keepalive_expiry=_IDLE_SECONDS, network_backend=_Network()
            )
        parts = urlsplit(self._proxy)
        login = (unquote(parts.username or "").encode(), unquote(parts.password or "").encode())
        return httpcore.AsyncHTTPProxy(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
            proxy_auth=login if any(login) else None,
            ssl_context=self._context,
            max_connections=1,
            network_backend=_Network(),
            keepalive_expiry=_IDLE_SECONDS,
        )

    async def _attempt(self, slot: _Slot, request: Request, started: float) -> Reply:
        now = asyncio.get_running_loop().time()
        deadline = asyncio.timeout_at(now + self._target.connect_timeout)
        body = _Body(request.body, deadline, now + self._target.timeout)
        headers = [*self._headers, (b"content-length", b"%d" % len(request.body))]
        try:
            async with deadline:
                return await self._exchange(
                    slot, httpcore.Request("POST", self._url, headers=headers, content=body), started
                )
        except Exception as error:  # noqa: BLE001  (a Send never raises, and what httpcore lets through is no closed set)
            fault = _fault(error) if body.left else _connect_fault(error)
            detail = f"{type(error).__name__}: {error}"
            return Reply(fault=fault, sent=body.left, detail=detail, seconds=time.monotonic() - started)

    async def _exchange(self, slot: _Slot, request: httpcore.Request, started: float) -> Reply:
        response = await slot.handle_async_request(request)
        try:
            headers = {name.decode("ascii").lower(): value.decode("latin-1") for name, value in response.headers}
            content = await self._read(response, headers.get("content-encoding", "identity").strip().lower())
        finally:
            await response.aclose()
        return Reply(response.status, headers, content, time.monotonic() - started)

    async def _read(self, response: httpcore.Response, encoding: str) -> bytes:
        """Give the body, decompressed; no more than the limit is ever decompressed."""
        if encoding not in _ENCODINGS:
            raise _ReplyError(Fault.PROTOCOL, f"unknown content-encoding {encoding}")
        gunzip = None if encoding == "identity" else zlib.decompressobj(_GZIP)
        room = self._target.max_response_bytes
        chunks: list[bytes] = []
        async for raw in cast("AsyncIterable[bytes]", response.stream):
            chunk = gunzip.decompress(raw, room + 1) if gunzip else raw
            room -= len(chunk)
            if room < 0:
                raise _ReplyError(Fault.TOO_LARGE, f"the reply has more than {self._target.max_response_bytes} bytes")
            chunks.append(chunk)
        if gunzip and chunks and (not gunzip.eof or gunzip.unused_data):
            raise _ReplyError(Fault.PROTOCOL, "the gzip body does not end where it should")
        return b"".join(chunks)


def _is_clean(slot: _Slot) -> bool:
    """Tell whether a slot is open and holds nothing behind the last reply, which would be read as the next one."""
    if isinstance(slot, httpcore.AsyncHTTPProxy):
        return not any(map(_leftover, slot.connections))
    return slot.is_available() and not slot.has_expired() and not _leftover(slot)


def _leftover(connection: Any) -> bytes:  # noqa: ANN401  (one of httpcore's classes, which wrap each other)
    while (inner := getattr(connection, "_connection", None)) is not None:
        connection = inner
    state = getattr(connection, "_h11_state", None)  # httpcore has no public way to it
    return bytes(state.trailing_data[0]) if state is not None else b""


def _fault(error: Exception) -> Fault:
    """Name a failure after the body began to leave."""
    if isinstance(error, _ReplyError):
        return error.fault
    if isinstance(error, TimeoutError):
        return Fault.TIMEOUT
    if isinstance(error, httpcore.NetworkError) or "disconnected" in str(error):
        return Fault.RESET
    return Fault.PROTOCOL


def _connect_fault(error: Exception) -> Fault:
    """Name a failure before the body began to leave."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return Fault.DNS
        if isinstance(cause, ssl.SSLError):
            return Fault.TLS
        cause = cause.__cause__
    return Fault.CONNECT
