"""All that can be known before a request: endpoint, rows, prompt, answer, output; all mistakes are told at once."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from batchrun.answers import AnswerForm
from batchrun.endpoints import Endpoint, resolve
from batchrun.environment import Environment
from batchrun.errors import InputError, JobFileError, Mistake
from batchrun.images import ImageFiles
from batchrun.job import Job
from batchrun.jobfile import Loaded, check, suggestion
from batchrun.render import Renderer, template_mistakes
from batchrun.results import DETAIL_TYPES, dtype_of
from batchrun.rows import Rows, open_rows, stamp

DEFAULT_MAX_TOKENS = 2048
"""Sent where params say nothing: without a bound no worst case is known, and OpenRouter holds more credit."""


INPUT_CHANGED = "the input changed during the run; run again to ask what is new"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that can be asked, previewed or exported."""

    job: Job
    endpoint: Endpoint
    rows: Rows
    form: AnswerForm
    renderer: Renderer
    kept: tuple[str, ...]
    answers: Mapping[str, pl.DataType]
    max_tokens: int | None
    sender: str
    cache_dir: Path

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """The output's columns in order: kept ones, the answer's, the details."""
        prefix = self.job.output.prefix
        kept = {name: self.rows.schema[name] for name in self.kept}
        answers = {prefix + name: dtype for name, dtype in self.answers.items()}
        details = {prefix + name: DETAIL_TYPES[name] for name in self.job.output.details}
        return kept | answers | details

    def input_changed(self) -> bool:
        """Tell whether the input's files are other ones than those that were opened."""
        try:
            return stamp([Path(file.path) for file in self.rows.files]) != self.rows.files
        except InputError:
            return True


@contextmanager
def prepared(loaded: Loaded, job: Job, environment: Environment) -> Iterator[Prepared]:
    """Open the input and check everything against it. `job` is the loaded one with the flags applied.

    Raises JobFileError with all mistakes, InputError, or UserError for a missing key.
    """
    if flagged := [loaded.mistake(path, message) for path, message in check(job)]:
        raise JobFileError(loaded.shown, tuple(flagged))
    looked = f"the environment, {job.folder / '.env'} and .env in the working directory"
    endpoint = resolve(job, environment, looked)
    if endpoint.name == "simulator":
        job = replace(job, model=replace(job.model, name=endpoint.model))
    with open_rows(job.input, job.folder) as rows:
        form, mistakes = _form(loaded, job)
        kept = _kept(job, rows.columns)
        mistakes += _template_mistakes(loaded, job, rows.columns)
        mistakes += _output_mistakes(loaded, job, rows.columns, form)
        if mistakes or form is None:
            raise JobFileError(loaded.shown, tuple(mistakes))
        yield Prepared(
            job,
            endpoint,
            rows,
            form,
            Renderer(
                job,
                rows.columns,
                namespace=endpoint.namespace,
                response_format=form.response_format,
                instructions=form.instructions,
                body_extras=body_extras(job, endpoint, form),
                images=ImageFiles(job.folder),
            ),
            kept,
            {name: dtype_of(schema) for name, schema in form.columns.items()},
            max_tokens(job, endpoint),
            environment.get("BATCHRUN_HTTP", "reqwest"),
            Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchrun",
        )


def max_tokens(job: Job, endpoint: Endpoint) -> int | None:
    """Give the bound on tokens that is sent: the job's, else a default where the API is known to take it."""
    for name in ("max_completion_tokens", "max_tokens"):
        if isinstance(value := job.model.params.get(name), int):
            return value
    return None if endpoint.name == "url" else DEFAULT_MAX_TOKENS


def body_extras(job: Job, endpoint: Endpoint, form: AnswerForm) -> dict[str, Any]:
    """Give what is sent beside the question though the job does not say it; no key depends on it."""
    extras: dict[str, Any] = {}
    if "max_completion_tokens" not in job.model.params and (bound := max_tokens(job, endpoint)) is not None:
        extras["max_tokens"] = bound
    if endpoint.openrouter:
        # Otherwise OpenRouter silently drops the middle of a prompt that is too long for a small context.
        extras["plugins"] = [{"id": "context-compression", "enabled": False}]
        if form.response_format is not None:
            extras["provider"] = {"require_parameters": True}
    return extras


def _form(loaded: Loaded, job: Job) -> tuple[AnswerForm | None, list[Mistake]]:
    compiled = AnswerForm.compile(job.answer)
    if isinstance(compiled, AnswerForm):
        return compiled, []
    return None, [loaded.mistake(path, message) for path, message in compiled]


def _kept(job: Job, columns: tuple[str, ...]) -> tuple[str, ...]:
    keep = job.output.keep
    if keep == "all":
        return columns
    return () if keep == "none" else tuple(keep)


def _template_mistakes(loaded: Loaded, job: Job, columns: tuple[str, ...]) -> list[Mistake]:
    return [loaded.mistake(path, message, line) for path, line, message in template_mistakes(job, columns)]


def _output_mistakes(loaded: Loaded, job: Job, columns: tuple[str, ...], form: AnswerForm | None) -> list[Mistake]:
    kept = _kept(job, columns)
    mistakes = [
        loaded.mistake(("output", "keep"), f'the input has no column "{name}"{suggestion(name, columns)}')
        for name in kept
        if name not in columns
    ]
    prefix = job.output.prefix
    answers = [prefix + name for name in (form.columns if form else ())]
    details = [prefix + name for name in job.output.details]
    seen = set(kept)
    for name in answers + details:
        if name in seen:
            advice = "set output.prefix, or leave it out of output.keep or output.details"
            mistakes.append(loaded.mistake(("output",), f'two output columns are called "{name}"; {advice}'))
        seen.add(name)
    return mistakes
