"""A whole job against a server that is down, in virtual time: its forms, the server that counts, the run."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from virtual_time import VirtualLoop

from batchrun.job import Environment, RunOptions, load
from batchrun.prepare.invocation import Invocation
from batchrun.records import Fault, Reply, Request, Summary
from batchrun.runner import asking
from batchrun.runner.progress import Ui
from batchrun.runner.run import run_job
from batchrun.runner.work import Time

BEGINNING = 1000.0
SECONDS = 0.2
"""What each request takes."""


def good(text: str = "fine") -> Reply:
    """Return a good answer."""
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return Reply(200, body=json.dumps({"model": "m", "choices": [choice], "usage": usage}).encode())


def refusal(status: int, message: str = "no", wait: float | None = None, **error: Any) -> Reply:  # noqa: ANN401  (JSON)
    """Return a refusal in OpenAI's dialect; `wait` is its Retry-After."""
    headers = {"content-type": "application/json"} | ({} if wait is None else {"retry-after": f"{wait:g}"})
    return Reply(status, headers, json.dumps({"error": {"message": message, **error}}).encode())


FORMS = {
    "refused": Reply(fault=Fault.CONNECT, sent=False, detail="connection refused"),
    "DNS": Reply(fault=Fault.DNS, sent=False, detail="unknown host"),
    "reset": Reply(fault=Fault.RESET, sent=True, detail="connection reset"),
    "reset before any byte": Reply(fault=Fault.RESET, sent=True, detail="connection reset", before_reply=True),
    "timeout": Reply(fault=Fault.TIMEOUT, sent=True, detail="no reply"),
    **{str(status): refusal(status, "failed") for status in (500, 502, 503, 504, 520, 529)},
    "HTML": Reply(502, {"content-type": "text/html"}, b"<html>Bad gateway</html>"),
    "HTML inside a 200": Reply(200, {"content-type": "text/html"}, b"<html>maintenance</html>"),
    "broken JSON": Reply(200, body=b'{"choices": [{"mess'),
    "error inside a 200": Reply(200, body=b'{"error": {"code": 500, "message": "failed"}}'),
}
"""What a server that is down may answer."""


@dataclass
class Server:
    """A Send that answers by one function of the time (seconds), the prompt and the number of the request, from 1."""

    answer: Callable[[float, str, int], Reply]
    received: list[tuple[float, str]] = field(default_factory=list)

    async def __call__(self, request: Request) -> Reply:
        now = asyncio.get_running_loop().time() - BEGINNING
        prompt = json.loads(request.body)["messages"][-1]["content"]
        self.received.append((now, prompt))
        reply = self.answer(now, prompt, len(self.received))
        await asyncio.sleep(SECONDS)
        return reply._replace(seconds=SECONDS)

    @property
    def times(self) -> list[float]:
        """When requests came, in seconds since the run began to ask."""
        return [at for at, _ in self.received]

    @property
    def prompts(self) -> list[str]:
        """The prompts that came, in order."""
        return [prompt for _, prompt in self.received]


@dataclass
class Night:
    """A job in a folder, with last night's output, that runs against a Server again and again."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    rows: Iterable[str]
    limits: dict[str, Any] = field(default_factory=dict)
    url: str = "https://server.example/v1"
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "rows.csv").write_text("text\n" + "".join(f"{row}\n" for row in self.rows))
        self.output = self.folder / "out.csv"
        self.output.write_text("last night\n")
        job = {
            "input": {"path": "rows.csv"},
            "prompt": {"user": "{{ text }}"},
            "model": {"endpoint": self.url, "name": "m", "price": {"prompt": 1, "completion": 1}, "api_key_env": "KEY"},
            "limits": {"concurrency": 8, **self.limits},
            "output": {"path": "out.csv", "details": ["status", "error_type", "error_message"]},
            **self.more,
        }
        self.path = self.folder / "job.yaml"
        self.path.write_text(json.dumps(job))

    def run(self, server: Server, options: RunOptions | None = None, ui: Ui | None = None) -> Summary:
        """Run the job once, with a clock that jumps over every wait."""
        loops: list[VirtualLoop] = []

        def new_loop() -> VirtualLoop:
            loops.append(VirtualLoop())
            return loops[0]

        @asynccontextmanager
        async def sender(*_: object, **__: object) -> AsyncIterator[Server]:
            yield server

        def clock() -> float:
            return loops[0].time() if loops else BEGINNING

        self.monkeypatch.setattr("uvloop.new_event_loop", new_loop)
        self.monkeypatch.setattr(asking, "open_sender", sender)
        environment = Environment({"test": {"KEY": "sk-canary", "XDG_CACHE_HOME": str(self.folder)}})
        loaded = load(self.path.read_text(), self.path, environment)
        time = Time(clock=clock, jitter=lambda: 0.5)
        return run_job(Invocation(loaded, environment, options or RunOptions(yes=True)), ui or Ui(), time)

    @property
    def kept(self) -> bool:
        """Whether last night's output still stands."""
        return self.output.read_text() == "last night\n"
