"""Files to batches of rows: CSV, TSV, JSONL, Parquet and Arrow, lazily, in file order, in flat memory.

Cells of CSV and TSV are text exactly as written unless `csv.columns` types them. An empty cell is null, a quoted one
("") is the empty text, and so results.py writes them: a CSV file comes back equal cell by cell. A datetime with an
offset becomes UTC. JSONL takes its types from the whole file; a field with texts and other values is text.
"""

import glob
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import polars as pl
from polars import selectors

from batchrun.errors import InputError
from batchrun.job import CsvType, Input
from batchrun.table.textfiles import CsvFile, JsonLinesFile, check_csv, check_json_lines
from batchrun.table.where import PROBLEMS, Where, no_column, short

_TEXT = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_BINARY = {".parquet": "parquet", ".arrow": "arrow", ".ipc": "arrow", ".feather": "arrow"}
# Polars reads eight row groups of a Parquet file ahead and more, which may be 200 MB and brings nothing here.
os.environ.setdefault("POLARS_ROW_GROUP_PREFETCH_SIZE", "1")

_CSV_TYPES: dict[CsvType, pl.DataType] = {
    "string": pl.String(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "date": pl.Date(),
    "datetime": pl.Datetime("us"),
}


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells that a file is still the one that was read. Bytes; nanoseconds.

    `sound` holds the CSV options with which Polars reads the file as it is; empty where that is not known.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    sound: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows in a row. `position` (from 0) is the first one's place in the input; `asked` is the mask of `where`."""

    position: int
    rows: list[tuple[Any, ...]]
    asked: list[bool] | None


@dataclass(frozen=True, slots=True)
class _Source:
    """One file: how Polars reads it, and the CSV columns that are typed."""

    name: str
    lazy: pl.LazyFrame
    schema: dict[str, pl.DataType]
    csv: CsvFile | None = None
    lines: JsonLinesFile | None = None
    typed: Mapping[str, CsvType] = field(default_factory=dict)


def expand(input: Input, folder: Path) -> tuple[Path, ...]:  # noqa: A002  (the job file's word)
    """Give the input's files: globs sorted, lists in their order, relative to `folder`.

    Raises InputError if nothing matches, and for a directory or an unknown suffix.
    """
    paths: dict[Path, None] = {}
    for pattern in input.patterns:
        path = folder / Path(pattern).expanduser()
        if path.exists() or not glob.has_magic(pattern):
            found = [path]
        else:
            found = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]  # noqa: PTH207  (Path.glob takes no absolute pattern)
        if not found:
            raise InputError(f'input.path: nothing matches "{pattern}" in {folder}')
        paths.update(dict.fromkeys(found))
    for path in paths:
        _kind(path)
    return tuple(paths)


def stamp(paths: Sequence[Path]) -> tuple[FileStamp, ...]:
    """Give what identifies the present contents of files. Raises InputError for a file that is gone."""
    stamps = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        stamps.append(FileStamp(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    return tuple(stamps)


@contextmanager
def open_rows(
    input: Input,  # noqa: A002  (the job file's word)
    folder: Path,
    known: Collection[FileStamp] = (),
) -> Iterator["Rows"]:
    """Open the input's files and check them; private copies, where they are needed, live as long.

    Text files are read once from end to end to find what Polars would misread, but for CSV files that `known` tells to
    be sound. Raises InputError with file, line and the option to set.
    """
    paths = expand(input, folder)
    options = repr(input.csv)
    sound = {one for one in known if one.sound == options}
    stamps = stamp(paths)
    with tempfile.TemporaryDirectory(prefix="batchrun-", ignore_cleanup_errors=True) as temporary:
        make = partial(_source, input_=input, folder=folder, temporary=Path(temporary))
        sources = _settle([make(path, is_sound=one in sound) for path, one in zip(paths, stamps, strict=True)])
        read_as_is = [source.csv is not None and source.csv.path == source.csv.original for source in sources]
        files = [replace(one, sound=options if plain else "") for one, plain in zip(stamps, read_as_is, strict=True)]
        yield Rows(sources, tuple(files), input.where)


class Rows:
    """The rows of all input files, in order. `schema` has each column's type."""

    def __init__(self, sources: Sequence[_Source], files: tuple[FileStamp, ...], where: str | None) -> None:
        self._sources = sources
        self.files = files
        self.schema = dict(sources[0].schema)
        self.columns = tuple(self.schema)
        self._where = Where(where, self.schema) if where is not None else None

    def batches(self, columns: Sequence[str] | None = None, start: int = 0, size: int = 10_000) -> Iterator[Batch]:
        """Give batches of at most `size` rows from row `start`: tuples of Python values in the order of `columns`.

        Raises InputError for a cell that does not fit its type and for a predicate that fails on a row.
        """
        names = list(self.columns if columns is None else columns)
        needed = names
        if self._where is not None:
            needed = list(dict.fromkeys([*names, *self._where.columns]))
        position = start
        for frame in self._read(needed, start, size):
            asked = None if self._where is None else self._where.mask(frame)
            rows = frame.select(selectors.by_name(*names)).rows() if names else [()] * frame.height
            yield Batch(position, rows, asked)
            position += frame.height

    def frames(self, columns: Sequence[str] | None, size: int) -> Iterator[pl.DataFrame]:
        """Give all rows as frames of at most `size` rows, for the output. Raises InputError as `batches` does."""
        names = list(self.columns if columns is None else columns)
        for frame in self._read(names, 0, size):
            yield frame if names else pl.DataFrame(height=frame.height)

    def _read(self, columns: list[str], start: int, size: int) -> Iterator[pl.DataFrame]:
        # without a column Polars forgets how many rows there are
        wanted = columns or list(self.columns[:1])
        for source in self._sources:
            try:
                if start and len(self._sources) > 1:
                    height: int = source.lazy.select(pl.len()).collect().item()
                    if start >= height:
                        start -= height
                        continue
                row = start
                # collect_batches is marked unstable: this is its only use
                for chunk in (
                    source.lazy.select(selectors.by_name(*wanted))
                    .slice(start)
                    .collect_batches(chunk_size=size, lazy=True)
                ):
                    for frame in chunk.iter_slices(size):
                        yield _typed(frame, source, row)
                        row += frame.height
                start = 0
            except PROBLEMS as error:
                _explain(source, error)


def _kind(path: Path) -> str:
    """Tell by its suffix how a file is read."""
    if path.is_dir():
        raise InputError(f'input.path: {path} is a folder; name its files, as "{path.name}/*.csv"')
    if not path.exists():
        raise InputError(f"input.path: there is no file {path}")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in {".gz", ".zst"}:
        suffixes.pop()
        kind = _TEXT.get(suffixes[-1]) if suffixes else None
    else:
        kind = (_TEXT | _BINARY).get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise InputError(
            f"input.path: {path.name} has no suffix that tells its format: "
            ".csv .tsv .jsonl .ndjson (also .gz .zst) .parquet .arrow"
        )
    return kind


def _source(path: Path, input_: Input, folder: Path, temporary: Path, *, is_sound: bool) -> _Source:
    kind = _kind(path)
    name = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
    path = _utf8_path(path, temporary)
    if kind == "csv":
        return _csv_source(check_csv(path, name, input_.csv, temporary, is_sound=is_sound), input_)
    checked = check_json_lines(path, name, temporary) if kind == "jsonl" else None
    try:
        if checked is not None:
            lazy = pl.scan_ndjson(checked.path, infer_schema_length=None)
        elif kind == "parquet":
            lazy = pl.scan_parquet(path, glob=False)
        else:
            lazy = _arrow(path)
        return _Source(name, lazy, dict(lazy.collect_schema()), lines=checked)
    except PROBLEMS as error:
        _explain(_Source(name, pl.LazyFrame(), {}, lines=checked), error)


def _utf8_path(path: Path, temporary: Path) -> Path:
    """Return a path that Polars can open: a link in the private folder where the file's name is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        link = temporary / f"{sum(1 for _ in temporary.iterdir())}{os.fsencode(path.suffix).decode(errors='replace')}"
        link.symlink_to(path.absolute())
        return link
    return path


def _arrow(path: Path) -> pl.LazyFrame:
    """Open an Arrow file; the stream format, which can't be read lazily, is read whole."""
    try:
        lazy = pl.scan_ipc(path, glob=False)
        lazy.collect_schema()
    except pl.exceptions.ComputeError:
        return pl.read_ipc_stream(path).lazy()
    return lazy


def _csv_source(checked: CsvFile, input_: Input) -> _Source:
    options = input_.csv
    for name in options.columns:
        if name not in checked.columns:
            raise InputError(f"input.csv.columns: {no_column(name, checked.columns)} in {checked.name}")
    lazy = pl.scan_csv(
        checked.path,
        has_header=False,
        skip_lines=checked.skip_lines,
        schema=dict.fromkeys(checked.columns, pl.String()),
        separator=checked.separator,
        quote_char=checked.quote,
        eol_char=checked.eol,
        null_values=list(options.null_values) or None,
        raise_if_empty=False,
        glob=False,
    )
    typed: dict[str, CsvType] = {name: kind for name, kind in options.columns.items() if kind != "string"}
    schema = {name: _CSV_TYPES[options.columns.get(name, "string")] for name in checked.columns}
    return _Source(checked.name, lazy, schema, checked, typed=typed)


def _settle(sources: list[_Source]) -> list[_Source]:
    """Hold all files to the columns and types of the first; JSONL files share the types of all of them."""
    if lines := [source for source in sources if source.lines]:
        schema = _json_schema(lines)
        sources = [_read_as(source, source.lines, schema) if source.lines else source for source in sources]
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
    return sources


def _json_schema(lines: Sequence[_Source]) -> dict[str, pl.DataType]:
    """Give the types that hold the values of all JSONL files, and that every output format can hold."""
    try:
        empty = [pl.DataFrame(schema=source.schema) for source in lines]
        schema = pl.concat(empty, how="diagonal_relaxed").schema
    except PROBLEMS as error:
        raise InputError(f"{lines[-1].name}: its types don't fit those of {lines[0].name} ({short(error)})") from None
    if not schema:
        raise InputError(f"{lines[0].name}: its objects have no fields")
    # Polars gives fields in no order that people know
    first = [name for source in lines if source.lines for name in source.lines.fields if name in schema]
    return {name: _storable(schema[name]) for name in dict.fromkeys([*first, *schema])}


def _storable(dtype: pl.DataType) -> pl.DataType:
    """Make text of what has no value to tell its type, and of integers beyond 64 bits."""
    if isinstance(dtype, pl.List):
        return pl.List(_storable(dtype.inner))  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct) and dtype.fields:
        return pl.Struct({part.name: _storable(part.dtype) for part in dtype.fields})  # type: ignore[arg-type]
    return pl.String() if isinstance(dtype, (pl.Null, pl.Struct, pl.Int128)) else dtype


def _read_as(source: _Source, lines: JsonLinesFile, schema: dict[str, pl.DataType]) -> _Source:
    """Read a JSONL file with these types. Raises InputError where that would round an integer."""
    floats = [name for name, dtype in schema.items() if dtype == pl.Float64]
    if lines.long_integers and floats:
        text = pl.scan_ndjson(lines.path, schema={**schema, **dict.fromkeys(floats, pl.String())})
        rounded = text.select(pl.col(floats).cast(pl.Int128, strict=False).abs() > 2**53)
        for name, lost in rounded.select(pl.all().any()).collect().row(0, named=True).items():
            if lost:
                raise InputError(f'{source.name}: "{name}" mixes fractions with integers too long for them; write text')
    return _Source(source.name, pl.scan_ndjson(lines.path, schema=schema), schema, lines=lines)


def _typed(frame: pl.DataFrame, source: _Source, row: int) -> pl.DataFrame:
    """Convert the CSV columns that are declared. Raises InputError with the line of a cell that does not fit."""
    for name, kind in source.typed.items():
        if source.csv is None or name not in frame.columns:
            continue
        text = pl.when(pl.col(name) != "").then(pl.col(name))
        done = frame.with_columns(_convert(text, kind).alias(name))
        if done[name].null_count() > frame.select(text.null_count()).item():
            bad = frame.select((text.is_not_null() & done[name].is_null()).arg_max()).item()
            line, cell = source.csv.line_of_row(row + bad), frame[name][bad]
            raise InputError(
                f'{source.name}:{line}: column "{name}": "{cell:.50}" is no '
                f"{kind}; mend it, add it to input.csv.null_values, or declare the column as string"
            )
        frame = done
    return frame


def _convert(text: pl.Expr, kind: CsvType) -> pl.Expr:
    """Give a text column's values as a type, null where they don't fit."""
    if kind == "boolean":
        truth = {"true": True, "false": False}
        return text.str.to_lowercase().replace_strict(truth, default=None, return_dtype=pl.Boolean)
    if kind == "date":
        return text.str.to_date("%Y-%m-%d", strict=False)
    if kind == "datetime":
        iso = text.str.replace(" ", "T", literal=True)
        forms = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M")
        local = [iso.str.to_datetime(form, strict=False, time_unit="us") for form in forms]
        zoned = iso.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", strict=False, time_unit="us").dt.replace_time_zone(None)
        return pl.coalesce(*local, zoned)
    return text.cast(_CSV_TYPES[kind], strict=False)


def _explain(source: _Source, error: BaseException) -> NoReturn:
    """Raise InputError for what Polars could not read, with the line where it can be found."""
    if source.lines and (flaw := source.lines.flaw()):
        raise InputError(flaw) from None
    raise InputError(f"{source.name}: can't be read: {short(error)}") from None
