"""Sends with pyreqwest: reqwest and tokio, in Rust."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import DetailedPyreqwestError, NetworkError, PyreqwestError, RequestTimeoutError
from pyreqwest.http import HeaderMap, Url
from pyreqwest.proxy import ProxyBuilder
from pyreqwest.response import Response

from batchrun.records import Fault, Reply, Request, Send, Target

_NOTHING_SENT = "client error (Connect)"
_TLS = ("invalid peer certificate", "received fatal alert", "received corrupt message", "received unexpected",
        "peer is incompatible", "peer misbehaved", "peer doesn't support", "no certificates presented")  # fmt: skip


@asynccontextmanager
async def open_sender(
    target: Target, headers: dict[str, str], proxy: str | None, certificates: tuple[bytes, ...]
) -> AsyncIterator[Send]:
    """Give the Send over one client; its pool opens as many connections as there are requests in flight."""
    builder = (
        ClientBuilder()
        .timeout(timedelta(seconds=target.timeout))
        .connect_timeout(timedelta(seconds=target.connect_timeout))
        .follow_redirects(False)
        .no_proxy()
        .default_headers(headers)
    )
    if proxy is not None:
        builder = builder.proxy(ProxyBuilder.all(proxy))
    for certificate in certificates:
        builder = builder.add_root_certificate_pem(certificate)
    sender = _Sender(builder.build(), Url(target.url), target.max_response_bytes)
    try:
        yield sender.send
    finally:
        await sender.close()


class _Sender:
    """One attempt after the other through one client."""

    def __init__(self, client: Client, url: Url, max_bytes: int) -> None:
        self._client = client
        self._url = url
        self._max_bytes = max_bytes

    async def close(self) -> None:
        client = self._client
        del self._client  # idle connections end with the last reference, not with close()
        await client.close()

    async def send(self, request: Request) -> Reply:
        started = time.monotonic()
        try:
            async with self._client.post(self._url).body_bytes(request.body).build_streamed() as response:
                headers = _read_headers(response.headers)
                body = await self._read_body(response, headers)
                status = response.status
        except PyreqwestError as error:
            return _fault(error, time.monotonic() - started)
        seconds = time.monotonic() - started
        if body is None:
            return Reply(status, headers, fault=Fault.TOO_LARGE, detail=self._limit, seconds=seconds)
        return Reply(status, headers, body, seconds)

    @property
    def _limit(self) -> str:
        return f"the reply has more than {self._max_bytes} bytes"

    async def _read_body(self, response: Response, headers: dict[str, str]) -> bytes | None:
        """Give the body, or None once it is larger than allowed.

        What is decompressed comes without content-length, so a body with one is as long as it says at most.
        """
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) <= self._max_bytes:
            return (await response.bytes()).to_bytes()
        chunks, size = [], 0
        while (chunk := await response.body_reader.read_chunk()) is not None:
            size += len(chunk)
            if size > self._max_bytes:
                return None
            chunks.append(chunk.to_bytes())
        return b"".join(chunks)


def _read_headers(headers: HeaderMap) -> dict[str, str]:
    try:
        return dict(headers.items())
    except ValueError:  # one value is not ASCII; the others may still matter
        return {name: value for name in set(headers) if (value := _read_header(headers, name)) is not None}


def _read_header(headers: HeaderMap, name: str) -> str | None:
    try:
        return headers[name]
    except ValueError:
        return None


def _fault(error: PyreqwestError, seconds: float) -> Reply:
    """Name a failure by its chain of causes: the exception's class says ConnectError for a reset after sending, too.

    The first cause holds the address, which is no news.
    """
    details = error.details if isinstance(error, DetailedPyreqwestError) else {"causes": None}
    causes = [cause["message"] for cause in details["causes"] or ()][1:]
    sent = _NOTHING_SENT not in causes
    if not sent:
        fault = _connect_fault(causes)
    elif isinstance(error, RequestTimeoutError):
        fault = Fault.TIMEOUT
    elif isinstance(error, NetworkError):
        fault = Fault.RESET
    else:
        fault = Fault.PROTOCOL
    return Reply(fault=fault, sent=sent, detail=": ".join(causes) or error.message, seconds=seconds)


def _connect_fault(causes: list[str]) -> Fault:
    if "dns error" in causes:
        return Fault.DNS
    if any(cause.startswith(_TLS) for cause in causes):
        return Fault.TLS
    return Fault.CONNECT
