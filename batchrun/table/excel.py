"""Excel workbooks in: a sheet becomes typed columns, read by fastexcel, which the extra [excel] brings.

A cell has the type that Excel gives it, alone: fastexcel by itself would make one type of a column, so
each column is read as text, number, boolean and date, and the four together show what a cell is. A sheet is read
whole, since a workbook can't be read otherwise, and is kept as an Arrow file for as long as the input is open.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from batchrun.errors import InputError, did_you_mean
from batchrun.table.columnar import FrameChunk, TableFile
from batchrun.table.where import short

if TYPE_CHECKING:
    from fastexcel import ExcelReader

MISSING_READER = "reading .xlsx needs fastexcel: pip install 'batchrun-llm[excel]'"

_EXACT = 2**53
"""Below it a float is the whole number that it looks like."""

_DAY_ZERO = date(1899, 12, 31)
"""A time of day has this date in Excel."""

_SUSPECT = datetime(1900, 2, 1)  # noqa: DTZ001  (Excel has no time zones)
"""Earlier moments may be time spans, of which Excel makes dates of January 1900."""

_TYPES: dict[frozenset[str], pl.DataType] = {
    frozenset({"whole"}): pl.Int64(),
    frozenset({"float"}): pl.Float64(),
    frozenset({"whole", "float"}): pl.Float64(),
    frozenset({"boolean"}): pl.Boolean(),
    frozenset({"date"}): pl.Date(),
    frozenset({"time"}): pl.Time(),
    frozenset({"datetime"}): pl.Datetime("us"),
    frozenset({"date", "datetime"}): pl.Datetime("us"),
}


class ExcelFile(TableFile):
    """A sheet of a workbook. `kinds` are the kinds of cells that each column holds."""

    def __init__(self, path: Path, name: str, sheet: str | None, arrow: Path) -> None:
        """Read the sheet, and keep it in the file `arrow`. Raises InputError."""
        self._sheet = _Sheet(path, name, sheet)
        self._arrow = arrow
        self._shown = name
        self.kinds = self._sheet.kinds()
        self.settle_kinds(self.kinds)

    def settle_kinds(self, kinds: Mapping[str, Collection[str]]) -> None:
        """Make each column the narrowest type that holds cells of these kinds; text where no other type does."""
        types = {name: _TYPES.get(frozenset(kinds[name]), pl.String()) for name in self.kinds}
        self._sheet.frame(types).write_ipc(self._arrow)
        super().__init__(self._arrow, self._shown, "arrow")

    def _chunk(self, frame: pl.DataFrame) -> FrameChunk:
        return _ExcelChunk(self.name, frame)


def sheet_texts(path: Path) -> pl.DataFrame:
    """Return the first sheet of a workbook with all cells as text. Raises InputError."""
    sheet = _Sheet(path, path.name, None)
    return sheet.frame(dict.fromkeys(sheet.kinds(), pl.String()))


class _ExcelChunk(FrameChunk):
    """Consecutive rows of a sheet."""

    def rows(self, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return rows of Python values: 3 where a float is whole, a date where a datetime is at midnight."""
        rows = super().rows(columns)
        if not any(isinstance(self._frame.schema[name], pl.Float64 | pl.Datetime) for name in columns):
            return rows
        return [tuple(map(_plain, row)) for row in rows]


def _plain(value: Any) -> Any:  # noqa: ANN401  (a cell)
    """Return a cell's value as a prompt shows it."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if isinstance(value, datetime):
        if value.date() == _DAY_ZERO:
            return value.time()
        if value.time() == time():
            return value.date()
    return value


class _Sheet:
    """The cells of a sheet, each as text, number, boolean and moment, of which those are null that it is not."""

    def __init__(self, path: Path, name: str, sheet: str | None) -> None:
        self._name = name
        try:
            import fastexcel  # noqa: PLC0415  (an extra)
        except ImportError:
            raise InputError(f"{name}: {MISSING_READER}") from None
        try:
            reader = fastexcel.read_excel(path)
            index = self._index(reader, sheet)
            self._texts = self._loaded(reader, index, "string")
            self._floats = self._loaded(reader, index, "float")
            self._booleans = self._loaded(reader, index, "boolean")
            self._moments = self._loaded(reader, index, "datetime")
            self._spans = {
                number: spans
                for number, moments in enumerate(self._moments)
                if (spans := _spans(reader, index, number, moments)) is not None
            }
        except (fastexcel.FastExcelError, pl.exceptions.PolarsError) as error:
            problem = f"can't be read as an Excel workbook ({short(error)}): save it again as .xlsx"
            raise InputError(f"{name}: {problem}") from None
        self._columns = self._named()

    def _index(self, reader: "ExcelReader", sheet: str | None) -> int:
        """Return the number of the sheet: the named one, else the first that is not hidden."""
        names = reader.sheet_names
        if sheet is None:
            shown = (number for number in range(len(names)) if reader.load_sheet(number, n_rows=0).visible == "visible")
            return next(shown, 0)
        if sheet not in names:
            known = did_you_mean(sheet, names) or f"; it has {', '.join(names)}"
            raise InputError(f'input.sheet: {self._name} has no sheet "{sheet}"{known}')
        return names.index(sheet)

    def _loaded(self, reader: "ExcelReader", index: int, kind: Any) -> list[pl.Series]:  # noqa: ANN401  (fastexcel's names)
        columns = pl.DataFrame(reader.load_sheet(index, header_row=None, dtypes=kind)).get_columns()
        if kind != "string":
            return columns
        # A formula that shows nothing is an empty cell for people.
        return [texts.set(texts == "", None) for texts in columns]

    def _named(self) -> dict[str, int]:
        """Return the columns' numbers by name. Raises InputError where the first row does not name them."""
        found: dict[str, int] = {}
        for number, texts in enumerate(self._texts):
            name = next(iter(texts), None) or ""
            if not name and texts.null_count() == len(texts):
                continue  # cells that are only formatted
            if not name and name in found:
                both = f"{_letters(found[name])} and {_letters(number)}"
                raise InputError(
                    f"{self._name}: columns {both} have no name in the first row; delete the rows above the header, or "
                    "name the columns"
                )
            if name in found:
                raise InputError(f'{self._name}: column "{name}" occurs twice; rename one')
            found[name] = number
        if not found:
            raise InputError(f"{self._name}: the sheet is empty; its first row must name the columns")
        named = pl.DataFrame([self._texts[number].alias(name) for name, number in found.items()])
        self._is_row = named.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
        self._is_row[0] = False  # the header
        return found

    def _masks(self, number: int) -> dict[str, pl.Series]:
        """Return which rows of a column hold which kind of cell."""
        texts, floats, booleans = (
            cells[number].filter(self._is_row) for cells in (self._texts, self._floats, self._booleans)
        )
        moments = self._moments[number].filter(self._is_row)
        truth = booleans.is_not_null() & texts.is_in(["true", "false"])
        numeric = floats.is_not_null() & booleans.is_not_null() & ~truth
        is_moment = moments.is_not_null() & floats.is_null() & booleans.is_null()
        whole = (floats == floats.floor()) & (floats.abs() < _EXACT)
        is_time = moments.dt.date() == _DAY_ZERO
        midnight = moments.dt.time() == time()
        span = pl.repeat(number in self._spans, len(texts), dtype=pl.Boolean, eager=True)
        masks = {
            "boolean": truth,
            "whole": numeric & whole,
            "float": numeric & ~whole,
            "span": is_moment & span,
            "time": is_moment & ~span & is_time,
            "date": is_moment & ~span & ~is_time & midnight,
            "datetime": is_moment & ~span & ~is_time & ~midnight,
            "text": texts.is_not_null() & ~truth & ~numeric & ~is_moment,
        }
        return {kind: mask.fill_null(value=False) for kind, mask in masks.items()}

    def kinds(self) -> dict[str, list[str]]:
        """Return the kinds of cells that each column holds, by name."""
        return {
            name: [kind for kind, mask in self._masks(number).items() if mask.any()]
            for name, number in self._columns.items()
        }

    def frame(self, types: Mapping[str, pl.DataType]) -> pl.DataFrame:
        """Return the rows with the types of their columns."""
        return pl.DataFrame({name: self._typed(number, types[name]) for name, number in self._columns.items()})

    def _typed(self, number: int, dtype: pl.DataType) -> pl.Series:
        def rows(cells: Sequence[pl.Series]) -> pl.Series:
            return cells[number].filter(self._is_row)

        if isinstance(dtype, pl.Boolean):
            return rows(self._booleans)
        if isinstance(dtype, pl.Int64 | pl.Float64):
            return rows(self._floats).cast(dtype)
        if isinstance(dtype, pl.Date):
            return rows(self._moments).dt.date()
        if isinstance(dtype, pl.Time):
            return rows(self._moments).dt.time()
        if isinstance(dtype, pl.Datetime):
            return rows(self._moments).cast(dtype)
        return self._as_text(number)

    def _as_text(self, number: int) -> pl.Series:
        """Return a column as text, each cell as a prompt would show it in a column of its own type."""
        masks = self._masks(number)
        texts = self._texts[number].filter(self._is_row)
        others = [
            (self._floats[number], masks["whole"] | masks["float"]),
            (self._moments[number], masks["time"] | masks["date"] | masks["datetime"]),
        ]
        if number in self._spans:
            others.append((self._spans[number], masks["span"]))
        for cells, mask in others:
            if mask.any():
                shown = cells.filter(self._is_row).map_elements(_shown, return_dtype=pl.String)
                texts = shown.zip_with(mask, texts)
        return texts


def _spans(reader: "ExcelReader", index: int, number: int, moments: pl.Series) -> pl.Series | None:
    """Return a column as time spans, None unless all of its cells are such: only then Excel's format is known."""
    if not (moments < _SUSPECT).any():
        return None
    import fastexcel  # noqa: PLC0415  (an extra)

    try:
        column = reader.load_sheet(index, header_row=None, skip_rows=1, use_columns=[number], schema_sample_rows=None)
    except fastexcel.UnsupportedColumnTypeCombinationError:
        return None
    if not isinstance(pl.DataFrame(column).to_series().dtype, pl.Duration):
        return None
    return pl.DataFrame(reader.load_sheet(index, header_row=None, use_columns=[number], dtypes="duration")).to_series()


def _shown(value: float | datetime | timedelta) -> str:
    """Return a cell as text; a time span as Excel shows it: 30:05:00."""
    if not isinstance(value, timedelta):
        return str(_plain(value))
    minutes, seconds = divmod(round(value.total_seconds()), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"


def _letters(number: int) -> str:
    """Return the letters of a column (from 0) as Excel shows them: A, Z, AA."""
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters
