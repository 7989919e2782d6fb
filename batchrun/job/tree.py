"""YAML text -> plain data, with the place of every part; what a job file may not contain is a mistake here.

Scalars stay texts as they are written (`name: 1.10` is "1.10"): pydantic gives them the type of their field. What goes
into a request's body or a JSON Schema has no field, and follows YAML 1.2.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import ComposerError, MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, StringMark
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from batchrun.errors import Mistake, did_you_mean
from batchrun.job.spec import SHORT_TYPES, JobPath, dotted
from batchrun.terminal import short

# Far more than a job has, and enough for a JSON Schema in it.
MAX_DEPTH = 50
SHOWN = 60

SHORT_FORMS = {"input": "path", "prompt": "user", "output": "path"}
"""`input: rows.csv` stands for `input: {path: rows.csv}`: the section and the key that its text is for."""

FROM_FILE = {("prompt", "system"), ("prompt", "user")}
"""Texts that may stand in a file of their own: `system: {file: prompts/system.md}`."""

EXPANDED = {
    ("input", "path"),
    ("output", "path"),
    ("checkpoint",),
    ("model", "endpoint"),
    ("model", "name"),
    ("model", "ca_file"),
    ("model", "headers"),
}
"""Where `${VAR}` is replaced by the variable's value (in headers: in their values); in a `file:` as well."""

# A job file is committed and mailed, so that these may not stand in it as they are.
SECRET_HEADERS = {"authorization", "proxy-authorization", "api-key", "x-api-key", "x-auth-token", "cookie"}

_AS_JSON = {("model", "params"), ("answer", "columns"), ("answer", "schema")}
_LABEL_DEPTH = 4
"""Deeper than a column called "values" is a column's list of values."""

_AS_WRITTEN = ("input", "csv", "null_values")  # `null_values: [NA, null]` means the text "null"
_NULL = {"", "~", "null", "Null", "NULL"}
_CONSTANTS = {
    **dict.fromkeys(_NULL),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
}
# Not ruamel's own types: they make a number of 1_000 and a date of 2024-01-31, which JSON does not have.
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_PADDED = re.compile(r"[-+]?0[0-9]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_NOT_JSON = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII)
_BIGGEST, _SMALLEST = 2**64 - 1, -(2**63)
_LONGEST_NUMBER = 40

_VARIABLE = re.compile(r"\$\$|\$\{([^}]*)(\}?)")
_BARE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")
_AFTER_BRACKET = ("mapping keys are not allowed", "but got '?'")  # `[a, b]?`
_HINTS = (
    ("mapping values are not allowed", 'put a text that contains ": " in quotes, or check the indentation'),
    ("cannot start any token", "indent with spaces, and put a text that begins with % @ ` or a tab in quotes"),
    (
        "expected <block end>",
        'the line is indented unlike its neighbours, or a text in "…" contains a double quote: use single ones in it',
    ),
    ("while scanning a quoted scalar", "a quote is not closed"),
    *((sign, "where a list or a choice may be null write {type: [a, b], nullable: true}") for sign in _AFTER_BRACKET),
    ("expected ',' or", "a bracket is not closed, or a text that contains { } [ ] needs quotes"),
    ("could not find expected ':'", 'a key is followed by ": ", also on the line before'),
    ("escape character", "write a backslash in single quotes, or twice in double ones"),
)


@dataclass(slots=True)
class Tree:
    """A job file's data, the nodes behind it by path, and the mistakes found while reading.

    `source` is the file's text as it is, `text` the same without a byte order mark and with line feeds alone.
    `wrong` are the paths with a mistake: nothing more needs to be said about them. `files` are the prompts that stand
    in a file of their own, with that file's name as written. `flags` are the paths that a flag of the command set.
    `is_dict`: the job is a program's dict, where places are keys.
    """

    source: str
    text: str
    data: Any = None
    nodes: dict[JobPath, Node] = field(default_factory=dict)
    keys: dict[JobPath, Node] = field(default_factory=dict)
    files: dict[JobPath, str] = field(default_factory=dict)
    flags: dict[JobPath, str] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    wrong: set[JobPath] = field(default_factory=set)
    is_dict: bool = False

    def mistake(self, path: JobPath, message: str, place: tuple[int, int] | None = None, line: int = 1) -> Mistake:
        """Return a mistake at a path: at the flag that set it, else at `place` or where the path stands in the file."""
        flag = next((flag for end in range(1, len(path) + 1) if (flag := self.flags.get(path[:end]))), None)
        if flag is None and self.is_dict:
            flag = "job" + "".join(f"[{step}]" if isinstance(step, int) else f'["{step}"]' for step in path)
        if flag is not None:
            return Mistake(0, 0, message, flag)
        return Mistake(*(place or self.locate(path, line)), message)

    def locate(self, path: JobPath, line: int = 1) -> tuple[int, int]:
        """Return line and column (from 1) of what stands at a path, or of the nearest part above it in the file.

        A text has the place of its value, and of its `line` (from 1) where the file shows it line by line, below a
        `|`; anything else has the place of its key. An empty path is line 1.
        """
        reached = path in self.nodes
        while path not in self.nodes and path:
            path = path[:-1]
        node = self.nodes.get(path)
        # An empty value (`prompt:`) has the place of what follows it, which is another line.
        if reached and isinstance(node, ScalarNode) and (node.value or node.style):
            if node.style in {"|", ">"}:
                return self._text_place(node, line)
            return _place(node.start_mark)
        if not path:
            return 1, 1
        return _place(self.keys.get(path, self.nodes[path]).start_mark)

    def key_place(self, path: JobPath) -> tuple[int, int]:
        """Return line and column of a key."""
        if path not in self.keys:
            return self.locate(path)
        return _place(self.keys[path].start_mark)

    def comment_after(self, path: JobPath) -> str | None:
        """Return the comment that ends the line of an unquoted text."""
        node = self.nodes.get(path)
        if not isinstance(node, ScalarNode) or node.style is not None:
            return None
        rest = self.text.split("\n")[node.end_mark.line][node.end_mark.column :].strip()
        return rest if rest.startswith("#") else None

    def _text_place(self, node: ScalarNode, line: int) -> tuple[int, int]:
        """Return the place of a line of a block scalar, whose text begins below its `|`, also with blank lines."""
        first = node.start_mark.line + 1
        contents = (line for line in self.text.split("\n")[first:] if line.strip())
        content = next(contents, "")
        return first + (line if node.style == "|" else 1), len(content) - len(content.lstrip(" ")) + 1


def read(
    source: str | Mapping[str, Any], folder: Path, environment: Mapping[str, str], settings: Sequence[str] = ()
) -> Tree:
    """Read a job file's text, or a dict like it; files of prompts are relative to `folder`.

    `environment` has the values of `${VAR}`, `settings` are `KEY=VALUE` of flags, which win over the job. `data` is
    None where the text is not a YAML mapping, which is among the mistakes. Raises TypeError for a value in a dict that
    YAML can't hold.
    """
    is_dict = not isinstance(source, str)
    text = source if isinstance(source, str) else as_yaml(source, indent=2)
    tree = Tree(text, text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"), is_dict=is_dict)
    try:
        root = _composed(tree.text)
    except _UnreadableError as problem:
        tree.mistakes.append(problem.mistake)
        return tree
    if isinstance(root, MappingNode):
        # Before, so that `--set input.sheet=A` finds a mapping; after, since `--set input=b.csv` is short itself.
        _expand_short_forms(root)
        for setting in settings:
            _put(root, setting, tree)
        _expand_short_forms(root)
        tree.data = _Walk(tree, folder, environment).value(root, ())
        return tree
    shape = "is not a mapping"
    if root is None or _is_null(root):
        shape = "is empty"
    tree.mistakes.append(Mistake(1, 1, f"the file {shape}: a job has the keys input, prompt, model and output"))
    return tree


def is_job(text: str) -> bool:
    """Check whether a YAML text is a job, also one with mistakes such as `promt:`."""
    try:
        root = _composed(text)
    except _UnreadableError:
        found = {key for key in _SECTIONS if re.search(rf"^{key} *:", text, re.MULTILINE)}
    else:
        found = {key.value for key, _ in root.value} & _SECTIONS if isinstance(root, MappingNode) else set()
    # Two of them alone may be another program's: pipelines have an input and an output, experiments a model too.
    return found >= {"input", "prompt"} or len(found) >= len(_SECTIONS) - 1


_SECTIONS = {"input", "prompt", "model", "output"}


def _put(root: MappingNode, setting: str, tree: Tree) -> None:
    """Put the value of `KEY=VALUE` into the nodes of a job file; KEY is dotted, VALUE is YAML."""
    key, equals, text = setting.partition("=")
    path: JobPath = tuple(key.split("."))
    tree.flags[path] = f"--set {short(setting, SHOWN)}"
    if not equals or not all(path):
        problem = "--set takes KEY=VALUE, such as model.params.temperature=0"
    elif path == ("model",) or path[:2] in {("model", "headers"), ("model", "endpoint")}:
        problem = next((why for name, why in _NOT_SET.items() if name in path), "set one key of it, such as model.name")
    else:
        try:
            _place_node(root, path, _setting_node(path, text))
        except _UnreadableError as error:
            problem = error.mistake.message
        else:
            return
    tree.mistakes.append(tree.mistake(path, problem))


_NOT_SET = {
    "headers": "headers may be secrets, and other users see a command line: write them in the job file",
    "endpoint": "write --endpoint, which sends the key nowhere else",
}


def _setting_node(path: JobPath, text: str) -> Node:
    """Return the node of a value. A prompt is taken as it is: in YAML `Label: {{ text }}` would be a mapping."""
    mark = StringMark("--set", 0, 0, 0, text, 0)
    is_mapping = text.startswith("{") and not text.startswith("{{")
    is_field = path == ("prompt",) or (path[:2] == ("prompt", "state") and len(path) > len(("prompt", "state")))
    if (path in FROM_FILE and not text.startswith("{file:")) or (is_field and not is_mapping):
        return _scalar_node(text, mark)
    return _composed(text) or _scalar_node(text, mark, style=None)


def _place_node(root: MappingNode, path: JobPath, node: Node) -> None:
    """Put a node at a path; other nodes on the path become mappings."""
    here = root
    for depth, step in enumerate(path, 1):
        known = {key.value: index for index, (key, _) in enumerate(here.value)}
        if step not in known:
            name = _scalar_node(str(step), node.start_mark)
            known[step] = len(here.value)
            here.value.append((name, name))
        key, inner = here.value[known[step]]
        if depth == len(path):
            inner = node
        elif not isinstance(inner, MappingNode):
            inner = MappingNode(_MAP, [], node.start_mark, node.end_mark)
        here.value[known[step]] = key, inner
        here = inner


def as_yaml(value: object, *, indent: int | None = None) -> str:
    """Return a job's dict, or a part of it, as the text of a job file. Raises TypeError for what YAML can't hold."""
    try:
        text = json.dumps(value, indent=indent, default=_plain, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise TypeError("a job can't hold NaN, infinity, or a dict that holds itself") from None
    return _NOT_RAW.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


# Plain in JSON, but YAML refuses them or takes them for the end of a line.
_NOT_RAW = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def _plain(value: Any) -> Any:  # noqa: ANN401  (any value of a dict)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"a job can't hold {value!r}: use dicts, lists, texts, numbers, True, False and None")


_MAP = "tag:yaml.org,2002:map"


def _scalar_node(text: str, mark: StringMark, *, style: str | None = '"') -> ScalarNode:
    """Return the node of a text in quotes, or without them, where it may be a number or null."""
    return ScalarNode("tag:yaml.org,2002:str", text, mark, mark, style=style)


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.style is None and node.value in _NULL


class _UnreadableError(Exception):
    """The text is not YAML."""

    def __init__(self, place: tuple[int, int], message: str) -> None:
        super().__init__(message)
        self.mistake = Mistake(*place, message)


def _composed(text: str) -> Node | None:
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_DEPTH  # a file of 10,000 brackets would end in a RecursionError
    yaml.composer.warn_double_anchors = False  # an anchor is a mistake with a place; ruamel would print a warning
    try:
        root: Node | None = yaml.compose(text)
    except MaxDepthExceededError as error:
        place = _place(error.problem_mark)
        raise _UnreadableError(place, f"the file is nested more than {MAX_DEPTH} levels deep") from None
    except ComposerError as error:
        if "document" in str(error.problem):
            message = "a second YAML document begins here; a job file contains one"
        else:
            message = "YAML aliases (*name) are not supported; put a text that begins with * in quotes"
        raise _UnreadableError(_place(error.problem_mark), message) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _UnreadableError(_place(mark) if mark else (0, 0), f"not valid YAML: {_reason(error)}") from None
    except ReaderError as error:
        before = text[: max(text.find(chr(error.character)), 0)]
        place = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise _UnreadableError(place, f"the character U+{error.character:04X} is not allowed in YAML") from None
    except Exception:  # noqa: BLE001  (ruamel's parser fails in its own ways on strange texts: `%YAML 9`)
        raise _UnreadableError((0, 0), "not valid YAML") from None
    return root


def _expand_short_forms(root: MappingNode) -> None:
    """Put `{path: …}` around the value in `input: rows.csv`; the new key has the place of the value."""
    for index, (key, value) in enumerate(root.value):
        if not isinstance(key, ScalarNode) or key.value not in SHORT_FORMS or _has_properties(value):
            continue
        is_text = isinstance(value, ScalarNode) and not _is_null(value)
        is_list = isinstance(value, SequenceNode) and key.value == "input"
        if is_text or is_list:
            pairs = [(_scalar_node(SHORT_FORMS[key.value], value.start_mark), value)]
            root.value[index] = key, MappingNode(_MAP, pairs, value.start_mark, value.end_mark)


class _Walk:
    """Walks over the nodes once. What is refused is left out of its mapping, and its path is in `tree.wrong`."""

    def __init__(self, tree: Tree, folder: Path, environment: Mapping[str, str]) -> None:
        self._tree = tree
        self._folder = folder
        self._environment = environment

    def value(self, node: Node, path: JobPath) -> Any:  # noqa: ANN401  (any value of a job)
        """Return the data of a node."""
        self._tree.nodes[path] = node
        if _has_properties(node):
            what = "YAML anchors and aliases (&name, *name) are not supported; repeat the value"
            if node.anchor is None:
                what = "YAML tags (!…) are not supported; remove it (quotes make a text)"
            self._refuse(path, what, _place(node.start_mark))
            return None
        if isinstance(node, ScalarNode):
            try:
                return self._scalar(node, path)
            except ValueError as problem:
                self._refuse(path, str(problem))
                return node.value  # in a list it holds its place
        if isinstance(node, SequenceNode):
            return [self.value(child, (*path, number)) for number, child in enumerate(node.value)]
        entries = dict(self._entries(node.value, path))
        if path in FROM_FILE:
            if (*path, "file") in self._tree.wrong:
                self._tree.wrong.add(path)
            if entries.keys() == {"file"}:
                return entries["file"]
        return entries

    def _entries(self, pairs: list[tuple[Node, Node]], path: JobPath) -> Iterator[tuple[str, Any]]:
        for key, value in pairs:
            problem = _key_problem(key)
            if problem:
                self._refuse(path, problem, _place(key.start_mark))
                continue
            here = (*path, key.value)
            if here in self._tree.keys:
                first = self._tree.keys[here].start_mark.line + 1
                message = f'duplicate key "{short(key.value, SHOWN)}": already in line {first}'
                self._refuse(here, message, _place(key.start_mark))
                continue
            self._tree.keys[here] = key
            data = self.value(value, here)
            if here not in self._tree.wrong:
                yield key.value, data

    def _refuse(self, path: JobPath, message: str, place: tuple[int, int] | None = None) -> None:
        self._tree.mistakes.append(self._tree.mistake(path, message, place))
        self._tree.wrong.add(path)

    def _scalar(self, node: ScalarNode, path: JobPath) -> Any:  # noqa: ANN401  (any value of a job)
        """Return the data of a scalar. Raises ValueError for one that a job can't contain."""
        text: str = node.value
        plain = node.style is None
        if _SURROGATE.search(text):
            raise ValueError("the escapes in this text make an unpaired surrogate")
        if plain and text in _NULL and (path[:3] != _AS_WRITTEN or not text):
            return None
        if path[:2] == ("answer", "columns") and path[-2] == "values" and len(path) > _LABEL_DEPTH:
            return text  # `values: [true, 1]` are names of labels
        if path[:2] in _AS_JSON:
            return _json_scalar(text, path) if plain else text
        if path[:3] == ("input", "csv", "columns"):
            return SHORT_TYPES.get(text, text)
        if path[:2] in FROM_FILE and path[2:] == ("file",):
            self._tree.files[path[:2]] = text
            return self._file(self._expanded(text, path))
        return self._expanded(text, path) if path[:2] in EXPANDED else text

    def _expanded(self, text: str, path: JobPath) -> str:
        """Return a text with its variables replaced; no message shows their values."""
        name = dotted(path)
        variables = [(match[1], match[2]) for match in _VARIABLE.finditer(text) if match[0] != "$$"]
        if path[:2] == ("model", "headers") and str(path[-1]).lower() in SECRET_HEADERS and not variables:
            raise ValueError(f"{name} is a secret in plain text: put it into a variable and write ${{NAME}}")
        for variable, end in variables:
            if not end or not VARIABLE_NAME.fullmatch(variable):
                raise ValueError(f"{name} has a ${{ without a variable: write ${{NAME}}, or $$ for a dollar")
            # An empty text in its place would send requests to another address, or without a key.
            if variable not in self._environment:
                near = did_you_mean(variable, self._environment)
                advice = f": set it in the environment or in .env, or write $${{{variable}}} for that text itself"
                raise ValueError(f"{name}: the variable {variable} is not set{near or advice}")
        for bare in _BARE.findall(_VARIABLE.sub("", text)):
            if bare in self._environment:  # $HOME/out.csv would make a folder called $HOME
                raise ValueError(f"{name}: write ${{{bare}}} for the variable {bare}, or $${bare} for that text itself")
        return _VARIABLE.sub(lambda match: self._environment[match[1]] if match[1] else "$", text)

    def _file(self, name: str) -> str:
        """Return the text of a prompt's file, its line ends as in YAML."""
        try:
            return (self._folder / Path(name).expanduser()).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{name} is not UTF-8: save it as UTF-8") from None
        except (OSError, RuntimeError, ValueError) as problem:
            raise ValueError(f"{name} can't be read: {getattr(problem, 'strerror', None) or problem}") from None


def _json_scalar(text: str, path: JobPath) -> Any:  # noqa: ANN401  (a JSON scalar)
    """Return a plain scalar as YAML 1.2's core schema types it: `no` and `12:30` are texts."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NOT_JSON.fullmatch(text):
        raise ValueError(f"{dotted(path)} is {text}, which JSON can't represent")
    number: float = math.nan
    if _INTEGER.fullmatch(text):
        # Labels such as 01 and 007 are codes: as numbers they would lose their zeros, in the answers and the output.
        if path[:2] == ("answer", "columns") and _PADDED.fullmatch(text):
            raise ValueError(f"{dotted(path)}: {short(text, SHOWN)} would become a number without its zeros; quote it")
        # Python raises an error of its own for an integer of more than 4,300 digits.
        if len(text) <= _LONGEST_NUMBER:
            number = int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
        fits = _SMALLEST <= number <= _BIGGEST
    elif _FLOAT.fullmatch(text):
        number = float(text)
        fits = math.isfinite(number)
    else:
        return text
    if not fits:
        raise ValueError(f"{dotted(path)} is a number too large for JSON")
    return number


def _has_properties(node: Node) -> bool:
    """Check whether a node has an anchor or a tag; what an alias repeats has an anchor."""
    # ruamel sets a tag on every node, so only the text shows whether one was written, as in `!!str 5`.
    mark = node.start_mark
    return node.anchor is not None or mark.buffer[mark.pointer : mark.pointer + 1] == "!"


def _key_problem(key: Node) -> str | None:
    if not isinstance(key, ScalarNode):
        return "a key must be text: put a value that begins with { or [, such as {{ text }}, in quotes"
    if _has_properties(key):
        return "YAML anchors, aliases and tags are not supported in keys; remove it"
    if key.style is None and key.value == "<<":
        return "YAML merge keys (<<) are not supported; repeat the keys"
    if _is_null(key):
        return "a key must be text, not null: put it in quotes"
    if _SURROGATE.search(key.value):
        return "the escapes in this key make an unpaired surrogate"
    return None


def _place(mark: StringMark) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def _reason(error: MarkedYAMLError) -> str:
    """Return the parser's words in one line, with their most frequent cause."""
    words = [str(part) for part in (error.problem, error.context) if part]
    said = short(" ".join(words), 2 * SHOWN)
    hint = next((hint for sign, hint in _HINTS if any(sign in part for part in words)), None)
    return f"{said}; {hint}" if hint else said
