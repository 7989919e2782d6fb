"""Parquet and Arrow files, read by Polars."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from batchrun.errors import InputError
from batchrun.table.values import INTERVAL, inner_types
from batchrun.table.where import PROBLEMS, column_named, first_line

# Without it Polars panics at the schema of a file with a calendar interval, though nobody may want that column.
pl.Config.load('{"environment": {"POLARS_IMPORT_INTERVAL_AS_STRUCT": "1"}}')


class TableFile:
    """A Parquet or Arrow file, read by Polars.

    Binary data that is UTF-8 in every row is text: DuckDB writes JSON so, and others ENUM or strings of their own.
    """

    def __init__(self, path: Path, name: str, kind: str) -> None:
        """Read the schema. Raises InputError."""
        self.name = name
        try:
            lazy = pl.scan_parquet(path, glob=False) if kind == "parquet" else _arrow(path)
            schema = lazy.collect_schema()
            extensions = [column for column, dtype in schema.items() if isinstance(dtype, pl.BaseExtension)]
            self._lazy = lazy.with_columns(column_named(column).ext.storage() for column in extensions)
            self.schema = dict(self._lazy.collect_schema())
        except PROBLEMS as error:
            raise self._unreadable(error) from None
        if not self.schema:
            raise InputError(f"{name}: it has no columns")

    def binary_texts(self) -> dict[str, bool]:
        """Return for each binary column whether all of its values are UTF-8. Raises InputError."""
        return {name: self._is_text(name) for name, dtype in self.schema.items() if isinstance(dtype, pl.Binary)}

    def _is_text(self, name: str) -> bool:
        try:
            # The sum keeps Polars from leaving the cast out.
            self._lazy.select(column_named(name).cast(pl.String).str.len_bytes().sum()).collect(engine="streaming")
        except PROBLEMS as error:
            if "invalid utf8" in str(error):
                return False
            raise self._unreadable(error) from None
        return True

    def settle(self, types: Mapping[str, pl.DataType]) -> None:
        """Read binary columns as text where these types say so, and columns without any value as of their type."""
        casts = {
            name: types[name]
            for name, dtype in self.schema.items()
            if (isinstance(dtype, pl.Binary) and isinstance(types.get(name), pl.String))
            or (isinstance(dtype, pl.Null) and name in types)
        }
        self._lazy = self._lazy.with_columns(column_named(name).cast(dtype) for name, dtype in casts.items())
        self.schema |= casts

    def height(self) -> int:
        """Return the number of rows."""
        return int(self._lazy.select(pl.len()).collect().item())

    def read(self, columns: Sequence[str], start: int, size: int, mark: tuple[int, int]) -> Iterator["FrameChunk"]:
        """Yield the rows from `start` on, at most `size` at a time. Raises InputError."""
        del mark  # Polars finds a row by itself
        # Without a column Polars forgets how many rows there are.
        wanted = list(columns) or list(self.schema)[:1]
        try:
            lazy = self._lazy.select(map(column_named, wanted)).slice(start)
            # collect_batches is marked unstable: this is its only use.
            for chunk in lazy.collect_batches(chunk_size=size, lazy=True):
                for frame in chunk.iter_slices(size):
                    yield self._chunk(frame)
        except PROBLEMS as error:
            raise self._unreadable(error) from None

    def _chunk(self, frame: pl.DataFrame) -> "FrameChunk":
        return FrameChunk(self.name, frame)

    def _unreadable(self, error: BaseException) -> InputError:
        return InputError(f"{self.name}: can't be read: {first_line(error)}")


class FrameChunk:
    """Consecutive rows of a Parquet or Arrow file."""

    offset = None

    def __init__(self, name: str, frame: pl.DataFrame) -> None:
        self._name, self._frame = name, frame
        self.height = frame.height

    def frame(self, columns: Sequence[str]) -> pl.DataFrame:
        """Return the rows as they are in the file."""
        if not columns:
            return pl.DataFrame(height=self.height)
        return self._frame.select(map(column_named, columns))

    def rows(self, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return rows of Python values. Raises InputError for a value that Python can't hold."""
        if not columns:
            return [()] * self.height
        schema = self._frame.schema
        for name in columns:
            if isinstance(schema[name], pl.Date | pl.Datetime) and not _python_holds(self._frame[name]):
                raise self._unshowable(name, "its year is not one of 1 to 9999")
        frame = self._frame.select(_for_prompt(name, schema[name]) for name in columns)
        try:
            return frame.rows()
        except (*PROBLEMS, OverflowError) as error:
            for name in columns:
                try:
                    frame[name].to_list()
                except (*PROBLEMS, OverflowError):
                    raise self._unshowable(name, first_line(error)) from None
            raise

    def _unshowable(self, name: str, why: str) -> InputError:
        return InputError(
            f'{self._name}: column "{name}" ({self._frame.schema[name]}) holds a value that no prompt can show '
            f"({why}); correct it, or leave the column out of the prompt"
        )


def _python_holds(times: pl.Series) -> bool:
    """Check whether Python has all of these dates. DuckDB's 'infinity' is not one: Polars panics as it converts it."""
    return bool((times.dt.year().is_between(1, 9999).fill_null(value=False) | times.is_null()).all())


def unreadable_in_a_prompt(dtype: pl.DataType, *, nested: bool = False) -> str | None:
    """Return why no prompt can show values of a type, None where it can."""
    if isinstance(dtype, pl.Binary):
        return "holds bytes that are not UTF-8 text: leave it out of the prompt, or convert it to text"
    if dtype == INTERVAL:
        return "holds calendar intervals, which a prompt can't show: convert them to text"
    if isinstance(dtype, pl.Object | pl.Unknown) or (nested and isinstance(dtype, pl.Duration)):
        return f"holds values of the type {dtype}, which a prompt can't show: convert them to text"
    problems = (unreadable_in_a_prompt(inner, nested=True) for inner in inner_types(dtype))
    return next(filter(None, problems), None)


def _for_prompt(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return a column as a prompt shows it: 32-bit floats as 2.7, not 2.700000047683716; durations as ISO 8601."""
    column = column_named(name)
    if isinstance(dtype, pl.Duration):
        return column.dt.to_string("iso")
    # Polars prints a Float32 with as many digits as it needs: 2.7.
    through_text = _replaced(dtype, pl.String())
    if through_text == dtype:
        return column
    return column.cast(through_text).cast(_replaced(dtype, pl.Float64()))


def _replaced(dtype: pl.DataType, other: pl.DataType) -> pl.DataType:
    """Return a type in which another one stands for short floats."""
    if isinstance(dtype, pl.Float32 | pl.Float16):
        return other
    if isinstance(dtype, pl.List):
        return pl.List(_replaced(dtype.inner, other))  # type: ignore[arg-type]
    if isinstance(dtype, pl.Array):
        return pl.Array(_replaced(dtype.inner, other), dtype.size)  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return pl.Struct({part.name: _replaced(part.dtype, other) for part in dtype.fields})  # type: ignore[arg-type]
    return dtype


def _arrow(path: Path) -> pl.LazyFrame:
    """Open an Arrow file; the stream format, which can't be read lazily, is read whole."""
    try:
        lazy = pl.scan_ipc(path, glob=False)
        lazy.collect_schema()
    except pl.exceptions.ComputeError:
        return pl.read_ipc_stream(path).lazy()
    return lazy
