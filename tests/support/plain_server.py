"""An OpenAI-compatible server for tests that is not OpenRouter: one function gives every reply."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from openrouter.server import Server

Answer = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]
"""Gives status and reply for a request's body."""


@contextmanager
def plain_server(answer: Answer) -> Iterator[str]:
    """Serve while the block runs; gives the API's address."""

    async def app(_: Any, receive: Any, send: Any) -> None:  # noqa: ANN401  (ASGI)
        raw, more = b"", True
        while more:
            event = await receive()
            raw += event["body"]
            more = event.get("more_body", False)
        status, reply = answer(json.loads(raw))
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(reply).encode()})

    accepts = threading.Event()
    server = Server(app, ready=accepts.set)  # type: ignore[arg-type]  # any application would do
    thread = threading.Thread(target=server.serve_until_stopped, name="plain")
    thread.start()
    try:
        assert accepts.wait(10)
        yield server.url.replace("/api/v1", "/v1")
    finally:
        server.should_exit = True
        thread.join()


def completion(text: str, **usage: Any) -> tuple[int, dict[str, Any]]:  # noqa: ANN401  (JSON)
    """Return a good reply with this text."""
    return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}


@dataclass
class Asked:
    """A server that answers `text`, and what it was asked."""

    url: str = ""
    text: str = "yes"
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def prompts(self) -> list[str]:
        """Return the prompts since the last call."""
        found = [body["messages"][-1]["content"] for body in self.bodies]
        self.bodies.clear()
        return found


@contextmanager
def recording_server() -> Iterator[Asked]:
    """Serve a model that answers `text` with 10 tokens in and 1 out; record what it is asked."""
    asked = Asked()

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked.bodies.append(body)
        return completion(asked.text, prompt_tokens=10, completion_tokens=1)

    with plain_server(answer) as asked.url:
        yield asked
