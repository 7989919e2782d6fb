"""Rows through standard input and answers through standard output, by real pipes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import forking
import pytest
from plain_server import Asked, recording_server

CSV = 'text,id\n"a, b",1\nc,2\n'
TSV = "text\tid\na, b\t1\nc\t2\n"
ANSWERED = """\
{"text":"a","id":"12345678901234567890","answer":"yes","status":"ok"}
{"text":"c","id":"2.50","answer":"yes","status":"ok"}
"""
JSONL = '{"text": "a", "id": 12345678901234567890}\n{"text": "c", "id": 2.50}\n'

Piped = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    """Serve a model, and write job.yaml with a checkpoint for it."""
    with recording_server() as asked:
        write(tmp_path, asked)
        yield asked


def write(folder: Path, asked: Asked, **sections: object) -> None:
    """Write job.yaml."""
    job = {
        "input": "rows.csv",
        "prompt": "Label: {{ text }}",
        "model": {"endpoint": asked.url, "name": "big", "price": {"prompt": 1, "completion": 1}},
        "output": {"path": "out.parquet", "details": ["status"]},
        "checkpoint": "kept.sqlite",
    }
    (folder / "job.yaml").write_text(json.dumps(job | sections))


@pytest.fixture
def piped(tmp_path: Path) -> Piped:
    """Return what runs `batchrun ARGUMENTS` with a text on its standard input."""

    def run(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
        return forking.run(*arguments, input=text, cwd=tmp_path, env=environment)

    return run


@pytest.mark.parametrize(
    ("text", "flags", "output"),
    [
        (CSV, [], 'text,id,answer,status\n"a, b",1,yes,ok\nc,2,yes,ok\n'),
        (TSV, ["--format", "tsv"], "text\tid\tanswer\tstatus\na, b\t1\tyes\tok\nc\t2\tyes\tok\n"),
        (JSONL, [], ANSWERED),
    ],
)
def test_rows_in_and_answers_out(
    tmp_path: Path, piped: Piped, asked: Asked, text: str, flags: list[str], output: str
) -> None:
    """Stdout holds the output in the format of the input, and nothing else; the second time nothing is asked."""
    ended = piped(text, "job.yaml", "--input", "-", "--output", "-", *flags)
    assert (ended.returncode, ended.stdout) == (0, output), ended.stderr
    assert len(asked.prompts()) == 2
    ended = piped(text, "job.yaml", "--input", "-", "--output", "-", *flags)
    assert (ended.returncode, ended.stdout) == (0, output), ended.stderr
    assert asked.prompts() == []
    left = {path.name for path in tmp_path.iterdir()} - {"cache", "kept.sqlite.lock"}
    assert left == {"job.yaml", "kept.sqlite"}, "nothing is spooled for longer than the command"


def test_one_end_alone(tmp_path: Path, piped: Piped, asked: Asked) -> None:
    """Rows from a pipe go to the job's output; rows of the job's file go to a pipe, in the format that is asked for."""
    ended = piped(CSV, "job.yaml", "--input", "-")
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "written out.parquet" in ended.stderr
    (tmp_path / "rows.csv").write_text("text,id\nc,2\n")
    ended = piped("", "job.yaml", "--output", "-", "--format", "jsonl")
    assert (ended.returncode, ended.stdout) == (0, '{"text":"c","id":"2","answer":"yes","status":"ok"}\n')
    assert asked.prompts() == ["Label: a, b", "Label: c"]
    assert "written" not in ended.stderr


@pytest.mark.usefixtures("asked")
def test_a_limit_writes_what_is_known(piped: Piped) -> None:
    """With --limit the rows that were not asked come out as pending."""
    ended = piped("text\na\nb\n", "job.yaml", "--input", "-", "--output", "-", "--limit", "1")
    assert (ended.returncode, ended.stdout) == (0, "text,answer,status\na,yes,ok\nb,,pending\n"), ended.stderr
    assert "kept.sqlite" not in ended.stdout


@pytest.mark.usefixtures("asked")
def test_no_output_after_a_stop(piped: Piped) -> None:
    """A run that a cap stops writes nothing to stdout: what reads it can't take half for the whole."""
    flags = ["--max-cost", "0.000125", "--set", "model.params.max_tokens=5"]
    ended = piped(CSV, "job.yaml", "--input", "-", "--output", "-", *flags)
    assert (ended.returncode, ended.stdout) == (4, ""), ended.stderr
    assert "batchrun job.yaml --set model.params.max_tokens=5 --input - --max-cost 0.000125 --output -" in ended.stderr


@pytest.mark.usefixtures("asked")
def test_a_reader_who_has_enough(tmp_path: Path) -> None:
    """`| head` closes the pipe early: no traceback and no other exit code."""
    (tmp_path / "rows.csv").write_text("text,id\n" + f"same,{'x' * 100}\n" * 20_000)
    read, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "batchrun", "job.yaml", "--output", "-"],
        cwd=tmp_path,
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write_end)
    assert os.read(read, 4)
    os.close(read)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "error" not in said
    assert "20,000 of 20,000 rows answered" in said


@pytest.mark.usefixtures("asked")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("words", ["job.yaml --output -", "job.yaml --json --quiet", "check job.yaml", "schema"])
def test_a_full_disk_behind_stdout(tmp_path: Path, words: str) -> None:
    """Where a result can't be written, the command says so and ends with 5."""
    (tmp_path / "rows.csv").write_text(CSV)
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "batchrun", *words.split()],
            cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert ended.returncode == 5
    assert "error: standard output can't be written: No space left on device" in ended.stderr
    assert "Exception ignored" not in ended.stderr


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("", ["job.yaml", "--input", "-"], "standard input: the file is empty"),
        ("text\nab\nx,y\n", ["job.yaml", "--input", "-"], "standard input:3: 2 cells where the header has 1"),
        ('{"text": 1}\n{', ["job.yaml", "--input", "-"], "standard input:2: not JSON"),
        ('[{"text": 1}]', ["job.yaml", "--input", "-"], "standard input is a JSON array: write JSON Lines"),
        (CSV, ["job.yaml", "--input", "-", "--output", "-", "--json"], "--json and --output - both write"),
        (CSV, ["job.yaml", "job.yaml", "--input", "-"], ""),
        (CSV, ["job.yaml", "other.yaml", "--input", "-"], "--input is for one job"),
        (CSV, ["status", "job.yaml", "--input", "-"], "this command takes a file"),
        (CSV, ["other.yaml", "--input", "-"], "--input - needs `checkpoint:` in the job file"),
    ],
)
def test_mistakes(tmp_path: Path, piped: Piped, asked: Asked, text: str, arguments: list[str], says: str) -> None:
    """What is wrong with a pipe ends the command with exit 2 and one line, which names standard input."""
    write(tmp_path, asked, checkpoint="other.sqlite")
    job = json.loads((tmp_path / "job.yaml").read_text())
    del job["checkpoint"]
    (tmp_path / "other.yaml").write_text(json.dumps(job | {"output": "other.csv"}))
    ended = piped(text, *arguments)
    assert ended.returncode == (2 if says else 0), ended.stderr
    assert says in ended.stderr
    assert ended.stdout == ""


def test_check_and_preview_read_a_pipe(piped: Piped, asked: Asked) -> None:
    """Both look at the rows that a run would ask."""
    ended = piped(CSV, "check", "job.yaml", "--input", "-")
    assert ended.returncode == 0, ended.stdout
    assert "input: standard input, columns text, id" in ended.stdout
    assert "Label: a, b" in piped(CSV, "preview", "job.yaml", "--input", "-").stdout
    assert asked.prompts() == []
