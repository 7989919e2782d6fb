"""Reads an output back with csv, json, openpyxl and pyarrow, and holds it to what the model expects."""

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from oracle.cells import Number, Single
from oracle.excel import read_sheet
from oracle.model import ANY, Table, arrow_type, text


def check_output(path: Path, expected: Table) -> None:
    """Compare names, order, types and every value; raises AssertionError with the first difference."""
    suffix = path.suffix
    convert: Callable[[Any, Any], Any]
    if suffix in {".csv", ".tsv"}:
        names, rows = _separated(path, "\t" if suffix == ".tsv" else ",")
        convert = _from_text
        if len(names) == 1:  # most readers pass over an empty line, so that a null, too, is written as ""
            rows = [[row[0] or None] for row in rows]
            expected = _without_empty_texts(expected)
    elif suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        names = list(lines[0]) if lines else list(expected.types)
        assert all(list(line) == names for line in lines), f"{path.name}: fields in another order"
        rows, convert = [list(line.values()) for line in lines], _from_json
    elif suffix == ".xlsx":
        names, sheet = read_sheet(path)
        sheet += [dict.fromkeys(names)] * (len(expected.rows) - len(sheet))  # rows without any cell at the end
        rows, convert = [list(row.values()) for row in sheet], _from_excel
        expected = _without_empty_texts(expected)
    else:
        table = pa.parquet.read_table(path) if suffix == ".parquet" else pa.ipc.open_file(path).read_all()
        names = list(table.column_names)
        found = {field.name: arrow_type(field.type) for field in table.schema}
        assert found == expected.types, f"{path.name}: types {found}, expected {expected.types}"
        rows, convert = [list(row.values()) for row in table.to_pylist()], _same
    assert names == list(expected.types), f"{path.name}: columns {names}, expected {list(expected.types)}"
    assert len(rows) == len(expected.rows), f"{path.name}: {len(rows)} rows, expected {len(expected.rows)}"
    for number, (row, wanted) in enumerate(zip(rows, expected.rows, strict=True)):
        for name, value in zip(names, row, strict=True):
            right = wanted[name]
            if expected.types[name] == "date" and isinstance(right, str):
                right = dt.date.fromisoformat(right)
            if right is ANY:
                continue
            got = value if expected.types[name] == "string" else convert(value, right)
            kind = expected.types[name]
            right, got = (
                _plain(right, kind),
                text(Single(got)) if isinstance(right, Single) and got is not None else got,
            )
            same = (
                got == right and (got is None) == (right is None) and isinstance(got, bool) == isinstance(right, bool)
            )
            assert same, f"{path.name}: row {number}, {name!r}: {value!r:.200}, expected {right!r:.200}"


def _plain(value: Any, kind: str) -> Any:  # noqa: ANN401  (any cell)
    """Return a value of a column of this type in the form in which outputs are compared."""
    if isinstance(value, Single):
        return text(value)
    if kind == "string" and isinstance(value, bool):
        return text(value)
    if isinstance(value, Number):
        return value.written if kind == "string" else float(value) if kind == "number" else value.exact
    return value


def _same(value: Any, _: Any) -> Any:  # noqa: ANN401  (any cell)
    return value


def _from_json(value: Any, right: Any) -> Any:  # noqa: ANN401  (any cell)
    if value is None or right is None:
        return value
    if isinstance(right, dt.datetime):
        return dt.datetime.fromisoformat(value)
    if isinstance(right, dt.date):
        return dt.date.fromisoformat(value)
    return Decimal(str(value)) if isinstance(right, Decimal) else value


def _without_empty_texts(table: Table) -> Table:
    """Return a table as a file holds it that has no empty texts."""
    return Table(table.types, [{name: None if row[name] == "" else row[name] for name in row} for row in table.rows])


def _from_excel(value: Any, right: Any) -> Any:  # noqa: ANN401  (any cell)
    if isinstance(right, list) and value is not None:
        return json.loads(value)
    return float(value) if isinstance(value, Number) else value


def _from_text(cell: str | None, right: Any) -> Any:  # noqa: ANN401  (any cell)
    """Return a CSV cell as the type of the expected value."""
    if cell is None or right is None or isinstance(right, str):
        return cell
    if isinstance(right, bool):
        return {"true": True, "false": False}[cell]
    if isinstance(right, list):
        return json.loads(cell)
    if isinstance(right, int | float):
        return float(cell) if isinstance(right, float) else int(cell)
    return _from_json(cell, right)


def _separated(path: Path, separator: str) -> tuple[list[str], list[list[str | None]]]:
    """Split a CSV file into its names and rows; a cell that is empty without quotes is None.

    The csv module can not say whether an empty cell was quoted, which is all the difference between null and "".
    """
    raw, place = path.read_bytes().decode("utf-8"), 0
    rows: list[list[str | None]] = [[]]
    while place < len(raw):
        cell: str | None
        if raw[place] == '"':
            end = place + 1
            while raw[end] != '"' or raw[end + 1 : end + 2] == '"':
                end += 1 if raw[end] != '"' else 2
            cell, place = raw[place + 1 : end].replace('""', '"'), end + 1
        else:
            ends = [at for at in (raw.find(separator, place), raw.find("\n", place)) if at >= 0]
            end = min(ends, default=len(raw))
            cell, place = raw[place:end] or None, end
        rows[-1].append(cell)
        if raw[place : place + 1] == separator and raw[place + 1 : place + 2] in {"\n", ""}:
            rows[-1].append(None)
            place += 1
        if raw[place : place + 1] == "\n":
            rows.append([])
        place += 1
    names, *rest = [row for row in rows if row]
    return [name or "" for name in names], rest
