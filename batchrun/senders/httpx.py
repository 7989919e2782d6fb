"""Sends with httpx (`BATCHRUN_HTTP=httpx`): the second implementation, slower, where pyreqwest can't be used.

Each request has a connection of its own: httpx's pool looks through all of its connections for each request, and takes
a second reply that a server sends to one request for the reply to the next.
"""

import socket
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from batchrun.net import in_plain_words
from batchrun.records import Fault, Reply, Request, Send, Target

_GZIP = 16 + zlib.MAX_WBITS
_GONE = ("Server disconnected", "peer closed connection")  # httpx has one error for these and for nonsense


class _TooLargeError(Exception):
    pass


@asynccontextmanager
async def open_sender(target: Target, headers: dict[str, str]) -> AsyncIterator[Send]:
    """Open the Send."""
    yield _Sender(target, headers).send


class _Sender:
    def __init__(self, target: Target, headers: dict[str, str]) -> None:
        self._target = target
        self._url = httpx.URL(target.url)
        own = {"host": self._url.netloc.decode("ascii"), "accept-encoding": "gzip", "connection": "close"}
        self._headers = {**own, **headers}
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self._url.scheme == "https":  # to read all of its certificates takes 50 ms
            self._tls = httpx.create_ssl_context(trust_env=False)
        for certificate in target.certificates:
            self._tls.load_verify_locations(cadata=certificate.decode("ascii"))

    async def send(self, request: Request) -> Reply:
        started = time.monotonic()
        sent = has_head = False

        times = dict.fromkeys(("connect", "read"), self._target.connect_timeout)

        async def trace(event: str, info: dict[str, Any]) -> None:
            nonlocal sent  # a proxy's CONNECT is not our request, but has to be answered in time
            if event == "http11.send_request_headers.started" and info["request"].method == b"POST":
                sent = True
                times.pop("read", None)

        headers = {**self._headers, "content-length": str(len(request.body))}
        extensions = {"timeout": times, "trace": trace}
        ours = httpx.Request("POST", self._url, headers=headers, content=request.body, extensions=extensions)
        transport = httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False, proxy=self._target.proxy)
        try:
            async with transport:
                response = await transport.handle_async_request(ours)
                has_head = True
                body = await self._read(response)
            given = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status_code, given, body, time.monotonic() - started)
        except _TooLargeError:
            detail = f"the reply has more than {self._target.max_response_bytes} bytes"
            return Reply(fault=Fault.TOO_LARGE, detail=detail, seconds=time.monotonic() - started)
        except Exception as error:  # noqa: BLE001  (a Send never raises, and a host's name can be wrong in many ways)
            fault = _fault_after_sending(error) if sent else _fault_before(error)
            before_reply = fault is Fault.RESET and not has_head
            detail = in_plain_words(str(error)) or type(error).__name__
            return Reply(0, {}, b"", time.monotonic() - started, fault, sent, detail, before_reply)

    async def _read(self, response: httpx.Response) -> bytes:
        """Return the body, unpacked piece by piece: a gzip bomb ends at the limit."""
        is_packed = response.headers.get("content-encoding", "").lower() in {"gzip", "x-gzip"}
        unpacker = zlib.decompressobj(_GZIP)
        most, body = self._target.max_response_bytes, bytearray()
        async for chunk in response.aiter_raw():
            body += unpacker.decompress(chunk, most + 1 - len(body)) if is_packed else chunk
            if len(body) > most:
                raise _TooLargeError
        if is_packed and not unpacker.eof:
            raise zlib.error("the compressed body is cut")
        return bytes(body)


def _fault_before(error: BaseException) -> Fault:
    """Return what failed before anything was sent."""
    if isinstance(error, httpx.TimeoutException):
        return Fault.CONNECT
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror | UnicodeError) for cause in causes):
        return Fault.DNS
    # A handshake that breaks off says nothing about trust.
    is_tls = any(isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError) for cause in causes)
    return Fault.TLS if is_tls else Fault.CONNECT


def _fault_after_sending(error: BaseException) -> Fault:
    is_gone = isinstance(error, httpx.RemoteProtocolError) and str(error).startswith(_GONE)
    return Fault.RESET if is_gone or isinstance(error, httpx.NetworkError) else Fault.PROTOCOL


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
