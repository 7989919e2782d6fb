"""Text files to columns of Python values: CSV through csv.reader, JSON Lines through json, line by line.

What a line holds depends on that line alone. A CSV cell is text exactly as written, unless `csv.columns` types it; an
empty cell and "" are null. A JSON number prints as it is written. A flaw is found where it stands by reading the file
again, slowly, from its start.
"""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

from batchrun.errors import InputError, did_you_mean
from batchrun.job import CsvOptions
from batchrun.records import JsonRow
from batchrun.table.files import (
    BLOCK_BYTES,
    COMPRESSED,
    READ_PROBLEMS,
    check_text,
    encoding_of,
    open_bytes,
    read_start,
    unreadable,
)
from batchrun.table.values import CSV_KINDS, CsvKind, JsonType, add_fields, as_type, json_object
from batchrun.table.where import PROBLEMS

LONGEST_CELL = 1 << 28
"""Characters; an unclosed quote swallows no more of a file than this."""

KEPT = 1 << 26
"""Bytes, about; a file that takes no more as Python values is parsed once for plan, questions and output.

csv.reader takes 5 µs for a row of 450 bytes each time: parsed once, a row costs 13 % fewer instructions.
"""

_VALUE = 64
"""Bytes that Python adds to each row and value, about."""

_BATCH = 10_000
_DIALECT = "set input.csv.quote (null: quotes are text)"
_ASCII = bytes(range(128))


@dataclass(frozen=True, slots=True)
class TextChunk:
    """Consecutive rows of a text file by column; `offset` is where the next row begins, None where it is unknown."""

    values: dict[str, list[Any]]
    height: int
    offset: int | None
    schema: dict[str, pl.DataType]
    objects: Sequence[dict[str, Any]] = ()
    """The objects of the rows, where they are JSON."""

    def rows(self, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return rows of Python values; a JsonRow where an object has other fields than the file has columns."""
        if not columns:
            return [()] * self.height
        rows: list[tuple[Any, ...]] = list(zip(*(self.values[name] for name in columns), strict=True))
        everything = tuple(self.schema)
        for index, found in enumerate(self.objects):
            if (fields := tuple(found)) != everything:
                rows[index] = JsonRow(rows[index], fields)
        return rows

    def frame(self, columns: Sequence[str]) -> pl.DataFrame:
        """Return the rows with the types of the columns."""
        if not columns:
            return pl.DataFrame(height=self.height)
        return pl.DataFrame({name: self._series(name, self.schema[name]) for name in columns})

    def _series(self, name: str, dtype: pl.DataType) -> pl.Series:
        values = self.values[name]
        try:
            if not isinstance(dtype, (pl.Int64, pl.Boolean, pl.Date, pl.Datetime)) and not (
                isinstance(dtype, pl.String) and set(map(type, values)) <= _TEXTS
            ):
                values = [as_type(value, dtype) for value in values]
            return pl.Series(name, values, dtype=dtype)
        except (*PROBLEMS, TypeError, OverflowError, AttributeError):
            # A line of JSON that was written after the types were read: "n/a" where all were numbers.
            raise InputError(f'column "{name}" holds other values than before: the file changed') from None


_TEXTS = {str, type(None)}

_Parsed = tuple[list[Any], int | None]
"""Consecutive rows as they are parsed, and the byte offset behind them, None where it is unknown."""


class Lines:
    """The lines of a text file from a byte offset on, with their ends."""

    def __init__(self, path: Path, name: str, encoding: str, *, in_bytes: bool, offset: int = 0) -> None:
        self._path, self._name, self._encoding, self._in_bytes = path, name, encoding, in_bytes
        self._start = offset
        self._block: list[bytes] = []
        self._before = (0, 0)  # lines and bytes before the block

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._blocks())

    def offset(self, lines: int) -> int | None:
        """Return the byte offset behind the first `lines` lines, of which the last one was just taken."""
        if not self._in_bytes or self._path.suffix.lower() in COMPRESSED:
            return None
        before, start = self._before
        return start + sum(map(len, self._block[: lines - before]))

    def _blocks(self) -> Iterator[Iterable[str]]:
        with open_bytes(self._path, self._name) as file:
            try:
                if not self._in_bytes:
                    with io.TextIOWrapper(file, self._encoding, newline="") as text:
                        yield text
                    return
                file.seek(self._start)
                lines, start = 0, self._start
                while block := file.readlines(BLOCK_BYTES):
                    self._block, self._before = block, (lines, start)
                    # Line by line, so that each line's length in bytes is known for the offsets.
                    if start == 0 and block[0].startswith(codecs.BOM_UTF8):
                        yield map(str, [block[0][3:], *block[1:]], repeat(self._encoding))
                    else:
                        yield map(str, block, repeat(self._encoding))
                    lines, start = lines + len(block), start + sum(map(len, block))
            except READ_PROBLEMS as error:
                raise unreadable(self._name, error) from None


class TextFile:
    """What CSV and JSONL files have in common: their lines."""

    def __init__(self, path: Path, name: str, encoding: str) -> None:
        check_text(path, name)
        self.path, self.name = path, name
        start = read_start(path, name, BLOCK_BYTES)
        self.encoding = encoding_of(start, encoding)
        first_end = re.search(rb"\r\n|\r|\n", start)
        # Old Mac files end lines with \r alone, and reading bytes by lines would take such a file whole.
        lone_returns = first_end is not None and first_end[0] == b"\r"
        # Only where a line feed is one byte and never part of another character do lines have byte offsets.
        self._in_bytes = _is_ascii_like(self.encoding) and not lone_returns
        self._kept: list[Any] | None = None
        self._room = 0 if path.suffix.lower() in COMPRESSED else KEPT - path.stat().st_size

    def _once(self, batches: Iterator["_Parsed"], start: int, size: int) -> Iterator["_Parsed"]:
        """Yield batches of parsed rows from row `start` on; those of a small file are kept once all were read."""
        if self._kept is not None:
            yield from ((self._kept[first : first + size], None) for first in range(start, len(self._kept), size))
            return
        rows: list[Any] = []
        room = self._room if start == 0 else 0
        for batch, offset in batches:
            yield batch, offset
            room -= sum(map(len, batch), len(batch)) * _VALUE
            if room > 0:
                rows += batch
            else:
                rows.clear()
        if room > 0:
            self._kept = rows

    def _lines(self, offset: int = 0) -> Lines:
        return Lines(self.path, self.name, self.encoding, in_bytes=self._in_bytes, offset=offset)

    def _changed(self) -> NoReturn:
        raise InputError(f"{self.name}: changed while it was read; run again")

    def _fail(self, line: int, problem: str) -> NoReturn:
        raise InputError(f"{self.name}:{line}: {problem}")


class CsvFile(TextFile):
    """A CSV or TSV file. `columns` are its names in order, none where the file is empty."""

    def __init__(self, path: Path, name: str, options: CsvOptions) -> None:
        """Read the header. Raises InputError with file, line and the option to set."""
        self._separator = options.separator or ("\t" if ".tsv" in path.name.lower() else ",")
        self._quote, self._has_header = options.quote, options.header
        super().__init__(path, name, options.encoding)
        self._types = {column: CSV_KINDS[kind] for column, kind in options.columns.items() if kind != "string"}
        self._nulls = frozenset(("", *options.null_values))
        self._guess = options.separator is None
        self._above, self._comment = options.skip, options.comment
        self._skip = 0  # records before the first row: blank lines and the header
        self.columns = self._header()
        for column in options.columns if self.columns else ():
            if column not in self.columns:
                raise InputError(
                    f'input.csv.columns: {name} has no column "{column}"{did_you_mean(column, self.columns)}'
                )
        self.schema = {column: CSV_KINDS[options.columns.get(column, "string")].dtype for column in self.columns}

    @property
    def passes_over_lines(self) -> bool:
        """Whether lines of the file are passed over by the job's own options."""
        return bool(self._above or self._comment) and self.path.stat().st_size > 0

    def read(self, columns: Sequence[str], start: int, size: int, mark: tuple[int, int]) -> Iterator[TextChunk]:
        """Yield the rows from `start` on, at most `size` at a time; declared columns are checked even if not wanted.

        `mark` is a row at or before `start` with its byte offset. Raises InputError with the line of a flaw.
        """
        row = start
        names = self.columns
        places = {name: names.index(name) for name in dict.fromkeys([*columns, *self._types])}
        for batch, offset in self._once(self._parsed(start, size, mark), start, size):
            cells = {name: self._cells(batch, place) for name, place in places.items()}
            for name, kind in self._types.items():
                cells[name] = self._typed(name, kind, cells[name], row)
            yield TextChunk(cells, len(batch), offset, self.schema)
            row += len(batch)

    def _parsed(self, start: int, size: int, mark: tuple[int, int]) -> Iterator[_Parsed]:
        row, offset = mark
        lines = self._lines(offset)
        plain = self._comment is None and (offset or not self._above)
        reader = self._reader(lines) if plain else self._numbered(lines, at_start=offset == 0)
        try:
            records = self._records(reader, at_start=offset == 0)
            while row < start and (passed := sum(1 for _ in islice(records, min(_BATCH, start - row)))):
                row += passed
            while batch := list(islice(records, size)):
                # csv.reader takes lines of any width: an unclosed quote or a comma in a text moves cells silently.
                if set(map(len, batch)) != {len(self.columns)}:
                    self._explain()
                yield batch, lines.offset(reader.line_num)
        except (csv.Error, UnicodeError):
            self._explain()

    def _reader(self, lines: Iterable[str]) -> Any:  # noqa: ANN401  (csv's reader has no public type)
        csv.field_size_limit(LONGEST_CELL)  # csv's own limit is 131,072, and a scraped page is longer
        if self._quote is None:
            return csv.reader(lines, delimiter=self._separator, quoting=csv.QUOTE_NONE, strict=True)
        return csv.reader(lines, delimiter=self._separator, quotechar=self._quote, strict=True)

    def _numbered(self, lines: Iterable[str], *, at_start: bool = True) -> "_Numbered":
        return _Numbered(lines, self._reader, self._above if at_start else 0, self._comment)

    def _records(self, reader: Iterator[list[str]], *, at_start: bool) -> Iterator[list[str]]:
        """Return the records that are rows: an empty line is none, except that it is a null in a single column."""
        rows = islice(reader, self._skip, None) if at_start else reader
        if len(self.columns) == 1:
            return (record or [""] for record in rows)
        return filter(None, rows)

    def _cells(self, batch: list[list[str]], place: int) -> list[Any]:
        nulls = self._nulls
        if len(nulls) == 1:
            return [record[place] or None for record in batch]
        return [None if cell in nulls else cell for cell in map(itemgetter(place), batch)]

    def _typed(self, name: str, kind: CsvKind, cells: list[Any], row: int) -> list[Any]:
        values: list[Any] = []
        try:
            for cell in cells:
                values.append(None if cell is None else kind.parse(cell))
        except (ValueError, OverflowError):
            problem = (
                f'column "{name}": "{cell:.50}" is not {kind.words}: fix it, '
                "add it to input.csv.null_values, or declare the column as string"
            )
            self._fail(self._line_of(row + len(values)), problem)
        return values

    def _header(self) -> tuple[str, ...]:
        """Take the columns' names from the first record, or number them."""
        reader = self._numbered(self._lines())
        try:
            for record in reader:
                if record:
                    break
                self._skip += 1
            else:
                return ()
        except (csv.Error, UnicodeError) as error:
            self._refuse(error, reader.begin, reader.line_num)
        line = reader.begin
        if any("\0" in cell for cell in record):
            self._fail(line, "NUL bytes in the first line; set input.csv.encoding (utf-16?) if this is a text file")
        if not self._has_header:
            return tuple(f"column_{number}" for number in range(1, len(record) + 1))
        self._skip += 1
        self._check_header(record, line)
        return tuple(record)

    def _check_header(self, names: list[str], line: int) -> None:
        """Refuse a first line that names no columns, or one that is split at the wrong character."""
        first = self._separator.join(names)
        if self._guess and (match := re.fullmatch(r"sep=(.?)", first.strip(), re.IGNORECASE)):
            other = match[1] or self._separator
            self._fail(
                line, f'"sep={other}" is a note for Excel: delete this line and set input.csv.separator: "{other}"'
            )
        if self._guess and len(names) == 1:
            for other, shown in ((";", ";"), ("\t", "\\t"), ("|", "|")):
                # "id;name" is two columns, "Please describe; be brief" one.
                if other in first and first.count(other) >= first.count(" "):
                    self._fail(line, f'the only column is "{first:.60}": set input.csv.separator: "{shown}"')
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice == [""]:
            self._fail(
                line, "several columns have no name; name them, or set input.csv.skip: N for N lines above the header"
            )
        if twice:
            self._fail(line, f'column "{twice[0]}" occurs twice; rename one, or set input.csv.header: false')

    def _explain(self) -> NoReturn:
        """Read from the start, one record after the other, and raise InputError for the first flaw."""
        reader = self._numbered(self._lines())
        width, number = len(self.columns), 0
        try:
            for record in reader:
                number += 1
                if number > self._skip and record and len(record) != width:
                    where = "header" if self._has_header else "first line"
                    advice = "fix the line, or set input.csv.separator or input.csv.quote"
                    cells = f"{len(record)} cell{'s' * (len(record) != 1)}"
                    self._fail(reader.begin, f"{cells} where the {where} has {width}; {advice}")
        except (csv.Error, UnicodeError) as error:
            self._refuse(error, reader.begin, reader.line_num)
        self._changed()

    def _refuse(self, error: Exception, line: int, read: int) -> NoReturn:
        """Raise InputError for a record that begins on `line`, where `read` lines were taken."""
        if isinstance(error, UnicodeDecodeError) and self._in_bytes:
            self._fail(read + 1, _bad_bytes(error))
        if isinstance(error, UnicodeError):  # no byte is wrong, but the whole is not such text
            raise InputError(f"{self.name}: not {self.encoding} ({error}); set input.csv.encoding (utf-16-le, …)")
        text = str(error)
        if "expected after" in text:
            problem = "text follows the closing quote of a cell; double the quotes inside the cell, or " + _DIALECT
        elif "field larger" in text:
            problem = f"a cell is longer than {LONGEST_CELL:,} characters; is a quote unclosed? Close it, or {_DIALECT}"
        elif "new-line" in text:
            problem = "a carriage return inside an unquoted cell; quote the cell, or save the file with one line end"
        else:
            problem = "a quote opens a cell and is never closed; close it, or " + _DIALECT
        self._fail(line, problem)

    def _line_of(self, row: int) -> int:
        """Return the line (from 1) on which a row (from 0) begins."""
        reader = self._numbered(self._lines())
        for number, record in enumerate(reader):
            if number >= self._skip and (record or len(self.columns) == 1):
                if row == 0:
                    break
                row -= 1
        return reader.begin


class _Numbered:
    """Records with the line (from 1) on which the last one begins; passes over `skip` lines and comments."""

    def __init__(
        self,
        lines: Iterable[str],
        reader: Callable[[Iterable[str]], Iterator[list[str]]],
        skip: int,
        comment: str | None,
    ) -> None:
        self._place = _Place()
        self._reader = reader(_wanted(lines, self._place, skip, comment))

    @property
    def line_num(self) -> int:
        """The number of lines that were taken."""
        return self._place.line

    @property
    def begin(self) -> int:
        """The line on which the last record begins."""
        return self._place.begin

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        self._place.is_first = True
        return next(self._reader)


@dataclass(slots=True)
class _Place:
    """Where a file is read. It knows neither reader nor lines: in a cycle of references a file would stay open."""

    line: int = 0
    begin: int = 1
    is_first: bool = True


def _wanted(lines: Iterable[str], place: _Place, skip: int, comment: str | None) -> Iterator[str]:
    """Yield the lines of records: the first one of a record may be a comment, a later one is part of a cell."""
    for line in lines:
        place.line += 1
        if place.is_first:
            if place.line <= skip or (comment is not None and line.startswith(comment)):
                continue
            place.is_first, place.begin = False, place.line
        yield line


class JsonLinesFile(TextFile):
    """A JSON Lines file: one object a line."""

    def __init__(self, path: Path, name: str) -> None:
        """Open the file. Raises InputError."""
        super().__init__(path, name, "utf-8")
        self.schema: dict[str, pl.DataType] = {}
        self.has_rows = False

    def read(self, columns: Sequence[str], start: int, size: int, mark: tuple[int, int]) -> Iterator[TextChunk]:
        """Yield the rows from `start` on, at most `size` at a time; a missing field is null.

        `mark` is a row at or before `start` with its byte offset. Raises InputError with the line of a flaw.
        """
        for rows, offset in self._once(self._parsed(start, size, mark), start, size):
            values = {name: [fields.get(name) for fields in rows] for name in columns}
            yield TextChunk(values, len(rows), offset, self.schema, rows)

    def _parsed(self, start: int, size: int, mark: tuple[int, int]) -> Iterator[_Parsed]:
        row, offset = mark
        lines = self._lines(offset)
        for texts, taken in self._texts(lines, size):
            passed = min(len(texts), max(0, start - row))
            row += passed
            if rows := self._values(texts[passed:]):
                yield rows, lines.offset(taken)
                row += len(rows)

    def add_types(self, types: dict[str, "JsonType"]) -> None:
        """Add what each field holds in the whole file, in the order of their first lines. Raises InputError."""
        for texts, _ in self._texts(self._lines(), _BATCH):
            rows = self._values(texts)
            self.has_rows = self.has_rows or bool(rows)
            add_fields(types, rows)

    def _texts(self, lines: Lines, size: int) -> Iterator[tuple[list[str], int]]:
        """Yield lines that are not blank, and how many lines were taken for them so far."""
        taken = 0
        source = iter(lines)
        try:
            while block := list(islice(source, size)):
                taken += len(block)
                yield [text for line in block if (text := line.strip())], taken
        except UnicodeError:
            self._explain()

    def _values(self, texts: list[str]) -> list[dict[str, Any]]:
        try:
            return list(map(json_object, texts))
        except (ValueError, RecursionError):
            self._explain()

    def _explain(self) -> NoReturn:
        """Read from the start, one line after the other, and raise InputError for the first flaw."""
        number = 0
        try:
            for line in self._lines():
                number += 1
                if line.strip():
                    json_object(line.strip())
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            self._fail(number + 1, f"byte 0x{byte:02x} is not UTF-8, which JSONL must be; convert the file")
        except (ValueError, RecursionError) as error:
            problem = str(error).split(":")[0]
            self._fail(number, f"{problem}; a line must hold one JSON object")
        self._changed()


def _is_ascii_like(encoding: str) -> bool:
    """Check whether each byte below 128 is that ASCII character, so that a line feed is always one byte."""
    try:
        return str(_ASCII, encoding) == _ASCII.decode("ascii")
    except UnicodeError:
        return False


def _bad_bytes(error: UnicodeDecodeError) -> str:
    """Name the wrong byte and guess the encoding: letters stand alone in Western text, in runs elsewhere."""
    after = error.object[error.start + 1 : error.start + 2]
    guess = "cp1252 or latin-1" if after.isascii() else "big5, gb18030, shift_jis or cp1251"
    return f"byte 0x{error.object[error.start]:02x} is not {error.encoding}; set input.csv.encoding ({guess}, …)"
