"""JSON files: an array of objects, rewritten once as JSON Lines, so that both are read by the same rules.

The text of each object is copied as it stands: 2.50 stays 2.50, and a number of 20 digits keeps them all.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from batchrun.errors import InputError
from batchrun.table.files import BLOCK_BYTES, READ_PROBLEMS, open_bytes, unreadable
from batchrun.table.text import JsonLinesFile, Lines
from batchrun.table.values import json_object

_SPACE = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder().raw_decode


class JsonFile(JsonLinesFile):
    """An array of objects. `lines` is where it is rewritten when it is first read."""

    def __init__(self, path: Path, name: str, lines: Path) -> None:
        """Open the file. Raises InputError."""
        super().__init__(path, name)
        self._rewritten = lines

    def _lines(self, offset: int = 0) -> Lines:
        if not self._rewritten.exists():
            part = self._rewritten.with_suffix(".part")
            with part.open("w", encoding="utf-8", newline="") as file:
                for text in _Objects(self.path, self.name, self.encoding):
                    file.write(text.replace("\n", " ").replace("\r", " "))
                    file.write("\n")
            part.rename(self._rewritten)
        return Lines(self._rewritten, self.name, "utf-8", in_bytes=True, offset=offset)

    def _explain(self) -> NoReturn:
        """Raise InputError for the first object that is not a row."""
        for number, line in enumerate(self._lines(), 1):
            try:
                json_object(line.strip())
            except (ValueError, RecursionError) as error:
                raise InputError(f"{self.name}: object {number}: {error}") from None
        self._changed()


class _Objects:
    """The texts of the objects of an array; no more of the file is in memory than an object needs."""

    def __init__(self, path: Path, name: str, encoding: str) -> None:
        self._path, self._name, self._encoding = path, name, encoding
        self._text = ""
        self._at = 0
        self._line = 1
        self._ended = False

    def __iter__(self) -> Iterator[str]:
        with open_bytes(self._path, self._name) as file:
            try:
                with codecs.getreader(self._encoding.replace("utf-8", "utf-8-sig"))(file) as stream:
                    yield from self._objects(stream)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self._name}: byte 0x{error.object[error.start]:02x} is not UTF-8, which JSON must be"
                ) from None
            except READ_PROBLEMS as error:
                raise unreadable(self._name, error) from None

    def _objects(self, stream: codecs.StreamReader) -> Iterator[str]:
        first = self._next(stream)
        if first == "{":
            self._fail("an object, not an array of objects; for one object a line name the file .jsonl")
        if first != "[":
            self._fail("not a JSON array of objects")
        self._at += 1
        if self._next(stream) == "]":
            self._at += 1
            self._end(stream)
            return
        while True:
            if self._next(stream) != "{":
                self._fail("an element of the array is not an object")
            yield self._object(stream)
            following = self._next(stream)
            self._at += 1
            if following == "]":
                self._end(stream)
                return
            if following != ",":
                self._at -= 1
                self._fail("not JSON (a comma or ] is missing between two objects)")

    def _object(self, stream: codecs.StreamReader) -> str:
        """Return the text of the object that begins here, and step behind it."""
        size = BLOCK_BYTES
        while True:
            try:
                _, end = _decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if not self._read(stream, size):
                    self._at = getattr(error, "pos", self._at)
                    self._fail(f"not JSON ({getattr(error, 'msg', 'nested too deeply')})")
                size *= 2
                continue
            text = self._text[self._at : end]
            self._at = end
            return text

    def _next(self, stream: codecs.StreamReader) -> str:
        """Step over white space; return the next character, an empty text at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read(stream, BLOCK_BYTES):
                return ""

    def _end(self, stream: codecs.StreamReader) -> None:
        if self._next(stream):
            self._fail("not JSON (something follows the array)")

    def _read(self, stream: codecs.StreamReader, size: int) -> bool:
        """Read more text after the rest of it; False at the end of the file."""
        more = stream.read(size)
        self._line += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + more
        self._at = 0
        return bool(more)

    def _fail(self, problem: str) -> NoReturn:
        line = self._line + self._text.count("\n", 0, self._at)
        raise InputError(f"{self._name}:{line}: {problem}")
