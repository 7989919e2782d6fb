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
                for text in _objects(self.path, self.name, self.encoding):
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


def _objects(path: Path, name: str, encoding: str) -> Iterator[str]:
    """Yield the texts of the objects of an array. Raises InputError with the line of a flaw."""
    with open_bytes(path, name) as file:
        try:
            yield from _Array(codecs.getreader(encoding.replace("utf-8", "utf-8-sig"))(file), name).objects()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise InputError(f"{name}: byte 0x{byte:02x} is not UTF-8, which JSON must be") from None
        except READ_PROBLEMS as error:
            raise unreadable(name, error) from None


class _Array:
    """An array as it is read; no more of its text is in memory than an object needs."""

    def __init__(self, stream: codecs.StreamReader, name: str) -> None:
        self._stream, self._name = stream, name
        self._text = ""
        self._at = 0
        self._line = 1  # of the beginning of the text

    def objects(self) -> Iterator[str]:
        """Yield the text of each object."""
        first = self._next()
        if first == "{":
            self._fail("an object, not an array of objects; for one object a line name the file .jsonl")
        if first != "[":
            self._fail("not a JSON array of objects")
        self._at += 1
        is_empty = self._next() == "]"
        while not is_empty:
            if self._next() != "{":
                self._fail("an element of the array is not an object")
            yield self._object()
            following = self._next()
            if following == "]":
                break
            if following != ",":
                self._fail("not JSON (a comma or ] is missing between two objects)")
            self._at += 1
        self._at += 1
        if self._next():
            self._fail("not JSON (something follows the array)")

    def _object(self) -> str:
        """Return the text of the object that begins here, and step behind it."""
        size = BLOCK_BYTES
        while True:
            try:
                _, end = _decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                # The rest of the object may not be read yet. It is broken only at the end of the file.
                if not self._read(size):
                    self._at = getattr(error, "pos", self._at)
                    self._fail(f"not JSON ({getattr(error, 'msg', 'nested too deeply')})")
                size *= 2  # each try begins again at the object's first character
                continue
            text = self._text[self._at : end]
            self._at = end
            return text

    def _next(self) -> str:
        """Step over white space; return the next character, an empty text at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read(BLOCK_BYTES):
                return ""

    def _read(self, size: int) -> bool:
        """Read more text after the rest of it; False at the end of the file."""
        more = self._stream.read(size)
        self._line += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + more
        self._at = 0
        return bool(more)

    def _fail(self, problem: str) -> NoReturn:
        line = self._line + self._text.count("\n", 0, self._at)
        raise InputError(f"{self._name}:{line}: {problem}")
