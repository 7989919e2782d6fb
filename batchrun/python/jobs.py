"""The functions of batchrun: each loads a job with its rows and its flags, as the command of its name does."""

import hashlib
import json
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from decimal import Decimal
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from batchrun import forecast
from batchrun.errors import UserError
from batchrun.job import Job, RunOptions, as_yaml, merged
from batchrun.money import positive_usd
from batchrun.prepare import Invocation, load_dict, load_file, prepare_job
from batchrun.python.frames import Frame, is_frame, to_polars, write_frame
from batchrun.python.threads import outside_of_loops
from batchrun.records import Check, Preview, Summary
from batchrun.runner import NotebookBar, Ui, chosen, closing_lines, error_types, logged, run_job
from batchrun.senders import check_installed

if TYPE_CHECKING:
    from batchrun.report import Evaluation

_NOT_ASKED = {"input", "output", "limits", "engine", "checkpoint"}
"""Parts of a dict that don't change its questions: with others of these it is the same job."""

JobLike = str | PathLike[str] | Mapping[str, Any]
InputLike = str | PathLike[str] | Frame | pl.LazyFrame


def load_job(path: str | PathLike[str]) -> Job:
    """Read a job file. Raises JobFileError with all mistakes, UserError for a file that can't be read."""
    return load_file(Path(path), os.environ, Path.cwd(), RunOptions()).loaded.job


def run(  # noqa: PLR0913  (the flags of a run, by name)
    job: JobLike,
    input: InputLike | None = None,  # noqa: A002  (the command's word)
    *,
    limit: int | None = None,
    sample: int | None = None,
    max_cost: Decimal | float | str | None = None,
    concurrency: int | None = None,
    engine: Literal["local", "ray", "batch"] | None = None,
    wait: str | int | None = None,
    output: str | PathLike[str] | None = None,
    set: Mapping[str, object] | None = None,  # noqa: A002  (the command's word)
    endpoint: str | None = None,
    model: str | None = None,
    variant: str | None = None,
    api_key_env: str | None = None,
    fresh: bool = False,
    yes: bool = False,
    retry: Collection[str] | None = None,
    log: str | PathLike[str] | None = None,
    quiet: bool | None = None,
) -> Summary:
    """Run or resume a job, as `batchrun JOB` does, and return what `--json` prints; arguments win over the job.

    `set` has keys of the job, such as {"limits.timeout": 9}; a text in it is read as YAML, as on the command line.
    `max_cost` is in USD; `wait` is a duration such as "2h", or 0; `retry` names the error types that are asked again
    though they failed permanently (empty: all). `quiet` is False for progress on stderr; by default there is a bar in a
    notebook, and elsewhere only problems are printed.

    A run that stopped raises nothing: look at the Summary's `exit_code`, `reason` and `next`. What ends it before
    the first request is raised: UserError (also JobFileError, InputError, ConfirmError), StorageError, SenderError,
    BusyError.
    It may be called inside a running event loop, such as a notebook's, which it blocks. Ctrl-C stops the run there,
    too, and keeps the answers so far.
    """
    options = replace(
        _trial(set, endpoint, model, variant, api_key_env),
        limit=_count("limit", limit),
        sample=_count("sample", sample),
        max_cost=_usd(max_cost),
        concurrency=_count("concurrency", concurrency, most=20_000),
        engine=_engine(engine),
        wait=None if wait is None else str(wait),
        output=_path(output),
        fresh=fresh,
        yes=yes,
        retry=None if retry is None else error_types([retry] if isinstance(retry, str) else retry, flag="retry"),
    )
    with logged(_path(log), [] if isinstance(job, Mapping) else [Path(job)]):
        invocation = _loaded(job, input, options)
        ui = _ui(quiet=quiet)
        summary = outside_of_loops(lambda: run_job(invocation, ui))
    if isinstance(job, Mapping) or is_frame(input):  # no command runs these again
        summary = replace(summary, next=None, commands=())
    # A silent Ui stays silent: a program reads the Summary.
    if type(ui) is not Ui:
        ui.say("\n".join(closing_lines(summary, Path.cwd())))
    return summary


def check(
    job: JobLike,
    input: InputLike | None = None,  # noqa: A002  (as above)
    *,
    set: Mapping[str, object] | None = None,  # noqa: A002  (as above)
    endpoint: str | None = None,
    model: str | None = None,
    variant: str | None = None,
    api_key_env: str | None = None,
) -> Check:
    """Check everything that can be checked without calling the model, as `batchrun check JOB` does.

    Mistakes of the job and its input are raised, all at once, as by `run`. The Check lists all further checks.
    """
    invocation = _loaded(job, input, _trial(set, endpoint, model, variant, api_key_env))
    with prepare_job(invocation) as p:
        check_installed(p.job.ray)
        return forecast.check(p, forecast.findings(p, invocation))


def preview(
    job: JobLike,
    input: InputLike | None = None,  # noqa: A002  (as above)
    *,
    n: int = 3,
    set: Mapping[str, object] | None = None,  # noqa: A002  (as above)
    endpoint: str | None = None,
    model: str | None = None,
    variant: str | None = None,
    api_key_env: str | None = None,
) -> Preview:
    """Return the first `n` requests, and how many there are and what they will cost, as `batchrun preview JOB` does.

    Nothing is sent to a model. Raises what `run` raises for a wrong job.
    """
    invocation = _loaded(job, input, _trial(set, endpoint, model, variant, api_key_env))
    with prepare_job(invocation) as p:
        preview, _prices = forecast.look(p, n)
        return preview


def evaluate(  # noqa: PLR0913  (the flags of the command, by name)
    job: JobLike,
    input: InputLike | None = None,  # noqa: A002  (as above)
    *,
    gold: str | None = None,
    gold_file: str | PathLike[str] | None = None,
    on: str | None = None,
    reviewed: str | None = None,
    ignore_case: bool = False,
    tolerance: float = 0.0,
    set: Mapping[str, object] | None = None,  # noqa: A002  (as above)
    endpoint: str | None = None,
    model: str | None = None,
    variant: str | None = None,
    api_key_env: str | None = None,
) -> "Evaluation":
    """Compare a job's answers with the right ones, as `batchrun eval JOB --gold` does.

    `gold` is COLUMN or ANSWER=COLUMN, of the input or of `gold_file`, which the column `on` joins; `reviewed` is an
    answer that people corrected, in place of `gold`. Nothing is sent. Raises UserError where nothing can be compared.
    """
    from batchrun import report  # noqa: PLC0415  (a run does without it)

    if (gold is None) == (reviewed is None):
        raise UserError("name the right answers: gold, or reviewed")
    options = report.GoldOptions(gold or "", _path(gold_file), on, ignore_case, tolerance)
    invocation = _loaded(job, input, _trial(set, endpoint, model, variant, api_key_env), reads=True)
    with report.open_job(invocation) as answered:
        if reviewed:
            return report.evaluate_reviewed(answered, reviewed)
        return report.evaluate(answered, options)


# The job


def _loaded(job: JobLike, rows: InputLike | None, options: RunOptions, *, reads: bool = False) -> Invocation:
    """Load a job and put the rows into it: a path as its input, a frame as a file in its checkpoint's folder.

    `reads`: nothing is asked, so that a trial must be there already.
    """
    frame = to_polars(rows)
    if isinstance(job, Mapping):
        file, data = _as_file(job, rows)
        if frame is not None:
            copy = write_frame(frame, Path(data["checkpoint"]), file.stem)
            where = {name: value for name, value in _section(data, "input").items() if name == "where"}
            data["input"] = {**where, "path": str(copy)}
        return load_dict(data, file, os.environ, options)
    if frame is None and rows is not None:
        options = replace(options, input=os.fspath(rows))  # type: ignore[arg-type]  # not a frame, so it is a path
    found = load_file(Path(job), os.environ, Path.cwd(), options, reads=reads)
    if frame is None:
        return found
    return replace(found, loaded=replace(found.loaded, job=_with_frame(found.loaded.job, frame)))


def _as_file(job: Mapping[str, Any], rows: InputLike | None) -> tuple[Path, dict[str, Any]]:
    """Return where a job file of a dict would stand, and the dict with paths for checkpoint, output and input.

    Its name is that of its checkpoint, or follows from what it asks: another prompt is another job, whose answers lie
    in a checkpoint of its own.
    """
    # With a higher limit or another output it is the same job, whose answers are kept.
    asked = {str(name): value for name, value in job.items() if name not in _NOT_ASKED}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:8]
    checkpoint = Path.cwd() / str(job.get("checkpoint") or f".batchrun/job-{digest}.sqlite")
    data = {**job, "checkpoint": str(checkpoint)}
    if isinstance(data.get("output") or {}, Mapping):
        data["output"] = {"path": str(checkpoint.with_suffix(".parquet")), **_section(data, "output")}
    if rows is not None and not is_frame(rows):
        data["input"] = {**_section(data, "input"), "path": os.fspath(rows)}  # type: ignore[arg-type]
    return Path.cwd() / f"{checkpoint.stem}.yaml", data


def _section(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a dict, empty where it is written in its short form or left out."""
    section = data.get(name)
    return section if isinstance(section, Mapping) else {}


def _with_frame(job: Job, frame: pl.DataFrame) -> Job:
    """Return a job that asks the rows of a frame, with an output and a checkpoint of its own: NAME.frame."""
    job = merged(job, RunOptions(variant="frame"))
    copy = write_frame(frame, job.checkpoint_path, job.checkpoint_path.stem)
    return replace(job, input=replace(job.input, path=str(copy)))


# Flags


def _trial(
    settings: Mapping[str, object] | None,
    endpoint: str | None,
    model: str | None,
    variant: str | None,
    api_key_env: str | None,
) -> RunOptions:
    """Return the flags that say which trial of a job is meant."""
    try:
        # A text is YAML already, as on the command line.
        pairs = [(key, value if isinstance(value, str) else as_yaml(value)) for key, value in (settings or {}).items()]
    except TypeError as problem:
        raise UserError(f"set: {problem}") from None
    written = tuple(f"{key}={text}" for key, text in pairs)
    return RunOptions(settings=written, endpoint=endpoint, model=model, variant=variant, api_key_env=api_key_env)


def _count(name: str, number: int | None, most: int | None = None) -> int | None:
    if number is None:
        return None
    if not isinstance(number, int):
        raise UserError(f"{name} must be a whole number, not {number!r}")
    if number < 1:
        raise UserError(f"{name} must be at least 1, not {number}")
    if most is not None and number > most:
        raise UserError(f"{name} must be at most {most:,}, not {number:,}")
    return number


def _engine(name: Literal["local", "ray", "batch"] | None) -> Literal["local", "ray", "batch"] | None:
    # Any other word would send every row from here, at the full price.
    if name not in {None, "local", "ray", "batch"}:
        raise UserError(f"engine must be local, ray or batch, not {name!r}")
    return name


def _path(written: str | PathLike[str] | None) -> Path | None:
    return None if written is None else Path(written)


def _usd(cost: Decimal | float | str | None) -> Decimal | None:
    if cost is None:
        return None
    try:
        return positive_usd(cost)
    except ValueError as problem:
        raise UserError(f"max_cost: {problem}") from None


# Progress


def _ui(*, quiet: bool | None) -> Ui:
    """Return a bar in a notebook; elsewhere what the command shows if `quiet` is False."""
    if quiet is not True and _in_a_notebook():
        return NotebookBar()
    return chosen(quiet=quiet is not False)


def _in_a_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
