"""What an answer must look like: the job file's short form or JSON Schema -> one strict JSON Schema, and its mistakes.

The short form, by example:

    label: [good, bad]                       one of these; a null among them allows null
    n: integer                               string, integer, number, boolean, date; "integer?" may be null
    tags: [string]                           a list; so are [[a, b]] and [{city: string}]
    where: {city: string, country: string?}  an object
    score: {type: integer, description: "…", min: 1, max: 5}    also pattern, values, nullable; `type` in any form
    team: {values: {billing: "Invoices", none: "Neither"}}      labels and what they mean, or a list of labels
    urgency: {values: [low, high], ordered: true}               lowest first; only decision models use it

A mapping with `type` or `values` and no other keys than these is the long form, any other mapping an object.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jsonschema_rs

from batchrun.errors import did_you_mean
from batchrun.job import SHORT_TYPES, JobPath

Schema = dict[str, Any]
SchemaMistake = tuple[JobPath, str]
"""Where in the job file (from `answer` on), and what."""

_TYPES: dict[str, Schema] = {
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "date": {"type": "string", "format": "date"},
}
_TYPES |= {short: _TYPES[name] for short, name in SHORT_TYPES.items()}
_LONG_FORM = {"type", "values", "description", "min", "max", "pattern", "nullable", "ordered"}
_JSON_TYPES = ("string", "integer", "number", "boolean", "object", "array", "null")
_FORMS = "string, integer, number, boolean or date (string? may be null), [a, b], [string] or {field: string}"
_LENGTH = 'for the length of a text write pattern: "^.{1,200}$"'
_KEY_HINTS = {
    **dict.fromkeys(("minlen", "maxlen", "minlength", "maxlength", "length"), _LENGTH),
    **dict.fromkeys(("minimum", "minitems", "ge", "gt"), "write min"),
    **dict.fromkeys(("maximum", "maxitems", "le", "lt"), "write max"),
    **dict.fromkeys(("enum", "choices", "options"), "write values"),
    **dict.fromkeys(("null", "optional", "required"), "write nullable: true where a value may be missing"),
    "items": "for a list write [string], or type: [string]",
}
"""Keys that people write for a column, without `_`, and what to write instead."""

_TYPE_HINTS = {
    **dict.fromkeys(("list", "array"), "; for a list write [string]"),
    **dict.fromkeys(("object", "dict", "json"), "; for an object write {field: string}"),
    **dict.fromkeys(("enum", "choice", "category"), "; for a choice write [a, b]"),
    **dict.fromkeys(("text", "varchar"), "; write string"),
    **dict.fromkeys(("datetime", "timestamp", "time"), "; write date, or string with a pattern"),
    **dict.fromkeys(("decimal", "double", "percent", "money"), "; write number"),
}
"""Names of types that people write for a column, and what to write instead."""

_UNIONS = {"anyOf", "oneOf", "allOf", "$ref"}
_QUOTED = re.compile(r"(\[.+\]|\{.+\})(\??)")
_OPTIONAL = re.compile(r"(?:typing\.)?Optional\[(.+)\]|(.+?) *\| *None")
_LIST_OF = re.compile(r"(?:list|array|sequence|set)[\[<](.+)[\]>]|(.+)\[\]", re.IGNORECASE)
_CHOICE_OF = re.compile(r"(?:Literal|enum|choice)[\[(](.+)[\])]|(.+[|,/].+)", re.IGNORECASE)
_RANGE = re.compile(r"(-?\d+) *(?:-|\.\.\.?|to) *(-?\d+)")

_BOUNDS = {
    "integer": ("minimum", "maximum"),
    "number": ("minimum", "maximum"),
    "array": ("minItems", "maxItems"),
}
_BOUND_WORDS = {"integer": "a whole number", "number": "a number", "array": "a whole number from 0 on"}


def from_columns(columns: Mapping[str, Any]) -> tuple[Schema, list[SchemaMistake]]:
    """Return the JSON Schema of `answer.columns`, and the mistakes; with mistakes the schema is incomplete."""
    compiler = _Columns()
    return compiler.object(columns, ("answer", "columns")), compiler.mistakes


def from_schema(schema: Mapping[str, Any]) -> list[SchemaMistake]:
    """Check `answer.schema`; what else a server with strict schemas wants, it says itself (bad_parameters)."""
    path: JobPath = ("answer", "schema")
    if mistakes := _rejected(dict(schema), path):
        return mistakes
    if schema.get("type") != "object":
        return [(path, 'the answer is one object: write "type: object" at the top')]
    if not schema.get("properties"):
        return [(path, "the object needs at least one property: each becomes a column")]
    return []


def column_of(schema: Any) -> Schema:  # noqa: ANN401  (any JSON Schema)
    """Return a property's schema as columns are made of it: "X or null" is X, a constant an enum with one value.

    A property with a reference or a union has no type of its own: its column holds JSON text.
    """
    if not isinstance(schema, Mapping):
        return {}
    others = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    if len(others) == 1:
        return column_of(others[0])  # as Pydantic writes an optional field
    if "const" in schema:
        return {"enum": [schema["const"]]}
    column = dict(schema)
    if isinstance(schema.get("properties"), Mapping):
        column["properties"] = {name: column_of(inner) for name, inner in schema["properties"].items()}
    if "items" in schema:
        column["items"] = column_of(schema["items"])
    return column


def _rejected(schema: Schema, path: JobPath) -> list[SchemaMistake]:
    """Ask the validator itself; only it knows every pattern and keyword."""
    try:
        jsonschema_rs.validator_for(schema, validate_formats=True, offline=True)
    except jsonschema_rs.ValidationError as error:
        place = (*path, *error.instance_path)
        if place[-1] == "type" and isinstance(error.instance, str):
            return [(place, f'unknown type "{error.instance}"{did_you_mean(error.instance, _JSON_TYPES)}')]
        return [(place, f"not a valid JSON Schema: {error.message}")]
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        return [(path, f"not a valid JSON Schema: {error}")]
    return []


# The short form


class _Columns:
    """Makes schemas of the short form, and collects the mistakes in it, so that all of them can be reported at once."""

    def __init__(self) -> None:
        self.mistakes: list[SchemaMistake] = []

    def _refuse(self, path: JobPath, problem: str) -> None:
        self.mistakes.append((path, problem))

    def object(self, properties: Mapping[str, Any], path: JobPath) -> Schema:
        if not properties:
            self._refuse(path, "an object needs at least one property: Parquet can't hold empty ones")
        return {
            "type": "object",
            "properties": {name: self._column(form, (*path, name)) for name, form in properties.items()},
            "required": list(properties),
            "additionalProperties": False,
        }

    def _column(self, form: Any, path: JobPath) -> Schema:  # noqa: ANN401  (as written)
        if isinstance(form, str):
            return self._named(form, path)
        if isinstance(form, Mapping):
            return self._mapping(form, path)
        if isinstance(form, Sequence):
            if len(form) == 1 and form[0] is not None:
                if _is_form(form[0]):
                    return {"type": "array", "items": self._column(form[0], (*path, 0))}
                hint = "a list of texts is [string], one fixed value {values: [x]}"
                self._refuse(path, f"a choice needs at least two values; {hint}")
            elif len(form) > 1 and all(one is None or _is_type(one) for one in form):
                self._refuse(path, _types_as_labels(form))
            return self._enum(form, path)
        self._refuse(path, f"{json.dumps(form)} is not a type; write {_FORMS}")
        return {}

    def _mapping(self, form: Mapping[str, Any], path: JobPath) -> Schema:
        near_misses = list(_near_misses(form, path))
        if near_misses:
            self.mistakes += near_misses
            return {}
        if form.keys() <= _LONG_FORM and form.keys() & {"type", "values"}:
            return self._long(form, path)
        return self.object(form, path)

    def _named(self, word: str, path: JobPath) -> Schema:
        if not _is_type(word):
            plain = word.removesuffix("?")
            hint = _TYPE_HINTS.get(plain.lower()) or _other_notation(word) or did_you_mean(plain, _TYPES)
            self._refuse(path, f'unknown type "{word}"{hint or f"; write {_FORMS}"}')
            return {}
        schema = dict(_TYPES[word.removesuffix("?")])
        if word.endswith("?"):
            return _nullable(schema)
        return schema

    def _enum(self, values: Sequence[Any], path: JobPath) -> Schema:
        """Make an enum of texts or of integers; a null among them allows null."""
        chosen = [value for value in values if value is not None]
        kinds = {type(value) for value in chosen}
        if kinds not in ({str}, {int}):
            hint = "put texts in quotes"
            if bool in kinds:
                hint = "for true and false write boolean"
            if not chosen:
                hint = "write at least one"
            self._refuse(path, f"the values must be all texts or all integers; {hint}")
            return {}
        if len(set(chosen)) < len(chosen):
            twice = next(value for value in chosen if chosen.count(value) > 1)
            self._refuse(path, f"the value {twice!r} is there twice")
        schema = {"type": "string" if kinds == {str} else "integer", "enum": chosen}
        if len(chosen) < len(values):
            return _nullable(schema)
        return schema

    def _long(self, form: Mapping[str, Any], path: JobPath) -> Schema:
        schema = self._long_type(form, path)
        if not schema:
            return {}
        if form.get("nullable", False) is True:
            schema = _nullable(schema)
        elif form.get("nullable", False) is not False:
            self._refuse((*path, "nullable"), "nullable must be true or false")
        if form.get("ordered", False) not in (True, False):
            self._refuse((*path, "ordered"), "ordered must be true or false")
        elif form.get("ordered") and "values" not in form:
            self._refuse((*path, "ordered"), "ordered is for values, the lowest first")
        self._bounds(form, _types(schema)[0], path, schema)
        for key in form.keys() & {"pattern", "description"}:
            problem = _text_problem(key, form[key], schema)
            if problem:
                self._refuse((*path, key), problem)
            schema[key] = form[key]
        if isinstance(values := form.get("values"), Mapping):
            schema["description"] = " ".join(filter(None, (schema.get("description"), self._meanings(values, path))))
        return schema

    def _meanings(self, values: Mapping[str, Any], path: JobPath) -> str:
        for name, meaning in values.items():
            if not isinstance(meaning, str | None):
                self._refuse((*path, "values", name), f"a description must be a text, not {meaning!r}")
        return "; ".join(f"{name}: {meaning}" for name, meaning in values.items() if meaning is not None)

    def _long_type(self, form: Mapping[str, Any], path: JobPath) -> Schema:
        """Make the schema of `type` and `values` together."""
        inner = form.get("type")
        if isinstance(inner, Mapping):
            schema = self.object(inner, (*path, "type"))
        elif "type" in form:
            schema = self._column(inner, (*path, "type"))
        else:
            schema = {}
        if "values" not in form:
            return schema
        values, place = form["values"], (*path, "values")
        if not isinstance(values, Mapping | Sequence) or isinstance(values, str):
            self._refuse(place, f"values must be a list, or names with descriptions, not {values!r}")
            return {}
        enum = self._enum([_label(value, schema) for value in values], place)
        if not schema or not enum:
            return enum
        if _types(schema)[0] != _types(enum)[0] or "format" in schema:
            self._refuse(place, f"these are not of type {inner}")
        if "null" in _types(schema):
            return _nullable(enum)
        return enum

    def _bounds(self, form: Mapping[str, Any], kind: str, path: JobPath, schema: Schema) -> None:
        for key, name in zip(("min", "max"), _BOUNDS.get(kind, ("", "")), strict=True):
            if key not in form:
                continue
            is_number = type(form[key]) is int or (kind == "number" and type(form[key]) is float)
            if kind == "string":
                self._refuse((*path, key), f"{key} is for numbers and lists; {_LENGTH}")
            elif not name or "enum" in schema:
                self._refuse((*path, key), f"{key} is for numbers and lists")
            elif not is_number or (kind == "array" and form[key] < 0):
                self._refuse((*path, key), f"{key} must be {_BOUND_WORDS[kind]}, not {form[key]!r}")
            else:
                schema[name] = form[key]
        low, high = (schema.get(name) for name in _BOUNDS.get(kind, ("", "")))
        if low is not None and high is not None and low > high:
            self._refuse((*path, "max"), f"max is below min: {high} < {low}")


def _near_misses(form: Mapping[str, Any], path: JobPath) -> Iterator[SchemaMistake]:
    """Yield keys of JSON Schema, and misspelt ones, in what would otherwise be read as an object."""
    name = path[-1]
    if isinstance(form.get("enum"), list) and form.keys() <= {"enum", "type", "description"}:
        values = ", ".join(map(str, form["enum"]))
        yield path, f'this is an object with the field "enum"; for a fixed list write {name}: [{values}]'
    elif "items" in form and form.keys() <= {"items", "type"}:
        yield path, f'this is an object with the field "items"; for a list write {name}: [string]'
    elif "properties" in form and form.keys() <= {"properties", "type", "required", "additionalProperties"}:
        yield path, f'this is an object with the field "properties"; write {name}: {{field: string}}, or answer.schema'
    elif form.get("format") == "date" and form.get("type") in ("string", "string?"):
        yield path, f'this is an object with the field "format"; for a date write {name}: date'
    elif union := form.keys() & _UNIONS:
        yield path, f'this is an object with the field "{min(union)}"; JSON Schema belongs below answer.schema'
    elif form.keys() & {"type", "values"}:
        for key in form.keys() - _LONG_FORM:
            if _is_form(form[key]):
                continue  # an object may have a field called "type"
            hint = _KEY_HINTS.get(key.lower().replace("_", "")) or did_you_mean(key, _LONG_FORM).removeprefix(", ")
            known = f"known keys are {', '.join(sorted(_LONG_FORM))}"
            yield (*path, key), f'unknown key "{key}"; {hint or known}'


def _is_type(word: Any) -> bool:  # noqa: ANN401  (as written)
    return isinstance(word, str) and word.removesuffix("?") in _TYPES


def _types_as_labels(form: Sequence[Any]) -> str:
    """Return the mistake of `[string, null]`, which would be a choice with the one label "string"."""
    names = [one for one in form if one is not None]
    meant = f"a column has one type; for the labels themselves write {{values: [{', '.join(names)}]}}"
    if len(names) == 1:
        meant = f"for a value that may be missing write {names[0]}?"
    return f"these are names of types, read as labels; {meant}"


def _other_notation(word: str) -> str | None:
    """Return what to write for a type in the words of Python, TypeScript or prose."""
    hint = None
    if found := _QUOTED.fullmatch(word):
        hint = f"{{type: {found[1]}, nullable: true}}" if found[2] else f"{found[1]} without quotes"
        return f"; write {hint}"
    word = word.removesuffix("?")
    if found := _OPTIONAL.fullmatch(word):
        hint = f"{found[1] or found[2]}?"
    elif found := _LIST_OF.fullmatch(word):
        hint = f"[{found[1] or found[2]}]"
    elif found := _RANGE.fullmatch(word):
        hint = f"{{type: integer, min: {found[1]}, max: {found[2]}}}"
    elif found := _CHOICE_OF.fullmatch(word):
        labels = [label.strip(" \"'") for label in re.split("[|,/]", found[1] or found[2])]
        hint = f"[{', '.join(labels)}]"
    return hint and f"; write {hint}"


def _is_form(value: Any) -> bool:  # noqa: ANN401  (as written)
    """Check whether a value can only be meant as a type."""
    return _is_type(value) or isinstance(value, Mapping | list | tuple)


def _label(value: Any, schema: Schema) -> Any:  # noqa: ANN401  (as written)
    """Return one of `values`: a text as it is written (`true`, `1`), or an integer where the type says so."""
    if isinstance(value, str) and "integer" in schema.get("type", ()) and _WHOLE.fullmatch(value):
        return int(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and not schema:
        return str(value)
    return value


_WHOLE = re.compile(r"-?\d{1,18}", re.ASCII)


def _types(schema: Schema) -> list[str]:
    """Return the types of a column's schema, of which a second one is null."""
    types = schema["type"]
    return types if isinstance(types, list) else [types]


def _nullable(schema: Schema) -> Schema:
    types = _types(schema)
    if "null" in types:
        return schema
    nullable = {**schema, "type": [*types, "null"]}
    if "enum" in schema:
        nullable["enum"] = [*schema["enum"], None]
    return nullable


def _text_problem(key: str, value: Any, schema: Schema) -> str | None:  # noqa: ANN401  (as written)
    if not isinstance(value, str):
        return f"{key} must be a text, not {value!r}"
    if key != "pattern":
        return None
    if "string" not in schema["type"] or "format" in schema or "enum" in schema:
        return "pattern is for texts"
    if _rejected({"pattern": value}, ()):
        return "not a valid regular expression"
    return None
