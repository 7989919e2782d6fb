"""Rows for a person to look at, as a file, and what the person wrote into it."""

import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from batchrun.errors import UserError
from batchrun.prepare import Correction, Corrections, Prepared, row_key
from batchrun.prompt import AnswerForm
from batchrun.records import Kind, Mismatch, Status, kind_of
from batchrun.report.answered import AnsweredRow, OpenJob, text_of
from batchrun.report.gold import FALSE, TRUE, Rule, require_column
from batchrun.table import Written, check_writable, encoding_note, open_guessed, write_output
from batchrun.terminal import plural

ROW, KEY, REVIEW = "row", "row_key", "needs_review"
MODEL = "{}_model"
"""The column with the model's answer, next to the one that a person edits."""

SHOWN_PROBLEMS = 20
"""Rows that can't be taken and are named in one message."""

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


def write_todo(job: OpenJob, path: Path, count: int, named: Sequence[str]) -> tuple[Written, str]:
    """Write the `count` rows that most need a look and that nobody reviewed; return the file and the order of its rows.

    A file that a person edits: cells of the prompt, each answer in a column to edit, the model's answer next to it,
    and how sure a decision model was.
    Equal questions stand in it once, unless columns that identify a row are `named`.
    """
    prepared, answers = job.prepared, job.answers
    check_writable(path, [*prepared.rows.paths, job.checkpoint.path], "-o")
    keys = _key_columns(prepared, named)
    shown = tuple(dict.fromkeys([*keys, *prepared.renderer.columns]))
    asked = [question.name for question in prepared.form.questions]
    header = [ROW, *shown, *answers, *map(MODEL.format, answers), *(f"{name}_prob" for name in asked), REVIEW, KEY]
    if twice := [name for name in header if header.count(name) > 1]:
        raise UserError(f'the file would have two columns "{twice[0]}": rename the column of the input')
    corrections = Corrections(prepared.job)
    _refuse_untaken(prepared.form, path, corrections)
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
    if named:
        _refuse_shared(job, (row for _, _, row in chosen), named)
    lines = []
    for _, position, row in chosen:
        cells = [text_of(row.cells[name]) for name in shown]
        texts = [text_of(row.answer.get(name)) for name in answers]
        seen = row_key(row.answer) if row.status == Status.OK else None
        key = orjson.dumps([row_key({name: row.cells[name] for name in keys}), seen, *keys]).decode()
        sure = [text_of(row.probabilities.get(name)) for name in asked]
        lines.append([str(position + 1), *cells, *texts, *texts, *sure, "true", key])
    schema = dict.fromkeys(header, pl.String())
    frame = pl.DataFrame(lines, schema=schema, orient="row")
    written = write_output(iter([frame]), path, schema=dict(schema), csv=prepared.job.output.csv)
    return written, BY_PROBABILITY if any(row.probabilities for _, _, row in chosen) else BY_SIGNS


def _refuse_shared(job: OpenJob, chosen: Iterable[AnsweredRow], named: Sequence[str]) -> None:
    """Raise UserError where a chosen row's cells in the `named` columns stand in a row that asks another question.

    A correction of one of them would be the answer of both.
    """
    questions = {row_key({name: row.cells[name] for name in named}): row.question for row in chosen}
    for row in job.rows(tuple(named)):
        cells = {name: row.cells[name] for name in named}
        if row.status != Status.SKIPPED and questions.get(row_key(cells), row.question) != row.question:
            texts, columns = (", ".join(f'"{text_of(one)}"' for one in some) for some in (cells.values(), named))
            raise UserError(f"--id: {texts} in {columns} stands in several rows: name a column that identifies a row")


def _refuse_untaken(form: AnswerForm, path: Path, corrections: Corrections) -> None:
    """Raise UserError where the file that would be replaced holds a person's work that `correct` has not taken."""
    if not path.exists():
        return
    try:
        lines, _ = _lines(form, path)
    except UserError:  # another file than one of `write_todo`
        return
    decided = [one for line in lines if (one := _decided(form, line)) is not None]
    left = sum(isinstance(one, str) or not corrections.has(one.columns, one.key) for one in decided)
    if left:
        raise UserError(
            f"{path} holds {plural(left, 'row')} that a person edited and `batchrun correct` has not taken: take them "
            "first, or write another file"
        )


def _doubt(row: AnsweredRow) -> float:
    """Return how sure an answer is, for sorting: lower is less sure. The least probable of its columns counts."""
    if row.status == Status.FAILED:
        return -1.0
    if known := [one for one in row.probabilities.values() if one is not None]:
        return min(known)
    attempts, finish_reason = row.details
    return 1.0 if finish_reason == "length" or (attempts or 0) > 1 else 2.0


@dataclass(frozen=True, slots=True)
class _Decided:
    """A row of the file that a person decided: the texts of its answers, and which of them were edited.

    `key` is the digest of its cells in `columns`; `seen` that of the model's answer in the file, None where it failed.
    """

    texts: Mapping[str, str]
    edited: tuple[str, ...]
    columns: tuple[str, ...]
    key: str
    seen: str | None

    @property
    def is_incomplete(self) -> bool:
        """Whether some of its answers are the model's."""
        return self.seen is not None and len(self.edited) < len(self.texts)


def read_todo(job: OpenJob, path: Path) -> tuple[list[Correction], str]:
    """Return what a person decided in a file of `write_todo`: edited answers, and those with needs_review cleared.

    An answer that was not edited is the model's as the checkpoint holds it, since a spreadsheet saves other texts:
    1.23457E+10 for 12345678901. With the corrections comes a note on the file's encoding, empty where it had not to be
    guessed.

    Raises UserError for a file that is not one, and names all rows that can't be taken.
    """
    form = job.prepared.form
    lines, note = _lines(form, path)
    decided = [(line[ROW], one) for line in lines if (one := _decided(form, line)) is not None]
    known = _model_answers(job, [one for _, one in decided if isinstance(one, _Decided)])
    corrections: dict[tuple[tuple[str, ...], str], tuple[str, Correction]] = {}
    problems = []
    for number, one in decided:
        found = _correction(form, one, known) if isinstance(one, _Decided) else one
        if isinstance(found, str):
            problems.append(f"row {number}: {found}")
            continue
        # Rows that failed before they became a question may have equal cells, such as none.
        other, same = corrections.setdefault((found.columns, found.key), (number, found))
        if same.answer != found.answer:
            cells = f"{', '.join(found.columns)} {'is' if len(found.columns) == 1 else 'are'} the same in row {other}"
            problems.append(
                f"row {number}: {cells}, which has another answer: give both one answer, or use --id COLUMN"
            )
    if problems:
        text = "\n".join(problems[:SHOWN_PROBLEMS])
        if len(problems) > SHOWN_PROBLEMS:
            text += f"\nand {plural(len(problems) - SHOWN_PROBLEMS, 'more row')}"
        # Read as another encoding, a label is another text.
        raise UserError(f"{text}; {note}" if note else text)
    return [one for _, one in corrections.values()], note


def _lines(form: AnswerForm, path: Path) -> tuple[list[dict[str, str]], str]:
    """Return the lines of a file of `write_todo`, and the note on its encoding. Raises UserError for another file."""
    answers = tuple(form.columns)
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
    return lines, encoding_note(path, csv, (line[name] for line in lines for name in answers))


def _decided(form: AnswerForm, line: Mapping[str, str]) -> _Decided | str | None:
    """Return what a person decided about one row: None for nothing, a text for a row that can't be taken."""
    texts = {name: line[name].strip() for name in form.columns}
    edited = []
    for name, schema in form.columns.items():
        # Values are compared: a spreadsheet may write 3.0 for 3, and TRUE for true.
        rule = Rule(kind_of(schema))
        if rule.answer(texts[name]) != rule.answer(line[MODEL.format(name)]):
            edited.append(name)
    review = line[REVIEW].strip()
    if not edited and review.lower() in TRUE:
        return None
    if not edited and review and review.lower() not in FALSE:  # done
        return f'{REVIEW} is "{review}": clear it to confirm the row, or write true'
    try:
        key, seen, first, *more = orjson.loads(line[KEY])
    except (ValueError, TypeError):
        return f'"{KEY}" was edited: leave that column as it is'
    return _Decided(texts, tuple(edited), (first, *more), key, seen)


def _model_answers(job: OpenJob, decided: Sequence[_Decided]) -> dict[tuple[tuple[str, ...], str], Mapping[str, Any]]:
    """Return the model's answers that `decided` rows need, by columns and key. Raises UserError as `rows` does."""
    wanted = {(one.columns, one.key) for one in decided if one.is_incomplete}
    there = set(job.prepared.rows.columns)
    groups = {columns for columns, _ in wanted if there.issuperset(columns)}
    if not groups:
        return {}
    found: dict[tuple[tuple[str, ...], str], Mapping[str, Any]] = {}
    # The answers are there, also where the prompt was edited since.
    for row in replace(job, any_wording=True).rows(tuple(dict.fromkeys(name for names in groups for name in names))):
        if row.status != Status.OK:
            continue
        for columns in groups:
            place = columns, row_key({name: row.cells[name] for name in columns})
            if place in wanted:
                found.setdefault(place, row.answer)
    return found


def _correction(
    form: AnswerForm, one: _Decided, known: Mapping[tuple[tuple[str, ...], str], Mapping[str, Any]]
) -> Correction | str:
    """Return a person's decision as it is kept, or why it can't be taken."""
    model: Mapping[str, Any] = {}
    if one.is_incomplete:
        model = known.get((one.columns, one.key), {})
        if row_key(model) != one.seen:
            return "the row or its answer has changed since the file was written: write the file again"
    wanted = one.edited if one.seen is not None else tuple(form.columns)
    edited = {name: _value(one.texts[name], kind_of(form.columns[name])) for name in wanted}
    answer = {**form.untyped(model), **edited}
    empty = [name for name in wanted if answer[name] is None]
    unfilled = f"the model gave no answer, so fill all answers; empty: {', '.join(empty)}"
    if one.seen is None and not one.edited:
        return unfilled
    if form.schema is None:
        if empty:
            return unfilled if one.seen is None else "the answer is empty: write a text, or the model's again"
    else:
        fitting = form.parse_edited(answer)
        if isinstance(fitting, Mismatch):
            return unfilled if one.seen is None and empty else fitting.message
        answer = orjson.loads(fitting)
    return Correction(one.columns, one.key, answer, changed=bool(one.edited))


def _value(text: str, kind: Kind) -> Any:  # noqa: ANN401  (any JSON value)
    """Return a cell's text as a value of an answer column; another text stays, for the parser to refuse."""
    if not text:
        return None
    if kind in {"text", "enum", "date"}:
        return text
    try:
        return Rule(kind).normal(text) == "true" if kind == "boolean" else json.loads(text)
    except (ValueError, RecursionError):
        return text
