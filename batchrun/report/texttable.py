"""Tables of text that fit a terminal: columns of equal width, wide characters counted as two, long cells cut."""

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from batchrun.terminal import encodable, lines, printable

GAP = 2
NARROWEST = 8
"""Columns below this width are unreadable, so the rows are written as records instead."""

_EMOJI_STYLE = "\ufe0f"


class Table(NamedTuple):
    """A table of texts for people; columns in `numbers` are set to the right, the title stands above it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Collection[int] = ()
    title: str = ""

    def lines(self, width: int, encoding: str) -> Iterator[str]:
        """Yield it as lines at most `width` cells of a terminal wide, after its title.

        Letters that `encoding` does not have are escapes. Where the columns have no room, each row is a record.
        """
        if self.title:
            yield self.title
        # No more characters than the terminal has cells are looked at: a cell may hold a whole document.
        shown = [
            [encodable(printable(cell[: width + 1]), encoding) for cell in row] for row in (self.header, *self.rows)
        ]
        natural = [max(map(display_width, column)) for column in zip(*shown, strict=True)]
        widths = _fitted(natural, width - GAP * (len(natural) - 1))
        more = encodable("…", encoding)
        if len(more) > 1:
            more = "..."
        if widths is None:
            yield from _records(shown, width, more)
            return
        shown.insert(1, ["-" * size for size in widths])
        for row in shown:
            cells = [
                _cell(*pair, more, right=at in self.numbers) for at, pair in enumerate(zip(row, widths, strict=True))
            ]
            yield (" " * GAP).join(cells).rstrip()


def rendered(parts: Iterable[str | Table], width: int, encoding: str) -> Iterator[str]:
    """Yield sentences and tables as lines for a terminal, with an empty line before each table but a first one."""
    for number, part in enumerate(parts):
        if isinstance(part, str):
            yield part
            continue
        if number:
            yield ""
        yield from part.lines(width, encoding)


def record(pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield names and whole values: a short value on the line of its name, any other below it, indented."""
    for name, value in pairs:
        text = lines(value)
        if "\n" in text or len(text) > 60:  # noqa: PLR2004  (as much as fits on a name's line)
            yield f"{printable(name)}:"
            yield from (f"  {line}" for line in text.split("\n"))
        else:
            yield f"{printable(name)}: {text}"


def display_width(text: str) -> int:
    """Return how many cells of a terminal a printable text takes."""
    if text.isascii():
        return len(text)
    total, last = 0, 0
    for character in text:
        # A heart and the mark that makes it an emoji take the room of a wide character.
        width = _character_width(character)
        if character == _EMOJI_STYLE and last:
            width = 2 - last
        total += width
        last = width
    return total


def _character_width(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me"} or "\u1160" <= character <= "\u11ff":
        return 0  # accents, and Korean vowels that join the letter before them
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _fitted(natural: Sequence[int], room: int) -> list[int] | None:
    """Cut the widest columns to one width so that all have room; None where that is too narrow to read."""
    if sum(natural) <= room:
        return list(natural)
    # Only the widest columns are cut: a label of four letters is shown whole next to a long text.
    for limit in range(max(natural), NARROWEST - 1, -1):
        widths = [min(size, limit) for size in natural]
        if sum(widths) <= room:
            return widths
    return None


def _cell(text: str, width: int, more: str, *, right: bool) -> str:
    text = _cut(text, width, more)
    padding = " " * (width - display_width(text))
    return padding + text if right else text + padding


def _cut(text: str, width: int, more: str) -> str:
    if display_width(text) <= width:
        return text
    room = width - len(more)
    while display_width(text) > room:
        text = text[:-1]
    return text + more


def _records(shown: Sequence[Sequence[str]], width: int, more: str) -> Iterator[str]:
    header, *rows = shown
    for number, row in enumerate(rows):
        if number:
            yield ""
        for name, cell in zip(header, row, strict=True):
            yield _cut(f"{name}: {cell}", max(width, NARROWEST), more)
