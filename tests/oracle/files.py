"""Writes input files: by hand where a cell's spelling counts, else with pyarrow."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from oracle.model import Number

Row = dict[str, Any]

ARROW: dict[str, pa.DataType] = {
    "string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "single": pa.float32(),
    "boolean": pa.bool_(), "date": pa.date32(), "datetime": pa.timestamp("us"), "decimal": pa.decimal128(9, 2),
    "list": pa.list_(pa.string()),
}  # fmt: skip


def encoded(kind: str, types: dict[str, str], rows: Sequence[Row]) -> bytes:
    """Return a file's bytes."""
    if kind in {"csv", "tsv"}:
        separator = "," if kind == "csv" else "\t"
        records: list[list[str | None]] = [list(types), *([_written(row[name]) for name in types] for row in rows)]
        return "".join(separator.join(_quoted(cell) for cell in record) + "\n" for record in records).encode()
    if kind == "jsonl":
        lines = []
        for number, row in enumerate(rows):  # a null may be written or left out
            names = [name for name in types if row[name] is not None or number % 2 == 0]
            lines.append("{" + ", ".join(f"{_json(name)}: {_json(row[name])}" for name in names) + "}\n")
        return "".join(lines).encode()
    table = pa.table(
        {name: pa.array([row[name] for row in rows], ARROW[kind_]) for name, kind_ in types.items()},
        schema=pa.schema([(name, ARROW[kind_]) for name, kind_ in types.items()]),
    )
    sink = pa.BufferOutputStream()
    if kind == "parquet":
        pa.parquet.write_table(table, sink)
    else:
        with pa.ipc.new_file(sink, table.schema) as out:
            out.write_table(table)
    return bytes(sink.getvalue())


def with_blobs(path: Path, raw: bytes) -> bytes:
    """Return a Parquet file with one more column, of lists of bytes."""
    table = pa.parquet.read_table(pa.BufferReader(raw))
    blobs = pa.array([[b"x"]] * len(table), pa.list_(pa.binary()))
    pa.parquet.write_table(table.append_column("blobs", blobs), path)
    return path.read_bytes()


def _written(value: Any) -> str | None:  # noqa: ANN401  (any cell)
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def _quoted(cell: str | None) -> str:
    """Return a cell as CSV: nothing for a null, quotes where they are needed, and for the empty text."""
    if cell is None:
        return ""
    return '"' + cell.replace('"', '""') + '"' if cell == "" or any(c in cell for c in ',"\n\t') else cell


def _json(value: Any) -> str:  # noqa: ANN401  (any JSON)
    return value.written if isinstance(value, Number) else json.dumps(value, ensure_ascii=False)
