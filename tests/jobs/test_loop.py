"""The whole loop of an analyst on real data: two local models, eval, compare, review, correct, eval again, report."""

import csv
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, command

from batchrun.api.endpoints import default_model

__all__ = ["command"]

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ROWS = 4

pytestmark = [
    pytest.mark.skipif(not (DATA / "banking77_test.csv").exists(), reason="the data is not on this machine"),
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None
        or importlib.util.find_spec("sparrow_decider") is None
        or default_model() is None,
        reason="the local models are not installed",
    ),
]


def labels() -> list[str]:
    """Return the 77 labels."""
    names: list[str] = json.loads((DATA / "banking77_categories.json").read_text(encoding="utf-8"))
    return names


def write_jobs(folder: Path) -> None:
    """Write chat.yaml and decider.yaml: the same file and labels for two local models."""
    chat = {
        "input": str(DATA / "banking77_test.csv"),
        "prompt": "Which intent is it? {{ text }}",
        "model": {"endpoint": "local", "params": {"max_tokens": 60}},
        "answer": {"columns": {"intent": labels()}},
        "output": {"path": "chat.csv", "details": ["status", "corrected"]},
    }
    decider = chat | {
        "prompt": {"user": "{{ text }}"},
        "model": {"endpoint": "local", "name": "sparrow-decider"},
        "answer": {"columns": {"intent": labels()}, "mode": "decision"},
        "output": {"path": "decider.csv", "details": ["status", "corrected"], "review_below": 0.5},
    }
    for name, job in (("chat", chat), ("decider", decider)):
        (folder / f"{name}.yaml").write_text(json.dumps(job), encoding="utf-8")


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def correct(command: Command, job: str, todo: Path, right: Callable[[dict[str, str]], str]) -> None:
    """Write into each row of a todo file the label that a person would, then take the file."""
    rows = table(todo)
    for row in rows:
        label = right(row)
        row["intent"], row["needs_review"] = label, "" if label == row["intent_model"] else "true"
    with todo.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert command("correct", job, todo.name).code == 0


def judged(command: Command, *arguments: str) -> dict[str, Any]:
    """Return what eval or compare finds."""
    ended = command(*arguments, "--json")
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_two_local_models_on_77_labels(tmp_path: Path, command: Command) -> None:
    """Both models answer the same sample; eval, compare, report and a correction work on their answers."""
    write_jobs(tmp_path)
    for name in ("chat", "decider"):
        ended = command(f"{name}.yaml", "--quiet", "--sample", str(ROWS))
        assert ended.code in {0, 1}, ended.err
        found = judged(command, "eval", f"{name}.yaml", "--gold", "intent=category")
        assert found["accuracy"]["n"] == ROWS
        assert (found["calibration"] is not None) == (name == "decider")
    assert judged(command, "compare", "chat.yaml", "decider.yaml", "--gold", "intent=category")["gold"]["n"] == ROWS
    assert command("show", "chat.yaml", "--review", "-o", "todo.csv").code == 0
    assert len(table(tmp_path / "todo.csv")) == ROWS
    correct(command, "chat.yaml", tmp_path / "todo.csv", lambda _: labels()[0])
    assert command("export", "chat.yaml", "-o", "reviewed.csv").code == 0
    written = [row for row in table(tmp_path / "reviewed.csv") if row["corrected"]]
    assert [row["intent"] for row in written] == [labels()[0]] * ROWS
    again = judged(command, "eval", "chat.yaml", "--gold", "intent=category")
    assert again["accuracy"]["n"] == ROWS, "eval compares what the model said"
    assert judged(command, "eval", "chat.yaml", "--reviewed", "intent")["accuracy"]["n"] == ROWS
    assert command("report", "decider.yaml", "--gold", "intent=category", "--compare", "chat.yaml").code == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_test_file(tmp_path: Path, command: Command) -> None:
    """All 3,080 rows: accuracy far above chance, a threshold that holds, and 300 corrections that reach the output."""
    write_jobs(tmp_path)
    gold = {row["text"]: row["category"] for row in table(DATA / "banking77_test.csv")}
    assert command("decider.yaml", "--quiet").code == 0
    first = judged(command, "eval", "decider.yaml", "--gold", "intent=category", "--min", "0.5")
    assert first["accuracy"]["n"] == 3_080
    assert 0.4 < first["accuracy"]["low"] < first["accuracy"]["value"] < first["accuracy"]["high"] < 0.8
    assert len([one for one in first["labels"] if one["support"]]) == 77
    assert first["calibration"]["threshold"]["accuracy"] >= 0.5
    assert command("show", "decider.yaml", "--review", "-o", "todo.csv", "-n", "300").code == 0
    correct(command, "decider.yaml", tmp_path / "todo.csv", lambda row: gold[row["text"]])
    assert command("decider.yaml", "--quiet").code == 0
    written = table(tmp_path / "decider.csv")
    reviewed = [row for row in written if row["corrected"]]
    assert len(reviewed) >= 300
    assert all(row["intent"] == row["category"] and row["needs_review"] == "false" for row in reviewed)
    before, after = first["accuracy"]["right"], sum(row["intent"] == row["category"] for row in written)
    assert after - before == sum(row["corrected"] == "true" for row in reviewed)
    assert judged(command, "eval", "decider.yaml", "--gold", "intent=category")["accuracy"] == first["accuracy"]
    least_sure = judged(command, "eval", "decider.yaml", "--reviewed", "intent")
    assert least_sure["accuracy"]["value"] < first["accuracy"]["value"], "the least sure answers are the worst"
    assert command("report", "decider.yaml", "--gold", "intent=category").code == 0
