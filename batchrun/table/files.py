"""Input files by name: which ones a job means, whether they are still the same, what they are, and their bytes."""

import codecs
import glob
import gzip
import io
import os
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from batchrun.errors import InputError, did_you_mean
from batchrun.job import Input

BLOCK_BYTES = 1 << 20
"""Bytes of a text file that are read at a time."""

TEXT = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}
COMPRESSED = {".gz", ".zst"}
BINARY = {".parquet": "parquet", ".arrow": "arrow", ".ipc": "arrow", ".feather": "arrow", ".xlsx": "excel"}
READ_PROBLEMS = (OSError, EOFError, zlib.error, zstd.ZstdError)
"""What reading or decompressing bytes raises."""

PIPES = "batchrun-pipes-"
"""How the private folder is called in which a file stands for standard input."""

_LOOKED_AT = 1_000
"""Files of a folder whose names are compared with a misspelt one."""

_SUFFIXES = ".csv .tsv .jsonl .ndjson .json (also .gz .zst) .parquet .arrow .xlsx"
_ADVICE = {
    ".xls": "is an old Excel workbook: save it as .xlsx",
    ".zip": "is a ZIP archive: unpack it and name the file inside",
}
_MAGIC = (
    (b"PK\x03\x04", "is a ZIP archive or an Excel workbook, not text: name it .xlsx, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "is an old Excel workbook (.xls), not text: save it as .xlsx"),
    (b"\x1f\x8b", "is compressed by gzip: add .gz to its name"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: add .zst to its name"),
    (b"PAR1", "is a Parquet file: name it .parquet"),
    (b"ARROW1", "is an Arrow file: name it .arrow"),
    (b"SQLite format 3\0", "is an SQLite database, not text: export the table as CSV"),
    (b"%PDF-", "is a PDF, not text"),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself: run `git lfs pull`"),
)
_ARRAY = "is a JSON array: name it .json"
_NOT_CSV = (
    ((b"<!doctype", b"<html", b"<table"), "is a web page, not CSV: was a login page or an error downloaded?"),
    ((b"<?xml",), "is XML, not CSV: save it as CSV"),
    ((b'[{"', b"[ {", b"[\n", b"[\r"), _ARRAY),
    ((b'{"', b"{ "), "is JSON, not CSV: name it .jsonl (an object a line) or .json (an array of objects)"),
)
"""Beginnings of files that are not CSV, and what each is."""
_BINARY = {".parquet": (b"PAR1",), ".arrow": (b"ARROW1", b"\xff\xff\xff\xff"), ".xlsx": (b"PK\x03\x04",)}
_BINARY |= {".feather": _BINARY[".arrow"], ".ipc": _BINARY[".arrow"]}
_START = 32  # bytes of a file's beginning that show what it is


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What shows that a file is still the one that was read. Bytes; nanoseconds."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def expand(input: Input, folder: Path) -> tuple[Path, ...]:  # noqa: A002  (the job file's word)
    """Return the input's files: globs sorted, lists in their order, relative to `folder`.

    Raises InputError if nothing matches, and for a folder, an address or an unknown suffix.
    """
    paths: dict[Path, None] = {}
    for pattern in input.patterns:
        if pattern == "-":
            raise InputError("input.path: name a file here; --input - reads standard input in its place")
        if "://" in pattern:
            raise InputError(f'input.path: "{pattern}" is an address, and only local files are read: download it first')
        path = folder / Path(pattern).expanduser()
        # A file may be called data[1].csv, which as a glob would mean data1.csv.
        if path.exists() or not glob.has_magic(pattern):
            matches = [path]
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]  # noqa: PTH207  (Path.glob takes no absolute pattern)
        if not matches:
            raise InputError(f'input.path: nothing matches "{pattern}" in {folder}')
        paths.update(dict.fromkeys(matches))
    for path in paths:
        kind_of(path)
    return tuple(paths)


def shown_name(path: Path, folder: Path | None = None) -> str:
    """Return a file's name for people: relative to a folder where it is below."""
    if path.parent.name.startswith(PIPES):
        return "standard input"
    if folder is not None and path.is_relative_to(folder):
        path = path.relative_to(folder)
    return os.fsencode(path).decode(errors="replace")


def stamp(paths: Sequence[Path]) -> tuple[FileStamp, ...]:
    """Return what identifies the present contents of files. Raises InputError for a file that is gone."""
    stamps = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        stamps.append(FileStamp(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    return tuple(stamps)


def kind_of(path: Path) -> str:
    """Return how a file is read, by its suffix: a value of TEXT or BINARY. Raises InputError for another one."""
    if path.is_dir():
        raise InputError(f'input.path: {path} is a folder; name its files, as "{path}/*.csv"')
    if not path.exists():
        raise InputError(f"input.path: there is no file {path}{near_file(path)}")
    # A named pipe has no end until somebody writes into it, and the input is read more than once.
    if not path.is_file():
        raise InputError(f"input.path: {path} is not a regular file; for a pipe use --input -")
    suffix, kinds = path.suffix.lower(), TEXT | BINARY
    if suffix in COMPRESSED:
        suffix, kinds = Path(path.stem).suffix.lower(), TEXT
    if suffix in _ADVICE:
        raise InputError(f"input.path: {path.name} {_ADVICE[suffix]}")
    if suffix not in kinds:
        raise InputError(f"input.path: {path.name} has an unknown suffix; files can be {_SUFFIXES}")
    return kinds[suffix]


def near_file(path: Path) -> str:
    """Return `, did you mean "x"?` for the file of the folder that was probably meant, else an empty text."""
    names = [file.name for file in islice(path.parent.glob("*"), _LOOKED_AT)]
    return did_you_mean(path.name, names)


def check_text(path: Path, name: str) -> None:
    """Raise InputError for a file that is not text, or no CSV where its name says so, with what it is."""
    start = _beginning(path, name)
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        return
    _check_magic(start, name)
    start = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if suffix in {".csv", ".tsv"}:
        for beginnings, advice in _NOT_CSV:
            if start.startswith(beginnings):
                if advice == _ARRAY and path.parent.name.startswith(PIPES):
                    advice = "is a JSON array: write JSON Lines, an object a line, as `jq -c '.[]'` does"  # noqa: PLW2901  (a pipe has no name)
                raise InputError(f"{name} {advice}")
    elif suffix in {".jsonl", ".ndjson"} and start.startswith(b"["):
        raise InputError(f"{name} is a JSON array, and a line must hold one JSON object: name it .json")


def check_binary(path: Path, name: str) -> None:
    """Raise InputError for a file that is not Parquet, Arrow or Excel although its name says so, with what it is."""
    start, own = _beginning(path, name), _BINARY.get(path.suffix.lower(), ())
    if not own or start.startswith(own):
        return
    _check_magic(start, name)
    if not start:
        raise InputError(f"{name} is empty: it is not a {path.suffix} file")
    if start.isascii() and b"\0" not in start:
        raise InputError(f"{name} is text, not a {path.suffix} file: name it .csv, .jsonl or .json")


def _beginning(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_START)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from None


def _check_magic(start: bytes, name: str) -> None:
    for magic, advice in _MAGIC:
        if start.startswith(magic):
            raise InputError(f"{name} {advice}")


def open_bytes(path: Path, name: str) -> BinaryIO:
    """Open a file, decompressed by its suffix. Raises InputError."""
    try:
        if path.suffix.lower() == ".gz":
            return io.BufferedReader(cast("io.RawIOBase", gzip.open(path)), BLOCK_BYTES)
        if path.suffix.lower() == ".zst":
            return io.BufferedReader(cast("io.RawIOBase", zstd.open(path)), BLOCK_BYTES)
        return path.open("rb", buffering=BLOCK_BYTES)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from None


def read_start(path: Path, name: str, size: int) -> bytes:
    """Return the first bytes of a file's text. Raises InputError."""
    with open_bytes(path, name) as file:
        try:
            return file.read(size)
        except READ_PROBLEMS as error:
            raise unreadable(name, error) from None


def unreadable(name: str, error: BaseException) -> InputError:
    """Return the problem of a file whose bytes can't be read."""
    return InputError(f"{name}: can't be read or decompressed ({error})")


def encoding_of(start: bytes, declared: str) -> str:
    """Return the codec's name for a text that begins so: UTF-16 and UTF-32 with a BOM need no declaration."""
    # Excel writes "Unicode text" as UTF-16 with a BOM, and its users don't know that word.
    encoding = codecs.lookup(declared).name.replace("utf-8-sig", "utf-8")
    if encoding == "utf-8" and start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-32" if start.startswith(codecs.BOM_UTF32_LE) else "utf-16"
    return encoding
