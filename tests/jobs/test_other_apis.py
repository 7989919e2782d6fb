"""Whole jobs whose address belongs to another API, and answers in a stream that nobody asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, command  # noqa: F401  (a fixture)
from job_running import run, write_job
from plain_server import plain_server
from wire_server import answer
from wire_thread import Everywhere, served

from batchrun.errors import ExitCode

USAGE = {"input_tokens": 10, "output_tokens": 3}
FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "Anthropic's Messages API": (
        {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "hi"}], "usage": USAGE},
        "https://api.anthropic.com/v1",
    ),
    "Gemini's own API": ({"candidates": [{"content": {"parts": [{"text": "hi"}]}}]}, "/v1beta/openai"),
    "Bedrock's Converse API": ({"output": {"message": {"content": [{"text": "hi"}]}}, "stopReason": "end_turn"}, "/v1"),
    "OpenAI's Responses API": ({"object": "response", "error": None, "output": [{"type": "message"}]}, "/v1"),
    "Ollama's own API": ({"model": "m", "message": {"role": "assistant", "content": "hi"}, "done": True}, "11434/v1"),
    "Cohere's own API": ({"message": {"role": "assistant", "content": []}, "finish_reason": "COMPLETE"}, "/v1"),
    "TGI's own API": ({"generated_text": "hi"}, "/v1"),
    "llama.cpp's own API": ({"content": "hi", "stop": True, "model": "m"}, "/v1"),
    "Cloudflare's own API": ({"result": {"response": "hi"}, "success": True, "errors": []}, "/ai/v1"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_reply_in_the_form_of_another_api_stops_the_run(name: str, tmp_path: Path) -> None:
    """Two questions show it; all rows stay pending, and the API and the address to write are named."""
    form, address = FORMS[name]
    with served(Everywhere((answer(json.dumps(form).encode()),))) as server:
        ran = run(write_job(tmp_path, server.url("/v1"), rows=5))
    assert (ran.summary.exit_code, ran.summary.pending, len(server.seen)) == (ExitCode.STOPPED_BY_API, 5, 2)
    assert f"it is {name}" in ran.summary.reason
    assert address in ran.summary.reason


def test_an_error_in_anthropics_form_that_says_what_it_is_counts_as_that(tmp_path: Path) -> None:
    """A gateway that is overloaded for a moment is asked again, in whatever form it says so."""
    replies = [{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}]
    good = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}
    with plain_server(lambda _: (200, replies.pop() if replies else good)) as url:
        ran = run(write_job(tmp_path, url, rows=2, answer=None))
    assert ran.column("answer") == ["fine"] * 2


def chunk(finish: str | None = None, **delta: Any) -> bytes:  # noqa: ANN401  (JSON)
    """Return one event of a stream of chat completions."""
    event = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
WHOLE = json.dumps({"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}).encode()
USED = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}\n\n'
STREAMS = {
    "chunks": (
        b": OPENROUTER PROCESSING\n\n" + chunk(role="assistant", content="") + chunk(content="fi")
        + chunk(content="ne") + chunk("stop") + USED + DONE
    ),
    "without [DONE]": chunk(content="fine") + chunk("stop"),
    "without a finish_reason": chunk(content="fine") + DONE,
    "a last event without choices": chunk(content="fine") + chunk("stop") + b'data: {"usage": {}}\n\n' + DONE,
    "a message that grows": (
        b'data: {"choices": [{"delta": {"content": "fi"}, "message": {"content": "fi"}}]}\n\n'
        b'data: {"choices": [{"delta": {"content": "ne"}, "message": {"content": "fine"}, "finish_reason": "stop"}]}\n'
    ),
    "parts": chunk(content=[{"type": "thinking", "thinking": []}, {"type": "text", "text": "fine"}]) + DONE,
    "no space": chunk(content="fine") + b"data:[DONE]",
    "after reasoning": chunk(reasoning_content="hm") + chunk(content="fine") + chunk("stop") + DONE,
    "Windows' line ends": (chunk(content="fine") + chunk("stop") + DONE).replace(b"\n", b"\r\n"),
    "one whole answer": b"data:" + WHOLE + b"\n\n",
    "a whole answer and [DONE]": WHOLE + b"\n\n" + DONE,
    "a whole answer and [DONE] in one line": WHOLE + DONE,
}  # fmt: skip


@pytest.mark.parametrize("form", STREAMS)
def test_a_stream_that_nobody_asked_for_is_an_answer(form: str, tmp_path: Path) -> None:
    """A gateway that streams unless told otherwise is paid for each answer: each is read, and asked for once."""
    with served(Everywhere((answer(STREAMS[form], headers=["content-type: text/event-stream"]),))) as server:
        ran = run(write_job(tmp_path, server.url("/v1"), rows=3, answer=None))
    assert (ran.column("answer"), len(server.seen)) == (["fine"] * 3, 3)


def test_the_tokens_and_the_cost_of_a_stream_are_booked(tmp_path: Path) -> None:
    """The last event has no choices and says what the answer used; the job's price makes the cost of it."""
    output = {"details": ["prompt_tokens", "completion_tokens", "cost_usd"]}
    model = {"price": {"prompt": 1, "completion": 10}}
    with served(Everywhere((answer(STREAMS["chunks"], headers=["content-type: text/event-stream"]),))) as server:
        ran = run(write_job(tmp_path, server.url("/v1"), rows=2, answer=None, model=model, output=output))
    assert (ran.column("prompt_tokens"), ran.column("completion_tokens")) == ([7] * 2, [2] * 2)
    assert ran.column("cost_usd") == [0.000027] * 2
    assert float(ran.summary.cost_usd) == 0.000054


def test_a_cost_that_a_stream_reports_is_booked(tmp_path: Path) -> None:
    """As in a whole answer; each one is paid once."""
    used = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2, "cost": 0.25}}\n\n'
    body = chunk(content="fine") + chunk("stop") + used + DONE
    with served(Everywhere((answer(body, headers=["content-type: text/event-stream"]),))) as server:
        ran = run(write_job(tmp_path, server.url("/v1"), rows=2, answer=None))
    assert (ran.column("cost_usd"), float(ran.summary.cost_usd)) == ([0.25] * 2, 0.5)
    assert not ran.summary.possibly_billed


@pytest.mark.parametrize(
    ("body", "ending"),
    [
        (chunk(content="half"), "invalid_response"),
        (chunk(content="half") + b'data: {"choices": [{"del', "invalid_response"),
        (chunk(content="Let me see.", tool_calls=[{"index": 0}]) + chunk("tool_calls") + DONE, "invalid_response"),
        (chunk("length", content="half") + DONE, "truncated"),
        (chunk(content="half") + b'data: {"error": {"code": 400, "message": "flagged"}}\n\n', "content_policy"),
        (b'{"message": {"content": "h"}, "done": false}\n{"message": {"content": "i"}, "done": true}\n', "wrong_api"),
        (b'event: message_start\ndata: {"type": "message", "content": []}\n\n', "wrong_api"),
    ],
)
def test_a_stream_without_a_whole_answer_is_none(body: bytes, ending: str, tmp_path: Path) -> None:
    """What was cut off, calls a tool, carries an error or belongs to another API is never taken for an answer."""
    with served(Everywhere((answer(body, headers=["content-type: text/event-stream"]),))) as server:
        ran = run(write_job(tmp_path, server.url("/v1"), rows=1, answer=None))
    assert ran.column("error_type") == [ending]
    assert ending != "invalid_response" or "stream of events" in ran.column("error_message")[0]


def test_a_stream_that_is_cut_off_is_asked_again(tmp_path: Path) -> None:
    """Half an answer is none, however it reads; the next reply is whole."""
    bodies = [chunk(content="fine") + chunk("stop"), chunk(content="half")]
    with served(Everywhere(lambda _: (answer(bodies.pop(), headers=["content-type: text/event-stream"]),))) as server:
        ran = run(write_job(tmp_path, server.url("/v1"), rows=1, answer=None))
    assert (ran.column("answer"), len(server.seen), ran.summary.possibly_billed) == (["fine"], 2, 1)


def test_a_wrong_path_names_the_address_that_was_asked(tmp_path: Path) -> None:
    """`http://127.0.0.1:11434` without /v1 is the commonest of mistakes: the words show what is missing."""
    page = answer(b"404 page not found", status="404 Not Found")
    with served(Everywhere((page,))) as server:
        without = run(write_job(tmp_path, server.url(""), rows=3)).summary
        base = server.url("")
        other = run(write_job(tmp_path, server.url("/v2/"), rows=3)).summary
    assert (without.exit_code, without.pending) == (ExitCode.STOPPED_BY_API, 3)
    assert without.advice == (
        f"batchrun asked {base}/chat/completions: correct model.endpoint (most have a version, as {base}/v1) or "
        "model.name"
    )
    assert other.advice == f"batchrun asked {base}/v2/chat/completions: correct model.endpoint or model.name"


def test_a_wrong_path_of_a_decision_model_is_advised_as_such(tmp_path: Path) -> None:
    """Its questions go to another address, and the server may have no decision models at all."""
    page = answer(b"404 page not found", status="404 Not Found")
    with served(Everywhere((page,))) as server:
        job = write_job(tmp_path, server.url("/v1"), rows=3, answer={"mode": "decision", "columns": {"a": ["x", "y"]}})
        summary = run(job).summary
    assert (summary.exit_code, summary.pending) == (ExitCode.STOPPED_BY_API, 3)
    assert summary.advice is not None
    assert "/chat/completions" not in summary.advice
    assert "answer.mode: schema" in summary.advice


@pytest.mark.parametrize("path", ["responses", "completions", "messages", "models/g:generateContent"])
def test_an_endpoint_with_the_path_of_another_api_is_a_mistake(path: str, tmp_path: Path, command: Command) -> None:  # noqa: F811
    """It is found before anything is sent, at its place in the file."""
    write_job(tmp_path, f"https://models.example/v1/{path}", rows=1)
    ended = command("check", "job.yaml")
    assert ended.code == ExitCode.USER
    assert "model.endpoint ends with" in ended.err
    assert "write the API's base URL, such as https://host/v1" in ended.err
