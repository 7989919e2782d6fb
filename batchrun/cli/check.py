"""`batchrun check JOB`: everything that can be checked without calling the model."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from batchrun.cli.arguments import (
    format_option,
    job_options,
    jobs_argument,
    print_err,
    print_json,
    print_out,
    run_options,
    sample_option,
)
from batchrun.cli.pipes import piped
from batchrun.cli.several import job_files, load_all
from batchrun.errors import BatchrunError, ExitCode
from batchrun.terminal import printable

if TYPE_CHECKING:
    from batchrun.prepare import Expected, Invocation, Prepared
    from batchrun.records import Finding

EXAMPLES = """\b
batchrun check jobs/reviews.yaml            before a long run, and in CI
batchrun check jobs/reviews.yaml --schema   the answer's JSON Schema, as it is sent
"""


@click.command("check", epilog=EXAMPLES)
@jobs_argument
@click.option("--schema", is_flag=True, help="Print only the answer's JSON Schema.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each job.")
@job_options
@sample_option
@format_option
def command(jobs: tuple[Path, ...], *, schema: bool, as_json: bool, **flags: Any) -> None:  # noqa: ANN401  (click gives each flag its type)
    """Check the job file, the input, the key and the output: everything that needs no request to the model.

    All mistakes in the job file are reported at once, as FILE:LINE:COLUMN. Otherwise there is one line for each check:
    ok, warning or mistake. The exit code is 0, or 2 if there is a mistake.

    Several jobs, or a folder of them, are checked in the order in which they would run. An input that does not
    exist yet is not a mistake where another of these jobs writes it: its columns are those of that job's output.

    Nothing is sent to the model and no file is written. OpenRouter is asked about the key (its limit and what remains)
    and for its prices, any other server for its list of models.
    """
    from batchrun.prepare import Expected, chain, worst

    with piped(run_options(**flags)) as options, TemporaryDirectory(prefix="batchrun-") as folder:
        links = chain(load_all(job_files(jobs), options), options)
        # A lone job waits for nobody's output, and its problem may end the command as it is.
        if len(links) == 1:
            sys.exit(_check(links[0], None, schema=schema, as_json=as_json))
        codes: list[int] = []
        expected = Expected(Path(folder))
        for link in links:
            try:
                codes.append(_check(link, expected, schema=schema, as_json=as_json))
            except BatchrunError as problem:
                print_err(problem.line)
                codes.append(problem.exit_code)
    sys.exit(worst(codes))


def _check(link: "Invocation", expected: "Expected | None", *, schema: bool, as_json: bool) -> int:
    from batchrun import forecast
    from batchrun.prepare import prepare_job
    from batchrun.senders import check_installed

    job, awaited = link.job, None
    if expected is not None:
        job, awaited = expected.job(link)
    check_installed(job.ray)
    with prepare_job(link, job=job) as p:
        if expected is not None:
            expected.add(p)
        if schema:
            _schema(p)
            return ExitCode.DONE
        found = forecast.findings(p, link, awaited=awaited)
        checked = forecast.check(p, found if as_json else map(_printed, found))
    if as_json:
        print_json(checked)
    return ExitCode.USER if checked.mistakes else ExitCode.DONE


def _schema(p: "Prepared") -> None:
    import orjson

    found: Any = p.form.schema or {"type": "string"}
    print_out(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())


def _printed(finding: "Finding") -> "Finding":
    print_out(f"{finding.kind:<8} {finding.what}: {printable(finding.text)}")
    return finding
