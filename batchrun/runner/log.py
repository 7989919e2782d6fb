"""The log for machines: one JSON line per event, through the standard library's logging.

An event holds names, numbers and paths, and messages of our own; never text of a row, a model or a server, and no key.
"""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batchrun.errors import BatchrunError, ExitCode, StorageError, UserError
from batchrun.records import Summary

EVENTS = {
    "run_started": "a run has read its job and opened input and checkpoint",
    "plan_made": "it is known which row asks which question",
    "nothing_new": "every row is answered and the output is up to date",
    "asking_started": "the first request may be sent",
    "gate_closed": 'the server said "not now": all requests wait for more than a second',
    "outage_began": "many different questions failed by the server's fault: it is probed until it works again",
    "outage_ended": "a request succeeded again, or the few rows that failed are blamed",
    "batch_submitted": "a batch was submitted to the provider, or refused, or its reply was lost",
    "batch_collected": "a batch ended, and its answers are kept",
    "progress": "how far it is, every 30 seconds",
    "stopped": "the run sends no more requests: those in flight still end",
    "asking_ended": "nothing is in flight any more, and all outcomes are kept",
    "output_written": "the output was written, or found as it is to be",
    "run_ended": "the run is over",
    "failed": "the run ended without a summary; its problem was printed",
}
"""Each event's name and when it is logged; the names are public."""

_LOGGER = logging.getLogger("batchrun.events")


def event(name: str, **facts: Any) -> None:  # noqa: ANN401  (any JSON)
    """Log an event of EVENTS with its facts: JSON values, no text of a row, a model or a server."""
    if name not in EVENTS:
        raise ValueError(f"unknown event: {name}")
    _LOGGER.info(name, extra={"facts": facts})


_WORDED = {"reason", "next", "commands", "advice", "answers", "error_messages", "_read"}
"""Fields of a summary that may quote a server or a row."""


def run_ended(summary: Summary) -> None:
    """Log the end of a run with its summary."""
    names = (one.name for one in fields(summary))
    event("run_ended", **{name: getattr(summary, name) for name in names if name not in _WORDED})


def failed(problem: BaseException, jobs: Sequence[Path]) -> None:
    """Log what ended a command, or one of its jobs, without a summary."""
    code = problem.exit_code if isinstance(problem, BatchrunError) else ExitCode.BUG
    facts: dict[str, object] = {"jobs": [str(job.absolute()) for job in jobs]} if jobs else {}
    if isinstance(problem, UserError) and not problem.quotes_data:
        facts["message"] = str(problem)
    event("failed", problem=type(problem).__name__, exit_code=code, **facts)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": at, "event": record.getMessage(), **getattr(record, "facts", {})}, default=float)


class _File(logging.FileHandler):
    """Appends lines; a disk that fails ends the log, never the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, ARG002  (logging's own name and signature)
        _LOGGER.removeHandler(self)
        problem = sys.exc_info()[1]
        print(f"the log {self.baseFilename} can't be written any more: {problem}", file=sys.stderr)  # noqa: T201  (logging has no other way out)


@contextmanager
def logged(path: Path | None, jobs: Sequence[Path] = ()) -> Iterator[None]:
    """Append the events of what happens inside to a file; StorageError if it can't be opened. None: no log.

    `jobs` are the job files that run inside.
    """
    if path is None:
        yield
        return
    try:
        handler = _File(path, encoding="utf-8")
    except OSError as problem:
        raise StorageError(f"the log {path} can't be opened: {problem.strerror}") from None
    handler.setFormatter(_Lines())
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False
    try:
        yield
    except BaseException as problem:
        failed(problem, jobs)
        raise
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(logging.NOTSET)
        _LOGGER.propagate = True
        with suppress(OSError):  # what it could not write before, it can't write now
            handler.close()
