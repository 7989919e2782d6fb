"""Excel workbooks out: frames become one sheet, written row by row by XlsxWriter, which the extra [excel] brings."""

import math
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date, datetime, time
from decimal import Decimal
from importlib.util import find_spec
from itertools import chain
from typing import IO, Any

import polars as pl

from batchrun.errors import UserError
from batchrun.table.values import without_zone

MISSING_WRITER = "writing .xlsx needs XlsxWriter: pip install 'batchrun-llm[excel]'"

MOST_ROWS = 1_048_575
"""Rows below the header that a sheet holds."""

MOST_COLUMNS = 16_384
LONGEST_CELL = 32_767
"""UTF-16 units of a cell's text."""

_DIGITS = 10**15
"""From here on Excel rounds whole numbers; they are written as text."""

_FIRST_YEAR = 1901
"""Excel counts a 29th of February 1900, so that earlier dates would be a day off; they are written as text."""

_FORMATS = {date: "yyyy-mm-dd", time: "hh:mm:ss", datetime: "yyyy-mm-dd hh:mm:ss"}


def has_writer() -> bool:
    """Check whether XlsxWriter is installed."""
    return find_spec("xlsxwriter") is not None


def is_long(text: str) -> bool:
    """Check whether a cell can't hold a text."""
    return len(text) > LONGEST_CELL or (
        2 * len(text) > LONGEST_CELL and len(text.encode("utf-16-le", "surrogatepass")) // 2 > LONGEST_CELL
    )


def write_sheet(frames: Iterable[pl.DataFrame], file: IO[bytes], schema: Mapping[str, pl.DataType]) -> int:
    """Write frames of this schema to one sheet; return how many texts were cut, which are longer than a cell holds.

    Texts are never formulas, links or numbers. Equal frames give equal bytes. Raises UserError for too many rows.
    """
    import xlsxwriter  # noqa: PLC0415  (an extra)

    # Rows wait in files, which are left behind where the disk fails: in a folder of ours they go with it.
    with tempfile.TemporaryDirectory(prefix="batchrun-") as folder:
        book = xlsxwriter.Workbook(file, {**_OPTIONS, "tmpdir": folder})
        sheet = book.add_worksheet("Rows")
        try:
            cut = _fill(book, sheet, frames, schema)
            book.close()
        except BaseException:
            _close_files(sheet)
            raise
    return cut


_OPTIONS = {
    # A million rows would take gigabytes otherwise.
    "constant_memory": True,
    # A review that begins with = is a text, and must never run.
    "strings_to_formulas": False,
    "strings_to_numbers": False,
    "strings_to_urls": False,
}


def _fill(book: Any, sheet: Any, frames: Iterable[pl.DataFrame], names: Iterable[str]) -> int:  # noqa: ANN401  (XlsxWriter has no types)
    """Write a header and rows; return how many texts were cut."""
    # The time of writing would make each file another one.
    book.set_properties({"created": datetime(2000, 1, 1)})  # noqa: DTZ001  (Excel has no time zones)
    cells = _Cells(sheet, {kind: book.add_format({"num_format": form}) for kind, form in _FORMATS.items()})
    sheet.freeze_panes(1, 0)
    bold = book.add_format({"bold": True})
    for column, name in enumerate(names):
        sheet.write_string(0, column, name, bold)
    rows = chain.from_iterable(frame.iter_rows() for frame in frames)
    for row, values in enumerate(rows, start=1):
        if row > MOST_ROWS:  # XlsxWriter would leave them out, and say nothing
            raise UserError(f"a sheet of Excel holds {MOST_ROWS:,} rows, and there are more: write .parquet or .csv")
        for column, value in enumerate(values):
            if value is not None:
                cells.write(row, column, value)
    return cells.cut


def _close_files(sheet: Any) -> None:  # noqa: ANN401  (XlsxWriter has no types)
    """Close what a sheet that is given up has open; a full disk makes even that fail."""
    for open_file in (sheet.fh, sheet.row_data_fh):
        if open_file is not None:
            with suppress(OSError, ValueError):
                open_file.close()


class _Cells:
    """Writes values with their types; `cut` counts the texts that were too long."""

    def __init__(self, sheet: Any, formats: Mapping[type, Any]) -> None:  # noqa: ANN401  (XlsxWriter has no types)
        self.sheet, self._formats = sheet, formats
        self.cut = 0

    def write(self, row: int, column: int, value: Any) -> None:  # noqa: ANN401  (a cell)
        """Write one value; what Excel has no type for is text."""
        if isinstance(value, datetime):
            value = without_zone(value)
        if isinstance(value, bool):
            self.sheet.write_boolean(row, column, value)
        elif isinstance(value, int | float | Decimal) and _is_exact(value):
            self.sheet.write_number(row, column, float(value))
        elif isinstance(value, time) or (isinstance(value, date) and value.year >= _FIRST_YEAR):
            self.sheet.write_datetime(row, column, value, self._formats[type(value)])
        elif not (isinstance(value, float) and not math.isfinite(value)):
            self._write_text(row, column, str(value))

    def _write_text(self, row: int, column: int, text: str) -> None:
        if is_long(text):
            self.cut += 1
            text = text.encode("utf-16-le", "surrogatepass")[: 2 * LONGEST_CELL].decode("utf-16-le", "ignore")
        self.sheet.write_string(row, column, text)


def _is_exact(value: float | Decimal) -> bool:
    """Check whether Excel shows a number as it is: a float, or up to 15 digits."""
    if isinstance(value, Decimal):
        return len(value.as_tuple().digits) < 16  # noqa: PLR2004  (digits)
    if isinstance(value, int):
        return abs(value) < _DIGITS
    return math.isfinite(value)
