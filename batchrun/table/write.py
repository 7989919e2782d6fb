"""Rows and answers to the output file: the old one stays until the new one is complete.

Equal content gives equal bytes, for frames of any size. In CSV a null is an empty cell, an empty text is "",
lists and objects are JSON text, dates ISO 8601, binary data Base64. JSON has no NaN and no infinity: JSONL holds null.
"""

import codecs
import filecmp
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import polars as pl
from polars.io.plugins import register_io_source

from batchrun.disk import sync_folder
from batchrun.errors import StorageError, UserError
from batchrun.job import OUTPUT_SUFFIXES, Detail, OutputCsv
from batchrun.records import Status, kind_of
from batchrun.table.sheet import LONGEST_CELL, MISSING_WRITER, MOST_COLUMNS, has_writer, write_sheet
from batchrun.table.values import INTERVAL, inner_types
from batchrun.table.where import column_named, first_line
from batchrun.terminal import plural

_ROW_GROUP = 20_000
_TYPED = (".parquet", ".arrow")
_PROBLEMS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
_PLAIN_CSV = OutputCsv()
_FORMULA = r"^[=+\-@\t\r]"

DETAIL_TYPES: dict[Detail, pl.DataType] = {
    "status": pl.Enum([status.value for status in Status]),
    "error_code": pl.Int64(),
    "error_type": pl.String(),
    "error_message": pl.String(),
    "http_status": pl.Int64(),
    "attempts": pl.Int64(),
    "model": pl.String(),
    "provider": pl.String(),
    "finish_reason": pl.String(),
    "prompt_tokens": pl.Int64(),
    "completion_tokens": pl.Int64(),
    "cached_tokens": pl.Int64(),
    "cache_write_tokens": pl.Int64(),
    "service_tier": pl.String(),
    # a decimal would be text in JSONL and unknown to many readers; a float is exact to the picodollar up to $9,000
    "cost_usd": pl.Float64(),
    "latency_s": pl.Float64(),
    "generation_id": pl.String(),
    "finished_at": pl.Datetime("us", "UTC"),
    "key": pl.String(),
    "answer_raw": pl.String(),
    "reasoning": pl.String(),
    "citations": pl.List(
        pl.Struct(
            {
                "url": pl.String(),
                "title": pl.String(),
                "content": pl.String(),
                "start_index": pl.Int64(),
                "end_index": pl.Int64(),
            }
        )
    ),
    "corrected": pl.Boolean(),
}
"""The type of each column that `output.details` can name."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written; `changed` is false where the file was there already, byte for byte.

    `note` says how many texts a cell of Excel was too short for; empty: none.
    """

    path: Path
    rows: int
    changed: bool
    note: str = ""


def partial_path(path: Path) -> Path:
    """Return the path of an unfinished run's output: reviews.parquet -> reviews.partial.parquet."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def check_writable(path: Path, inputs: Sequence[Path] = (), named: str = "output.path") -> None:
    """Check before the first request that an output can be written; creates missing parent folders.

    `named` is the key or the flag that gave it. Raises UserError for a path that can't be meant,
    StorageError for a folder that can't be written.
    """
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f'{named}: unknown format "{path.suffix}"; write one of {" ".join(OUTPUT_SUFFIXES)}')
    if problem := sheet_problem(0, path.suffix.lower()):
        raise UserError(f"{named}: {problem}")
    if path.is_dir():
        raise UserError(f"{named}: {path} is a folder: name a file in it")
    if path.exists() and not path.is_file():
        raise UserError(f"{named}: {path} is not a regular file")
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise UserError(f"{named}: {path} is an input file; write another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{named}: {path.parent} is not a folder: write another path") from None
    except OSError as error:
        raise StorageError(f"{named}: {path.parent} can't be written: {error.strerror}") from None


def sheet_problem(columns: int, suffix: str) -> str | None:
    """Return why no Excel workbook can be written with this many columns, None where one can, or for another format."""
    if suffix != ".xlsx":
        return None
    if not has_writer():
        return MISSING_WRITER
    if columns > MOST_COLUMNS:
        return (
            f"a sheet of Excel holds {MOST_COLUMNS:,} columns, and the output has {columns:,}: write .parquet or .csv"
        )
    return None


def unwritable(dtype: pl.DataType, suffix: str, *, nested: bool = False) -> str | None:
    """Return why a format can't hold values of a type, None where it can."""
    if isinstance(dtype, (pl.Object, pl.Unknown)):
        return f"is of the type {dtype}, which no output can hold"
    if dtype == INTERVAL:
        return "holds calendar intervals, which no output can hold"
    if isinstance(dtype, pl.Map) and suffix not in _TYPED and not isinstance(dtype.key, pl.String):
        return f"is a map whose keys are not text, which {suffix} can't hold"
    if isinstance(dtype, pl.Binary) and nested and suffix not in _TYPED:
        return f"has bytes inside a list or a struct, which {suffix} can't hold"
    if isinstance(dtype, pl.Struct) and not dtype.fields and suffix == ".parquet":
        return f"is a struct without fields, which {suffix} can't hold"
    return next(filter(None, (unwritable(inner, suffix, nested=True) for inner in inner_types(dtype))), None)


def write_output(
    frames: Iterator[pl.DataFrame],
    path: Path,
    *,
    schema: Mapping[str, pl.DataType],
    csv: OutputCsv = _PLAIN_CSV,
) -> Written:
    """Write frames of this schema, in order, to a file whose suffix names the format; replace it only by other bytes.

    `frames` may be read from another thread. Its exceptions come through; raises StorageError where the disk fails,
    UserError where a sheet of Excel has no room, and then the old file stays.
    """
    if problem := sheet_problem(len(schema), path.suffix.lower()):
        raise UserError(problem)
    counted = _Counted(frames, schema)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        # The mode that the umask allows is read off an empty file: asking for the umask changes it for all threads.
        with temporary.open("xb") as empty:
            mode = os.fstat(empty.fileno()).st_mode
        temporary.unlink()
        # Only its owner may read it, from its first byte on.
        with open(temporary, "xb", opener=partial(os.open, mode=0o600)) as file:
            cut = _write(counted, file, path.suffix.lower(), csv)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        note = f"{plural(cut, 'text')} cut to {LONGEST_CELL:,} characters, the most that a cell of Excel holds"
        return Written(path, counted.rows, _replace(temporary, path), note if cut else "")
    except _PROBLEMS as error:
        if counted.failure is not None:
            raise counted.failure from None
        reason = getattr(error, "strerror", None) or first_line(error)
        raise StorageError(f"{path}: can't be written: {reason}") from None
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def answer_columns(answers: Sequence[str | None], columns: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Return valid answers (compact JSON objects) as typed columns; None is null in each, and so is a missing key.

    Each column has its type also when all values are null.
    """
    return pl.Series(answers, dtype=pl.String).str.json_decode(pl.Struct(columns)).struct.unnest()


def dtype_of(schema: Mapping[str, Any]) -> pl.DataType:
    """Return the type of the column for one property of an answer's JSON Schema."""
    kind = kind_of(schema)
    if kind == "enum":
        return pl.Enum(list(dict.fromkeys(value for value in schema["enum"] if value is not None)))
    if kind == "list":
        return pl.List(dtype_of(schema["items"]))
    if kind == "object":
        return pl.Struct({name: dtype_of(part) for name, part in schema["properties"].items()})
    return _SCALARS.get(kind, pl.String())


_SCALARS: dict[str, pl.DataType] = {
    "date": pl.Date(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
}


class _Counted:
    """Frames held to a schema, counted; an exception of their source is kept, since a writer may wrap it."""

    def __init__(self, frames: Iterator[pl.DataFrame], schema: Mapping[str, pl.DataType]) -> None:
        self._frames = frames
        self.schema = pl.Schema(schema)
        self.rows = 0
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[pl.DataFrame]:
        try:
            for frame in self._frames:
                self.rows += frame.height
                yield frame.select(column_named(name).cast(dtype) for name, dtype in self.schema.items())
        except Exception as error:
            self.failure = error
            raise


def _write(frames: _Counted, file: IO[bytes], suffix: str, csv: OutputCsv) -> int:
    """Write frames in the format of a suffix; return how many texts were cut."""
    if suffix in _TYPED:
        source = register_io_source(lambda *_: _row_groups(frames), schema=frames.schema)
        if suffix == ".parquet":
            source.sink_parquet(file, compression="zstd", row_group_size=_ROW_GROUP)
        else:
            oldest = pl.CompatLevel.oldest()  # the layout that every Arrow library knows
            source.sink_ipc(file, compression="zstd", record_batch_size=_ROW_GROUP, compat_level=oldest)
        return 0
    if suffix == ".xlsx":
        sheet = [_as_cell(name, dtype) for name, dtype in frames.schema.items()]
        return write_sheet((frame.select(sheet) for frame in frames), file, frames.schema)
    table = suffix in {".csv", ".tsv"}
    separator = "\t" if suffix == ".tsv" else ","
    expressions = [_as_text(name, dtype, table=table) for name, dtype in frames.schema.items()]
    if table and csv.escape_formulas:
        pairs = zip(expressions, frames.schema.items(), strict=True)
        expressions = [_escaped(name, expression, dtype) for expression, (name, dtype) in pairs]
    if table:
        # Also where there is no row at all: a reader needs the names.
        header = pl.DataFrame(schema=frames.schema).select(expressions)
        if csv.escape_formulas:
            header = header.rename(lambda name: f"'{name}" if re.match(_FORMULA, name) else name)
        if csv.bom:
            file.write(codecs.BOM_UTF8)
        header.write_csv(file, separator=separator)
    # pandas and others pass over an empty line: all rows below would move up.
    null = '""' if len(frames.schema) == 1 else ""
    for frame in frames:
        text = frame.select(expressions)
        if table:
            text.write_csv(file, separator=separator, include_header=False, null_value=null)
        else:
            text.write_ndjson(file)
    return 0


def _row_groups(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yield the same rows in frames of one size, copied clean: equal rows then give equal bytes."""
    held, rows = pl.DataFrame(), 0
    for frame in frames:
        held = held.vstack(frame) if rows else frame
        rows = held.height
        while rows >= _ROW_GROUP:
            yield _clean(held.head(_ROW_GROUP))
            held = held.slice(_ROW_GROUP)
            rows = held.height
    if rows:
        yield _clean(held)


def _clean(frame: pl.DataFrame) -> pl.DataFrame:
    """Copy a frame value by value: the unused bits of a slice's masks would be written to an Arrow file.

    To reverse is the one operation that rebuilds nested columns too; the second one puts the rows back.
    """
    copied = frame.reverse().reverse()
    if copied.schema != frame.schema:
        # A frame whose lists are all null comes back as lists of nothing, which an Arrow writer refuses.
        copied = copied.cast(dict(frame.schema))  # type: ignore[arg-type]
    return copied


def _as_text(name: str, dtype: pl.DataType, *, table: bool) -> pl.Expr:
    """Return a column in a form that CSV (`table`) or JSONL can hold."""
    column = column_named(name)
    if isinstance(dtype, pl.Binary):
        return column.bin.encode("base64")
    if isinstance(dtype, pl.Duration):
        return column.dt.to_string("iso")
    if isinstance(dtype, (pl.Date, pl.Datetime)):
        # DuckDB's 'infinity' is the largest number, which has no year; Polars panics where it is to be written.
        finite = pl.when(column.dt.year().is_not_null()).then(column).dt.to_string("iso:strict")
        endless = pl.when(column.to_physical() > 0).then(pl.lit("infinity")).otherwise(pl.lit("-infinity"))
        return pl.when(column.is_not_null()).then(pl.coalesce(finite, endless)).alias(name)
    if table and dtype.is_nested():
        text = pl.struct(column.alias("v")).struct.json_encode().str.strip_prefix('{"v":').str.head(-1)
        return pl.when(column.is_not_null()).then(text).alias(name)
    return column


def _as_cell(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return a column in a form that Excel can hold: dates and times stay what they are."""
    if isinstance(dtype, pl.Datetime | pl.Date | pl.Time):
        return column_named(name)
    return _as_text(name, dtype, table=True)


def _escaped(name: str, expression: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Put a ' before texts that a spreadsheet would run as a formula."""
    if not isinstance(dtype, (pl.String, pl.Categorical, pl.Enum)):
        return expression
    text = expression.cast(pl.String)
    return pl.when(text.str.contains(_FORMULA)).then("'" + text).otherwise(text).alias(name)


def _replace(temporary: Path, path: Path) -> bool:
    """Put the file in its place unless the same bytes are there; durable when it returns."""
    if path.is_file() and not path.is_symlink() and filecmp.cmp(temporary, path, shallow=False):
        return False
    temporary.replace(path)
    sync_folder(path)
    return True
