"""Settings from outside of the job file: the variables of the process and of .env files, and the flags of a run.

A flag wins over the file, and a variable of the process over .env; below here nobody asks where a value came from.
"""

import hashlib
import os
import re
import shlex
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values

from batchrun.errors import UserError
from batchrun.job.spec import EngineOptions, Job, Limits, Model

PROCESS = "the environment"

_ASKED = re.compile(r"(prompt|answer|input|dedupe|model\.(name|fallbacks|params|identity))(?![^.])")
_NOT_ASKED = re.compile(
    r"answer\.repairs|model\.params\.(max_tokens|max_completion_tokens|provider|user|metadata)(\..*)?"
)
"""Keys of --set that change what rows ask, and those among them that do not."""

PipeFormat = Literal["csv", "tsv", "jsonl"]
"""What goes through a pipe."""

_READABLE = 40
_PIPED = {".csv", ".tsv", ".jsonl", ".ndjson"}
_VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{,39}", re.ASCII)


class Environment(Mapping[str, str]):
    """Variables by name; can't be changed, and shows no value in its repr."""

    def __init__(self, sources: Mapping[str, Mapping[str, str]]) -> None:
        """Merge sources by their names for people; an earlier one wins."""
        self._values = dict(ChainMap(*map(dict, sources.values())))
        self._origins = dict(ChainMap(*(dict.fromkeys(names, origin) for origin, names in sources.items())))

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Environment({len(self)} variables)"

    def origin(self, name: str) -> str:
        """Return where a variable came from: `the environment` or a .env file's path; KeyError for an unknown one."""
        return self._origins[name]


def read_environment(folder: Path, cwd: Path, process: Mapping[str, str]) -> Environment:
    """Read .env in the job file's folder and in the working directory; the process's own variables win over both.

    Raises UserError where a .env file can't be read.
    """
    sources = {PROCESS: process}
    for file in (folder / ".env", cwd / ".env"):
        if file.is_file() and not any(Path(known).samefile(file) for known in sources if known != PROCESS):
            sources[str(file)] = _variables(file)
    return Environment(sources)


def _variables(file: Path) -> dict[str, str]:
    """Read a .env file as it is written: a $ in a key stays a $."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}") from None
    values = dotenv_values(stream=StringIO(text), interpolate=False)
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The flags of a run; None where one is not given.

    `settings` are `KEY=VALUE` of --set, `input` is a path as the caller's folder sees it, `retry` are error types,
    empty for all. `spent` are the USD of `max_cost` that earlier jobs of the same command may have spent.
    An input or an output `-` is a standard stream: a file in the folder `pipes` stands for it, in the `format`.
    """

    limit: int | None = None
    max_cost: Decimal | None = None
    spent: Decimal = Decimal(0)
    concurrency: int | None = None
    sample: int | None = None
    settings: tuple[str, ...] = ()
    endpoint: str | None = None
    model: str | None = None
    input: str | None = None
    variant: str | None = None
    api_key_env: str | None = None
    engine: Literal["local", "ray", "batch"] | None = None
    wait: str | None = None
    output: Path | None = None
    fresh: bool = False
    yes: bool = False
    retry: frozenset[str] | None = None
    format: PipeFormat | None = None
    pipes: Path | None = None

    @property
    def reads_stdin(self) -> bool:
        """Whether the rows come through standard input."""
        return self.input == "-"

    @property
    def writes_stdout(self) -> bool:
        """Whether the output goes to standard output."""
        return self.output == Path("-")

    @property
    def is_partial(self) -> bool:
        """Whether only some of the open questions are to be asked."""
        return self.limit is not None or self.sample is not None

    @property
    def wording(self) -> str | None:
        """The first of the settings that changes what rows ask, None where none does.

        With another model or endpoint, which have a checkpoint of their own, the mode belongs to these: a chat model
        can't be asked as a decision model.
        """
        keys = [setting.partition("=")[0] for setting in self.settings]
        if self.model is not None or self.endpoint is not None:
            keys = [key for key in keys if key != "answer.mode"]
        return next((key for key in keys if _ASKED.match(key) and not _NOT_ASKED.fullmatch(key)), None)


def command_line(job: str, options: RunOptions, verb: str = "") -> str:
    """Return the command that runs a job file again with these flags, quoted for a shell.

    --fresh, --yes and what `retry` reopened have had their effect: repeating them would pay again. Where --yes let a
    setting change the questions, the command needs it each time.
    """
    flags = {
        "--endpoint": options.endpoint,
        "--model": options.model,
        "--input": options.input,
        "--variant": options.variant,
        "--api-key-env": options.api_key_env,
        "--engine": options.engine,
        "--wait": options.wait,
        "--concurrency": options.concurrency,
        "--max-cost": options.max_cost,
        "--limit": options.limit,
        "--sample": options.sample,
        "--output": options.output,
        "--format": options.format,
    }
    words = ["batchrun", *verb.split(), f"./{job}" if job.startswith("-") else job]
    for setting in options.settings:
        words += ["--set", setting]
    for flag, value in flags.items():
        if value is not None:
            words += [flag, str(value)]
    if options.yes and options.wording is not None and options.variant is None:
        words.append("--yes")
    return shlex.join(words)


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
    if options.model not in {None, job.model.name}:
        yield _named(options.model, options.model.rpartition("/")[2])
    if options.input is not None and not options.reads_stdin:
        path = os.path.abspath(options.input)  # noqa: PTH100  (without `..`)
        if (path,) != tuple(str(job.resolve(pattern)) for pattern in job.input.patterns):
            yield _named(path, Path(path).stem)
    if options.variant is not None:
        if not _VARIANT.fullmatch(options.variant):
            raise UserError(f"--variant {options.variant}: use letters, digits, - and _, at most {_READABLE} of them")
        yield options.variant


def _named(value: str, readable: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", readable or value).strip("-.")[:_READABLE]
    return f"{name}-{hashlib.sha256(value.encode(errors='surrogateescape')).hexdigest()[:6]}"


def _engine(job: Job) -> str:
    return next((name for name in ("ray", "batch") if getattr(job, name) is not None), "local")


def _model(model: Model, options: RunOptions) -> Model:
    name = options.model or model.name
    if options.endpoint is not None and options.endpoint != model.endpoint:
        # Key and headers, which may hold secrets too, go only where the file names them for; a model file means
        # something to `local` alone.
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
