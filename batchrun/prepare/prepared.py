"""A job that can be asked, previewed or exported: endpoint, rows, prompt, answer and output, all checked."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from batchrun.api import ASKED_AGAIN, Caching, Endpoint, Listed, caching_of, decision_form
from batchrun.checkpoint import OpenRule
from batchrun.errors import InputError, JobFileError
from batchrun.job import TOKEN_BOUNDS, Detail, Job, Loaded
from batchrun.prepare.columns import answer_types, kept_columns, new_columns
from batchrun.prepare.invocation import Invocation
from batchrun.prepare.mistakes import Mistakes
from batchrun.prompt import AnswerForm, Beginning, Renderer, constant_beginning
from batchrun.table import FileStamp, Rows, stamp

DEFAULT_MAX_TOKENS = 2048
"""Sent where params say nothing: without a bound no worst case is known, and OpenRouter holds more credit."""

COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How a local model writes JSON: with the spaces that models have seen most, and no other white space."""
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
        return kept | dict(new_columns(self.job, self.form))

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
        wanted = [("image", path) for path, part in self.job.prompt.parts if part.image is not None]
        if self.job.prompt.pdf_engine == "native":
            wanted += [("file", path) for path, part in self.job.prompt.parts if part.file is not None]
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
            return stamp(self.rows.paths) != self.rows.files
        except InputError:
            return True


@contextmanager
def prepare_job(
    invocation: Invocation,
    known: Mapping[tuple[FileStamp, ...], str] | None = None,
    *,
    job: Job | None = None,
    sends: bool = True,
) -> Iterator[Prepared]:
    """Open the input and check everything against it; `job` is one that reads something else in its place.

    `sends`: whether something may be sent, which needs the key; looking at answers goes without.
    `known` is what plan.known_files returns: files that need not be read for their layout again.

    Raises JobFileError with all mistakes, those of the file as well; InputError for a lone problem in an input file,
    UserError for a wrong flag or, alone, for a missing key.
    """
    loaded, environment, job = invocation.loaded, invocation.environment, job or invocation.job
    mistakes = Mistakes(loaded, job)
    mistakes.check_flags()
    mistakes.check_pdf_reader()
    endpoint = mistakes.resolved(environment, sends=sends)
    if endpoint is not None and endpoint.name == "simulator":
        job = replace(job, model=replace(job.model, name=endpoint.model))
    with ExitStack() as stack:
        form = mistakes.compiled()
        rows = mistakes.opened(stack, known)
        mistakes.check_prompt(None if rows is None else rows.columns, form)
        if rows is not None:
            mistakes.check_output(rows, form)
        if endpoint is None or rows is None or form is None or mistakes.any:
            raise mistakes.error()
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
            kept_columns(job, rows.columns),
            answer_types(job, form),
            max_tokens(job, endpoint),
            environment.get("BATCHRUN_HTTP"),
            _cache_dir(job, environment.get("XDG_CACHE_HOME")),
            beginning,
            caching,
            loaded,
        )


def _cache_dir(job: Job, folder: str | None) -> Path:
    """Return where lists of prices are kept: below `folder`, else in the user's home."""
    try:
        return Path(folder or Path.home() / ".cache") / "batchrun"
    except RuntimeError:  # in a container a user may have no home
        return job.checkpoint_path.parent


def max_tokens(job: Job, endpoint: Endpoint) -> int | None:
    """Return the bound on tokens that is sent: the job's, else a default where the API is known to take it.

    A decision model writes nothing: 0, and nothing is sent. `max_tokens: null` is sent as it is and bounds nothing.
    """
    if endpoint.decisions:
        return 0
    params = job.model.params
    written = [params[name] for name in TOKEN_BOUNDS if name in params]
    if written:
        return max((bound for bound in written if bound is not None), default=None)  # no server says which one counts
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
    if not set(TOKEN_BOUNDS) & job.model.params.keys() and (bound := max_tokens(job, endpoint)) is not None:
        extras["max_tokens"] = bound
    if endpoint.openrouter:
        # Otherwise OpenRouter silently drops the middle of a prompt that is too long for a small context.
        extras["plugins"] = [{"id": "context-compression", "enabled": False}]
        if form.response_format is not None:
            extras["provider"] = {"require_parameters": True}
    if caching is not None:
        extras.update(caching.fields)
    return extras
