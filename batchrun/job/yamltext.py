"""YAML text -> a tree of scalars as they are written, each with its position; what a job file may not hold is told."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
)
from ruamel.yaml.reader import ReaderError

from batchrun.errors import Mistake
from batchrun.terminal import short

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 50
MAX_VALUES = 20_000
MAX_MISTAKES = 100
_SHOWN = 60

_SURROGATE = re.compile("[\ud800-\udfff]")
_LONG_TAG = re.compile(r"(?<!\S)!\S{500}")  # ruamel.yaml's time for a tag grows with the square of its length
_HINTS = (
    ("mapping values are not allowed", 'put a text that holds ": " in quotes, or look at the indentation'),
    ("cannot start any token", "indent with spaces, and put a text that begins with % @ ` or a tab in quotes"),
    ("expected <block end>", "the line is indented unlike its neighbours, or text follows a closing quote"),
    ("while scanning a quoted scalar", "a quote is not closed"),
    ("expected ',' or", "a bracket is not closed, or a text that holds { } [ ] needs quotes"),
    ("could not find expected ':'", 'a key is followed by ": ", also on the line before'),
    ("escape character", "write a backslash in single quotes, or twice in double ones"),
)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A scalar as it is written. Line and column are 1-based, also below.

    `plain`: without quotes. `content`: where its first line of text stands, and whether each further line of the
    text is a further line of the file (as below a `|`). `refused`: something that a job file may not hold.
    """

    line: int
    column: int
    text: str
    plain: bool = False
    content: tuple[int, int] | None = None
    by_line: bool = False
    refused: bool = False

    @property
    def null(self) -> bool:
        """Whether it is written as null, or not at all."""
        return self.plain and self.text in {"", "~", "null", "Null", "NULL"}


@dataclass(frozen=True, slots=True)
class Items:
    """A YAML sequence."""

    line: int
    column: int
    values: list["Node"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Table:
    """A YAML mapping; its keys are text and keep their positions."""

    line: int
    column: int
    entries: dict[str, tuple[Scalar, "Node"]] = field(default_factory=dict)


Node = Scalar | Items | Table


class _Stop(Exception):  # noqa: N818  (it ends the reading; the mistake is on record)
    """The text can't be read further."""


def parse(text: str) -> tuple[Table | None, list[Mistake]]:
    """Read a job file's text: its tree (None where there is none) and what is wrong with it as YAML."""
    if len(text) > MAX_CHARACTERS:
        problem = f"the file holds more than {MAX_CHARACTERS:,} characters: rows belong into an input file"
        return None, [Mistake(0, 0, problem)]
    if tag := _LONG_TAG.search(text):
        return None, [Mistake(text.count("\n", 0, tag.end()) + 1, 0, "YAML tags (!…) are not taken: remove it")]
    builder = _Builder(text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))
    try:
        for event in builder.events():
            builder.take(event)
    except _Stop:
        return None, builder.mistakes
    if isinstance(builder.root, Table):
        return builder.root, builder.mistakes
    written = builder.root is not None and not (isinstance(builder.root, Scalar) and builder.root.null)
    shape = "is no mapping" if written else "is empty"
    builder.refuse(1, 1, f"the file {shape}: a job has the keys input, prompt, model and output")
    return None, builder.mistakes


@dataclass(slots=True)
class _Open:
    """A collection that is not closed yet; `key` waits for its value."""

    node: Items | Table
    key: Scalar | None = None
    refused: bool = False


class _Builder:
    """Makes the tree from ruamel.yaml's events: unlike its composer it goes on after a mistake and never recurses."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.root: Node | None = None
        self.mistakes: list[Mistake] = []
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._open: list[_Open] = []
        self._documents = 0
        self._values = 0

    def events(self) -> Iterator[Event]:
        """Give the events of the text; a syntax error becomes a mistake."""
        try:
            yield from YAML(typ="safe", pure=True).parse(self.text)
        except _Stop:
            raise
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = self._at(mark.index) if mark else (0, 0)
            self.stop(line, column, f"not valid YAML: {_reason(error)}")
        except ReaderError as error:
            position = self.text.find(chr(error.character))
            self.stop(*self._at(max(position, 0)), f"the character U+{error.character:04X} may not stand in YAML")
        except Exception:  # noqa: BLE001  (a fault of the parser on a strange text must not look like one of ours)
            self.stop(0, 0, "not valid YAML")

    def take(self, event: Event) -> None:
        """Add one event to the tree."""
        match event:
            case DocumentStartEvent():
                self._document(event)
            case AliasEvent():
                node = Scalar(*self._place(event), text="", refused=True)
                self._refuse_node(
                    node, f"YAML aliases (*{short(event.anchor, _SHOWN)}) are not taken: write the value again"
                )
                self._add(node)
            case ScalarEvent():
                self._properties(event)
                self._add(self._scalar(event))
            case CollectionStartEvent():
                self._properties(event)
                if len(self._open) >= MAX_DEPTH:
                    self.stop(*self._place(event), f"the file is nested more than {MAX_DEPTH} levels deep")
                kind = Table if isinstance(event, MappingStartEvent) else Items
                self._open.append(_Open(kind(*self._place(event))))
            case CollectionEndEvent():
                closed = self._open.pop()
                place = closed.node.line, closed.node.column
                self._add(Scalar(*place, "", refused=True) if closed.refused and self._open else closed.node)
            case _:
                pass

    def refuse(self, line: int, column: int, message: str) -> None:
        """Record a mistake and go on, unless there are too many to be meant as a job file."""
        self.mistakes.append(Mistake(line, column, message))
        if len(self.mistakes) >= MAX_MISTAKES:
            raise _Stop

    def stop(self, line: int, column: int, message: str) -> None:
        """Record a mistake after which nothing can be read."""
        self.refuse(line, column, message)
        raise _Stop

    def _at(self, index: int) -> tuple[int, int]:
        line = bisect_right(self._starts, index)
        return line, index - self._starts[line - 1] + 1

    def _place(self, event: Event) -> tuple[int, int]:
        return self._at(event.start_mark.index)

    def _refuse_node(self, node: Node, message: str) -> None:
        self.refuse(node.line, node.column, message)

    def _document(self, event: DocumentStartEvent) -> None:
        self._documents += 1
        if self._documents > 1:
            self.stop(*self._place(event), "a second YAML document begins here: a job file holds one")
        if event.version or event.tags:
            self.refuse(*self._place(event), "YAML directives (%YAML, %TAG) are not taken: remove the line")

    def _properties(self, event: NodeEvent) -> None:
        if event.anchor is not None:
            self.refuse(*self._place(event), f"YAML anchors (&{short(event.anchor, _SHOWN)}) are not taken: remove it")
        if event.ctag is not None:  # type: ignore[attr-defined]  # scalars and collections have one, without types
            self.refuse(*self._place(event), "YAML tags (!…) are not taken: remove it; quotes make a text")

    def _scalar(self, event: ScalarEvent) -> Scalar:
        line, column = self._place(event)
        if _SURROGATE.search(event.value):
            self.refuse(line, column, "the escapes in this text make half a character (a lone surrogate)")
            return Scalar(line, column, "", refused=True)
        if event.style not in {"|", ">"}:
            return Scalar(line, column, event.value, plain=event.style is None)
        content = self._block_start(event.start_mark.index)
        return Scalar(line, column, event.value, content=content, by_line=event.style == "|")

    def _block_start(self, index: int) -> tuple[int, int]:
        """Find the first line of a block scalar; its column is that of its first line that is not blank."""
        first = bisect_right(self._starts, index)
        for start in self._starts[first:]:
            rest = self.text[start : start + MAX_DEPTH * 10]
            if rest[:1] != "\n":
                return first + 1, len(rest) - len(rest.lstrip(" ")) + 1
        return first, 1

    def _add(self, node: Node) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            self.stop(node.line, node.column, f"the file holds more than {MAX_VALUES:,} values: rows belong elsewhere")
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if isinstance(parent.node, Items):
            parent.node.values.append(node)
        elif parent.key is None:
            parent.key = self._key(node)
        else:
            self._enter(parent.node, parent.key, node)
            parent.key = None

    def _key(self, node: Node) -> Scalar:
        if isinstance(node, Scalar):
            if node.plain and node.text == "<<":
                self._refuse_node(node, "YAML merge keys (<<) are not taken: write the keys again")
                return Scalar(node.line, node.column, "<<", refused=True)
            return node
        self._open[-1].refused = True
        self._refuse_node(
            node, "a key must be text: put a value that begins with { or [, such as {{ text }}, in quotes"
        )
        return Scalar(node.line, node.column, "", refused=True)

    def _enter(self, table: Table, key: Scalar, value: Node) -> None:
        if key.refused:
            return
        if key.text in table.entries:
            first = table.entries[key.text][0].line
            self._refuse_node(key, f'duplicate key "{short(key.text, _SHOWN)}": it stands in line {first} already')
            return
        table.entries[key.text] = (key, value)


def _reason(error: MarkedYAMLError) -> str:
    """Give the parser's words in one line, with what is most often behind them."""
    words = [str(part) for part in (error.problem, error.context) if part]
    said = short(" ".join(words), 2 * _SHOWN)
    hint = next((hint for sign, hint in _HINTS if any(sign in part for part in words)), None)
    return f"{said}; {hint}" if hint else said
