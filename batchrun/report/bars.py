"""Distributions in bounded memory, and the bars that show them."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from batchrun.report.answered import text_of

MOST_BARS = 12
MOST_VALUES = 5_000
"""Different texts of one column that are counted one by one."""

_DIGITS = 4
"""Numbers are counted rounded to that many significant digits, so that any number of them fits into memory."""

_LARGEST = 1e300
"""Numbers beyond it, and infinite ones, are counted as texts."""

_TAIL = 0.99


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar. `wanted` is what a row's value must be: [value], or [from, below], where None means no bound."""

    name: str
    count: int
    wanted: list[Any] | None


@dataclass(slots=True)
class Distribution:
    """How often each value came. `declared` are labels that the job names; `beyond` counts texts without room."""

    declared: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    numbers: Counter[float] = field(default_factory=Counter)
    null: int = 0
    beyond: int = 0

    def add(self, value: Any) -> None:  # noqa: ANN401  (any JSON)
        """Count one value; the items of a list count one by one."""
        if value is None:
            self.null += 1
        elif isinstance(value, list):
            for item in value:
                self.add(item)
        elif is_number(value) and abs(value) < _LARGEST:
            self.numbers[rounded(value)] += 1
        elif (text := text_of(value).strip()) in self.counts or len(self.counts) < MOST_VALUES:
            self.counts[text] += 1
        else:
            self.beyond += 1

    def labels(self, *, all_texts: bool) -> list[tuple[str, int]]:
        """Return the labels worth bars, most frequent first: those that the job names, else texts that come again.

        Without `all_texts` only names from the job file are returned, never a text of a row.
        """
        if self.declared:
            counted = [(name, self.counts[name]) for name in self.declared]
            return sorted(counted, key=lambda item: -item[1])
        few = len(self.counts) <= MOST_BARS or self.counts.total() >= 2 * len(self.counts)
        if all_texts and few and not self.beyond:
            return self.counts.most_common()
        return []

    def bars(self, *, all_texts: bool = True, unit: str = "") -> list[Bar]:
        """Return bars for labels, or bins for numbers; labels beyond MOST_BARS share one bar."""
        if self.numbers:
            return _bins(self.numbers, unit)
        labels = self.labels(all_texts=all_texts)
        shown = [Bar(name or "(empty)", count, [name]) for name, count in labels[:MOST_BARS]]
        if rest := labels[MOST_BARS:]:
            shown.append(Bar(f"{len(rest):,} others", sum(count for _, count in rest), None))
        if shown and self.null:
            shown.append(Bar("null", self.null, [None]))
        return shown


def is_number(value: Any) -> TypeGuard[float]:  # noqa: ANN401  (any JSON)
    """Check whether a JSON value is a number; true and false are none in JSON, though they are in Python."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def rounded(number: float) -> float:
    """Return a number with four significant digits; a whole one below 10,000 as it is."""
    if abs(number) < 10**_DIGITS and number == int(number):
        return number
    return float(f"{number:.{_DIGITS}g}")


def _bins(numbers: Counter[float], unit: str) -> list[Bar]:
    """Divide numbers into about MOST_BARS bins with round edges; the largest hundredth goes into the last bin."""
    ordered = sorted(numbers)
    high, seen, most = ordered[-1], 0, _TAIL * numbers.total()
    for number in ordered:
        seen += numbers[number]
        if seen >= most:
            high = number
            break
    width = _round_width((high - ordered[0]) / MOST_BARS)
    whole = all(number == int(number) for number in ordered)
    if whole:
        width = max(1.0, width)
    start, last = math.floor(ordered[0] / width), math.floor(high / width)
    counts = [0] * (last - start + 1)
    for number, count in numbers.items():
        # One latency of an hour would else leave all others in a single bar.
        counts[min(math.floor(number / width), last) - start] += count
    bars = []
    for place, count in enumerate(counts, start):
        low, below = place * width, (place + 1) * width
        if place == last and ordered[-1] >= below:
            bars.append(Bar(f"{_shown(low)} or more{unit}", count, [low, None]))
            continue
        name = _shown(low)
        if not whole or width > 1:
            name += f" to {_shown(below - 1 if whole else below)}"
        bars.append(Bar(name + unit, count, [low, below]))
    return bars


def _round_width(width: float) -> float:
    """Return the next of 1, 2, 5, 10 … times a power of ten."""
    if width <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(width))
    # 0.1 * 3 is a little more than 0.3, which must not take the next wider step.
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))


def _shown(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 10**_DIGITS else f"{number:.{_DIGITS}g}"
