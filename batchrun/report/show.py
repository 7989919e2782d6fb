"""Inputs and answers for a terminal: some rows as a table, or one row with all that is known of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from batchrun.api import cost_kind
from batchrun.errors import UserError
from batchrun.money import cost
from batchrun.prepare import Corrections
from batchrun.records import Status
from batchrun.report.answered import AnsweredRow, OpenJob, text_of
from batchrun.report.texttable import Table
from batchrun.table import unreadable_in_a_prompt
from batchrun.terminal import duration, when

_PROBLEM = ("error_type", "error_message")
_DETAILS = (
    "error_type", "error_code", "error_message", "raw", "model", "provider", "finish_reason", "attempts",
    "prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "service_tier",
    "reasoning", "citations",
)  # fmt: skip


def shown_rows(job: OpenJob, count: int, *, failed: bool) -> Table:
    """Return the first `count` rows that are answered, or that failed: number from 1, cells of the prompt, answer.

    Raises UserError where input or wording are not those of the last run, InputError if the input changes meanwhile.
    """
    job.check_plan()
    columns = job.prompt_columns
    corrections = Corrections(job.prepared.job)
    more = tuple(name for name in corrections.columns(job.prepared.rows.columns) if name not in columns)
    wanted = job.checkpoint.positions(Status.FAILED if failed else Status.OK, count)
    shown: list[list[str]] = []
    # The first failed row may be the nine millionth: the input is read from there on.
    for row in job.rows((*columns, *more), wanted[0], _PROBLEM) if wanted else ():
        if row.position == wanted[len(shown)]:
            person = job.corrected(row, corrections.find(row.cells))
            if failed:
                result = [*map(text_of, row.details), ", ".join(text_of(value) for value in person.values())]
            else:
                result = [_marked(name, value, person) for name, value in _values(job, row).items()]
            cells = (text_of(row.cells[name]) for name in columns)
            shown.append([str(row.position + 1), *cells, *result])
            if len(shown) == len(wanted):
                break
    names = _PROBLEM if failed else tuple(_columns(job))
    if failed and any(line[-1] for line in shown):
        names = (*names, "corrected")
    elif failed:
        shown = [line[:-1] for line in shown]
    return Table(("row", *columns, *(job.prepared.job.output.prefix + name for name in names)), shown, {0})


def row_record(job: OpenJob, number: int) -> list[tuple[str, str]]:
    """Return names and texts of all that is known of row `number` (from 1): cells, answer, error, what it took.

    Cells of bytes are left out. Raises UserError for a row that is not there, and as `shown_rows` does.
    """
    columns = [name for name, dtype in job.prepared.rows.schema.items() if not unreadable_in_a_prompt(dtype)]
    row = next(job.rows(columns, number - 1, ("finished_at", "known_cost", *_DETAILS)), None)
    if row is None:
        raise UserError(f"--row: there is no row {number:,}; the input has {job.checkpoint.counts().rows:,} rows")
    finished_at, price, *details = row.details
    correction = Corrections(job.prepared.job).find(row.cells)
    person = job.corrected(row, correction)
    status = f"{row.status}, confirmed" if correction is not None and not correction.changed else row.status
    pairs = [("row", f"{number} ({status})"), *((name, text_of(cell)) for name, cell in row.cells.items())]
    prefix = job.prepared.job.output.prefix
    if row.status == Status.OK:
        pairs += [(prefix + name, _marked(name, value, person)) for name, value in _values(job, row).items()]
    else:
        pairs += [(prefix + name, _marked(name, None, person)) for name in person]
    pairs += [(name, text_of(value)) for name, value in zip(_DETAILS, details, strict=True) if value is not None]
    if price is not None:
        text = cost(price, cost_kind(job.prepared.job))
        if not row.first:
            text += " (an equal row before it was asked)"
        pairs.append(("cost", text))
    if row.seconds is not None:
        latency = f"{row.seconds:.2f} s"
        if row.seconds >= 60:  # noqa: PLR2004  (seconds in a minute)
            latency = duration(row.seconds)
        pairs.append(("latency", latency))
    if finished_at is not None:
        pairs.append(("finished", when(finished_at)))
    return pairs


def _marked(name: str, value: Any, person: Mapping[str, Any]) -> str:  # noqa: ANN401  (any JSON value)
    """Return the model's answer as text, with the one that a person gave in its place."""
    text = text_of(value)
    return f"{text} (corrected: {text_of(person[name])})".lstrip() if name in person else text


def _columns(job: OpenJob) -> Iterator[str]:
    """Yield the answer columns, with a decision model's probability after each, as the output has them."""
    asked = {question.name for question in job.prepared.form.questions}
    for name in job.answers:
        yield name
        if name in asked:
            yield f"{name}_prob"


def _values(job: OpenJob, row: AnsweredRow) -> dict[str, Any]:
    """Return a row's answer by these columns."""
    probabilities = {f"{name}_prob": value for name, value in row.probabilities.items()}
    values = {**probabilities, **row.answer}
    return {name: values[name] for name in _columns(job)}
