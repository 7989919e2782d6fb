"""The whole loop of an analyst on real data: two local models, eval, compare, review, correct, report."""

import csv
import importlib.util
import json
from pathlib import Path

import pytest
from command_line import Command, command

from batchrun.api.endpoints import default_model

__all__ = ["command"]

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ROWS = 10


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "banking77_test.csv").exists(), reason="the data is not on this machine")
@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None
    or importlib.util.find_spec("sparrow_decider") is None
    or default_model() is None,
    reason="the local models are not installed",
)
def test_two_local_models_on_77_labels(tmp_path: Path, command: Command) -> None:
    """Both models answer the same sample; eval, compare, report and a correction work on their answers."""
    labels = json.loads((DATA / "banking77_categories.json").read_text(encoding="utf-8"))
    chat = {
        "input": str(DATA / "banking77_test.csv"),
        "prompt": "Which intent is it? {{ text }}",
        "model": {"endpoint": "local", "params": {"max_tokens": 60}},
        "answer": {"columns": {"intent": labels}},
        "output": {"path": "chat.csv", "details": ["status", "corrected"]},
    }
    decider = chat | {
        "prompt": {"user": "{{ text }}"},
        "model": {"endpoint": "local", "name": "sparrow-decider"},
        "answer": {"columns": {"intent": labels}, "mode": "decision"},
        "output": "decider.csv",
    }
    for name, job in (("chat", chat), ("decider", decider)):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(job), encoding="utf-8")
        ended = command(f"{name}.yaml", "--quiet", "--sample", str(ROWS))
        assert ended.code in {0, 1}, ended.err
    for name in ("chat", "decider"):
        found = json.loads(command("eval", f"{name}.yaml", "--gold", "intent=category", "--json").out)
        assert found["accuracy"]["n"] == ROWS
        assert (found["calibration"] is not None) == (name == "decider")
    both = json.loads(command("compare", "chat.yaml", "decider.yaml", "--gold", "intent=category", "--json").out)
    assert both["gold"]["n"] == ROWS
    assert command("show", "chat.yaml", "--review", "-o", "todo.csv").code == 0
    with (tmp_path / "todo.csv").open(encoding="utf-8", newline="") as file:
        todo = list(csv.DictReader(file))
    assert len(todo) == ROWS
    todo[0]["intent"] = next(label for label in labels if label != todo[0]["intent_model"])
    with (tmp_path / "todo.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, todo[0].keys())
        writer.writeheader()
        writer.writerows(todo)
    assert command("correct", "chat.yaml", "todo.csv").code == 0
    assert command("export", "chat.yaml", "-o", "reviewed.csv").code == 0
    with (tmp_path / "reviewed.csv").open(encoding="utf-8", newline="") as file:
        written = [row for row in csv.DictReader(file) if row["corrected"]]
    assert [(row["text"], row["intent"], row["corrected"]) for row in written] == [
        (todo[0]["text"], todo[0]["intent"], "true")
    ]
    judged = json.loads(command("eval", "chat.yaml", "--reviewed", "intent", "--json").out)
    assert (judged["accuracy"]["right"], judged["accuracy"]["n"]) == (0, 1)
    assert command("report", "decider.yaml", "--gold", "intent=category").code == 0
