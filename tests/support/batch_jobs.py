"""A job that asks in provider batches, in this process, and a provider on loopback that keeps its own books."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from job_running import fast
from openrouter.batches import MODEL, Provider, serving

from batchrun.job import Environment, RunOptions, load
from batchrun.prepare.invocation import Invocation
from batchrun.records import Summary
from batchrun.runner.progress import Ui
from batchrun.runner.run import run_job

DIALECTS = {"openrouter": "/api/v1", "openai": "/v1"}
PRICE = {"prompt": 1.5, "completion": 4.5}


@pytest.fixture(scope="module")
def server() -> Iterator[Provider]:
    with serving(Provider()) as provider:
        yield provider


@pytest.fixture
def provider(server: Provider) -> Provider:
    """Begin with empty books and without faults."""
    server.forget()
    return server


class Job:
    """A job in a folder of its own, run in this process."""

    def __init__(self, folder: Path, provider: Provider, dialect: str = "openrouter") -> None:
        self.folder, self.provider = folder, provider
        folder.mkdir(exist_ok=True)
        self.said: list[str] = []
        openai = {"batch_api": "openai", "price": {"prompt": 3, "completion": 9, "batch": PRICE}}
        self.sections: dict[str, Any] = {
            "input": "rows.csv",
            "prompt": "{{ text }}",
            "model": {"endpoint": provider.url + DIALECTS[dialect], "name": MODEL, "params": {"max_tokens": 100}}
            | (openai if dialect == "openai" else {}),
            "engine": {"batch": {"size": 10}},
            "output": "out.csv",
        }

    def rows(self, count: int) -> "Job":
        """Write the input."""
        rows = {"id": list(range(count)), "text": [f"text {number}" for number in range(count)]}
        pl.DataFrame(rows).write_csv(self.folder / "rows.csv")
        return self

    def run(self, options: RunOptions | None = None, **sections: Any) -> Summary:  # noqa: ANN401  (JSON)
        """Run it, with sections put over the job's."""
        self.sections |= sections
        path = self.folder / "job.yaml"
        path.write_text(json.dumps(self.sections))
        environment = Environment({"test": {"XDG_CACHE_HOME": str(self.folder)}})
        loaded = load(path.read_text(encoding="utf-8"), path, environment)
        return run_job(Invocation(loaded, environment, options or RunOptions()), _Said(self.said), fast())

    @property
    def output(self) -> pl.DataFrame:
        """The finished output."""
        return pl.read_csv(self.folder / "out.csv")


class _Said(Ui):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def say(self, line: str) -> None:
        self._lines.append(line)

    warn = say


@pytest.fixture(params=DIALECTS)
def job(request: pytest.FixtureRequest, tmp_path: Path, provider: Provider) -> Job:
    return Job(tmp_path / "job", provider, request.param)
