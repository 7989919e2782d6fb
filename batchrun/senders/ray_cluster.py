"""Connects this process to Ray, or starts Ray on this machine; its signal handlers, prints and statistics stay out."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import ray as untyped

from batchrun.errors import SenderError
from batchrun.net import is_loopback
from batchrun.records import Secret

PROBE_SECONDS = 10.0
OBJECT_STORE = 256 * 2**20
"""Bytes for batches between processes of this machine; each holds a few MiB at most."""

ray: Any = untyped

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # `uv run` would upload the working directory, .env included
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",  # Ray would end this process before we do, with its own exit code
}
_WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@asynccontextmanager
async def connected(address: str, url: str, key: Secret | None) -> AsyncIterator[int]:
    """Connect for as long as the block, to a running Ray or a new one on this machine; yield its number of nodes.

    `auto` takes the Ray that runs here, else starts one; for a server on this machine it always starts one, since
    other nodes can't reach it. Where this process is connected already, that stays. Raises SenderError.
    """
    os.environ.update({name: value for name, value in _SETTINGS.items() if name not in os.environ})
    if ray.is_initialized():
        yield _nodes()
        return
    if ":" in address:
        await _probe(address)
    # Ray prints about its processes on stdout, which holds the output of a run.
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: ASYNC230, PTH123  (a device)
        try:
            try:
                with _own_signals(), _without(key):
                    _start(address, url)
            except SystemExit:  # of the handler that Ray sets; ours, in the loop, learns of the signal as well
                await asyncio.sleep(1.0)
                raise SenderError("engine: a signal ended the start of Ray") from None
            yield _nodes()
        finally:
            with _own_signals():
                ray.shutdown()


def _start(address: str, url: str) -> None:
    """Connect in this very thread: the processes that Ray starts end with the thread that started them."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == "auto" and not is_loopback(url):
            with contextlib.suppress(ConnectionError):
                ray.init(address="auto", **quiet)
                return
        if address in {"auto", "local"}:
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise SenderError(f"engine: Ray at {address} can't be used: {str(error).strip().splitlines()[0]}") from error


def _nodes() -> int:
    """Return the number of nodes that offer a CPU, at least 1."""
    return max(1, sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes()))


async def _probe(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, ValueError, TimeoutError) as error:
        why = str(error) or "it does not answer"
        raise SenderError(f"engine: no Ray listens at {address}: {why}; `ray start --head` starts one") from error
    writer.close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep our handlers: Ray sets its own below Python, which would end this process at once."""
    before = {number: signal.getsignal(number) for number in _WATCHED}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                with contextlib.suppress(ValueError):  # not in the main thread, where handlers can't be set
                    signal.signal(number, handler)


@contextmanager
def _without(key: Secret | None) -> Iterator[None]:
    """Take the key out of the environment that Ray's processes inherit."""
    secret = key.reveal() if key else ""
    held = {name: value for name, value in os.environ.items() if secret and secret in value}
    for name in held:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(held)
