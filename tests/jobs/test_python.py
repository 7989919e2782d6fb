"""The Python door: paths, dicts and frames in, records and frames out, in scripts, loops, threads and notebooks."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime
from datetime import time as clock
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forking
import polars as pl
import pytest
from command_line import JOB, Command, command, job, openrouter, simulator
from simulator_server import Running

import batchrun

__all__ = ["command", "job", "openrouter", "simulator"]

FRAME = pl.DataFrame({"n": [1, 2, 3], "text": ["fine", "bad", "fine"]})


def dict_job(url: str) -> dict[str, Any]:
    """Return a job as a program writes it."""
    model = {"endpoint": url, "name": "sim/good", "api_key_env": "OPENROUTER_API_KEY"}
    return {
        "prompt": "Review: {{ text }}",
        "model": model,
        "answer": {"columns": {"label": ["good", "bad"]}},
    }


@pytest.fixture
def door(job: Path, tmp_path: Path, openrouter: Running, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a job that a program may run, with a key and a server."""
    assert openrouter.url
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or-v1-canary")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return job


def test_a_program_runs_and_resumes_a_job(door: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`run` gives a Summary and is quiet; arguments win over the file; the next call resumes."""
    first = batchrun.run(door, limit=1, max_cost=1, concurrency=2, output=door.parent / "mine.csv")
    assert (first.ok, first.pending, first.failed, first.exit_code) == (2, 1, 1, 1)
    second = batchrun.run(str(door))
    assert (second.ok, second.pending, second.requests) == (3, 0, 1)
    assert second.output == str(door.parent / "out.csv")
    assert capfd.readouterr() == ("", "")


IN_THREADS = """
import asyncio, sys, threading, batchrun
async def inside(limit): return run(limit)
def run(limit=None):
    print(batchrun.run("job.yaml", endpoint=sys.argv[1], api_key_env="OPENROUTER_API_KEY", limit=limit).ok)
asyncio.run(inside(1))
for _ in range(3):
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
run()
"""


def test_a_program_may_run_a_job_inside_an_event_loop_and_in_threads(door: Path, openrouter: Running) -> None:
    """A notebook's loop, threads that come and go, and then the main thread can run jobs, one after the other."""
    answers = [line.strip() for line in _ran(IN_THREADS, openrouter.url, cwd=door.parent).splitlines()]
    assert answers == ["2", "3", "3", "3", "3"]


def _ran(script: str, *arguments: str, cwd: Path) -> str:
    done = forking.run(*arguments, program=script, cwd=cwd, env=os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_program_gets_mistakes_as_exceptions(door: Path) -> None:
    """A wrong job raises JobFileError with its mistakes; a wrong amount, a missing file and a missing key UserError."""
    job = batchrun.load_job(door)
    assert isinstance(job, batchrun.Job)
    assert job.model.name == "openai/gpt-4o-mini"
    with pytest.raises(batchrun.UserError, match="not an amount"):
        batchrun.run(door, max_cost="much")
    with pytest.raises(batchrun.UserError, match="No such file"):
        batchrun.load_job("gone.yaml")
    with pytest.raises(batchrun.UserError, match="NO_SUCH is not set"):
        batchrun.run(door, api_key_env="NO_SUCH")
    door.write_text(JOB + "promt: x\n")
    with pytest.raises(batchrun.JobFileError) as caught:
        batchrun.run(door)
    assert [mistake.line for mistake in caught.value.mistakes] == [len(JOB.splitlines()) + 1]


def test_an_exception_reaches_another_process() -> None:
    """Every problem arrives whole out of a pool of processes, which waits for ever for one that it can't read."""
    with pytest.raises(batchrun.JobFileError) as raised:
        batchrun.run({"prompt": "{{ text }}", "modell": 3}, FRAME)
    problems = [raised.value, batchrun.InputError("unclosed quote"), batchrun.BusyError("running")]
    for problem in problems:
        arrived = pickle.loads(pickle.dumps(problem))  # noqa: S301  (our own)
        assert (type(arrived), str(arrived), vars(arrived)) == (type(problem), str(problem), vars(problem))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"engine": "bacth"}, "engine must be local, ray or batch, not 'bacth'"),
        ({"limit": "5"}, "limit must be a whole number, not '5'"),
        ({"concurrency": 10**6}, "concurrency must be at most 20,000"),
        ({"retry": "rate_limitd"}, "retry: there is no error type rate_limitd"),
        ({"retry": "rate_limited"}, "no row failed with rate_limited"),
        ({"engine": "batch", "wait": 5}, "--wait must be 0 or a time with its unit"),
    ],
)
def test_a_flag_of_a_program_that_cannot_be_meant_is_refused(
    door: Path, openrouter: Running, flags: dict[str, Any], message: str
) -> None:
    """As on the command line nothing is sent; another word than batch would pay the full price."""
    with pytest.raises(batchrun.UserError, match=message):
        batchrun.run(door, **flags)
    assert not openrouter.counters.requests


def test_a_program_may_say_not_to_wait_with_a_number(door: Path) -> None:
    """`wait=0` is `--wait 0`."""
    assert batchrun.run(door, endpoint="simulator", engine="batch", wait=0).exit_code == 6


# Dicts and frames


@pytest.fixture
def asked(door: Path, openrouter: Running) -> dict[str, Any]:
    """Write a job as a dict, in a folder of its own."""
    assert door.exists()
    return dict_job(openrouter.url)


def test_a_dict_and_a_frame_give_a_frame(asked: dict[str, Any], openrouter: Running) -> None:
    """The output has the frame's rows and columns and the typed answers; the same cell again sends nothing."""
    first = batchrun.run(asked, FRAME)
    assert (first.ok, first.requests, first.next, first.commands) == (3, 2, None, ())
    labelled = first.frame()
    assert labelled.select("n", "text").equals(FRAME)
    assert labelled.schema["label"] == pl.Enum(["good", "bad"])
    assert labelled["status"].to_list() == ["ok"] * 3
    assert isinstance(first.cost_usd, Decimal)
    assert first.cost_usd == openrouter.counters.billed_usd
    again = batchrun.run(asked, FRAME)
    assert (again.requests, again.ok, again.frame().equals(labelled)) == (0, 3, True)
    more = batchrun.run(
        asked | {"limits": {"timeout": 9}}, pl.concat([FRAME, pl.DataFrame({"n": [4], "text": ["new"]})])
    )
    assert (more.requests, more.ok) == (1, 4)


def test_another_prompt_of_a_dict_is_another_job(asked: dict[str, Any]) -> None:
    """It has its own answers, needs no confirmation, and the first one's answers are still there."""
    first, other = batchrun.run(asked, FRAME), batchrun.run(asked | {"prompt": "Judge: {{ text }}"}, FRAME)
    assert (first.requests, other.requests, batchrun.run(asked, FRAME).requests) == (2, 2, 0)
    assert first.checkpoint != other.checkpoint
    named = batchrun.run(asked | {"checkpoint": "kept/mine.sqlite", "output": "mine.csv"}, FRAME)
    assert (named.job, named.checkpoint) == ("mine", str(Path.cwd() / "kept" / "mine.sqlite"))
    assert named.output == str(Path.cwd() / "mine.csv")
    assert named.frame()["label"].to_list() == first.frame()["label"].to_list()


def test_a_dict_with_a_path_is_a_job_in_the_working_directory(asked: dict[str, Any]) -> None:
    """Input, output and prompt files are relative to it; a path as `input` wins."""
    Path("prompt.md").write_text("Review: {{ text }}")
    whole = asked | {"prompt": {"user": {"file": "prompt.md"}}, "input": "rows.csv", "output": "out.parquet"}
    assert batchrun.run(whole).frame()["id"].to_list() == ["1", "2", "3", "4"]
    Path("two.csv").write_text("id,text\n7,fine\n")
    assert batchrun.run(whole, "two.csv").frame()["id"].to_list() == ["7"]


def test_a_frame_goes_through_a_job_file(door: Path) -> None:
    """It has an output and a checkpoint of its own; where and the prompt are the file's; pandas comes in as well."""
    text = door.read_text().replace("path: rows.csv", "path: rows.csv\n  where: n > 1")
    door.write_text(text)
    summary = batchrun.run(door, FRAME)
    assert (summary.ok, summary.skipped, summary.output) == (2, 1, str(door.parent / "out.frame.csv"))
    assert summary.frame()["n"].to_list() == [1, 2, 3]
    assert (door.parent / ".batchrun").stat().st_mode & 0o77 == 0
    assert not (door.parent / "out.csv").exists()
    pandas = FRAME.to_pandas()
    assert batchrun.run(door, pandas).requests == 0
    with pytest.raises(batchrun.UserError, match="a path or a frame"):
        batchrun.run(door, 7)  # type: ignore[arg-type]
    with pytest.raises(batchrun.UserError, match='column "o" is of the type Object'):
        batchrun.run(door, pl.DataFrame({"o": pl.Series([object()], dtype=pl.Object)}))


def test_mistakes_of_a_dict_name_its_keys(asked: dict[str, Any]) -> None:
    """All of them come in one exception, with the command's words and the place in the dict."""
    wrong = asked | {"promt": "x", "limits": {"timeout": -1}, "prompt": "{{ txt }}"}
    with pytest.raises(batchrun.JobFileError) as caught:
        batchrun.run(wrong, FRAME)
    assert str(caught.value).splitlines() == [
        'job["limits"]["timeout"]: limits.timeout must be more than 0',
        'job["prompt"]["user"]: the input has no column "txt", did you mean "text"?',
        'job["promt"]: unknown key "promt", did you mean "prompt"?',
    ]
    with pytest.raises(batchrun.JobFileError, match=r'job\["input"\]: input is missing'):
        batchrun.run(asked)
    with pytest.raises(batchrun.UserError, match="a job can't hold <object"):
        batchrun.run(asked | {"dedupe": object()}, FRAME)
    with pytest.raises(batchrun.UserError, match="limit must be at least 1, not 0"):
        batchrun.run(asked, FRAME, limit=0)


def test_values_of_a_dict_are_those_of_yaml(asked: dict[str, Any]) -> None:
    """Numbers, None, True, decimals and tuples mean what they mean in a file; a text that looks like one stays text."""
    job = asked | {
        "dedupe": False,
        "limits": {"max_cost_usd": Decimal("2.5"), "requests_per_minute": None},
        "answer": {"columns": {"label": ("true", "1"), "score": {"type": "number", "min": -1.5}}},
    }
    job["model"] |= {"params": {"seed": 7, "top_p": 0.5, "stop": "1.10", "logprobs": True}}
    params = batchrun.preview(job, FRAME).requests[0].params
    assert {name: params[name] for name in ("seed", "top_p", "stop", "logprobs")} == {
        "seed": 7, "top_p": 0.5, "stop": "1.10", "logprobs": True,
    }  # fmt: skip
    odd = "a\x7fb\x85c\u2028d\ufeffe 😀 'f' \"g\" {{ h }}: # i\\ \n"
    job["model"]["params"]["stop"] = odd
    assert batchrun.preview(job, FRAME).requests[0].params["stop"] == odd
    shape = params["response_format"]["json_schema"]["schema"]["properties"]
    assert (shape["label"]["enum"], shape["score"]["minimum"]) == (["true", "1"], -1.5)
    job["model"]["params"]["top_p"] = float("nan")
    with pytest.raises(batchrun.UserError, match="a job can't hold NaN"):
        batchrun.preview(job, FRAME)


def test_flags_of_a_program_are_those_of_the_command(door: Path) -> None:
    """`set` takes texts and what a dict takes; another model and a sample are a variant and a part of it."""
    summary = batchrun.run(
        door, sample=1, model="google/gemini-2.5-flash", set={"limits.timeout": 9, "answer.repairs": "0"}, quiet=True
    )
    assert (summary.requests, Path(str(summary.output)).name[:16]) == (1, "out.gemini-2.5-f")
    summary = batchrun.run(door, set={"output.path": Path("y.csv"), "limits.max_cost_usd": Decimal("2.5")})
    assert summary.output == str(door.parent / "y.csv")
    with pytest.raises(batchrun.UserError, match=r"^set: a job can't hold datetime.date"):
        batchrun.run(door, set={"input.where": date(2026, 1, 31)})
    with pytest.raises(batchrun.JobFileError, match=r"^--set limits.timeout=-1: limits.timeout must be more than 0"):
        batchrun.run(door, set={"limits.timeout": -1})
    with pytest.raises(batchrun.UserError, match=r"changes the question: add --variant NAME"):
        batchrun.run(door, set={"prompt.user": "Judge: {{ text }}"})


def test_check_preview_and_evaluate_return_what_json_prints(door: Path, command: Command) -> None:
    """Each record is the object that the command prints with --json; money is a number there."""
    rows = door.parent / "rows.csv"
    rows.write_text("id,text,gold\n1,fine,good\n2,bad,bad\n3,awful,good\n")
    looked = batchrun.preview(door, n=1)
    shown = json.loads(command("preview", "job.yaml", "-n", "1", "--json").out)
    assert (shown["rows"], shown["questions"], shown["cost_usd"]) == (3, 3, float(looked.cost_usd or 0))
    assert looked.requests[0].messages == shown["requests"][0]["messages"]
    found = batchrun.check(door)
    assert found.mistakes == 0
    assert {one.what for one in found.findings} >= {"input", "prompt", "answer", "output", "cost"}
    assert len(json.loads(command("check", "job.yaml", "--json").out)["findings"]) == len(found.findings)
    batchrun.run(door)
    right = batchrun.evaluate(door, gold="label=gold")
    facts = json.loads(command("eval", "job.yaml", "--gold", "label=gold", "--json").out)
    assert (right.accuracy.right, right.accuracy.total) == (facts["accuracy"]["right"], facts["accuracy"]["n"])
    assert right.accuracy.total == 3
    assert right.cost_per_question_usd == pytest.approx(facts["cost_per_1000_usd"] / 1000)
    assert right.cost_per_right_usd == facts["cost_per_right_usd"]
    with pytest.raises(batchrun.UserError, match="name the right answers"):
        batchrun.evaluate(door)


TYPES = pl.DataFrame(
    {
        "i": [1, None], "f": [1.5, None], "b": [True, None], "s": ['a,"b\nc', ""], "n": ["007", None],
        "d": [date(2024, 1, 2), None], "t": [datetime(2024, 1, 2, 3, 4, 5, 6), None],  # noqa: DTZ001
        "z": [datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), None], "l": [["x", "y"], None],
        "o": [{"a": 1, "b": "q"}, None], "y": [b"\x00\xff", None], "c": [Decimal("1.50"), None],
        "h": [clock(1, 2, 3), None], "w": [clock(0), clock(23, 59, 59)],
        "a": pl.Series([[1, 2], None], dtype=pl.Array(pl.Int64, 2)), "p": [[Decimal("2.50")], None],
        "k": pl.Series([datetime(2024, 1, 2), None]).dt.replace_time_zone("Europe/Berlin"),  # noqa: DTZ001
    }
)  # fmt: skip


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "jsonl", "csv", "tsv"])
def test_every_output_comes_back_with_its_types(asked: dict[str, Any], suffix: str) -> None:
    """Whatever the format of the output, `frame` has the types and values of the frame that came in."""
    job = asked | {"prompt": "Review: {{ s }}", "output": f"out.{suffix}"}
    assert batchrun.run(job, TYPES).frame().select(TYPES.columns).equals(TYPES)


def test_escaped_formulas_come_back_as_they_were(asked: dict[str, Any]) -> None:
    """`frame` takes off the ' that escape_formulas puts before a text: with it the label "+" would be no label."""
    frame = pl.DataFrame({"s": ["=1+1", "'x", "@a", "b"]})
    answer = {"columns": {"label": ["+", "-"]}}
    output = {"path": "out.csv", "csv": {"escape_formulas": True}}
    found = batchrun.run(asked | {"prompt": "{{ s }}", "answer": answer, "output": output}, frame).frame()
    assert found["s"].to_list() == ["=1+1", "'x", "@a", "b"]
    assert set(found["label"]) <= {"+", "-"}


def test_a_workbook_comes_back_with_its_types(asked: dict[str, Any]) -> None:
    """What a sheet can hold comes back as it went in; a moment of a time zone is the same moment."""
    frame = TYPES.drop("t").with_columns(s=pl.Series(["a", "b"]))  # neither microseconds nor an empty text
    job = asked | {"prompt": "Review: {{ s }}", "output": "out.xlsx"}
    assert batchrun.run(job, frame).frame().select(frame.columns).equals(frame)


def test_a_run_that_wrote_nothing_has_no_frame(asked: dict[str, Any], openrouter: Running) -> None:
    """The exception says why the run stopped."""
    openrouter.change(require_key="sk-or-other")
    summary = batchrun.run(asked | {"output": "gone/out.parquet"}, FRAME)
    assert summary.exit_code == 3
    assert summary.frame()["status"].to_list() == ["pending"] * 3
    Path(str(summary.output)).unlink()
    with pytest.raises(batchrun.StorageError, match="can't be read"):
        summary.frame()


# Notebooks

INTERRUPTED = """
import asyncio, sys, batchrun
job = {"input": "rows.csv", "prompt": "{{ text }}", "limits": {"concurrency": 1},
       "model": {"endpoint": sys.argv[1], "name": "sim/good", "api_key_env": "OPENROUTER_API_KEY"}}
async def cell(): return batchrun.run(job)
summary = asyncio.run(cell())
print(summary.exit_code, summary.reason, summary.ok == summary.frame()["status"].eq("ok").sum() > 0)
"""


def test_an_interrupted_cell_keeps_what_is_answered(door: Path, openrouter: Running) -> None:
    """Ctrl-C in a cell, whose run is in another thread, stops the run within the request in flight."""
    openrouter.change(latency=0.05)
    (door.parent / "rows.csv").write_text("text\n" + "".join(f"text {number}\n" for number in range(2000)))
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, openrouter.url], cwd=door.parent, stdout=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while openrouter.counters.requests < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert out == "130 interrupted by SIGINT True\n"


def test_a_notebook_gets_a_bar_and_the_closing_lines(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a kernel progress is shown by default, as text where ipywidgets is missing; quiet=True hides it."""
    kernel = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    batchrun.run(asked, FRAME)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "3 of 3 rows answered" in shown.splitlines()[-3]
    batchrun.run(asked, FRAME, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_column_of_pandas_with_values_of_several_types_is_named(asked: dict[str, Any]) -> None:
    """The problem is one of batchrun's, with the column and what to write."""
    pandas = pytest.importorskip("pandas")
    rows = pandas.DataFrame({"text": ["a", "b"], "mixed": [1, "x"]})
    with pytest.raises(batchrun.UserError, match=r'column "mixed" holds values .*frame\["mixed"\].astype\("string"\)'):
        batchrun.run(asked, rows)
    rows = pandas.DataFrame([["a", 1, 2]], columns=["text", "n", "n"])
    with pytest.raises(batchrun.UserError, match='two columns are called "n"'):
        batchrun.run(asked, rows)
    assert batchrun.run(asked, pandas.DataFrame({"text": ["a"], 3: [1]})).frame().columns[:2] == ["text", "3"]


def test_a_series_of_pandas_is_a_frame_of_one_column(asked: dict[str, Any]) -> None:
    """Its name is the column's, so it must have one."""
    pandas = pytest.importorskip("pandas")
    assert batchrun.run(asked, pandas.Series(["a", "b"], name="text")).frame()["text"].to_list() == ["a", "b"]
    with pytest.raises(batchrun.UserError, match="the Series has no name"):
        batchrun.run(asked, pandas.Series(["a"]))


def test_columns_that_polars_cannot_mean_are_refused(asked: dict[str, Any]) -> None:
    """Two columns of one name, and periods, which would be numbers, are named before anything is sent."""
    arrow, pandas = pytest.importorskip("pyarrow"), pytest.importorskip("pandas")
    texts = arrow.array(["a", "b"])
    with pytest.raises(batchrun.UserError, match=r"^input: .*names must be unique: .*text"):
        batchrun.run(asked, arrow.Table.from_arrays([texts, texts], names=["text", "text"]))
    months = pandas.period_range("2026", periods=2, freq="M")
    with pytest.raises(batchrun.UserError, match=r'column "month" holds periods: make them texts: frame\["month"\]'):
        batchrun.run(asked, pandas.DataFrame({"text": ["a", "b"], "month": months}))


def test_calendar_intervals_in_a_table_of_arrow_are_refused(asked: dict[str, Any]) -> None:
    """The column is named before Polars reads its values, which would crash the process."""
    arrow = pytest.importorskip("pyarrow")
    interval = arrow.MonthDayNano([1, 2, 3])
    for values in ([interval], [[interval]], [{"in": interval}]):
        rows = arrow.table({"text": ["a"], "iv": values})
        for given in (rows, rows.to_reader()):
            with pytest.raises(batchrun.UserError, match=r'"iv" holds calendar intervals: .* cast\(iv as varchar\)'):
                batchrun.run(asked, given)


def test_calendar_intervals_in_a_relation_of_duckdb_are_refused(asked: dict[str, Any]) -> None:
    """The column is named before Polars reads its values, which would crash the process."""
    duckdb = pytest.importorskip("duckdb")
    for value in ("interval 1 month", "[interval 1 month]", "{'in': interval 1 month}"):
        with pytest.raises(batchrun.UserError, match='"iv" holds calendar intervals'):
            batchrun.run(asked, duckdb.sql(f"SELECT 'a' AS text, {value} AS iv"))
    assert batchrun.run(asked, duckdb.sql("SELECT 'a' AS text, cast(interval 1 month AS varchar) AS iv")).ok == 1
