"""What a newcomer gets wrong is answered with words that, typed as they stand, lead on."""

import os
import pwd
import re
from pathlib import Path

import pytest
from command_line import Command, command  # noqa: F401  (a fixture)
from job_running import write_job
from plain_server import plain_server

JOB = """\
input: {{path: rows.csv{where}}}
prompt: "Review: {{{{ {column} }}}}"
model: {{endpoint: simulator, name: sim/good}}
answer: {{columns: {{label: [good, bad]}}}}
output: out.csv
"""


def write(folder: Path, column: str, where: str = "") -> None:
    """Write a job whose prompt stands in YAML's double quotes, and an input with names that are not identifiers."""
    (folder / "rows.csv").write_text("Größe.cm,Customer name,text\n1,Ada,fine\n2,Bob,bad\n", encoding="utf-8")
    (folder / "job.yaml").write_text(JOB.format(column=column, where=where), encoding="utf-8")


@pytest.mark.parametrize("column", ["Größe.cm", "row.Größe.cm", "Customer name", "Customer"])
def test_the_advice_for_an_odd_column_name_can_be_pasted(tmp_path: Path, command: Command, column: str) -> None:  # noqa: F811
    """For `{{ Größe.cm }}` and `{{ Customer name }}` the message has the words that the prompt needs, as YAML too."""
    write(tmp_path, column)
    ended = command("job.yaml")
    assert ended.code == 2
    advised = re.search(r"row\['.*?'\]", ended.err)
    assert advised, ended.err
    write(tmp_path, advised[0])
    ended = command("job.yaml")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("condition", ["Größe.cm = '1'", "Customer name = 'Ada'", "text = 'fine' and Größe.cm = '1'"])
def test_the_advice_for_an_odd_column_name_in_a_condition_can_be_pasted(
    tmp_path: Path,
    command: Command,  # noqa: F811
    condition: str,
) -> None:
    """For `where: Größe.cm = '1'` the message says that the name stands in double quotes."""
    write(tmp_path, "text", f', where: "{condition}"')
    ended = command("job.yaml")
    assert ended.code == 2
    advised = re.search(r'write "(.*?)", in double quotes', ended.err)
    assert advised, ended.err
    quoted = condition.replace(advised[1], f'"{advised[1]}"').replace("'", "''")
    write(tmp_path, "text", f", where: '{quoted}'")
    ended = command("job.yaml")
    assert (ended.code, "1 of 1 row answered, 1 skipped" in ended.err) == (0, True), ended.err


def test_retry_names_rows_that_were_never_sent(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """For rows that failed before anything was sent, `retry` names the error and the command that asks them."""
    write(tmp_path, "text")
    (tmp_path / "rows.csv").write_text("id,text\n1,fine\n2,\n", encoding="utf-8")
    assert command("job.yaml").code == 1
    ended = command("retry", "job.yaml")
    assert ended.err == (
        "error: nothing to retry: 1 row failed with template_error before anything was sent: correct the prompt or "
        "these rows, then run `batchrun job.yaml`\n"
    )


def test_a_stopped_run_with_a_limit_offers_no_more_than_the_limit(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """After a refused key the same command is offered with its limit, and does not promise to ask all rows."""
    with plain_server(lambda _: (401, {"error": {"message": "no"}})) as url:
        write_job(tmp_path, url, rows=9, model={"endpoint": url, "name": "m", "api_key_env": None})
        limited = command("job.yaml", "--limit", "5").err
        assert "batchrun job.yaml --limit 5   asks up to 5 questions\n" in limited
        assert "asks the rest of the sample\n" in command("job.yaml", "--sample", "5").err
        assert "asks the 9 rows\n" in command("job.yaml").err


def test_a_key_for_another_endpoint_is_named_by_a_flag(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """With --endpoint the job's own key is not sent; if the server wants one, the flag that names it is advised."""
    with plain_server(lambda _: (401, {"error": {"message": "no"}})) as url:
        write_job(tmp_path, "openrouter", rows=1)
        ended = command("job.yaml", "--endpoint", url, "--model", "m")
        assert (ended.code, "name the key's variable with --api-key-env" in ended.err) == (3, True), ended.err


def test_a_trial_that_was_not_run_is_answered_with_those_that_were(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """`show --variant shrt` and `show` of a job that only trials asked name what was run."""
    write(tmp_path, "text")
    (tmp_path / "job.b.yaml").write_text((tmp_path / "job.yaml").read_text("utf-8"), "utf-8")
    assert command("job.b.yaml", "--quiet", "--output", "b.csv").code == 0
    assert "run the job first" in command("show", "job.yaml").err, "job.b.yaml is no trial of job.yaml"
    assert command("job.yaml", "--variant", "short", "--quiet").code == 0
    assert command("job.yaml", "--model", "sim/other", "--variant", "two", "--quiet").code == 0
    ended = command("show", "job.yaml")
    assert ended.err == (
        "error: this job was only run with --variant two --model sim/other, with --variant short: add these flags, "
        "or run it without flags first\n"
    )
    assert command("job.yaml", "--quiet").code == command("job.yaml", "--quiet", "--fresh").code == 0
    ended = command("show", "job.yaml", "--variant", "shrt")
    assert ended.err.endswith(
        "was not run with --variant shrt yet; it was run without flags, with --variant two --model sim/other, with "
        "--variant short\n"
    ), "a checkpoint that --fresh moved aside was called a trial"
    assert command("show", "job.yaml", "--variant", "two").code == 0


def test_a_job_that_init_put_into_the_folder_jobs_is_found(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """`batchrun rows.yaml` names jobs/rows.yaml, which `batchrun init rows.csv` wrote."""
    write(tmp_path, "text")
    (tmp_path / "jobs").mkdir()
    assert command("init", "rows.csv").code == 0
    assert command("rows.yaml").err == "error: no such job file: rows.yaml; did you mean jobs/rows.yaml?\n"


def test_a_review_without_a_decision_writes_nothing(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """`correct` with a file that nobody edited says so, and makes no file of corrections."""
    write(tmp_path, "text")
    assert command("job.yaml", "--quiet").code == 0
    assert command("show", "job.yaml", "--review", "-o", "todo.csv").code == 0
    ended = command("correct", "job.yaml", "todo.csv")
    assert (ended.code, "nothing to correct: no answer in todo.csv was edited" in ended.err) == (0, True)
    assert not (tmp_path / "job.corrections.jsonl").exists()


@pytest.mark.parametrize("arguments", [[""], ["run", ""], ["check", ""], ["job.yaml", ""], ["status", ""]])
def test_an_empty_name_is_not_the_working_directory(tmp_path: Path, command: Command, arguments: list[str]) -> None:  # noqa: F811
    """`batchrun "$JOB"` without that variable asks nothing; it does not run every job of the working directory."""
    write(tmp_path, "text")
    ended = command(*arguments)
    assert (ended.code, ended.err) == (2, "error: the name of the job file is empty\n")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_a_named_pipe_is_refused(tmp_path: Path, command: Command, name: str) -> None:  # noqa: F811
    """A named pipe as input does not hang a run: the message names --input - in its place."""
    os.mkfifo(tmp_path / name)
    (tmp_path / "job.yaml").write_text(JOB.format(column="text", where="").replace("rows.csv", name))
    ended = command("job.yaml")
    assert ended.code == 2
    assert f"{name} is not a regular file; for a pipe use --input -" in ended.err


def test_what_belongs_to_another_user_is_named(
    tmp_path: Path,
    command: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkpoint of cron's user, or an input of another one, is named in one line; jobs beside that one run."""
    write(tmp_path, "text")
    assert command("job.yaml", "--quiet").code == 0
    (tmp_path / "rows2.csv").write_text("text\nfine\n")
    (tmp_path / "other.yaml").write_text(
        JOB.format(column="text", where="").replace("rows.csv", "rows2.csv").replace("out.csv", "other.csv")
    )
    stat = os.stat
    forbidden = tmp_path / ".batchrun" / "job.sqlite"

    def refused(path: str, **options: bool) -> os.stat_result:
        if str(path) == str(forbidden):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refused)  # root, who may run these tests, reads everything
    advice = "Permission denied: run as the user who owns it, or change its permissions\n"
    for verb in ("status", "show", "preview", "prune"):
        ended = command(verb, "job.yaml")
        assert (ended.code, ended.err) == (2, f"error: {forbidden}: {advice}"), verb
    forbidden = tmp_path / "rows.csv"
    assert command("job.yaml").err == f"error: {forbidden}: {advice}"
    ended = command("job.yaml", "other.yaml")
    assert (ended.code, f"job.yaml: error: {forbidden}: {advice}" in ended.err) == (2, True), ended.err
    assert (tmp_path / "other.csv").exists()


def test_a_removed_working_directory_is_named(
    tmp_path: Path,
    command: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a shell whose folder was removed meanwhile, a command says so in one line."""
    write(tmp_path, "text")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    ended = command(str(tmp_path / "job.yaml"))
    assert (ended.code, ended.err) == (2, "error: the working directory was removed: change to another one\n")


def test_a_user_without_a_home_runs_jobs(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A user id that only a container knows has no home: a job runs, and is checked, all the same."""

    def unknown(_: int) -> None:
        raise KeyError

    write(tmp_path, "text")
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert command("check", "job.yaml").code == 0
    assert command("job.yaml").code == 0


def test_names_that_are_not_utf8_are_names(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A job runs, also as a trial of another input, where folder and files have names of another encoding."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/l\xf6g"))
    folder.mkdir()
    write(folder, "text")
    monkeypatch.chdir(folder)
    other = os.fsdecode(b"m\xf6.csv")
    Path(other).write_text("text\nfine\nnew\n")
    assert command("job.yaml").code == 0
    trial = ["job.yaml", "--variant", "x", "--input", other]
    assert "1 answer copied from job.sqlite" in command(*trial).err
    assert command("show", "job.yaml", "--variant", "x").out.count("\n") == 4
    assert command("report", "job.yaml").code == 0
