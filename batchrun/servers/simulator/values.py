"""What the simulated model writes: texts, and values for a JSON Schema. Both depend on their key alone."""

import importlib
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any
from uuid import UUID

_MAX_DEPTH = 4
"""Below this depth optional properties, list items and nested alternatives are left out: recursive schemas must end."""
_MAX_STEPS = 100
_PHRASES = (
    "a simulated answer",
    "simulated, with a comma",
    'simulated "in quotes"',
    "simulated on\ntwo lines",
    "simulated für Öl, naïve café",
    "simulated 東京 🙂",
)


class SchemaError(Exception):
    """No value can be written for a schema; the text says why."""


class Draw:
    """A stream of numbers that depends on its key alone."""

    __slots__ = ("_block", "_key", "_pool")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._block = 0
        self._pool = 1

    def below(self, count: int) -> int:
        """Return a number from 0 up to, not including, `count`."""
        # One digest serves many draws; 32 spare bits keep them even to one part in four billion.
        if self._pool < count << 32:
            self._block += 1
            drawn = blake2b(self._key + self._block.to_bytes(4), digest_size=64).digest()
            self._pool = int.from_bytes(drawn) | 1 << 512
        self._pool, number = divmod(self._pool, count)
        return number

    def between(self, low: int, high: int) -> int:
        """Return a number from `low` to `high`, both included."""
        return low + self.below(high - low + 1)


def text(draw: Draw) -> str:
    """Return a short text that says that it is simulated."""
    return f"Simulated answer {draw.below(1 << 32):08x}: {_PHRASES[draw.below(len(_PHRASES))]}."


def instance(schema: Any, draw: Draw) -> Any:  # noqa: ANN401  (JSON)
    """Return a value that is valid against a JSON Schema. Raises SchemaError."""
    try:
        return _Writer(schema, draw).value(schema, 0)
    except (TypeError, AttributeError, LookupError, ValueError, ArithmeticError, RecursionError) as error:
        raise SchemaError("not a JSON Schema that the simulator can write a value for") from error


class _Writer:
    """Writes values for one schema, whose definitions `$ref` names."""

    def __init__(self, root: Any, draw: Draw) -> None:  # noqa: ANN401  (JSON)
        self._root = root
        self._draw = draw

    def value(self, schema: Any, depth: int) -> Any:  # noqa: ANN401  (JSON)
        if not isinstance(schema, Mapping):
            return text(self._draw)
        schema = self._plain(schema, depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._one_of(schema["enum"])
        kind = self._type(schema)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        return self._scalar(schema, kind)

    def _scalar(self, schema: Mapping[str, Any], kind: str) -> str | float | bool | None:
        match kind:
            case "integer":
                return int(self._number({"multipleOf": 1, **schema}))
            case "number":
                return self._number(schema)
            case "boolean":
                return self._draw.below(2) == 1
            case "null":
                return None
        return self._string(schema)

    def _one_of(self, options: list[Any]) -> Any:  # noqa: ANN401  (JSON)
        return options[self._draw.below(len(options))]

    def _plain(self, schema: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
        """Return the schema with references followed, alternatives chosen, and what must all hold merged."""
        for _ in range(_MAX_STEPS):
            # In a fixed order: an equal schema must get equal values, and a set has none.
            key = min(schema.keys() & {"$ref", "anyOf", "oneOf", "allOf"}, default=None)
            if key is None:
                return schema
            rest = {name: value for name, value in schema.items() if name != key}
            match key:
                case "$ref":
                    parts = [self._resolve(schema[key])]
                case "allOf":
                    parts = schema[key]
                case _:
                    ends = [option for option in schema[key] if option == {"type": "null"} and depth > _MAX_DEPTH]
                    parts = ends or [self._one_of(schema[key])]
            for part in parts:
                rest = _merge(rest, part)
            schema = rest
        raise SchemaError("its references have no end")

    def _resolve(self, reference: str) -> Mapping[str, Any]:
        found = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            found = found[step.replace("~1", "/").replace("~0", "~")]
        return dict(found)

    def _type(self, schema: Mapping[str, Any]) -> str:
        match schema.get("type"):
            case None if "properties" in schema:
                return "object"
            case None if "items" in schema:
                return "array"
            case str() as name:
                return name
            case list() as names:
                if "null" in names and self._draw.below(8) == 0:
                    return "null"
                return str(self._one_of([name for name in names if name != "null"] or ["null"]))
        return "string"

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        return {
            name: self.value(each, depth + 1)
            for name, each in schema.get("properties", {}).items()
            if depth <= _MAX_DEPTH or name in required
        }

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        low = schema.get("minItems", 0)
        high = max(low, min(schema.get("maxItems", low + 3), low + 3))
        count = low
        if depth <= _MAX_DEPTH:
            count = self._draw.between(max(low, min(1, high)), high)
        items: list[Any] = []
        for _ in range(20 * count):  # with uniqueItems some are drawn in vain
            if len(items) == count:
                break
            item = self.value(schema.get("items", {}), depth + 1)
            if not schema.get("uniqueItems") or item not in items:
                items.append(item)
        return items

    def _number(self, schema: Mapping[str, Any]) -> float:
        above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
        low, high = max(schema.get("minimum", -math.inf), above), min(schema.get("maximum", math.inf), below)
        if low == -math.inf:
            low = 0 if high == math.inf else high - 100
        high = min(high, low + 100)
        step = schema.get("multipleOf")
        if step is None:
            return float(low + (high - low) * self._draw.between(1, 999) / 1000)
        first, last = math.ceil(low / step), math.floor(high / step)
        first += first * step == above
        last -= last * step == below
        number: float = self._draw.between(first, max(first, last)) * step
        return round(number, 10)

    def _string(self, schema: Mapping[str, Any]) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]](self._draw)
        if "pattern" in schema:
            return _matching(schema["pattern"], self._draw)
        written = text(self._draw)
        low: int = schema.get("minLength", 0)
        high = max(low, schema.get("maxLength", len(written)))
        return (written * (low // len(written) + 1))[:high]


def _merge(schema: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**schema, **other}
    if "properties" in schema and "properties" in other:
        merged["properties"] = {**schema["properties"], **other["properties"]}
    if "required" in schema and "required" in other:
        merged["required"] = [*schema["required"], *other["required"]]
    return merged


def _moment(draw: Draw) -> str:
    return (datetime(2000, 1, 1, tzinfo=UTC) + timedelta(seconds=draw.below(800_000_000))).isoformat()


_FORMATS: dict[str, Callable[[Draw], str]] = {
    "date": lambda draw: _moment(draw)[:10],
    "date-time": _moment,
    "time": lambda draw: _moment(draw)[11:],
    "email": lambda draw: f"simulated-{draw.below(10_000)}@example.com",
    "uri": lambda draw: f"https://example.com/simulated/{draw.below(10_000)}",
    "uuid": lambda draw: str(UUID(int=draw.below(1 << 128), version=4)),
    "hostname": lambda draw: f"simulated-{draw.below(10_000)}.example.com",
    "ipv4": lambda draw: f"192.0.2.{draw.below(256)}",
}

# Python's own parser of patterns: the alternative is to write a second one.
_parser: Any = importlib.import_module("re._parser")
_CLASSES = {"CATEGORY_DIGIT": "0123456789", "CATEGORY_WORD": "abcsxyzA019_", "CATEGORY_SPACE": " "}
_LETTERS = "sx0-_ A"


def _matching(pattern: str, draw: Draw) -> str:
    """Return a text that matches a simple pattern. Raises SchemaError for patterns with lookarounds and the like."""
    try:
        parsed = _parser.parse(pattern)
        for _ in range(10):
            written = "".join(_piece(node, draw) for node in parsed)
            if re.search(pattern, written):
                return written
    except (re.error, KeyError, StopIteration):
        pass
    raise SchemaError(f"the simulator can't write a text for the pattern '{pattern}'")


def _piece(node: Any, draw: Draw) -> str:  # noqa: ANN401, C901, PLR0911  (the parser's nodes have no types; a table)
    """Return a text for one node of a parsed pattern. Raises KeyError for a node that is not simple."""
    kind, value = str(node[0]), node[1]
    match kind:
        case "LITERAL":
            return chr(value)
        case "AT":
            return ""
        case "ANY":
            return "s"
        case "RANGE":
            return chr(draw.between(*value))
        case "CATEGORY":
            return _CLASSES[str(value)][draw.below(len(_CLASSES[str(value)]))]
        case "MAX_REPEAT" | "MIN_REPEAT":
            low, high, inner = value
            times = draw.between(low, min(int(high), low + 4))
            return "".join(_piece(each, draw) for _ in range(times) for each in inner)
        case "SUBPATTERN":
            return "".join(_piece(each, draw) for each in value[-1])
        case "BRANCH":
            return "".join(_piece(each, draw) for each in value[1][draw.below(len(value[1]))])
        case "NOT_LITERAL":
            return next(letter for letter in _LETTERS if ord(letter) != value)
        case "IN" if str(value[0][0]) == "NEGATE":
            return next(letter for letter in _LETTERS if not any(_covers(each, letter) for each in value[1:]))
        case "IN":
            return _piece(value[draw.below(len(value))], draw)
    raise KeyError(kind)


def _covers(node: Any, letter: str) -> bool:  # noqa: ANN401  (as above)
    r"""Check whether a member of a class of characters covers a letter. Raises KeyError for `\D`, `\W` and `\S`."""
    kind, value = str(node[0]), node[1]
    if kind == "CATEGORY":
        return letter in _CLASSES[str(value)]
    low, high = value if kind == "RANGE" else (value, value)
    return bool(low <= ord(letter) <= high)
