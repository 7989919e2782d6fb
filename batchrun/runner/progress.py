"""What people see during a run: a bar on a terminal, else a plain line now and then; all on stderr."""

import math
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Never

from batchrun.money import CostKind, cost
from batchrun.runner.work import Tally
from batchrun.terminal import duration, lines, short

if TYPE_CHECKING:
    from tqdm import tqdm

PLAIN_FIRST, PLAIN_EVERY = 5.0, 30.0
SLOW = 10.0
"""Seconds; a reply that takes longer is mentioned."""

NOTABLE_GATE = 1.0
"""Seconds; a pause of all requests that lasts longer is mentioned."""

WINDOW = 60.0
"""Seconds over which the rate is taken."""

WIDEST = 100
"""Characters of what a run waits for."""

PLANNING = 1.0
"""Seconds; reading the input for longer is shown on a terminal."""

_FIRST_RATE = 2.0
_BAR, _NO_BAR = "{bar:12} {desc}", "{desc}"
_BAR_WIDTH, _NARROW = 13, 60
"""Columns: of the bar and the space behind it, and of a terminal too narrow for one."""

_BETWEEN = ", "


@dataclass(frozen=True, slots=True)
class Goal:
    """What a run is to do: all questions, and those that stood as answered or failed for good before it began.

    `per_minute` is the rate of requests that the job allows, `cost_kind` what its costs mean.
    """

    total: int
    ok: int = 0
    failed: int = 0
    per_minute: int | None = None
    cost_kind: CostKind = CostKind.CHARGED


class Pace:
    """How fast questions are settled, and how long the rest will take. Seconds; `now` is monotonic."""

    def __init__(self, now: float, per_minute: int | None) -> None:
        self._samples = deque([(now, 0)])
        self._started, self._per_minute = now, per_minute or math.inf

    def observe(self, now: float, settled: int) -> None:
        """Take note of how many questions this run has settled."""
        if len(self._samples) == 1 or now - self._samples[-2][0] >= 1:
            self._samples.append((now, settled))
        else:
            self._samples[-1] = (now, settled)
        while now - self._samples[0][0] > WINDOW and len(self._samples) > 2:  # noqa: PLR2004  (a rate needs two)
            self._samples.popleft()

    @property
    def rate(self) -> float:
        """Questions per second in the last minute; in the whole run where a pause leaves that empty. 0: too early."""
        (since, before), (now, settled) = self._samples[0], self._samples[-1]
        # Nothing was settled for a minute, as behind a gate: the last minute alone would say that it never ends.
        if settled <= before:
            since, before = self._started, 0
        if now - since < _FIRST_RATE:
            return 0.0
        return (settled - before) / (now - since)

    def left(self, questions: int, gate: float) -> float | None:
        """Return how long that many questions will take after `gate` seconds of a closed gate; None: unknown."""
        seconds = max(60.0 * questions / self._per_minute, questions / (self.rate or math.inf))
        return gate + seconds if seconds else None


class Ui:
    """Where a run shows its progress: here problems alone. Counts are of questions."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream

    def say(self, line: str) -> None:
        """Show a notice: nothing is wrong."""

    def warn(self, line: str) -> None:
        """Print a problem; a closed stderr loses it, never the run."""
        self._print(line)

    def plan(self, rows: int) -> None:
        """Show how many rows of the input are read by now."""

    def start(self, goal: Goal) -> None:
        """Begin to ask."""

    def update(self, tally: Tally, gate: float = 0.0) -> None:
        """Show how far the run is; `gate` is how many seconds all requests are held back."""

    def end(self) -> None:
        """Stop showing."""

    def _print(self, line: str) -> None:
        stream = self._stream or sys.stderr
        with suppress(OSError, ValueError):
            print(lines(line), file=stream, flush=True)


class Plain(Ui):
    """A plain line after 5 seconds, then every 30, for logs."""

    def __init__(self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._goal = Goal(0)
        self._next_line = clock() + PLAIN_FIRST

    def plan(self, rows: int) -> None:
        """Print a line if one is due."""
        now = self._clock()
        if now >= self._next_line:
            self._next_line = now + PLAIN_EVERY
            self._print(_reading(rows))

    def say(self, line: str) -> None:
        """Print it."""
        self._print(line)

    def start(self, goal: Goal) -> None:
        """Remember what there is to do."""
        now = self._clock()
        self._goal, self._next_line = goal, now + PLAIN_FIRST
        self._pace = Pace(now, goal.per_minute)

    def update(self, tally: Tally, gate: float = 0.0) -> None:
        """Print a line if one is due."""
        now = self._clock()
        self._pace.observe(now, tally.ok + tally.failed)
        if now >= self._next_line:
            self._next_line = now + PLAIN_EVERY
            self._print(line(self._goal, tally, self._pace, gate))


class Bar(Plain):
    """A tqdm bar on a terminal."""

    _bar: "tqdm[Never] | None" = None
    _format = _BAR

    def say(self, line: str) -> None:
        """Print above the bar."""
        if self._bar is None:
            self._print(line)
            return
        with suppress(OSError, ValueError):
            self._bar.write(lines(line), file=self._stream or sys.stderr)

    warn = say

    def plan(self, rows: int) -> None:
        """Show the rows that were read, once that takes long; the line goes away with the next."""
        if self._bar is None:
            if self._clock() < self._next_line - PLAIN_FIRST + PLANNING:
                return
            self._open(Goal(0), leave=False)
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.bar_format = _NO_BAR
                self._bar.set_description_str(_reading(rows))

    def start(self, goal: Goal) -> None:
        """Draw the bar, with what earlier runs settled already in it."""
        self.end()
        super().start(goal)
        self._open(goal, leave=True)
        self.update(Tally())

    def _open(self, goal: Goal, *, leave: bool) -> None:
        tqdm = self._tqdm()
        stream = self._stream or sys.stderr
        with suppress(OSError, ValueError):
            self._bar = tqdm(
                total=goal.total,
                initial=goal.ok + goal.failed,
                file=stream,
                bar_format=self._format,
                dynamic_ncols=True,
                leave=leave,
                # tqdm's blocks can't be printed in Latin-1: there would be no bar at all.
                ascii=not (getattr(stream, "encoding", None) or "").lower().startswith("utf"),
            )

    def update(self, tally: Tally, gate: float = 0.0) -> None:
        """Redraw the bar."""
        self._pace.observe(self._clock(), tally.ok + tally.failed)
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.n = settled(self._goal, tally)
                columns = self._columns()
                width = columns - 1
                self._bar.bar_format = _NO_BAR
                if columns >= _NARROW:
                    self._bar.bar_format = self._format
                    width -= _BAR_WIDTH
                self._bar.set_description_str(line(self._goal, tally, self._pace, gate, width))

    def end(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()
            self._bar = None

    def _tqdm(self) -> "type[tqdm[Never]]":
        from tqdm import tqdm  # noqa: PLC0415  (50 ms that a run without a terminal can save)

        return tqdm

    def _columns(self) -> int:
        """Return the width of the terminal; a very large one where that is unknown."""
        try:
            return os.get_terminal_size((self._stream or sys.stderr).fileno()).columns or sys.maxsize
        except (OSError, ValueError):
            return sys.maxsize


class NotebookBar(Bar):
    """A tqdm bar in a notebook: a widget, or text where ipywidgets is not installed."""

    def _tqdm(self) -> "type[tqdm[Never]]":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tqdm warns where ipywidgets is missing; text will do
            from tqdm.auto import tqdm  # noqa: PLC0415  (as above)

        # A widget draws the bar itself; it knows the field without a width alone.
        if any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__):
            self._format = "{bar} {desc}"
        return tqdm  # type: ignore[return-value]  # the stubs know only the class for a terminal

    def _columns(self) -> int:
        """Return a very large width: the kernel may know the size of a terminal, which is not where the bar is."""
        return sys.maxsize


def _reading(rows: int) -> str:
    return f"reading the input: {rows:,} rows"


def settled(goal: Goal, tally: Tally) -> int:
    """Count the questions that are answered or failed for good, by this run and before."""
    return goal.ok + goal.failed + tally.ok + tally.failed


def line(goal: Goal, tally: Tally, pace: Pace, gate: float, width: int = sys.maxsize) -> str:
    """Return where the asking stands; 100 % only when nothing is waited for.

    In `width` columns the less important parts are left out, so that none is cut off.
    """
    done = settled(goal, tally)
    percent = f"{100 * done // max(1, goal.total)}%"
    left = pace.left(goal.total - done, gate)
    if left is not None and done < goal.total:
        percent += f" {duration(left)} left"
    failed = goal.failed + tally.failed
    # In the order in which they are shown, each with its rank: 0 is the most important.
    parts = [(0, percent), (4, f"{done:,}/{goal.total:,}: {goal.ok + tally.ok:,} ok")]
    if failed:
        parts.append((1, f"{failed:,} failed"))
    if tally.waiting_for:
        parts.append((3, f"waiting: {short(tally.waiting_for, WIDEST)}"))
    if gate > NOTABLE_GATE:
        parts.append((3, f"held back for {duration(gate)}"))
    parts += [(2, cost(tally.cost, goal.cost_kind)), (5, f"{pace.rate:.1f}/s")]
    if tally.oldest > SLOW:
        parts.append((6, f"oldest request: {duration(tally.oldest)}"))
    if tally.waiting:
        parts.append((7, f"{tally.waiting:,} to retry"))
    chosen_ranks = set()
    for rank, text in sorted(parts):
        if len(text) <= width or not rank:
            chosen_ranks.add(rank)
            width -= len(text) + len(_BETWEEN)
    return _BETWEEN.join(text for rank, text in parts if rank in chosen_ranks)


def chosen(*, quiet: bool, stream: IO[str] | None = None) -> Ui:
    """Choose how to show: nothing, a bar on a terminal, else plain lines."""
    if quiet:
        return Ui(stream)
    target = stream or sys.stderr
    try:
        terminal = target.isatty()
    except (AttributeError, ValueError):
        return Ui(stream)
    return Bar(stream) if terminal else Plain(stream)
