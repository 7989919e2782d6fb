"""Rows for a person to look at, as a file, and what the person wrote into it."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from batchrun.errors import UserError
from batchrun.prepare import Prepared
from batchrun.records import Kind, Mismatch, Status, kind_of
from batchrun.report.answered import AnsweredRow, OpenJob, text_of
from batchrun.report.gold import Rule, require_column
from batchrun.runner import Correction, Corrections, row_key
from batchrun.table import check_writable, encoding_note, open_guessed, write_output

ROW, KEY, REVIEW = "row", "row_key", "needs_review"
MODEL = "{}_model"
"""The column with the model's answer, next to the one that a person edits."""

PROBABILITY = "{}_prob"
"""The column with the probability of a decision model's answer."""

BY_PROBABILITY = "failed rows first, then the least sure"
BY_SIGNS = "failed rows first, then answers at the length limit and retried ones, then the order of the input"


def _key_columns(prepared: Prepared, named: Sequence[str]) -> tuple[str, ...]:
    """Return the columns whose cells a correction belongs to: the named ones, else those of the prompt."""
    for name in named:
        require_column(prepared.rows, name, "--id")
    columns = tuple(dict.fromkeys(named or prepared.renderer.columns))
    if not columns:
        raise UserError("the prompt uses no column: name one that identifies a row with --id COLUMN")
    return columns


def write_todo(job: OpenJob, path: Path, count: int, named: Sequence[str]) -> tuple[int, str]:
    """Write the `count` rows that most need a look and that nobody reviewed; return their number and their order.

    A file that a person edits: cells of the prompt, each answer in a column to edit, the model's answer next to it,
    and how sure a decision model was.
    Equal questions stand in it once, unless columns that identify a row are `named`.
    """
    prepared, answers = job.prepared, job.answers
    check_writable(path, [*(Path(file.path) for file in prepared.rows.files), job.checkpoint.path])
    keys = _key_columns(prepared, named)
    shown = tuple(dict.fromkeys([*keys, *prepared.renderer.columns]))
    asked = [question.name for question in prepared.form.questions]
    header = [ROW, *shown, *answers, *map(MODEL.format, answers), *map(PROBABILITY.format, asked), REVIEW, KEY]
    if twice := [name for name in header if header.count(name) > 1]:
        raise UserError(f'the file would have two columns "{twice[0]}": rename the column of the input')
    corrections = Corrections(prepared.job)
    more = tuple(name for name in corrections.columns(prepared.rows.columns) if name not in shown)
    # Ten million rows may be candidates: no more than `count` are held.
    chosen = heapq.nsmallest(
        count,
        (
            (_doubt(row), row.position, row)
            for row in job.rows((*shown, *more), details=("attempts", "finish_reason"))
            if row.is_settled
            # A row that failed before it was asked has no question, and each such row is shown.
            and (row.first or row.question is None or named)
            and corrections.find(row.cells) is None
        ),
    )
    lines = []
    for _, position, row in chosen:
        cells = [text_of(row.cells[name]) for name in shown]
        texts = [text_of(row.answer.get(name)) for name in answers]
        key = orjson.dumps([row_key({name: row.cells[name] for name in keys}), *keys]).decode()
        sure = [text_of(row.probabilities.get(name)) for name in asked]
        lines.append([str(position + 1), *cells, *texts, *texts, *sure, "true", key])
    schema = dict.fromkeys(header, pl.String())
    frame = pl.DataFrame(lines, schema=schema, orient="row")
    write_output(iter([frame]), path, schema=dict(schema), csv=prepared.job.output.csv)
    return len(lines), BY_PROBABILITY if any(row.probabilities for _, _, row in chosen) else BY_SIGNS


def _doubt(row: AnsweredRow) -> float:
    """Return how sure an answer is, for sorting: lower is less sure. The least probable of its columns counts."""
    if row.status == Status.FAILED:
        return -1.0
    if known := [one for one in row.probabilities.values() if one is not None]:
        return min(known)
    attempts, finish_reason = row.details
    return 1.0 if finish_reason == "length" or (attempts or 0) > 1 else 2.0


def read_todo(prepared: Prepared, path: Path) -> tuple[list[Correction], str]:
    """Return what a person decided in a file of `write_todo`: edited answers, and those with needs_review cleared.

    With them comes a note on the file's encoding, empty where it had not to be guessed.

    Raises UserError for a file that is not one, and for an answer that the job does not allow.
    """
    answers = tuple(prepared.form.columns)
    needed = (ROW, *answers, *map(MODEL.format, answers), REVIEW, KEY)
    # A German Excel saves the edited file with semicolons, and often not as UTF-8.
    with open_guessed(path) as (rows, csv):
        if missing := [name for name in needed if name not in rows.columns]:
            raise UserError(
                f'{path} has no column "{missing[0]}": write the file with `batchrun show --review -o`, and edit that'
            )
        lines = [
            dict(zip(needed, map(text_of, line), strict=True)) for batch in rows.batches(needed) for line in batch.rows
        ]
    note = encoding_note(path, csv, (line[name] for line in lines for name in answers))
    try:
        return list(_decisions(prepared, lines)), note
    except UserError as problem:
        # Read as another encoding, a label is another text.
        raise UserError(f"{problem}; {note}" if note else str(problem)) from None


def _decisions(prepared: Prepared, lines: Sequence[Mapping[str, str]]) -> Iterator[Correction]:
    for line in lines:
        changed = any(line[name] != line[MODEL.format(name)] for name in prepared.form.columns)
        if not changed and line[REVIEW].strip().lower() not in {"", "false", "0", "no"}:
            continue
        answer = {name: _value(line[name].strip(), kind_of(schema)) for name, schema in prepared.form.columns.items()}
        if prepared.form.schema is not None:
            fitting = prepared.form.parse_edited(orjson.dumps(answer).decode())
            if isinstance(fitting, Mismatch):
                empty = [name for name, value in answer.items() if value is None]
                if empty and not any(line[MODEL.format(name)] for name in answer):
                    raise UserError(
                        f"row {line[ROW]}: the model gave no answer, so fill all answers; empty: {', '.join(empty)}"
                    )
                raise UserError(f"row {line[ROW]}: {fitting.message}")
            answer = orjson.loads(fitting)
        elif not any(answer.values()):
            continue
        try:
            key, *columns = orjson.loads(line[KEY])
        except (ValueError, TypeError):
            raise UserError(f'row {line[ROW]}: "{KEY}" was edited: leave that column as it is') from None
        yield Correction(tuple(columns), key, answer, changed)


def _value(text: str, kind: Kind) -> Any:  # noqa: ANN401  (any JSON value)
    """Return a cell's text as a value of an answer column; another text stays, for the parser to refuse."""
    if not text:
        return None
    if kind in {"text", "enum", "date"}:
        return text
    try:
        return Rule(kind).normal(text) == "true" if kind == "boolean" else orjson.loads(text)
    except ValueError:
        return text
