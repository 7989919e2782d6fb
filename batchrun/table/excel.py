"""Excel workbooks in: a sheet becomes typed columns, read by python-calamine, which the extra [excel] brings.

A column has the narrowest type that holds all of its cells; where there is none it is text, each cell written as a
prompt shows it. A sheet is read whole, since a workbook can't be read otherwise, and is kept as an Arrow file for as
long as the input is open.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from batchrun.errors import InputError, known_names
from batchrun.table.columnar import FrameChunk, TableFile
from batchrun.table.where import first_line

if TYPE_CHECKING:
    from python_calamine import CalamineWorkbook

MISSING_READER = "reading .xlsx needs python-calamine: pip install 'batchrun-llm[excel]'"

_EXACT = 2**53
"""Below it a float is the whole number that it looks like."""

_ROWS = 10_000
"""Rows that are Python values at a time."""

_TYPES: dict[frozenset[type], pl.DataType] = {
    frozenset(): pl.Null(),
    frozenset({int}): pl.Int64(),
    frozenset({float}): pl.Float64(),
    frozenset({int, float}): pl.Float64(),
    frozenset({bool}): pl.Boolean(),
    frozenset({date}): pl.Date(),
    frozenset({time}): pl.Time(),
    frozenset({datetime}): pl.Datetime("us"),
    frozenset({date, datetime}): pl.Datetime("us"),
}

Cell = bool | float | str | date | time | timedelta | None


class ExcelFile(TableFile):
    """A sheet of a workbook. Its rows can be read when `settle_kinds` has kept them in the file `arrow`."""

    def __init__(self, path: Path, name: str, sheet: str | None, arrow: Path) -> None:
        """Read the sheet. Raises InputError."""
        self._sheet = _Sheet(path, name, sheet)
        self._arrow = arrow
        self.name = name
        self.kinds = self._sheet.kinds

    def settle_kinds(self, kinds: Mapping[str, set[type]]) -> None:
        """Make each column the narrowest type that holds cells of these kinds; text where no other type does."""
        types = {name: _TYPES.get(frozenset(kinds[name]), pl.String()) for name in self.kinds}
        self._sheet.frame(types).write_ipc(self._arrow)
        del self._sheet  # a run need not keep the workbook in memory
        super().__init__(self._arrow, self.name, "arrow")

    def _chunk(self, frame: pl.DataFrame) -> FrameChunk:
        return _ExcelChunk(self.name, frame)


def sheet_texts(path: Path) -> pl.DataFrame:
    """Return the first sheet of a workbook with all cells as text. Raises InputError."""
    sheet = _Sheet(path, path.name, None)
    return sheet.frame(dict.fromkeys(sheet.kinds, pl.String()))


class _ExcelChunk(FrameChunk):
    """Consecutive rows of a sheet."""

    def rows(self, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return rows of Python values: 3 where a float is whole, a date where a datetime is at midnight."""
        rows = super().rows(columns)
        if not any(isinstance(self._frame.schema[name], pl.Float64 | pl.Datetime) for name in columns):
            return rows
        return [tuple(map(_plain, row)) for row in rows]


def _plain(cell: Cell) -> Cell:
    """Return a cell as a prompt shows it, by itself."""
    if cell == "":  # an error such as #N/A, a formula that shows nothing, or no cell
        return None
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < _EXACT:
        return int(cell)
    if isinstance(cell, datetime) and cell.time() == time():
        return cell.date()
    return cell


class _Sheet:
    """The cells of a sheet. `kinds` are the Python types of those in each column, by the column's name."""

    def __init__(self, path: Path, name: str, sheet: str | None) -> None:
        self._name = name
        try:
            from python_calamine import CalamineError, CalamineWorkbook  # noqa: PLC0415  (an extra)
        except ImportError:
            raise InputError(f"{name}: {MISSING_READER}") from None
        try:
            book = CalamineWorkbook.from_path(path)
            self._cells = book.get_sheet_by_name(self._chosen(book, sheet))
        except (CalamineError, OSError) as error:
            problem = f"can't be read as an Excel workbook ({first_line(error)}): save it again as .xlsx"
            raise InputError(f"{name}: {problem}") from None
        rows = self._rows()
        header = next(rows, [])
        kinds: list[set[type]] = [set() for _ in header]
        for row in rows:
            for found, cell in zip(kinds, row, strict=True):
                found.add(type(cell))
        self._columns = self._named(header, kinds)
        self.kinds = {name: kinds[number] - {type(None)} for name, number in self._columns.items()}

    def _chosen(self, book: "CalamineWorkbook", sheet: str | None) -> str:
        """Return the name of the sheet: as asked for, else the first that is not hidden."""
        from python_calamine import SheetVisibleEnum  # noqa: PLC0415  (an extra)

        names = book.sheet_names
        if sheet is None:
            visible = (one.name for one in book.sheets_metadata if one.visible == SheetVisibleEnum.Visible)
            return next(visible, names[0])
        if sheet not in names:
            raise InputError(f'input.sheet: {self._name} has no sheet "{sheet}"{known_names(sheet, names)}')
        return sheet

    def _rows(self) -> Iterator[list[Cell]]:
        """Yield the rows that are not empty; the first one names the columns."""
        for cells in self._cells.iter_rows():
            row = list(map(_plain, cells))
            if any(cell is not None for cell in row):
                yield row

    def _named(self, header: Sequence[Cell], kinds: Sequence[set[type]]) -> dict[str, int]:
        """Return the columns' numbers by name. Raises InputError where the first row does not name them."""
        found: dict[str, int] = {}
        for number, cell in enumerate(header):
            name = _text(cell) or ""
            if not name and kinds[number] <= {type(None)}:
                continue  # cells that are only formatted
            if not name and name in found:
                both = f"{self._letters(found[name])} and {self._letters(number)}"
                raise InputError(
                    f"{self._name}: columns {both} have no name in the first row; delete the rows above the header, or "
                    "name the columns"
                )
            if name in found:
                raise InputError(f'{self._name}: column "{name}" occurs twice; rename one')
            found[name] = number
        if not found:
            raise InputError(f"{self._name}: the sheet is empty; its first row must name the columns")
        return found

    def _letters(self, number: int) -> str:
        """Return the letters of a column as Excel shows them: A, Z, AA. The sheet's first column may be any."""
        letters = ""
        number += (self._cells.start or (0, 0))[1] + 1
        while number:
            number, rest = divmod(number - 1, 26)
            letters = chr(ord("A") + rest) + letters
        return letters

    def frame(self, types: Mapping[str, pl.DataType]) -> pl.DataFrame:
        """Return the rows with the types of their columns."""
        frames = [pl.DataFrame(schema=types)]
        rows = islice(self._rows(), 1, None)
        while batch := list(islice(rows, _ROWS)):
            columns = {
                name: pl.Series([_as_type(row[number], types[name]) for row in batch], dtype=types[name])
                for name, number in self._columns.items()
            }
            frames.append(pl.DataFrame(columns))
        return pl.concat(frames)


def _as_type(cell: Cell, dtype: pl.DataType) -> Cell:
    """Return a cell as its column's type holds it."""
    if isinstance(dtype, pl.String):
        return _text(cell)
    if isinstance(cell, int) and isinstance(dtype, pl.Float64):
        return float(cell)
    if type(cell) is date and isinstance(dtype, pl.Datetime):
        return datetime.combine(cell, time())
    return cell


def _text(cell: Cell) -> str | None:
    """Return a cell as text; a time span as Excel shows it: 30:05:00."""
    if cell is None:
        return None
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, timedelta):
        minutes, seconds = divmod(round(cell.total_seconds()), 60)
        return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
    return str(cell)
