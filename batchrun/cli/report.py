"""`batchrun report JOB`: one self-contained HTML page."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from batchrun.cli.arguments import JobPath, job_argument, job_options, opened, print_err


@click.command("report")
@job_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write there.")
@click.option("--gold", metavar="[ANSWER=]COLUMN", help="Compare an answer column with a column of right values.")
@click.option("--compare", "other", type=JobPath(), metavar="JOB2", help="Compare with JOB2 on the same input.")
@click.option("--before", is_flag=True, help="Compare with JOB before the last edit of its prompt.")
@click.option("--no-samples", is_flag=True, help="Leave out all texts of rows, for private data.")
@job_options
def command(
    job: Path,
    output: Path | None,
    gold: str | None,
    other: Path | None,
    *,
    before: bool,
    no_samples: bool,
    **flags: Any,  # noqa: ANN401  (click gives each flag its type)
) -> None:
    """Write one HTML file about the answers and how the job went, also during a run.

    It holds the distribution of the answers, errors with advice and examples, money, latency, and a table of up to
    100,000 rows to search, sort and filter; with --gold also the accuracy, scores of each label and the confusions;
    with --compare or --before also what changed (`batchrun report JOB --model NAME --compare JOB`). The page is
    self-contained and can be mailed. Without -o the file is NAME.report.html in the output's folder.
    """
    from batchrun.report import report_path, write_report
    from batchrun.terminal import place

    if before and other is not None:
        raise click.UsageError("--before and --compare exclude each other")
    with ExitStack() as stack:
        answered = stack.enter_context(opened(job, **flags))
        earlier = None
        if before:
            earlier = answered.before_edit()
        elif other is not None:
            earlier = stack.enter_context(opened(other))
        path = output.absolute() if output else report_path(answered.prepared)
        write_report(answered, path, gold=gold, other=earlier, samples=not no_samples)
    print_err(f"the report is {place(path, Path.cwd())}")
