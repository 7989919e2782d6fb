"""What the types of a job can't express: which values go together, and what a text must look like."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from batchrun.errors import UserError, did_you_mean
from batchrun.job.globs import matches
from batchrun.job.spec import (
    OUTPUT_SUFFIXES,
    TOKEN_BOUNDS,
    CostCap,
    CsvOptions,
    EngineOptions,
    Input,
    Job,
    JobPath,
    Limits,
    Message,
    Model,
    Output,
    OutputCsv,
    Part,
    Prompt,
    dotted,
)
from batchrun.job.tree import SHOWN, VARIABLE_NAME
from batchrun.net import ENDPOINTS, header_problem, parse_endpoint
from batchrun.terminal import short

Found = Iterator[tuple[JobPath, str]]

RESERVED = {
    "messages": "write the conversation below prompt",
    "model": "write it as model.name",
    "models": "write them as model.fallbacks",
    "response_format": "describe the answer below answer",
    "stream": "leave it out, answers are read whole",
    "n": "leave it out, a question gets one answer; for more repeat the row with dedupe: false",
}
"""Parameters of the API that batchrun sets by itself, with what to write instead."""

PARAMS: dict[str, type] = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "seed", "top_k", "top_logprobs"), int),
    **dict.fromkeys(("temperature", "top_p", "min_p", "top_a"), float),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "repetition_penalty"), float),
    **dict.fromkeys(("logprobs", "parallel_tool_calls"), bool),
    **dict.fromkeys(("provider", "reasoning", "logit_bias", "cache_control"), dict),
}
"""Parameters whose type every server agrees on; `max_tokens: "fifty"` would be refused for each row."""

_PARAM_WORDS = {int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}

# OpenRouter takes three models in all: "'models' array must have 3 items or fewer".
_MAX_FALLBACKS = 2
_OWN_HEADERS = {
    **dict.fromkeys(("connection", "content-type", "content-length", "content-encoding"), "batchrun sets it"),
    **dict.fromkeys(("accept-encoding", "transfer-encoding"), "batchrun sets it"),
    "host": "model.endpoint sets it",
    # The same as model.cache, by which cost and preview know of it.
    "x-openrouter-cache": "write model.cache",
}
_NOT_CSV = (".parquet", ".arrow", ".ipc", ".feather", ".xlsx", ".jsonl", ".ndjson", ".json")
_FAILURES = re.compile(r"\d{1,12}|(?:100|\d{1,2}(?:\.\d{1,6})?)%", re.ASCII)
_HOST_PORT = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}", re.ASCII)
_LONGEST_PATH = 4_096  # PATH_MAX of Linux
_LONGEST_NAME = 230  # bytes; with the parts that are added it stays below NAME_MAX of Linux, 255


def _quoted(text: str) -> str:
    return f'"{short(text, SHOWN)}"'


def check(job: Job) -> Found:
    """Yield each mistake of a whole job with its path; also for a job to which flags were applied."""
    yield from _input(job.input)
    yield from _prompt(job.prompt)
    yield from _pdfs(job)
    yield from _model(job.model)
    yield from _headers(job.model)
    yield from _answer(job)
    yield from _decision(job)
    yield from _limits(job.limits)
    yield from _output(job.output)
    # A path that can't be resolved would fail in each of the comparisons of paths.
    unusable = list(_unusable(job))
    yield from unusable or _paths(job)
    yield from _engine(job)
    yield from _batch(job)
    if job.model.cache and not job.dedupe:
        yield (
            ("model", "cache"),
            "model.cache would give equal rows one answer, against dedupe: false: remove one of them",
        )


def unused(job: Job) -> Found:
    """Yield options for CSV files of a job that has none; only as written, since a flag may name another file."""
    paths = [pattern.lower().removesuffix(".gz").removesuffix(".zst") for pattern in job.input.patterns]
    if job.input.csv != CsvOptions() and all(path.endswith(_NOT_CSV) for path in paths):
        suffix = PurePath(paths[0]).suffix
        yield ("input", "csv"), f"input.csv is for CSV files, and the input is {suffix}: remove it"
    suffix = PurePath(job.output.path).suffix
    if job.output.csv != OutputCsv() and job.output.path.endswith(OUTPUT_SUFFIXES) and suffix not in {".csv", ".tsv"}:
        yield ("output", "csv"), f"output.csv is for CSV files, and the output is {suffix}: remove it"


def _input(section: Input) -> Found:
    for name in ("separator", "quote"):
        value = getattr(section.csv, name)
        if value is not None and (len(value.encode()) != 1 or value in "\r\n"):
            yield ("input", "csv", name), f"input.csv.{name} must be one character of one byte"
    if section.csv.comment is not None and ("\n" in section.csv.comment or "\r" in section.csv.comment):
        yield ("input", "csv", "comment"), "input.csv.comment must be in one line"
    # csv.reader takes it and reads no cell as it is meant.
    if section.csv.separator is not None and section.csv.separator == section.csv.quote:
        yield ("input", "csv", "separator"), "input.csv.separator and input.csv.quote must differ"
    try:
        # codecs.lookup would take codecs such as hex and rot13, which do not encode text.
        "a".encode(section.csv.encoding)
    except (LookupError, ValueError):
        yield (
            ("input", "csv", "encoding"),
            f"input.csv.encoding {_quoted(section.csv.encoding)} is not a known encoding",
        )


def _prompt(prompt: Prompt) -> Found:
    if prompt.messages is None:
        if prompt.user is None and prompt.state is None:
            yield ("prompt",), "prompt needs user, state or messages"
        if prompt.user is not None and prompt.state is not None:
            yield ("prompt", "state"), "prompt has user as well as state: write one of them"
        yield from _state(prompt)
        return
    for name in ("system", "user", "state"):
        if getattr(prompt, name) is not None:
            yield ("prompt", name), f"prompt has messages as well as {name}: write one of them"
    for number, message in enumerate(prompt.messages):
        yield from _parts(message, ("prompt", "messages", number, "content"))


def _state(prompt: Prompt) -> Found:
    for name, field in (prompt.state or {}).items():
        if isinstance(field, Part) and [kind for kind, _ in field.templates] != ["image"]:
            yield ("prompt", "state", name), "a field of state is a text or {image: …}"


def _parts(message: Message, path: JobPath) -> Found:
    if isinstance(message.content, str):
        return
    for number, part in enumerate(message.content):
        if len(part.templates) != 1 or (part.is_extracted and part.text != "extracted"):
            yield (*path, number), f"a part is one of {_PARTS}"
        elif part.text is None and message.role in {"system", "developer"}:
            yield (*path, number), f"a {message.role} message holds only text: move this part to a user message"
        elif part.engine is not None and (part.file is None or part.is_extracted):
            yield (*path, number, "engine"), "engine is for a file that is sent as it is: remove it"


_PARTS = "{text: …}, {image: …}, {file: …} and {file: …, text: extracted}"


def _pdfs(job: Job) -> Found:
    """Yield what does not go together with PDFs that are sent as files."""
    engine = job.prompt.pdf_engine
    for path, part in job.prompt.parts:
        if part.file is None or part.is_extracted:
            continue
        if part.engine is not None and not _is_routed(job.model):
            yield (*path, "engine"), "engine works only with openrouter and simulator: remove it"
        elif part.engine not in {None, engine}:
            yield (*path, "engine"), f"one engine reads all PDFs of a job, and another part has {engine}"
        if job.batch is not None:
            yield (*path, "file"), "a batch takes no files: add text: extracted, or send live"
    match job.model.params.get("plugins"):
        case list(plugins) if engine and any(isinstance(one, dict) and one.get("id") == _PARSER for one in plugins):
            yield ("model", "params", "plugins"), f"replace the plugin {_PARSER} by engine, next to file in the prompt"


_PARSER = "file-parser"


def _model(model: Model) -> Found:
    yield from _endpoint(model)
    if model.name is None and model.endpoint not in {"local", "simulator"}:
        yield ("model", "name"), f"model.name is missing: which model should {model.endpoint} ask?"
    routed = _is_routed(model)
    if model.fallbacks and not routed:
        yield ("model", "fallbacks"), "model.fallbacks works only with openrouter and simulator"
    if len(model.fallbacks) > _MAX_FALLBACKS:
        yield ("model", "fallbacks"), f"model.fallbacks has {len(model.fallbacks)} models: at most two are allowed"
    yield from _repeated(("model", "fallbacks"), (*model.fallbacks, model.name or ""))
    if model.cache and not routed:
        yield ("model", "cache"), "model.cache works only with openrouter and simulator"
    if not model.prompt_cache and "cache_control" in model.params:
        text = "model.prompt_cache is off, against model.params.cache_control: remove one of them"
        yield ("model", "prompt_cache"), text
    if model.api_key_env is not None and not VARIABLE_NAME.fullmatch(model.api_key_env):
        yield ("model", "api_key_env"), "model.api_key_env must be the name of a variable, never the key itself"
    yield from _params(model.params)


def _params(params: Mapping[str, Any]) -> Found:
    for name, value in params.items():
        path = ("model", "params", name)
        if name in RESERVED:
            yield path, f"model.params may not contain {name}: {RESERVED[name]}"
        elif name in PARAMS and value is not None and not _fits(value, PARAMS[name]):
            written = short(json.dumps(value, ensure_ascii=False), SHOWN)
            yield path, f"model.params.{name} must be {_PARAM_WORDS[PARAMS[name]]}, not {written}"
        elif name in TOKEN_BOUNDS and value is not None and value < 1:
            # llama.cpp and Ollama take -1 for "no bound": a cap would reckon with less than nothing.
            yield path, f"model.params.{name} must be at least 1, not {value}; null sends no bound"


def _is_routed(model: Model) -> bool:
    # A regional address of OpenRouter, or `batchrun simulate`: both have its path.
    return model.endpoint in {"openrouter", "simulator"} or "/api/v1" in model.endpoint


def _fits(value: Any, kind: type) -> bool:  # noqa: ANN401  (any JSON)
    """Check whether a parameter has its type; a whole number will do for a number, true and false for neither."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) or (kind is float and isinstance(value, int))


def _endpoint(model: Model) -> Found:
    if model.endpoint not in ENDPOINTS:
        try:
            parse_endpoint(model.endpoint, allow_plain_http=model.allow_plain_http)
        except UserError as problem:
            yield ("model", "endpoint"), str(problem)


def _headers(model: Model) -> Found:
    seen: set[str] = set()
    for name, value in model.headers.items():
        path, lower = ("model", "headers", name), name.lower()
        if problem := header_problem(name, value):
            yield path, problem
        elif lower in seen:
            yield path, f"the header {_quoted(name)} is given twice (upper and lower case are the same)"
        elif lower in _OWN_HEADERS:
            yield path, f"model.headers may not contain {name}: {_OWN_HEADERS[lower]}"
        elif lower == "authorization" and model.key_variable is not None:
            yield path, "the key would be sent twice: remove this header (model.api_key_env makes one)"
        seen.add(lower)


def _answer(job: Job) -> Found:
    if job.answer is None:
        return
    if job.answer.columns is None and job.answer.schema is None:
        yield ("answer",), "answer needs columns or schema; leave answer out for an answer in text"
    if job.answer.columns is not None and job.answer.schema is not None:
        yield ("answer",), "answer has columns as well as schema: write one of them"
    for name in ("columns", "schema"):
        if getattr(job.answer, name) == {}:
            yield ("answer", name), f"answer.{name} must not be empty"


def _decision(job: Job) -> Found:
    """Yield what only a chat model can use; the columns are checked where they become questions."""
    if job.answer is None or job.answer.mode != "decision":
        return
    if job.answer.schema is not None:
        yield ("answer", "schema"), "a decision model has no schema: write answer.columns"
    if job.answer.repairs > 1:
        yield ("answer", "repairs"), "a decision model's answers need no repairs: remove answer.repairs"
    if job.prompt.messages is not None:
        yield ("prompt", "messages"), "a decision model holds no conversation: write prompt.user or prompt.state"
    if job.model.fallbacks:
        yield ("model", "fallbacks"), "a decision model has no fallbacks: remove model.fallbacks"
    yield from _images_to_judge(job)
    # No server says how temperature or max_tokens would change a decision.
    for name in job.model.params.keys() - _DECISION_PARAMS:
        known = ", ".join(sorted(_DECISION_PARAMS))
        yield ("model", "params", name), f"a decision model takes no {name}; known params are {known}"


def _images_to_judge(job: Job) -> Found:
    """Yield images that a decision server would not see: most have forms of their own, or read them as JSON."""
    endpoint = job.model.endpoint
    if _is_routed(job.model) or endpoint.rstrip("/").endswith("/decisions"):
        return
    for path, part in job.prompt.parts:
        if part.image is not None:
            yield (*path, "image"), "images can't be sent to this endpoint: take openrouter, or OpenAI's /decisions"


_DECISION_PARAMS = {"provider", "user", "session_id"}


def _limits(limits: Limits) -> Found:
    if isinstance(limits.max_cost_usd, CostCap) and limits.max_cost_usd == CostCap():
        yield ("limits", "max_cost_usd"), "limits.max_cost_usd needs run or day"
    if limits.max_failed is not None and not _FAILURES.fullmatch(str(limits.max_failed)):
        yield ("limits", "max_failed"), "limits.max_failed must be a number of rows or a share such as 5%"
    for name in ("deadline", "patience"):
        try:
            getattr(limits, f"{name}_seconds")
        except ValueError:
            yield ("limits", name), f"limits.{name} must be a time with its unit, such as 90s, 2h or 1h30m"


_MOST_INLINE = 5_000
_NOT_IN_A_BATCH = {"audio", "image_config", "web_search_options"}
_BATCH_ROUTING = {"only", "allow_fallbacks", "require_parameters"}  # every answer is checked against its schema anyway


def _batch(job: Job) -> Found:
    """Refuse what no provider's batch takes."""
    if job.batch is None:
        return
    try:
        _ = job.batch.wait_seconds
    except ValueError:
        message = "engine.batch.wait must be 0 or a time with its unit, such as 90s, 2h or 1h30m"
        yield ("engine", "batch", "wait"), message
    if job.batch.size > _MOST_INLINE and _is_routed(job.model) and job.model.batch_api is None:
        message = f"OpenRouter takes at most {_MOST_INLINE:,} questions in a batch, not {job.batch.size:,}"
        yield ("engine", "batch", "size"), message
    if job.answer is not None and job.answer.mode == "decision":
        yield ("answer", "mode"), "no provider takes decisions in a batch: send live"
    if job.model.fallbacks:
        yield ("model", "fallbacks"), "a batch asks one model: remove model.fallbacks, or send live"
    if "plugins" in job.model.params:
        yield ("model", "params", "plugins"), "a batch runs no plugins: remove model.params.plugins, or send live"
    for name in sorted(_NOT_IN_A_BATCH & job.model.params.keys()):
        yield ("model", "params", name), f"a batch takes no {name}: remove model.params.{name}, or send live"
    routing = job.model.params.get("provider")
    # Left out in silence, `zdr: true` would send rows to providers that keep them.
    for name, value in routing.items() if isinstance(routing, dict) else ():
        if name not in _BATCH_ROUTING and value is not None:
            text = f"a batch can't obey provider.{name}, only `only` and `allow_fallbacks`: remove it, or send live"
            yield ("model", "params", "provider", name), text


def _engine(job: Job) -> Found:
    if isinstance(job.engine, EngineOptions) and (job.engine.ray is None) == (job.engine.batch is None):
        yield ("engine",), "engine must be local, ray or batch, or one of ray and batch with its options"
    if job.ray is None or job.ray.address in {"auto", "local"}:
        return
    path = ("engine", "ray", "address")
    if not _HOST_PORT.fullmatch(job.ray.address):
        near = did_you_mean(job.ray.address, ("auto", "local"))
        yield path, f"engine.ray.address must be auto, local or HOST:PORT, such as 10.0.0.5:6379{near}"
    elif job.model.endpoint in {"local", "simulator"}:
        yield path, f"the {job.model.endpoint} server is only reachable from this machine: write address: local"


def _output(output: Output) -> Found:
    if not output.path.endswith(OUTPUT_SUFFIXES):
        yield ("output", "path"), f"output.path must end in {', '.join(OUTPUT_SUFFIXES[:-1])} or {OUTPUT_SUFFIXES[-1]}"
    yield from _repeated(("output", "details"), output.details)
    if not isinstance(output.keep, str):
        yield from _repeated(("output", "keep"), output.keep)


def _repeated(path: JobPath, names: Sequence[str]) -> Found:
    seen: set[str] = set()
    for number, name in enumerate(names):
        if name in seen:
            yield (*path, number), f"{dotted(path)} names {_quoted(name)} twice"
        seen.add(name)


def _paths(job: Job) -> Found:
    """Refuse an output that is also an input: it would destroy rows, or be read as rows by the next run."""
    # It need not exist yet: after one run of `input: data/*.csv`, `output: data/labelled.csv` would be input as well.
    output = os.path.normpath(job.output_path)
    for pattern in job.input.patterns:
        if matches(output, os.path.normpath(job.resolve(pattern))):
            yield ("output", "path"), "output.path is one of the files of input.path: write it elsewhere"
            return


def _unusable(job: Job) -> Found:
    """Refuse paths that no file can have, before anything asks for them."""
    inputs: list[JobPath] = [("input", "path")]
    if not isinstance(job.input.path, str):
        inputs = [("input", "path", number) for number in range(len(job.input.path))]
    places = [*inputs, ("output", "path"), ("checkpoint",), ("model", "ca_file")]
    paths = [*job.input.patterns, job.output.path, job.checkpoint, job.model.ca_file]
    for place, path in zip(places, paths, strict=True):
        if path is None:
            continue
        try:
            job.resolve(path)
        except RuntimeError:
            yield place, f"{dotted(place)} begins with the home directory of an unknown user"
        if "\0" in path or len(path) > _LONGEST_PATH:
            yield place, f"{dotted(place)} is not a valid path: it contains a NUL character or is too long"
    # An output gets its whole name when it is written, after all answers are paid.
    for place, path in ((("output", "path"), job.output.path), (("checkpoint",), job.checkpoint or job.name)):
        if len(PurePath(path).name.encode(errors="surrogatepass")) > _LONGEST_NAME:
            yield place, f"{dotted(place)} has a file name of more than {_LONGEST_NAME} bytes: shorten it"
