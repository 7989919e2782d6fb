"""Pages whose examples are run: templates, conditions, types, schedulers, tables, a file labelled on this machine."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forking
import polars as pl
import pytest

from batchrun.api import TABLE
from batchrun.api.endpoints import default_model
from batchrun.errors import InputError
from batchrun.job import Input, load
from batchrun.prompt.schema import _LONG_FORM, _TYPES
from batchrun.prompt.templates import Templates
from batchrun.table import open_rows
from batchrun.table.where import _FUNCTIONS, Where

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
JOB = """\
input: reviews.csv
prompt: "Positive or negative? {{ text }}"
model: {endpoint: simulator, name: sim/good}
answer: {columns: {sentiment: [positive, negative]}}
output: labels.csv
"""


def blocks(page: str, kind: str) -> list[str]:
    """Return the code blocks of one kind on a page."""
    return re.findall(rf"^```{kind}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def first_cells(page: str, heading: str) -> list[str]:
    """Return the code in the first column of the tables with this heading."""
    tables = (DOCS / page).read_text(encoding="utf-8").split(f"\n| {heading} |")[1:]
    lines = [line.split(" | ")[0] for table in tables for line in table.split("\n\n")[0].splitlines()[2:]]
    return [code.replace("\\|", "|") for line in lines for code in re.findall(r"`([^`]+)`", line)]


def shell(script: str, folder: Path) -> str:
    """Run a script as written, in a folder."""
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, script + done.stdout + done.stderr
    return done.stdout + done.stderr


def batchrun(script: str, folder: Path) -> str:
    """Run lines that begin with `batchrun` in a folder, without the time that a new process takes to import it."""
    said = ""
    for line in script.splitlines():
        name, *arguments = shlex.split(line, comments=True)
        assert name == "batchrun"
        done = forking.run(*arguments, cwd=folder, env=ENVIRONMENT)
        assert done.returncode == 0, line + done.stdout + done.stderr
        said += done.stdout + done.stderr
    return said


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with six reviews and a job on the simulator."""
    sample = (ROOT / "sample_data" / "reviews.csv").read_text(encoding="utf-8").splitlines(keepends=True)[:7]
    (tmp_path / "reviews.csv").write_text("".join(sample))
    (tmp_path / "labels.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_templates_make_what_the_page_says() -> None:
    """Each line of the page's examples renders to its right side."""
    row = {"text": "Fits well", "stars": 4, "tags": ["a", "b"], "note": None, "Customer name": "Ada"}
    lines = blocks("reference/templates.md", "text")[0].splitlines()
    assert len(lines) > 10
    for line in lines:
        source, result = re.split(r" +->  ", line)
        templates = Templates(tuple(row))
        template = templates.add(source)
        templates.fill([row[name] for name in templates.columns])
        assert template.text().rstrip() == result, source


def test_conditions_work_as_the_page_says(tmp_path: Path) -> None:
    """Each condition compiles and chooses among rows; the page names every function that a mistake may suggest."""
    rows = {
        "lang": ["de", "fr", None],
        "body": ["Hello, a refund please, it is long enough", "AB-12", None],
        "amount": ["10", "x", None],
        "day": ["2026-03-01", "2025-01-01", None],
        "created": [date(2026, 3, 1), date(2025, 1, 1), None],
        "Customer name": ["Ada", "Bob", None],
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    conditions = first_cells("reference/where.md", "condition")
    assert len(conditions) > 10
    for condition in conditions:
        if condition in {"<>", "ILIKE"}:
            continue
        with open_rows(Input("rows.parquet", condition), tmp_path) as opened:
            asked = next(opened.batches()).asked
        assert asked is not None
        assert any(asked), condition
        assert not all(asked), condition
    listed = (DOCS / "reference" / "where.md").read_text(encoding="utf-8").split("## Functions")[1]
    assert set(_FUNCTIONS) <= set(re.findall(r"`(\w+)`", listed))


ARGUMENTS = ("1", "'x'", "'2026-01-01'", "1, 2", "'x', 1", "'x', 'y'", "'x', 1, 2", "'x', 'y', 'z'", "'x', 'y', 1",
             "year from date '2026-01-01'", "'year', date '2026-01-01'", "date '2026-01-01', '%Y'",
             "'2026-01-01', '%Y-%m-%d'")  # fmt: skip


@pytest.mark.parametrize("function", _FUNCTIONS)
def test_each_listed_function_of_a_condition_exists(function: str) -> None:
    """What a misspelt function may have meant can be called with some arguments."""
    taken = []
    for arguments in ARGUMENTS:
        with suppress(InputError):
            Where(f"{function}({arguments}) is not null", {"body": pl.String()})
            taken.append(arguments)
    assert taken


def test_the_page_on_types_names_every_type_and_key() -> None:
    """The short forms and all keys of the long form are on it."""
    forms = first_cells("reference/types.md", "short form")
    assert set(_TYPES) <= set(forms)
    assert set(first_cells("reference/types.md", "key")) >= _LONG_FORM


def test_troubleshooting_quotes_what_batchrun_says() -> None:
    """Each quoted message is in the code, and each error type in the table of endings."""
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "batchrun").rglob("*.py"))
    code = re.sub(r'"\n\s*f?"', "", code)
    said = first_cells("how-to/troubleshooting.md", "it says")
    assert len(said) > 8
    assert [words for words in said if words not in code] == []
    assert set(first_cells("how-to/troubleshooting.md", "`error_type`")) <= set(TABLE)


def test_make_runs_a_job(folder: Path) -> None:
    """The rule makes the output, and accepts failed rows."""
    (folder / "Makefile").write_text(blocks("how-to/schedulers.md", "make")[0].replace("out/labels.csv", "labels.csv"))
    shell("make labels.csv", folder)
    assert pl.read_csv(folder / "labels.csv").height == 6
    shell("echo '7,x,,' >> reviews.csv; make labels.csv", folder)
    assert pl.read_csv(folder / "labels.csv")["status"].to_list()[-1] == "failed"


def test_the_parts_of_a_large_input_are_asked_as_written(folder: Path) -> None:
    """The loop over parts asks each of them with the page's job, from the folder that holds parts and jobs."""
    for name in ("parts", "jobs", "out"):
        (folder / name).mkdir()
    for name in ("a", "b"):
        pl.read_csv("reviews.csv").write_parquet(f"parts/{name}.parquet")
    loop = next(text for text in blocks("how-to/scale.md", "sh") if "parts" in text)
    job = next(text for text in blocks("how-to/scale.md", "yml") if "PART" in text)
    rest = "".join(line for line in JOB.splitlines(keepends=True) if not line.startswith(("input", "output")))
    (folder / "jobs" / "big.yaml").write_text(job.replace("/var/lib/batchrun", str(folder)) + rest)
    shell(loop, folder)
    assert [pl.read_parquet(f"out/{name}.parquet").height for name in ("a", "b")] == [6, 6]


def test_the_airflow_task_returns_a_command_that_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Airflow's two decorators stood in for, the task's command labels the file; it hides exit code 1 alone."""
    commands: list[str] = []

    def bash(**options: Any) -> Any:  # noqa: ANN401  (a decorator)
        assert options == {"skip_on_exit_code": [6, 75]}
        return lambda function: lambda: commands.append(function())

    stand_in = SimpleNamespace(dag=lambda **_: lambda function: function, task=SimpleNamespace(bash=bash))
    monkeypatch.setitem(sys.modules, "airflow.sdk", stand_in)
    exec(blocks("how-to/schedulers.md", "python")[0], {})  # noqa: S102  (our own page)
    command = commands[0].replace("/srv/venv/bin/", "").replace("/srv/jobs/reviews.yaml", "labels.yaml")
    shell(command, folder)
    assert pl.read_csv(folder / "labels.csv").height == 6
    for code, ends in ((0, 0), (1, 0), (2, 2), (6, 6), (75, 75)):
        (folder / "batchrun").write_text(f"#!/bin/sh\nexit {code}\n")
        (folder / "batchrun").chmod(0o755)
        poor = {"PATH": f"{folder}:/usr/bin:/bin"}
        assert subprocess.run(["bash", "-c", command], env=poor, check=False).returncode == ends


def test_the_dbt_model_returns_a_table(folder: Path) -> None:
    """With dbt's two objects stood in for, the model asks the rows of another one and returns them labelled."""
    scope: dict[str, Any] = {}
    exec(blocks("how-to/schedulers.md", "python")[1].replace("/srv/jobs/reviews.yaml", "labels.yaml"), scope)  # noqa: S102
    relation = SimpleNamespace(pl=lambda: pl.read_csv(folder / "reviews.csv"))
    table = scope["model"](SimpleNamespace(config=lambda **_: None, ref=lambda _: relation), None)
    assert table.num_rows == 6
    assert "sentiment" in table.column_names


def test_pandas_in_and_out(folder: Path) -> None:
    """The block of the page labels a frame of pandas; labels are a categorical of it."""
    scope: dict[str, Any] = {}
    exec(blocks("how-to/tables.md", "python")[0], scope)  # noqa: S102  (our own page)
    labelled = scope["labelled"]
    assert labelled["sentiment"].dtype == "category"
    assert (len(labelled), list(labelled.columns[:4])) == (6, ["id", "product", "text", "gold"])
    assert folder.joinpath("labels.frame.csv").exists()


def test_a_file_is_labelled_on_this_machine_as_written(folder: Path) -> None:
    """The page's commands and its job, as written: init, the job, a sample, a look, the rest."""
    if importlib.util.find_spec("xllamacpp") is None or default_model() is None:
        pytest.skip("the local model is not installed")
    (folder / "labels.yaml").unlink()
    first, then = blocks("how-to/label.md", "sh")
    shell(first, folder)
    (folder / "labels.yaml").write_text(blocks("how-to/label.md", "yaml")[0])
    shell(then, folder)
    labels = pl.read_csv(folder / "labels.csv")
    assert labels["status"].to_list() == ["ok"] * 6
    assert set(labels["sentiment"]) <= {"positive", "negative"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder with the repository's jobs and data; its reviews ask the simulator."""
    for name in ("jobs", "sample_data"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(".batchrun"))
    job = tmp_path / "jobs" / "reviews.yaml"
    job.write_text(job.read_text(encoding="utf-8").replace("endpoint: local", "endpoint: simulator"))
    return tmp_path


def test_the_first_commands_run_in_a_checkout(checkout: Path) -> None:
    """The commands of the first page run as written; equal rows share questions as README and the tutorial say."""
    install, *commands = blocks("index.md", "sh")[0].splitlines()
    assert install.startswith("pip install")
    batchrun("\n".join(commands), checkout)
    assert pl.read_csv(checkout / "out" / "first.csv").height == 200
    assert "reviews: 23 of 196 rows" in batchrun("batchrun jobs/reviews.yaml --limit 20", checkout)
    assert "reviews: 36 of 196 rows" in batchrun("batchrun jobs/reviews.yaml --limit 10", checkout)


def test_prompts_and_models_are_compared_as_written(checkout: Path) -> None:
    """The page's commands that judge, run, compare and report do it, after the edits that the page describes."""
    job, second = checkout / "jobs" / "reviews.yaml", checkout / "jobs" / "reviews2.yaml"
    text = job.read_text(encoding="utf-8")
    second.write_text(text.replace("Review:", "The review:").replace("out/reviews.csv", "out/reviews2.csv"))
    judge, _, _, _, report, files, trials, before = blocks("how-to/evaluate.md", "sh")[1:]
    assert "fixed" in batchrun(files, checkout)
    assert "none reaches 90.0 %" in batchrun(trials, checkout)
    assert "of 190 distinct questions" in batchrun("\n".join(judge.splitlines()[:2]), checkout)
    job.write_text(text.replace("Classify", "Name"))
    batchrun("batchrun jobs/reviews.yaml --yes", checkout)
    assert "fixed" in batchrun(before, checkout)
    batchrun(report, checkout)


def test_the_simulator_writes_the_file_that_its_page_names(checkout: Path) -> None:
    """The page's first command writes the answers to the file that the page names."""
    batchrun(blocks("how-to/simulator.md", "sh")[0], checkout)
    page = (DOCS / "how-to" / "simulator.md").read_text(encoding="utf-8")
    named = re.search(r"`(out/\S+\.partial\.csv)`", page)
    assert named is not None
    assert (checkout / named[1]).exists()


def test_the_container_sees_all_files_of_the_job() -> None:
    """The job of the page and of the Dockerfile needs no local model, and its input is below the mounted folder."""
    for file in (DOCS / "how-to" / "docker.md", ROOT / "Dockerfile"):
        found = re.search(r'-v "\$PWD(\S*):/jobs" batchrun (\S+)', file.read_text(encoding="utf-8"))
        assert found is not None
        mounted = ROOT / found[1].strip("/")
        job = load((mounted / found[2]).read_text(encoding="utf-8"), mounted / found[2], {}).job
        assert job.model.endpoint == "openrouter"
        assert all((job.folder / path).resolve().is_relative_to(mounted) for path in job.input.patterns)


def test_each_extra_is_also_installed_from_a_checkout() -> None:
    """A page that installs an extra of the package says how to install it in a checkout as well."""
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        missing = {extra for extra in re.findall(r"batchrun-llm\[(\w+)\]", text) if f"'.[{extra}]'" not in text}
        assert not missing, page
