"""The answer: its schema compiled once, a model's text -> a valid typed object, and the turn that asks to repair it."""

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import jsonschema_rs
import orjson

from batchrun.job import Answer
from batchrun.prompt.decisions import parse_decisions, questions_of
from batchrun.prompt.schema import Schema, SchemaMistake, column_of, from_columns, from_schema
from batchrun.records import Decision, Kind, Mismatch, kind_of

TEXT_COLUMN = "answer"
"""The one column of a job without `answer`: the text."""

_INT64 = 2**63
_EXACT = 2**53  # from here on a float may have been written with other digits
_SHOWN = 300  # characters of one validation error
_LISTED = 3  # validation errors in a message
_MOST_BROKEN = 1_000  # for each one Python counts the lines before it: 60,000 in 420 KB took 16 seconds

# Where an object or a list of objects begins; possessive, so linear for any text.
_START = r'\{\s*+"(?:[^"\\]++|\\.)*+"\s*+:|\{\s*+\}|\[\s*+\{'
# How models mark their thoughts: <think>, <thinking>, <seed:think>, [THINK] (Mistral), <|channel|>analysis (gpt-oss),
# <|START_THINKING|> (Cohere), ◁think▷ (Kimi), <|channel>thought (Gemma), <longcat_think>, <|inner_prefix|>
# (Apertus), [BEGIN FINAL RESPONSE] (Apriel). A mark in quotes or backticks is only mentioned.
_TAGS = "(?:(?:[a-z]+:)?(?:think|thinking|thoughts?)|[a-z]+_think)"
# Around an object these are thoughts, too; in a text answer they may be what the prompt asked for.
_MORE_TAGS = f"(?:{_TAGS}|reason|reasoning|reflection|analysis|rationale|scratch_?pad|antthinking|chain_of_thought|cot)"


def _marks(tags: str) -> str:
    opens = (
        rf"<\|?{tags}\|?>|\[THINK\]|<\|channel\|>(?:analysis|commentary)\b|<\|(?:start|begin)_(?:of_)?th\w+\|>|◁think▷"
    )
    opens += r"|<\|channel>(?:thought|analysis)\b|<unused94>thought\b|<\|inner_prefix\|>"
    closes = (
        rf"<\|?/{tags}\|?>|<channel\|>|<unused95>|\[/THINK\]|<\|channel\|>final\b(?:[^<>]{{0,40}}<\|message\|>)?|assistantfinal"
        r"|<\|end_(?:of_)?th\w+\|>|◁/think▷|<\|inner_suffix\|>|\[BEGIN FINAL RESPONSE\]"
    )
    return f"(?P<opens>{opens})|(?P<closes>{closes})"


_MARK = re.compile(_marks(_TAGS), re.IGNORECASE)
_PIECE = re.compile(f"(?P<start>{_START})|{_marks(_MORE_TAGS)}", re.IGNORECASE)
# What begins and ends a turn in a model's own format; a server with the wrong template for its model leaves it in the
# text: <|return|> (gpt-oss), <|im_end|> (Qwen), <|eot_id|> (Llama), <end_of_turn> (Gemma), <|begin_of_box|> around the
# answer (GLM). DeepSeek's bars are those of full width, U+FF5C. </s> may be HTML.
_LONGEST_END = 200
_TURN_END = re.compile(
    r"(?:\s*+(?:<\|\w+\|>|<\uff5c[^\uff5c<>\s]+\uff5c>|<end_of_turn>|\[END FINAL RESPONSE\]))++\s*+\Z",
    re.IGNORECASE,
)
_TURN_BEGIN = re.compile(
    r"\s*+(?:<\|begin_of_box\|>|<\|im_start\|>assistant\s|<start_of_turn>model\s|<\uff5c[^\uff5c<>\s]+\uff5c>"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>)\s*+"
)
_FENCE = re.compile(r"\s*+(?:```\w*+\s*+)?")

_INSTRUCTIONS = (
    "Answer with one JSON object and nothing else: no explanation, no code fence. It must fit this JSON Schema:\n"
)
_REPAIR = "That answer can't be used: {}\nAnswer again, with nothing but the corrected JSON object."


class _UnfitError(ValueError):
    """A value that no column can hold."""


class _Shape(NamedTuple):
    """The kind of a value, and the shapes in it: by name in an object, under "" in a list. None: it stays as it is."""

    kind: Kind
    inner: "Mapping[str, _Shape | None]" = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What an answer must look like, compiled.

    `schema` is the JSON Schema (None: any text), `columns` the schema of each new column in order,
    `response_format` what a request says about it, `instructions` what the prompt must say instead. `questions` are the
    columns as a decision model is asked; empty for chat models.
    """

    schema: Schema | None
    columns: Mapping[str, Mapping[str, Any]]
    response_format: dict[str, Any] | None = None
    instructions: str | None = None
    questions: tuple[Decision, ...] = ()
    _validator: Any = field(default=None, repr=False)
    _shape: "_Shape" = field(default=_Shape("text"), repr=False)

    @classmethod
    def compile(cls, answer: Answer | None) -> "AnswerForm | list[SchemaMistake]":
        """Compile what the job says of its answer; mistakes are given as (path in the job file, message)."""
        if answer is None:
            return cls.of(None)
        if answer.columns is not None:
            schema, mistakes = from_columns(answer.columns)
        else:
            schema = dict(answer.schema or {})
            mistakes = from_schema(schema)
        if mistakes:
            return mistakes
        if answer.mode == "decision" and answer.columns is not None:
            questions, mistakes = questions_of(answer.columns, schema)
            if mistakes:
                return mistakes
        else:
            questions = ()
        instructions = None
        if answer.mode in {"object", "prompt"}:
            instructions = _INSTRUCTIONS + json.dumps(schema, ensure_ascii=False)
        return replace(
            cls.of(schema),
            response_format=_response_format(answer, schema),
            instructions=instructions,
            questions=questions,
        )

    @classmethod
    def of(cls, schema: Schema | None) -> "AnswerForm":
        """Return the form that reads answers by a schema in which no mistake was found (None: any text)."""
        if schema is None:
            return cls(None, MappingProxyType({TEXT_COLUMN: {"type": "string"}}))
        columns = {name: column_of(inner) for name, inner in schema["properties"].items()}
        return cls(
            schema,
            MappingProxyType(columns),
            _validator=jsonschema_rs.validator_for(schema, validate_formats=True, offline=True),
            _shape=_Shape("object", {name: _shape(column) for name, column in columns.items()}),
        )

    def parse(self, text: str, *, finished: bool = True) -> str | Mismatch:
        """Return the answer in what a model wrote: compact JSON with keys in the schema's order, or the text.

        Thoughts are cut off. A byte order mark, code fences and prose around the object are ignored. Of several objects
        the last one after the thoughts counts. Without such a mark, different objects that fit are a mismatch, since
        one of them is a draft. Where the text is not `finished`, it has to be a whole object and nothing else.
        """
        try:
            if self.questions:
                return parse_decisions(text, self.questions)
            if self.schema is None:
                return _plain(text, finished=finished)
            return self._object(text, finished=finished)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            return Mismatch(_encodable(_why(error)))

    def parse_edited(self, values: Mapping[str, Any]) -> str | Mismatch:
        """Return an answer that a person wrote, given by column, as `parse` returns a chat model's."""
        text = json.dumps({name: values.get(name) for name in self.columns})
        return replace(self, questions=()).parse(text)

    def untyped(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return an answer that `parse` returned as it was written: where a column holds JSON text, what that says."""
        written: Mapping[str, Any] = _untyped(answer, self._shape)
        return written

    def _object(self, text: str, *, finished: bool) -> str | Mismatch:
        text = text.strip("\ufeff \t\r\n")
        if text.startswith("{") and text.endswith("}"):  # nearly every answer: an object and nothing else
            with suppress(ValueError):
                value, end = _DECODER.raw_decode(text)
                if end == len(text):
                    return self._typed(value)
        if not finished:
            answer = text[_thoughts_end(text) :]
            if not answer:
                return Mismatch("it is cut off", empty=True)
            begin = _FENCE.match(answer).end()  # type: ignore[union-attr]  # it matches nothing, too
            value, end = _DECODER.raw_decode(answer, begin)
            if _FENCE.fullmatch(answer, end) is None:
                return Mismatch("it is cut off")
            return self._typed(value)
        written, marked = _written(text)
        if not written:
            return Mismatch("there is no JSON object in it", empty=not text[_thoughts_end(text) :])
        # Objects in a broken one are parts of it: `{"name": 'Ada', "friend": {"name": "Bob"}}` is not about Bob.
        if broken := next((one for one in written if isinstance(one, _Broken)), None):
            raise _UnfitError(broken.why)
        meant = [one for one in written if not isinstance(one, dict) or self.columns.keys() & one.keys()] or written
        last = self._typed(meant[-1])
        if not marked and any(self._validator.is_valid(one) and self._typed(one) != last for one in meant[:-1]):
            raise _UnfitError("it contains several different answers, without a mark which of them is the last word")
        return last

    def _typed(self, value: Any) -> str:  # noqa: ANN401  (any JSON)
        """Return a value in the one form that its columns hold, as JSON; raise where it does not fit."""
        if not isinstance(value, dict):
            raise _UnfitError("it is a list, where one JSON object is wanted")
        if not self._validator.is_valid(value):
            errors = (_described(error) for error in self._validator.iter_errors(value))
            raise _UnfitError("; ".join(itertools.islice(errors, _LISTED)))
        return orjson.dumps(_typed(value, self._shape)).decode()

    def repair_turns(self, raw: str, problem: str) -> list[dict[str, str]]:
        """Return the turns that ask the model to correct what it wrote; none where it wrote nothing."""
        if not raw.strip():
            return []
        return [
            {"role": "assistant", "content": _encodable(raw)},
            {"role": "user", "content": _REPAIR.format(problem)},
        ]


def with_turns(body: bytes, turns: list[dict[str, str]]) -> bytes:
    """Return a request's body with turns added to its messages."""
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
    raise _UnfitError(f"{word} is not a number in JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _UnfitError(f"{digits[:40]} is beyond the largest number")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)
_LENIENT = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class _Broken:
    """Something that begins as an object and is not one that can be used."""

    why: str


def _plain(text: str, *, finished: bool) -> str | Mismatch:
    """Return a text answer without the thoughts before it and marks behind it, otherwise exactly as it was written."""
    text.encode()  # half a character can't be kept
    answer = text[_thoughts_end(text) :]
    if "<" in answer and (begin := _TURN_BEGIN.match(answer)):
        answer = answer[begin.end() :]
    if (">" in answer or "]" in answer) and (mark := _TURN_END.search(answer, max(0, len(answer) - _LONGEST_END))):
        answer = answer[: mark.start()]
    if not answer or answer.isspace():
        return Mismatch("there is no answer in it", empty=True)
    return answer if finished else Mismatch("it is cut off")


def _thoughts_end(text: str) -> int:
    """Return where the answer begins: after the last end mark; thoughts that never end are the whole text."""
    if not ("<" in text or "[" in text or "◁" in text or "final" in text.casefold()):
        return 0  # nearly every text has no mark: the search below takes ten times as long
    marks = [mark for mark in _MARK.finditer(text) if not _is_quoted(mark)]
    end = max((mark.end() for mark in marks if mark["closes"]), default=0)
    unclosed = next((mark.start() for mark in marks if mark.start() >= end), None)
    if unclosed is not None and not text[end:unclosed].strip():
        return len(text)
    return end + len(text[end:]) - len(text[end:].lstrip()) if end else 0


def _is_quoted(mark: re.Match[str]) -> bool:
    """Check whether a mark is only mentioned, as in `</think>`."""
    before = mark.string[max(0, mark.start() - 1) : mark.start()]
    after = mark.string[mark.end() : mark.end() + 1]
    return before == after and before in tuple("\"'`")


def _written(text: str) -> tuple[list[Any], bool]:
    """Return the objects that a text contains after its thoughts, in order, and whether it marks where thoughts end."""
    written: list[Any] = []
    marked = thinking = False
    at = broken = 0
    while piece := _PIECE.search(text, at):
        at = piece.end()
        if piece["start"]:
            value, at = _decoded(text, piece.start())
            broken += isinstance(value, _Broken)
            if broken > _MOST_BROKEN:
                raise _UnfitError(f"it contains more than {_MOST_BROKEN:,} broken objects")
            if not thinking:
                written.append(value)
        elif not _is_quoted(piece):
            thinking = bool(piece["opens"])
            if not thinking:
                written, marked = [], True
    return written, marked


def _decoded(text: str, start: int) -> tuple[Any, int]:
    """Return the object that begins here, and where to read on. A mark inside one of its strings is part of it."""
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        return _Broken(_why(error)), max(start + 1, error.pos)
    except _UnfitError as error:
        try:
            return _Broken(str(error)), _LENIENT.raw_decode(text, start)[1]
        except json.JSONDecodeError as worse:
            return _Broken(_why(worse)), max(start + 1, worse.pos)


def _described(error: jsonschema_rs.ValidationError) -> str:
    """Return a validation error as "where: what"."""
    what = error.message if len(error.message) <= _SHOWN else f"{error.message[:_SHOWN]}…"
    return _placed(error.instance_path, what)


def _placed(place: Iterable[str | int], problem: str) -> str:
    where = ".".join(map(str, place))
    return f"{where}: {problem}" if where else problem


def _why(error: Exception) -> str:
    """Return in one line why a text can't be read."""
    if isinstance(error, _UnfitError):
        return str(error)
    if isinstance(error, UnicodeEncodeError) or "surrogates" in str(error):
        return "it contains half a character (an unpaired surrogate)"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return f"not valid JSON: {str(error).partition(';')[0]}"


def _encodable(text: str) -> str:
    """Replace half characters, which no file or request can hold."""
    return text.encode("utf-8", "replace").decode()


# Typing


def _shape(schema: Mapping[str, Any]) -> _Shape | None:
    kind = kind_of(schema)
    if kind in ("text", "enum", "boolean"):
        return None
    inner: Mapping[str, Any] = {}
    if kind == "object":
        inner = schema["properties"]
    elif kind == "list":
        inner = {"": schema["items"]}
    return _Shape(kind, {name: _shape(one) for name, one in inner.items()})


def _typed(value: Any, shape: _Shape | None, *place: str | int) -> Any:  # noqa: ANN401  (any JSON)
    """Return a valid value in the one form that its column holds: 1.0 as 1, unions as JSON text, keys in order."""
    if value is None or shape is None:
        return value
    match shape.kind:
        case "object" if value and not value.keys() & shape.inner.keys():
            # A schema that requires nothing lets `{"Label": "good"}` pass, with null in each column.
            wanted, there = (", ".join(map(json.dumps, names)) for names in (shape.inner, value))
            raise _unfit(place, f"there is none of the fields {wanted}, only {there}"[:_SHOWN])
        case "object":
            value = {name: _typed(value.get(name), inner, *place, name) for name, inner in shape.inner.items()}
        case "list":
            value = [_typed(one, shape.inner[""], *place, number) for number, one in enumerate(value)]
        case "integer":
            value = _whole(value, place)
        case "number" if isinstance(value, int) and not -_INT64 <= value < _INT64:
            value = float(value)
        case "date" if value.startswith("0000"):
            raise _unfit(place, f"{value} is before the year 1")
        case "json":
            value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))  # orjson has no integers of 65 bits
    return value


def _untyped(value: Any, shape: _Shape | None) -> Any:  # noqa: ANN401  (any JSON)
    """Return a value that `_typed` returned as it was before; one of another shape stays as it is."""
    if shape is None:
        return value
    match shape.kind, value:
        case "object", dict():
            return {name: _untyped(value.get(name), inner) for name, inner in shape.inner.items()}
        case "list", list():
            return [_untyped(one, shape.inner[""]) for one in value]
        case "json", str():
            with suppress(ValueError, RecursionError):
                return json.loads(value)
    return value


def _whole(number: float, place: tuple[str | int, ...]) -> int:
    """Return a whole number as an integer; raise where a column can't hold it, or its digits are not all known."""
    if not -_INT64 <= number < _INT64:
        raise _unfit(place, f"{str(number)[:40]} does not fit into 64 bits")
    if not isinstance(number, int) and abs(number) >= _EXACT:
        raise _unfit(place, f"{number} is not exact: an integer has all its digits and no point or exponent")
    return int(number)


def _unfit(place: tuple[str | int, ...], problem: str) -> _UnfitError:
    return _UnfitError(_placed(place, problem))
