"""Pages whose examples are run: templates, conditions, types, schedulers, tables, a file labelled on this machine."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from batchrun.api import TABLE
from batchrun.api.endpoints import default_model
from batchrun.errors import InputError
from batchrun.job import Input
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


def test_the_airflow_task_returns_a_command_that_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Airflow's two decorators stood in for, the task's command labels the file."""
    commands: list[str] = []

    def bash(**options: Any) -> Any:  # noqa: ANN401  (a decorator)
        assert options == {"skip_on_exit_code": [6, 75]}
        return lambda function: lambda: commands.append(function())

    stand_in = SimpleNamespace(dag=lambda **_: lambda function: function, task=SimpleNamespace(bash=bash))
    monkeypatch.setitem(sys.modules, "airflow.sdk", stand_in)
    exec(blocks("how-to/schedulers.md", "python")[0], {})  # noqa: S102  (our own page)
    shell(commands[0].replace("/srv/venv/bin/", "").replace("/srv/jobs/reviews.yaml", "labels.yaml"), folder)
    assert pl.read_csv(folder / "labels.csv").height == 6


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


def test_two_prompts_are_compared_as_written(folder: Path) -> None:
    """A trial of another prompt beside the job, and the lines of the page that compare them, with gold."""
    (folder / "jobs").mkdir()
    shutil.copy(folder / "reviews.csv", folder / "jobs")
    (folder / "jobs" / "reviews.yaml").write_text(JOB)
    page = (DOCS / "how-to" / "variants.md").read_text(encoding="utf-8")
    trial = next(line for line in page.splitlines() if "--variant short --set" in line)
    lines = (DOCS / "how-to" / "evaluate.md").read_text(encoding="utf-8").splitlines()
    compare = next(line for line in lines if "compare jobs/reviews.yaml --variant short" in line)
    evaluated = next(line for line in lines if "eval jobs/reviews.yaml --gold sentiment=gold" in line)
    shell("batchrun jobs/reviews.yaml", folder)
    shell(trial, folder)
    shown = shell(compare, folder)
    assert "short" in shown
    assert re.search(r"fixed|broken|agree", shown), shown
    assert "of 6 distinct questions" in shell(evaluated, folder)
