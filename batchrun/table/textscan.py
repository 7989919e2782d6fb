"""The records of CSV and the lines of JSONL in a stream of bytes: columns, line ends, and each flaw with its line.

What is well formed costs one pass of one regular expression; a record that it can't take is looked at cell by cell.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NoReturn

from batchrun.errors import InputError
from batchrun.job import CsvOptions

Keep = Callable[[bytes], object]
_LONGEST_HEADER = 1 << 26
_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
_LONG_INTEGER = re.compile(rb"[:,\[]\s*-?\d{16,}\s*[,}\]]")
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_UNCLOSED = "a quoted cell opens here and never closes; mend it, or set input.csv.quote (null: quotes are text)"
_AFTER_QUOTE = (
    "a quoted cell opens here and text follows its closing quote; double the quotes inside the cell, "
    "or set input.csv.quote (null: quotes are text)"
)
_STRAY = (
    "a lone quote inside an unquoted cell; quote the cell and double the quote, "
    "or set input.csv.quote (null: quotes are text)"
)


class CsvScan:
    """One pass over the records of a CSV file; afterwards it knows columns, line end and lines to skip."""

    def __init__(self, name: str, separator: str, options: CsvOptions) -> None:
        self._name = name
        self._separator = separator.encode()
        self._quote = options.quote.encode() if options.quote else b""
        self._header = options.header
        self._line = 1
        self.columns: tuple[str, ...] = ()
        self.skip_lines = 0
        self.eol = "\n"

    def run(self, chunks: Iterator[bytes], keep: Keep | None = None) -> bool:
        """Check all records; hand all but blank lines to `keep`; tell whether there were blank lines."""
        buffer, begin = self._first_record(chunks)
        if keep:
            keep(buffer[:begin])
        buffer = buffer[begin:]
        records, eol = self._grammar.records(len(self.columns)), self._grammar.eol
        final = blank_lines = False
        while not final:
            chunk = _more(chunks, len(buffer))
            final = not chunk
            buffer += chunk
            if final and buffer and not buffer.endswith(eol):
                buffer += eol
            position, end = 0, self._grammar.plain_records(buffer, len(self.columns))
            while True:
                end = _end(records, buffer, max(position, end))
                if keep:
                    keep(buffer[position:end])
                self._line += buffer.count(eol, position, end)
                position = end
                after = self._odd_record(buffer, end, final=final) if end < len(buffer) else None
                if after is None:
                    break
                position, blank_lines = after, True
            buffer = buffer[position:]
        return blank_lines

    def head(self, chunks: Iterator[bytes]) -> None:
        """Read the first record only, of a file whose other records were checked before."""
        self._first_record(chunks)

    def _first_record(self, chunks: Iterator[bytes]) -> tuple[bytes, int]:
        """Learn line end and columns from the first record; give what was read, and where the rows begin in it."""
        q = re.escape(self._quote)
        quoted = rb"%b[^%b]*+%b|" % (q, q, q) if q else b""
        record = re.compile(rb"[\r\n]*+((?:%b[^\r\n%b])*+)" % (quoted, q))
        buffer, end = b"", 0
        while chunk := _more(chunks, len(buffer)):
            buffer += chunk
            end = _end(record, buffer, 0)
            if (buffer[end : end + 1] in {b"\r", b"\n"} and end + 1 < len(buffer)) or end > _LONGEST_HEADER:
                break
        start = len(buffer) - len(buffer.lstrip(b"\r\n"))
        if start == len(buffer):
            raise InputError(f"{self._name}: the file is empty; its first line must name the columns")
        crlf = buffer[end : end + 2] == b"\r\n"
        eol = b"\r" if buffer[end : end + 1] == b"\r" and not crlf else b"\n"
        self._grammar = _Grammar(self._separator, self._quote, eol)
        self.eol = eol.decode()
        self._line += buffer.count(eol, 0, start)
        if self._quote and buffer[end : end + 1] == self._quote:
            self._fail(self._line + buffer.count(eol, start, end), _UNCLOSED)
        self._name_columns(self._cells(buffer[start:end]), buffer[start:end])
        begin = min(len(buffer), end + 1 + crlf) if self._header else start
        self.skip_lines = buffer.count(eol, 0, begin) + (begin == end)
        self._line = 1 + self.skip_lines
        return buffer, begin

    def _cells(self, record: bytes) -> list[bytes]:
        """Split a first record into its cells."""
        cells, position = [], 0
        while True:
            end = _end(self._grammar.cell, record, position)
            cells.append(record[position:end])
            if end == len(record):
                return cells
            if record[end : end + 1] != self._separator:
                self._fail(self._line, _STRAY)
            position = end + 1

    def _name_columns(self, cells: list[bytes], record: bytes) -> None:
        """Take the columns' names from the first record, or number them."""
        if b"\0" in record:
            self._fail(
                self._line, "NUL bytes in the first line; set input.csv.encoding (utf-16?) if this is a text file"
            )
        if not self._header:
            self.columns = tuple(f"column_{number}" for number in range(1, len(cells) + 1))
            return
        quote = self._quote
        names = [
            (cell[1:-1].replace(quote * 2, quote) if quote and cell.startswith(quote) else cell).decode()
            for cell in cells
        ]
        self.columns = tuple(dict.fromkeys(names))
        if len(self.columns) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            self._fail(self._line, f'column "{twice}" occurs twice; rename one, or set input.csv.header: false')

    def _odd_record(self, buffer: bytes, start: int, *, final: bool) -> int | None:
        """Look at a record that is not well formed: give the end of a blank line, None if more bytes are needed.

        Raises InputError for every other.
        """
        grammar, position, cells = self._grammar, start, 0
        while True:
            cells += 1
            begin = position
            line = self._line + buffer.count(grammar.eol, start, begin)
            if grammar.quote and buffer.startswith(grammar.quote, begin):
                position = _end(grammar.quoted, buffer, begin)
                if position == begin and final:
                    self._fail(line, _UNCLOSED)
                if position == begin or (position + 2 > len(buffer) and not final):
                    return None
                position += grammar.eol == b"\n" and buffer.startswith(b"\r\n", position)
                if buffer[position : position + 1] not in {grammar.eol, grammar.separator}:
                    self._fail(line, _AFTER_QUOTE)
            else:
                position = _end(grammar.bare, buffer, begin)
                if position == len(buffer):
                    return None
                if grammar.quote and buffer.count(grammar.quote, begin, position) % 2:
                    self._fail(line, _STRAY)
            if buffer[position : position + 1] != grammar.separator:
                break
            position += 1
        return self._blank_line(buffer[start : position + 1], cells, position + 1)

    def _blank_line(self, record: bytes, cells: int, end: int) -> int:
        """Give the end of a blank line; refuse any other record for its number of cells."""
        if record.endswith(b"\n") and self.eol == "\r":
            self._fail(self._line, "line ends are mixed (CR, then LF); save the file with one kind of line end")
        if record.strip(b"\r\n"):
            one, many = ("header", "line") if self._header else ("first line", "line")
            self._fail(
                self._line,
                f"{cells} cell{'s' * (cells != 1)} where the {one} has {len(self.columns)}; "
                f"mend the {many}, or set input.csv.separator or input.csv.quote",
            )
        self._line += 1
        return end

    def _fail(self, line: int, problem: str) -> NoReturn:
        raise InputError(f"{self._name}:{line}: {problem}")


class JsonLinesScan:
    """One pass over the lines of a JSONL file, for what Polars would change without a word."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.fields: tuple[str, ...] | None = None
        self.long_integers = False

    def run(self, chunks: Iterator[bytes], keep: Keep | None = None) -> None:
        """Check all lines; hand them to `keep` with line feeds as their ends."""
        rest, line = b"", 1
        for chunk in itertools.chain(chunks, (b"",)):
            text = rest + (chunk.replace(b"\r", b"\n") if keep else chunk)
            end = text.rfind(b"\n") + 1 if chunk else len(text)
            text, rest = text[:end], text[end:]
            if self.fields is None and (filled := text.lstrip()):
                self.fields = _fields(filled.split(b"\n", 1)[0])
            self.long_integers = self.long_integers or _has_long_integer(text)
            if (b"\\ud" in text or b"\\uD" in text) and (found := _lone_surrogate(text)) is not None:
                number = line + text.count(b"\n", 0, found)
                raise InputError(
                    f"{self._name}:{number}: half of a surrogate pair (\\ud800 to \\udfff) is no text; mend it"
                )
            line += text.count(b"\n")
            if keep:
                keep(text)


class _Grammar:
    """The regular expressions of one CSV dialect; `records` takes as many well-formed records as there are."""

    def __init__(self, separator: bytes, quote: bytes, eol: bytes) -> None:
        s, q = re.escape(separator), re.escape(quote)
        n = rb"\n" if eol == b"\n" else rb"\r\n"
        self.separator, self.quote, self.eol = separator, quote, eol
        self.bare = re.compile(rb"[^%b%b]*+" % (s, n))
        self.end = rb"\r?+\n" if eol == b"\n" else rb"\r"
        if quote:
            quoted = rb"%b[^%b]*+(?:%b%b[^%b]*+)*+%b" % (q, q, q, q, q, q)
            text = rb"[^%b%b%b]" % (s, n, q)
            self.quoted = re.compile(quoted)
            # quotes inside an unquoted cell are text, but Polars looks for line ends only after an even number of them
            self.cell = re.compile(rb"(?:%b|(?:%b++(?:%b%b*+%b%b*+)*+)?+)" % (quoted, text, q, text, q, text))
        else:
            self.cell = self.quoted = self.bare

        kept = {*separator, *quote, *b"\r\n"} if eol == b"\r" else {*separator, *quote, *b"\n"}
        self._text = bytes(byte for byte in range(256) if byte not in kept)

    def plain_records(self, buffer: bytes, width: int) -> int:
        """Give the end of the last whole record if all are well formed and without quotes, else 0; the fast way."""
        end = buffer.rfind(self.eol) + 1
        if self.quote and buffer.find(self.quote, 0, end) >= 0:
            return 0
        structure = buffer[:end].translate(None, self._text)
        one = self.separator * (width - 1) + self.eol
        return end if structure == one * (len(structure) // len(one)) else 0

    def records(self, width: int) -> re.Pattern[bytes]:
        """Match any number of whole records of so many cells."""
        cell, separator = self.cell.pattern, re.escape(self.separator)
        return re.compile(rb"(?:%b(?:%b%b){%d}%b)*+" % (cell, separator, cell, width - 1, self.end))


def _fields(line: bytes) -> tuple[str, ...]:
    """Give the names of a line's fields; a line that is no JSON object is told of by whoever reads it."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return ()
    return tuple(value) if isinstance(value, dict) else ()


def _has_long_integer(text: bytes) -> bool:
    """Tell whether there may be an integer that a float can't hold; nearly all texts end at the first, fast test."""
    return b"0" * 16 in text.translate(_DIGITS_TO_ZERO) and bool(_LONG_INTEGER.search(text))


def _lone_surrogate(text: bytes) -> int | None:
    """Give the offset of a lone surrogate; what only looks like one (after an escaped backslash) is none."""
    for match in _SURROGATE.finditer(text):
        slashes = match.start() - len(text[: match.start()].rstrip(b"\\"))
        if slashes % 2 == 0:
            return match.start()
    return None


def line_flaw(line: bytes, number: int, seen: dict[str, tuple[str, int]]) -> str | None:
    """Say what is wrong with one line; `seen` holds each field's kind of value and its first line."""
    try:
        value = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({str(error).split(':')[0]}); a line must hold one JSON object"
    if not isinstance(value, dict):
        return f"{_kind(value)}; a line must hold one JSON object"
    for key, item in value.items():
        kind = _kind(item)
        first, where = seen.setdefault(key, (kind, number)) if item is not None else (kind, number)
        if first != kind and "a text" not in (first, kind):
            return f'"{key}" is {kind}, but {first} in line {where}; write one kind of value (text takes all)'
    return None


def _kind(value: object) -> str:
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), "null")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON value")


def _more(chunks: Iterator[bytes], held: int) -> bytes:
    """Read at least as much as is held, so that a huge cell is not scanned again for each chunk; b"" at the end."""
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size and size >= held:
            break
    return b"".join(parts)


def _end(pattern: re.Pattern[bytes], buffer: bytes, position: int) -> int:
    match = pattern.match(buffer, position)
    return match.end() if match else position
