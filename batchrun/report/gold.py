"""Right answers, given by people: where they stand, and when an answer is equal to one."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time
from decimal import Decimal, InvalidOperation, Overflow
from itertools import chain
from pathlib import Path
from typing import Any

from batchrun.errors import UserError, did_you_mean, known_names
from batchrun.prepare import Prepared
from batchrun.records import Kind, kind_of
from batchrun.report.answered import AnsweredRow, text_of
from batchrun.table import Rows, encoding_note, open_guessed
from batchrun.terminal import plural

TRUE = {
    "true", "yes", "1", "wahr", "vrai", "verdadero", "vero", "verdadeiro", "waar", "sant", "sand", "sann", "tosi",
    "prawda", "pravda", "igaz", "истина",
}  # fmt: skip
FALSE = {
    "false", "no", "0", "falsch", "faux", "falso", "onwaar", "falskt", "falsk", "usann", "epätosi", "fałsz", "nepravda",
    "hamis", "ложь",
}  # fmt: skip
"""What people write for true and false, in lower case. An Excel in German saves the true of a CSV file as WAHR."""


@dataclass(frozen=True, slots=True)
class GoldOptions:
    """What the flags say of gold: `names` is ANSWER=COLUMN or COLUMN, `on` the column that joins `file`."""

    names: str
    file: Path | None = None
    on: str | None = None
    ignore_case: bool = False
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class Rule:
    """When two values of an answer column are equal."""

    kind: Kind
    ignore_case: bool = False
    tolerance: Decimal = Decimal(0)

    def __str__(self) -> str:
        match self.kind:
            case "integer" | "number":
                if self.tolerance:
                    return f"as numbers: equal if they differ by at most {self.tolerance.normalize():f}"
                return "as numbers: equal if they have the same value"
            case "boolean":
                return "as true and false: yes and 1 are true, no and 0 are false"
            case "date":
                return "as dates: a moment at midnight is its day"
            case "list" | "object" | "json":
                return "as JSON, keys in any order"
        case = "are equal" if self.ignore_case else "differ"
        return f"as text without spaces around it; upper and lower case {case}"

    def is_label(self) -> bool:
        """Check whether values of this kind can be classes: equal ones have one name."""
        return self.kind not in {"number", "list", "object", "json"} and not self.tolerance

    def normal(self, value: Any) -> str:  # noqa: ANN401  (any cell or JSON value)
        """Return the text by which a value is compared. Raises ValueError for another kind of value."""
        text = text_of(value).strip()
        match self.kind:
            case "integer" | "number":
                return _decimal(text)
            case "boolean":
                if text.lower() in TRUE:
                    return "true"
                if text.lower() in FALSE:
                    return "false"
                raise ValueError(f'"{text}" is neither true nor false')
            case "date":
                text = _day(text)
            case "list" | "object" | "json":
                try:
                    found = json.loads(text, parse_float=_number)
                except (ValueError, RecursionError):
                    return text
                return json.dumps(found, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        return text.casefold() if self.ignore_case else text

    def answer(self, value: Any) -> str | None:  # noqa: ANN401  (any JSON value)
        """Return the text by which an answer is compared; None for a missing one."""
        if value is None:
            return None
        try:
            return self.normal(value)
        except ValueError:  # the second of two jobs has answers of another kind
            return text_of(value)

    def equal(self, first: str | None, second: str | None) -> bool:
        """Compare two values in their normal form; None stands for a missing one."""
        if first is None or second is None or not self.tolerance:
            return first == second
        try:
            return abs(Decimal(first) - Decimal(second)) <= self.tolerance
        except ArithmeticError:
            return first == second


def _decimal(text: str) -> str:
    """Return a number in one form: 7.0 and 7E0 are 7, -0 is 0. Raises ValueError."""
    try:
        number = Decimal(text).normalize() + 0  # which turns -0 into 0
    except InvalidOperation:
        raise ValueError(f'"{text}" is not a number') from None
    except Overflow:  # 1e999999999
        raise ValueError(f'"{text}" is too large to be compared') from None
    if not number.is_finite():
        raise ValueError(f'"{text}" is not a number')
    return f"{number:f}"


def _number(written: str) -> float:
    """Return a number of JSON; 7.0 is 7, as it is by itself."""
    number = float(written)
    return int(number) if number.is_integer() else number


def _day(text: str) -> str:
    """Return the day of a moment at midnight: pandas and timestamps of Parquet have no dates. Other texts stay."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return str(moment.date()) if moment.time() == time.min else text


@dataclass(frozen=True, slots=True)
class Gold:
    """Where the right values of an answer column stand.

    `source` is the column of the input to read: gold itself, or the one that joins another file, whose values are then
    in `joined`; `note` says which encoding was guessed for that file.
    """

    answer: str
    column: str
    rule: Rule
    source: str
    joined: Mapping[str, Any] | None = field(default=None, repr=False)
    note: str = ""

    def of(self, row: AnsweredRow) -> str | None:
        """Return the right value for a row, in its normal form; None where there is none.

        Raises UserError for a value that no answer could be equal to.
        """
        value = row.cells[self.source]
        if self.joined is not None:
            value = self.joined.get(text_of(value).strip())
        if value is None or not text_of(value).strip():
            return None
        try:
            return self.rule.normal(value)
        except ValueError as problem:
            raise UserError(
                f'--gold: row {row.position + 1:,}: {problem}, as the answers in "{self.answer}" are: fix the cell in '
                f'"{self.column}", or empty it to leave the row out'
            ) from None


def gold_of(prepared: Prepared, options: GoldOptions) -> Gold:
    """Return the gold that the flags name. Raises UserError for a column, a file or a tolerance that can't be meant."""
    # nan and infinity are numbers for click.
    if not 0 <= options.tolerance < float("inf"):
        raise UserError(f"--tolerance must be 0 or more, not {options.tolerance}")
    name, _, column = options.names.rpartition("=")
    joined, note = None, ""
    if options.file is not None and options.on is not None:
        joined, note = _joined(options.file, options.on, column)
        require_column(prepared.rows, options.on, "--on")
    elif options.file is None and options.on is None:
        require_column(prepared.rows, column, "--gold")
    else:
        raise UserError("--gold-file needs --on COLUMN, and --on needs --gold-file: the column that both files have")
    answer = answer_named(tuple(prepared.form.columns), name, column)
    tolerance = Decimal(str(options.tolerance))
    rule = Rule(kind_of(prepared.form.columns[answer]), options.ignore_case, tolerance)
    if rule.tolerance and rule.kind not in {"integer", "number"}:
        raise UserError(f'--tolerance: the answers in "{answer}" are not numbers')
    return Gold(answer, column, rule, options.on or column, joined, note)


def most_frequent(golds: Counter[str]) -> str | None:
    """Return the gold that most of the equal rows have; None where two values are equally frequent."""
    (gold, number), *others = golds.most_common(2)
    return None if others and others[0][1] == number else gold


def contradiction_text(contradictory: int, ties: int) -> str:
    """Return how many questions have different gold in equal rows, and what counts of it."""
    left_out = f", and {ties:,} without one left out" if ties else ""
    return f"{plural(contradictory, 'question')} with different gold in equal rows; the most frequent counts{left_out}"


def answer_named(answers: Sequence[str], name: str, column: str, flag: str = "--gold") -> str:
    """Return the answer column that a gold column belongs to: the named one, else the only or the equally named one."""
    if not name:
        if len(answers) > 1 and column not in answers:
            choices = ", ".join(f"{answer}={column}" for answer in answers)
            raise UserError(f'--gold: which answer has its right values in "{column}"? Write one of {choices}')
        return column if column in answers else answers[0]
    if name not in answers:
        raise UserError(f'{flag}: there is no answer column "{name}"{did_you_mean(name, answers)}')
    return name


def require_column(rows: Rows, column: str, flag: str, file: str = "the input") -> None:
    """Raise UserError, naming the flag, if the file has no such column."""
    if column not in rows.columns:
        raise UserError(f'{flag}: {file} has no column "{column}"{known_names(column, rows.columns)}')


def _joined(file: Path, on: str, column: str) -> tuple[dict[str, Any], str]:
    """Read another file's gold by its join column, which is held in memory; return it and the note on its encoding."""
    found: dict[str, Any] = {}
    with open_guessed(file) as (rows, csv):
        require_column(rows, column, "--gold", str(file))
        require_column(rows, on, "--on", str(file))
        if column == on:
            raise UserError(f'--on: "{on}" is the gold column itself; name the column that both files have')
        for batch in rows.batches((on, column)):
            for key, value in batch.rows:
                name = text_of(key).strip()
                # Rows without an id are not one row: the gold of one would count for all.
                if name and value is not None and found.setdefault(name, value) != value:
                    raise UserError(f'--gold-file: {file} has two values of "{column}" for "{name}" in "{on}"')
    return found, encoding_note(file, csv, map(text_of, chain.from_iterable(found.items())))
