"""`batchrun preview JOB`: the exact requests, how many there are, and what they will cost."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrun.cli.arguments import (
    format_option,
    job_argument,
    job_options,
    load,
    print_json,
    print_out,
    run_options,
    sample_option,
)
from batchrun.cli.pipes import piped
from batchrun.errors import UserError
from batchrun.terminal import lines, printable

if TYPE_CHECKING:
    from batchrun.api import Prices
    from batchrun.prepare import Prepared
    from batchrun.records import Preview, Shown

EXAMPLES = """\b
batchrun preview jobs/reviews.yaml            three requests, then the sums
batchrun preview jobs/reviews.yaml --row 17   why row 17 is what it is
batchrun preview jobs/reviews.yaml -n 0       the sums alone
"""


@click.command("preview", epilog=EXAMPLES)
@job_argument
@click.option(
    "-n", "number", type=click.IntRange(0, 1_000), default=3, show_default=True, help="Show that many requests."
)
@click.option("--row", type=click.IntRange(1), metavar="N", help="Show the request of this row in any state.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@job_options
@sample_option
@format_option
def command(job: Path, number: int, row: int | None, *, as_json: bool, **flags: Any) -> None:  # noqa: ANN401  (click gives each flag its type)
    """Show the exact requests of the first rows that a run would ask, then what the run would need.

    Rows are counted from 1, without a header (the checkpoint's column `position` counts from 0). Above a few thousand
    rows the numbers are extrapolated from a sample. Likely tokens, cost and time follow from the job's own answers as
    soon as there are some; the highest cost counts each request once, without retries and repairs.

    Nothing is sent to a model, and no file is written. Prices come from the API's public list, kept for a day.
    """
    from batchrun.forecast import look
    from batchrun.prepare import prepare_job

    if row is not None and as_json:
        raise click.UsageError("--row and --json exclude each other: --json has the requests of the first -n rows")
    with ExitStack() as stack:
        options = stack.enter_context(piped(run_options(**flags)))
        invocation = load(job, options)
        p = stack.enter_context(prepare_job(invocation))
        if row is not None:
            print_out("\n".join(_row(p, row)))
            number = 0
        found, prices = look(p, number, invocation.options.sample)
        if as_json:
            print_json(found)
            return
    for request in found.requests:
        print_out("\n".join(_request(request)))
    print_out("\n".join(_sums(p, found, prices)))


def _row(p: "Prepared", row: int) -> Iterator[str]:
    """Show one row in any state."""
    from batchrun.forecast import shown
    from batchrun.prompt import RowProblem

    position = row - 1
    batch = next(p.rows.batches(p.renderer.columns, start=position, size=1), None)
    if batch is None or not batch.rows:
        raise UserError(f"--row {row}: the input has fewer rows")
    request = shown(p, position, batch.rows[0])
    if isinstance(request, RowProblem):
        yield f"row {row} could not be rendered ({request.error_type}): {printable(request.message)}"
        return
    yield from _request(request)
    if batch.asked is not None and not batch.asked[0]:
        yield f"row {row} is filtered out by input.where"
    elif p.job.dedupe:  # else its state depends on how many equal rows stand before it
        yield from _state(p, row, batch.rows[0])
    yield ""


def _state(p: "Prepared", row: int, values: tuple[Any, ...]) -> Iterator[str]:
    from batchrun.checkpoint import Checkpoint

    # A run computes the same key from the row's content, and looks up the answer by it.
    key = p.renderer.key(values)
    state = "is to be asked"
    if p.job.checkpoint_path.exists() and isinstance(key, bytes):
        with Checkpoint.open(p.job.checkpoint_path, read_only=True) as checkpoint:
            known = checkpoint.settled([key], p.open_rule).get(key)
            if checkpoint.batches.out_among([key]):
                state = "is out in a batch"
        # A question that failed for a while is open again, so it is not among these.
        if known is not None:
            state = "is answered" if known.status == "ok" else "failed permanently (`batchrun retry` asks it again)"
    yield f"row {row} {state}"


def _request(request: "Shown") -> Iterator[str]:
    """Show a request: its messages with their roles, then all else that is sent. Text is indented below its role."""
    import orjson

    from batchrun.prompt import content_text

    yield f"row {request.row}"
    for message in request.messages:
        yield f"  {message['role']}:"
        yield from (f"    {line}" for line in lines(content_text(message["content"])).split("\n"))
    for name, value in request.params.items():
        yield f"  {printable(name)}: {printable(orjson.dumps(value).decode())}"
    yield ""


def _sums(p: "Prepared", found: "Preview", prices: "Prices") -> Iterator[str]:
    from batchrun.forecast import texts

    yield texts.rows_line(found)
    for reason in found.unasked:
        yield f"  {reason.error_type}: {printable(texts.unasked_text(reason))}"
    if not found.questions:
        why = "no row is left to ask"
        if found.sample is not None:
            why = "no question of the sample is open"
        elif found.rows and found.answered == found.rows - found.skipped:
            why = "every row is answered"
        elif found.in_batch:
            why = "the open rows are out in a batch, and a run collects them"
        yield f"Nothing to do: {why}."
        return
    yield f"tokens: about {found.prompt_tokens:,} of prompts, {found.completion_tokens:,} of answers"
    yield f"  ({texts.basis_text(found)})"
    if (price := texts.price_text(p, prices)) is not None:
        yield f"price: {price}"
    if (batch := texts.batch_price_text(found, prices)) is not None:
        yield f"with --engine batch: {batch}"
    if (cache := texts.cache_text(p, found)) is not None:
        yield f"prompt cache: {cache}"
    yield f"cost: {texts.cost_text(p, found, prices)}"
    if (flex := texts.flex_text(p, found)) is not None:
        yield f"service tier: {flex}"
    yield f"time: {texts.time_text(p, found)}"
