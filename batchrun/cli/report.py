"""`batchrun report JOB`: one self-contained HTML page."""

from pathlib import Path
from typing import Any

import click

from batchrun.cli.arguments import job_argument, job_options, opened, print_err


@click.command("report")
@job_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write there.")
@click.option("--gold", metavar="[ANSWER=]COLUMN", help="Compare an answer column with a column of right values.")
@click.option("--no-samples", is_flag=True, help="Leave out all texts of rows, for private data.")
@job_options
def command(
    job: Path,
    output: Path | None,
    gold: str | None,
    *,
    no_samples: bool,
    **flags: Any,  # noqa: ANN401  (click gives each flag its type)
) -> None:
    """Write one HTML file about the answers and how the job went, also during a run.

    It holds the distribution of the answers, errors with advice and examples, money, latency, and a table of up to
    100,000 rows to search, sort and filter; with --gold also the accuracy, scores of each label and the confusions. The
    page is self-contained and can be mailed. Without -o the file is NAME.report.html in the output's folder.
    """
    from batchrun.report import report_path, write_report
    from batchrun.terminal import place

    with opened(job, **flags) as (p, checkpoint):
        path = output.absolute() if output else report_path(p)
        write_report(p, checkpoint, path, gold=gold, samples=not no_samples)
    print_err(f"the report is {place(path, Path.cwd())}")
