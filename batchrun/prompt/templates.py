"""Prompt templates: Jinja source -> the columns it uses, the mistakes in it, its text for a row."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from functools import cached_property, lru_cache, wraps
from typing import Any

from jinja2 import (
    Environment,
    StrictUndefined,
    TemplateSyntaxError,
    Undefined,
    meta,
    nodes,
    pass_environment,
)
from jinja2 import Template as Compiled
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from batchrun.errors import did_you_mean, known_names, nearest
from batchrun.records import JsonRow

MAX_PROMPT_BYTES = 8 * 2**20
"""The longest text that a template may make; more is a row's mistake (a loop over the wrong thing) and never sent."""

ROW = "row"
"""The name under which a template finds the whole row, for columns whose names are not identifiers."""

_PLAIN = (str, int, float, Decimal, date, time, timedelta, list, tuple, dict, bytes, range, Undefined)
_TEXT_FILTERS = (
    "capitalize", "center", "e", "escape", "forceescape", "indent", "lower", "replace", "safe", "striptags", "title",
    "trim", "truncate", "upper", "urlize", "wordcount", "wordwrap",
)  # fmt: skip
_SEQUENCE_FILTERS = ("items", "map", "reject", "rejectattr", "select", "selectattr")
# Names that mean something else in an expression of Jinja.
_WORDS = {
    "and", "as", "do", "else", "false", "for", "if", "in", "is", "loop", "none", "not", "or", "self", "true",
}  # fmt: skip
_PRINTS_NULL = "it prints a null: use default('…')"
_INCLUDING: tuple[type[nodes.Stmt], ...] = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)
_REPEATING: tuple[type[nodes.Stmt], ...] = (nodes.For, nodes.Macro)


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a row's question can't be made: the name in the table of codes, and the message."""

    error_type: str
    message: str


class PromptError(Exception):
    """A template makes no text for this row; `error_type` is its name in the table of codes."""

    def __init__(self, message: str, error_type: str = "template_error") -> None:
        super().__init__(message)
        self.error_type = error_type


class _Null(Undefined):
    """An empty cell: false, equal to none, null in JSON, and an error wherever it would become text."""

    __slots__ = ()
    __str__, __iter__, __len__ = StrictUndefined.__str__, StrictUndefined.__iter__, StrictUndefined.__len__
    __contains__ = StrictUndefined.__contains__
    __hash__ = Undefined.__hash__

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, _Null)

    def __repr__(self) -> str:  # in the text of a whole list or row
        return "None"


class _Row(dict[str, Any]):
    """A row by the names of its columns; a field that its JSON object has not is null."""

    def __missing__(self, name: str) -> _Null:
        return _filled(None, name)  # type: ignore[no-any-return]


def _is_none(value: Any) -> bool:  # noqa: ANN401  (what a row holds)
    return value is None or isinstance(value, _Null)


def _printable(value: Any) -> Any:  # noqa: ANN401  (what a row holds)
    """Let through what prints the same at each run: a generator prints its address, which would be a new question."""
    if type(value) is str:  # nearly all values
        return value
    if value is None:
        raise PromptError(_PRINTS_NULL)
    if not isinstance(value, _PLAIN):
        raise PromptError(f'it prints a {type(value).__name__}: add "| list" or "| join(…)"')
    return prompt_text(value)


def prompt_text(value: Any) -> Any:  # noqa: ANN401  (what a row holds)
    """Return a value as a prompt shows it: the table in docs/reference/columns.md. No Python repr reaches a prompt.

    What `str` turns into that text comes back as it is.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return f"{value:f}"  # str would write a zero with ten places as 0E-10
    if isinstance(value, (list, tuple, dict)):
        return _tojson(value)
    return value


def _string(value: Any) -> str:  # noqa: ANN401  (any value)
    """Return a value's text for Jinja's filter `string` and its operator `~`."""
    return str(_printable(value))


def _of_text(jinjas: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of Jinja that works on the text of its value: ["a"] and true, where Python writes ['a'], True."""
    position = int(hasattr(jinjas, "jinja_pass_arg"))  # the environment comes first

    @wraps(jinjas)
    def filtered(*args: Any, **options: Any) -> Any:  # noqa: ANN401  (Jinja's)
        value = args[position]
        if not isinstance(value, str):
            args = (*args[:position], _string(value), *args[position + 1 :])
        return jinjas(*args, **options)

    return filtered


def _of_sequence(jinjas: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of Jinja that refuses a null, of which Jinja would make an empty list."""
    position = int(hasattr(jinjas, "jinja_pass_arg"))

    @wraps(jinjas)
    def filtered(*args: Any, **options: Any) -> Any:  # noqa: ANN401  (Jinja's)
        if _is_none(args[position]):
            _string(args[position])  # raises
        return jinjas(*args, **options)

    return filtered


def _formattable(value: Any) -> Any:  # noqa: ANN401  (any value)
    """Return a value for `%`: numbers stay numbers, for %.2f."""
    if isinstance(value, (bool, list, tuple, dict)):
        return prompt_text(value)
    return value


def _format(template: str, *args: Any, **named: Any) -> str:  # noqa: ANN401  (any values)
    """Fill %s and the like as Jinja's own filter does, each value as a prompt shows it."""
    if named:
        return str(template) % {name: _formattable(value) for name, value in named.items()}
    return str(template) % tuple(map(_formattable, args))


@pass_environment
def _join(environment: Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    """Join texts as Jinja's own filter does, each as a prompt shows it."""
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return str(d).join(map(_string, value))


def _tojson(value: Any, indent: int | None = None) -> str:  # noqa: ANN401  (any value)
    """Return JSON for a model to read: without the escapes that HTML would need."""
    return json.dumps(value, ensure_ascii=False, indent=indent, default=_json_value)


def _json_value(value: Any) -> str | None:  # noqa: ANN401  (any value that JSON has no type for)
    if _is_none(value):
        return None
    return _string(value)


def _bounded_join(pieces: Iterable[str]) -> str:
    """Join, but stop at the bound before the memory is gone."""
    size, joined = 0, []
    for piece in pieces:
        size += len(piece)
        _check_length(size)
        joined.append(piece)
    return "".join(joined)


def _check_length(size: int) -> None:
    if size > MAX_PROMPT_BYTES:
        raise PromptError(f"it makes more than {MAX_PROMPT_BYTES:,} characters", "request_too_large")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja without randomness, without silent nulls, and with bounds."""

    intercepted_binops = frozenset({"*", "%"})
    concat = staticmethod(_bounded_join)

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, finalize=_printable, autoescape=False)
        self.filters["tojson"] = _tojson
        self.tests["none"] = _is_none
        self.tests["defined"] = lambda value: not isinstance(value, Undefined) or isinstance(value, _Null)
        self.tests["undefined"] = lambda value: isinstance(value, Undefined) and not isinstance(value, _Null)
        self.filters.update({name: _of_text(self.filters[name]) for name in _TEXT_FILTERS})
        self.filters.update({name: _of_sequence(self.filters[name]) for name in _SEQUENCE_FILTERS})
        self.filters.update({"string": _string, "pprint": _string, "join": _join, "format": _format})
        # With another text at each run the question would be another one, asked and paid again.
        del self.filters["random"], self.globals["lipsum"]

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  (Jinja's)
        """Call what a template calls; a null that a method returns (`row.get("x")`) is an empty cell like any other."""
        value = super().call(context, obj, *args, **kwargs)
        if value is None:
            return _Null(hint=_PRINTS_NULL)
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401  (Jinja's)
        """Bound `"text" * n`: n may come from a row. `"%s" % value` shows the value as a prompt does."""
        if operator == "%":
            if isinstance(left, str):
                right = tuple(map(_formattable, right)) if isinstance(right, tuple) else _formattable(right)
            return super().call_binop(context, operator, left, right)
        # Jinja's sandbox bounds range() alone.
        for text, times in ((left, right), (right, left)):
            if hasattr(text, "__len__") and isinstance(times, int):
                _check_length(len(text) * times)
        return super().call_binop(context, operator, left, right)


_ENVIRONMENT = _Environment()
_FUNCTIONS = dict(_ENVIRONMENT.globals)
_ENVIRONMENT.globals.clear()
"""`range`, `dict` and so on: part of each scope instead, since the input may have a column called `range`."""


class _Parsed:
    """A template: the names that it uses, and those mistakes in it that no input changes.

    `row_uses` has the line of each use of `row`, with the column that it names or None.
    """

    def __init__(self, source: str) -> None:
        """Parse a template. Raises TemplateSyntaxError."""
        self.source = source
        self._tree = _ENVIRONMENT.parse(source)
        for joined in self._tree.find_all(nodes.Concat):  # Jinja would join the Python texts of values
            joined.nodes = [_as_text(node) for node in joined.nodes]
        self.mistakes = [*_unknown_words(self._tree), *_includings(self._tree)]
        self.names = meta.find_undeclared_variables(self._tree)
        self.row_uses = list(_row_uses(self._tree))
        self.loops = any(True for _ in self._tree.find_all(_REPEATING))

    def undeclared(self) -> Iterator[tuple[int, str]]:
        """Yield the names that it uses and nowhere assigns, maybe in one branch only, with the line of their use."""
        found = list(self._tree.find_all(nodes.Name))
        for name in sorted(self.names - {node.name for node in found if node.ctx == "store"}):
            # `{% set ns.x = 1 %}` uses a name without a node of its own.
            yield min((node.lineno for node in found if node.name == name), default=1), name

    @cached_property
    def compiled(self) -> Compiled:
        """The compiled template; raises TemplateSyntaxError where there are `mistakes`."""
        return _ENVIRONMENT.from_string(self._tree)


# A start checks the templates, looks for what they begin with and renders them; to parse them each time was 17 % of it.
_parsed = lru_cache(maxsize=1_000)(_Parsed)


class Template:
    """One compiled template; its scope is the row that its Templates was filled with.

    `constant` is its text where no row changes it.
    """

    def __init__(self, parsed: _Parsed, scope: dict[str, Any]) -> None:
        self.source = parsed.source
        self.constant: str | None = None
        self._compiled = parsed.compiled
        self._scope = scope
        self._root = self._compiled.root_render_func
        self._join: Callable[[Iterable[str]], str] = _bounded_join if parsed.loops else "".join
        self._context = self._compiled.new_context(scope, shared=True)

    def text(self) -> str:
        """Return the text for the row that was filled in; raises PromptError, which names a null's column."""
        context = self._context
        if context.vars or context.exported_vars:  # a {% set %} of the row before
            context.vars.clear()
            context.exported_vars.clear()
        try:
            return self._join(self._root(context))
        except Exception as error:  # the sandbox: a template may raise anything
            self._context = self._compiled.new_context(self._scope, shared=True)
            if isinstance(error, PromptError):
                raise
            message = getattr(error, "message", None) or str(error) or type(error).__name__
            # `{{ price / 2 }}` of a CSV file, whose cells are text.
            if isinstance(error, TypeError) and "'str'" in message:
                message += "; a text is not a number: write {{ name | int }}, or name its type in input.csv.columns"
            raise PromptError(message) from error


class Templates:
    """All templates of a job over one scope: the current row."""

    def __init__(self, columns: Sequence[str] | None) -> None:
        """`columns` are the input's; where they are unknown (None), templates can be checked but not filled."""
        self._known = tuple(columns or ())
        self._is_open = columns is None
        self._functions = _FUNCTIONS.keys() - set(self._known)
        self._scope: dict[str, Any] = {name: _FUNCTIONS[name] for name in self._functions}
        self._uses_row = False
        self.columns: tuple[str, ...] = ()

    def uses_columns(self, source: str) -> bool:
        """Check whether a template without mistakes uses a column."""
        used = _parsed(source).names
        if self._is_open:
            return bool(used - self._functions)
        return bool(used & {*self._known, ROW})

    def mistakes(self, source: str) -> list[tuple[int, str]]:
        """Return the mistakes in a template before any row: (line in it, message)."""
        try:
            parsed = _parsed(source)
        except TemplateSyntaxError as error:
            spaced = [name for name in self._known if not name.isidentifier() and name in source]
            message = f"template: {_plain(error.message or 'not valid')}"
            if spaced:
                message += f"; write {spelled(spaced[0])} for that column"
            return [(error.lineno, message)]
        if self._is_open:
            return sorted(parsed.mistakes)
        return sorted([*parsed.mistakes, *self._unknown_columns(parsed)])

    def _unknown_columns(self, parsed: _Parsed) -> Iterator[tuple[int, str]]:
        for line, name in parsed.undeclared():
            if name not in self._known and name not in self._functions and name != ROW:
                yield line, self._no_column(name)
        if ROW in parsed.names and ROW not in self._known:
            for line, accessed in parsed.row_uses:
                # `row.items()` is a method, unless a column has that name.
                if accessed is not None and accessed not in self._known and not hasattr(dict, accessed):
                    yield line, self._no_column(accessed)

    def _no_column(self, name: str) -> str:
        # `{{ size.cm }}` for the column "size.cm": Jinja looks for `cm` in a column "size".
        dotted = [known for known in self._known if known.startswith(f"{name}.")]
        if dotted:
            return f'the input has no column "{name}"; write {spelled(dotted[0])} for the column "{dotted[0]}"'
        advice = ""
        if (near := nearest(name, self._known)) and not near.isidentifier():
            advice = f", did you mean {spelled(near)}?"
        elif self._known:
            advice = known_names(name, self._known)
        return f'the input has no column "{name}"{advice}'

    def add(self, source: str) -> Template:
        """Compile a template and count its columns; raises TemplateSyntaxError where `mistakes` returns one."""
        parsed = _parsed(source)
        used = parsed.names - self._functions
        if ROW in used and ROW not in self._known:
            self._uses_row = True
            for _, name in parsed.row_uses:
                if name is not None and name in self._known:
                    used.add(name)
                else:
                    used.update(self._known)
        self.columns = tuple(name for name in self._known if name in used or name in self.columns)
        template = Template(parsed, self._scope)
        if not used:
            with contextlib.suppress(PromptError):  # then each row reports it
                template.constant = template.text()
        return template

    def fill(self, values: Sequence[Any]) -> None:
        """Set the row: values in the order of `columns`, and maybe more, which are not used."""
        scope = self._scope
        for name, value in zip(self.columns, values, strict=False):
            scope[name] = value if type(value) is str else _filled(value, name)
        if self._uses_row:
            names: Iterable[str] = self.columns
            if isinstance(values, JsonRow):
                # With the fields of other lines in it, one more line could make all rows new questions.
                names = filter(scope.__contains__, values.fields)
            scope[ROW] = _Row((name, scope[name]) for name in names)


class Fields:
    """Several templates as one text: a JSON object with their texts by name."""

    constant: None = None

    def __init__(self, fields: Mapping[str, Template]) -> None:
        self._fields = fields
        self.source = json.dumps({name: template.source for name, template in fields.items()})

    def text(self) -> str:
        """Return the object for the row that was filled in; raises PromptError."""
        return json.dumps({name: template.text() for name, template in self._fields.items()}, ensure_ascii=False)


def _filled(value: Any, column: str, what: str = "is") -> Any:  # noqa: ANN401  (what a row holds)
    """Return a value with its nulls, however deep, as such that a template can't print."""
    if value is None:
        do = f"write {{{{ {spelled(column)} | default('…') }}}} or leave such rows out by input.where"
        return _Null(hint=f'column "{column}" {what} null: {do}')
    if isinstance(value, list):
        return [_filled(one, column, "contains a") for one in value]
    if isinstance(value, dict):
        return {name: _filled(one, column, "contains a") for name, one in value.items()}
    return value


def spelled(name: str) -> str:
    """Return a column as a template writes it."""
    if name.isidentifier() and name.lower() not in _WORDS:
        return name
    quoted = json.dumps(name, ensure_ascii=False)
    # Most prompts stand in YAML's double quotes, in which `{{ row["x y"] }}` would end the text.
    if not {"'", "\\"} & {*quoted}:
        quoted = f"'{name}'"
    return f"{ROW}[{quoted}]"


def _plain(message: str) -> str:
    """Return Jinja's words with signs in place of its names for them."""
    for name, sign in (("print statement", "}}"), ("statement block", "%}")):
        message = message.replace(f"token 'end of {name}'", sign).replace(f"'end of {name}'", sign)
    return message.rstrip(".")


def _as_text(node: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(node, "string", [], [], None, None, lineno=node.lineno, environment=node.environment)


def _unknown_words(tree: nodes.Template) -> Iterator[tuple[int, str]]:
    for kind, node_type, words, stand_in in (
        ("filter", nodes.Filter, _ENVIRONMENT.filters, "string"),
        ("test", nodes.Test, _ENVIRONMENT.tests, "defined"),
    ):
        for node in tree.find_all(node_type):
            if node.name not in words:
                advice = did_you_mean(node.name, words)
                yield node.lineno, f'template: there is no {kind} "{node.name}"{advice}'
                node.name = stand_in  # so that the search for columns can continue


def _includings(tree: nodes.Template) -> Iterator[tuple[int, str]]:
    for node in tree.find_all(_INCLUDING):
        yield node.lineno, "template: a prompt can't include, import or extend another file"


def _row_uses(tree: nodes.Template) -> Iterator[tuple[int, str | None]]:
    """Yield the line of each use of `row` with the column it names; None where only rendering shows it."""
    named: set[int] = set()
    for node in tree.find_all((nodes.Getitem, nodes.Getattr)):
        if isinstance(node, nodes.Getattr):
            target, name = node.node, node.attr
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            target, name = node.node, str(node.arg.value)
        else:
            continue
        if isinstance(target, nodes.Name) and target.name == ROW:
            named.add(id(target))
            yield node.lineno, name
    for node in tree.find_all(nodes.Name):
        if node.name == ROW and id(node) not in named:
            yield node.lineno, None
