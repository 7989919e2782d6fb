"""Everything that can be known before a request: endpoint, rows, prompt, answer, output, and all mistakes at once."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl

from batchrun.api import ASKED_AGAIN, Caching, Endpoint, Listed, caching_of, decision_form, resolve
from batchrun.checkpoint import OpenRule
from batchrun.errors import InputError, JobFileError, Mistake, UserError, did_you_mean
from batchrun.job import PAID_ENGINE, Detail, Environment, Job, JobPath, Loaded, check
from batchrun.prompt import (
    AnswerForm,
    Beginning,
    Renderer,
    constant_beginning,
    template_mistakes,
    templates_of,
    uses_columns,
)
from batchrun.table import DETAIL_TYPES, FileStamp, Rows, dtype_of, open_rows, sheet_problem, stamp, unwritable

DEFAULT_MAX_TOKENS = 2048
"""Sent where params say nothing: without a bound no worst case is known, and OpenRouter holds more credit."""


COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How a local model writes JSON: with the spaces that models have seen most, and no other white space."""
INSTALL_PYPDF = "pip install 'batchrun-llm[pdf]'"

NEEDS_REVIEW = "needs_review"
"""The column that output.review_below adds."""

INPUT_CHANGED = "the input changed during the run; run again to ask the new rows"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that can be asked, previewed or exported.

    `beginning` is what all its requests begin with, `caching` how the provider's prompt cache is used for it (None: not
    at all).
    """

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
    beginning: Beginning
    caching: Caching | None
    loaded: Loaded

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """The output's columns in order: kept ones, the answer's, the details."""
        kept = {name: self.rows.schema[name] for name in self.kept}
        return kept | dict(_new_columns(self.job, self.form))

    @property
    def details(self) -> tuple[Detail, ...]:
        """The details that the checkpoint has for each row; probabilities are part of its answer."""
        return tuple(name for name in self.job.output.details if name != "probabilities")

    @property
    def open_rule(self) -> OpenRule:
        """Which of the questions that failed are asked again."""
        return OpenRule(ASKED_AGAIN, self.max_tokens)

    def check_inputs(self, listed: Listed | None) -> None:
        """Check the prompt's images and PDFs against what the model takes, where its entry in the catalogue says so.

        Raises JobFileError. A PDF that an engine reads becomes text.
        """
        if listed is None or listed.inputs is None:
            return
        inputs = listed.inputs
        wanted = [("image", path) for path, part in self.job.prompt.placed_parts if part.image is not None]
        if self.job.prompt.pdf_engine == "native":
            wanted += [("file", path) for path, part in self.job.prompt.placed_parts if part.file is not None]
        mistakes = [
            self.loaded.mistake(
                (*path, kind), f"{self.endpoint.model} takes no {kind}s, only {', '.join(sorted(inputs))}"
            )
            for kind, path in wanted
            if kind not in inputs
        ]
        if mistakes:
            raise JobFileError(self.loaded.shown, tuple(mistakes))

    def input_changed(self) -> bool:
        """Check whether the input's files have changed since they were opened."""
        try:
            return stamp([Path(file.path) for file in self.rows.files]) != self.rows.files
        except InputError:
            return True


@contextmanager
def prepare_job(
    loaded: Loaded,
    job: Job,
    environment: Environment,
    known: Mapping[tuple[FileStamp, ...], str] | None = None,
    *,
    sends: bool = True,
) -> Iterator[Prepared]:
    """Open the input and check everything against it. `job` is the loaded one with the flags applied.

    `sends`: whether something may be sent, which needs the key; looking at answers goes without.
    `known` is what plan.known_files returns: files that need not be read for their layout again.

    Raises JobFileError with all mistakes, those of the file as well; InputError for a lone problem in an input file,
    UserError for a wrong flag or, alone, for a missing key.
    """
    found = _Found(loaded, job)
    found.check_flags()
    found.check_pdf_reader()
    endpoint = found.resolved(environment, sends=sends)
    if endpoint is not None and endpoint.name == "simulator":
        job = replace(job, model=replace(job.model, name=endpoint.model))
    with ExitStack() as stack:
        form = found.compiled()
        rows = found.opened(stack, known)
        if rows is None:
            found.compare(None, form)
        else:
            found.compare(rows.columns, form)
            found.check_output(rows)
        if endpoint is None or rows is None or form is None or found.any:
            raise found.error()
        beginning = constant_beginning(job, rows.columns, form.instructions)
        caching = _caching(job, endpoint, beginning)
        yield Prepared(
            job,
            endpoint,
            rows,
            form,
            Renderer(
                job,
                rows.columns,
                namespace=endpoint.namespace,
                answer_fields=answer_fields(endpoint, form),
                instructions=form.instructions,
                body_extras=body_extras(job, endpoint, form, caching),
                pdf_engine=job.prompt.pdf_engine if endpoint.openrouter else None,
                mark=caching.mark if caching else None,
                questions=form.questions,
                decision_form=decision_form(endpoint) if form.questions else None,
            ),
            _kept(job, rows.columns),
            _answer_types(job, form),
            max_tokens(job, endpoint),
            environment.get("BATCHRUN_HTTP"),
            Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchrun",
            beginning,
            caching,
            loaded,
        )


class _Found:
    """The mistakes found so far. Parts of the job that have a mistake already are not looked at."""

    def __init__(self, loaded: Loaded, job: Job) -> None:
        self._loaded = loaded
        self._job = job
        self._mistakes: list[Mistake] = []
        self._problems: list[tuple[JobPath, UserError]] = []

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._loaded.mistakes or self._mistakes or self._problems)

    def check_flags(self) -> None:
        """Check the job as the flags made it; what the file says was checked when it was loaded.

        Raises UserError for a flag that is wrong by itself, without a place in the file.
        """
        if self._job == self._loaded.job:
            return
        # Mistakes that the file has without the flags are reported with its own lines.
        new = [(path, text) for path, text in check(self._job) if (path, text) not in set(check(self._loaded.job))]
        for path, text in new:
            flag = _FLAGS.get(path)
            if flag is not None:
                raise UserError(text.replace(".".join(map(str, path)), flag))
            self._mistakes.append(self._loaded.mistake(path, f"with the flags of this command: {text}"))
        if self._mistakes:
            raise self.error()

    def resolved(self, environment: Environment, *, sends: bool) -> Endpoint | None:
        """Return the endpoint, with its key if something is sent."""
        if not self._loaded.is_right("model"):
            return None
        places = f"the environment, {self._job.folder / '.env'} and .env in the working directory"
        try:
            endpoint = resolve(self._job, environment, places, needs_key=sends)
        except UserError as problem:
            self._problems.append((("model",), problem))
            return None
        if self._job.batch is not None and not (endpoint.openrouter or self._job.model.batch_api):
            message = "a batch needs model.endpoint openrouter, or a URL with model.batch_api: openai"
            self._mistakes.append(self._loaded.mistake(("engine",), message))
        return endpoint

    def check_pdf_reader(self) -> None:
        """Check that the extra is installed that reads the text of PDFs, and counts pages that cost."""
        if find_spec("pypdf") is not None:
            return
        capped = self._job.limits.max_cost_usd is not None
        for path, part in self._job.prompt.placed_parts:
            if part.is_extracted:
                message = f"text: extracted needs pypdf: {INSTALL_PYPDF}"
                self._mistakes.append(self._loaded.mistake((*path, "text"), message))
            elif part.engine == PAID_ENGINE and capped:
                message = f"limits.max_cost_usd needs pypdf, which counts the pages for {part.engine}: {INSTALL_PYPDF}"
                self._mistakes.append(self._loaded.mistake((*path, "engine"), message))

    def compiled(self) -> AnswerForm | None:
        """Compile the answer's form."""
        if not self._loaded.is_right("answer"):
            return None
        compiled = AnswerForm.compile(self._job.answer)
        if isinstance(compiled, AnswerForm):
            return compiled
        self._mistakes += [self._loaded.mistake(path, message) for path, message in compiled]
        return None

    def opened(self, stack: ExitStack, known: Mapping[tuple[FileStamp, ...], str] | None) -> Rows | None:
        """Open the input. Where only `where` is wrong its columns are known still."""
        if not self._loaded.is_right("input", "path") or not self._loaded.is_right("input", "csv"):
            return None
        asked = self._job.input
        try:
            return stack.enter_context(open_rows(asked, self._job.folder, known))
        except InputError as problem:
            self._problems.append((_place_in_input(problem), problem))
            if asked.where is None or self._problems[-1][0] != _WHERE:
                return None
        return stack.enter_context(open_rows(replace(asked, where=None), self._job.folder, known))

    def check_output(self, rows: Rows) -> None:
        """Check that the output's format can hold the kept columns, which no one should find out after paying."""
        suffix = self._job.output_path.suffix.lower()
        columns = len(_kept(self._job, rows.columns)) + len(self._job.output.details)
        if problem := sheet_problem(columns, suffix):
            self._mistakes.append(self._loaded.mistake(("output", "path"), f"output.path: {problem}"))
        for name in _kept(self._job, rows.columns):
            if name in rows.schema and (problem := unwritable(rows.schema[name], suffix)):
                message = (
                    f'output.path: column "{name}" {problem}; leave it out of output.keep, or write another format'
                )
                self._mistakes.append(self._loaded.mistake(("output", "path"), message))

    def compare(self, columns: tuple[str, ...] | None, form: AnswerForm | None) -> None:
        """Check prompt and output against the input's columns, or the prompt alone where those are unknown."""
        loaded, job = self._loaded, self._job
        wrong = [
            loaded.mistake(path, message, line)
            for path, line, message in template_mistakes(job, columns)
            if loaded.is_right(*path)
        ]
        if not wrong and job.dedupe and loaded.is_right("prompt"):
            wrong = _without_columns(loaded, job, columns)
        if not wrong and loaded.is_right("prompt"):
            wrong = _without_beginning(loaded, job, columns, form)
        self._mistakes += wrong
        if columns is not None and loaded.is_right("output", "keep"):
            self._mistakes += _keep_mistakes(loaded, job, columns)
        if columns is not None and loaded.is_right("output"):
            self._mistakes += _clashes(loaded, job, columns, form)

    def error(self) -> UserError:
        """Return the error to raise: a lone problem without a place in the file as it is, else all mistakes."""
        mistakes = [*self._loaded.mistakes, *self._mistakes]
        if not mistakes and [path for path, _ in self._problems] in ([("input",)], [("model",)]):
            return self._problems[0][1]
        given = self._job.input.path != self._loaded.job.input.path
        for path, problem in self._problems:
            is_flag = given and path[:2] in {("input",), ("input", "path")}
            if is_flag:
                mistakes.append(Mistake(0, 0, str(problem).removeprefix("input.path: "), "--input"))
            else:
                mistakes.append(self._loaded.mistake(path, str(problem)))
        return JobFileError(self._loaded.shown, tuple(mistakes))


_FLAGS: dict[JobPath, str] = {
    ("model", "endpoint"): "--endpoint",
    ("model", "name"): "--model",
    ("model", "api_key_env"): "--api-key-env",
    ("input", "path"): "--input",
    ("output", "path"): "--output",
}
_WHERE: JobPath = ("input", "where")


def _place_in_input(problem: InputError) -> JobPath:
    """Return the part of the job that a problem begins with, as in `input.where: …`; else the whole input."""
    name = re.match(r"input(\.[a-z_]+)*", str(problem))
    return tuple(name[0].split(".")) if name else ("input",)


def _without_columns(loaded: Loaded, job: Job, columns: tuple[str, ...] | None) -> list[Mistake]:
    """Return the mistake that no template uses a column: each row would ask the same, and get one answer."""
    sources = templates_of(job)
    if not sources or uses_columns(job, columns):
        return []
    advice = "write {{ name }} for a cell of the column name"
    place = sources[-1][0]
    for path, source in sources:
        if (comment := loaded.comment_after(path)) is not None:
            place, advice = path, f"YAML reads {comment} as a comment; put the prompt in quotes"
        elif (written := braced_column(source, columns or ())) is not None:
            name = written.strip("${} ")
            place, advice = path, f"{written} is sent as it stands; for the cell write {{{{ {name} }}}}"
    message = f"the prompt uses no column, so all rows would get the same answer: {advice}"
    return [loaded.mistake(place, f"{message} (dedupe: false allows a prompt without columns)")]


def _without_beginning(
    loaded: Loaded, job: Job, columns: tuple[str, ...] | None, form: AnswerForm | None
) -> list[Mistake]:
    """Return the mistake of a cache_control where the prompt begins with a row: it would be written and never read."""
    instructions = None if form is None else form.instructions
    if "cache_control" not in job.model.params or constant_beginning(job, columns, instructions).last_text is not None:
        return []
    message = "model.params.cache_control: the prompt has no constant beginning to cache: write it as prompt.system"
    return [loaded.mistake(("model", "params", "cache_control"), message)]


def braced_column(source: str, columns: Collection[str]) -> str | None:
    """Return the first `{name}` or `${name}` of a column, which Jinja sends as it stands."""
    for match in re.finditer(r"(?<!\{)\$?\{ ?([^{}]+?) ?\}(?!\})", source):
        if match[1] in columns:
            return match[0]
    return None


def max_tokens(job: Job, endpoint: Endpoint) -> int | None:
    """Return the bound on tokens that is sent: the job's, else a default where the API is known to take it.

    A decision model writes nothing: 0, and nothing is sent.
    """
    if endpoint.decisions:
        return 0
    for name in ("max_completion_tokens", "max_tokens"):
        if isinstance(value := job.model.params.get(name), int):
            return value
    return None if endpoint.name == "url" and not endpoint.openrouter else DEFAULT_MAX_TOKENS


def answer_fields(endpoint: Endpoint, form: AnswerForm) -> dict[str, Any]:
    """Return what a request says about its answer.

    llama.cpp's own JSON has as much white space as the model likes, up to a third of the tokens of a short answer: with
    a grammar of llguidance, which this build has, there is none to choose.
    Source: https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md (x-guidance).
    """
    if form.response_format is None:
        return {}
    if endpoint.name == "local" and form.schema is not None and form.response_format["type"] == "json_schema":
        schema = {**form.schema, "x-guidance": COMPACT}
        return {"grammar": f"%llguidance {{}}\nstart: %json {json.dumps(schema)}"}
    return {"response_format": form.response_format}


def _caching(job: Job, endpoint: Endpoint, beginning: Beginning) -> Caching | None:
    if endpoint.decisions:
        return None
    # One name for one beginning: the same on each day, for each file of rows, and new where the prompt is.
    name = f"batchrun-{beginning.digest}"
    return caching_of(job, endpoint, beginning.characters, beginning.loose, name)


def body_extras(job: Job, endpoint: Endpoint, form: AnswerForm, caching: Caching | None) -> dict[str, Any]:
    """Return the fields that are sent though the job does not name them; no key depends on them."""
    extras: dict[str, Any] = {}
    if endpoint.decisions:
        return extras
    if "max_completion_tokens" not in job.model.params and (bound := max_tokens(job, endpoint)) is not None:
        extras["max_tokens"] = bound
    if endpoint.openrouter:
        # Otherwise OpenRouter silently drops the middle of a prompt that is too long for a small context.
        extras["plugins"] = [{"id": "context-compression", "enabled": False}]
        if form.response_format is not None:
            extras["provider"] = {"require_parameters": True}
    if caching is not None:
        extras.update(caching.fields)
    return extras


def _kept(job: Job, columns: tuple[str, ...]) -> tuple[str, ...]:
    match job.output.keep:
        case "all":
            return columns
        case "none":
            return ()
        case names:
            return tuple(names)


def _answer_types(job: Job, form: AnswerForm) -> dict[str, pl.DataType]:
    """Return the types of the columns that an answer fills; a decision model's have probabilities as well."""
    types: dict[str, pl.DataType] = {}
    labels = {one.name: [label for label, _ in one.options] or ["true", "false"] for one in form.questions}
    for name, schema in form.columns.items():
        types[name] = dtype_of(schema)
        if name in labels:
            types[f"{name}_prob"] = pl.Float64()
        if name in labels and "probabilities" in job.output.details:
            types[f"{name}_probs"] = pl.Struct(dict.fromkeys(labels[name], pl.Float64()))
    return types


def _new_columns(job: Job, form: AnswerForm | None) -> Iterator[tuple[str, pl.DataType]]:
    """Yield the output's new columns in order: the answer's, needs_review, the details."""
    prefix = job.output.prefix
    if form is not None:
        yield from ((prefix + name, dtype) for name, dtype in _answer_types(job, form).items())
    if job.output.review_below is not None:
        yield prefix + NEEDS_REVIEW, pl.Boolean()
    yield from ((prefix + name, DETAIL_TYPES[name]) for name in job.output.details if name in DETAIL_TYPES)


def _keep_mistakes(loaded: Loaded, job: Job, columns: tuple[str, ...]) -> list[Mistake]:
    return [
        loaded.mistake(("output", "keep", number), f'the input has no column "{name}"{did_you_mean(name, columns)}')
        for number, name in enumerate(_kept(job, columns))
        if name not in columns
    ]


def _clashes(loaded: Loaded, job: Job, columns: tuple[str, ...], form: AnswerForm | None) -> list[Mistake]:
    seen = set(_kept(job, columns))
    mistakes = []
    for name, _ in _new_columns(job, form):
        if name in seen:
            advice = "set output.prefix, or leave it out of output.keep or output.details"
            mistakes.append(loaded.mistake(("output",), f'two output columns are called "{name}"; {advice}'))
        seen.add(name)
    return mistakes
