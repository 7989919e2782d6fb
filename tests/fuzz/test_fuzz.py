"""Long walks for what reads strangers' bytes: `make fuzz` sets how many examples; a short sample runs with the tests.

What once failed stands here as an explicit example, so that it is tried first, for good.
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jsonschema_rs
import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from batchrun.api.codes import TABLE
from batchrun.api.judge import judge
from batchrun.api.wording import MESSAGE_LENGTH
from batchrun.cli.drafting import draft, look
from batchrun.errors import InputError, JobFileError, UserError
from batchrun.job import Answer, CsvOptions, Environment, Input, Job, Model, Output, Prompt, RunOptions, load
from batchrun.prepare.invocation import Invocation
from batchrun.prepare.prepared import prepare_job
from batchrun.prompt import Renderer, RowProblem, template_mistakes
from batchrun.prompt.answers import AnswerForm
from batchrun.prompt.render import KEY_BYTES
from batchrun.records import Fault, Reply
from batchrun.table import open_rows
from batchrun.terminal import printable

T = TypeVar("T", bound=Callable[..., Any])
EXAMPLES = int(os.environ.get("BATCHRUN_FUZZ_EXAMPLES", "40"))
pytestmark = pytest.mark.timeout(0 if EXAMPLES > 1_000 else 120)
JOBS = [file.read_text(encoding="utf-8") for file in sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))]
ANY_TEXT = st.text(st.characters())
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def fuzzed(test: T) -> T:
    """Let a test draw this many examples, without a bound on the time of each."""
    return settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))(test)


# The job file

FRAGMENTS = [
    "&a ", "*a", "<<: *a", "!!python/object:os.system ", "!", "? ", "- ", ": ", "[" * 60, "{a: " * 60, "|", ">-\n",
    "'", '"', "\t", "\n", "\r", "\x00", "\x85", "\u2028", "\ufeff", "%YAML 1.1\n---\n", "---\n", "...\n", "#", "${",
    "${HOME}", "$$", "{{", "{% for x in y %}", "{{ text }}", "null", "~", ".inf", "1e999", "9" * 50, "0x" + "f" * 30,
    "yes", "1:30", "\\ud800", "model:", "prompt: {user: x}", "input: {path: [a, b]}",
    "answer: {columns: {a: [b, b]}}", "limits: {attempts: -1}", "output: {path: x.csv, details: [status, status]}",
    "answer: {schema: {$ref: '#'}}", "answer: {schema: {type: object}}",
]  # fmt: skip
EDIT = st.tuples(st.integers(0, 1500), st.integers(0, 80), st.sampled_from(FRAGMENTS) | ANY_TEXT)


@fuzzed
@given(st.sampled_from(JOBS), st.lists(EDIT, max_size=6))
@example(JOBS[0], [(0, 2_000, "answer: {schema: {$ref: '#'}}")])
@example(JOBS[0], [(0, 0, "%YAML 1.1\n---\n&a ")])
@example(JOBS[0], [(0, 0, "\ud800")])
@example(JOBS[0], [(0, 2_000, "? " * 500)])
def test_job_file(text: str, edits: list[tuple[int, int, str]]) -> None:
    """A job file that anything was done to is a job, or a list of mistakes each of which is one line."""
    for at, cut, inserted in edits:
        text = text[:at] + inserted + text[at + cut :]
    try:
        job = load(text, Path("/tmp/x.yaml"), {"HOME": "/h"}).job  # noqa: S108  (a name; nothing is read)
    except JobFileError as error:
        message, mistakes = str(error), error.mistakes
    else:
        message, mistakes = "", ()
    if mistakes:
        assert len(message.split("\n")) == len(mistakes)
        return
    compiled = AnswerForm.compile(job.answer)
    assert isinstance(compiled, AnswerForm) or all(message for _, message in compiled)
    assert all(message for _, _, message in template_mistakes(job, ("text", "id")))


# The judge

WORDS = [
    "error", "code", "message", "metadata", "raw", "provider_name", "choices", "finish_reason", "content", "refusal",
    "usage", "cost", "prompt_tokens", "is_byok", "cost_details", "upstream_inference_cost", "headers", "availability",
    "retry_after", "X-RateLimit-Reset", "id", "model", "provider", "text", "object", "detail", "type", "status",
    "previous_errors", "reasons", "flagged_input", "patterns", "limit_source", "reason", "tool_calls",
]  # fmt: skip
LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT
    | st.sampled_from([*WORDS, "stop", "length", "error", "429", 429, 402, 1e308, "Provider returned error", "9" * 400])
)  # fmt: skip
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=6)
)
PACKED = st.dictionaries(st.sampled_from(WORDS), JSON, max_size=8).map(json.dumps).map(str.encode)
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset", "content-type", "x-generation-id",
                     "x-openrouter-cache-status", "date"]),
    st.text(st.characters(max_codepoint=255), max_size=20)
    | st.sampled_from(["1e400", "-1", "nan", "9" * 30, "Wed, 21 Oct 2015 07:28:00 GMT", "text/html", "HIT"]),
)  # fmt: skip


@fuzzed
@given(
    st.sampled_from([200, 201, 204, 206, *range(300, 309), *range(400, 432), *range(500, 531), 599, 600, 999]),
    HEADERS,
    st.binary() | PACKED | st.builds(lambda text, at: text[:at], PACKED, st.integers(0, 200)),
    st.none() | st.sampled_from(Fault),
)
@example(200, {}, b'{"choices":' + b"[" * 100_000, None)
@example(200, {}, b'{"error":{"code":' + b"9" * 5_000 + b"}}", None)
@example(429, {"retry-after": "1e400"}, b'{"error":{"metadata":{"headers":{"X-RateLimit-Reset":1e308}}}}', None)
@example(400, {}, b'{"error":{"metadata":{"raw":"' + b"[" * 50_000 + b'"}}}', None)
def test_judge(status: int, headers: dict[str, str], body: bytes, fault: Fault | None) -> None:
    """Any reply is one verdict of the table, whose message is short, printable and free of controls."""
    reply = Reply(status, headers, body, fault=fault, detail="x" if fault else "")
    assert isinstance(FORM, AnswerForm)
    verdict = judge(reply, FORM.parse, now=1.8e9)
    assert verdict.ending in TABLE
    assert verdict.wait is None or verdict.wait >= 0
    assert verdict.usage.cost is None or verdict.usage.cost >= 0
    assert len(verdict.message) <= MESSAGE_LENGTH
    assert not set(verdict.message) & set(map(chr, (*range(32), 127)))


# Answers

COLUMNS = {
    "label": ["a", "b"], "n": "integer", "x": "number?", "at": "date", "tags": ["string"], "flag": "boolean",
    "where": {"city": "string", "more": [{"k": "integer?"}]},
}  # fmt: skip
FORM = AnswerForm.compile(Answer(columns=COLUMNS))
GOOD = json.dumps(
    {"label": "a", "n": 1, "x": 0.5, "at": "2024-02-29", "tags": ["t"], "flag": True,
     "where": {"city": "c", "more": [{"k": 1}]}}
)  # fmt: skip
PIECES = [
    "{", "}", "[", "]", '"', "\\", ",", ":", "```json\n", "```", "<think>", "</think>", "\x00", "\\ud83d", "1e999",
    "NaN", "-0", "9" * 25, "null", '"n":2,', "\ufeff", "0000-00-00", "{" * 300, "[" * 300,
]  # fmt: skip


@fuzzed
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 20), st.sampled_from(PIECES) | ANY_TEXT), max_size=6))
@example([(0, 0, "{" * 100_000)])
@example([(0, 0, "<think>" * 10_000)])
@example([(0, 300, '{"a":' * 20_000)])
def test_answer(edits: list[tuple[int, int, str]]) -> None:
    """Whatever a model wrote is an answer that fits the schema, or a mismatch that can be shown and sent."""
    assert isinstance(FORM, AnswerForm)
    text = GOOD
    for at, cut, inserted in edits:
        text = text[:at] + inserted + text[at + cut :]
    found = FORM.parse(text)
    if isinstance(found, str):
        assert jsonschema_rs.is_valid(FORM.schema or {}, orjson.loads(found), validate_formats=True)
    else:
        assert 0 < len(found.message) < 5_000
        assert found.message.encode()
        orjson.dumps(FORM.repair_turns(text, found.message))


# The CSV reader

BYTE_PIECES = [
    b"a", b",", b'"', b"\n", b"\r", b"\r\n", b";", b"\t", b"\x00", b"\xef\xbb\xbf", b"\xff", b"\xc3", b"\xa9", b"=",
    b"{{", b"'", b" ", b"\x1a", b"\\", b"\xe2\x80\xa8", b"x" * 70_000, b"\xff\xfe", b"NULL",
]  # fmt: skip
BYTES = st.lists(st.sampled_from(BYTE_PIECES), max_size=40).map(b"".join)
OPTIONS = st.builds(
    CsvOptions,
    separator=st.sampled_from([None, ";", "\t", "|"]),
    quote=st.sampled_from(['"', "'", None]),
    encoding=st.sampled_from(["utf-8", "latin-1", "utf-16", "cp1252", "utf-7", "big5"]),
    null_values=st.sampled_from([(), ("NULL",)]),
    header=st.booleans(),
)


@fuzzed
@given(BYTES, OPTIONS)
@example(b'\xef\xbb\xbf"a\n', CsvOptions())
@example(b"a,b\n\x001\n", CsvOptions(header=False))
@example(b"a\n" + b'"' * 70_001, CsvOptions())
@example(b"aa", CsvOptions(encoding="utf-16"))
def test_csv_reader(data: bytes, options: CsvOptions) -> None:
    """Any bytes are refused in one line, or are the same rows however large the batches are."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "x.csv").write_bytes(data)
        try:
            with open_rows(Input("x.csv", csv=options), Path(folder)) as rows:
                whole = [row for batch in rows.batches() for row in batch.rows]
                single = [row for batch in rows.batches(size=1) for row in batch.rows]
                framed = [row for frame in rows.frames(rows.columns, 3) for row in frame.rows()]
        except (InputError, UserError) as error:
            message = str(error)
        else:
            message = ""
    if message:
        assert "\n" not in message
        return
    assert whole == single == framed
    assert all(len(row) == len(rows.columns) for row in whole)


# Rendering

TEMPLATES = [
    "{{ text }}", "{{ row['text'] }}", "{{ row }}", "{% if n %}", "{% else %}", "{% endif %}", "{% for x in text %}",
    "{{ x }}", "{{ loop.index }}", "{% endfor %}", "{{ text | upper }}", "{{ n * 3 }}", "{{ text * n }}",
    "{% set a = text %}", "{{ a }}", "{{ text | default('-') }}", "{{ [text] | tojson }}", "{{ text.__class__ }}",
    "{{ ''.join(text) }}", "{{ text[0] }}", "{{ text | attr('x') }}", "{{ self }}", "{{ cycler }}",
    "{{ namespace() }}", "{{ n / 0 }}", "{{ '%s' | format(text) }}", "{{ text.format(n) }}", "{% raw %}",
    "{% endraw %}", "{#", "#}", " ", "\n", "}}",
]  # fmt: skip
CELL = st.none() | ANY_TEXT | st.sampled_from(["{{ 7*7 }}", "{% raw %}", "\x00", "x" * 1_000, "{0.__class__}", "%s%n"])


@fuzzed
@given(
    st.lists(st.sampled_from(TEMPLATES) | TEXT, min_size=1, max_size=6).map("".join),
    CELL,
    st.integers(-5, 10**12) | st.none(),
)
@example("{{ text * n }}", "x" * 1_000, 10**12)
@example("{% for x in text %}{{ text }}{% endfor %}", "x" * 5_000, None)
@example("{{ text }}", "\ud800", None)
def test_render(template: str, text: str | None, n: int | None) -> None:
    """Any template is refused with its line, or makes of any row a bounded body, the same each time, or a problem."""
    if not template:
        return
    job = Job(Input("x.csv"), Prompt(user=template), Model("openrouter", name="m"), Output("y.csv"))
    if mistakes := template_mistakes(job, ("text", "n")):
        assert all(line > 0 and message for _, line, message in mistakes)
        return
    made = Renderer(job, ("text", "n"), namespace="fuzz")
    values = tuple({"text": text, "n": n}[name] for name in made.columns)
    body, key = made.body(values), made.key(values)
    assert isinstance(body, RowProblem) == isinstance(key, RowProblem)
    if isinstance(body, RowProblem):
        assert body.error_type in TABLE
        assert body.message
        return
    assert isinstance(key, bytes)
    assert len(key) == KEY_BYTES
    assert (made.body(values), made.key(values)) == (body, key)
    content = json.loads(body)["messages"][0]["content"]
    assert len(content) < 9 * 2**20
    if template == "{{ text }}":
        assert content == text


# A first job file

ODD_NAMES = ['" }}{{ 7*7 }}', "'] }}{% x %}", "${HOME}", "a: b", "#", "- x", "\x1b", "*a"]
NAME = TEXT.filter(lambda name: "\r" not in name) | st.sampled_from(ODD_NAMES)
NAMES = st.lists(NAME, min_size=1, max_size=4, unique=True)


@fuzzed
@given(NAMES)
@example(['"', "'"])
@example(["{{ x }}", "\\"])
@example(["\x00\x1b[2J\u202e"])
def test_first_job_file(names: list[str]) -> None:
    """Columns of any name become a job file that loads, is printable and asks for their cells."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        file.write_text(json.dumps(dict.fromkeys(names, "the cell")) + "\n")
        try:
            seen = look(file)
        except InputError:
            return
        path = Path(folder, "job.yaml")
        text = draft(seen, path)
        assert all(printable(line) == line or not line.isascii() for line in text.split("\n"))
        loaded = load(text, path, {})
        with prepare_job(Invocation(loaded, Environment({"test": {}}), RunOptions())) as ready:
            row = next(ready.rows.batches(ready.renderer.columns)).rows[0]
            body = ready.renderer.body(row)
    assert isinstance(body, bytes)
    assert json.loads(body)["messages"][-1]["content"] == "Text: the cell"
