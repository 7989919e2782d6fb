"""`batchrun export JOB`: writes the output from the checkpoint, at any moment."""

from pathlib import Path
from typing import Any

import click

from batchrun.cli.arguments import job_argument, job_options, opened, print_err
from batchrun.terminal import aside


@click.command("export")
@job_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write there.")
@job_options
def command(job: Path, output: Path | None, **flags: Any) -> None:  # noqa: ANN401  (click gives each flag its type)
    """Write the output as the checkpoint has it now, also during a run.

    Rows without an answer are pending. Nothing is sent. Without -o the file is the output of an unfinished run
    (NAME.partial.SUFFIX), so that a finished output is never replaced by an unfinished one.
    """
    from batchrun.runner import outputs
    from batchrun.table import check_writable, partial_path

    with opened(job, **flags) as answered:
        p = answered.prepared
        path = output.absolute() if output else partial_path(p.job.output_path)
        check_writable(path, p.rows.paths, "-o" if output else "output.path")
        answered.check_plan()
        written = outputs.write(p, answered.checkpoint, path)
    print_err(f"{written.rows:,} rows in {path}{aside(written.note)}")
