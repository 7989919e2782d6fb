"""Ask a language model one question per row of a file.

`run` runs or resumes a job file and gives a Summary; `load_job` reads one and gives a Job. What ends a run before its
first request is raised as a BatchrunError, whose text is for people. Nothing else is public. Importing is cheap.
"""

import importlib
from decimal import Decimal
from os import PathLike
from typing import TYPE_CHECKING, Any

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
    from collections.abc import Collection

    from batchrun.job import Job
    from batchrun.records import Summary


__all__ = [
    "BatchrunError",
    "BusyError",
    "CheckpointError",
    "ConfirmError",
    "ExitCode",
    "InputError",
    "Job",
    "JobFileError",
    "Mistake",
    "SenderError",
    "StorageError",
    "Summary",
    "UserError",
    "load_job",
    "run",
]

_LATER = {"Job": "batchrun.job.spec", "Summary": "batchrun.records"}


if not TYPE_CHECKING:  # a type checker would let every name through

    def __getattr__(name: str) -> Any:  # noqa: ANN401  (two classes)
        """Import what is rarely named when it is named."""
        if name in _LATER:
            return getattr(importlib.import_module(_LATER[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_job(path: str | PathLike[str]) -> "Job":
    """Read a job file. Raises JobFileError with all mistakes, UserError for a file that can't be read."""
    from batchrun.runner.python import load_job as load  # noqa: PLC0415  (importing batchrun is cheap)

    return load(path)


def run(  # noqa: PLR0913  (the flags of a run, by name)
    path: str | PathLike[str],
    *,
    limit: int | None = None,
    max_cost: Decimal | float | str | None = None,
    concurrency: int | None = None,
    endpoint: str | None = None,
    api_key_env: str | None = None,
    output: str | PathLike[str] | None = None,
    fresh: bool = False,
    yes: bool = False,
    retry: "Collection[str] | None" = None,
    quiet: bool = True,
) -> "Summary":
    """Run or resume a job file, as `batchrun JOB` does, and give what `--json` prints; arguments win over the file.

    `max_cost` is in USD; `retry` names the error types that are asked again though they failed for good (empty: all).
    A run that stopped raises nothing: look at the Summary's `exit_code`, `reason` and `next`. What ends it before
    the first request is raised: UserError (also JobFileError, InputError, ConfirmError), StorageError, BusyError.
    It may be called inside a running event loop, such as a notebook's, which it blocks.
    """
    from batchrun.runner.python import run as started  # noqa: PLC0415  (as above)

    return started(
        path,
        quiet=quiet,
        limit=limit,
        max_cost=max_cost,
        concurrency=concurrency,
        endpoint=endpoint,
        api_key_env=api_key_env,
        output=output,
        fresh=fresh,
        yes=yes,
        retry=retry,
    )
