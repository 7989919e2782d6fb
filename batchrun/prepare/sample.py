"""Samples of rows: a fixed order of all positions that follows no pattern of the input.

The order depends on positions alone: the same rows for each prompt, model and endpoint; a smaller sample is the
beginning of a larger one, and rows that are appended stand somewhere among the others.
"""

from collections.abc import Iterator
from typing import TypeVar

import polars as pl

MIXED = 2**32
"""Mixed positions are below this."""

_CHUNK = 1_000_000
_SPARE = 1_000


Number = TypeVar("Number", int, pl.Expr)


def mix(position: Number) -> Number:
    """Return where a position below 2**32 stands in the order, without any two at one place.

    A mere multiple would fall into step with inputs that repeat at regular distances.
    """
    # Odd factors, and the upper bits folded into the lower ones: each step maps 2**32 numbers one to one.
    mixed = position * 0x9E3779B1 % MIXED
    mixed = (mixed ^ mixed // 2**15) * 0x85EBCA6B % MIXED
    return mixed ^ mixed // 2**13


def positions(rows: int, count: int) -> Iterator[list[int]]:
    """Yield all positions of an input of that many rows in the order, in blocks: the first has at least `count`."""
    low, width = 0, MIXED * (2 * count + _SPARE) // max(1, rows)
    while low < MIXED:
        high = min(MIXED, low + width)
        frames = [_between(low, high, start, min(rows, start + _CHUNK)) for start in range(0, rows, _CHUNK)]
        if frames:
            yield pl.concat(frames).sort("mixed")["position"].to_list()
        # Where the first block is all answered more is needed, up to the whole input in few steps.
        low, width = high, width * 4


def _between(low: int, high: int, start: int, end: int) -> pl.DataFrame:
    position = pl.int_range(start, end, dtype=pl.UInt64, eager=True).alias("position")
    mixed = pl.DataFrame(position).with_columns(mix(pl.col("position")).alias("mixed"))
    return mixed.filter(pl.col("mixed").is_between(low, high, closed="left"))
