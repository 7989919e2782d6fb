"""A job file on disk -> the job and its environment, or one error with every mistake."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from batchrun.errors import JobFileError, UserError
from batchrun.job import RunOptions, examine, read_environment
from batchrun.prepare.invocation import Invocation
from batchrun.prepare.prepared import prepare_job
from batchrun.prepare.trials import with_kept_flags

LARGEST = 2**20
"""Bytes; a larger file is not a job file, and no more of it is read."""


def load_file(
    path: Path,
    process: Mapping[str, str],
    cwd: Path,
    options: RunOptions,
    *,
    reads: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Invocation:
    """Read a job file and its environment: `process` are the variables of this process, which win over .env files.

    The flags come back with those that the trial of `options` was run with; for `reads` and `say` see
    `with_kept_flags`.

    Raises JobFileError with all mistakes: where the file has some, its right parts are checked against the input,
    too, with the flags of `options` applied. UserError for a file that can't be read.
    """
    environment = read_environment(path.parent, cwd, process)
    text = _text(path)
    loaded = examine(text, path, environment, options.settings)
    with suppress(RuntimeError):  # the home directory of an unknown user, which is among the mistakes
        given, options = options, with_kept_flags(loaded.job, options, reads=reads, say=say)
        if options.settings != given.settings:
            loaded = examine(text, path, environment, options.settings)
    return _without_mistakes(Invocation(loaded, environment, options))


def load_dict(job: Mapping[str, Any], file: Path, process: Mapping[str, str], options: RunOptions) -> Invocation:
    """Return the job of a program's dict as `load_file` does; `file` is where a job file of it would stand."""
    environment = read_environment(file.parent, file.parent, process)
    try:
        loaded = examine(job, file, environment, options.settings)
    except TypeError as problem:
        raise UserError(str(problem)) from None
    return _without_mistakes(Invocation(loaded, environment, options))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:  # a device or a pipe has no size beforehand
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise UserError(f"{path} is too large for a job file ({LARGEST >> 20} MB): put rows in an input file")
        return text.decode()
    except UnicodeDecodeError as problem:
        raise UserError(f"{path}: byte {problem.start + 1} is not UTF-8; save the job file as UTF-8") from None
    except OSError as problem:
        raise UserError(f"{path}: {problem.strerror}") from None


def _without_mistakes(found: Invocation) -> Invocation:
    """Return a job that has no mistake; else raise all of them, also those that only its input shows."""
    if found.loaded.mistakes:
        with suppress(RuntimeError), prepare_job(found):  # the home directory of an unknown user, as above
            pass
        raise JobFileError(found.shown, found.loaded.mistakes)
    return found
