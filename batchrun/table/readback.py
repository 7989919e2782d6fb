"""An output file -> one frame with the types that it was written with, for Python programs."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from batchrun.errors import StorageError
from batchrun.table.excel import sheet_texts
from batchrun.table.where import column_named, first_line

_ESCAPED = r"^'([=+\-@\t\r])"


def read_output(path: Path, schema: Mapping[str, pl.DataType], *, escaped: bool = False) -> pl.DataFrame:
    """Read an output whole; `escaped`: with the ' taken off that `csv.escape_formulas` puts before a formula.

    Raises StorageError where it can't be read.
    """
    try:
        match path.suffix.lower():
            case ".parquet":
                return pl.read_parquet(path)
            case ".arrow":
                return pl.read_ipc(path)
            case ".jsonl" | ".ndjson":
                types = {name: _json_type(dtype) for name, dtype in schema.items()}
                found = pl.read_ndjson(path, schema=types)
            case ".xlsx":
                # A sheet has no time zones, and holds moments in UTC.
                zoned = [name for name, dtype in schema.items() if isinstance(dtype, pl.Datetime) and dtype.time_zone]
                found = sheet_texts(path).with_columns(column_named(name) + "+00:00" for name in zoned)
            case suffix:
                separator = "\t" if suffix == ".tsv" else ","
                # Columns by position, without the header: Polars makes another name of an empty one.
                texts = dict.fromkeys(schema, pl.String)
                found = pl.read_csv(
                    path, separator=separator, has_header=False, skip_rows=1, schema=texts, raise_if_empty=False
                )
                if escaped:
                    kinds = (pl.String, pl.Categorical, pl.Enum)
                    names = [name for name, dtype in schema.items() if isinstance(dtype, kinds)]
                    found = found.with_columns(column_named(name).str.replace(_ESCAPED, "$1") for name in names)
                if len(schema) == 1:  # a null is written as "" there
                    found = found.with_columns(pl.all().replace("", None))
        return found.select(_typed(name, dtype, found.schema[name]) for name, dtype in schema.items())
    except (pl.exceptions.PolarsError, OSError) as problem:
        raise StorageError(f"{path}: can't be read: {first_line(problem)}") from None


def _json_type(dtype: pl.DataType) -> pl.DataType:
    """Return the type that a column has in a JSON Lines file: text where JSON has nothing like it."""
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_json_type(dtype.inner))  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return pl.Struct({part.name: _json_type(part.dtype) for part in dtype.fields})  # type: ignore[arg-type]
    if isinstance(dtype, pl.Decimal):
        return pl.String()
    return dtype if isinstance(dtype, pl.Boolean) or dtype.is_numeric() else pl.String()


def _typed(name: str, dtype: pl.DataType, written: pl.DataType) -> pl.Expr:
    """Return the expression that reads a column's text."""
    column = column_named(name)
    if dtype == written or isinstance(dtype, pl.Duration):  # Polars writes durations as text that it does not read
        read = column
    elif not isinstance(written, pl.String):
        read = column.cast(dtype)
    elif isinstance(dtype, pl.Binary):
        read = column.str.decode("base64")
    elif isinstance(dtype, pl.Boolean):
        read = pl.when(column.is_not_null()).then(column == "true").alias(name)
    elif isinstance(dtype, pl.Date):
        read = column.str.to_date()
    elif isinstance(dtype, pl.Time):
        read = column.str.to_time()
    elif isinstance(dtype, pl.Datetime):
        read = column.str.to_datetime(time_unit=dtype.time_unit, time_zone=dtype.time_zone)
    elif dtype.is_nested():
        # JSON has no lists of a fixed length, no decimals and no dates.
        read = column.str.json_decode(_json_type(dtype)).cast(dtype)
    else:
        read = column.cast(dtype)
    return read
