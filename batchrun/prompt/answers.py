"""The answer: its schema compiled once, a model's text -> a valid typed object, and the turn that asks to repair it."""

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

import jsonschema_rs
import orjson

from batchrun.job.spec import Answer
from batchrun.prompt.schema import Schema, SchemaMistake, from_columns, from_schema, kind_of

TEXT_COLUMN = "answer"
"""The one column of a job without `answer`: the text."""

_INT64 = 2**63
_SHOWN = 300  # characters of one validation error
_TOLD = 3  # validation errors in a message
_OBJECT = re.compile(r'\{\s*+"(?:[^"\\]++|\\.)*+"\s*+:|\[\s*+\{')  # possessive: linear, whatever is written
_EMPTY = re.compile(r"\{\s*\}")
_THOUGHT = "</think>"

_INSTRUCTIONS = (
    "Answer with one JSON object and nothing else: no explanation, no code fence. It must fit this JSON Schema:\n"
)
_REPAIR = "That answer can't be used: {}\nAnswer again, with nothing but the corrected JSON object."


@dataclass(frozen=True, slots=True)
class Valid:
    """A usable answer: the object as compact JSON, its keys in the schema's order; for text answers the text itself."""

    json: str


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Why a text is no usable answer, in words for people and for the model."""

    message: str


_Typed = Callable[[Any], Any]


class _UnfitError(ValueError):
    """A value that no column can hold."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What an answer must look like, compiled.

    `schema` is the JSON Schema (None: any text), `columns` the schema of each new column in order,
    `response_format` what a request says about it, `instructions` what the prompt must say instead.
    """

    schema: Schema | None
    columns: Mapping[str, Mapping[str, Any]]
    response_format: dict[str, Any] | None = None
    instructions: str | None = None
    _validator: Any = field(default=None, repr=False)
    _typed: _Typed | None = field(default=None, repr=False)

    @classmethod
    def compile(cls, answer: Answer | None) -> "AnswerForm | list[SchemaMistake]":
        """Compile what the job says of its answer; mistakes are given as (path in the job file, message)."""
        if answer is None:
            return cls(None, MappingProxyType({TEXT_COLUMN: {"type": "string"}}))
        if (answer.columns is None) == (answer.schema is None):
            return [(("answer",), "write either columns or schema")]
        if answer.columns is not None:
            schema, mistakes = from_columns(answer.columns)
        else:
            schema, mistakes = from_schema(answer.schema or {}, strict=answer.mode == "schema")
        if mistakes:
            return mistakes
        return cls(
            schema,
            MappingProxyType(schema["properties"]),
            _response_format(answer, schema),
            None if answer.mode == "schema" else _INSTRUCTIONS + json.dumps(schema, ensure_ascii=False),
            jsonschema_rs.validator_for(schema, validate_formats=True, offline=True),
            _typing(schema),
        )

    def parse(self, text: str) -> Valid | Mismatch:
        """Read what a model wrote; never raises.

        Forgiven are a byte order mark, thoughts, code fences and prose around the object; the first object counts.
        A key written twice, a number that 64 bits can't hold, NaN and half characters are mismatches.
        """
        try:
            return Valid(self._read(text))
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            return Mismatch(_encodable(_why(error)))

    def _read(self, text: str) -> str:
        if self._typed is None:
            text.encode()
            return text
        value = _found(text)
        if not self._validator.is_valid(value):
            errors = (_told(error) for error in self._validator.iter_errors(value))
            raise _UnfitError("; ".join(itertools.islice(errors, _TOLD)))
        return orjson.dumps(self._typed(value)).decode()

    def repair_turns(self, raw: str, mismatch: Mismatch) -> list[dict[str, str]]:
        """Give the turns that ask the model to correct what it wrote."""
        return [
            {"role": "assistant", "content": _encodable(raw)},
            {"role": "user", "content": _REPAIR.format(mismatch.message)},
        ]


def with_turns(body: bytes, turns: list[dict[str, str]]) -> bytes:
    """Give a request's body with turns added to its messages."""
    request = orjson.loads(body)
    return orjson.dumps({**request, "messages": [*request["messages"], *turns]})


def _response_format(answer: Answer, schema: Schema) -> dict[str, Any] | None:
    if answer.mode == "schema":
        return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return {"type": "json_object"} if answer.mode == "object" else None


# Reading


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _UnfitError(f'the key "{twice}" is there twice')
    return found


def _no_number(word: str) -> NoReturn:
    raise _UnfitError(f"{word} is no number in JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _UnfitError(f"{digits[:40]} is beyond the largest number")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)


def _found(text: str) -> Any:  # noqa: ANN401  (any JSON)
    """Find the object in a text: the whole text, else the first object after any thoughts."""
    text = text.lstrip("\ufeff \t\r\n")
    start = _OBJECT.match(text) or _EMPTY.match(text)
    if start is None:
        text = text.rpartition(_THOUGHT)[2]
        start = _OBJECT.search(text)
        if start is None:
            raise _UnfitError("there is no JSON object in it")
    value, _ = _DECODER.raw_decode(text, start.start())
    if not isinstance(value, dict):
        raise _UnfitError("it is a list, where one JSON object is wanted")
    return value


def _told(error: jsonschema_rs.ValidationError) -> str:
    """Give a validation error as "where: what"."""
    where = ".".join(map(str, error.instance_path))
    what = error.message if len(error.message) <= _SHOWN else f"{error.message[:_SHOWN]}…"
    return f"{where}: {what}" if where else what


def _why(error: Exception) -> str:
    """Say in one line why a text can't be read."""
    if isinstance(error, _UnfitError):
        return str(error)
    if isinstance(error, UnicodeEncodeError) or "surrogates" in str(error):
        return "it holds half a character (a lone surrogate)"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return f"no valid JSON: {str(error).partition(';')[0]}"


def _encodable(text: str) -> str:
    """Replace half characters, which no file or request can hold."""
    return text.encode("utf-8", "replace").decode()


# Typing: what is valid gets the one form that its column holds


def _typing(schema: Mapping[str, Any]) -> _Typed:
    """Give what turns a valid value into its column's type: 1.0 into 1, unions into JSON text, keys in order."""
    kind = kind_of(schema)
    if kind == "object":
        return _typed_object({name: _typing(inner) for name, inner in schema["properties"].items()})
    if kind == "list":
        return _typed_list(_typing(schema["items"]))
    return _SCALARS.get(kind, _as_it_is)


def _typed_object(properties: Mapping[str, _Typed]) -> _Typed:
    def typed(value: Any) -> Any:  # noqa: ANN401  (any JSON)
        return None if value is None else {name: to(value[name]) for name, to in properties.items()}

    return typed


def _typed_list(item: _Typed) -> _Typed:
    def typed(value: Any) -> Any:  # noqa: ANN401  (any JSON)
        return None if value is None else [item(one) for one in value]

    return typed


def _as_it_is(value: Any) -> Any:  # noqa: ANN401  (any JSON)
    return value


def _integer(value: float | None) -> int | None:
    if value is None:
        return None
    if not -_INT64 <= value < _INT64:
        raise _UnfitError(f"{str(value)[:40]} does not fit into 64 bits")
    return int(value)


def _number(value: Any) -> Any:  # noqa: ANN401  (a number or null)
    return float(value) if isinstance(value, int) and not -_INT64 <= value < _INT64 else value


def _date(value: str | None) -> str | None:
    if value is not None and value.startswith("0000"):
        raise _UnfitError(f"{value} is before the year 1")
    return value


def _json_text(value: Any) -> str | None:  # noqa: ANN401  (any JSON)
    return None if value is None else orjson.dumps(value).decode()


_SCALARS: dict[str, _Typed] = {"integer": _integer, "number": _number, "date": _date, "json": _json_text}
