"""Files to batches of rows: CSV, TSV, JSON Lines, Parquet and Arrow, in file order, in flat memory.

A row is a tuple of Python values for the
prompt; frames are made only for `where` and the output. A datetime with an offset in a CSV file becomes UTC.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from batchrun.errors import InputError
from batchrun.job import Input
from batchrun.table.columnar import FrameChunk, TableFile, unreadable_in_a_prompt
from batchrun.table.excel import ExcelFile
from batchrun.table.files import FileStamp, check_binary, expand, kind_of, shown_name, stamp
from batchrun.table.json_array import JsonFile
from batchrun.table.text import CsvFile, JsonLinesFile, TextChunk
from batchrun.table.values import JsonType
from batchrun.table.where import Where

# Polars reads eight row groups of a Parquet file ahead and more, which may be 200 MB and brings nothing here.
os.environ.setdefault("POLARS_ROW_GROUP_PREFETCH_SIZE", "1")

BATCH_ROWS = 10_000
"""Rows that are read, rendered and looked up at a time."""

OFFSET_ROWS = 50_000
"""Rows between two byte offsets of a text file that the plan keeps."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive rows. `position` (from 0) is the first one's place in the input; `asked` is the mask of `where`."""

    position: int
    rows: list[tuple[Any, ...]]
    asked: list[bool] | None


@dataclass(slots=True)
class Layout:
    """What reading the whole input has shown, so that it need not be read for it again.

    `columns` are the types that depend on values, by name; `starts` the position of each file's first row; `offsets`
    are (position, byte offset) of rows in text files, in order.
    """

    options: str = ""
    columns: dict[str, Any] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)

    def text(self) -> str:
        """Return the layout as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> "Layout":
        """Return the layout that `text` wrote."""
        return cls(**json.loads(text))


Chunk = TextChunk | FrameChunk
Source = CsvFile | JsonLinesFile | TableFile


@contextmanager
def open_rows(
    input: Input,  # noqa: A002  (the job file's word)
    folder: Path,
    known: Mapping[tuple[FileStamp, ...], str] | None = None,
) -> Iterator["Rows"]:
    """Open the input's files and check their columns.

    `known` maps the stamps of files that were read before to the text of their layout. Raises InputError with file,
    line and the option to set.
    """
    paths = expand(input, folder)
    stamps = stamp(paths)
    layout = Layout(repr((input.csv, input.sheet)))
    if known and stamps in known:
        read_before = Layout.of(known[stamps])
        if read_before.options == layout.options:
            layout = read_before
    with tempfile.TemporaryDirectory(prefix="batchrun-", ignore_cleanup_errors=True) as temporary:
        files = [_source(path, input, folder, Path(temporary)) for path in paths]
        sources, schema = _settled(files, layout)
        yield Rows(sources, schema, stamps, input.where, layout)


class Rows:
    """The rows of all input files, in order. `schema` has each column's type in the output: text for Null."""

    def __init__(
        self,
        sources: Sequence[Source],
        schema: Mapping[str, pl.DataType],
        files: tuple[FileStamp, ...],
        where: str | None,
        layout: Layout,
    ) -> None:
        self._sources = sources
        self.files = files
        self.layout = layout
        self.schema = _with_text(schema)
        self.columns = tuple(self.schema)
        self._where = Where(where, schema) if where is not None else None

    def has_rows_of(self, other: "Rows") -> bool:
        """Check whether both read the same files in the same way, so that a position is the same row."""
        return self.files == other.files and self.layout.options == other.layout.options

    @property
    def paths(self) -> list[Path]:
        """The paths of the files."""
        return [Path(file.path) for file in self.files]

    def batches(self, columns: Sequence[str] | None = None, start: int = 0, size: int | None = None) -> Iterator[Batch]:
        """Yield batches of at most `size` rows from row `start`: tuples of Python values in the order of `columns`.

        Raises InputError for a column that no prompt can show, for a cell that does not fit its type and for a
        condition that fails on a row.
        """
        names = self._named(columns)
        for name in names:
            if problem := unreadable_in_a_prompt(self.schema[name]):
                raise InputError(f'column "{name}" {problem}')
        where, needed = self._where, names
        if where is not None:
            needed = list(dict.fromkeys([*names, *where.columns]))
        for position, chunk in self._chunks(needed, start, size or BATCH_ROWS):
            rows = chunk.rows(names)
            yield Batch(position, rows, None if where is None else where.mask(chunk.frame(where.columns)))

    def frames(self, columns: Sequence[str] | None, size: int) -> Iterator[pl.DataFrame]:
        """Yield all rows as frames of at most `size` rows, for the output. Raises InputError as `batches` does."""
        names = self._named(columns)
        for _, chunk in self._chunks(names, 0, size):
            yield chunk.frame(names)

    def _named(self, columns: Sequence[str] | None) -> list[str]:
        return list(self.columns if columns is None else columns)

    def prove(self, columns: Sequence[str]) -> None:
        """Read columns of Parquet and Arrow files that no prompt reads. Raises InputError where that fails."""
        for source in self._sources:
            if isinstance(source, TableFile):
                for _ in source.read(columns, 0, BATCH_ROWS, (0, 0)):
                    pass

    def _chunks(self, columns: Sequence[str], start: int, size: int) -> Iterator[tuple[int, Chunk]]:
        """Yield chunks with the position of their first row; note the layout where all rows are read."""
        starts, offsets = self.layout.starts, self.layout.offsets
        new_starts: list[int] = []
        new_offsets: list[tuple[int, int]] = []
        position = 0
        for number, source in enumerate(self._sources):
            if start > position and number + 1 < len(self._sources):
                end = starts[number + 1] if starts else position + _height(source, start - position)
                if end <= start:
                    position = end
                    continue
            new_starts.append(position)
            first, row = position, max(0, start - position)
            before = [(mark[0] - first, mark[1]) for mark in offsets if first <= mark[0] <= start]
            mark = before[-1] if before else (0, 0)
            position += row
            noted = position
            for chunk in source.read(columns, row, size, mark):
                yield position, chunk
                position += chunk.height
                if chunk.offset is not None and position - noted >= OFFSET_ROWS:
                    new_offsets.append((position, chunk.offset))
                    noted = position
        if start == 0 and not starts:
            self.layout.starts, self.layout.offsets = new_starts, new_offsets


def _height(source: Source, enough: int) -> int:
    """Count the rows of a file; a text file is read no further than row `enough`, beyond which one is added."""
    if isinstance(source, TableFile):
        return source.height()
    height = 0
    for chunk in source.read((), 0, BATCH_ROWS, (0, 0)):
        height += chunk.height
        if height > enough:
            break
    return height


def _source(path: Path, job_input: Input, folder: Path, temporary: Path) -> Source:
    kind = kind_of(path)
    name = shown_name(path, folder)
    check_binary(path, name)
    if kind == "excel":
        return ExcelFile(
            _utf8_path(path, temporary), name, job_input.sheet, Path(tempfile.mkdtemp(dir=temporary)) / "rows.arrow"
        )
    if job_input.sheet is not None:
        raise InputError(f"input.sheet: {name} is not an Excel workbook: remove it")
    if kind == "csv":
        return CsvFile(path, name, job_input.csv)
    if kind == "jsonl":
        return JsonLinesFile(path, name)
    if kind == "json":
        return JsonFile(path, name, Path(tempfile.mkdtemp(dir=temporary)) / "rows.jsonl")
    return TableFile(_utf8_path(path, temporary), name, kind)


def _utf8_path(path: Path, temporary: Path) -> Path:
    """Return a path that libraries in Rust can open: a link in a private folder where the file's name is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        link = temporary / f"{sum(1 for _ in temporary.iterdir())}{path.suffix}"
        link.symlink_to(path.absolute())
        return link
    return path


def _settled(files: Sequence[Source], layout: Layout) -> tuple[list[Source], dict[str, pl.DataType]]:
    """Return the files that have columns, with their common schema."""
    json_files = [file for file in files if isinstance(file, JsonLinesFile)]
    tables = [file for file in files if isinstance(file, TableFile)]
    _settle_sheets([file for file in files if isinstance(file, ExcelFile)])
    if not layout.columns:
        layout.columns = _types_by_value(json_files, tables)
    types = {name: _dtype(written) for name, written in layout.columns.items()}
    for lines in json_files:
        lines.schema = types
    for table in tables:
        table.settle(types)
    sources = [file for file in files if file.schema]
    if not sources:
        raise InputError(f"{files[0].name}: {_why_without_columns(files, json_files)}")
    schema = _common_schema(sources)
    for lines in json_files:
        lines.schema = _with_text(schema)
    for table in tables:
        table.settle(_with_text(schema))
    return sources, schema


def _common_schema(sources: Sequence[Source]) -> dict[str, pl.DataType]:
    """Return the columns that all files have, in the order of the first. Raises InputError where one differs.

    A column without any value has the type that it has in another file, and Null where no file has a value: pandas
    writes such a column so, and in JSON and Excel nothing says what it would hold.
    """
    first = sources[0]
    schema = dict(first.schema)
    for source in sources[1:]:
        extra = [name for name in source.schema if name not in first.schema]
        missing = [name for name in first.schema if name not in source.schema]
        if extra or missing:
            change = ", ".join([f'"{name}" is new' for name in extra] + [f'"{name}" is missing' for name in missing])
            raise InputError(f"{source.name}: its columns are not those of {first.name}: {change}")
        for name, dtype in source.schema.items():
            if isinstance(schema[name], pl.Null):
                schema[name] = dtype
            elif not isinstance(dtype, pl.Null) and dtype != schema[name]:
                other = _words(schema[name])
                message = f'{source.name}: column "{name}" is {_words(dtype)}, but {other} in {first.name}'
                raise InputError(f"{message}; give it one type in all files (input.csv.columns for CSV)")
    return schema


def _with_text(schema: Mapping[str, pl.DataType]) -> dict[str, pl.DataType]:
    """Return the schema with text in place of Null."""
    nulls = [name for name, dtype in schema.items() if isinstance(dtype, pl.Null)]
    return {**schema, **dict.fromkeys(nulls, pl.String())}


def _words(dtype: pl.DataType) -> str:
    """Return a type as people call it; a rarer one as Polars does."""
    words = {"String": "text", "Int64": "whole numbers", "Float64": "numbers", "Boolean": "true or false"}
    return words.get(str(dtype), str(dtype))


def _settle_sheets(sheets: Sequence[ExcelFile]) -> None:
    """Make a column one type in all sheets: one file's column may be empty or whole where another's is not."""
    kinds: dict[str, set[type]] = {}
    for sheet in sheets:
        for name, found in sheet.kinds.items():
            kinds.setdefault(name, set()).update(found)
    for sheet in sheets:
        sheet.settle_kinds(kinds)


def _why_without_columns(files: Sequence[Source], json_files: Sequence[JsonLinesFile]) -> str:
    if any(isinstance(file, CsvFile) and file.passes_over_lines for file in files):
        return "no line is left to name the columns: lower input.csv.skip, or change input.csv.comment"
    if not json_files:
        return "the file is empty; its first line must name the columns"
    if any(file.has_rows for file in json_files):
        return "its objects have no fields"
    return "the file is empty, so it names no columns; input.path needs at least one line"


def _types_by_value(json_files: Sequence[JsonLinesFile], tables: Sequence[TableFile]) -> dict[str, Any]:
    """Read the columns whose types depend on their values, and return these types as JSON."""
    found: dict[str, JsonType] = {}
    for file in json_files:
        file.add_types(found)
    types = {name: pl.Null() if kind.is_empty else kind.dtype() for name, kind in found.items()}
    for table in tables:
        for name, is_text in table.binary_texts().items():
            if not is_text:
                types[name] = pl.Binary()
            types.setdefault(name, pl.String())
    return {name: _written(dtype) for name, dtype in types.items()}


def _written(dtype: pl.DataType) -> Any:  # noqa: ANN401  (JSON)
    """Return the type of a JSON column as JSON."""
    if isinstance(dtype, pl.List):
        return [_written(dtype.inner)]  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return {part.name: _written(part.dtype) for part in dtype.fields}  # type: ignore[arg-type]
    return str(dtype)


def _dtype(written: Any) -> pl.DataType:  # noqa: ANN401  (JSON)
    if isinstance(written, list):
        return pl.List(_dtype(written[0]))
    if isinstance(written, dict):
        return pl.Struct({name: _dtype(part) for name, part in written.items()})
    return _SCALARS[written]


_SCALARS = {
    str(dtype): dtype for dtype in (pl.String(), pl.Int64(), pl.Float64(), pl.Boolean(), pl.Binary(), pl.Null())
}
