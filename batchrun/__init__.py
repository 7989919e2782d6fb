"""Ask a language model one question per row of a file or a frame.

    run       run or resume a job -> Summary, whose frame() is the output
    check     everything that can be checked without calling the model -> Check
    preview   the requests, their number and likely cost -> Preview
    evaluate  answers against the right ones -> Evaluation
    load_job  read a job file -> Job

A job is the path of a job file, or a dict like one; relative paths in a dict are relative to the working directory.
`input` is a path, or a frame of Polars or pandas, in place of the job's own input. The other arguments are the flags
of the command line. What ends a run before its first request is raised as a BatchrunError, with the command's words.
Nothing else is public. `import batchrun` is cheap; what a function needs is imported when the function is first named.
"""

import importlib
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
    from batchrun.job import Job
    from batchrun.python import check, evaluate, load_job, preview, run
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
    "Job": "batchrun.job",
    "Preview": "batchrun.records",
    "Summary": "batchrun.records",
    **dict.fromkeys(("check", "evaluate", "load_job", "preview", "run"), "batchrun.python"),
}


if not TYPE_CHECKING:  # a type checker would let every name through

    def __getattr__(name: str) -> Any:  # noqa: ANN401  (classes and functions)
        """Import a class or a function when it is named."""
        if name in _LATER:
            return getattr(importlib.import_module(_LATER[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
