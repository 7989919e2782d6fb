"""Job files: what comes out of a right one, and each mistake of a wrong one in one line."""

import glob
import json
import string
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from batchrun.errors import JobFileError
from batchrun.job import (
    CostCap,
    Job,
    Limits,
    Loaded,
    Model,
    check,
    json_schema,
    load,
    matches,
    parse_duration,
)
from batchrun.job import spec as job

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).parents[2] / "golden"
ENVIRONMENT = {"TICKETS_FOLDER": "/t", "KEY": "canary", "LINE_BREAK": "a\nb"}

WHOLE = """\
# everything that can be said
input:
  path: [../data/a.csv, ../data/b.csv.gz]
  where: "body is not null"
  csv: {separator: ";", quote: null, encoding: latin-1, null_values: [NA, null, -999], columns: {n: integer}}
prompt:
  messages:
    - role: system
      content: You sort tickets.
    - role: user
      content: [{text: "{{ body }}"}, {image: "{{ photo }}"}]
model:
  endpoint: openrouter
  name: openai/gpt-4o-mini
  fallbacks: [a/b, c/d]
  api_key_env: TICKETS_KEY
  params: {temperature: 0.5, max_tokens: 0x10, provider: {sort: price}, stop: [no, 12:30], logprobs: true, seed: null}
  headers: {X-Title: 1.10}
  price: {prompt: 0.15, completion: 0.6}
  max_request_usd: 0.1
  cache: true
  max_response_mb: 8
answer:
  columns: {topic: [billing, bug], urgent: boolean, why: string?}
  repairs: 2
  mode: object
limits:
  concurrency: 64
  requests_per_minute: 600
  attempts: 3
  timeout: 90
  grace: 5.5
  max_cost_usd: {run: 5, day: 20.5}
  max_failed: 5%
  deadline: 1h30m
  breaker: 0
output:
  path: ../out/tickets.parquet
  keep: [id, body]
  details: [status, cost_usd]
  prefix: ai_
checkpoint: /tmp/tickets.sqlite
engine: {ray: {address: auto, senders: 8, resources: {net: 0.5}}}
"""
SMALL = """\
input: {path: a.csv}
prompt: {user: "{{ a }}"}
model: {endpoint: simulator, name: m}
output: {path: b.csv}
"""
SCHEMA = jsonschema_rs.Draft202012Validator(json_schema())


def loaded(text: str, environment: dict[str, str] | None = None) -> Loaded:
    return load(text, Path("/jobs/tickets.yaml"), environment or {})


def mistakes(text: str, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(JobFileError) as caught:
        loaded(text, environment)
    return str(caught.value).replace("/jobs/tickets.yaml:", "").split("\n")


def with_line(section: str, line: str) -> str:
    """Return the small job with one more key in a section (in the job itself for an empty name)."""
    if not section:
        return f"{SMALL}{line}\n"
    if f"{section}: {{" in SMALL:
        return SMALL.replace(f"{section}: {{", f"{section}: {{{line}, ")
    return f"{SMALL}{section}: {{{line}}}\n"


def plain(text: str) -> Any:  # noqa: ANN401  (any JSON)
    """Read YAML as an editor's schema check does."""
    return json.loads(json.dumps(YAML(typ="safe", pure=True).load(text)))


def test_everything_that_can_be_said_arrives() -> None:
    """A job that uses each section gives the values that are written, typed by their fields."""
    made = loaded(WHOLE).job
    assert made.input.path == ("../data/a.csv", "../data/b.csv.gz")
    assert made.input.csv.quote is None
    assert made.input.csv.null_values == ("NA", "null", "-999")
    assert made.prompt.messages is not None
    parts = made.prompt.messages[1].content
    assert [(part.text, part.image) for part in parts if not isinstance(part, str)] == [
        ("{{ body }}", None),
        (None, "{{ photo }}"),
    ]
    assert made.model.headers == {"X-Title": "1.10"}
    assert made.model.price is not None
    assert made.model.price.completion == Decimal("0.6")
    assert made.limits.cap == CostCap(run=Decimal(5), day=Decimal("20.5"))
    assert (made.limits.max_failed, made.limits.deadline_seconds) == ("5%", 5400)
    assert made.output.details == ("status", "cost_usd")
    assert made.ray is not None
    assert made.ray.resources == {"net": 0.5}
    assert made.text == WHOLE


def test_params_are_typed_as_yaml_1_2_does() -> None:
    """What goes into the API's body follows YAML 1.2: numbers, true, false, null; `no` and `12:30` are text."""
    assert loaded(WHOLE).job.model.params == {
        "temperature": 0.5,
        "max_tokens": 16,
        "provider": {"sort": "price"},
        "stop": ["no", "12:30"],
        "logprobs": True,
        "seed": None,
    }
    written = "{a: 0o17, b: -007, c: 1e3, d: .5, e: '1', f: \"true\", g: ~, h: , i: False, j: 1_000, k: 1.}"
    params = loaded(with_line("model", f"params: {written}")).job.model.params
    assert params == {
        "a": 15, "b": -7, "c": 1000.0, "d": 0.5, "e": "1", "f": "true", "g": None, "h": None, "i": False,
        "j": "1_000", "k": 1.0,
    }  # fmt: skip


@given(st.text(string.ascii_letters + string.digits + ".-_:+/~", min_size=1, max_size=12))
@settings(max_examples=150)
def test_text_fields_take_scalars_as_written(word: str) -> None:
    """Whatever a plain scalar looks like to YAML, a text field gets its characters."""
    if word.startswith(("-", ":")) or word.endswith(":") or word in {"~", "null", "Null", "NULL"}:
        return
    assert loaded(SMALL.replace("name: m", f"name: {word}")).job.model.name == word


def test_defaults_are_those_of_the_dataclasses() -> None:
    """A small job has the defaults that job.py states."""
    made = loaded(SMALL).job
    assert made.limits == Limits()
    assert made.answer is None
    assert made.checkpoint_path == Path("/jobs/.batchrun/tickets.sqlite")
    assert made.output_path == Path("/jobs/b.csv")


def test_a_byte_order_mark_and_line_ends_do_not_matter() -> None:
    """A file from another system is the same job with the same positions."""
    text = "\ufeff" + WHOLE.replace("\n", "\r\n")
    assert loaded(text).job.prompt == loaded(WHOLE).job.prompt
    path = ("limits", "attempts")
    assert loaded(text).mistake(path, "x") == loaded(WHOLE).mistake(path, "x")


def golden(path: Path) -> str:
    with pytest.raises(JobFileError) as caught:
        load(path.read_text(encoding="utf-8"), Path("jobs") / path.name, ENVIRONMENT)
    assert caught.value.exit_code == 2
    return f"{caught.value}\n"


@pytest.mark.parametrize(
    "pattern", ["*.csv", "**/*.csv", "a/**/*.csv", "**/b/*.csv", "a/**", "[ab]/?.csv", "**/a/**/*.csv"]
)
def test_a_glob_means_the_files_that_it_finds(tmp_path: Path, pattern: str) -> None:
    """An output that does not exist yet is known to be an input of the next run, or of another job."""
    files = [tmp_path / name for name in ("x.csv", "a/y.csv", "a/b/z.csv", "a/c/b/z.csv", "b/y.csv", "b/x.txt")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    whole = f"{tmp_path}/{pattern}"
    found = {file for file in glob.glob(whole, recursive=True) if Path(file).is_file()}  # noqa: PTH207  (as the input)
    assert {str(file) for file in files if matches(str(file), whole)} == found


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.yaml")), ids=lambda path: path.stem)
def test_messages(path: Path) -> None:
    """Each wrong job of the corpus gives exactly the lines that are written beside it, and no secret."""
    made = golden(path)
    assert made == path.with_suffix(".txt").read_text(encoding="utf-8")
    assert "canary" not in made


def test_ten_mistakes_are_ten_lines_with_positions() -> None:
    """A job with ten mistakes gives ten lines, sorted, each with line and column."""
    lines = golden(GOLDEN / "ten_mistakes.yaml").splitlines()
    places = [tuple(map(int, line.split(":")[1:3])) for line in lines]
    assert len(lines) == 10
    assert places == sorted(places)
    assert all(line > 0 and column > 0 for line, column in places)


def found_in(text: str) -> JobFileError | None:
    """Load a text; anything but a job or its mistakes is a crash."""
    try:
        loaded(text, {"A": "a"})
    except JobFileError as error:
        return error
    return None


@given(st.text(max_size=200) | st.text("{}[]:,-|>&*!%@`'\"#? \n\tab1", max_size=80))
@settings(max_examples=400)
def test_any_text_is_a_job_or_a_list_of_mistakes(text: str) -> None:
    """No text raises anything but JobFileError, and each of its mistakes is one line."""
    error = found_in(text)
    assert error is None or 0 < len(error.mistakes) == str(error).count("\n") + 1


_KEYS = st.sampled_from(
    sorted({f.name for kind in vars(job).values() if hasattr(kind, "__dataclass_fields__") for f in fields(kind)})
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["${A}", "$$", "5%"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_KEYS, _VALUES, max_size=6), st.booleans())
@settings(max_examples=400)
def test_any_job_like_data_is_a_job_or_a_list_of_mistakes(data: dict[str, Any], whole: bool) -> None:  # noqa: FBT001  (hypothesis passes by position)
    """Values of any shape at the keys of a job raise nothing but JobFileError."""
    error = found_in(json.dumps((plain(SMALL) if whole else {}) | data))
    assert error is None or 0 < len(error.mistakes) == str(error).count("\n") + 1


@given(st.text(max_size=40), st.integers(0, len(WHOLE)), st.integers(0, 40))
@settings(max_examples=200)
def test_any_slip_of_an_editor_is_reported(inserted: str, at: int, cut: int) -> None:
    """A job into which something was pasted, or of which a piece is missing, is a job or a list of mistakes."""
    error = found_in(WHOLE[:at] + inserted + WHOLE[at + cut :])
    assert error is None or 0 < len(error.mistakes) == str(error).count("\n") + 1


@pytest.mark.parametrize("text", ["[" * 900, "{a: " * 900, "- " * 900, "\n".join(" " * i + "a:" for i in range(90))])
def test_deep_nesting_is_refused(text: str) -> None:
    """Depth is bounded in each style of YAML, without a RecursionError."""
    (line,) = mistakes(text)
    assert line.endswith("the file is nested more than 50 levels deep")


def test_mistakes_are_cut_off() -> None:
    """A file of nothing but mistakes ends with the first hundred."""
    assert len(mistakes("a: 1\n" * 500)) == 100
    assert len(mistakes("\n".join(f"unknown{i}: 1" for i in range(500)))) == 100


PLACES = """\
input: {path: a.csv}
prompt:
  system: Be short.
  user: |-  # the question

    one
    {{ two }}
model:
  endpoint: simulator
  name:   "m"
output: >-
    b.csv
"""


@pytest.mark.parametrize(
    ("path", "line", "place"),
    [
        (("input", "path"), 1, (1, 15)),
        (("prompt", "system"), 1, (3, 11)),
        (("prompt", "user"), 1, (5, 5)),
        (("prompt", "user"), 3, (7, 5)),
        (("prompt", "messages", 0, "role"), 1, (2, 1)),
        (("model", "name"), 2, (10, 11)),
        (("model", "identity"), 1, (8, 1)),
        (("answer", "columns"), 1, (1, 1)),
        (("output",), 1, (11, 1)),
        (("output", "path"), 4, (12, 5)),
        ((), 1, (1, 1)),
    ],
)
def test_positions(path: tuple[str | int, ...], line: int, place: tuple[int, int]) -> None:
    """A value's line and column are those an editor shows, also in a block scalar and for what is not there."""
    mistake = loaded(PLACES).mistake(path, "x", line)
    assert (mistake.line, mistake.column) == place


def test_a_mistake_in_a_template_is_placed() -> None:
    """Jinja counts a template's lines from 1; the mistake stands at that line of the file."""
    made = loaded(SMALL.replace('{user: "{{ a }}"}', "\n  user: |\n    one\n    {{ b }}"))
    assert made.mistake(("prompt", "user"), "no column", 2).at(made.shown) == "/jobs/tickets.yaml:5:5: no column"
    assert made.mistake(("output",), "clash").line == 7


def test_variables_expand_where_they_may_and_nowhere_else() -> None:
    """`${VAR}` and `$$` work in paths, endpoint, name and headers; a prompt, a condition and params keep theirs."""
    text = """\
input: {path: ["${A}/x.csv", "$$${A}"], where: "x = '${A}'"}
prompt: {user: "${A} $$"}
model: {endpoint: "${URL}", name: "${A}", ca_file: "${A}", params: {user: "${A}"}, headers: {X-A: "${A} $1"}}
output: {path: "${A}.csv", prefix: "${A}"}
checkpoint: "${A}.sqlite"
"""
    made = loaded(text, {"A": "a", "URL": "https://models.example/v1"}).job
    assert made.input.path == ("a/x.csv", "$a")
    assert (made.input.where, made.prompt.user, made.output.prefix) == ("x = '${A}'", "${A} $$", "${A}")
    assert (made.model.endpoint, made.model.name, made.model.ca_file) == ("https://models.example/v1", "a", "a")
    assert (made.model.params, made.model.headers) == ({"user": "${A}"}, {"X-A": "a $1"})
    assert (made.output.path, made.checkpoint) == ("a.csv", "a.sqlite")


def test_no_message_or_repr_shows_a_variable() -> None:
    """A value that came from the environment is in no message, and headers are in no repr."""
    secret = "canary-4711"
    for model in ('endpoint: "${A}"', 'endpoint: "http://${A}"', 'endpoint: simulator, headers: {X-A: "${A}\\n"}'):
        made = mistakes(SMALL.replace("endpoint: simulator", model), {"A": secret})
        assert len(made) == 1
        assert secret not in made[0]
    assert secret not in repr(loaded(with_line("model", "headers: {X-A: '${A}'}"), {"A": secret}).job)


@pytest.mark.parametrize(
    ("url", "fine"),
    [
        ("https://models.example/v1", True),
        ("http://127.0.0.1:8000/v1", True),
        ("http://127.9.9.9/v1", True),
        ("http://[::1]:8000", True),
        ("HTTP://localhost:1", True),
        ("http://models.example/v1", False),
        ("http://10.0.0.1", False),
        ("http://127.0.0.1.models.example", False),
        ("http://localhost.models.example", False),
        ("http://0.0.0.0", False),
        ("http://127.0.0.1@models.example/", False),
        ("http://models.example\\\\@127.0.0.1/", False),
        ("http://[::1", False),
        ("https://", False),
        ("https://h:99999", False),
        ("https://h/v1?x=1", False),
        ("https://h/a b", False),
        ("ftp://h", False),
    ],
)
def test_endpoints(url: str, *, fine: bool) -> None:
    """Plain http goes to this host alone, and what is not a clean URL is refused."""
    text = SMALL.replace("simulator", '"${URL}"')
    if fine:
        assert loaded(text, {"URL": url}).job.model.endpoint == url
    else:
        (line,) = mistakes(text, {"URL": url})
        assert line.startswith("3:19: model.endpoint ")


def test_plain_http_can_be_allowed() -> None:
    """allow_plain_http opens other hosts."""
    text = SMALL.replace("simulator", "http://models.example/v1, allow_plain_http: true")
    assert loaded(text).job.model.allow_plain_http


def test_flags_are_checked_like_the_file() -> None:
    """`check` finds what a flag made wrong in a loaded job."""
    made = loaded(SMALL).job
    changed = Job(made.input, made.prompt, Model("http://models.example", "m"), made.output)
    assert list(check(made)) == []
    assert [path for path, _ in check(changed)] == [("model", "endpoint")]


@pytest.mark.parametrize(
    ("section", "line", "fine"),
    [
        ("limits", "concurrency: 20000", True),
        ("limits", "concurrency: 20001", False),
        ("limits", "concurrency: auto", True),
        ("limits", "concurrency: 0", False),
        ("limits", "attempts: 1", True),
        ("limits", "timeout: 0", False),
        ("limits", "timeout: 0.5", True),
        ("limits", "timeout: nan", False),
        ("limits", "timeout: inf", False),
        ("limits", "requests_per_minute: 0", False),
        ("limits", "tokens_per_minute: null", True),
        ("limits", "max_failed: 0", True),
        ("limits", "max_failed: -1", False),
        ("limits", "max_failed: 0.5%", True),
        ("limits", "max_failed: 101%", False),
        ("limits", "max_cost_usd: 0.000001", True),
        ("limits", "max_cost_usd: -1", False),
        ("limits", "max_cost_usd: nan", False),
        ("limits", "max_cost_usd: 1e999999999", False),
        ("", "engine: {ray: {resources: {net: inf}}}", False),
        ("limits", "breaker: 0", True),
        ("limits", "breaker: -1", False),
        ("limits", "deadline: 2h", True),
        ("limits", "deadline: 0s", False),
        ("limits", "patience: 15m", True),
        ("limits", "patience: 900", False),
        ("output", "prefix: ai_", True),
        ("output", "keep: none", True),
        ("output", "keep: []", True),
        ("output", "details: []", True),
        ("output", "details: [key, key]", False),
        ("input", 'csv: {separator: "\\t"}', True),
        ("input", 'csv: {separator: "\\n"}', False),
        ("input", "csv: {separator: ä}", False),
        ("input", "csv: {encoding: rot13}", False),
        ("input", "csv: {encoding: big5}", True),
        ("model", "cache: true", True),
        ("model", "fallbacks: [a, b]", True),
        ("model", "fallbacks: [m]", False),
        ("model", "api_key_env: A-B", False),
        ("answer", "columns: {a: string}", True),
        ("answer", "schema: {}", False),
        ("answer", "repairs: 0", True),
        ("", "answer: {}", False),
        ("", "engine: ray", True),
        ("", "engine: {}", False),
        ("", "file: x.yaml", False),
        ("", "text: x", False),
    ],
)
def test_bounds(section: str, line: str, *, fine: bool) -> None:
    """Each bound is exactly where the job file's reference says."""
    if line == "repairs: 0":
        line = "columns: {a: string}, repairs: 0"
    text = with_line(section, line)
    if fine:
        loaded(text)
    else:
        assert len(mistakes(text)) == 1


@pytest.mark.parametrize("path", ["a.parquet", "[a.jsonl.gz, b.ndjson]", '"*.xlsx"'])
def test_options_for_csv_belong_to_csv(path: str) -> None:
    """`csv` beside files of other kinds alone is a mistake, since it would do nothing."""
    text = SMALL.replace("path: a.csv", f"path: {path}, csv: {{null_values: [NA]}}")
    suffix = ".xlsx" if "xlsx" in path else ".jsonl" if "jsonl" in path else ".parquet"
    assert mistakes(text)[0].endswith(f"input.csv is for CSV files, and the input is {suffix}: remove it")
    for mixed in ("[a.parquet, c.csv]", "b.tsv.gz", '"data/*"', '"${FILE}"'):
        loaded(text.replace(f"path: {path},", f"path: {mixed},"), {"FILE": "rows.CSV"})
    output = SMALL.replace("path: b.csv", "path: b.parquet, csv: {bom: true}")
    assert mistakes(output)[0].endswith("output.csv is for CSV files, and the output is .parquet: remove it")
    loaded(output.replace("parquet", "tsv"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("2h", 7200), ("1h30m", 5400), ("1d", 86400), ("0.5s", 0.5), ("1d2h3m4s", 93784)]
)
def test_durations(text: str, seconds: float) -> None:
    """A duration is days, hours, minutes and seconds in this order."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "s", "2 h", "30m1h", "-1s", "1.5h", "1h ", "\uff19s", "9" * 400 + "s"])
def test_what_is_not_a_duration(text: str) -> None:
    """Anything else is a ValueError, never a guess."""
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(("limit", "accepted"), [(None, None), (7, 7), ("5%", 10), ("0.25%", 0), ("100%", 200)])
def test_accepted_failures(limit: int | str | None, accepted: int | None) -> None:
    """A share of failed rows is rounded down."""
    assert Limits(max_failed=limit).accepted_failures(200) == accepted


def test_the_key_belongs_to_openrouter_alone() -> None:
    """OPENROUTER_API_KEY goes to openrouter by itself, elsewhere only what the job names."""
    assert Model("openrouter").key_variable == "OPENROUTER_API_KEY"
    assert Model("https://models.example").key_variable is None
    assert Model("https://models.example", api_key_env="K").key_variable == "K"


def test_the_published_schema_is_this_one() -> None:
    """docs/reference/job.schema.json is what `batchrun schema` prints; write it again when this fails."""
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    assert (ROOT / "docs" / "reference" / "job.schema.json").read_text(encoding="utf-8") == text


def test_the_schema_is_valid_and_takes_what_the_loader_takes() -> None:
    """The schema is a schema of draft 2020-12, and the jobs above fit it."""
    jsonschema_rs.meta.validate(json_schema())
    for text in (WHOLE, SMALL):
        SCHEMA.validate(plain(text))


PART = "{messages: [{role: user, content: [%s]}]}"


@pytest.mark.parametrize(
    ("part", "fits"),
    [
        ("{text: a}", True),
        ("{image: a}", True),
        ("{file: a}", True),
        ("{file: a, engine: native}", True),
        ("{file: a, text: extracted}", True),
        ("{file: a, text: other}", False),
        ("{file: a, text: extracted, engine: native}", False),
        ("{text: a, engine: native}", False),
        ("{text: a, image: a}", False),
        ("{file: a, image: a}", False),
        ("{engine: native}", False),
        ("{}", False),
    ],
)
def test_the_schema_takes_the_parts_that_the_loader_takes(part: str, *, fits: bool) -> None:
    """An editor takes each form of a message's part that batchrun takes, and no other."""
    text = SMALL.replace('{user: "{{ a }}"}', PART % part.replace(": a", ": '{{ a }}'"))
    assert SCHEMA.is_valid(plain(text)) == fits
    assert (found_in(text) is None) == fits


def test_the_schema_takes_no_wait() -> None:
    """A batch's wait of 0 needs no quotes, as the loader takes it."""
    for wait, fits in (("0", True), ("'0'", True), ("2h", True), ("7", False)):
        assert SCHEMA.is_valid(plain(f"{SMALL}engine: {{batch: {{wait: {wait}}}}}\n")) == fits, wait


@pytest.mark.parametrize("name", ["ten_mistakes", "types", "missing", "together", "empty"])
def test_the_schema_refuses_what_the_loader_refuses(name: str) -> None:
    """An editor with the schema shows these files as wrong too."""
    text = (GOLDEN / f"{name}.yaml").read_text(encoding="utf-8")
    data = YAML(typ="safe", pure=True).load(text)
    assert not SCHEMA.is_valid(json.loads(json.dumps(data).replace("Infinity", "1").replace(f"{10**20 - 1}", "1")))


def test_each_field_is_described() -> None:
    """Each property of the schema has a text, each object is closed, and what the loader sets is not in it."""
    whole = json_schema()
    for name, shape in {"Job": whole, **whole["$defs"]}.items():
        assert shape["additionalProperties"] is False, name
        for field, property_ in shape["properties"].items():
            assert property_.get("description"), f"{name}.{field}"
    assert not {"file", "text"} & whole["properties"].keys()


def test_each_kind_of_complaint_has_words() -> None:
    """No golden message falls back on pydantic's own words."""
    made = "".join(path.read_text(encoding="utf-8") for path in GOLDEN.glob("*.txt"))
    assert "input should be" not in made
    assert "valid" not in made.replace("not valid YAML", "").replace("invalid HTTP header name", "").replace(
        "not a valid URL", ""
    )


def test_short_forms_are_the_long_ones(tmp_path: Path) -> None:
    """A path alone is an input or output, a text alone a prompt; prompts may stand in files, types have short names."""
    (tmp_path / "system.md").write_bytes("\ufeffYou sort\r\ntickets.\n".encode())
    short = """\
input: a.csv
prompt: "{{ a }}"
model: {endpoint: simulator, name: m}
output: out/b.parquet
"""
    job = load(short, tmp_path / "x.yaml", {}).job
    assert (job.input.path, job.prompt.user, job.output.path) == ("a.csv", "{{ a }}", "out/b.parquet")
    text = short.replace('prompt: "{{ a }}"', "prompt: {user: x, system: {file: '${NAME}.md'}}")
    text = text.replace("input: a.csv", "input: {path: [a.csv], csv: {columns: {n: int, x: float, o: bool, s: str}}}")
    job = load(text, tmp_path / "x.yaml", {"NAME": "system"}).job
    assert job.prompt.system == "You sort\ntickets.\n"
    assert list(job.input.csv.columns.values()) == ["integer", "number", "boolean", "string"]
    SCHEMA.validate(plain(text))
    SCHEMA.validate(plain(short))


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("prompt: {user: {file: gone.md}}", "1:23: gone.md can't be read: No such file or directory"),
        ("prompt: {user: {file: latin.md}}", "1:23: latin.md is not UTF-8: save it as UTF-8"),
        ("prompt: {user: {fil: x}}", "1:10: prompt.user must be text or {file: …}"),
        ("prompt: {user: {file: '${NO}'}}", "1:23: prompt.user.file: the variable NO is not set: set it in the"),
        ("output: out.txt", "1:9: output.path must end in .parquet, .csv, "),
        ("output:", "1:1: output is empty: give it a value or remove the key"),
    ],
)
def test_a_mistake_in_a_short_form_has_its_place(tmp_path: Path, text: str, made: str) -> None:
    """What is wrong with a short form, or with the file of a prompt, is reported where it is written."""
    (tmp_path / "latin.md").write_bytes(b"caf\xe9")
    key = text.partition(":")[0]
    rest = [line for line in SMALL.splitlines() if not line.startswith(f"{key}:")]
    with pytest.raises(JobFileError) as caught:
        load("\n".join([text, *rest]), tmp_path / "x.yaml", {})
    (line,) = str(caught.value).replace(f"{tmp_path}/x.yaml:", "").split("\n")
    assert line.startswith(made)


def test_labels_are_texts_as_they_are_written() -> None:
    """`values: [true, 1, no]` are three names, in a list and with descriptions; a null among them is a null."""
    text = (
        SMALL + "answer: {columns: {a: {values: [true, 1.10, no, null]}, b: {values: {true: Yes, 2: 3}}, c: [1, 2]}}\n"
    )
    answer = loaded(text).job.answer
    assert answer is not None
    assert answer.columns == {
        "a": {"values": ["true", "1.10", "no", None]},
        "b": {"values": {"true": "Yes", "2": "3"}},
        "c": [1, 2],
    }
