"""Sends with pyreqwest: reqwest and tokio, in Rust. This is what a run uses."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import PyreqwestError
from pyreqwest.http import HeaderMap, Url
from pyreqwest.response import Response

from batchrun.net import fault_of, open_client
from batchrun.records import READ_HEADERS, Fault, Reply, Request, Send, Target

_CLOSE_TOGETHER = 1_000
"""Two requests lost on used connections within this many requests: this server closes connections without notice."""

_LINGER = 4
"""A cancelled request holds its connection until pyreqwest's own timeout, which is this many times ours.

It must be longer, since after a stop of the process (SIGSTOP) it ends replies that lie in the sockets. A run does not
wait for it at its end.
"""


@asynccontextmanager
async def open_sender(target: Target, headers: dict[str, str]) -> AsyncIterator[Send]:
    """Open the Send; its pool opens as many connections as there are requests in flight."""
    sender = _Sender(target, headers)
    try:
        yield sender.send
    finally:
        await sender.close()


class _Sender:
    """Two clients: one keeps its connections; the other, built on first use, opens one for each request."""

    def __init__(self, target: Target, headers: dict[str, str]) -> None:
        self._target, self._headers = target, headers
        self._url = Url(target.url)
        self._clients = {False: self._open()}
        self._requests = 0
        self._lost_at: int | None = None
        self._never_reuse = False

    def _open(self, *, keep: bool = True) -> Client:
        def begin() -> ClientBuilder:
            builder = (
                ClientBuilder()
                .timeout(timedelta(seconds=_LINGER * self._target.timeout))
                .connect_timeout(timedelta(seconds=self._target.connect_timeout))
                .follow_redirects(False)
                .no_proxy()
                .default_headers(self._headers)
            )
            return builder if keep else builder.pool_max_idle_per_host(0)

        return open_client(begin, self._target.certificates, self._target.proxy)

    async def close(self) -> None:
        while self._clients:  # idle connections end with the last reference to their client, not with close()
            _, client = self._clients.popitem()
            await client.close()

    async def send(self, request: Request) -> Reply:
        started = time.monotonic()
        self._requests += 1
        has_head = False
        new = request.new_connection or self._never_reuse
        if new not in self._clients:
            self._clients[new] = self._open(keep=False)
        try:
            async with self._clients[new].post(self._url).body_bytes(request.body).build_streamed() as response:
                has_head = True
                headers = _read_headers(response.headers)
                body = await self._read_body(response, headers)
                status = response.status
        except PyreqwestError as error:
            fault, sent, detail = fault_of(error)
            before_reply = fault is Fault.RESET and not has_head
            if before_reply and not new:
                self._count_lost()
            return Reply(0, {}, b"", time.monotonic() - started, fault, sent, detail, before_reply)
        seconds = time.monotonic() - started
        if body is None:
            detail = f"the reply has more than {self._target.max_response_bytes} bytes"
            return Reply(status, headers, fault=Fault.TOO_LARGE, detail=detail, seconds=seconds)
        return Reply(status, headers, body, seconds)

    def _count_lost(self) -> None:
        """Stop to reuse connections after the second loss: a server that closes after each reply loses 16 of 100."""
        if self._lost_at is not None and self._requests - self._lost_at < _CLOSE_TOGETHER:
            self._never_reuse = True
        self._lost_at = self._requests

    async def _read_body(self, response: Response, headers: dict[str, str]) -> bytes | None:
        """Return the body, or None once it is larger than allowed.

        What is decompressed comes without content-length, so a body with one is as long as it says at most.
        """
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) <= self._target.max_response_bytes:
            return (await response.bytes()).to_bytes()
        chunks, size = [], 0
        while (chunk := await response.body_reader.read_chunk()) is not None:
            size += len(chunk)
            if size > self._target.max_response_bytes:
                return None
            chunks.append(chunk.to_bytes())
        return b"".join(chunks)


def _read_headers(headers: HeaderMap) -> dict[str, str]:
    try:
        return {name: value for name in READ_HEADERS if (value := headers.get(name)) is not None}
    except ValueError:  # one value is not ASCII; the others may still matter
        return {name: value for name in READ_HEADERS if (value := _read_header(headers, name)) is not None}


def _read_header(headers: HeaderMap, name: str) -> str | None:
    try:
        return headers.get(name)
    except ValueError:
        return None
