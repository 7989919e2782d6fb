"""Files to batches of rows: CSV, TSV, JSON Lines, Parquet and Arrow, in file order, in flat memory.

Text files are read line by line (text.py), Parquet and Arrow by Polars. A row is a tuple of Python values for the
prompt; frames are made only for `where` and the output. A datetime with an offset in a CSV file becomes UTC.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from batchrun.errors import InputError
from batchrun.job import Input
from batchrun.table.files import FileStamp, expand, kind_of, stamp
from batchrun.table.text import CsvFile, JsonLinesFile
from batchrun.table.values import JsonType
from batchrun.table.where import PROBLEMS, Where, column_named, short

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


class Chunk(Protocol):
    """Consecutive rows of one file, in whatever form that format comes."""

    @property
    def height(self) -> int:
        """How many rows there are."""

    @property
    def offset(self) -> int | None:
        """The byte offset of the row after them, if known."""

    def rows(self, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return rows of Python values for prompts."""

    def frame(self, columns: Sequence[str]) -> pl.DataFrame:
        """Return the rows with the types of the input's schema."""


class Source(Protocol):
    """One file of the input."""

    name: str
    schema: dict[str, pl.DataType]

    def read(self, columns: Sequence[str], start: int, size: int, mark: tuple[int, int]) -> Iterator[Chunk]:
        """Yield the rows from `start` on; `mark` is a row at or before it, with its byte offset. Raises InputError."""


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
    layout = Layout.of(known[stamps]) if known and stamps in known else Layout()
    if layout.options != repr(input.csv):
        layout = Layout(repr(input.csv))
    with tempfile.TemporaryDirectory(prefix="batchrun-", ignore_cleanup_errors=True) as temporary:
        make = partial(_source, input_=input, folder=folder, temporary=Path(temporary))
        sources, schema = _settled([make(path) for path in paths], layout)
        yield Rows(sources, schema, stamps, input.where, layout)


class Rows:
    """The rows of all input files, in order. `schema` has each column's type in the output."""

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
        self.schema = dict(schema)
        self.columns = tuple(self.schema)
        self._where = Where(where, self.schema) if where is not None else None

    def batches(self, columns: Sequence[str] | None = None, start: int = 0, size: int | None = None) -> Iterator[Batch]:
        """Yield batches of at most `size` rows from row `start`: tuples of Python values in the order of `columns`.

        Raises InputError for a column that no prompt can show, for a cell that does not fit its type and for a
        condition that fails on a row.
        """
        names = list(self.columns if columns is None else columns)
        for name in names:
            if problem := unreadable_in_a_prompt(self.schema[name]):
                raise InputError(f'column "{name}" {problem}')
        needed = dict.fromkeys([*names, *(self._where.columns if self._where else ())])
        for position, chunk in self._chunks(list(needed), start, size or BATCH_ROWS):
            asked = self._where.mask(chunk.frame(self._where.columns)) if self._where else None
            yield Batch(position, chunk.rows(names), asked)

    def frames(self, columns: Sequence[str] | None, size: int) -> Iterator[pl.DataFrame]:
        """Yield all rows as frames of at most `size` rows, for the output. Raises InputError as `batches` does."""
        names = list(self.columns if columns is None else columns)
        for _, chunk in self._chunks(names, 0, size):
            yield chunk.frame(names)

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
            before = [mark for mark in offsets if first <= mark[0] <= start]
            mark = (before[-1][0] - first, before[-1][1]) if before else (0, 0)
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


def _source(path: Path, input_: Input, folder: Path, temporary: Path) -> "CsvFile | JsonLinesFile | TableFile":
    kind = kind_of(path)
    name = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
    name = os.fsencode(name).decode(errors="replace")
    if kind == "csv":
        return CsvFile(path, name, input_.csv)
    if kind == "jsonl":
        return JsonLinesFile(path, name)
    return TableFile(_utf8_path(path, temporary), name, kind)


def _utf8_path(path: Path, temporary: Path) -> Path:
    """Return a path that Polars can open: a link in a private folder where the file's name is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        link = temporary / str(sum(1 for _ in temporary.iterdir()))
        link.symlink_to(path.absolute())
        return link
    return path


def _settled(
    files: "Sequence[CsvFile | JsonLinesFile | TableFile]", layout: Layout
) -> tuple[list[Source], dict[str, pl.DataType]]:
    """Return the files that have rows with the schema of the first, after all others were held to it."""
    json_files = [file for file in files if isinstance(file, JsonLinesFile)]
    tables = [file for file in files if isinstance(file, TableFile)]
    if not layout.columns:
        layout.columns = _types_by_value(json_files, tables)
    types = {name: _dtype(written) for name, written in layout.columns.items()}
    for lines in json_files:
        lines.schema = types
    for table in tables:
        table.settle(types)
    sources = [file for file in files if file.schema]
    if not sources:
        what = "its objects have no fields" if any(lines.has_rows for lines in json_files) else _EMPTY[bool(json_files)]
        raise InputError(f"{files[0].name}: {what}")
    first = sources[0]
    for source in sources[1:]:
        extra = [name for name in source.schema if name not in first.schema]
        missing = [name for name in first.schema if name not in source.schema]
        if extra or missing:
            change = ", ".join([f'"{name}" is new' for name in extra] + [f'"{name}" is missing' for name in missing])
            raise InputError(f"{source.name}: its columns are not those of {first.name}: {change}")
        for name, dtype in source.schema.items():
            if dtype != first.schema[name]:
                raise InputError(f'{source.name}: column "{name}" is {dtype}, but {first.schema[name]} in {first.name}')
    return list(sources), first.schema


_EMPTY = {
    False: "the file is empty; its first line must name the columns",
    True: "the file is empty, so it names no columns; input.path needs at least one line",
}


def _types_by_value(json_files: "Sequence[JsonLinesFile]", tables: "Sequence[TableFile]") -> dict[str, Any]:
    """Read the columns whose types depend on their values, and return these types as JSON."""
    found: dict[str, JsonType] = {}
    for file in json_files:
        file.add_types(found)
    types = {name: kind.dtype() for name, kind in found.items()}
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


_SCALARS = {str(dtype): dtype for dtype in (pl.String(), pl.Int64(), pl.Float64(), pl.Boolean(), pl.Binary())}


# -- Parquet and Arrow


class TableFile:
    """A Parquet or Arrow file, read by Polars.

    Binary data that is UTF-8 in every row is text: DuckDB writes JSON so, and others ENUM or strings of their own.
    """

    def __init__(self, path: Path, name: str, kind: str) -> None:
        """Read the schema. Raises InputError."""
        self.name = name
        try:
            lazy = pl.scan_parquet(path, glob=False) if kind == "parquet" else _arrow(path)
            schema = lazy.collect_schema()
            extensions = [column for column, dtype in schema.items() if isinstance(dtype, pl.BaseExtension)]
            self._lazy = lazy.with_columns(column_named(column).ext.storage() for column in extensions)
            self.schema = dict(self._lazy.collect_schema())
        except PROBLEMS as error:
            raise self._unreadable(error) from None
        if not self.schema:
            raise InputError(f"{name}: it has no columns")

    def binary_texts(self) -> dict[str, bool]:
        """Return for each binary column whether all of its values are UTF-8. Raises InputError."""
        return {name: self._is_text(name) for name, dtype in self.schema.items() if isinstance(dtype, pl.Binary)}

    def _is_text(self, name: str) -> bool:
        try:
            # The sum keeps Polars from leaving the cast out.
            self._lazy.select(column_named(name).cast(pl.String).str.len_bytes().sum()).collect(engine="streaming")
        except PROBLEMS as error:
            if "invalid utf8" in str(error):
                return False
            raise self._unreadable(error) from None
        return True

    def settle(self, types: Mapping[str, pl.DataType]) -> None:
        """Read binary columns as text where these types say so."""
        texts = [
            name
            for name, dtype in self.schema.items()
            if isinstance(dtype, pl.Binary) and isinstance(types.get(name), pl.String)
        ]
        self._lazy = self._lazy.with_columns(column_named(name).cast(pl.String) for name in texts)
        self.schema |= dict.fromkeys(texts, pl.String())

    def height(self) -> int:
        """Return the number of rows."""
        return int(self._lazy.select(pl.len()).collect().item())

    def read(self, columns: Sequence[str], start: int, size: int, mark: tuple[int, int]) -> Iterator["FrameChunk"]:
        """Yield the rows from `start` on, at most `size` at a time. Raises InputError."""
        del mark  # Polars finds a row by itself
        # Without a column Polars forgets how many rows there are.
        wanted = list(columns) or list(self.schema)[:1]
        try:
            lazy = self._lazy.select(map(column_named, wanted)).slice(start)
            # collect_batches is marked unstable: this is its only use.
            for chunk in lazy.collect_batches(chunk_size=size, lazy=True):
                for frame in chunk.iter_slices(size):
                    yield FrameChunk(self.name, frame)
        except PROBLEMS as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: BaseException) -> InputError:
        return InputError(f"{self.name}: can't be read: {short(error)}")


class FrameChunk:
    """Consecutive rows of a Parquet or Arrow file."""

    offset = None

    def __init__(self, name: str, frame: pl.DataFrame) -> None:
        self._name, self._frame = name, frame
        self.height = frame.height

    def frame(self, columns: Sequence[str]) -> pl.DataFrame:
        """Return the rows as they are in the file."""
        return self._frame.select(map(column_named, columns)) if columns else pl.DataFrame(height=self.height)

    def rows(self, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return rows of Python values. Raises InputError for a value that Python can't hold."""
        if not columns:
            return [()] * self.height
        schema = self._frame.schema
        frame = self._frame.select(_for_prompt(name, schema[name]) for name in columns)
        try:
            return frame.rows()
        except (*PROBLEMS, OverflowError) as error:
            for name in columns:
                try:
                    frame[name].to_list()
                except (*PROBLEMS, OverflowError):
                    raise InputError(
                        f'{self._name}: column "{name}" ({schema[name]}) holds a value that no prompt can show '
                        f"({short(error)}); correct it, or leave the column out of the prompt"
                    ) from None
            raise


def unreadable_in_a_prompt(dtype: pl.DataType, *, nested: bool = False) -> str | None:
    """Return why no prompt can show values of a type, None where it can."""
    if isinstance(dtype, pl.List | pl.Array):
        return unreadable_in_a_prompt(dtype.inner, nested=True)  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        problems = (unreadable_in_a_prompt(part.dtype, nested=True) for part in dtype.fields)  # type: ignore[arg-type]
        return next((problem for problem in problems if problem), None)
    if isinstance(dtype, pl.Binary):
        return "holds bytes that are not UTF-8 text: leave it out of the prompt, or convert it to text"
    if isinstance(dtype, pl.Object | pl.Unknown) or (nested and isinstance(dtype, pl.Duration)):
        return f"holds values of the type {dtype}, which a prompt can't show: convert them to text"
    return None


def _for_prompt(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return a column as a prompt shows it: 32-bit floats as 2.7, not 2.700000047683716; durations as ISO 8601."""
    column = column_named(name)
    if isinstance(dtype, pl.Duration):
        return column.dt.to_string("iso")
    through_text = _replaced(dtype, pl.String())
    return column if through_text == dtype else column.cast(through_text).cast(_replaced(dtype, pl.Float64()))


def _replaced(dtype: pl.DataType, other: pl.DataType) -> pl.DataType:
    """Return a type in which another one stands for short floats."""
    if isinstance(dtype, pl.Float32 | pl.Float16):
        return other
    if isinstance(dtype, pl.List):
        return pl.List(_replaced(dtype.inner, other))  # type: ignore[arg-type]
    if isinstance(dtype, pl.Array):
        return pl.Array(_replaced(dtype.inner, other), dtype.size)  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return pl.Struct({part.name: _replaced(part.dtype, other) for part in dtype.fields})  # type: ignore[arg-type]
    return dtype


def _arrow(path: Path) -> pl.LazyFrame:
    """Open an Arrow file; the stream format, which can't be read lazily, is read whole."""
    try:
        lazy = pl.scan_ipc(path, glob=False)
        lazy.collect_schema()
    except pl.exceptions.ComputeError:
        return pl.read_ipc_stream(path).lazy()
    return lazy
