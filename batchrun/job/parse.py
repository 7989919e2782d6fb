"""A job file's text -> Job, or all its mistakes at once, each with its position and what was probably meant.

yamltext.py   text -> tree of scalars as written; aliases, tags, duplicate keys, depth and size are refused
typed.py      tree -> plain data by the types of job.py; unknown keys, ${VAR}
wording.py    pydantic's errors in our words; suggestions
checks.py     what goes together
positions.py  where a path of the job stands in the file
published.py  the JSON Schema of all this, for editors
"""

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from batchrun.errors import JobFileError, Mistake
from batchrun.job.checks import check
from batchrun.job.positions import Path as JobPath
from batchrun.job.positions import Positions
from batchrun.job.schema import published
from batchrun.job.spec import Job
from batchrun.job.typed import typed
from batchrun.job.wording import path_of, suggestion, worded
from batchrun.job.yamltext import MAX_MISTAKES, parse

__all__ = ["Loaded", "Positions", "check", "examine", "load", "schema", "suggestion"]

_JOB = TypeAdapter(Job)
_STAND_IN: dict[str, Any] = {
    "input": {"path": "rows.csv"},
    "prompt": {"user": "?"},
    "model": {"endpoint": "simulator", "name": "?"},
    "output": {"path": "answers.csv"},
}
"""Put where required things are missing, so that the rest of the job can be checked too; nothing is said about them."""
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Loaded:
    """A job, where its parts stand in the file, and the file as the user named it.

    Where there are `mistakes`, the paths of `unsound` hold stand-ins.
    """

    job: Job
    positions: Positions
    shown: str
    mistakes: tuple[Mistake, ...] = ()
    unsound: frozenset[JobPath] = frozenset()

    def sound(self, *path: str) -> bool:
        """Tell whether a part of the job, such as ("output", "keep"), is as the user meant it."""
        return not _touches(path, self.unsound)

    def mistake(self, path: JobPath, message: str, line: int = 1) -> Mistake:
        """Make a mistake at a path of the job; `line` counts the lines of a text from 1, as Jinja does."""
        return Mistake(*self.positions.locate(path, max(line - 1, 0)), message)


def load(text: str, file: Path, environment: Mapping[str, str]) -> Loaded:
    """Make the job of a file's text; `environment` gives the values of `${VAR}`. Nothing is read but the cwd.

    Raises JobFileError with all mistakes (the first hundred).
    """
    loaded = examine(text, file, environment)
    if loaded.mistakes:
        raise JobFileError(loaded.shown, loaded.mistakes)
    return loaded


def examine(text: str, file: Path, environment: Mapping[str, str]) -> Loaded:
    """Make the job as `load` does, with its mistakes, so that what is sound can be checked further.

    Raises JobFileError where they leave no job.
    """
    root, mistakes = parse(text)
    if root is None:
        raise JobFileError(str(file), tuple(sorted(mistakes)[:MAX_MISTAKES]))
    positions = Positions(root)
    data, reader = typed(root, environment)
    unsound: set[JobPath] = {()} if mistakes else set()
    for finding in reader.findings:
        place = positions.key(finding.path) if finding.at_key else positions.locate(finding.path)
        mistakes.append(Mistake(*place, finding.message))
    job, errors = _build(data | {"file": file.absolute(), "text": text}, positions)
    told = [(path, message) for path, message in worded(errors, positions).items() if path not in reader.settled]
    unsound |= reader.settled.union(path_of(error, positions) for error in errors)
    if job is not None:
        silent = unsound - {()}
        told += [(path, message) for path, message in check(job) if not _touches(path, silent)]
    mistakes += [Mistake(*positions.locate(path), message) for path, message in told]
    mistakes = sorted(mistakes)[:MAX_MISTAKES]
    if job is None:
        raise JobFileError(str(file), tuple(mistakes))
    return Loaded(job, positions, str(file), tuple(mistakes), frozenset(unsound.union(path for path, _ in told)))


def schema() -> dict[str, Any]:
    """Give the job file's JSON Schema (draft 2020-12), as a user may write it."""
    return published(_JOB)


def _build(data: dict[str, Any], positions: Positions) -> tuple[Job | None, list[ErrorDetails]]:
    """Make the job and give pydantic's errors; where there are any, the job lacks the parts that they are about."""
    errors: list[ErrorDetails] = []
    for _ in range(_ROUNDS):
        try:
            return _JOB.validate_python(data), errors
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
        errors = errors or found
        for path in sorted({path_of(item, positions) for item in found}, key=repr):
            _repair(data, path)
    return None, errors


def _repair(data: dict[str, Any], path: JobPath) -> None:
    """Take what is wrong out of the data (a list as a whole), or put in what must be there."""
    names = takewhile(lambda step: isinstance(step, str), path)
    *above, name = map(str, names)
    holder, stand_in = data, _STAND_IN
    for step in above:
        if not isinstance(holder.get(step), dict):
            return
        holder, stand_in = holder[step], stand_in.get(step, {})
    if name in stand_in:
        holder[name] = deepcopy(stand_in[name])
    elif name in holder:
        del holder[name]
    elif len(above) + 1 == len(path) and above:
        _repair(data, tuple(above))  # something without which the thing that holds it makes no sense


def _touches(path: JobPath, silent: Collection[JobPath]) -> bool:
    """Whether a path is, holds or lies in one about which enough was said."""
    return any(other[: len(path)] == path or path[: len(other)] == other for other in silent)
