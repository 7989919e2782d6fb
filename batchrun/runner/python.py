"""Runs jobs for Python programs: arguments to options, and a thread of its own where an event loop is running."""

import asyncio
import functools
import importlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from os import PathLike
from pathlib import Path
from typing import Any

from batchrun.errors import UserError
from batchrun.job import Job, RunOptions
from batchrun.records import Summary
from batchrun.runner.loading import load_file
from batchrun.runner.progress import chosen
from batchrun.runner.run import run_job


def load_job(path: str | PathLike[str]) -> Job:
    """Read a job file; JobFileError with all mistakes."""
    loaded, _ = load_file(Path(path), os.environ, Path.cwd(), RunOptions())
    return loaded.job


def run(path: str | PathLike[str], *, quiet: bool, **arguments: Any) -> Summary:  # noqa: ANN401  (batchrun.run types them)
    """Run or resume a job file; `arguments` are those of RunOptions, as a Python program writes them."""
    options = _options(arguments)
    loaded, environment = load_file(Path(path), os.environ, Path.cwd(), options)

    def work() -> Summary:
        return run_job(loaded, options, environment, chosen(quiet=quiet))

    main = threading.current_thread() is threading.main_thread()
    if main and not _loop_is_running():
        return work()
    _load_sender()
    with ThreadPoolExecutor(1, thread_name_prefix="batchrun") as thread:
        return thread.submit(work).result()


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@functools.cache
def _load_sender() -> None:
    """Load the sender's library in a thread that never ends: where the one that loaded it has ended, it crashes."""
    loaded = threading.Event()

    def load() -> None:
        try:
            with suppress(ImportError):  # the run reports it
                importlib.import_module("batchrun.senders.reqwest")
        finally:
            loaded.set()
        threading.Event().wait()

    threading.Thread(target=load, name="batchrun-sender", daemon=True).start()
    loaded.wait()


def _options(arguments: dict[str, Any]) -> RunOptions:
    output, retry, cost = arguments["output"], arguments["retry"], arguments["max_cost"]
    return RunOptions(
        **{
            **arguments,
            "output": None if output is None else Path(output),
            "retry": None if retry is None else frozenset(retry),
            "max_cost": None if cost is None else _usd(cost),
        }
    )


def _usd(cost: Decimal | float | str) -> Decimal:
    try:
        amount = Decimal(str(cost))
    except InvalidOperation:
        raise UserError(f"max_cost is not an amount in USD: {cost!r}") from None
    if not amount.is_finite() or amount <= 0:
        raise UserError(f"max_cost must be more than 0 USD, not {cost!r}")
    return amount
