"""`batchrun init`: a job for any input that runs on the simulator at once."""

import gzip
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pytest
from command_line import Command, command, simulator
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from simulator_server import Running

from batchrun.cli.drafting import draft, look
from batchrun.job import load
from batchrun.prompt.render import template_mistakes
from batchrun.table import open_rows

__all__ = ["command", "simulator"]

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FRAME = pl.DataFrame({"id": [1, 2, 3], "first name": ["Ada L", None, "Kurt G"], "url": ["http://x"] * 3})

FORMATS: dict[str, Callable[[Path], object]] = {
    "x.csv": FRAME.write_csv,
    "x.tsv": lambda path: FRAME.write_csv(path, separator="\t"),
    "x.jsonl": FRAME.write_ndjson,
    "x.ndjson": FRAME.write_ndjson,
    "x.parquet": FRAME.write_parquet,
    "x.arrow": FRAME.write_ipc,
    "x.csv.gz": lambda path: path.write_bytes(gzip.compress(FRAME.write_csv().encode())),
    "x.csv.zst": lambda path: FRAME.lazy().sink_csv(path, compression="zstd"),
    "semicolons.csv": lambda path: FRAME.write_csv(path, separator=";"),
    "latin.csv": lambda path: path.write_bytes("id;wörter hier\n1;schön so\n".encode("latin-1")),
    "utf16.csv": lambda path: path.write_text("id,text\n1,schön so\n", encoding="utf-16"),
    "no rows.csv": lambda path: path.write_text("id,text\n"),
    "taken.csv": lambda path: path.write_text("label,status,ai_reason,the text\n1,2,3,so it is\n"),
    "cost $HOME.csv": lambda path: path.write_text("$text\nso it is\n"),
}


def run(command: Command, monkeypatch: pytest.MonkeyPatch, server: Running, job: Path) -> None:
    """Hold that a job runs without a mistake, a simulator in this process standing in for its own."""
    monkeypatch.setattr("batchrun.prepare.children.simulator", lambda: nullcontext(server))
    ended = command("run", str(job), "--limit", "40", "--quiet")
    assert (ended.code, ended.err.removeprefix("the input has no rows, so the output has none\n")) == (0, "")


@pytest.mark.parametrize("name", FORMATS)
def test_a_draft_runs_for_every_format(
    command: Command, simulator: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Whatever the format, encoding, separator or names, the job that init writes runs as it is."""
    FORMATS[name](tmp_path / name)
    ended = command("init", name)
    assert (ended.code, ended.out) == (0, "")
    job = tmp_path / f"{name.split('.', maxsplit=1)[0]}.yaml"
    run(command, monkeypatch, simulator, job)


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not there")
@pytest.mark.parametrize("name", ["banking77_test.csv", "tate_artists.csv", "clinc_intents.parquet"])
def test_a_draft_runs_for_real_data(
    command: Command, simulator: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """The job for each file of real data runs, though cells are null and the folder is another."""
    assert command("init", str(DATA / name), "-o", "jobs/real.yaml").code == 0
    run(command, monkeypatch, simulator, tmp_path / "jobs" / "real.yaml")
    assert list((tmp_path / "out").iterdir())


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
@example(["for"])
@example(["row"])
@example(["not"])
@example(['a"b\\c', "x"])
@example(["a'b"])
@example(["{{ x }}", "{% raw %}"])
@example(["\u202e\u2028"])
@example(["label", "status", "ai_label"])
@example(["\U0001f600 x"])
def test_any_column_names_make_a_sound_job(tmp_path: Path, names: list[str]) -> None:
    """Whatever the columns are called, the draft is a job without mistakes whose template finds its column."""
    file, job = tmp_path / "x.parquet", tmp_path / "x.yaml"
    pl.DataFrame({name: ["some words here", None] for name in names}).write_parquet(file)
    loaded = load(draft(look(file), job), job, {})
    assert template_mistakes(loaded.job, names) == []
    with open_rows(loaded.job.input, tmp_path) as rows:
        assert next(rows.batches()).asked == [True, False]
    prefix = loaded.job.output.prefix
    assert not {prefix + new for new in ("label", "reason", "status", "error_type")} & set(names)


def test_the_longest_texts_are_asked_about_and_addresses_are_not(tmp_path: Path) -> None:
    """A column of sentences wins over longer addresses, numbers and short names."""
    frame = pl.DataFrame({"url": ["https://x.org/" + "a" * 90], "n": [1], "name": ["A B"], "said": ["it is so"]})
    frame.write_parquet(tmp_path / "x.parquet")
    assert look(tmp_path / "x.parquet").column == "said"


def test_rows_without_a_text_are_left_out(tmp_path: Path) -> None:
    """Where the column has nulls, the draft holds the condition; where it has none, only as a comment."""
    FRAME.write_parquet(tmp_path / "x.parquet")
    text = draft(look(tmp_path / "x.parquet"), tmp_path / "x.yaml")
    assert load(text, tmp_path / "x.yaml", {}).job.input.where == '"first name" is not null'
    FRAME.drop_nulls().write_parquet(tmp_path / "x.parquet")
    text = draft(look(tmp_path / "x.parquet"), tmp_path / "x.yaml")
    assert load(text, tmp_path / "x.yaml", {}).job.input.where is None


def test_the_schema_line_is_there_only_with_the_schema(tmp_path: Path) -> None:
    """Editors are pointed to docs/reference/job.schema.json only where it lies."""
    FRAME.write_parquet(tmp_path / "x.parquet")
    job = tmp_path / "jobs" / "x.yaml"
    assert "yaml-language-server" not in draft(look(tmp_path / "x.parquet"), job)
    (tmp_path / "docs" / "reference").mkdir(parents=True)
    (tmp_path / "docs" / "reference" / "job.schema.json").touch()
    first = draft(look(tmp_path / "x.parquet"), job).splitlines()[0]
    assert first == "# yaml-language-server: $schema=../docs/reference/job.schema.json"


def test_a_job_is_never_replaced_without_force(command: Command, tmp_path: Path) -> None:
    """A job file that is there stays as it is, unless --force is given."""
    FRAME.write_csv(tmp_path / "x.csv")
    (tmp_path / "x.yaml").write_text("mine")
    ended = command("init", "x.csv")
    assert ended.code == 2
    assert "x.yaml already exists" in ended.err
    assert (tmp_path / "x.yaml").read_text() == "mine"
    assert command("init", "x.csv", "--force").code == 0
    assert (tmp_path / "x.yaml").read_text() != "mine"


@pytest.mark.parametrize(("output", "named"), [("jobs", "jobs/x.yaml"), ("mine.txt", "mine.yaml")])
def test_a_name_that_no_job_has_is_answered_with_one(command: Command, tmp_path: Path, output: str, named: str) -> None:
    """`-o FOLDER` and `-o mine.txt` write nothing, with --force as well; the message has a name that can be used."""
    FRAME.write_csv(tmp_path / "x.csv")
    (tmp_path / "jobs").mkdir()
    for force in ([], ["--force"]):
        ended = command("init", "x.csv", "-o", output, *force)
        assert (ended.code, ended.err.endswith(f"a job file's name ends in .yaml, such as {named}\n")) == (2, True)
    assert command("init", "x.csv", "-o", named).code == 0


def test_a_folder_of_jobs_is_used(command: Command, tmp_path: Path) -> None:
    """Where there is a folder jobs, the job goes there, its output beside it into out, and both paths are named."""
    FRAME.write_csv(tmp_path / "x.csv")
    (tmp_path / "jobs").mkdir()
    ended = command("init", "x.csv")
    assert "batchrun preview jobs/x.yaml" in ended.err
    job = load((tmp_path / "jobs" / "x.yaml").read_text(), tmp_path / "jobs" / "x.yaml", {}).job
    assert (job.input.path, job.output.path) == ("../x.csv", "../out/x.csv")


def test_the_commands_to_type_next_are_quoted(command: Command, tmp_path: Path) -> None:
    """For `my file.csv` the printed commands can be pasted into a shell."""
    FRAME.write_csv(tmp_path / "my file.csv")
    assert "\n  batchrun preview 'my file.yaml'\n  batchrun 'my file.yaml'\n" in command("init", "my file.csv").err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.xlsx", "", "x.xlsx is empty: it is not a .xlsx file"),
        ("gone.csv", None, "there is no file"),
        ("x.cvs", None, 'x.cvs, did you mean "x.csv"?'),
        ("folder", None, "folder is a folder: name a file in it"),
        ("empty.csv", "", "empty"),
        ("ragged.csv", "id,text\n1,a\n2,b,c\n", "ragged.csv:3: 3 cells where the header has 2"),
    ],
)
def test_what_is_not_an_input_is_reported_in_one_line(
    command: Command, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    """A file that can't be read as rows ends with one line and exit 2, and no job is written."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.csv").touch()
    if content is not None:
        (tmp_path / name).write_text(content)
    ended = command("init", name)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert message in ended.err
    assert not list(tmp_path.glob("*.yaml"))
