"""Jobs for Python programs and notebooks: paths, dicts and frames in; the records of `--json` out."""

import asyncio
import contextvars
import functools
import hashlib
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import polars as pl

from batchrun.checkpoint import Checkpoint, running
from batchrun.errors import BusyError, UserError
from batchrun.job import Environment, Job, Loaded, RunOptions, merged
from batchrun.records import Check, Preview, Summary
from batchrun.runner import (
    INTERRUPTS,
    Checking,
    Interrupts,
    NotebookBar,
    Prepared,
    Ui,
    chosen,
    closing_lines,
    load_dict,
    load_file,
    logged,
    look,
    prepare_job,
    run_job,
)
from batchrun.senders import check_installed
from batchrun.table import unwritable, write_output

if TYPE_CHECKING:
    from batchrun.report import Evaluation

_NOT_ASKED = {"input", "output", "limits", "engine", "checkpoint"}
"""Parts of a dict that don't change its questions: with others of these it is the same job."""

_Result = TypeVar("_Result")


class Frame(Protocol):
    """A table in memory that speaks Arrow: a frame of Polars or pandas, a table of PyArrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return the rows as an Arrow stream."""


JobLike = str | PathLike[str] | Mapping[str, Any]
InputLike = str | PathLike[str] | Frame


def load_job(path: str | PathLike[str]) -> Job:
    """Read a job file; JobFileError with all mistakes."""
    loaded, *_ = load_file(Path(path), os.environ, Path.cwd(), RunOptions())
    return loaded.job


def run(
    job: JobLike,
    rows: InputLike | None,
    *,
    quiet: bool | None,
    log: str | PathLike[str] | None,
    **flags: Any,  # noqa: ANN401  (batchrun.run types them)
) -> Summary:
    """Run or resume a job; `flags` are those of RunOptions, as a Python program writes them."""
    with logged(None if log is None else Path(log)):
        loaded, environment, options = _loaded(job, rows, flags)
        ui = _ui(quiet=quiet)
        summary = _in_a_thread_of_its_own(lambda: run_job(loaded, options, environment, ui))
    if isinstance(job, Mapping) or _is_frame(rows):  # no command runs these again
        summary = replace(summary, next=None, commands=())
    if type(ui) is not Ui:
        ui.say("\n".join(closing_lines(summary, Path.cwd())))
    return summary


def check(job: JobLike, rows: InputLike | None, **flags: Any) -> Check:  # noqa: ANN401  (as above)
    """Check everything that can be checked without calling the model."""
    with _prepared(job, rows, flags) as (p, environment, shown):
        check_installed(p.job.ray)
        return Checking(p, environment, shown).run()


def preview(job: JobLike, rows: InputLike | None, *, number: int, **flags: Any) -> Preview:  # noqa: ANN401  (as above)
    """Return what a run would need."""
    with _prepared(job, rows, flags) as (p, _, _shown):
        return look(p, number).preview(p)


def evaluate(
    job: JobLike,
    rows: InputLike | None,
    *,
    gold: str | None,
    gold_file: str | PathLike[str] | None,
    on: str | None,
    reviewed: str | None,
    ignore_case: bool,
    tolerance: float,
    **flags: Any,  # noqa: ANN401  (as above)
) -> "Evaluation":
    """Compare answers with gold, or with reviewed answers."""
    from batchrun import report  # noqa: PLC0415  (a run does without it)

    if (gold is None) == (reviewed is None):
        raise UserError("name the right answers: gold, or reviewed")
    if not 0 <= tolerance < float("inf"):
        raise UserError(f"tolerance must be 0 or more, not {tolerance!r}")
    file = None if gold_file is None else Path(gold_file)
    options = report.GoldOptions(gold or "", file, on, ignore_case, Decimal(str(tolerance)))
    with (
        _prepared(job, rows, flags, reads=True) as (p, _, _shown),
        Checkpoint.open(p.job.checkpoint_path, read_only=True) as checkpoint,
    ):
        if reviewed:
            return report.evaluate_reviewed(p, checkpoint, reviewed)
        return report.evaluate(p, checkpoint, options)


@contextmanager
def _prepared(
    job: JobLike, rows: InputLike | None, flags: dict[str, Any], *, reads: bool = False
) -> Iterator[tuple[Prepared, Environment, str]]:
    loaded, environment, options = _loaded(job, rows, flags, reads=reads)
    with prepare_job(loaded, merged(loaded.job, options), environment, sends=not reads) as p:
        yield p, environment, loaded.shown


# The job


def _loaded(
    job: JobLike, rows: InputLike | None, flags: dict[str, Any], *, reads: bool = False
) -> tuple[Loaded, Environment, RunOptions]:
    """Load a job and put the rows into it: a path as its input, a frame as a file beside its checkpoint.

    `reads`: nothing is asked, so that a trial must be there already.
    """
    frame = _frame(rows)
    options = _options(flags)
    if isinstance(job, Mapping):
        file, data = _as_file(job, rows)
        if frame is not None:
            section = data.get("input")
            section = {"where": section["where"]} if isinstance(section, Mapping) and "where" in section else {}
            copy = _copied(frame, Path(data["checkpoint"]), file.stem)
            data["input"] = {**section, "path": str(copy)}
        return *load_dict(data, file, os.environ, options), options
    if frame is None and rows is not None:
        options = replace(options, input=os.fspath(rows))  # type: ignore[arg-type]  # not a frame, so it is a path
    loaded, environment, options = load_file(Path(job), os.environ, Path.cwd(), options, reads=reads)
    if frame is not None:
        loaded = replace(loaded, job=_with_frame(loaded.job, frame))
    return loaded, environment, options


def _as_file(job: Mapping[str, Any], rows: InputLike | None) -> tuple[Path, dict[str, Any]]:
    """Return where a job file of a dict would stand, and the dict with paths for checkpoint, output and input.

    Its name is that of its checkpoint, or follows from what it asks: another prompt is another job, whose answers lie
    in a checkpoint of its own.
    """
    asked = {str(name): value for name, value in job.items() if name not in _NOT_ASKED}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:8]
    checkpoint = Path.cwd() / str(job.get("checkpoint") or f".batchrun/job-{digest}.sqlite")
    data = {**job, "checkpoint": str(checkpoint)}
    output = data.get("output") or {}
    if isinstance(output, Mapping) and "path" not in output:
        data["output"] = {**output, "path": str(checkpoint.with_suffix(".parquet"))}
    if rows is not None and not _is_frame(rows):
        section = data.get("input")
        data["input"] = {**(section if isinstance(section, Mapping) else {}), "path": os.fspath(rows)}  # type: ignore[arg-type]
    return Path.cwd() / f"{checkpoint.stem}.yaml", data


def _with_frame(job: Job, frame: pl.DataFrame) -> Job:
    """Return a job that asks the rows of a frame, with an output and a checkpoint of its own: NAME.frame."""
    checkpoint, output = (
        path.with_name(f"{path.stem}.frame{path.suffix}") for path in (job.checkpoint_path, job.output_path)
    )
    copy = _copied(frame, checkpoint, checkpoint.stem)
    return replace(
        job,
        input=replace(job.input, path=str(copy)),
        checkpoint=str(checkpoint),
        output=replace(job.output, path=str(output)),
    )


# Frames


def _is_frame(rows: object) -> bool:
    return rows is not None and not isinstance(rows, str | PathLike)


def _frame(rows: Any) -> pl.DataFrame | None:  # noqa: ANN401  (what a program gives)
    """Return a frame of any library as one of Polars, None for a path. Raises UserError for anything else."""
    if not _is_frame(rows):
        return None
    if isinstance(rows, pl.DataFrame):
        return rows
    if isinstance(rows, pl.LazyFrame):
        return rows.collect()
    try:
        if type(rows).__module__.partition(".")[0] == "pandas":
            return pl.from_pandas(rows)
        if hasattr(rows, "__arrow_c_stream__"):
            return pl.DataFrame(rows)
    except ImportError:
        raise UserError("a frame of pandas needs PyArrow: pip install pyarrow") from None
    raise UserError(f"input must be a path or a frame of Polars or pandas, not {type(rows).__name__}")


def _copied(frame: pl.DataFrame, checkpoint: Path, name: str) -> Path:
    """Write a frame to NAME.input.parquet beside a checkpoint, unless the same rows are there; return the path.

    The same file again is the same input, so that a cell that is run twice plans and asks nothing.
    """
    for column, dtype in frame.schema.items():
        if problem := unwritable(dtype, ".parquet"):
            raise UserError(f'input: column "{column}" {problem}')
    if (holder := running(checkpoint)) is not None:
        raise BusyError(f"this job is already running ({holder}): wait for it, or stop it")
    path = checkpoint.with_name(f"{name}.input.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_output(iter([frame]), path, schema=frame.schema)
    return path


# Flags


def _options(flags: dict[str, Any]) -> RunOptions:
    """Return a program's flags as those of a command."""
    given = dict(flags)
    given["settings"] = tuple(f"{key}={_setting(value)}" for key, value in (given.pop("set") or {}).items())
    if given.get("output") is not None:
        given["output"] = Path(given["output"])
    if given.get("retry") is not None:
        given["retry"] = frozenset(given["retry"])
    if given.get("max_cost") is not None:
        given["max_cost"] = _usd(given["max_cost"])
    for name in ("limit", "sample", "concurrency"):
        if given.get(name) is not None and given[name] < 1:
            raise UserError(f"{name} must be at least 1, not {given[name]}")
    return RunOptions(**given)


def _setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _usd(cost: Decimal | float | str) -> Decimal:
    try:
        amount = Decimal(str(cost))
    except InvalidOperation:
        raise UserError(f"max_cost is not an amount in USD: {cost!r}") from None
    if not amount.is_finite() or amount <= 0:
        raise UserError(f"max_cost must be more than 0 USD, not {cost!r}")
    return amount


# Where it runs


def _ui(*, quiet: bool | None) -> Ui:
    """Return a bar in a notebook; elsewhere what the command shows if `quiet` is False."""
    if quiet is not True and _in_a_notebook():
        return NotebookBar()
    return chosen(quiet=quiet is not False)


def _in_a_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


def _in_a_thread_of_its_own(work: Callable[[], _Result]) -> _Result:
    """Call `work` here in a main thread without an event loop, else in a thread, to which Ctrl-C is handed on."""
    if threading.current_thread() is threading.main_thread() and not _loop_is_running():
        return work()
    _load_sender()
    interrupts = Interrupts()
    context = contextvars.copy_context()
    context.run(INTERRUPTS.set, interrupts)
    with _handing_on(interrupts), ThreadPoolExecutor(1, thread_name_prefix="batchrun") as thread:
        return thread.submit(context.run, work).result()


@contextmanager
def _handing_on(interrupts: Interrupts) -> Iterator[None]:
    """Hand Ctrl-C on to a run in another thread: asyncio's own handler would wait for the run to return."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in {signal.SIG_IGN, None}:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: interrupts.send())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@functools.cache
def _load_sender() -> None:
    """Load the sender's library in a thread that never ends: where the one that loaded it has ended, it crashes."""
    loaded = threading.Event()

    def load() -> None:
        try:
            with suppress(ImportError):  # the run reports it
                importlib.import_module("batchrun.senders.reqwest")
        finally:
            loaded.set()
        threading.Event().wait()

    threading.Thread(target=load, name="batchrun-sender", daemon=True).start()
    loaded.wait()
