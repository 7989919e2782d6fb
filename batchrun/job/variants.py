"""A job with the flags of a run applied, and the names of its variants, which keep answers and outputs apart."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

from batchrun.errors import UserError
from batchrun.job.settings import RunOptions
from batchrun.job.spec import EngineOptions, Job, Limits, Model

_READABLE = 40
_PIPED = {".csv", ".tsv", ".jsonl", ".ndjson"}
_VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{,39}", re.ASCII)


def merged(job: Job, options: RunOptions) -> Job:
    """Return the job with the flags applied.

    Another endpoint, model, input or --variant gets a checkpoint and an output of its own. Raises UserError for a
    variant that can't be part of a file's name, and for a pipe where none is possible.
    """
    stdin, stdout = _pipes(job, options)
    if variant := _variant(job, options):
        output = replace(job.output, path=str(_with_name(job.output_path, variant)))
        job = replace(job, output=output, checkpoint=str(_with_name(job.checkpoint_path, variant)))
    job = replace(job, model=_model(job.model, options), limits=_limits(job.limits, options))
    if stdin or options.input is not None:
        path = stdin or os.path.abspath(options.input or "")  # noqa: PTH100  (without `..`)
        job = replace(job, input=replace(job.input, path=path))
    # `engine: {ray: {senders: 4}}` with --engine ray keeps its options.
    if options.engine is not None and options.engine != _engine(job):
        job = replace(job, engine=options.engine)
    if options.wait is not None and job.batch is not None:
        job = replace(job, engine=EngineOptions(batch=replace(job.batch, wait=options.wait)))
    if options.output is not None:
        job = replace(job, output=replace(job.output, path=stdout or str(options.output.absolute())))
    return job


def _pipes(job: Job, options: RunOptions) -> tuple[str | None, str | None]:
    """Return the files that stand for standard input and standard output, None for one that is not used."""
    stdin = stdout = None
    if options.reads_stdin:
        if job.checkpoint is None:
            raise UserError(
                "--input - needs `checkpoint:` in the job file: rows of a pipe have no name to keep answers by"
            )
        if options.pipes is None:
            raise UserError("--input - is for `batchrun JOB`, check and preview; this command takes a file")
        stdin = str(options.pipes / f"stdin.{options.format}")
    if options.writes_stdout and options.pipes is not None:
        suffix = job.output_path.suffix.lower()
        if options.format is not None:
            suffix = f".{options.format}"
        elif suffix not in _PIPED:
            suffix = ".csv"
        stdout = str(options.pipes / f"stdout{suffix}")
    return stdin, stdout


def _variant(job: Job, options: RunOptions) -> str:
    """Return the name of a variant, empty for the job itself: for each flag a readable part of it, with a digest.

    An input that is the variant of this name of the job's own input adds nothing: `b.yaml` reads `a.csv`, and with
    `--variant trial --input a.trial.csv` its output is called `b.trial.csv`.
    """
    without_input = ".".join(_variants(job, replace(options, input=None)))
    if options.input is not None and without_input:
        named = [str(_with_name(job.resolve(pattern), without_input)) for pattern in job.input.patterns]
        if named == [os.path.abspath(options.input)]:  # noqa: PTH100  (without `..`)
            return without_input
    return ".".join(_variants(job, options))


def _variants(job: Job, options: RunOptions) -> Iterator[str]:
    """Yield the parts of a variant's name, one for each flag."""
    if options.endpoint not in {None, job.model.endpoint}:
        yield _named(options.endpoint, urlsplit(options.endpoint).netloc)
    if options.model == "":
        raise UserError("--model must not be empty")
    if options.model not in {None, job.model.name}:
        yield _named(options.model, options.model.rpartition("/")[2])
    if options.input is not None and not options.reads_stdin:
        path = os.path.abspath(options.input)  # noqa: PTH100  (without `..`)
        if (path,) != tuple(str(job.resolve(pattern)) for pattern in job.input.patterns):
            yield _named(path, Path(path).stem)
    if options.variant is not None:
        if not _VARIANT.fullmatch(options.variant):
            raise UserError(
                f"--variant {options.variant}: use letters, digits, ., - and _, at most {_READABLE} of them, the first "
                "a letter or a digit"
            )
        yield options.variant


def _named(value: str, readable: str) -> str:
    # The digest keeps apart what reads alike: openai/gpt-5 and azure/gpt-5, a/x.csv and b/x.csv.
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", readable or value).strip("-.")[:_READABLE]
    return f"{name}-{hashlib.sha256(value.encode(errors='surrogateescape')).hexdigest()[:6]}"


def _engine(job: Job) -> str:
    return next((name for name in ("ray", "batch") if getattr(job, name) is not None), "local")


def _model(model: Model, options: RunOptions) -> Model:
    name = options.model or model.name
    if options.endpoint is not None and options.endpoint != model.endpoint:
        # Key and headers, which may hold secrets too, go only where the file names them for; a model file means
        # something to `local` alone.
        # `--endpoint openrouter` on a job for a local file: no server knows a model of that name.
        is_file = name is not None and name.endswith(".gguf")
        if options.model is None and is_file != (options.endpoint == "local"):
            name = None
        model = replace(model, endpoint=options.endpoint, api_key_env=None, headers={})
    price = model.price
    if options.model not in {None, model.name} and not any(one.startswith("model.price") for one in options.settings):
        price = None  # the file's price is that of the file's model
    return replace(model, name=name, price=price, api_key_env=options.api_key_env or model.api_key_env)


def _limits(limits: Limits, options: RunOptions) -> Limits:
    if options.concurrency is not None:
        limits = replace(limits, concurrency=options.concurrency)
    if options.max_cost is not None:
        rest = max(Decimal(0), options.max_cost - options.spent)
        limits = replace(limits, max_cost_usd=replace(limits.cap, run=rest))
    return limits


def _with_name(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}.{name}{path.suffix}")
