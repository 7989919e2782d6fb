"""The output: rows of the input joined with the checkpoint's outcomes by position, in input order."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from batchrun.api import cost_kind
from batchrun.checkpoint import Checkpoint, PlanInfo
from batchrun.errors import InputError, UserError
from batchrun.job import Job
from batchrun.money import PER_USD, CostKind
from batchrun.prepare import (
    INPUT_CHANGED,
    NEEDS_REVIEW,
    Correction,
    Corrections,
    Prepared,
    corrected,
    filter_text,
    has_same_files,
    named_output,
    read_otherwise,
)
from batchrun.prompt import changed_words
from batchrun.table import (
    DETAIL_TYPES,
    LONGEST_CELL,
    MOST_ROWS,
    Written,
    answer_columns,
    is_long,
    partial_path,
    read_output,
    write_output,
)

OUTPUT_ROWS = 20_000
"""Rows joined with their answers at a time."""


def write(
    prepared: Prepared,
    checkpoint: Checkpoint,
    path: Path,
    *,
    settled: bool = False,
    warn: Callable[[str], None] = lambda _: None,
) -> Written:
    """Write the output as the checkpoint has it now; replaced only if it would differ.

    `settled`: only the rows that are answered or failed, so that 50 answers of millions of rows make a short file.
    `warn` is called where an Excel cell was too short for a text.

    Raises InputError when the input changes meanwhile, StorageError where the disk fails; the old file stays then.
    """
    written = write_output(
        _frames(prepared, checkpoint, settled=settled), path, schema=prepared.schema, csv=prepared.job.output.csv
    )
    # A model's long text is paid for by now: a cut cell is better than no output.
    if written.note:
        warn(written.note)
    return written


def check_sheet(prepared: Prepared, rows: int) -> None:
    """Refuse an Excel workbook that can't hold the input's rows and cells, before anything is paid (UserError)."""
    name = prepared.job.output_path.name
    if prepared.job.output_path.suffix.lower() != ".xlsx":
        return
    if rows > MOST_ROWS:
        raise UserError(
            f"output.path: a sheet holds {MOST_ROWS:,} rows, and the input has {rows:,}: write .parquet or .csv"
        )
    texts = [column for column in prepared.kept if isinstance(prepared.rows.schema[column], pl.String)]
    if not texts:
        return
    position = 1
    for frame in prepared.rows.frames(texts, OUTPUT_ROWS):
        for column in texts:
            for row, text in enumerate(frame[column], position):
                if text is not None and is_long(text):
                    raise UserError(
                        f'output.path: column "{column}" has a text of {len(text):,} characters in row {row:,}, and a '
                        f"cell of {name} holds {LONGEST_CELL:,}: leave it out of output.keep, or write .parquet or .csv"
                    )
        position += frame.height


def check_plan(prepared: Prepared, plan: PlanInfo | None, *, any_wording: bool = False) -> None:
    """Raise UserError if rows would be joined with answers of another input or, but for `any_wording`, another job."""
    if plan is None:
        raise UserError("the job has no plan yet: run it first")
    if not has_same_files(plan, prepared.rows.files):
        raise UserError("the input has changed since the last run, so its rows have other answers: run the job again")
    if read_otherwise(plan, prepared.rows):
        raise UserError("input.csv or input.sheet has changed since the last run: run the job again, or change it back")
    if any_wording:
        return
    if plan.filter != filter_text(prepared.job):
        raise UserError("input.where or dedupe has changed since the last run: run the job again, or change it back")
    if plan.wording != prepared.renderer.wording:
        what = changed_words(plan.wording, prepared.renderer.wording)
        raise UserError(f"the {what} has changed since the last run: run the job again, or change it back")


def _frames(prepared: Prepared, checkpoint: Checkpoint, *, settled: bool) -> Iterator[pl.DataFrame]:
    details = prepared.details
    end = checkpoint.settled_end() if settled else math.inf
    names = dict(FROM_CHECKPOINT)
    if cost_kind(prepared.job) == CostKind.UNKNOWN:
        names["cost_usd"] = "reported_cost"  # 0 would say that a row was free
    columns = ("status", "answer", *(names.get(name, name) for name in details))
    frames = prepared.rows.frames(prepared.kept, OUTPUT_ROWS) if prepared.kept else repeat(None)
    corrections = _corrections(prepared)
    position = 0
    for frame in frames:
        # A file's last frame is short, so the next file's rows begin at the sum of heights.
        height = OUTPUT_ROWS if frame is None else frame.height
        outcomes = checkpoint.outcomes(position, height, columns)
        if frame is None and not outcomes:
            break
        # Fewer or more rows than planned: joined by position, each would get the answer of another.
        if frame is not None and len(outcomes) != height:
            raise InputError(INPUT_CHANGED)
        kept = [] if frame is None else [frame]
        fixes = list(islice(corrections, len(outcomes)))
        if settled:
            indices = [index for index, row in enumerate(outcomes) if row[0] in {"ok", "failed"}]
            outcomes, fixes = [outcomes[index] for index in indices], [fixes[index] for index in indices if fixes]
            kept = [frame[indices] for frame in kept]
        if outcomes or not settled:
            yield pl.concat([*kept, *_new_columns(prepared, outcomes, fixes)], how="horizontal")
        position += height
        if position >= end:
            break
    if prepared.input_changed():
        raise InputError(INPUT_CHANGED)


def _corrections(prepared: Prepared) -> Iterator[Correction | None]:
    """Yield each row's correction; the input is read for them only if there are any."""
    corrections = Corrections(prepared.job)
    if not (names := corrections.columns(prepared.rows.columns)):
        yield from repeat(None)
    for batch in prepared.rows.batches(names):
        yield from (corrections.find(dict(zip(names, cells, strict=True))) for cells in batch.rows)


def _new_columns(
    prepared: Prepared, outcomes: Sequence[tuple[Any, ...]], corrections: Sequence[Correction | None]
) -> Iterator[pl.DataFrame]:
    """Yield the answer's columns and the details'; rows that are neither ok nor corrected have null answers."""
    prefix = prepared.job.output.prefix
    answers = [row[1] if row[0] == "ok" else None for row in outcomes]
    answers = [corrected(prepared.form, *pair) for pair in zip(answers, corrections, strict=True)]
    if any(corrections):
        outcomes = [
            _answered(prepared, row) if row[0] == "failed" and answer is not None else row
            for row, answer in zip(outcomes, answers, strict=True)
        ]
    if prepared.form.schema is None:
        typed = pl.DataFrame(dict.fromkeys(prepared.answers, answers), schema=dict(prepared.answers))
    else:
        typed = answer_columns(answers, prepared.answers)
    yield typed.rename(lambda name: prefix + name)
    if prepared.job.output.review_below is not None:
        yield _review(prepared, typed, corrections)
    names = prepared.details
    values = dict(zip(names, list(zip(*outcomes, strict=True))[2:] or [()] * len(names), strict=True))
    if "corrected" in values:
        values["corrected"] = tuple(one and one.changed for one in corrections)
    columns = {
        prefix + name: pl.Series(_converted(name, found), dtype=DETAIL_TYPES[name]) for name, found in values.items()
    }
    yield pl.DataFrame(columns)


def _answered(prepared: Prepared, row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the outcome of a failed row that a person answered."""
    instead = {"status": "ok", "error_code": None, "error_type": None, "error_message": None}
    details = (instead.get(name, value) for name, value in zip(prepared.details, row[2:], strict=True))
    return ("ok", row[1], *details)


def _review(prepared: Prepared, typed: pl.DataFrame, corrections: Sequence[Correction | None]) -> pl.DataFrame:
    """Return the column needs_review: null where no probability is low and one is missing, false once reviewed."""
    low = [pl.col(f"{question.name}_prob") < prepared.job.output.review_below for question in prepared.form.questions]
    any_low = pl.any_horizontal(low or [pl.repeat(None, pl.len(), dtype=pl.Boolean)])
    reviewed = pl.Series([one is not None for one in corrections], dtype=pl.Boolean)
    needed = pl.when(reviewed).then(pl.lit(value=False)).otherwise(any_low)
    return typed.select(needed.alias(prepared.job.output.prefix + NEEDS_REVIEW))


def _converted(name: str, values: Sequence[Any]) -> Sequence[Any]:
    """Return the values of a detail as the output has them."""
    convert = CONVERTED.get(name)
    if convert is None:
        return values
    return [None if value is None else convert(value) for value in values]


FROM_CHECKPOINT: Mapping[str, str] = {
    "cost_usd": "known_cost",
    "latency_s": "seconds",
    "answer_raw": "raw",
    "corrected": "status",  # stands in the file of corrections; replaced
}
"""What a detail is called in the checkpoint, where the names differ."""

CONVERTED: Mapping[str, Callable[[Any], Any]] = {
    "cost_usd": lambda pico: pico / PER_USD,
    "key": bytes.hex,
    "citations": orjson.loads,
    "finished_at": lambda at: datetime.fromtimestamp(at, UTC),
}


def state(prepared: Prepared, plan: int) -> str:
    """Return a note that is equal as long as this plan and job would write the same, and nobody touched the file.

    It ends with the path, for `refuse_output_of_another`.
    """
    path = prepared.job.output_path
    try:
        found = path.stat()
    except OSError:
        return ""
    job = prepared.job.output
    corrections = Corrections(prepared.job).path
    corrected_at = corrections.exists() and corrections.stat().st_mtime_ns
    words = [plan, str(path), repr(job), [found.st_size, found.st_mtime_ns, found.st_ino], corrected_at]
    return f"{hashlib.sha256(json.dumps(words).encode()).hexdigest()} {named_output(prepared.job)}"


def reader(prepared: Prepared, written: Written | None) -> Callable[[], pl.DataFrame] | None:
    """Return what reads the output with its types, None where none was written."""
    if written is None:
        return None
    return partial(read_output, written.path, prepared.schema, escaped=prepared.job.output.csv.escape_formulas)


def remove_partial(job: Job) -> None:
    """Remove the partial output of an unfinished run."""
    partial_path(job.output_path).unlink(missing_ok=True)
