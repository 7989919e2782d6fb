"""Text files as they are in the wild: encodings, compression, and copies that Polars reads without surprises.

A file is read once, as a stream of UTF-8 bytes, before Polars reads it. A file that Polars would misread (another
encoding, blank lines, a BOM before JSON) is copied into a private temporary file.
"""

import codecs
import csv
import gzip
import io
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from batchrun.errors import InputError, StorageError
from batchrun.job import CsvOptions
from batchrun.table.textscan import CsvScan, JsonLinesScan, Keep, line_flaw

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class CsvFile:
    """A CSV file that Polars reads without surprises: `path` is the file itself or a private copy.

    `name` is for messages. `skip_lines` physical lines stand before the first row; `eol` is a line feed or, where
    lines end so, a lone carriage return.
    """

    name: str
    original: Path
    encoding: str
    path: Path
    columns: tuple[str, ...]
    separator: str
    quote: str | None
    eol: str
    skip_lines: int

    def line_of_row(self, row: int) -> int:
        """Give the line (from 1) on which a row (from 0) begins; slow, for messages only."""
        csv.field_size_limit(sys.maxsize)
        encoding = "utf-8-sig" if self.encoding == "utf-8" else self.encoding
        with _open(self.original, self.name) as raw, io.TextIOWrapper(raw, encoding, newline="") as text:
            if self.quote:
                reader = csv.reader(text, delimiter=self.separator, quotechar=self.quote)
            else:
                reader = csv.reader(text, delimiter=self.separator, quoting=csv.QUOTE_NONE)
            while reader.line_num < self.skip_lines:
                next(reader)
            before = reader.line_num
            for record in reader:
                if record or len(self.columns) == 1:
                    if row == 0:
                        break
                    row -= 1
                before = reader.line_num
            return before + 1


@dataclass(frozen=True, slots=True)
class JsonLinesFile:
    """A JSONL file that Polars can read; with `long_integers` a column of floats could have lost digits.

    `fields` are those of the first line, in its order.
    """

    name: str
    path: Path
    long_integers: bool
    fields: tuple[str, ...]

    def flaw(self) -> str | None:
        """Say in which line and why the file is no JSONL; slow, for messages only."""
        seen: dict[str, tuple[str, int]] = {}
        with _open(self.path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip() and (problem := line_flaw(line, number, seen)):
                    return f"{self.name}:{number}: {problem}"
        return None


def check_csv(path: Path, name: str, options: CsvOptions, temporary: Path, *, is_sound: bool = False) -> CsvFile:
    """Read a CSV or TSV file once and give it in a form that Polars reads without surprises.

    `temporary` is a private folder for copies; of a file that is known to be sound just the first record is read.
    Raises InputError with file, line and the option to set; StorageError where a copy can't be written.
    """
    separator = options.separator or ("\t" if ".tsv" in path.name.lower() else ",")
    _one_byte(separator, "separator")
    if options.quote is not None:
        _one_byte(options.quote, "quote")
    encoding = _encoding(path, name, options.encoding)
    scan = CsvScan(name, separator, options)
    copy = path
    if is_sound:
        scan.head(_utf8(path, name, encoding))
    elif encoding != "utf-8":
        copy = _copy(scan.run, path, name, encoding, temporary)
    elif scan.run(_utf8(path, name, encoding)):
        scan = CsvScan(name, separator, options)
        copy = _copy(scan.run, path, name, encoding, temporary)
    return CsvFile(name, path, encoding, copy, scan.columns, separator, options.quote, scan.eol, scan.skip_lines)


def check_json_lines(path: Path, name: str, temporary: Path) -> JsonLinesFile:
    """Read a JSONL file once and give it in a form that Polars can read.

    Raises InputError with file and line; StorageError where a copy can't be written.
    """
    encoding = _encoding(path, name, "utf-8")
    with _open(path, name) as stream:
        head = _read(stream, name)
    lone_cr = encoding == "utf-8" and b"\r" in head and b"\n" not in head
    scan = JsonLinesScan(name)
    if encoding != "utf-8" or lone_cr or head.startswith(codecs.BOM_UTF8):
        path = _copy(scan.run, path, name, encoding, temporary)
    else:
        scan.run(_utf8(path, name, encoding))
    if scan.fields is None:
        raise InputError(f"{name}: the file is empty, so it names no columns; input.path needs at least one line")
    return JsonLinesFile(name, path, scan.long_integers, scan.fields)


def _utf8(path: Path, name: str, encoding: str) -> Iterator[bytes]:
    """Give the file as UTF-8 bytes without a BOM. Raises InputError for bytes that are no text."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line, first = 1, True
    with _open(path, name) as stream:
        while True:
            raw = _read(stream, name)
            try:
                if encoding == "utf-8" and raw and raw.isascii() and not decoder.getstate()[0]:
                    chunk = raw  # several times faster than decoding
                else:
                    text = decoder.decode(raw, not raw)
                    chunk = raw if encoding == "utf-8" else text.encode()
            except UnicodeDecodeError as error:
                before = error.object[: error.start].decode(encoding, "ignore")
                line += before.count("\n") or before.count("\r")
                raise InputError(f"{name}:{line}: {_bad_bytes(error, path)}") from None
            except UnicodeError as error:  # no byte is wrong, but the whole is no such text
                raise InputError(f"{name}: no {encoding} ({error}); set input.csv.encoding (utf-16-le, …)") from None
            if not raw:
                return
            line += chunk.count(b"\n") or chunk.count(b"\r")
            yield chunk.removeprefix(codecs.BOM_UTF8) if first else chunk
            first = False


def _bad_bytes(error: UnicodeDecodeError, path: Path) -> str:
    """Say which byte is wrong, and guess the encoding: letters stand alone in Western text, in runs elsewhere."""
    if _is_json(path):
        return f"byte 0x{error.object[error.start]:02x} is no UTF-8, which JSONL must be; convert the file"
    after = error.object[error.start + 1 : error.start + 2]
    guess = "cp1252 or latin-1" if after.isascii() else "big5, gb18030, shift_jis or cp1251"
    return f"byte 0x{error.object[error.start]:02x} is no {error.encoding}; set input.csv.encoding ({guess}, …)"


def _is_json(path: Path) -> bool:
    return any(suffix in {".jsonl", ".ndjson"} for suffix in path.suffixes)


def _encoding(path: Path, name: str, declared: str) -> str:
    """Give the codec's name; UTF-16 and UTF-32 with a BOM need no declaration."""
    try:
        codec = codecs.lookup(declared)
        "".encode(declared)
    except LookupError:
        raise InputError(
            f'input.csv.encoding: unknown encoding "{declared}"; write utf-8, utf-16, cp1252, big5, …'
        ) from None
    encoding = "utf-8" if codec.name == "utf-8-sig" else codec.name
    with _open(path, name) as stream:
        start = _read(stream, name, 4)
    if encoding == "utf-8" and start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-32" if start == codecs.BOM_UTF32_LE else "utf-16"
    return encoding


def _open(path: Path, name: str | None = None) -> BinaryIO:
    """Open a file, decompressed by its suffix."""
    try:
        if path.suffix.lower() == ".gz":
            return cast("BinaryIO", gzip.open(path))
        if path.suffix.lower() == ".zst":
            return cast("BinaryIO", zstd.open(path))
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{name or path}: {error.strerror}") from None


def _read(stream: BinaryIO, name: str, size: int = _CHUNK) -> bytes:
    try:
        return stream.read(size)
    except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:
        raise InputError(f"{name}: can't be read or decompressed ({error})") from None


def _copy(scan: Callable[[Iterator[bytes], Keep], object], path: Path, name: str, encoding: str, folder: Path) -> Path:
    """Write what a scan keeps into a new file that only we can read."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as copy:
            scan(_utf8(path, name, encoding), copy.write)
    except OSError as error:
        raise StorageError(f"{folder}: the copy of {name} can't be written: {error.strerror}; set TMPDIR") from None
    return Path(copy.name)


def _one_byte(text: str, option: str) -> None:
    if len(text.encode()) != 1 or text in "\r\n":
        raise InputError(f"input.csv.{option}: must be one ASCII character")
