"""A whole job for tests: written into a folder, run in this process against a server, its output read back."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from batchrun.errors import JobFileError
from batchrun.job import Environment, RunOptions, examine
from batchrun.prepare.invocation import Invocation
from batchrun.records import Summary
from batchrun.runner.progress import Ui
from batchrun.runner.run import run_job
from batchrun.runner.work import Time

KEY = "sk-or-v1-canary"
PROMPT = "Label: {{ text }}"
COLUMNS = {"label": ["good", "bad"], "score": "integer"}
DETAILS = ["status", "error_code", "error_type", "error_message", "attempts", "model", "cost_usd", "answer_raw"]
LIMITS = {"concurrency": 10, "timeout": 5, "grace": 1000}


def fast(speed: float = 500.0, jitter: float = 0.5) -> Time:
    """Return a clock for the waits of a run that goes that much faster; servers and time limits of HTTP are real."""
    return Time(clock=lambda: time.monotonic() * speed, jitter=lambda: jitter, speed=speed)


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run left: its summary, and the output or the partial output if one was written."""

    summary: Summary
    output: pl.DataFrame | None

    def column(self, name: str) -> list[Any]:
        """Return a column of the output, in the input's order."""
        assert self.output is not None, self.summary.reason
        return self.output[name].to_list()

    def count(self, name: str) -> dict[Any, int]:
        """Count the values of a column."""
        values = self.column(name)
        return {value: values.count(value) for value in dict.fromkeys(values)}


def write_job(
    folder: Path,
    url: str,
    *,
    rows: int | list[str] = 3,
    model: str | Mapping[str, Any] = "sim/good",
    **sections: Any,  # noqa: ANN401  (JSON)
) -> Path:
    """Write job.yaml and its input: that many rows, or these texts. `sections` are put over the job's, key by key.

    `model` is a name, or what else the job says of its model.
    """
    texts = [f"text {number}" for number in range(rows)] if isinstance(rows, int) else rows
    pl.DataFrame({"text": texts}, schema={"text": pl.String}).write_parquet(folder / "rows.parquet")
    job: dict[str, Any] = {
        "input": {"path": "rows.parquet"},
        "prompt": {"user": PROMPT},
        "model": {"endpoint": url, "name": "sim/good", "api_key_env": "KEY"}
        | ({"name": model} if isinstance(model, str) else dict(model)),
        "answer": {"columns": COLUMNS},
        "limits": LIMITS,
        "output": {"path": "out.parquet", "details": DETAILS},
    }
    for name, section in sections.items():
        both = isinstance(section, Mapping) and name in job
        job[name] = {**job[name], **section} if both else section
    path = folder / "job.yaml"
    path.write_text(json.dumps({name: section for name, section in job.items() if section is not None}))
    return path


def run(
    path: Path,
    options: RunOptions | None = None,
    *,
    key: str = KEY,
    sender: str = "reqwest",
    clock: Time | None = None,
    ui: Ui | None = None,
) -> Ran:
    """Run the job of a file with the real loader and runner; `clock` is a fast one unless another one is given."""
    environment = Environment({"test": {"KEY": key, "BATCHRUN_HTTP": sender, "XDG_CACHE_HOME": str(path.parent)}})
    options = options or RunOptions()
    loaded = examine(path.read_text(encoding="utf-8"), path, environment, options.settings)
    if loaded.mistakes:
        raise JobFileError(loaded.shown, loaded.mistakes)
    summary = run_job(Invocation(loaded, environment, options), ui or Ui(), clock or fast())
    output = summary.output or ""
    return Ran(summary, pl.read_parquet(output) if output.endswith(".parquet") else None)
