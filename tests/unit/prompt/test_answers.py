"""Answers: the short form and JSON Schema, their mistakes, reading what models write, repairs."""

import json
import math
from collections.abc import Mapping
from typing import Any

import jsonschema_rs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.job import Answer, AnswerMode
from batchrun.prompt.answers import AnswerForm, with_turns
from batchrun.records import Mismatch, kind_of

COLUMNS = {"label": ["good", "bad"], "n": "integer", "x": "number?", "day": "date?", "tags": ["string"],
           "where": {"city": "string", "country": "string?"}}  # fmt: skip
FULL = {"label": "good", "n": 3, "x": 0.5, "day": "2024-02-29", "tags": ["a"],
        "where": {"city": "Zürich", "country": None}}  # fmt: skip


def form(columns: Mapping[str, Any], mode: AnswerMode = "schema") -> AnswerForm:
    compiled = AnswerForm.compile(Answer(columns=columns, mode=mode))
    assert isinstance(compiled, AnswerForm), compiled
    return compiled


def form_of(schema: Mapping[str, Any], mode: AnswerMode = "schema") -> AnswerForm:
    compiled = AnswerForm.compile(Answer(schema=schema, mode=mode))
    assert isinstance(compiled, AnswerForm), compiled
    return compiled


def mistakes(answer: Answer) -> list[tuple[str, str]]:
    found = AnswerForm.compile(answer)
    assert not isinstance(found, AnswerForm)
    return [(".".join(map(str, path)), message) for path, message in found]


def objects(properties: Mapping[str, Any], **more: object) -> dict[str, Any]:
    """Return a strict object schema."""
    return {"type": "object", "properties": dict(properties), "required": list(properties),
            "additionalProperties": False, **more}  # fmt: skip


def changed(**values: object) -> str:
    return json.dumps({**FULL, **values})


def mismatch(text: str, columns: Mapping[str, Any] = COLUMNS) -> str:
    found = form(columns).parse(text)
    assert isinstance(found, Mismatch), found
    return found.message


# The short form


@pytest.mark.parametrize(
    ("short", "schema"),
    [
        ("string", {"type": "string"}),
        ("integer?", {"type": ["integer", "null"]}),
        ("number", {"type": "number"}),
        ("boolean", {"type": "boolean"}),
        ("date?", {"type": ["string", "null"], "format": "date"}),
        (["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        ([1, 2], {"type": "integer", "enum": [1, 2]}),
        (["a", None], {"type": ["string", "null"], "enum": ["a", None]}),
        (["string"], {"type": "array", "items": {"type": "string"}}),
        (["date?"], {"type": "array", "items": {"type": ["string", "null"], "format": "date"}}),
        ([["a", "b"]], {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}),
        ([{"city": "string"}], {"type": "array", "items": objects({"city": {"type": "string"}})}),
        ({"city": "string", "n": "integer?"},
         objects({"city": {"type": "string"}, "n": {"type": ["integer", "null"]}})),
        ({"type": "string", "description": "why", "pattern": "^a"},
         {"type": "string", "description": "why", "pattern": "^a"}),
        ({"type": "integer", "min": 1, "max": 5}, {"type": "integer", "minimum": 1, "maximum": 5}),
        ({"type": "number?", "min": 0.5}, {"type": ["number", "null"], "minimum": 0.5}),
        ({"type": ["string"], "max": 3}, {"type": "array", "items": {"type": "string"}, "maxItems": 3}),
        ({"values": ["a"]}, {"type": "string", "enum": ["a"]}),
        ({"type": "string?", "values": ["a", "b"]}, {"type": ["string", "null"], "enum": ["a", "b", None]}),
        ({"values": [True, 1, 2.5, "x"]}, {"type": "string", "enum": ["true", "1", "2.5", "x"]}),
        ({"type": "integer", "values": ["1", "-2"]}, {"type": "integer", "enum": [1, -2]}),
        ({"values": ["low", "high"], "ordered": True}, {"type": "string", "enum": ["low", "high"]}),
        ({"values": {"a": "First", "b": None, "c": "Last"}, "description": "Which?"},
         {"type": "string", "enum": ["a", "b", "c"], "description": "Which? a: First; c: Last"}),
        ({"values": {"a": "First", "b": None}}, {"type": "string", "enum": ["a", "b"], "description": "a: First"}),
        ({"type": ["string"], "nullable": True}, {"type": ["array", "null"], "items": {"type": "string"}}),
        ({"type": {"type": "string"}, "description": "x"},
         {**objects({"type": {"type": "string"}}), "description": "x"}),
        ({"type": "string", "name": "string"}, objects({"type": {"type": "string"}, "name": {"type": "string"}})),
    ],
)  # fmt: skip
def test_the_short_form_becomes_strict_json_schema(short: object, schema: Mapping[str, Any]) -> None:
    """Each short form is one strict schema, and its object requires every column in the order written."""
    made = form({"z": short, "a": "string"})
    assert made.columns["z"] == schema
    assert made.schema == objects({"z": schema, "a": {"type": "string"}})
    assert list(made.columns) == ["z", "a"]


@pytest.mark.parametrize(
    ("short", "path", "message"),
    [
        ("sting", "", 'unknown type "sting", did you mean "string"?'),
        (3, "", "3 is not a type; write string, integer, number"),
        ({}, "", "an object needs at least one property"),
        ([], "", "the values must be all texts or all integers; write at least one"),
        (["text"], "", "a choice needs at least two values; a list of texts is [string]"),
        ([True, False], "", "for true and false write boolean"),
        (["a", 1], "", "put texts in quotes"),
        (["a", "b", "a"], "", "the value 'a' is there twice"),
        ({"type": "string", "max": 9}, ".max", 'for the length of a text write pattern: "^.{1,200}$"'),
        ({"type": "integer", "min": 5, "max": 1}, ".max", "max is below min: 1 < 5"),
        ({"type": "integer", "min": "1"}, ".min", "min must be a whole number, not '1'"),
        ({"type": ["string"], "max": -1}, ".max", "max must be a whole number from 0 on, not -1"),
        ({"type": "string", "pattern": "("}, ".pattern", "not a valid regular expression"),
        ({"type": "integer", "pattern": "x"}, ".pattern", "pattern is for texts"),
        ({"type": "date", "description": 5}, ".description", "description must be a text, not 5"),
        ({"type": "integer", "values": ["a"]}, ".values", "these are not of type integer"),
        ({"values": "ab"}, ".values", "values must be a list, or names with descriptions, not 'ab'"),
        ({"values": {"a": 5, "b": "x"}}, ".values.a", "a description must be a text, not 5"),
        ({"values": ["a", "b"], "ordered": "yes"}, ".ordered", "ordered must be true or false"),
        ({"type": "integer", "ordered": True}, ".ordered", "ordered is for values, the lowest first"),
        ({"type": "string", "nullable": "yes"}, ".nullable", "nullable must be true or false"),
        ({"city": {"zip": "sting"}}, ".city.zip", 'unknown type "sting"'),
        ([["a", 1]], ".0", "put texts in quotes"),
    ],
)
def test_a_mistake_in_the_short_form_is_reported_with_its_place(short: object, path: str, message: str) -> None:
    """What can't be meant is reported before anything is sent, where it stands."""
    [(place, found)] = mistakes(Answer(columns={"ok": "string", "z": short}))
    assert place == f"answer.columns.z{path}"
    assert message in found


def test_all_mistakes_are_reported_at_once() -> None:
    """Three mistakes are three lines."""
    assert len(mistakes(Answer(columns={"a": "x", "b": [], "c": {"type": "string", "min": 1}}))) == 3
    assert mistakes(Answer(columns={}))[0][0] == "answer.columns"


# JSON Schema


@pytest.mark.parametrize(
    ("schema", "place", "message"),
    [
        ({"type": "array", "items": {"type": "string"}}, "", "the answer is one object"),
        ({"type": "strin"}, ".type", 'unknown type "strin", did you mean "string"?'),
        (objects({}), "", "the object needs at least one property"),
        (objects({"a": {"$ref": "#/$defs/none"}}), "", "not a valid JSON Schema"),
        (objects({"a": {"$ref": "https://example.org/x"}}), "", "not a valid JSON Schema"),
    ],
)
def test_a_schema_without_columns_is_a_mistake(schema: Mapping[str, Any], place: str, message: str) -> None:
    """What no validator takes, or what has no columns, is found before the first request."""
    found = mistakes(Answer(schema=schema))
    assert any(at == f"answer.schema{place}" and message in text for at, text in found), found


def test_a_schema_as_pydantic_writes_it_becomes_columns() -> None:
    """Optional fields and constants have their type; a reference, a union and a free object are JSON text."""
    schema = objects(
        {"s": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "d"}, "c": {"const": "x"},
         "r": {"$ref": "#/$defs/R"}, "u": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
         "o": {"type": "object"}, "l": {"type": "array", "items": {"$ref": "#/$defs/R"}}},
        **{"$defs": {"R": objects({"b": {"type": "integer"}})}, "required": ["s", "r"]},
    )  # fmt: skip
    made = form_of(schema)
    assert made.response_format is not None
    assert made.response_format["json_schema"]["schema"] == schema
    kinds = {name: kind_of(column) for name, column in made.columns.items()}
    assert kinds == {"s": "text", "c": "enum", "r": "json", "u": "json", "o": "json", "l": "list"}
    found = made.parse('{"s": "x", "r": {"b": 1}, "u": 2, "l": [{"b": 3}]}')
    assert found == '{"s":"x","c":null,"r":"{\\"b\\":1}","u":"2","o":null,"l":["{\\"b\\":3}"]}'
    assert isinstance(made.parse('{"s": "x", "r": {"b": "no"}}'), Mismatch)


def test_every_keyword_is_checked_here() -> None:
    """What a server does not enforce is checked all the same."""
    made = form_of(objects({"a": {"type": "string", "maxLength": 2}}), mode="object")
    assert made.parse('{"a": "xx"}') == '{"a":"xx"}'
    assert isinstance(made.parse('{"a": "xxx"}'), Mismatch)


# What is sent


def test_each_mode_asks_the_model_in_its_own_way() -> None:
    """By schema, by JSON mode with the word JSON in the prompt, or by the prompt alone."""
    strict, loose, plain = form(COLUMNS), form(COLUMNS, "object"), form(COLUMNS, "prompt")
    assert strict.response_format is not None
    assert strict.response_format["type"] == "json_schema"
    assert strict.response_format["json_schema"] == {"name": "answer", "strict": True, "schema": strict.schema}
    assert strict.instructions is None
    assert loose.response_format == {"type": "json_object"}
    assert plain.response_format is None
    for other in (loose, plain):
        assert other.instructions is not None
        assert "JSON" in other.instructions
        assert json.loads(other.instructions.partition("\n")[2]) == strict.schema


def test_without_answer_the_text_is_kept_exactly() -> None:
    """Text answers are what the model wrote, spaces included; half a character can't be kept."""
    made = AnswerForm.compile(None)
    assert isinstance(made, AnswerForm)
    assert (made.schema, made.response_format, made.instructions) == (None, None, None)
    assert dict(made.columns) == {"answer": {"type": "string"}}
    assert made.parse("  Größe \n") == "  Größe \n"
    assert isinstance(made.parse("\ud83d"), Mismatch)


@pytest.mark.parametrize("end", ["<|return|>", "<|im_end|>\n", " <|eot_id|><|end_of_text|>", "<end_of_turn>\n"])
def test_a_mark_that_ends_a_turn_is_not_part_of_a_text(end: str) -> None:
    """A server with the wrong template leaves its model's own marks in the text; a mark within it is the text's."""
    made = AnswerForm.compile(None)
    assert isinstance(made, AnswerForm)
    assert made.parse("ends with <|im_end|>, x</s>" + end) == "ends with <|im_end|>, x</s>"
    assert isinstance(made.parse(end), Mismatch)


# Reading


@pytest.mark.parametrize(
    "around",
    ["%s", "\ufeff%s", "  \n%s\n", "```json\n%s\n```", "```\n%s```", "Here {you} go [1]: %s",
     "%s\nI hope {this} helps!",
     '<think>Maybe {"label": "bad"}?</think>\n%s', '<think>{"x": {"a": 1, "a": 2}, oops</think>%s',
     '%s (see {"page": 3})', '{ "a", "b" } is no object, but %s'],
)  # fmt: skip
def test_the_object_is_found_whatever_is_around_it(around: str) -> None:
    """Byte order mark, fences, prose, thoughts and trailing text cost no repair."""
    pretty = json.dumps(FULL, indent=2)
    found = form(COLUMNS).parse(around % pretty)
    assert found == json.dumps(FULL, ensure_ascii=False, separators=(",", ":"))


def test_an_answer_has_one_written_form() -> None:
    """Keys in the schema's order, whole floats of an integer column as integers, no spaces."""
    turned = json.dumps(
        {"where": {"country": None, "city": "x"}, "tags": [], "day": None, "x": 2, "n": 1.0, "label": "bad"}
    )
    wanted = '{"label":"bad","n":1,"x":2,"day":null,"tags":[],"where":{"city":"x","country":null}}'
    assert form(COLUMNS).parse(turned) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no JSON object in it"),
        ("good", "there is no JSON object in it"),
        ("{}", '"label" is a required property'),
        ("[" + changed() + "]", "it is a list"),
        (changed()[:-9], "not valid JSON"),
        (changed(label="meh"), 'label: "meh" is not one of "good" or "bad"'),
        (changed(n="3"), 'n: "3" is not of type "integer"'),
        (changed(n=1.5), 'n: 1.5 is not of type "integer"'),
        (changed(n=True), 'n: true is not of type "integer"'),
        (changed(n=None), 'n: null is not of type "integer"'),
        (changed(n=2**63), "n: 9223372036854775808 does not fit into 64 bits"),
        (changed(n=-(2**63) - 1), "does not fit into 64 bits"),
        (changed(n=1e30), "1e+30 does not fit into 64 bits"),
        (changed(x=math.nan), "NaN is not a number in JSON"),
        (changed(x=-math.inf), "-Infinity is not a number in JSON"),
        (changed().replace("0.5", "1e999"), "1e999 is beyond the largest number"),
        (changed().replace("0.5", "9" * 400), "not valid JSON"),
        (changed().replace("0.5", "9" * 5000), "not valid JSON: Exceeds the limit"),
        (changed(day="2023-02-29"), 'day: "2023-02-29" is not a "date"'),
        (changed(day="0000-01-01"), "day: 0000-01-01 is before the year 1"),
        (changed(extra=1), "'extra' was unexpected"),
        (changed(tags=["a", 1]), 'tags.1: 1 is not of type "string"'),
        (changed(where={"city": "\ud800", "country": None}), "half a character"),
        (changed(label="\ud800"), "half a character"),
        (changed()[:-1] + ', "n": 4}', 'the key "n" is there twice'),
        ('{"label":' * 100_000, "nested too deeply"),
        ('{"label":x ' * 1_000, "not valid JSON"),
        ('{"label":x ' * 1_001, "it contains more than 1,000 broken objects"),
        ('{"label": ' + "[" * 300 + "]" * 300 + "}", "Recursion limit"),
    ],
)
def test_what_can_not_be_used_is_a_mismatch_that_says_why(text: str, message: str) -> None:
    """Nothing doubtful becomes a value: the message names the place, for people and for the repair."""
    assert message in mismatch(text)


def test_a_number_column_takes_any_size_that_a_float_holds() -> None:
    """An integer beyond 64 bits in a number column becomes a float, the largest integers stay exact."""
    for value, wanted in (("100000000000000000000", "1e+20"), (str(2**63 - 1), str(2**63 - 1)), ("1.5e3", "1500.0")):
        assert form({"x": "number"}).parse(f'{{"x": {value}}}') == f'{{"x":{wanted}}}'


def test_a_mismatch_message_has_a_bound() -> None:
    """A model that writes a novel into an enum does not fill the log with it."""
    assert len(mismatch(changed(label="x" * 100_000))) < 1_000


SHORT = st.recursive(
    st.sampled_from(["string", "integer", "number", "boolean", "date", "string?", "integer?", "date?"])
    | st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=4, unique=True)
    | st.lists(st.integers(-9, 9), min_size=2, max_size=4, unique=True),
    lambda inner: (
        st.dictionaries(st.text(min_size=1, max_size=4), inner, min_size=1, max_size=3).map(
            lambda properties: {"type": properties}
        )
        | inner.map(lambda one: {"type": [one], "max": 3, "nullable": True})
    ),
    max_leaves=5,
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def matching(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that fit a schema made of the short form."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    chars = st.characters(exclude_categories=["Cs"])
    plain: dict[str, st.SearchStrategy[Any]] = {
        "string": st.dates().map(str) if "format" in schema else st.text(chars, max_size=6),
        "integer": st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9).map(float),
        "number": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
        "boolean": st.booleans(),
    }
    if kinds[0] == "object":
        one: st.SearchStrategy[Any] = st.fixed_dictionaries(
            {name: matching(inner) for name, inner in schema["properties"].items()}
        )
    elif kinds[0] == "array":
        one = st.lists(matching(schema["items"]), max_size=3)
    else:
        one = plain[kinds[0]]
    return one | st.none() if "null" in kinds else one


@given(st.dictionaries(st.text(min_size=1, max_size=4), SHORT, min_size=1, max_size=3), st.data())
def test_what_fits_is_valid_and_what_is_valid_fits(columns: dict[str, Any], data: st.DataObject) -> None:
    """Any value of any schema comes back equal and still valid; any other JSON, cut or whole, raises nothing."""
    made = form(columns)
    assert made.schema is not None
    value = data.draw(matching(made.schema))
    found = made.parse(json.dumps(value))
    assert isinstance(found, str), found
    assert orjson.loads(found) == value or json.loads(found, parse_int=float) == json.loads(
        json.dumps(value), parse_int=float
    )
    text = json.dumps(data.draw(st.dictionaries(st.sampled_from([*columns, "?"]), ANY_JSON, max_size=3)))
    for broken in (
        text,
        text[: data.draw(st.integers(0, len(text)))],
        json.dumps(value)[:-1] + data.draw(st.text(max_size=3)),
    ):
        result = made.parse(broken)
        if isinstance(result, str):
            assert jsonschema_rs.is_valid(made.schema, orjson.loads(result), validate_formats=True)
        else:
            assert result.message.encode()


@given(st.text(st.characters()))
def test_no_text_makes_the_reader_raise(text: str) -> None:
    """Whatever a model writes is valid or a mismatch that can be shown and sent."""
    result = form({"a": "string"}).parse(text)
    assert isinstance(result, Mismatch)
    orjson.dumps(form({"a": "string"}).repair_turns(text, result.message))


# Repairs


def test_a_repair_continues_the_conversation() -> None:
    """The invalid answer and the error follow the prompt; all else in the body stays."""
    made = form(COLUMNS)
    raw = changed(n="many")
    problem = made.parse(raw)
    assert isinstance(problem, Mismatch)
    turns = made.repair_turns(raw, problem.message)
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "q"}], "seed": 1})
    sent = orjson.loads(with_turns(body, turns))
    assert sent["model"] == "m"
    assert sent["seed"] == 1
    assert sent["messages"][:2] == [{"role": "user", "content": "q"}, {"role": "assistant", "content": raw}]
    assert sent["messages"][2]["role"] == "user"
    assert 'n: "many" is not of type "integer"' in sent["messages"][2]["content"]
    assert len(sent["messages"]) == 3


def test_a_message_with_braces_is_not_a_format() -> None:
    """Braces in what the model wrote survive into the repair."""
    turns = form({"a": ["x", "y"]}).repair_turns("{", 'a: "{0}" is not one of "x" or "y"')
    assert '"{0}"' in turns[1]["content"]
