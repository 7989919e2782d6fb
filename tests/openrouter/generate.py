"""What the simulated model writes: texts, and instances of a JSON Schema, both functions of their seed alone."""

import importlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from hashlib import blake2b
from typing import Any
from uuid import UUID

_DEEP = 4
_PHRASES = (
    "a simulated answer",
    "simulated, with a comma",
    'simulated "in quotes"',
    "simulated on\ntwo lines",
    "simulated für Öl, naïve café",
    "simulated 東京 🙂",
)


class Draw:
    """A stream of numbers from a key, cheap to start."""

    __slots__ = ("_block", "_key", "_pool")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._block = 0
        self._pool = 1

    def below(self, count: int) -> int:
        """Return a number from 0 up to, not including, `count`."""
        if self._pool < count << 32:
            self._block += 1
            drawn = blake2b(self._key + self._block.to_bytes(4), digest_size=64).digest()
            self._pool = int.from_bytes(drawn) | 1 << 512
        self._pool, number = divmod(self._pool, count)
        return number

    def between(self, low: int, high: int) -> int:
        """Return a number from `low` up to and including `high`."""
        return low + self.below(high - low + 1)


def text(draw: Draw) -> str:
    """Write a short text that says what it is."""
    return f"Simulated answer {draw.below(1 << 32):08x}: {_PHRASES[draw.below(len(_PHRASES))]}."


class SchemaError(Exception):
    """A schema that no value can be made for."""


def valid(schema: Any, draw: Draw) -> Any:  # noqa: ANN401  (JSON)
    """Write a value that is valid against a JSON Schema. Raises SchemaError."""
    try:
        return instance(schema, draw)
    except (TypeError, AttributeError, KeyError, IndexError, ValueError, ArithmeticError, RecursionError) as error:
        raise SchemaError from error


def instance(schema: Any, draw: Draw, root: Any = None, depth: int = 0) -> Any:  # noqa: ANN401, PLR0911  (JSON)
    """Write a value that is valid against a JSON Schema (as providers take it: local $refs, simple patterns)."""
    root = schema if root is None else root
    if not isinstance(schema, Mapping):
        return _string({}, draw)
    if "$ref" in schema:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return instance({**_resolve(root, schema["$ref"]), **rest}, draw, root, depth)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][draw.below(len(schema["enum"]))]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            rest = {name: value for name, value in schema.items() if name != key}
            return instance({**rest, **_choice(schema[key], draw, depth)}, draw, root, depth + 1)
    if "allOf" in schema:
        return instance(_merged(schema, root), draw, root, depth)
    kind = _kind(schema, draw)
    if kind == "object":
        return _object(schema, draw, root, depth)
    if kind == "array":
        return _array(schema, draw, root, depth)
    return _SCALARS[kind](schema, draw)


def _kind(schema: Mapping[str, Any], draw: Draw) -> str:
    kind = schema.get("type")
    if kind is None:
        return "object" if "properties" in schema else "array" if "items" in schema else "string"
    if isinstance(kind, str):
        return kind
    if "null" in kind and draw.below(8) == 0:
        return "null"
    kinds = [each for each in kind if each != "null"] or ["null"]
    return str(kinds[draw.below(len(kinds))])


def _choice(options: list[Any], draw: Draw, depth: int) -> Mapping[str, Any]:
    ends = [option for option in options if isinstance(option, Mapping) and option.get("type") == "null"]
    chosen = ends[0] if ends and depth > _DEEP else options[draw.below(len(options))]
    return chosen if isinstance(chosen, Mapping) else {}


def _merged(schema: Mapping[str, Any], root: Any) -> dict[str, Any]:  # noqa: ANN401  (JSON)
    merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
    for part in schema["allOf"]:
        each = _resolve(root, part["$ref"]) if "$ref" in part else part
        for key, value in each.items():
            if key == "properties":
                merged[key] = {**merged.get(key, {}), **value}
            elif key == "required":
                merged[key] = [*merged.get(key, []), *value]
            else:
                merged[key] = value
    return merged


def _resolve(root: Any, reference: str) -> Mapping[str, Any]:  # noqa: ANN401  (JSON)
    found = root
    for step in reference.removeprefix("#").split("/")[1:]:
        found = found[step.replace("~1", "/").replace("~0", "~")]
    return found if isinstance(found, Mapping) else {}


def _object(schema: Mapping[str, Any], draw: Draw, root: Any, depth: int) -> dict[str, Any]:  # noqa: ANN401  (JSON)
    required = set(schema.get("required", ()))
    return {
        name: instance(each, draw, root, depth + 1)
        for name, each in schema.get("properties", {}).items()
        if depth <= _DEEP or name in required
    }


def _array(schema: Mapping[str, Any], draw: Draw, root: Any, depth: int) -> list[Any]:  # noqa: ANN401  (JSON)
    least = schema.get("minItems", 0)
    most = max(least, min(schema.get("maxItems", least + 3), least + 3))
    first = schema.get("prefixItems", [])
    count = least if depth > _DEEP else draw.between(max(least, min(1, most)), most)
    items = [instance(each, draw, root, depth + 1) for each in first[:count]]
    tries = 0
    while len(items) < count and tries < 20 * count:
        item = instance(schema.get("items", {}), draw, root, depth + 1)
        tries += 1
        if not schema.get("uniqueItems") or item not in items:
            items.append(item)
    return items


def _integer(schema: Mapping[str, Any], draw: Draw) -> int:
    return int(_number({"multipleOf": 1, **schema}, draw))


def _number(schema: Mapping[str, Any], draw: Draw) -> float:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    start = max([each for each in (low, above) if each is not None], default=None)
    end = min([each for each in (high, below) if each is not None], default=None)
    start = start if start is not None else 0 if end is None else end - 100
    end = end if end is not None else start + 100
    step = schema.get("multipleOf")
    if step:
        first, last = -(-start // step), end // step
        first += first * step == above
        last -= last * step == below
        multiple = draw.between(int(first), max(int(first), int(last))) * step
        return multiple if isinstance(multiple, int) else round(multiple, 10)
    return float(start + (end - start) * draw.between(1, 999) / 1000 if start < end else start)


def _string(schema: Mapping[str, Any], draw: Draw) -> str:
    if schema.get("format") in _FORMATS:
        return str(_FORMATS[schema["format"]](draw))
    if "pattern" in schema:
        return _matching(schema["pattern"], draw)
    written = text(draw)
    least: int = schema.get("minLength", 0)
    most: int = max(least, min(len(written), schema.get("maxLength", len(written))))
    return (written * (least // len(written) + 1))[:most]


def _day(draw: Draw) -> date:
    return date(2000, 1, 1) + timedelta(days=draw.below(10_000))


def _moment(draw: Draw) -> str:
    return (datetime(2000, 1, 1, tzinfo=UTC) + timedelta(seconds=draw.below(800_000_000))).isoformat()


_FORMATS: dict[str, Callable[[Draw], str]] = {
    "date": lambda draw: _day(draw).isoformat(),
    "date-time": _moment,
    "time": lambda draw: _moment(draw)[11:],
    "email": lambda draw: f"simulated-{draw.below(10_000)}@example.com",
    "uri": lambda draw: f"https://example.com/simulated/{draw.below(10_000)}",
    "uuid": lambda draw: str(UUID(int=draw.below(1 << 128), version=4)),
    "hostname": lambda draw: f"simulated-{draw.below(10_000)}.example.com",
    "ipv4": lambda draw: f"192.0.2.{draw.below(256)}",
}
_SCALARS: dict[str, Callable[[Mapping[str, Any], Draw], Any]] = {
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": lambda _, draw: draw.below(2) == 1,
    "null": lambda _schema, _draw: None,
}


def _matching(pattern: str, draw: Draw) -> str:
    """Write a text that matches a simple pattern; where that fails, a text that may not."""
    try:
        parsed = _parser.parse(pattern)
        for _ in range(10):
            written = "".join(_piece(node, draw) for node in parsed)
            if re.search(pattern, written):
                return written
    except (re.error, KeyError, StopIteration):
        pass
    return text(draw)


# Python's own parser of patterns: without it this would be a second one.
_parser: Any = importlib.import_module("re._parser")
_CLASSES = {"CATEGORY_DIGIT": "0123456789", "CATEGORY_WORD": "abcsxyzA019_", "CATEGORY_SPACE": " "}


def _piece(node: Any, draw: Draw) -> str:  # noqa: ANN401  (the parser's nodes have no types)
    """Write what one node of a parsed pattern matches. Raises KeyError for what is not simple."""
    kind, value = str(node[0]), node[1]
    if kind in {"MAX_REPEAT", "MIN_REPEAT"}:
        least, most, inner = value
        times = draw.between(least, min(int(most), least + 4))
        return "".join(_piece(each, draw) for _ in range(times) for each in inner)
    if kind in {"SUBPATTERN", "BRANCH"}:
        branches = [value[-1]] if kind == "SUBPATTERN" else value[1]
        return "".join(_piece(each, draw) for each in branches[draw.below(len(branches))])
    if kind == "IN" and str(value[0][0]) == "NEGATE":
        return next(letter for letter in _LETTERS if not any(_covers(each, letter) for each in value[1:]))
    if kind == "IN":
        return _piece(value[draw.below(len(value))], draw)
    return _SINGLE[kind](value, draw)


_LETTERS = "sx0-_ A"


def _covers(node: Any, letter: str) -> bool:  # noqa: ANN401  (the parser's nodes have no types)
    """Check whether a member of a class of characters covers a letter. Raises KeyError for what is not simple."""
    kind, value = str(node[0]), node[1]
    if kind == "CATEGORY":
        return letter in _CLASSES[str(value)]
    low, high = value if kind == "RANGE" else (value, value)
    return bool(low <= ord(letter) <= high)


_SINGLE: dict[str, Callable[[Any, Draw], str]] = {
    "LITERAL": lambda value, _: chr(value),
    "NOT_LITERAL": lambda value, _: next(letter for letter in _LETTERS if ord(letter) != value),
    "ANY": lambda _value, _draw: "s",
    "AT": lambda _value, _draw: "",
    "RANGE": lambda value, draw: chr(draw.between(*value)),
    "CATEGORY": lambda value, draw: _CLASSES[str(value)][draw.below(len(_CLASSES[str(value)]))],
}
