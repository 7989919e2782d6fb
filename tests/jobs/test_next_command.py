"""The command that a run's last line offers is the one that was run: quoted, with its flags."""

import json
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import forking
import polars as pl
import pytest
from command_line import Command, command  # noqa: F401  (a fixture)
from job_running import run, write_job
from plain_server import completion, plain_server

from batchrun.api import TABLE
from batchrun.job import RunOptions, command_line
from batchrun.terminal import place


def offered(err: str) -> list[str]:
    """Return the words of the next command that stderr offers."""
    found = re.search(r"^  next    (.*?)   ", err, re.MULTILINE)
    assert found, err
    return shlex.split(found[1])


def test_the_next_command_keeps_endpoint_and_cap(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """Pasted, the command asks the other rows of the same server under the same cap; the limit has had its effect."""
    write_job(tmp_path, "openrouter", rows=25).rename(tmp_path / "my job.yaml")
    words = ["my job.yaml", "--endpoint", "simulator", "--max-cost", "0.01", "--limit", "10"]
    ended = command(*words)
    assert ended.code == 0, ended.err
    assert "my job: 10 of 25 rows answered, 15 to ask" in ended.err
    assert "asks the other 15 rows" in ended.err
    program, *words = offered(ended.err)
    assert program == "batchrun"
    assert sorted(words) == sorted(["my job.yaml", "--endpoint", "simulator", "--max-cost", "0.01"])
    assert "25 of 25 rows answered" in command(*words).err


@pytest.mark.parametrize("on_path", [False, True])
def test_a_command_in_a_log_can_be_pasted_anywhere(tmp_path: Path, *, on_path: bool) -> None:
    """In cron's log the program has its path where PATH does not find it, and files are absolute, also below /."""
    script = tmp_path / "a venv" / "batchrun"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    job = write_job(tmp_path, "openrouter", rows=4)
    output = tmp_path / "x.parquet"
    below = [str(path).removeprefix("/") for path in (job, output)]
    ended = forking.run(
        below[0], "--endpoint", "simulator", "--limit", "1", "--output", below[1],
        cwd=Path("/"),
        env={"PATH": f"{script.parent}:/usr/bin" if on_path else "/usr/bin", "HOME": str(tmp_path)},
        program=f"import sys; sys.argv[0] = {str(script)!r}\n{forking.BATCHRUN}",
    )  # fmt: skip
    dated = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC  job: 1 of 4 rows answered"
    assert re.search(dated, ended.stderr, re.MULTILINE), ended.stderr
    program = "batchrun" if on_path else str(script)
    words = [program, str(job), "--endpoint", "simulator", "--output", str(output)]
    assert offered(ended.stderr) == words, ended.stderr


def test_files_below_the_root_keep_their_slash() -> None:
    """Cron starts commands in /: what is written is named by a path that begins there."""
    assert place(Path("/data/out.csv"), Path("/")) == "/data/out.csv"
    assert place(Path("/data/out.csv"), Path("/data")) == "out.csv"


def test_a_fresh_start_is_not_offered_again(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """--fresh and --yes have had their effect: pasted again they would pay for everything a second time."""
    write_job(tmp_path, "openrouter", rows=4)
    ended = command("job.yaml", "--endpoint", "simulator", "--fresh", "--yes", "--limit", "1")
    assert offered(ended.err) == ["batchrun", "job.yaml", "--endpoint", "simulator"]


@pytest.mark.parametrize("name", ["a b.yaml", "it's.yaml", "-x.yaml", "$HOME.yaml", "jobs/ä;rm.yaml"])
def test_file_names_survive_a_shell(name: str) -> None:
    """Whatever a job file is called, the command names it and nothing else."""
    words = shlex.split(command_line(name, RunOptions(output=Path("out put.csv")), "retry"))
    assert words == ["batchrun", "retry", f"./{name}" if name[0] == "-" else name, "--output", "out put.csv"]


def test_a_reported_cost_is_on_the_first_of_equal_rows(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """Without a price the reported costs are shown: on the first of equal rows, and 0 on the others, free ones."""
    with plain_server(lambda _: completion('{"label": "good"}', cost=0.25)) as url:
        model = {"endpoint": url, "name": "m", "api_key_env": None}
        answer = {"columns": {"label": ["good", "bad"]}}
        write_job(tmp_path, url, rows=["a", "b", "a"], model=model, answer=answer, output={"details": ["cost_usd"]})
        assert command("job.yaml").code == 0
    assert pl.read_parquet(tmp_path / "out.parquet")["cost_usd"].to_list() == [0.25, 0.25, 0.0]
    ended = command("export", "job.yaml", "-o", "rows.parquet")
    assert (ended.code, "error: -o: " in ended.err, "is an input file" in ended.err) == (2, True, True)
    ended = command("retry", "job.yaml")
    assert ended.err == "error: nothing to retry: every row is answered\n"


def test_one_row_is_one_row(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """A single row is written in the singular."""
    write_job(tmp_path, "openrouter", rows=1)
    said = command("job.yaml", "--endpoint", "simulator").err
    assert "job: 1 of 1 row answered" in said
    assert not re.search(r"(?<![.\d])1 rows", said)


def test_a_handler_from_c_does_not_break_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where C code handles a signal, Python knows no handler; the run ends as ever."""
    known: Callable[[int], object] = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGHUP else known(number))
    before = known(signal.SIGHUP)
    try:
        assert run(write_job(tmp_path, "simulator", rows=2)).summary.ok == 2
    finally:
        signal.signal(signal.SIGHUP, before)  # type: ignore[arg-type]


def test_a_row_whose_text_does_not_fit_is_shown_by_a_command(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """Where an answer does not fit, the last lines offer the command that shows what the model wrote."""
    replies = lambda body: completion("maybe" if "text 1" in str(body) else '{"label": "good"}')  # noqa: E731
    with plain_server(replies) as url:
        model = {"endpoint": url, "name": "m", "api_key_env": None}
        write_job(tmp_path, url, model=model, answer={"columns": {"label": ["good", "bad"]}, "repairs": 0})
        (tmp_path / "job.yaml").rename(tmp_path / "my job.yaml")
        ended = command("my job.yaml")
    assert ended.code == 1
    (line,) = re.findall(r"^          (batchrun show .*?)   what the model wrote$", ended.err, re.MULTILINE)
    assert shlex.split(line) == ["batchrun", "show", "my job.yaml", "--row", "2"]
    assert "raw: maybe" in command(*shlex.split(line)[1:]).out


def test_a_limit_has_had_its_effect_also_where_a_row_failed(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """The command that "asks the other 2 rows" asks them all: it does not repeat the limit of the run before."""
    replies = lambda body: completion("maybe" if "text 0" in str(body) else '{"label": "good"}')  # noqa: E731
    with plain_server(replies) as url:
        model = {"endpoint": url, "name": "m", "api_key_env": None}
        details = {"details": ["status", "cost_usd"]}
        answer = {"columns": {"label": ["good", "bad"]}, "repairs": 0}
        write_job(tmp_path, url, rows=4, model=model, answer=answer, output=details)
        ended = command("job.yaml", "--limit", "2")
        assert (ended.code, "asks the other 2 rows" in ended.err) == (1, True), ended.err
        assert offered(ended.err) == ["batchrun", "job.yaml"]
        assert "3 of 4 rows answered, 1 failed" in command(*offered(ended.err)[1:]).err
    assert "\nmoney: cost unknown (the server reports none; set model.price)\n" in command("status", "job.yaml").out
    # Nothing says $0 where nobody knows a cost.
    assert pl.read_parquet(tmp_path / "out.parquet")["cost_usd"].to_list() == [None] * 4


def test_after_too_many_failures_the_next_command_gets_on(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """Where limits.max_failed stopped a run, the command that is offered asks failed rows again and does not stop."""
    texts = ["maybe"]
    with plain_server(lambda _: completion(texts[0])) as url:
        model = {"endpoint": url, "name": "m", "api_key_env": None}
        answer = {"columns": {"label": ["good", "bad"]}, "repairs": 0}
        limits = {"max_failed": 2, "concurrency": 1}
        write_job(tmp_path, url, rows=8, model=model, answer=answer, limits=limits)
        ended = command("job.yaml")
        assert ended.code == 4
        assert "accepts; correct what makes them fail, or raise limits.max_failed" in ended.err
        assert "asks failed rows again and the other 5 rows" in ended.err
        texts[0] = '{"label": "good"}'
        words = offered(ended.err)
        assert words == ["batchrun", "retry", "job.yaml"]
        ended = command(*words[1:])
    assert (ended.code, "8 of 8 rows answered" in ended.err) == (0, True), ended.err


def test_rows_that_cant_be_sent_are_not_offered_to_retry(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """Where `retry` would be refused it is not offered: the prompt or the rows are corrected first."""
    model = {"name": "sim/good", "api_key_env": None}
    write_job(tmp_path, "simulator", model=model, prompt={"user": "{{ 1 // text | length }}"}, limits={"max_failed": 2})
    pl.DataFrame({"text": ["a", "", "", "", "b"]}).write_parquet(tmp_path / "rows.parquet")
    ended = command("job.yaml")
    assert (ended.code, "3 template_error" in ended.err) == (4, True), ended.err
    assert offered(ended.err) == ["batchrun", "job.yaml"]
    assert "continues, once the prompt or these rows are corrected" in ended.err
    ended = command("retry", "job.yaml")
    assert ended.code == 2
    assert ended.err.count("`batchrun job.yaml`") == 1, ended.err
    pl.DataFrame({"text": ["a", "c", "d", "", "b"]}).write_parquet(tmp_path / "rows.parquet")
    assert command("job.yaml").code == 0


def test_the_end_shows_what_the_server_says(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """An error whose name explains nothing comes with the first message, in one clean line; --json has it whole."""
    message = "top_q: unknown\x1b[31m field " + "x" * 200
    refusal = {"error": {"message": message}}
    answer = lambda body: (400, refusal) if "text 1" in str(body["messages"]) else completion("good")  # noqa: E731
    with plain_server(answer) as url:
        model = {"endpoint": url, "name": "m", "api_key_env": None}
        write_job(tmp_path, url, rows=["a", "text 1"], model=model, answer=None, limits={"concurrency": 1})
        ended = command("job.yaml", "--json")
    (line,) = [line for line in ended.err.splitlines() if "the first says" in line]
    assert line.startswith("    the first says: ")
    assert "top_q: unknown" in line
    assert (len(line) < 200, line.isprintable()) == (True, True)
    (said,) = json.loads(ended.out)["error_messages"].values()
    assert "top_q: unknown" in said


def test_the_end_shows_why_a_prompt_can_not_be_made(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """Rows whose prompt can't be made come with the first message: the column that is null, or what is not a number."""
    model = {"api_key_env": None}
    write_job(tmp_path, "simulator", model=model, answer=None)
    pl.DataFrame({"text": ["a", None]}).write_parquet(tmp_path / "rows.parquet")
    assert '    the first says: prompt.user: column "text" is null' in command("job.yaml").err
    write_job(tmp_path, "simulator", rows=["a"], model=model, answer=None, prompt={"user": "{{ text / 2 }}"})
    said = command("job.yaml").err
    assert "for /: 'str' and 'int'; a text is not a number: write {{ name | int }}, or name its type" in said


@pytest.mark.parametrize(("refusal", "said"), [({}, []), ({"moreInformation": 7}, ['{"moreInformation": 7}'])])
def test_the_end_says_nothing_twice(
    refusal: dict[str, int],
    said: list[str],
    tmp_path: Path,
    command: Command,  # noqa: F811
) -> None:
    """A server that says nothing of its own adds no line to the name of the error; another body stands there alone."""
    answer = lambda body: (400, refusal) if "text 1" in str(body["messages"]) else completion("good")  # noqa: E731
    with plain_server(answer) as url:
        model = {"endpoint": url, "name": "m", "api_key_env": None}
        write_job(tmp_path, url, rows=["a", "text 1"], model=model, answer=None, limits={"concurrency": 1})
        ended = command("job.yaml")
    assert ended.err.count(TABLE["bad_request"].means) == 1, ended.err
    assert re.findall("the first says: (.*)", ended.err) == said


def test_failed_rows_alone_write_no_output_above_the_limit(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """Where only failed rows are left, the same command is not offered: it would end with 4 again and write nothing."""
    refusal = {"error": {"message": "content policy", "code": "content_policy_violation"}}
    answer = lambda body: (400, refusal) if "text" in str(body["messages"]) else completion("good")  # noqa: E731
    with plain_server(answer) as url:
        model = {"endpoint": url, "name": "m", "api_key_env": None}
        write_job(tmp_path, url, rows=["a", "b", "text 1", "text 2"], model=model, answer=None,
                  prompt={"user": "{{ text }}"}, limits={"max_failed": 1, "concurrency": 1})  # fmt: skip
        ended = command("job.yaml")
        assert (ended.code, "2 of 4 rows answered, 2 failed" in ended.err) == (4, True), ended.err
    assert "correct what makes them fail, or raise limits.max_failed" in ended.err
    assert "all rows are answered" not in ended.err
    assert not re.search(r"batchrun (retry )?job.yaml", ended.err), ended.err


@pytest.mark.parametrize("limits", [None, {"max_cost_usd": {"run": 1, "day": 0.000001}}])
def test_a_cap_below_the_cost_of_one_question_is_to_be_raised(
    limits: dict[str, dict[str, float]] | None,
    tmp_path: Path,
    command: Command,  # noqa: F811
) -> None:
    """The same command would ask nothing again: the message names the cost of a question and what to change."""
    write_job(tmp_path, "openrouter", rows=4, limits=limits)
    words = ["job.yaml", "--endpoint", "simulator"]
    ended = command(*words, *([] if limits else ["--max-cost", "0.000001"]))
    assert ended.code == 4
    assert re.search(r"limits\.max_cost_usd \(\$0\.0000010\) is too low: one question may cost \$0\.0\d+", ended.err)
    raised = "limits.max_cost_usd.day" if limits else "limits.max_cost_usd (or --max-cost)"
    assert f"raise {raised}, or lower model.params.max_tokens" in ended.err
    assert "next " not in ended.err


def test_an_error_in_a_log_is_dated(tmp_path: Path) -> None:
    """A line of cron's log that says why a start failed begins with the time."""
    script = tmp_path / "batchrun"
    script.touch()
    program = f"import sys; sys.argv[0] = {str(script)!r}\n{forking.BATCHRUN}"
    ended = forking.run("no.yaml", cwd=tmp_path, env={}, program=program)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC  error: no such job file: no\.yaml", ended.stderr), ended
    ended = forking.run("no.yaml", "--unknown", cwd=tmp_path, env={}, program=program)
    assert re.match(r"\d{4}-\S+ \S+ UTC  error: ", ended.stderr), ended
