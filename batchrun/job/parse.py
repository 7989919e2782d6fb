"""A job file's text -> Job, or all its mistakes at once, each with its place and the word that was probably meant."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml.nodes import ScalarNode

from batchrun.errors import JobFileError, Mistake, did_you_mean, nearest
from batchrun.job.checks import PARAMS, RESERVED, check, unused
from batchrun.job.spec import Job, JobPath, dotted
from batchrun.job.tree import FROM_FILE, SHOWN, Tree, read
from batchrun.terminal import short

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_MISTAKES = 100

_JOB = TypeAdapter(Job)
_STAND_IN = "?"
_MADE = {"file", "text"}
"""Fields of a job that only the loader may set."""
_MANY = 8
_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "decimal_type": "a number",
    "decimal_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "mapping_type": "a mapping",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
}
_IN_SECONDS: set[JobPath] = {("limits", "timeout"), ("limits", "grace")}
_EXAMPLES: dict[JobPath, str] = {
    ("answer",): "{columns: {label: [good, bad]}}",
    ("answer", "columns"): "{label: [good, bad], reason: string}",
    ("model",): "{endpoint: openrouter, name: openai/gpt-4o-mini}",
    ("limits",): "{max_cost_usd: 5}",
    ("prompt",): "{messages: [{role: user, content: …}]}",
}
"""Sections for which people write another form."""

_ELSEWHERE: dict[JobPath, dict[str, str]] = {
    ("input",): {
        **dict.fromkeys(("file", "files", "filename", "source", "data"), "write path"),
        **dict.fromkeys(("format", "type"), "the suffix of path decides"),
        **dict.fromkeys(("filter", "condition"), "write where"),
        **dict.fromkeys(("sep", "delimiter"), "write input.csv.separator"),
        **dict.fromkeys(("limit", "nrows"), "write --limit N on the command line"),
        **dict.fromkeys(("columns", "usecols"), "output.keep names the columns to carry along"),
    },
    ("prompt",): {
        **dict.fromkeys(("template", "text", "content", "user_prompt", "prompt"), "write user"),
        **dict.fromkeys(("system_prompt", "instruction", "instructions"), "write system"),
        "file": "write user: {file: …}",
        "role": "write messages: [{role: …, content: …}]",
    },
    ("model",): {
        **dict.fromkeys(("model", "model_name", "id"), "write name"),
        **dict.fromkeys(("api_base", "base_url", "url", "host"), "write endpoint"),
        **dict.fromkeys(("num_retries", "max_retries", "retries"), "write limits.attempts"),
        **dict.fromkeys(("request_timeout", "timeout"), "write limits.timeout"),
        **dict.fromkeys(("rpm", "requests_per_minute"), "write limits.requests_per_minute"),
        **dict.fromkeys(("tpm", "tokens_per_minute"), "write limits.tokens_per_minute"),
        **dict.fromkeys(("max_parallel_requests", "concurrency"), "write limits.concurrency"),
        "response_format": RESERVED["response_format"],
    },
    ("answer",): {"json_schema": "write schema, with what stands below json_schema.schema"},
    ("limits",): {
        **dict.fromkeys(("num_retries", "max_retries", "retries", "max_attempts"), "write attempts"),
        **dict.fromkeys(("request_timeout", "timeout_seconds"), "write timeout"),
        **dict.fromkeys(("rpm", "rate_limit"), "write requests_per_minute"),
        **dict.fromkeys(("workers", "max_workers", "parallel", "max_concurrency"), "write concurrency"),
        **dict.fromkeys(("max_cost", "budget", "cost_limit"), "write max_cost_usd"),
        "tpm": "write tokens_per_minute",
    },
    ("output",): {
        **dict.fromkeys(("file", "filename", "destination"), "write path"),
        **dict.fromkeys(("format", "type"), "the suffix of path decides"),
        "columns": "write keep",
    },
}
"""Keys of other tools by section, and what to write here."""

_BOUNDS = {
    "greater_than": "must be more than {gt:,g}",
    "greater_than_equal": "must be at least {ge:,g}",
    "less_than_equal": "must be at most {le:,g}",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A job, where its parts stand in the file, and the file as the user named it.

    Where there are `mistakes`, the job lacks the parts in `wrong`, so that the rest of it can be checked further.
    """

    job: Job
    shown: str
    mistakes: tuple[Mistake, ...]
    wrong: frozenset[JobPath]
    _tree: Tree

    def is_right(self, *path: str | int) -> bool:
        """Check whether a part of the job, such as ("output", "keep"), has no mistake."""
        return not _touches(path, self.wrong)

    def mistake(self, path: JobPath, message: str, line: int = 1) -> Mistake:
        """Return a mistake at a path of the job; `line` counts the lines of a text from 1, as Jinja does."""
        if path in self._tree.files:
            message = f"{self._tree.files[path]}, line {line}: {message}"
        return self._tree.mistake(path, message, line=line)

    def comment_after(self, path: JobPath) -> str | None:
        """Return the YAML comment right after a text: the rest of `Label # {{ text }}` was probably meant."""
        return self._tree.comment_after(path)


def load(
    text: str | Mapping[str, Any], file: Path, environment: Mapping[str, str], settings: Sequence[str] = ()
) -> Loaded:
    """Return the job of a file's text; `environment` has the values of `${VAR}`, `settings` are those of --set.

    Raises JobFileError with all mistakes (the first hundred).
    """
    loaded = examine(text, file, environment, settings)
    if loaded.mistakes:
        raise JobFileError(loaded.shown, loaded.mistakes)
    return loaded


def examine(
    text: str | Mapping[str, Any], file: Path, environment: Mapping[str, str], settings: Sequence[str] = ()
) -> Loaded:
    """Return the job as `load` does, but with its mistakes, so that the rest of it can be checked further.

    Raises JobFileError where the text is not a YAML mapping.
    """
    tree = read(text, file.parent, environment, settings)
    if tree.data is None:
        raise JobFileError(str(file), tuple(tree.mistakes))
    for name in _MADE & tree.data.keys():
        tree.mistakes.append(tree.mistake((name,), _unknown_key((name,)), tree.key_place((name,))))
        tree.wrong.add((name,))
    # Fields of the loader's own; `file:` in a job file is an unknown key.
    made = {"file": file.absolute(), "text": tree.source}
    try:
        job = _JOB.validate_python(tree.data | made)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        tree.mistakes += _worded(errors, tree)
        tree.wrong |= {_path_of(error, tree) for error in errors}
        job = _JOB.validate_python(_without_wrong(tree, errors) | made)
    found = [(path, message) for path, message in chain(check(job), unused(job)) if not _touches(path, tree.wrong)]
    tree.mistakes += [tree.mistake(path, message) for path, message in found]
    tree.wrong.update(path for path, _ in found)
    mistakes = tuple(sorted(set(tree.mistakes))[:MAX_MISTAKES])
    shown = "job" if tree.is_dict else str(file)
    return Loaded(job, shown, mistakes, frozenset(tree.wrong), tree)


def _touches(path: JobPath, wrong: Collection[JobPath]) -> bool:
    """Check whether a path is, contains or lies in one of the wrong ones."""
    return any(other[: len(path)] == path or path[: len(other)] == other for other in wrong)


# What a user may write


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the types of the fields that a user may write, in order."""
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind) if not item.metadata.get("set_by_loader")}


def _sections(hint: Any) -> list[type]:  # noqa: ANN401  (a type)
    """Return the dataclasses that a type allows: of `Usd | CostCap` CostCap, of a list those of its items."""
    if isinstance(hint, type) and is_dataclass(hint):
        return [hint]
    if get_origin(hint) in {Union, UnionType, tuple}:
        return [kind for part in get_args(hint) for kind in _sections(part)]
    return []


def _fields_at(path: JobPath) -> list[str]:
    """Return the keys that are known at a path of the job."""
    kinds: list[type] = [Job]
    for step in path:
        if isinstance(step, str):
            kinds = [inner for kind in kinds for inner in _sections(_hints(kind).get(step))]
    return [name for kind in kinds for name in _hints(kind)]


def _without_wrong(tree: Tree, errors: list["ErrorDetails"]) -> dict[str, Any]:
    """Return the data without the keys that are wrong, so that one mistake hides no other.

    Required texts that are missing then become "?"; nothing is reported about those.
    """
    data: dict[str, Any] = {}
    wrong = {_path_of(error, tree)[:2] for error in errors}
    for name, hint in _hints(Job).items():
        section = tree.data.get(name)
        kinds = _sections(hint)
        # Half of `engine: {ray: …}` would be another engine, so a wrong one is left out as a whole.
        if not kinds or name == "engine":
            if name in tree.data and not any(path[:1] == (name,) for path in wrong):
                data[name] = section
            continue
        if not isinstance(section, dict):
            if not is_dataclass(hint):
                continue
            section = {}
        data[name] = {key: value for key, value in section.items() if (name, key) not in wrong}
        for item in fields(kinds[0]):
            if item.default is MISSING and item.default_factory is MISSING:
                data[name].setdefault(item.name, _STAND_IN)
    return data


# Words for what pydantic finds


def _worded(errors: list["ErrorDetails"], tree: Tree) -> Iterator[Mistake]:
    """Yield one mistake for each path about which pydantic complains, if nothing is known about it yet."""
    by_path: dict[JobPath, list[ErrorDetails]] = {}
    for error in errors:
        by_path.setdefault(_path_of(error, tree), []).append(error)
    # `promt:` is an unknown key, and `prompt` is then not missing.
    meant = {
        (*path[:-1], nearest(str(path[-1]), _fields_at(path[:-1])))
        for path, found in by_path.items()
        if found[0]["type"] == "unexpected_keyword_argument"
    }
    inside = {path[:length] for path in by_path for length in range(len(path))}
    for path, found in by_path.items():
        missing = all(error["type"] == "missing" for error in found)
        # A union also complains about the forms that were not meant; the deeper complaint is about the one that was.
        if path in tree.wrong or path in inside or (missing and path in meant):
            continue
        place = None
        if found[0]["type"] == "unexpected_keyword_argument":
            place = tree.key_place(path)
        yield tree.mistake(path, _message(path, found, tree), place)


def _path_of(error: "ErrorDetails", tree: Tree) -> JobPath:
    """Return the path of pydantic's error in the file: without the names of a union's members."""
    if error["type"] == "missing":
        return (*_written_path(error["loc"][:-1], tree), error["loc"][-1])
    return _written_path(error["loc"], tree)


def _written_path(steps: JobPath, tree: Tree) -> JobPath:
    path: JobPath = ()
    for step in steps:
        if (*path, step) in tree.nodes:
            path = (*path, step)
    return path


def _message(path: JobPath, errors: list["ErrorDetails"], tree: Tree) -> str:
    name, node = dotted(path), tree.nodes.get(path)
    types = {error["type"] for error in errors}
    if "missing" in types:
        return f"{name} is missing"
    if "unexpected_keyword_argument" in types:
        return _unknown_key(path)
    written = ""
    if isinstance(node, ScalarNode):
        written = node.value
        if _value_at(tree.data, path) is None:
            return f"{name} is empty: give it a value or remove the key"
    for error in errors:
        if error["type"] in _BOUNDS:
            return f"{name} {_BOUNDS[error['type']].format(**error.get('ctx', {}))}"
    return _expected(path, errors, written)


def _expected(path: JobPath, errors: list["ErrorDetails"], written: str) -> str:
    """Return the message for a value of another type, or that is not one of those that are known."""
    name = dotted(path)
    words: list[str] = []
    for error in errors:
        words += _choices(error) or [_KINDS.get(error["type"], error["msg"].lower())]
    # `timeout: 2m`: deadline and patience have units.
    if path in _IN_SECONDS:
        words = ["a number of seconds"]
    advice = did_you_mean(written, words)
    if advice and len(words) > _MANY:
        return f'{name}: unknown value "{short(written, SHOWN)}"{advice}'
    if written and not advice:
        advice = f', not "{short(written, SHOWN)}"'
    if path in FROM_FILE:
        words += ["{file: …}"]
    if path in _EXAMPLES:
        advice = f", such as {_EXAMPLES[path]}{advice}"
    return f"{name} must be {_listed(list(dict.fromkeys(words)))}{advice}"


def _value_at(data: Any, path: JobPath) -> Any:  # noqa: ANN401  (any value of a job)
    for step in path:
        data = data[step]
    return data


def _unknown_key(path: JobPath) -> str:
    """Return the message for an unknown key: the near one, where it belongs, or all that are known here."""
    key, known = str(path[-1]), _fields_at(path[:-1])
    message = f'unknown key "{short(key, SHOWN)}"'
    all_known = f"known keys are {', '.join(known)}"
    advice = did_you_mean(key, known)
    if elsewhere := _ELSEWHERE.get(path[:-1], {}).get(key.lower()):
        return f"{message}: {elsewhere}"
    if path[:-1] == ("answer",):
        advice = f"{advice} The" if advice else f"; {all_known}; the"
        return f"{message}{advice} columns of the answer belong below answer.columns"
    if advice:
        return message + advice
    home = _home(path)
    if path[:-1] == ("model",):
        return f"{message}: {home}; {all_known}"
    return f"{message}: {home}" if home else f"{message}; {all_known}"


def _home(path: JobPath) -> str | None:
    """Return where a key belongs that is known elsewhere, in a job or in the API's body."""
    key = str(path[-1])
    if path[:-1] == ("model",) or (len(path) == 1 and key in PARAMS):
        return "parameters of the API belong below model.params"
    if len(path) == 1 and key in RESERVED.keys() - {"messages"}:
        return RESERVED[key]
    homes = [(section, name) for section in _hints(Job) for name in _fields_at((section,)) if name == key]
    if homes:
        return f"it belongs to {dotted(homes[0])}"
    return "it belongs to the top of the file" if key in _hints(Job) else None


def _choices(error: "ErrorDetails") -> list[str]:
    if error["type"] != "literal_error":
        return []
    return re.findall(r"'([^']*)'", error.get("ctx", {})["expected"])


def _listed(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
