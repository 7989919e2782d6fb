"""Frames of any library as frames of Polars, and a frame as an input file."""

from collections import Counter
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from batchrun.checkpoint import running
from batchrun.errors import BusyError, UserError
from batchrun.table import has_intervals, unwritable, write_output
from batchrun.terminal import printable


class Frame(Protocol):
    """A table in memory that speaks Arrow: a frame of Polars or pandas, a table of PyArrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return the rows as an Arrow stream."""


def is_frame(rows: object) -> bool:
    """Check whether rows are given as a frame, neither as a path nor by the job alone."""
    return rows is not None and not isinstance(rows, str | PathLike)


def to_polars(rows: Any) -> pl.DataFrame | None:  # noqa: ANN401  (what a program gives)
    """Return a frame of any library as one of Polars, None for a path. Raises UserError for anything else."""
    if not is_frame(rows):
        return None
    if isinstance(rows, pl.DataFrame):
        return rows
    # A plan without rows; a job needs rows that stay the same between two looks.
    if isinstance(rows, pl.LazyFrame):
        return rows.collect()
    try:
        # By its name, so that a program without pandas needs no pandas.
        if type(rows).__module__.partition(".")[0] == "pandas":
            return _of_pandas(rows)
        if hasattr(rows, "__arrow_c_stream__"):
            _refuse_intervals(rows)
            return pl.DataFrame(rows)
    except ImportError:
        raise UserError("a frame of pandas needs PyArrow: pip install pyarrow") from None
    except pl.exceptions.DuplicateError as problem:
        raise UserError(f"input: {problem}") from None
    raise UserError(f"input must be a path or a frame of Polars or pandas, not {type(rows).__name__}")


def _of_pandas(rows: Any) -> pl.DataFrame:  # noqa: ANN401  (a program without pandas can't name it)
    """Return a frame or a named Series of pandas as a frame of Polars. Raises UserError for unreadable columns."""
    if not hasattr(rows, "columns"):
        if rows.name is None:
            raise UserError('input: the Series has no name, which its column would have: write series.rename("text")')
        rows = rows.to_frame()
    if twice := [name for name, number in Counter(map(str, rows.columns)).items() if number > 1]:
        raise UserError(f'input: two columns are called "{twice[0]}": rename one')
    columns: dict[str, pl.Series] = {}
    for name in rows.columns:
        if str(rows[name].dtype).startswith("period"):  # Polars would read January 2026 as 672
            raise UserError(f'input: column "{name}" holds periods: make them texts: frame["{name}"].astype("string")')
        try:
            columns[str(name)] = pl.Series(pl.from_pandas(rows[name]))
        # PyArrow's errors are of these kinds: [1, "a"] in one column, or objects of a class of the program's own.
        except (ValueError, TypeError, NotImplementedError) as problem:
            raise UserError(
                f'input: column "{name}" holds values that are not of one type ({printable(str(problem))}): make them '
                f'texts, such as frame["{name}"].astype("string")',
                quotes_data=True,
            ) from None
    return pl.DataFrame(columns)


def _refuse_intervals(rows: Any) -> None:  # noqa: ANN401  (what a program gives)
    """Raise UserError for calendar intervals: Polars can't read them from a stream, and would crash the process."""
    empty = None
    if type(rows).__module__.partition(".")[0] in {"duckdb", "_duckdb"}:
        empty = rows.limit(0)
    elif hasattr(getattr(rows, "schema", None), "empty_table"):  # PyArrow
        empty = rows.schema.empty_table()
    if empty is None:
        return
    for name, dtype in pl.DataFrame(empty).schema.items():
        if has_intervals(dtype):
            raise UserError(
                f'input: column "{name}" holds calendar intervals: make them texts, in SQL cast({name} as varchar)'
            )


def write_frame(frame: pl.DataFrame, checkpoint: Path, name: str) -> Path:
    """Write a frame to NAME.input.parquet in a checkpoint's folder, unless the same rows are there; return the path.

    The same file again is the same input, so that a cell that is run twice plans and asks nothing.
    """
    for column, dtype in frame.schema.items():
        if problem := unwritable(dtype, ".parquet"):
            raise UserError(f'input: column "{column}" {problem}')
    if (holder := running(checkpoint)) is not None:
        raise BusyError(f"this job is already running ({holder}): wait for it, or stop it")
    path = checkpoint.with_name(f"{name}.input.parquet")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # as a run makes it: it will hold the answers, too
    write_output(iter([frame]), path, schema=frame.schema)
    return path
