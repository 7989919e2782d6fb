"""Opens the sender that carries requests to the server.

- `open_sender(target, kind)`: the Send of a run; `kind` is one of `KINDS` (reqwest by default).
- `check_installed(ray)`: a UserError before a run on Ray where Ray is missing.
- `Events`: what a sender on Ray reports while it works.

A sender's module (reqwest.py, httpx.py) has one function, `open_sender(target, headers)`. It may assume that
`target` is well formed (net.py checked it) and that `connect_timeout` is below `timeout`. The timeout of an attempt,
the character set of a reply and unmarked gzip are handled here. Replies hold what the server sent; api/judge.py masks
secrets.
"""

import asyncio
import codecs
import re
import resource
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from batchrun.errors import UserError
from batchrun.job import RayOptions
from batchrun.records import Fault, Reply, Request, Send, Target

__all__ = ["KINDS", "Events", "check_installed", "open_sender"]

KINDS = ("reqwest", "httpx")
_CONNECT_SHARE = 0.9  # of the total timeout: a failed connect must come first, or nobody knows that nothing was sent
_TICK, _LONGEST_TICK = 0.25, 0.5
_CHARSET = re.compile(r"charset *= *\"?([A-Za-z0-9_.:-]+)")
# Of Python's codecs those of written languages: "punycode", for one, takes minutes for a large reply.
_OF_LANGUAGES = re.compile(r"(iso8859|cp\d|utf-16|utf-32|gb|big5|shift_jis|euc_|koi8|mac-).*")

_SPARE_FILES = 64


@dataclass(frozen=True, slots=True)
class Events:
    """What a sender on Ray reports: `warn` takes a line for people, `lost` the reason why no more can be sent."""

    warn: Callable[[str], None] = lambda _: None
    lost: Callable[[str], None] = lambda _: None


_NO_EVENTS = Events()


@asynccontextmanager
async def open_sender(
    target: Target, kind: str | None = None, *, ray: RayOptions | None = None, events: Events = _NO_EVENTS
) -> AsyncIterator[Send]:
    """Open the Send that asks `target`; its connections live as long as the block.

    With `ray` it sends in actors. Raises UserError where there is no sender `kind` or Ray is not installed,
    SenderError where no actor comes up.
    """
    kind = kind or KINDS[0]
    if kind not in KINDS:
        raise UserError(f"no such sender {kind!r}; choose one of {', '.join(KINDS)}")
    within = replace(target, connect_timeout=min(target.connect_timeout, _CONNECT_SHARE * target.timeout))
    if ray is not None:
        check_installed(ray)
        on_ray = import_module("batchrun.senders.ray").open_sender
        opening = on_ray(within, _headers(target), kind=kind, options=ray, events=events)
    else:
        opening = open_here(within, _headers(target), kind)
    async with opening as send:
        yield send


@asynccontextmanager
async def open_here(target: Target, headers: dict[str, str], kind: str) -> AsyncIterator[Send]:
    """Open the Send of one kind in this process: the run's, or an actor's. `headers` hold the key."""
    _allow_open_files(4 * target.concurrency)  # reqwest.py: cancelled requests linger
    async with import_module(f"batchrun.senders.{kind}").open_sender(target, headers) as send:
        ages = _Ages(send, target)
        try:
            yield ages.send
        finally:
            ages.close()


class _Ages:
    """Ends requests after `timeout` seconds in which this process ran.

    A process that was stopped for an hour (a laptop's lid, SIGSTOP) finds replies in its sockets that are paid for:
    between two ticks no request grows older than half a second. An asyncio.timeout each would count that hour, and
    takes as long as a tenth of all else that a row needs.
    """

    def __init__(self, send: Send, target: Target) -> None:
        self._send, self._timeout, self._most_bytes = send, target.timeout, target.max_response_bytes
        self._ends: dict[asyncio.Task[Any], float] = {}  # the first ends first, since all have the same timeout
        self._late: set[asyncio.Task[Any]] = set()
        self._age, self._ticked = 0.0, time.monotonic()
        self._tick()

    def _age_at(self, now: float) -> float:
        return self._age + min(now - self._ticked, _LONGEST_TICK)

    def _tick(self) -> None:
        now = time.monotonic()
        self._age, self._ticked = self._age_at(now), now
        for task, end in self._ends.items():
            if end > self._age:
                break
            if task not in self._late:
                self._late.add(task)
                task.cancel()
        self._timer = asyncio.get_running_loop().call_later(_TICK, self._tick)

    def close(self) -> None:
        """End the ticks."""
        self._timer.cancel()

    async def send(self, request: Request) -> Reply:
        started, task = time.monotonic(), asyncio.current_task()
        assert task is not None  # noqa: S101  (a coroutine of asyncio runs in one)
        self._ends[task] = self._age_at(started) + self._timeout
        try:
            reply = await self._send(request)
        except asyncio.CancelledError:
            if task not in self._late or task.cancelling() > 1:  # somebody else ends this task
                raise
            detail = f"no complete reply within {self._timeout:g} s"
            return Reply(fault=Fault.TIMEOUT, detail=detail, seconds=time.monotonic() - started)
        finally:
            del self._ends[task]
            if task in self._late:
                self._late.remove(task)
                task.uncancel()
        return _in_utf8(_unpacked(reply, self._most_bytes))


def _unpacked(reply: Reply, most: int) -> Reply:
    """Return the reply with its body unpacked where it is still gzip, which is never JSON.

    A server may write "x-gzip" or "GZIP" where the HTTP libraries know "gzip", or forget the header.
    """
    if not reply.body.startswith(b"\x1f\x8b"):
        return reply
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # gzip's own frame
    try:
        body = unpacker.decompress(reply.body, most + 1)
    except zlib.error:
        return reply
    if len(body) > most:
        return reply._replace(body=b"", fault=Fault.TOO_LARGE, detail=f"the reply has more than {most} bytes")
    return reply._replace(body=body)


def _in_utf8(reply: Reply) -> Reply:
    """Return the reply with its body in UTF-8, where its content-type names another character set."""
    kind = reply.headers.get("content-type", "").lower()
    if "charset" not in kind or (named := _CHARSET.search(kind)) is None or named[1] == "utf-8":
        return reply
    try:
        codec = codecs.lookup(named[1]).name
        if not _OF_LANGUAGES.fullmatch(codec):
            return reply
        return reply._replace(body=reply.body.decode(codec).encode())
    except (LookupError, UnicodeError):
        return reply


def check_installed(ray: RayOptions | None) -> None:
    """Raise UserError where the engine needs Ray and it is not installed. Ray is not imported for that."""
    if ray is not None and find_spec("ray") is None:
        raise UserError("engine: ray needs Ray, which is not installed here: pip install 'batchrun-llm[ray]'")


def _allow_open_files(connections: int) -> None:
    """Raise the soft limit of open files for this many connections, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _SPARE_FILES
    if soft < wanted:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _headers(target: Target) -> dict[str, str]:
    headers = {name.lower(): value for name, value in target.headers.items()}
    headers["content-type"] = "application/json"
    if target.key is not None:
        headers["authorization"] = f"Bearer {target.key.reveal()}"
    return headers
