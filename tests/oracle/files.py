"""Writes input files: by hand where a cell's spelling counts, else with pyarrow or XlsxWriter."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from oracle.cells import Number
from oracle.excel import workbook

Row = dict[str, Any]

ARROW: dict[str, pa.DataType] = {
    "string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "single": pa.float32(),
    "boolean": pa.bool_(), "date": pa.date32(), "datetime": pa.timestamp("us"), "decimal": pa.decimal128(9, 2),
    "list": pa.list_(pa.string()), "null": pa.null(),
}  # fmt: skip


TEXT_TYPES = {
    "text": pa.string(), "large text": pa.large_string(), "binary": pa.binary(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
}  # fmt: skip
"""How other tools write text to Parquet and Arrow files."""


def encoded(kind: str, types: dict[str, str], rows: Sequence[Row], text_as: str = "text") -> bytes:
    """Return a file's bytes."""
    if kind in {"csv", "tsv"}:
        separator = "," if kind == "csv" else "\t"
        records: list[list[str | None]] = [list(types), *([_written(row[name]) for name in types] for row in rows)]
        return "".join(separator.join(_quoted(cell) for cell in record) + "\n" for record in records).encode()
    if kind in {"jsonl", "json"}:
        lines = []
        for number, row in enumerate(rows):  # a null may be written or left out
            names = [name for name in types if row[name] is not None or number % 2 == 0]
            lines.append("{" + ", ".join(f"{_json(name)}: {_json(row[name])}" for name in names) + "}\n")
        return ("".join(lines) if kind == "jsonl" else "[\n" + ", ".join(lines) + "]\n").encode()
    if kind == "xlsx":
        return workbook(list(types), rows)
    found = ARROW | {"string": TEXT_TYPES[text_as]}
    if len(rows) % 2:  # pandas gives a column without any value no type
        types = {n: "null" if all(row[n] is None for row in rows) else kind_ for n, kind_ in types.items()}
    table = pa.table(
        {name: pa.array([row[name] for row in rows], found[kind_]) for name, kind_ in types.items()},
        schema=pa.schema([(name, found[kind_]) for name, kind_ in types.items()]),
    )
    return _table_bytes(kind, table)


def _table_bytes(kind: str, table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    if kind == "parquet":
        pa.parquet.write_table(table, sink)
    else:
        with pa.ipc.new_file(sink, table.schema) as out:
            out.write_table(table)
    return bytes(sink.getvalue())


WRONG_COLUMNS = {
    "unfit output": ("blobs", [b"x"], pa.list_(pa.binary())),
    "far date": ("late", 5_000_000, pa.date32()),
    "interval": ("gap", (1, 2, 3), pa.month_day_nano_interval()),
}
"""For each mistake that is a column: its name, each row's value, its type."""


def with_wrong_column(kind: str, raw: bytes, mistake: str) -> bytes:
    """Return a Parquet or Arrow file with one more column."""
    source = pa.BufferReader(raw)
    table = pa.parquet.read_table(source) if kind == "parquet" else pa.ipc.open_file(source).read_all()
    name, value, type_ = WRONG_COLUMNS[mistake]
    return _table_bytes(kind, table.append_column(name, pa.array([value] * len(table), type_)))


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
