"""What people see while a run goes on: a bar on a terminal, else a plain line now and then; all on stderr."""

import sys
import time
from contextlib import suppress
from typing import IO, Protocol

from tqdm import tqdm

from batchrun.money import show
from batchrun.terminal import duration, lines
from batchrun.work import Tally

PLAIN_EVERY = 30.0
SLOW = 10.0
"""Seconds; a reply that takes longer is mentioned."""


class Ui(Protocol):
    """Where a run tells what it does. Counts are of questions."""

    def say(self, line: str) -> None:
        """Tell something that people should know though nothing is wrong."""

    def warn(self, line: str) -> None:
        """Tell a problem."""

    def start(self, total: int, done: int) -> None:
        """Begin to ask: `done` of `total` were answered by earlier runs."""

    def update(self, tally: Tally) -> None:
        """Show where the asking stands."""

    def end(self) -> None:
        """Stop showing."""


class Quiet:
    """Only problems are told."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream

    def say(self, line: str) -> None:
        """Keep it."""

    def warn(self, line: str) -> None:
        """Print a problem; a closed stderr loses it, never the run."""
        self._print(line)

    def start(self, total: int, done: int) -> None:
        """Show nothing."""

    def update(self, tally: Tally) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""

    def _print(self, line: str) -> None:
        stream = self._stream or sys.stderr
        with suppress(OSError, ValueError):
            print(lines(line), file=stream, flush=True)


class Plain(Quiet):
    """A plain line every 30 seconds, for logs."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        super().__init__(stream)
        self._total = self._before = 0
        self._started = self._told = 0.0

    def say(self, line: str) -> None:
        """Print it."""
        self._print(line)

    def start(self, total: int, done: int) -> None:
        """Remember what there is to do."""
        self._total, self._before = total, done
        self._started = self._told = time.monotonic()

    def update(self, tally: Tally) -> None:
        """Print a line if the last one is long ago."""
        now = time.monotonic()
        if now - self._told >= PLAIN_EVERY:
            self._told = now
            rate = (tally.ok + tally.failed) / (now - self._started)
            done = self._before + tally.ok + tally.failed
            self._print(f"{done:,} of {self._total:,} questions, {facts(tally)}, {rate:.1f}/s")


class Bar(Plain):
    """A tqdm bar on a terminal."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        super().__init__(stream)
        self._bar: tqdm[None] | None = None

    def say(self, line: str) -> None:
        """Print above the bar."""
        with suppress(OSError, ValueError):
            tqdm.write(lines(line), file=self._stream or sys.stderr)

    warn = say

    def start(self, total: int, done: int) -> None:
        """Draw the bar, with what earlier runs answered already in it."""
        stream = self._stream or sys.stderr
        with suppress(OSError, ValueError):
            self._bar = tqdm(
                total=total,
                initial=done,
                file=stream,
                unit=" rows",
                dynamic_ncols=True,
                smoothing=0.1,
                ascii=None if (stream.encoding or "").lower().startswith("utf") else True,
            )
        self._before = done

    def update(self, tally: Tally) -> None:
        """Redraw the bar."""
        if self._bar is None:
            return
        with suppress(OSError, ValueError):
            self._bar.set_postfix_str(facts(tally), refresh=False)
            self._bar.update(self._before + tally.ok + tally.failed - self._bar.n)
            self._bar.refresh()

    def end(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()
            self._bar = None


def facts(tally: Tally) -> str:
    """Give the numbers beside the bar."""
    parts = [f"{tally.ok:,} ok"]
    if tally.failed:
        parts.append(f"{tally.failed:,} failed")
    if tally.waiting:
        parts.append(f"{tally.waiting:,} waiting for a retry")
    parts.append(show(tally.cost))
    parts.append(f"{tally.in_flight}/{tally.limit} in flight")
    if tally.gate_why:
        parts.append(f"held back: {tally.gate_why}")
    elif tally.oldest > SLOW:
        parts.append(f"waiting for the slowest reply ({duration(tally.oldest)})")
    return ", ".join(parts)


def chosen(*, quiet: bool, stream: IO[str] | None = None) -> Ui:
    """Choose how to show: nothing, a bar on a terminal, else plain lines."""
    if quiet:
        return Quiet(stream)
    target = stream or sys.stderr
    try:
        terminal = target.isatty()
    except (AttributeError, ValueError):
        return Quiet(stream)
    return Bar(stream) if terminal else Plain(stream)
