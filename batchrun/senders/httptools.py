"""Sends with asyncio and httptools, the parser of Node.js: one connection for each request in flight, no other thread.

Everything happens in the event loop's thread, so that a request over plain HTTP costs half of what it does where
another thread sends (docs/explanation/performance.md).
"""

import asyncio
import math
import socket
import ssl
import time
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast
from urllib.parse import SplitResult, unquote, urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from batchrun.records import Fault, Reply, Request, Send, Target

_UNREAD_BYTES = 2**18  # so many without a byte of a body: a head or a trailer that does not end
_GZIP = 16 + zlib.MAX_WBITS
_PORTS = {"http": 80, "https": 443}
_FIRST_FINAL = 200  # a status below announces the reply, and is none
_LATE = "no reply within the attempt's time"


@asynccontextmanager
async def open_sender(
    target: Target, headers: dict[str, str], proxy: str | None, certificates: tuple[bytes, ...]
) -> AsyncIterator[Send]:
    """Give the Send over as many connections as there are requests in flight."""
    secured = target.url.startswith("https:") or (proxy or "").startswith("https:")
    sender = _Sender(target, headers, proxy, _trust(certificates) if secured else None)  # 50 ms, so only if needed
    try:
        yield sender.send
    finally:
        sender.close()
        await asyncio.sleep(0)  # for the sockets to close


def _trust(certificates: tuple[bytes, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if certificates:
        context.load_verify_locations(cadata=b"\n".join(certificates).decode("ascii"))
    return context


class _ReplyError(Exception):
    """The reply can't be taken; what is wrong with it, and the fault that it is."""

    def __init__(self, fault: Fault, message: str) -> None:
        self.fault = fault
        super().__init__(message)


class _Connection(asyncio.Protocol):
    """One connection and the one exchange that is on it; the parser calls the methods that begin with `on_`."""

    def __init__(self, most_bytes: int) -> None:
        self.transport = cast("asyncio.Transport", None)
        self.usable = True
        self._most_bytes = most_bytes
        self._parser = HttpResponseParser(self)
        self._waiter: asyncio.Future[Reply] | None = None
        self._begin()

    async def ask(self, head: bytes, body: bytes = b"", *, tunnel: bool = False) -> Reply:
        """Send one request and give its reply; raises _ReplyError. With `tunnel` the reply's head is all of it."""
        waiter: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiter = waiter
        self._tunnel = tunnel
        self._begin()
        self.transport.writelines((head, body))
        try:
            return await waiter
        except BaseException:
            self.drop()
            raise
        finally:
            self._waiter = None
            self._chunks.clear()

    def drop(self) -> None:
        """Close the connection at once."""
        self.usable = False
        self.transport.abort()

    def _begin(self) -> None:
        self._headers: dict[str, str] = {}
        self._status = 0
        self._chunks: list[bytes] = []
        self._room = self._most_bytes
        self._gunzip: zlib._Decompress | None = None
        self._unread = 0

    def fail(self, fault: Fault, message: str) -> None:
        """End the exchange without a reply, if it has not ended yet."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(_ReplyError(fault, message))

    # -- asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if exc is not None:
            self.fail(Fault.RESET, f"the connection broke: {exc}")
        elif not self._status:
            self.fail(Fault.RESET, "the server closed the connection")
        elif self._ends_with_the_connection():
            self._complete()
        else:
            self.fail(Fault.PROTOCOL, "the reply was cut off")

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            self.drop()  # what nobody asked for would be read as the next reply
            return
        self._unread += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self.usable = False
            cause = error.__context__
            if isinstance(cause, _ReplyError):
                self.fail(cause.fault, str(cause))
            self.fail(Fault.PROTOCOL, f"{type(error).__name__}: {error}")
        if self._unread > _UNREAD_BYTES:
            self.fail(Fault.PROTOCOL, "the reply's headers do not end")

    # -- the parser's calls

    def on_message_begin(self) -> None:
        if self._waiter is None or self._waiter.done():
            self.usable = False
            self._headers = {}  # those of the reply that was taken stay as they are

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if self._tunnel:
            self._complete()
        encoding = self._headers.get("content-encoding", "identity").lower()
        if encoding in {"gzip", "x-gzip"}:
            self._gunzip = zlib.decompressobj(_GZIP)
        elif encoding != "identity":
            raise _ReplyError(Fault.PROTOCOL, f"unknown content-encoding {encoding}")

    def on_body(self, chunk: bytes) -> None:
        self._unread = 0
        if self._gunzip is not None:
            try:
                chunk = self._gunzip.decompress(chunk, self._room + 1)
            except zlib.error as error:
                raise _ReplyError(Fault.PROTOCOL, str(error)) from error
        self._room -= len(chunk)
        if self._room < 0:
            raise _ReplyError(Fault.TOO_LARGE, f"the reply has more than {self._most_bytes} bytes")
        self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        if self._status < _FIRST_FINAL:
            self._begin()
            return
        self.usable &= self._parser.should_keep_alive()
        self._complete()

    def _complete(self) -> None:
        gunzip = self._gunzip
        if gunzip is not None and self._chunks and (not gunzip.eof or gunzip.unused_data):
            self.fail(Fault.PROTOCOL, "the gzip body does not end where it should")
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(Reply(self._status, self._headers, b"".join(self._chunks)))

    def _ends_with_the_connection(self) -> bool:
        headers = self._headers
        return self._status >= _FIRST_FINAL and not {"content-length", "transfer-encoding"} & headers.keys()


class _Sender:
    """One attempt after the other, each over a connection that no other uses at the time."""

    def __init__(
        self, target: Target, headers: dict[str, str], proxy: str | None, context: ssl.SSLContext | None
    ) -> None:
        self._target = target
        self._url = urlsplit(target.url)
        self._proxy = None if proxy is None else urlsplit(proxy)
        self._context = context
        self._free: list[_Connection] = []
        self._busy: dict[_Connection, float] = {}
        # One timer for all: one for each attempt would cost a tenth of what sending takes.
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._head = self._request_head(headers)

    def _request_head(self, headers: dict[str, str]) -> bytes:
        """Give what each request begins with, up to the length of its body."""
        url = self._url
        address = url._replace(fragment="") if self._forwards else url._replace(scheme="", netloc="", fragment="")
        own = {"host": url.netloc, "accept": "*/*", "accept-encoding": "gzip", "user-agent": "batchrun"}
        if self._forwards:
            own |= _login(self._proxy)
        path = address._replace(path=url.path or "/").geturl()
        return _head(f"POST {path} HTTP/1.1", {**own, **headers}) + b"content-length: "

    @property
    def _forwards(self) -> bool:
        """Whether the proxy gets the requests themselves, not a tunnel for them."""
        return self._proxy is not None and self._url.scheme == "http"

    def close(self) -> None:
        """Close the connections that wait for a request."""
        if self._timer is not None:
            self._timer.cancel()
        while self._free:
            self._free.pop().drop()

    async def send(self, request: Request) -> Reply:
        started = time.monotonic()
        connection = self._waiting()
        if connection is None:
            try:
                async with asyncio.timeout(self._target.connect_timeout):
                    connection = await self._connect()
            except Exception as error:  # noqa: BLE001  (a Send never raises, and a host's name can be wrong in many ways)
                return _fault(_connect_fault(error), f"{type(error).__name__}: {error}", started, sent=False)
        self._busy[connection] = until = started + self._target.timeout
        if until < self._due:
            self._look_again_at(until)
        body = request.body
        try:
            reply = await connection.ask(b"%b%d\r\n\r\n" % (self._head, len(body)), body)
        except _ReplyError as error:
            return _fault(error.fault, str(error), started)
        finally:
            del self._busy[connection]
        if connection.usable:
            self._free.append(connection)
        else:
            connection.drop()
        return Reply(*reply[:3], time.monotonic() - started)

    def _look_again_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = moment
        self._timer = asyncio.get_running_loop().call_later(moment - time.monotonic(), self._end_late)

    def _end_late(self) -> None:
        """Give up the attempts whose time is over."""
        self._timer, self._due = None, math.inf
        now, following = time.monotonic(), math.inf
        for connection, until in self._busy.items():
            if until <= now:
                connection.fail(Fault.TIMEOUT, _LATE)
            else:
                following = min(following, until)
        if following < math.inf:
            self._look_again_at(following)

    def _waiting(self) -> _Connection | None:
        """Give the connection that was used last and is still good."""
        while self._free:
            if (connection := self._free.pop()).usable:
                return connection
        return None

    async def _connect(self) -> _Connection:
        if self._proxy is None:
            return await self._open(self._url)
        connection = await self._open(self._proxy)
        return connection if self._forwards else await self._tunnel(connection, self._proxy)

    async def _open(self, url: SplitResult) -> _Connection:
        secured = url.scheme == "https"
        _, connection = await asyncio.get_running_loop().create_connection(
            self._connection, url.hostname or "", url.port or _PORTS[url.scheme], ssl=self._context if secured else None
        )
        if not connection.usable:  # its end was told before there was anybody to ask
            raise ConnectionResetError("the server closed the connection at once")
        return connection

    def _connection(self) -> _Connection:
        return _Connection(self._target.max_response_bytes)

    async def _tunnel(self, plain: _Connection, proxy: SplitResult) -> _Connection:
        """Let the proxy open a tunnel, and make the TLS connection in it."""
        loop = asyncio.get_running_loop()
        host = self._url.netloc.removesuffix(f":{self._url.port}")  # an IPv6 address keeps its brackets
        there = f"{host}:{self._url.port or _PORTS[self._url.scheme]}"
        request = _head(f"CONNECT {there} HTTP/1.1", {"host": there, **_login(proxy)}) + b"\r\n"
        reply = await plain.ask(request, tunnel=True)
        if reply.status // 100 != 2:  # noqa: PLR2004  (any success)
            plain.drop()
            raise ConnectionRefusedError(f"the proxy answers {reply.status}")
        secured, context = self._connection(), cast("ssl.SSLContext", self._context)
        try:
            transport = await loop.start_tls(plain.transport, secured, context, server_hostname=self._url.hostname)
        except BaseException:
            plain.drop()
            raise
        if transport is None:
            raise ConnectionResetError("the connection ended with the handshake")
        secured.transport = transport
        return secured


def _head(first: str, headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{first}\r\n{lines}".encode("ascii")


def _login(proxy: SplitResult | None) -> dict[str, str]:
    if proxy is None or not (proxy.username or proxy.password):
        return {}
    login = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}"
    return {"proxy-authorization": f"Basic {b64encode(login.encode()).decode()}"}


def _fault(fault: Fault, detail: str, started: float, *, sent: bool = True) -> Reply:
    return Reply(fault=fault, sent=sent, detail=detail, seconds=time.monotonic() - started)


def _connect_fault(error: BaseException) -> Fault:
    """Name a failure before the request began to leave."""
    if isinstance(error, socket.gaierror):
        return Fault.DNS
    return Fault.TLS if isinstance(error, ssl.SSLError) else Fault.CONNECT
