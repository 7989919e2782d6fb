"""Several jobs in one command: their order, their flags, their cap, and how the command ends."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_line import Command, command
from plain_server import Asked, completion, plain_server, recording_server

__all__ = ["command"]


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    """Serve a model, and write two jobs: b.yaml reads what a.yaml writes."""
    with recording_server() as asked:
        (tmp_path / "rows.csv").write_text("text\n" + "".join(f"t{row}\n" for row in range(10)))
        write(tmp_path / "a.yaml", asked.url, input="rows.csv", output="out/a.csv", prompt="A {{ text }}")
        write(tmp_path / "b.yaml", asked.url, input="out/a.csv", output="out/b.csv", prompt="B {{ text }} {{ answer }}")
        yield asked


def write(path: Path, url: str, **sections: Any) -> None:  # noqa: ANN401  (JSON)
    """Write a job for a server whose tokens cost 1 USD a million."""
    model = {"endpoint": url, "name": "big", "price": {"prompt": 1, "completion": 1}}
    details = {"keep": ["text"], "details": [], "prefix": "b" if path.stem == "b" else ""}
    output = {"path": sections.pop("output")} | details
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"model": model, "output": output} | sections))


def kinds(prompts: list[str]) -> str:
    """Return the first letters of prompts, in their order."""
    return "".join(prompt[0] for prompt in prompts)


def test_a_job_comes_after_the_one_whose_output_it_reads(tmp_path: Path, command: Command, asked: Asked) -> None:
    """The order of the arguments does not matter; the second night asks nothing, and a new row is asked by both."""
    ended = command("b.yaml", "a.yaml")
    assert ended.code == 0, ended.err
    prompts = asked.prompts()
    assert kinds(prompts) == "A" * 10 + "B" * 10
    assert "B t3 yes" in prompts
    assert pl.read_csv(tmp_path / "out/b.csv").columns == ["text", "banswer"]
    assert command("b.yaml", "a.yaml").code == 0
    assert asked.prompts() == []
    with (tmp_path / "rows.csv").open("a") as rows:
        rows.write("new\n")
    assert command("a.yaml", "b.yaml").code == 0
    assert asked.prompts() == ["A new", "B new yes"]


def test_a_glob_through_folders_reads_an_output(tmp_path: Path, command: Command, asked: Asked) -> None:
    """`**` stands for no folder as well: the job that reads out/**/*.csv comes after the one that writes out/a.csv."""
    write(tmp_path / "b.yaml", asked.url, input="out/**/a*.csv", output="b.csv", prompt="B {{ text }}")
    ended = command("b.yaml", "a.yaml")
    assert ended.code == 0, ended.err
    assert kinds(asked.prompts()) == "A" * 10 + "B" * 10


def test_a_folder_holds_jobs(tmp_path: Path, command: Command, asked: Asked) -> None:
    """A folder means its YAML files with an input and a prompt; other files and deeper folders are passed over."""
    jobs = tmp_path / "jobs"
    write(jobs / "z.yml", asked.url, input="../rows.csv", output="../out/a.csv", prompt="A {{ text }}")
    write(jobs / "b.yaml", asked.url, input="../out/a.csv", output="../out/b.csv", prompt="B {{ text }}")
    write(jobs / "old" / "c.yaml", asked.url, input="../rows.csv", output="c.csv", prompt="C {{ text }}")
    (jobs / "compose.yaml").write_text("services: {web: {image: x}}\n")
    (jobs / "pipeline.yaml").write_text("input: {stdin: {}}\noutput: {stdout: {}}\n")
    (jobs / "variables.yaml").write_text("model: gpt\noutput: out\n")
    (jobs / "workflow.yml").write_text("name: x\non: push\njobs: {test: {steps: [], outputs: {}}}\n")
    (jobs / ".draft.yaml").write_text("input: x\nprompt: y\n")
    (jobs / "rows.txt").write_text("input: x\nprompt: y\n")
    ended = command("jobs", "--json")
    assert ended.code == 0, ended.err
    assert kinds(asked.prompts()) == "A" * 10 + "B" * 10
    assert [json.loads(line)["job"] for line in ended.out.splitlines()] == ["z", "b"]
    assert command("check", "jobs").code == 0
    (tmp_path / "empty").mkdir()
    ended = command("empty/")
    assert (ended.code, ended.err) == (2, "error: empty holds no job file (*.yaml or *.yml with input and prompt)\n")


def test_a_broken_job_of_a_folder_stops_all_before_the_first_question(
    tmp_path: Path, command: Command, asked: Asked
) -> None:
    """Mistakes of all job files are reported in one go, and nothing is asked."""
    (tmp_path / "c.yaml").write_text("input: rows.csv\nprompt: x\n\tmodel: y\n")
    (tmp_path / "d.yaml").write_text("input: rows.csv\nprompt: x\n")
    ended = command(".")
    assert ended.code == 2
    assert "c.yaml:3:1: " in ended.err
    assert "d.yaml:1:1: model is missing" in ended.err
    assert asked.prompts() == []


@pytest.mark.parametrize(("key", "wrong"), [("prompt", "promt"), ("input", "inptu")])
def test_a_job_with_a_misspelt_section_is_not_passed_over(
    tmp_path: Path, command: Command, asked: Asked, key: str, wrong: str
) -> None:
    """A file of the folder with all but one of a job's sections is a job with a mistake, and nothing is asked."""
    text = (tmp_path / "a.yaml").read_text()
    (tmp_path / "c.yaml").write_text(text.replace(f'"{key}":', f'"{wrong}":'))
    ended = command(".")
    assert ended.code == 2
    assert re.search(rf'c\.yaml:1:\d+: unknown key "?{wrong}"?, did you mean "?{key}"?', ended.err), ended.err
    assert asked.prompts() == []


def test_what_reads_a_failed_job_is_not_started(tmp_path: Path, command: Command, asked: Asked) -> None:
    """A job that ended with 2 keeps those after it from starting; a job beside them runs; the worst code wins."""
    write(tmp_path / "a.yaml", asked.url, input="missing.csv", output="out/a.csv", prompt="A {{ text }}")
    write(tmp_path / "c.yaml", asked.url, input="out/b.csv", output="out/c.csv", prompt="C {{ text }}")
    write(tmp_path / "d.yaml", asked.url, input="rows.csv", output="out/d.csv", prompt="D {{ text }}")
    ended = command("c.yaml", "b.yaml", "a.yaml", "d.yaml", "--quiet")
    assert ended.code == 2
    assert "missing.csv" in ended.err
    assert "b.yaml: not started: it reads out/a.csv, and a.yaml ended with exit code 2" in ended.err
    assert "c.yaml: not started: it reads out/b.csv, and b.yaml was not started" in ended.err
    assert kinds(asked.prompts()) == "D" * 10


def test_failed_rows_keep_no_job_from_starting(tmp_path: Path, command: Command) -> None:
    """A job that ended with 1 has written its output, and the next one reads it."""

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        text = body["messages"][-1]["content"]
        return completion("" if text == "A t3" else "yes")

    with plain_server(answer) as url:
        (tmp_path / "rows.csv").write_text("text\n" + "".join(f"t{row}\n" for row in range(6)))
        write(tmp_path / "a.yaml", url, input="rows.csv", output="a.csv", prompt="A {{ text }}", limits={"attempts": 1})
        write(tmp_path / "b.yaml", url, input="a.csv", output="b.csv", prompt="B {{ text }}")
        ended = command("a.yaml", "b.yaml")
        assert ended.code == 1, ended.err
        assert pl.read_csv(tmp_path / "b.csv")["banswer"].to_list() == ["yes"] * 6


def test_one_cap_holds_for_all(command: Command, asked: Asked) -> None:
    """--max-cost is for the command: the second job has what the first one left, and the same command resumes."""
    # A request reserves more than it costs: the cap leaves room for all of a and some of b.
    flags = ["--set", "model.params.max_tokens=50", "--set", "limits.concurrency=1", "--max-cost", "0.00032"]
    ended = command("a.yaml", "b.yaml", *flags)
    assert ended.code == 4
    assert kinds(prompts := asked.prompts()).startswith("A" * 10 + "B")
    assert 10 < len(prompts) < 20
    assert len(prompts) * 11e-6 < 0.00032
    assert f"next    batchrun a.yaml b.yaml {' '.join(flags)}   continues" in ended.err
    assert command("a.yaml", "b.yaml", *flags).code == 0
    assert kinds(asked.prompts()) == "B" * (20 - len(prompts))


def test_a_limit_is_for_each_job(tmp_path: Path, command: Command, asked: Asked) -> None:
    """--limit asks that many questions of each job; one whose input is not written yet is not started, and says why."""
    write(tmp_path / "c.yaml", asked.url, input="rows.csv", output="out/c.csv", prompt="C {{ text }}")
    ended = command("a.yaml", "b.yaml", "c.yaml", "--limit", "4")
    assert ended.code == 0, ended.err
    assert kinds(asked.prompts()) == "AAAACCCC"
    assert "b.yaml: not started: it reads out/a.csv, which a.yaml writes once all its rows are asked" in ended.err
    assert "next    batchrun a.yaml b.yaml c.yaml   continues" in ended.err
    assert command("a.yaml").code == 0
    asked.prompts()
    assert command("a.yaml", "b.yaml", "--limit", "4").code == 0
    assert kinds(asked.prompts()) == "BBBB"


def test_a_renamed_output_is_read_under_its_new_name(tmp_path: Path, command: Command, asked: Asked) -> None:
    """--model and --variant rename the outputs along the chain; the jobs' own outputs stay."""
    assert command("a.yaml", "b.yaml").code == 0
    before = (tmp_path / "out/b.csv").read_bytes()
    asked.prompts()
    ended = command("a.yaml", "b.yaml", "--model", "small")
    assert ended.code == 0, ended.err
    assert [body["model"] for body in asked.bodies] == ["small"] * 20
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert [re.sub("-[0-9a-f]{6}", "-X", name) for name in names] == [
        "a.csv",
        "a.small-X.csv",
        "b.csv",
        "b.small-X.csv",
    ]
    assert (tmp_path / "out/b.csv").read_bytes() == before
    asked.prompts()
    assert command("a.yaml", "b.yaml", "--model", "small").code == 0
    assert asked.prompts() == []
    settings = ["--variant", "t", "--set", "output.keep=[text]"]
    assert command("b.yaml", "a.yaml", *settings, "--limit", "3").code == 0
    assert command("b.yaml", "a.yaml", *settings).code == 0
    assert (tmp_path / "out/b.t.csv").exists()
    # The command that a summary offers for one of the jobs reads the same renamed input.
    assert command("b.yaml", *settings, "--input", "out/a.t.csv").code == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted([*names, "a.t.csv", "b.t.csv"])


def test_only_the_renamed_job_changes_what_is_read(tmp_path: Path, command: Command, asked: Asked) -> None:
    """A job that has the model already still gets an output of its own where its input is a renamed one."""
    assert command("a.yaml", "b.yaml").code == 0
    job = json.loads((tmp_path / "b.yaml").read_text())
    job["model"]["name"] = "small"
    (tmp_path / "b.yaml").write_text(json.dumps(job))
    asked.prompts()
    before = (tmp_path / "out/b.csv").read_bytes()
    assert command("a.yaml", "b.yaml", "--model", "small").code == 0
    assert (tmp_path / "out/b.csv").read_bytes() == before
    assert len(list((tmp_path / "out").glob("b.a.small-*.csv"))) == 1


def test_several_inputs_of_other_jobs(tmp_path: Path, command: Command, asked: Asked) -> None:
    """A list of files is renamed file by file; a glob makes an order, and can't be renamed."""
    write(tmp_path / "c.yaml", asked.url, input="rows.csv", output="out/c.csv", prompt="C {{ text }}")
    write(
        tmp_path / "d.yaml",
        asked.url,
        input={"path": ["out/a.csv", "out/c.csv"]},
        output="d.csv",
        prompt="D {{ text }}",
    )
    assert command("d.yaml", "a.yaml", "c.yaml", "--model", "small").code == 0
    prompts = kinds(asked.prompts())
    assert prompts[:20] in {"A" * 10 + "C" * 10, "C" * 10 + "A" * 10}
    assert prompts[20:] == "D" * 10
    (output,) = tmp_path.glob("d.small-*.csv")
    assert pl.read_csv(output).height == 20
    write(tmp_path / "d.yaml", asked.url, input="out/[ac].csv", output="d.csv", prompt="E {{ text }}")
    assert command("d.yaml", "a.yaml", "c.yaml").code == 0
    assert kinds(asked.prompts()) == "A" * 10 + "C" * 10 + "E" * 10
    ended = command("d.yaml", "a.yaml", "c.yaml", "--variant", "x")
    assert ended.code == 2
    assert "d.yaml reads through a glob" in ended.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a.yaml", "b.yaml", "--output", "x.csv"], "--output is for one job, and 2 were named"),
        (["a.yaml", "b.yaml", "--input", "rows.csv"], "--input is for one job, and 2 were named"),
        (["a.yaml", "-"], "no such job file: -"),
        (["a.yaml", "e.yaml"], "a.yaml and e.yaml have the same output"),
        (["c.yaml", "d.yaml"], "in a circle, so none can be the first: c.yaml reads d.yaml reads c.yaml"),
        (["status", "a.yaml", "b.yaml"], "unexpected extra argument"),
    ],
)
def test_mistakes(tmp_path: Path, command: Command, asked: Asked, arguments: list[str], says: str) -> None:
    """What several jobs can't be asked together ends the command with exit 2 before anything is asked."""
    write(tmp_path / "c.yaml", asked.url, input="out/d.csv", output="out/c.csv", prompt="C {{ text }}")
    write(tmp_path / "d.yaml", asked.url, input="out/c.csv", output="out/d.csv", prompt="D {{ text }}")
    write(tmp_path / "e.yaml", asked.url, input="rows.csv", output="out/a.csv", prompt="E {{ text }}")
    ended = command(*arguments)
    assert ended.code == 2
    assert says in ended.err
    assert asked.prompts() == []


def test_a_mistake_in_a_reader_ends_the_command_before_its_input_is_paid(
    tmp_path: Path, command: Command, asked: Asked
) -> None:
    """What would be wrong once the input is there (a column twice in the output, an unknown one) is found before."""
    reader = json.loads((tmp_path / "b.yaml").read_text())
    (tmp_path / "b.yaml").write_text(json.dumps(reader | {"output": "out/b.csv"}))
    ended = command("a.yaml", "b.yaml")
    assert (ended.code, 'would have two columns "answer": set output.' in ended.err, asked.prompts()) == (2, True, [])
    first = json.loads((tmp_path / "a.yaml").read_text())
    (tmp_path / "a.yaml").write_text(json.dumps(first | {"output": "out/a.csv"}))
    names = '"answer", "status", "error_code", "error_type", "error_message"'
    ended = command("a.yaml", "b.yaml")
    assert (ended.err.count("two columns"), f"two columns {names}: " in ended.err, asked.prompts()) == (1, True, [])
    (tmp_path / "a.yaml").write_text(json.dumps(first))
    (tmp_path / "b.yaml").write_text(json.dumps(reader | {"prompt": "B {{ x }}", "input": "out/[a].csv"}))
    ended = command("b.yaml", "a.yaml")
    assert (ended.code, 'no column "x"' in ended.err, asked.prompts()) == (2, True, [])
    # A job that is wrong itself keeps no other one from running.
    write(tmp_path / "a.yaml", asked.url, input="gone.csv", output="out/a.csv", prompt="A {{ text }}")
    write(tmp_path / "e.yaml", asked.url, input="rows.csv", output="out/e.csv", prompt="E {{ text }}")
    assert command("a.yaml", "b.yaml", "e.yaml").code == 2
    assert {prompt[0] for prompt in asked.prompts()} == {"E"}


@pytest.mark.parametrize("pattern", ["out/a.csv", "out/[a].csv"])
def test_a_mistake_in_a_reader_is_found_on_a_later_night_too(
    tmp_path: Path, command: Command, asked: Asked, pattern: str
) -> None:
    """With the outputs of an earlier run there, a reader's mistake is found before new rows are paid; no other one is.

    The reader is judged by the columns that its input will have: a renamed answer column is used in the same night.
    """
    reader = json.loads((tmp_path / "b.yaml").read_text()) | {"input": pattern}
    (tmp_path / "b.yaml").write_text(json.dumps(reader))
    assert command("a.yaml", "b.yaml").code == 0
    assert kinds(asked.prompts()) == "A" * 10 + "B" * 10
    with (tmp_path / "rows.csv").open("a") as rows:
        rows.write("new\n")
    (tmp_path / "b.yaml").write_text(json.dumps(reader | {"prompt": "B {{ x }}"}))
    ended = command("a.yaml", "b.yaml")
    assert (ended.code, 'no column "x"' in ended.err, asked.prompts()) == (2, True, [])
    writer = json.loads((tmp_path / "a.yaml").read_text())
    writer["output"]["prefix"] = "my_"
    (tmp_path / "a.yaml").write_text(json.dumps(writer))
    (tmp_path / "b.yaml").write_text(json.dumps(reader | {"prompt": "B {{ my_answer }}"}))
    ended = command("a.yaml", "b.yaml")
    assert ended.code == 0, ended.err
    assert sorted(asked.prompts()) == ["A new", "B yes"]


def test_check_takes_inputs_that_will_be_written(tmp_path: Path, command: Command, asked: Asked) -> None:
    """An input that another of the jobs writes is no mistake, and its columns are known; a lone job still misses it."""
    assert command("check", "b.yaml").code == 2
    ended = command("check", "b.yaml", "a.yaml")
    assert ended.code == 0, ended.out + ended.err
    assert re.search(r"ok +input: .*out/a\.csv \(not there yet: a\.yaml writes it\), columns text, answer", ended.out)
    job = json.loads((tmp_path / "b.yaml").read_text()) | {"prompt": "B {{ txt }}"}
    (tmp_path / "b.yaml").write_text(json.dumps(job))
    ended = command("check", "b.yaml", "a.yaml")
    assert ended.code == 2
    assert "txt" in ended.err
    assert asked.prompts() == []
    assert not (tmp_path / "out").exists()


def test_an_interrupt_ends_the_whole_command(tmp_path: Path) -> None:
    """After Ctrl-C no other job is started, also none that needs nothing of the interrupted one."""
    begun, released = threading.Event(), threading.Event()
    prompts: list[str] = []

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompts.append(body["messages"][-1]["content"])
        begun.set()
        released.wait(20)
        return completion("yes")

    with plain_server(answer) as url:
        (tmp_path / "rows.csv").write_text("text\n" + "".join(f"t{row}\n" for row in range(5)))
        for name in ("A", "B"):
            write(tmp_path / f"{name}.yaml", url, input="rows.csv", output=f"{name}.csv", prompt=name + " {{ text }}")
        process = subprocess.Popen(
            [sys.executable, "-m", "batchrun", "A.yaml", "B.yaml"],
            cwd=tmp_path,
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert begun.wait(30)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = ""
        while "stopping" not in said:
            said += process.stderr.readline()
        released.set()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert set(kinds(prompts)) == {"A"}
    assert f"batchrun {tmp_path}/A.yaml {tmp_path}/B.yaml" in said, "a pipe does not say the working directory"


def test_a_copied_job_does_not_overwrite_the_output_of_the_other(
    tmp_path: Path, command: Command, asked: Asked
) -> None:
    """`cp a.yaml b.yaml` with another prompt: the second job is refused before it asks, the first one never is."""
    assert command("a.yaml").code == 0
    written = (tmp_path / "out/a.csv").read_bytes()
    write(tmp_path / "b.yaml", asked.url, input="rows.csv", output="out/a.csv", prompt="B {{ text }}")
    asked.prompts()
    for flags in ([], ["--fresh", "--yes"], ["--limit", "1"]):
        ended = command("b.yaml", *flags)
        assert (ended.code, asked.prompts()) == (2, [])
        assert "out/a.csv is the output of a.yaml, and b.yaml would overwrite it: give b.yaml" in ended.err
    assert (tmp_path / "out/a.csv").read_bytes() == written
    assert "mistake  output: " in command("check", "b.yaml").out
    assert command("b.yaml", "--output", "out/b.csv").code == 0
    for flags in ([], ["--output", "out/c.csv"], ["--variant", "v"], ["--fresh", "--yes"], []):
        assert command("a.yaml", *flags).code == 0, flags


def test_a_renamed_job_keeps_its_output(tmp_path: Path, command: Command, asked: Asked) -> None:
    """`mv a.yaml z.yaml`, and a second file beside a checkpoint of both: neither takes the output from another job."""
    assert command("a.yaml").code == 0
    (tmp_path / "a.yaml").rename(tmp_path / "z.yaml")
    assert command("z.yaml").code == 0
    job = json.loads((tmp_path / "z.yaml").read_text()) | {"checkpoint": ".batchrun/z.sqlite"}
    (tmp_path / "same.yaml").write_text(json.dumps(job))
    assert command("same.yaml").code == 0
    assert sorted(asked.prompts()) == [f"A t{row}" for row in range(10)]


def test_an_input_without_rows_is_reported_even_to_a_quiet_night(
    tmp_path: Path, command: Command, asked: Asked
) -> None:
    """An export that failed left its header alone: the output is as empty, a line says so, and no answer is lost."""
    rows = (tmp_path / "rows.csv").read_text()
    assert command("a.yaml", "--quiet").err == ""
    (tmp_path / "rows.csv").write_text("text\n")
    for _ in range(2):
        ended = command("a.yaml", "--quiet")
        assert (ended.code, ended.err) == (0, "the input has no rows, so the output has none\n")
    (tmp_path / "rows.csv").write_text(rows)
    assert command("a.yaml", "--quiet").err == ""
    assert len(asked.prompts()) == 10
    assert pl.read_csv(tmp_path / "out/a.csv").height == 10
