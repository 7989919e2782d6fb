"""Questions, keys and bodies: what counts as the same question, what is sent, and what a row can do to a prompt."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Literal

import jinja2
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.job import Input, Job, Message, Model, Output, Part, Prompt
from batchrun.prompt import Renderer, RowProblem, nth_key, template_mistakes
from batchrun.prompt.render import FIELDS, KEY_BYTES

SECTION_2 = set(
    """
    model models route provider messages max_completion_tokens max_tokens temperature top_p top_k min_p top_a
    frequency_penalty presence_penalty repetition_penalty seed stop logit_bias logprobs top_logprobs response_format
    tools tool_choice parallel_tool_calls reasoning reasoning_effort service_tier plugins metadata user session_id
    cache_control prompt_cache_key prompt_cache_options stream stream_options debug usage verbosity web_search_options
    prediction modalities image_config trace deferred_tools transforms prompt
""".split()  # noqa: SIM905  (to be read beside the API's list)
)
ELSEWHERE = set(
    """
    max_tokens max_completion_tokens models route provider service_tier metadata user session_id cache_control
    prompt_cache_key prompt_cache_options prediction stream stream_options debug usage trace
""".split()  # noqa: SIM905  (as above)
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def make_job(prompt: Prompt | str = "Review: {{ text }}", **model: object) -> Job:
    asked = Prompt(system="You label product reviews.", user=prompt) if isinstance(prompt, str) else prompt
    chosen: dict[str, Any] = {
        "endpoint": "openrouter",
        "name": "openai/gpt-4o-mini",
        "params": {"temperature": 0},
        **model,
    }
    return Job(Input("reviews.csv"), asked, Model(**chosen), Output("out.parquet"))


def renderer(prompt: Prompt | str = "Review: {{ text }}", columns: Sequence[str] = ("id", "text"), *,
             model: Mapping[str, Any] | None = None, **options: object) -> Renderer:  # fmt: skip
    chosen: dict[str, Any] = {"namespace": "openrouter", **options}
    return Renderer(make_job(prompt, **(model or {})), columns, **chosen)


def values(made: Renderer, row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in made.columns)


def key(made: Renderer, **row: object) -> bytes:
    found = made.key(values(made, row))
    assert isinstance(found, bytes), found
    return found


def said(template: str, **row: object) -> str:
    """Return the user message that a template makes of a row, or the problem's message."""
    made = renderer(template, list(row))
    found = made.messages(values(made, row))
    return found.message if isinstance(found, RowProblem) else str(found[-1]["content"])


def problem(made: Renderer, row: Mapping[str, Any]) -> RowProblem:
    found = made.key(values(made, row))
    assert isinstance(found, RowProblem)
    assert made.body(values(made, row)) == found
    return found


# Identity


def test_the_table_of_fields_is_complete() -> None:
    """Every field of a chat request is in the table, and no other; which ones make no question is a promise."""
    assert set(FIELDS) == SECTION_2
    assert {name for name, asked in FIELDS.items() if not asked} == ELSEWHERE


@pytest.mark.parametrize("field", sorted(ELSEWHERE))
def test_a_field_that_says_where_or_how_long_changes_no_key(field: str) -> None:
    """A higher max_tokens or another provider asks nothing again, but it is sent."""
    plain, other = renderer(), renderer(model={"params": {"temperature": 0, field: {"x": 7}}})
    assert key(plain, text="good") == key(other, text="good")
    assert plain.wording == other.wording
    body = other.body(("good",))
    assert isinstance(body, bytes)
    assert orjson.loads(body)[field] == {"x": 7}


@pytest.mark.parametrize("field", [*sorted(set(FIELDS) - {"messages", "model", "response_format"}), "top_secret_new"])
def test_a_field_that_asks_changes_the_key(field: str) -> None:
    """Each parameter of the question, also one of another API, makes another question of it."""
    one, other = (renderer(model={"params": {field: value}}) for value in (1, 2))
    asked = FIELDS.get(field, True)
    assert (key(one, text="good") != key(other, text="good")) == asked
    assert (one.wording != other.wording) == asked


def test_model_prompt_answer_and_namespace_change_the_key() -> None:
    """What the job's own keys say is part of the question."""
    form = {"type": "json_object"}
    made = [
        renderer(),
        renderer(model={"name": "openai/gpt-4o"}),
        renderer("Text: {{ text }}"),
        renderer(Prompt(system="Other.", user="Review: {{ text }}")),
        renderer(
            Prompt(messages=(Message("user", "You label product reviews."), Message("user", "Review: {{ text }}")))
        ),
        renderer(answer_fields={"response_format": form}),
        renderer(instructions="As JSON."),
        renderer(namespace="simulator"),
    ]
    assert len({key(one, text="good") for one in made}) == len(made)
    assert len({one.wording for one in made}) == len(made)


def test_what_batchrun_adds_is_sent_but_changes_no_key() -> None:
    """Defaults of our own may change in a later version without asking anything again."""
    extras = {"max_tokens": 500, "plugins": [{"id": "context-compression", "enabled": False}], "temperature": 1}
    made = renderer(body_extras=extras)
    assert key(made, text="good") == key(renderer(), text="good")
    body = made.body(("good",))
    assert isinstance(body, bytes)
    assert orjson.loads(body)["max_tokens"] == 500
    assert orjson.loads(body)["temperature"] == 0, "the user's own params win"


def test_what_batchrun_adds_joins_the_users_provider_and_plugins() -> None:
    """Our keys beside the user's in provider, our plugins beside the user's, the user's word last."""
    extras = {
        "provider": {"require_parameters": True, "sort": "price"},
        "plugins": [{"id": "web", "x": 1}, {"id": "zip", "enabled": False}],
    }
    params = {"provider": {"sort": "latency"}, "plugins": [{"id": "web"}]}
    body = renderer(model={"params": params}, body_extras=extras).body(("good",))
    assert isinstance(body, bytes)
    sent = orjson.loads(body)
    assert sent["provider"] == {"require_parameters": True, "sort": "latency"}
    assert sent["plugins"] == [{"id": "web"}, {"id": "zip", "enabled": False}]


def test_fallbacks_are_sent_and_change_no_key() -> None:
    """`model` goes first, `models` holds the fallbacks."""
    made = renderer(model={"fallbacks": ("a/b", "c/d")})
    body = made.body(("good",))
    assert isinstance(body, bytes)
    assert orjson.loads(body)["model"] == "openai/gpt-4o-mini"
    assert orjson.loads(body)["models"] == ["a/b", "c/d"]
    assert key(made, text="good") == key(renderer(), text="good")


def test_a_local_model_may_move() -> None:
    """The namespace names a local model; its path is not part of the question."""
    here, there = (renderer(model={"endpoint": "local", "name": f"{at}/m.gguf"}, namespace="local m.gguf 9")
                   for at in ("/a", "/b"))  # fmt: skip
    assert key(here, text="good") == key(there, text="good")


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8), st.randoms())
def test_a_key_depends_on_its_row_alone(rows: list[tuple[str, str]], order: Random) -> None:
    """Rows before, after or around, the columns' order and unused columns change no key."""
    prompt = "> {{ b }}{% set c = b %}"
    made, turned = renderer(prompt, ["a", "b"]), renderer(prompt, ["b", "x", "a"])
    keys = [key(made, b=b) for _, b in rows]
    shuffled = order.sample(range(len(rows)), len(rows))
    assert [key(turned, b=rows[i][1]) for i in shuffled] == [keys[i] for i in shuffled]
    assert made.columns == ("b",)
    assert len(set(keys)) == len({b for _, b in rows})
    assert all(len(one) == KEY_BYTES for one in keys)


def test_wording_says_when_the_jobs_own_words_changed() -> None:
    """The data changes no wording; a template's change does, also where it is not the first."""
    made = renderer()
    before = made.wording
    made.key(("good",))
    assert made.wording == before == renderer(columns=["text", "more"]).wording
    assert renderer("Review: {{ text }}!").wording != before
    assert renderer("{% raw %}{{ text }}{% endraw %}").wording != renderer("{{ text }}").wording


def test_equal_rows_asked_each_have_keys_of_their_own() -> None:
    """The first equal row keeps the plain key, so that dedupe can be switched off without asking it again."""
    plain = key(renderer(), text="good")
    assert nth_key(plain, 0) == plain
    keys = {nth_key(plain, n) for n in range(1000)}
    assert len(keys) == 1000
    assert {len(one) for one in keys} == {KEY_BYTES}


GOLDEN = {
    "label": "77df1e17ca27638fda25d3fbba704471",
    "schema": "ba6b22f23f2a728c079e47d0db4fa694",
    "parts": "930a45c41a39c502f3e24c6699a454bd",
}


def golden_jobs() -> dict[str, Renderer]:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}}}
    turns = (Message("developer", "Be brief."), Message("user", (Part(text="What is {{ text }}?"),
             Part(image="https://example.org/{{ id }}.png"))))  # fmt: skip
    return {
        "label": renderer(),
        "schema": renderer(model={"params": {"seed": 1, "max_tokens": 9}}, answer_fields={"response_format": form}),
        "parts": renderer(Prompt(messages=turns), namespace="https://example.org/v1", instructions="As JSON."),
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_keys(name: str) -> None:
    """A key never changes between versions: who has paid for an answer keeps it."""
    assert key(golden_jobs()[name], id=7, text="Größe “10”\n🙂").hex() == GOLDEN[name]


# The body

SNIPPETS = st.sampled_from(
    ["{{ a }}", "{{ b | upper }}", "text \"quoted\" {{ row['c d'] }}\n", "{% if b %}ja{% endif %}", "ünï \\ ",
     "{% for x in b %}{{ x }},{% endfor %}", "{% set z = a %}{{ z }}", "{% raw %}{{ a }}{% endraw %}"]
)  # fmt: skip
TEMPLATES = st.lists(SNIPPETS, max_size=4).map(lambda snippets: "> " + "".join(snippets))


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEMPLATES), min_size=1, max_size=3),
       st.lists(st.fixed_dictionaries({"a": TEXT, "b": TEXT, "c d": TEXT}), min_size=1, max_size=3))  # fmt: skip
def test_the_body_is_the_plain_json(turns: list[tuple[Any, str]], rows: list[dict[str, str]]) -> None:
    """However it is put together, the body is the JSON of the request that one would write by hand."""
    prompt = Prompt(messages=tuple(Message(role, template) for role, template in turns))
    fields = {"response_format": {"type": "text"}}
    made = renderer(prompt, ["a", "b", "c d"], body_extras={"max_tokens": 5}, answer_fields=fields)
    plain = jinja2.Environment(autoescape=False)  # noqa: S701  (no HTML)
    for row in rows:
        messages = [{"role": role, "content": plain.from_string(t).render(row, row=row)} for role, t in turns]
        wanted = {"model": "openai/gpt-4o-mini", "messages": messages, "response_format": {"type": "text"},
                  "max_tokens": 5, "temperature": 0}  # fmt: skip
        assert made.body(values(made, row)) == orjson.dumps(wanted)
        assert made.messages(values(made, row)) == messages


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_join_a_leading_system_message(role: Literal["system", "developer"]) -> None:
    """Many servers take one system message at most; what looks like a template in instructions is none."""
    instructions = "JSON like {{ x }} {% y %}"
    for content, wanted in (("Hi {{ text }}", "Hi a\n\n" + instructions), ("Hi", "Hi\n\n" + instructions)):
        made = renderer(Prompt(messages=(Message(role, content), Message("user", "x"))), instructions=instructions)
        found = made.messages(("a",) if made.columns else ())
        assert found == [{"role": role, "content": wanted}, {"role": "user", "content": "x"}]
    made = renderer(Prompt(messages=(Message(role, (Part(text="Hi"),)),)), instructions=instructions)
    assert made.messages(()) == [
        {"role": role, "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": instructions}]}
    ]


def test_instructions_become_the_system_message_where_there_is_none() -> None:
    """Without a system message the instructions are one."""
    assert renderer(Prompt(user="{{ text }}"), instructions="As JSON.").messages(("a",)) == [
        {"role": "system", "content": "As JSON."},
        {"role": "user", "content": "a"},
    ]


# What a row can do


@pytest.mark.parametrize(
    "template",
    [
        "{{ a }}",
        "{{ a | upper }}",
        "{{ 'x' ~ a }}",
        "{{ '%s' | format(a) }}",
        "{{ a | int }}",
        "{{ b | replace('1', a) }}",
    ],
)
def test_printing_a_null_is_an_error_that_names_the_column(template: str) -> None:
    """No prompt ever says "None" for an empty cell, whatever filter it goes through."""
    found = problem(renderer(template, ["b", "a"]), {"a": None, "b": "1"})
    assert found.error_type == "template_error"
    assert found.message.startswith("prompt.user: column \"a\" is null: write {{ a | default('…') }}")


def test_the_null_that_is_printed_is_named_among_others() -> None:
    """Nulls that are only asked about are not blamed."""
    assert 'column "b" is null' in said("{% if a %}{{ a }}{% endif %}{{ b }}", a=None, b=None)
    assert "row['c d'] | default" in said("{{ row['c d'] }}", **{"c d": None})
    for template in ("{{ a.x }}", "{{ a.x | upper }}", "{% for x in a.y %}{{ x }}{% endfor %}", "{{ a.y | join }}"):
        assert 'column "a" contains a null' in said(template, a={"x": None, "y": [None]})
    assert "prints a null" in said("{{ a.get('z') ~ 'x' }}", a={"y": 1})


@pytest.mark.parametrize(
    ("template", "wanted"),
    [("{{ a | default('none') }}", "none"), ("{{ a | d('-') | upper }}", "-"), ("{{ a is none }}", "true"),
     ("{% if a %}y{% else %}n{% endif %}", "n"), ("{{ row | tojson }}", '{"a": null}'),
     ("{{ '' | default('x', true) }}", "x"), ("{{ a or 'x' }}", "x"), ("{{ a == none }}", "true"),
     ("{{ a is defined }}", "true"), ("{{ a in ['x'] }}", "false"), ("{{ [a] | tojson }}", "[null]"),
     ("{{ a is not none and a > 3 }}", "false"), ("{{ [a, 'x'] | map('default', '-') | join }}", "-x")],
)  # fmt: skip
def test_a_null_can_be_asked_about(template: str, wanted: str) -> None:
    """default, if and is none work on an empty cell."""
    assert said(template, a=None) == wanted


def test_rows_do_not_leak_into_each_other() -> None:
    """A variable set for one row is unknown for the next, also after an error."""
    made = renderer("{% if a %}{% set seen = a %}{% endif %}{{ seen | default('-') }}{{ b }}", ["a", "b"])
    rows = [("1", "x"), (None, "y"), ("2", None), (None, "z")]
    contents = [found if isinstance(found := made.messages(row), RowProblem) else found[-1]["content"] for row in rows]
    assert contents[:2] == ["1x", "-y"]
    assert isinstance(contents[2], RowProblem)
    assert contents[3] == "-z"


def test_a_rows_text_is_never_a_template() -> None:
    """What looks like Jinja in a cell is sent as it is."""
    assert said("{{ a }}", a="{{ 7 * 7 }}{% include 'x' %}") == "{{ 7 * 7 }}{% include 'x' %}"


@pytest.mark.parametrize(
    ("template", "value", "error_type"),
    [
        ("{{ 'ab' * a }}", 10**12, "request_too_large"),
        ("{{ a * 10**12 }}", "x", "request_too_large"),
        ("{% for i in range(a) %}{{ 'x' * 1000 }}{% endfor %}", 99_999, "request_too_large"),
        ("{{ a }}", "x" * (8 * 2**20), "request_too_large"),
        ("{% for i in range(a) %}x{% endfor %}", 10**9, "template_error"),
        ("{{ a + 1 }}", "x", "template_error"),
        ("{{ a.missing }}", {"x": 1}, "template_error"),
        ("{{ a.__class__ }}", "x", "template_error"),
        ("{{ a.append(1) }}", [1], "template_error"),
        ("{{ a }}", "half \ud83d", "template_error"),
        ("{{ a | map('upper') }}", ["x"], "template_error"),
        ("{{ cycler }}", None, "template_error"),
        ("{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(a) }}", 1, "template_error"),
    ],
)
def test_what_a_template_must_not_do_fails_the_row(template: str, value: object, error_type: str) -> None:
    """Bombs, broken text, forbidden access and text that differs from run to run are the row's error, never a crash."""
    made = renderer(template, ["a"])
    assert problem(made, {"a": value}).error_type == error_type


@pytest.mark.parametrize("template", ["{{ range(3) | random }}", "{{ lipsum() }}", "{{ now() }}"])
def test_nothing_random_is_known(template: str) -> None:
    """A prompt that differs from run to run would be paid again at each."""
    assert template_mistakes(make_job(template), ["a"])


def test_a_column_may_have_any_name() -> None:
    """Columns win over Jinja's own names; names with spaces are reached through row."""
    assert said("{{ range }}{{ row }}{{ dict }}", range="1", row="2", dict="3") == "123"
    made = renderer("{{ row['first name'] }}", ["first name", "id"])
    assert made.columns == ("first name",)
    assert renderer("{{ row.items() | list }}", ["first name", "id"]).columns == ("first name", "id")


# Mistakes, before any row


@pytest.mark.parametrize(
    ("template", "line", "message"),
    [
        ("a\n{{ txt }}", 2, 'the input has no column "txt", did you mean "text"?'),
        ("{{ TEXT }}", 1, 'the input has no column "TEXT", did you mean "text"?'),
        ("{{ zzz }}", 1, 'the input has no column "zzz"; it has id, text, first name'),
        ("{{ row['tex'] }}", 1, 'the input has no column "tex", did you mean "text"?'),
        ("{{ text | uper }}", 1, 'template: there is no filter "uper", did you mean "upper"?'),
        ("{{ text is stringy }}", 1, 'template: there is no test "stringy", did you mean "string"?'),
        ("x\n\n{{ text", 3, "template: unexpected end of template, expected }}"),
        ("{{ first name }}", 1, (
            "template: expected }}, got 'name'; write row['first name'] for that column"
        )),
        ("{% include 'x' %}", 1, "template: a prompt can't include, import or extend another file"),
    ],
)  # fmt: skip
def test_a_template_mistake_has_line_and_suggestion(template: str, line: int, message: str) -> None:
    """What is wrong with a template is reported before anything is sent."""
    columns = ["id", "text", "first name"]
    assert template_mistakes(make_job(template), columns) == [(("prompt", "user"), line, message)]


def test_all_template_mistakes_are_reported_at_once_with_their_places() -> None:
    """Each template's mistakes come with its path in the job file."""
    parts = (Part(text="{{ x1 | nope }}"), Part(image="{{ x2 }}"))
    job = make_job(Prompt(messages=(Message("system", "{{ x0 }}"), Message("user", parts))))
    assert [path for path, _, _ in template_mistakes(job, ["id"])] == [
        ("prompt", "messages", 0, "content"),
        ("prompt", "messages", 1, "content", 0, "text"),
        ("prompt", "messages", 1, "content", 0, "text"),
        ("prompt", "messages", 1, "content", 1, "image"),
    ]
