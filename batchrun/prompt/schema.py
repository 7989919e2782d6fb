"""What an answer must look like: the job file's short form or JSON Schema -> one strict JSON Schema, and its mistakes.

The short form, by example:

    label: [good, bad]                       one of these; a null among them allows null
    n: integer                               string, integer, number, boolean, date; "integer?" may be null
    tags: [string]                           a list; so are [[a, b]] and [{city: string}]
    where: {city: string, country: string?}  an object
    score: {type: integer, description: "…", min: 1, max: 5}    also pattern, values, nullable; `type` in any form

A mapping with `type` or `values` and no other keys than these is the long form, any other mapping an object.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jsonschema_rs

Path = tuple[str | int, ...]
Schema = dict[str, Any]
SchemaMistake = tuple[Path, str]
"""Where in the job file (from `answer` on), and what."""

_TYPES: dict[str, Schema] = {
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "date": {"type": "string", "format": "date"},
}
_TYPES |= {"str": _TYPES["string"], "int": _TYPES["integer"], "float": _TYPES["number"], "bool": _TYPES["boolean"]}
_LONG_FORM = {"type", "values", "description", "min", "max", "pattern", "nullable"}
_BOUNDS = {
    "integer": ("minimum", "maximum"),
    "number": ("minimum", "maximum"),
    "array": ("minItems", "maxItems"),
}

_NOT_STRICT = {
    "allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies",
    "patternProperties", "propertyNames", "minProperties", "maxProperties", "unevaluatedProperties",
    "unevaluatedItems", "contains", "minContains", "maxContains", "prefixItems", "additionalItems", "uniqueItems",
    "minLength", "maxLength", "contentEncoding", "contentMediaType", "contentSchema", "$dynamicRef", "$dynamicAnchor",
}  # fmt: skip
_STRICT_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
_DROPPED = {"$defs", "definitions", "$schema", "$id", "$comment", "$anchor"}
_HOLDS_SCHEMAS = {"items", "anyOf", "allOf", "oneOf", "not", "additionalProperties", "prefixItems", "contains"}


def from_columns(columns: Mapping[str, Any]) -> tuple[Schema, list[SchemaMistake]]:
    """Make the schema of `answer.columns`; where there are mistakes it is not to be used."""
    mistakes: list[SchemaMistake] = []
    return _object(columns, ("answer", "columns"), mistakes), mistakes


def from_schema(schema: Mapping[str, Any], *, strict: bool) -> tuple[Schema, list[SchemaMistake]]:
    """Check `answer.schema` and write its references out; `strict`: it will be sent, so what servers forbid counts."""
    path: Path = ("answer", "schema")
    mistakes = _rejected(dict(schema), path)
    if mistakes:
        return {}, mistakes
    writer = _Writer(schema)
    whole: Schema = writer.out(schema, path)
    mistakes += writer.mistakes
    if not mistakes and whole.get("type") != "object":
        mistakes.append((path, 'the answer is one object: write "type: object" at the top'))
    if not mistakes:
        mistakes += _checked(whole, path, strict=strict)
    if not mistakes:
        mistakes += _rejected(whole, path)
    return whole, mistakes


def _rejected(schema: Schema, path: Path) -> list[SchemaMistake]:
    """Ask the validator itself; only it knows every pattern and keyword."""
    try:
        jsonschema_rs.validator_for(schema, validate_formats=True, offline=True)
    except jsonschema_rs.ValidationError as error:
        return [((*path, *error.instance_path), f"no valid JSON Schema: {error.message}")]
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        return [(path, f"no valid JSON Schema: {error}")]
    return []


# The short form


def _object(properties: Mapping[str, Any], path: Path, mistakes: list[SchemaMistake]) -> Schema:
    if not properties:
        mistakes.append((path, "an object needs at least one property: Parquet can't hold empty ones"))
    return {
        "type": "object",
        "properties": {name: _column(form, (*path, name), mistakes) for name, form in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }


def _column(form: Any, path: Path, mistakes: list[SchemaMistake]) -> Schema:  # noqa: ANN401  (as written)
    if isinstance(form, str):
        return _named(form, path, mistakes)
    if isinstance(form, Mapping):
        if form.keys() <= _LONG_FORM and form.keys() & {"type", "values"}:
            return _long(form, path, mistakes)
        return _object(form, path, mistakes)
    if isinstance(form, Sequence):
        only = form[0] if len(form) == 1 else None
        if _is_type(only) or isinstance(only, Mapping | list | tuple):
            return {"type": "array", "items": _column(only, (*path, 0), mistakes)}
        if only is not None:
            hint = "a list of texts is [string], one fixed value {values: [x]}"
            mistakes.append((path, f"one value is no choice: {hint}"))
        return _enum(form, path, mistakes)
    mistakes.append((path, f"expected a type, a list of values or an object, got {form!r}"))
    return {}


def _is_type(word: Any) -> bool:  # noqa: ANN401  (as written)
    return isinstance(word, str) and word.removesuffix("?") in _TYPES


def _named(word: str, path: Path, mistakes: list[SchemaMistake]) -> Schema:
    if not _is_type(word):
        mistakes.append(
            (path, f'unknown type "{word}"; there are {", ".join(_TYPES)} (each also with "?"), [a, b], {{…}}')
        )
        return {}
    schema = dict(_TYPES[word.removesuffix("?")])
    return _nullable(schema) if word.endswith("?") else schema


def _enum(values: Sequence[Any], path: Path, mistakes: list[SchemaMistake]) -> Schema:
    """Make an enum of texts or of integers; a null among them allows null."""
    chosen = [value for value in values if value is not None]
    kinds = {type(value) for value in chosen}
    if kinds not in ({str}, {int}):
        hint = "for true and false write boolean" if bool in kinds else "quote what should be text"
        mistakes.append((path, f"values are all texts or all integers, at least one; {hint}"))
        return {}
    if len(set(chosen)) < len(chosen):
        twice = next(value for value in chosen if chosen.count(value) > 1)
        mistakes.append((path, f"the value {twice!r} is there twice"))
    schema = {"type": "string" if kinds == {str} else "integer", "enum": chosen}
    return _nullable(schema) if len(chosen) < len(values) else schema


def _nullable(schema: Schema) -> Schema:
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if "null" in types:
        return schema
    enum = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, "type": [*types, "null"], **enum}


def _long(form: Mapping[str, Any], path: Path, mistakes: list[SchemaMistake]) -> Schema:
    schema = _long_type(form, path, mistakes)
    if not schema:
        return {}
    kind = schema["type"][0] if isinstance(schema["type"], list) else schema["type"]
    if form.get("nullable", False) is True:
        schema = _nullable(schema)
    elif form.get("nullable", False) is not False:
        mistakes.append(((*path, "nullable"), "expected true or false"))
    _bounds(form, kind, path, schema, mistakes)
    for key in form.keys() & {"pattern", "description"}:
        problem = _text_problem(key, form[key], schema)
        if problem:
            mistakes.append(((*path, key), problem))
        schema[key] = form[key]
    return schema


def _text_problem(key: str, value: Any, schema: Schema) -> str | None:  # noqa: ANN401  (as written)
    if not isinstance(value, str):
        return f"expected a text, got {value!r}"
    if key != "pattern":
        return None
    if "string" not in schema["type"] or "format" in schema or "enum" in schema:
        return "pattern is for texts"
    return "this is no regular expression" if _rejected({"pattern": value}, ()) else None


def _long_type(form: Mapping[str, Any], path: Path, mistakes: list[SchemaMistake]) -> Schema:
    """Make the schema of `type` and `values` together."""
    inner = form.get("type")
    if isinstance(inner, Mapping):
        schema = _object(inner, (*path, "type"), mistakes)
    elif "type" in form:
        schema = _column(inner, (*path, "type"), mistakes)
    else:
        schema = {}
    if "values" not in form:
        return schema
    values = form["values"]
    if not isinstance(values, Sequence) or isinstance(values, str):
        mistakes.append(((*path, "values"), f"expected a list, got {values!r}"))
        return {}
    enum = _enum(values, (*path, "values"), mistakes)
    if not schema or not enum:
        return enum
    kinds = [one["type"] if isinstance(one["type"], list) else [one["type"]] for one in (schema, enum)]
    if kinds[0][0] != kinds[1][0] or "format" in schema:
        mistakes.append(((*path, "values"), f"these are not of type {inner}"))
    return _nullable(enum) if "null" in kinds[0] else enum


def _bounds(form: Mapping[str, Any], kind: str, path: Path, schema: Schema, mistakes: list[SchemaMistake]) -> None:
    for key, name in zip(("min", "max"), _BOUNDS.get(kind, ("", "")), strict=True):
        if key not in form:
            continue
        number = int if kind != "number" else (int, float)
        if not name or "enum" in schema:
            hint = '; for a text\'s length write pattern: "^.{1,200}$"' if kind == "string" else ""
            mistakes.append(((*path, key), f"{key} is for numbers and lists{hint}"))
        elif isinstance(form[key], bool) or not isinstance(form[key], number) or (kind == "array" and form[key] < 0):
            mistakes.append(((*path, key), f"expected a number that fits, got {form[key]!r}"))
        else:
            schema[name] = form[key]
    low, high = (schema.get(name) for name in _BOUNDS.get(kind, ("", "")))
    if low is not None and high is not None and low > high:
        mistakes.append(((*path, "max"), f"max is below min: {high} < {low}"))


# JSON Schema


class _Writer:
    """Puts what references point to in their place, and a nullable alternative into the type."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self.mistakes: list[SchemaMistake] = []

    def out(self, node: Any, path: Path, within: tuple[str, ...] = ()) -> Any:  # noqa: ANN401  (any JSON)
        """Give a node without references; `within`: those that are being written out."""
        if isinstance(node, list):
            return [self.out(item, (*path, index), within) for index, item in enumerate(node)]
        if not isinstance(node, Mapping):
            return node
        reference = node.get("$ref")
        if isinstance(reference, str):
            return self._referred(reference, node, path, within)
        written: Schema = {}
        for name, value in node.items():
            if name in _HOLDS_SCHEMAS:
                written[name] = self.out(value, (*path, name), within)
            elif name == "properties" and isinstance(value, Mapping):
                written[name] = {key: self.out(inner, (*path, name, key), within) for key, inner in value.items()}
            elif name not in _DROPPED:
                written[name] = value
        return _simplified(written)

    def _referred(self, reference: str, node: Mapping[str, Any], path: Path, within: tuple[str, ...]) -> Any:  # noqa: ANN401  (any JSON)
        target = _target(reference, self._root)
        if target is None or reference in within:
            why = "is recursive, which no column can hold" if target else 'is not in this schema (write "#/$defs/…")'
            self.mistakes.append(((*path, "$ref"), f"{reference} {why}"))
            return {}
        beside = {name: value for name, value in node.items() if name != "$ref"}
        return self.out({**target, **beside}, path, (*within, reference))


def _target(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Give what a reference within the schema points to."""
    head, *names = reference.split("/")
    node: Any = root if head == "#" else None
    for name in names:
        key = name.replace("~1", "/").replace("~0", "~")
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else None


def _simplified(schema: Schema) -> Schema:
    """Write `anyOf: [X, null]` and `const` as a type and an enum, which columns are made of."""
    if "const" in schema and "enum" not in schema:
        schema["enum"] = [schema.pop("const")]
    if "type" not in schema and isinstance(schema.get("enum"), list):
        kinds = {type(value) for value in schema["enum"]} - {type(None)}
        if kinds in ({str}, {int}, {bool}):
            schema["type"] = {str: "string", int: "integer", bool: "boolean"}[kinds.pop()]
            if None in schema["enum"]:
                schema["type"] = [schema["type"], "null"]
    options = schema.get("anyOf")
    if isinstance(options, list) and len(options) == 2 and {"type": "null"} in options:  # noqa: PLR2004  (X or null)
        other = next((option for option in options if option != {"type": "null"}), None)
        if isinstance(other, dict) and "type" in other:
            beside = {name: value for name, value in schema.items() if name != "anyOf"}
            return {**_nullable(other), **beside}
    return schema


def _checked(schema: Schema, path: Path, *, strict: bool) -> Iterator[SchemaMistake]:
    """Tell what columns can't be made of, and with `strict` what strict mode forbids."""
    if strict:
        for keyword in sorted(schema.keys() & _NOT_STRICT):
            yield (*path, keyword), f'strict mode has no "{keyword}": remove it, or set answer.mode: object'
        if schema.get("format", "date") not in _STRICT_FORMATS:
            yield (*path, "format"), f'strict mode has no format "{schema["format"]}"'
    kinds = schema.get("type")
    if kinds is None and "anyOf" not in schema:
        yield path, 'it needs a "type"'
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "object" in kinds or "properties" in schema:
        yield from _checked_object(schema, path, strict=strict)
    if "array" in kinds:
        items = schema.get("items")
        if not isinstance(items, dict):
            yield path, 'a list needs "items"'
        else:
            yield from _checked(items, (*path, "items"), strict=strict)
    for index, option in enumerate(schema.get("anyOf", [])):
        yield from _checked(option, (*path, "anyOf", index), strict=strict)


def _checked_object(schema: Schema, path: Path, *, strict: bool) -> Iterator[SchemaMistake]:
    properties = schema.get("properties") or {}
    if not properties:
        yield path, "an object needs at least one property: Parquet can't hold empty ones"
    if schema.get("additionalProperties") is not False:
        yield path, 'an object needs "additionalProperties: false"'
    absent = [name for name in properties if name not in schema.get("required", [])]
    if absent:
        yield (*path, "required"), f"every property must be required; missing: {', '.join(absent)} (allow null instead)"
    for name, inner in properties.items():
        if isinstance(inner, dict):
            yield from _checked(inner, (*path, "properties", name), strict=strict)
        else:
            yield (*path, "properties", name), "expected a schema"
