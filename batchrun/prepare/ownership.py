"""Whose output a file is: two jobs that write the same file would overwrite each other's answers."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from batchrun.checkpoint import Checkpoint
from batchrun.errors import BatchrunError, UserError
from batchrun.job import Job, load

JOB_FILES = ("*.yaml", "*.yml")


def refuse_output_of_another(job: Job, shown: str, environment: Mapping[str, str], own: Checkpoint | None) -> None:
    """Raise UserError where another job file in the folder has written this output, and still names it.

    `cp a.yaml b.yaml`, and only the prompt of b.yaml was changed: each run would replace the other's answers. A job
    that wrote the file itself before continues, and so does a renamed one: no file has its old name any more.
    """
    output = named_output(job)
    if own is not None and own.has_written(output):
        return
    files = sorted(file for pattern in JOB_FILES for file in job.folder.glob(pattern) if file != job.file)
    owner = next((file.name for file in files if _has_written(file, output, environment, job.checkpoint_path)), None)
    if owner is not None:
        raise UserError(
            f"output.path: {job.output_path} is the output of {owner}, and {shown} would overwrite it: give {shown} an "
            "output.path of its own"
        )


def _has_written(file: Path, output: str, environment: Mapping[str, str], own: Path) -> bool:
    """Check whether a job file names this output and has a checkpoint, which is not `own`, whose runs wrote it."""
    with suppress(BatchrunError, OSError, ValueError):  # what can't be read is refused when it is run itself
        job = load(file.read_text(encoding="utf-8"), file, environment).job
        if named_output(job) == output and job.checkpoint_path != own and job.checkpoint_path.exists():
            with Checkpoint.open(job.checkpoint_path, read_only=True) as checkpoint:
                return checkpoint.has_written(output)
    return False


def named_output(job: Job) -> str:
    """Return how a run notes its output's path: relative to the job file, so that a folder can be moved."""
    return os.path.relpath(os.path.realpath(job.output_path), os.path.realpath(job.folder))
