"""Ask a language model one question per row of a file or a frame.

    run       run or resume a job -> Summary, whose frame() is the output
    check     everything that can be checked without calling the model -> Check
    preview   the requests, their number and likely cost -> Preview
    evaluate  answers against the right ones -> Evaluation
    load_job  read a job file -> Job

A job is the path of a job file, or a dict like one; relative paths in a dict are relative to the working directory.
`input` is a path, or a frame of Polars or pandas, in place of the job's own input. The other arguments are the flags
of the command line. What ends a run before its first request is raised as a BatchrunError, with the command's words.
Nothing else is public. Importing is cheap.
"""

import importlib
from decimal import Decimal
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from batchrun._version import __version__ as __version__
from batchrun.errors import (
    BatchrunError,
    BusyError,
    CheckpointError,
    ConfirmError,
    ExitCode,
    InputError,
    JobFileError,
    Mistake,
    SenderError,
    StorageError,
    UserError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from batchrun.job import Job
    from batchrun.python import InputLike, JobLike
    from batchrun.records import Check, Finding, Preview, Summary
    from batchrun.report import Evaluation


__all__ = [
    "BatchrunError",
    "BusyError",
    "Check",
    "CheckpointError",
    "ConfirmError",
    "Evaluation",
    "ExitCode",
    "Finding",
    "InputError",
    "Job",
    "JobFileError",
    "Mistake",
    "Preview",
    "SenderError",
    "StorageError",
    "Summary",
    "UserError",
    "check",
    "evaluate",
    "load_job",
    "preview",
    "run",
]

_LATER = {
    "Check": "batchrun.records",
    "Evaluation": "batchrun.report",
    "Finding": "batchrun.records",
    "Job": "batchrun.job.spec",
    "Preview": "batchrun.records",
    "Summary": "batchrun.records",
}


if not TYPE_CHECKING:  # a type checker would let every name through

    def __getattr__(name: str) -> Any:  # noqa: ANN401  (a class)
        """Import a class when it is named."""
        if name in _LATER:
            return getattr(importlib.import_module(_LATER[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_job(path: str | PathLike[str]) -> "Job":
    """Read a job file. Raises JobFileError with all mistakes, UserError for a file that can't be read."""
    from batchrun.python import load_job as load  # noqa: PLC0415  (importing batchrun is cheap)

    return load(path)


def run(  # noqa: PLR0913  (the flags of a run, by name)
    job: "JobLike",
    input: "InputLike | None" = None,  # noqa: A002  (the command's word)
    *,
    limit: int | None = None,
    sample: int | None = None,
    max_cost: Decimal | float | str | None = None,
    concurrency: int | None = None,
    engine: Literal["local", "ray", "batch"] | None = None,
    wait: str | None = None,
    output: str | PathLike[str] | None = None,
    set: "Mapping[str, object] | None" = None,  # noqa: A002  (the command's word)
    endpoint: str | None = None,
    model: str | None = None,
    variant: str | None = None,
    api_key_env: str | None = None,
    fresh: bool = False,
    yes: bool = False,
    retry: "Collection[str] | None" = None,
    log: str | PathLike[str] | None = None,
    quiet: bool | None = None,
) -> "Summary":
    """Run or resume a job, as `batchrun JOB` does, and return what `--json` prints; arguments win over the job.

    `set` has keys of the job, such as {"limits.timeout": 9}; a text in it is read as YAML, as on the command line.
    `max_cost` is in USD; `wait` is a duration such as "2h"; `retry` names the error types that are asked again though
    they failed permanently (empty: all). `quiet` is False for progress on stderr; by default there is a bar in a
    notebook, and elsewhere only problems are printed.

    A run that stopped raises nothing: look at the Summary's `exit_code`, `reason` and `next`. What ends it before
    the first request is raised: UserError (also JobFileError, InputError, ConfirmError), StorageError, BusyError.
    It may be called inside a running event loop, such as a notebook's, which it blocks. Ctrl-C stops the run there,
    too, and keeps the answers so far.
    """
    from batchrun.python import run as started  # noqa: PLC0415  (as above)

    return started(
        job,
        input,
        quiet=quiet,
        log=log,
        limit=limit,
        sample=sample,
        max_cost=max_cost,
        concurrency=concurrency,
        engine=engine,
        wait=wait,
        output=output,
        set=set,
        endpoint=endpoint,
        model=model,
        variant=variant,
        api_key_env=api_key_env,
        fresh=fresh,
        yes=yes,
        retry=retry,
    )


def check(
    job: "JobLike",
    input: "InputLike | None" = None,  # noqa: A002  (the command's word)
    *,
    set: "Mapping[str, object] | None" = None,  # noqa: A002  (the command's word)
    endpoint: str | None = None,
    model: str | None = None,
    variant: str | None = None,
    api_key_env: str | None = None,
) -> "Check":
    """Check everything that can be checked without calling the model, as `batchrun check JOB` does.

    Mistakes of the job and its input are raised, all at once, as by `run`. The Check lists all further checks.
    """
    from batchrun.python import check as checked  # noqa: PLC0415  (as above)

    return checked(job, input, set=set, endpoint=endpoint, model=model, variant=variant, api_key_env=api_key_env)


def preview(
    job: "JobLike",
    input: "InputLike | None" = None,  # noqa: A002  (the command's word)
    *,
    n: int = 3,
    set: "Mapping[str, object] | None" = None,  # noqa: A002  (the command's word)
    endpoint: str | None = None,
    model: str | None = None,
    variant: str | None = None,
    api_key_env: str | None = None,
) -> "Preview":
    """Return the first `n` requests, and how many there are and what they will cost, as `batchrun preview JOB` does.

    Nothing is sent to a model. Raises what `run` raises for a wrong job.
    """
    from batchrun.python import preview as looked  # noqa: PLC0415  (as above)

    flags = {"set": set, "endpoint": endpoint, "model": model, "variant": variant, "api_key_env": api_key_env}
    return looked(job, input, number=n, **flags)


def evaluate(  # noqa: PLR0913  (the flags of the command, by name)
    job: "JobLike",
    input: "InputLike | None" = None,  # noqa: A002  (the command's word)
    *,
    gold: str | None = None,
    gold_file: str | PathLike[str] | None = None,
    on: str | None = None,
    reviewed: str | None = None,
    ignore_case: bool = False,
    tolerance: float = 0.0,
    set: "Mapping[str, object] | None" = None,  # noqa: A002  (the command's word)
    endpoint: str | None = None,
    model: str | None = None,
    variant: str | None = None,
    api_key_env: str | None = None,
) -> "Evaluation":
    """Compare a job's answers with the right ones, as `batchrun eval JOB --gold` does.

    `gold` is COLUMN or ANSWER=COLUMN, of the input or of `gold_file`, which the column `on` joins; `reviewed` is an
    answer that people corrected, in place of `gold`. Nothing is sent. Raises UserError where nothing can be compared.
    """
    from batchrun.python import evaluate as evaluated  # noqa: PLC0415  (as above)

    return evaluated(
        job,
        input,
        gold=gold,
        gold_file=gold_file,
        on=on,
        reviewed=reviewed,
        ignore_case=ignore_case,
        tolerance=tolerance,
        set=set,
        endpoint=endpoint,
        model=model,
        variant=variant,
        api_key_env=api_key_env,
    )
