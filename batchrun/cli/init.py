"""`batchrun init FILE`: writes a job file for an input."""

import shlex
from pathlib import Path

import click

from batchrun.cli.arguments import SUFFIXES, debug_option, print_err
from batchrun.disk import write_whole
from batchrun.errors import UserError

EXAMPLES = """\b
batchrun init reviews.csv                     writes reviews.yaml, or jobs/reviews.yaml
batchrun init data/x.parquet -o jobs/x.yaml   writes there
"""


@click.command("init", epilog=EXAMPLES)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="JOB", help="Write the job file there.")
@click.option("--force", is_flag=True, help="Replace a job file that is there.")
@debug_option
def command(file: Path, output: Path | None, *, force: bool, **_: bool) -> None:
    """Look at the columns of an input and write a commented job file for it, to edit.

    FILE is any file that a job can read, such as a .csv, .xlsx, .jsonl or .parquet file. The job asks the
    simulator about the column with the longest texts, so that it runs at once and at no cost. The job file goes into
    the folder jobs, if there is one, else into the working directory.
    """
    from batchrun.cli.drafting import draft, look

    # reviews.csv.gz becomes reviews.yaml.
    stem = file.name.split(".")[0] or "job"
    job = output or Path("jobs" if Path("jobs").is_dir() else "", f"{stem}.yaml")
    if job.suffix.lower() not in SUFFIXES:
        named = job / f"{stem}.yaml" if job.is_dir() else job.with_suffix(".yaml")
        raise UserError(f"-o {job}: a job file's name ends in .yaml, such as {named}")
    if job.exists() and not force:
        raise UserError(f"{job} already exists; write elsewhere with -o, or replace it with --force")
    text = draft(look(file.absolute()), job.absolute())
    write_whole(job, text.encode())
    name = shlex.quote(str(job))
    print_err(f"wrote {job}; edit it, then\n  batchrun preview {name}\n  batchrun {name}")
