"""All that can be known before a request: endpoint, rows, prompt, answer, output; all mistakes are told at once."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from batchrun.api import Endpoint, resolve
from batchrun.errors import InputError, JobFileError, Mistake, UserError, did_you_mean
from batchrun.job import Environment, Job, Loaded, check
from batchrun.prompt import AnswerForm, ImageFiles, Renderer, template_mistakes
from batchrun.table.read import FileStamp, Rows, open_rows, stamp
from batchrun.table.write import DETAIL_TYPES, dtype_of

T = TypeVar("T")

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
    sender: str | None
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
def prepared(
    loaded: Loaded, job: Job, environment: Environment, known: Collection[FileStamp] = ()
) -> Iterator[Prepared]:
    """Open the input and check everything against it. `job` is the loaded one with the flags applied.

    `known` are files that need not be checked again.

    Raises JobFileError with all mistakes, those of the file as well; where there is just one and the file has no
    place for it, InputError, or UserError for a missing key.
    """
    found = _Found(loaded)
    found.check_flags(job)
    endpoint = found.tried("model", lambda: _endpoint(job, environment))
    if endpoint is not None and endpoint.name == "simulator":
        job = replace(job, model=replace(job.model, name=endpoint.model))
    with ExitStack() as stack:
        form = found.compiled(job)
        rows = found.tried("input", lambda: stack.enter_context(open_rows(job.input, job.folder, known)))
        if rows is not None:
            found.compare(job, rows.columns, form)
        if endpoint is None or rows is None or form is None or found.any:
            raise found.error()
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
            _kept(job, rows.columns),
            {name: dtype_of(schema) for name, schema in form.columns.items()},
            max_tokens(job, endpoint),
            environment.get("BATCHRUN_HTTP"),
            Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchrun",
        )


class _Found:
    """The mistakes found so far; parts of the job that the file's own mistakes touch are not looked at."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._mistakes: list[Mistake] = []
        self._problems: list[tuple[str, UserError]] = []

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._loaded.mistakes or self._mistakes or self._problems)

    def check_flags(self, job: Job) -> None:
        """Check the job as the flags made it; what the file says was checked when it was loaded."""
        if job != self._loaded.job:
            self._mistakes += [self._loaded.mistake(path, message) for path, message in check(job)]
        if self._mistakes:
            raise self.error()

    def tried(self, part: str, make: Callable[[], T]) -> T | None:
        """Make something of a sound part of the job; what goes wrong is kept."""
        if not self._loaded.is_right(part):
            return None
        try:
            return make()
        except UserError as problem:
            self._problems.append((part, problem))
            return None

    def compiled(self, job: Job) -> AnswerForm | None:
        """Compile the answer's form."""
        if not self._loaded.is_right("answer"):
            return None
        compiled = AnswerForm.compile(job.answer)
        if isinstance(compiled, AnswerForm):
            return compiled
        self._mistakes += [self._loaded.mistake(path, message) for path, message in compiled]
        return None

    def compare(self, job: Job, columns: tuple[str, ...], form: AnswerForm | None) -> None:
        """Hold prompt and output to the input's columns."""
        if self._loaded.is_right("prompt"):
            self._mistakes += _template_mistakes(self._loaded, job, columns)
        if self._loaded.is_right("output", "keep"):
            self._mistakes += _keep_mistakes(self._loaded, job, columns)
        if self._loaded.is_right("output"):
            self._mistakes += _clashes(self._loaded, job, columns, form)

    def error(self) -> UserError:
        """Give what is to be raised: a lone problem as it is, else all mistakes together."""
        mistakes = [*self._loaded.mistakes, *self._mistakes]
        if len(self._problems) == 1 and not mistakes:
            return self._problems[0][1]
        mistakes += [self._loaded.mistake((part,), str(problem)) for part, problem in self._problems]
        return JobFileError(self._loaded.shown, tuple(mistakes))


def _endpoint(job: Job, environment: Environment) -> Endpoint:
    return resolve(job, environment, f"the environment, {job.folder / '.env'} and .env in the working directory")


def max_tokens(job: Job, endpoint: Endpoint) -> int | None:
    """Give the bound on tokens that is sent: the job's, else a default where the API is known to take it."""
    for name in ("max_completion_tokens", "max_tokens"):
        if isinstance(value := job.model.params.get(name), int):
            return value
    return None if endpoint.name == "url" and not endpoint.openrouter else DEFAULT_MAX_TOKENS


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


def _kept(job: Job, columns: tuple[str, ...]) -> tuple[str, ...]:
    keep = job.output.keep
    if keep == "all":
        return columns
    return () if keep == "none" else tuple(keep)


def _template_mistakes(loaded: Loaded, job: Job, columns: tuple[str, ...]) -> list[Mistake]:
    return [loaded.mistake(path, message, line) for path, line, message in template_mistakes(job, columns)]


def _keep_mistakes(loaded: Loaded, job: Job, columns: tuple[str, ...]) -> list[Mistake]:
    return [
        loaded.mistake(("output", "keep", number), f'the input has no column "{name}"{did_you_mean(name, columns)}')
        for number, name in enumerate(_kept(job, columns))
        if name not in columns
    ]


def _clashes(loaded: Loaded, job: Job, columns: tuple[str, ...], form: AnswerForm | None) -> list[Mistake]:
    prefix = job.output.prefix
    answers = [prefix + name for name in (form.columns if form else ())]
    details = [prefix + name for name in job.output.details]
    seen = set(_kept(job, columns))
    mistakes = []
    for name in answers + details:
        if name in seen:
            advice = "set output.prefix, or leave it out of output.keep or output.details"
            mistakes.append(loaded.mistake(("output",), f'two output columns are called "{name}"; {advice}'))
        seen.add(name)
    return mistakes
