"""Excel workbooks, written with XlsxWriter and read with openpyxl."""

import datetime as dt
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openpyxl
import xlsxwriter

from oracle.cells import Number

LONGEST = 32_767
"""Characters that a cell of Excel holds."""

_EXACT = 2**53


def workbook(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> bytes:
    """Return a workbook whose only sheet has these rows; a null is a cell that is not there."""
    sink = io.BytesIO()
    with xlsxwriter.Workbook(sink, {"in_memory": True}) as book:
        formats = {dt.date: "yyyy-mm-dd", dt.datetime: "yyyy-mm-dd hh:mm:ss"}
        shown = {kind: book.add_format({"num_format": text}) for kind, text in formats.items()}
        sheet = book.add_worksheet()
        for number, cells in enumerate([names, *([row[name] for name in names] for row in rows)]):
            for place, cell in enumerate(cells):
                if isinstance(cell, str):
                    sheet.write_string(number, place, cell[:LONGEST])
                elif isinstance(cell, dt.date):
                    sheet.write_datetime(number, place, cell, shown[type(cell)])
                elif isinstance(cell, bool):
                    sheet.write_boolean(number, place, cell)
                elif cell is not None:
                    sheet.write_number(number, place, cell)
    return sink.getvalue()


def read_sheet(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the names and the rows of a workbook's first sheet."""
    (names, *rows) = openpyxl.load_workbook(file).worksheets[0].iter_rows(values_only=True)
    return [str(name) for name in names], [dict(zip(map(str, names), map(_value, row), strict=True)) for row in rows]


def _value(cell: Any) -> Any:  # noqa: ANN401  (any cell)
    """Return a cell as a prompt shows it: 3 for a whole number, a date for a moment at midnight, nothing for ""."""
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        whole = float(cell).is_integer() and abs(cell) < _EXACT
        return Number(str(int(cell)) if whole else str(float(cell)))
    if isinstance(cell, dt.datetime) and cell.time() == dt.time():
        return cell.date()
    return None if cell == "" else cell
