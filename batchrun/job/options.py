"""Flags over the job file: one job comes out, and nobody below asks again where a value came from."""

import re
import shlex
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from batchrun.job.spec import Job, Limits, Model


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line says of a run; None where it says nothing. `retry` holds error types, empty for all."""

    limit: int | None = None
    max_cost: Decimal | None = None
    concurrency: int | None = None
    endpoint: str | None = None
    api_key_env: str | None = None
    engine: Literal["local", "ray"] | None = None
    output: Path | None = None
    fresh: bool = False
    yes: bool = False
    retry: frozenset[str] | None = None


def command_line(job: str, options: RunOptions, verb: str = "") -> str:
    """Return the command that runs a job file again with these flags, quoted for a shell.

    --fresh, --yes and what `retry` reopened have had their effect: repeating them would pay again.
    """
    flags = {
        "--endpoint": options.endpoint,
        "--api-key-env": options.api_key_env,
        "--engine": options.engine,
        "--concurrency": options.concurrency,
        "--max-cost": options.max_cost,
        "--limit": options.limit,
        "--output": options.output,
    }
    words = ["batchrun", *verb.split(), f"./{job}" if job.startswith("-") else job]
    for flag, value in flags.items():
        if value is not None:
            words += [flag, str(value)]
    return shlex.join(words)


def merged(job: Job, options: RunOptions) -> Job:
    """Give the job with the flags applied. Another endpoint gets a checkpoint and an output of its own."""
    if options.endpoint is not None and options.endpoint != job.model.endpoint:
        job = _renamed(job, options.endpoint)
    job = replace(job, model=_model(job.model, options), limits=_limits(job.limits, options))
    if options.engine is not None and (options.engine == "ray") != (job.ray is not None):
        job = replace(job, engine=options.engine)
    if options.output is not None:
        job = replace(job, output=replace(job.output, path=str(options.output.absolute())))
    return job


def _model(model: Model, options: RunOptions) -> Model:
    if options.endpoint is not None and options.endpoint != model.endpoint:
        # Key and headers, which may hold secrets too, go only where the file names them for; a model file means
        # something to `local` alone.
        is_file = model.name is not None and model.name.endswith(".gguf")
        name = model.name if is_file == (options.endpoint == "local") else None
        model = replace(model, endpoint=options.endpoint, api_key_env=None, headers={}, name=name)
    return replace(model, api_key_env=options.api_key_env or model.api_key_env)


def _limits(limits: Limits, options: RunOptions) -> Limits:
    if options.concurrency is not None:
        limits = replace(limits, concurrency=options.concurrency)
    if options.max_cost is not None:
        limits = replace(limits, max_cost_usd=replace(limits.cap, run=options.max_cost))
    return limits


def _renamed(job: Job, endpoint: str) -> Job:
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", urlsplit(endpoint).netloc or endpoint).strip("-.")
    output = replace(job.output, path=str(_with_name(job.output_path, name)))
    return replace(job, output=output, checkpoint=str(_with_name(job.checkpoint_path, name)))


def _with_name(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}.{name}{path.suffix}")
