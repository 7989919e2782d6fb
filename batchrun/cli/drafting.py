"""A first job file for an input: looks at its columns and writes a commented job that runs on the simulator at once."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from batchrun.job import DEFAULT_DETAILS, CsvOptions
from batchrun.prompt import spelled
from batchrun.table import Rows, open_guessed, unreadable_in_a_prompt
from batchrun.terminal import plural, printable, short

SCHEMA = Path("docs", "reference", "job.schema.json")
SAMPLE = 2_000
"""Rows that are looked at to choose the prompt's column."""

_KEPT_FORMAT = {".parquet": ".parquet", ".arrow": ".arrow", ".ipc": ".arrow", ".feather": ".arrow", ".jsonl": ".jsonl",
                ".ndjson": ".jsonl", ".json": ".jsonl", ".xlsx": ".xlsx"}  # fmt: skip
_NAMED = 20
_ANSWERS = ("label", "reason")


@dataclass(frozen=True, slots=True)
class Look:
    """What an input looks like: options to read it, columns and their types, the column to ask about, its nulls."""

    file: Path
    csv: CsvOptions
    columns: Mapping[str, str]
    column: str
    nulls: int
    rows: int


def look(file: Path) -> Look:
    """Look at an input of any format; encoding and separator of a CSV file are found by trying.

    Raises InputError for a file that can't be read as rows, with what to set.
    """
    with open_guessed(file) as (rows, csv):
        column = _column(rows)
        nulls = number = 0
        for batch in rows.batches((column,)):
            number += len(batch.rows)
            nulls += sum(value is None for (value,) in batch.rows)
        columns = {name: str(dtype).lower() for name, dtype in rows.schema.items()}
        return Look(file, csv, columns, column, nulls, number)


def _column(rows: Rows) -> str:
    """Choose the column that says most in words: addresses and codes have no spaces."""
    columns = [name for name, dtype in rows.schema.items() if not unreadable_in_a_prompt(dtype)] or rows.columns
    # The first rows are enough to find the column with texts, and the input may have ten million.
    batch = next(rows.batches(columns, size=SAMPLE), None)
    if batch is None or not batch.rows:
        return columns[0]
    said = [_said(cells) for cells in zip(*batch.rows, strict=True)]
    return columns[said.index(max(said))]


def _said(cells: Sequence[Any]) -> tuple[int, int]:
    texts = [cell for cell in cells if isinstance(cell, str)]
    # A column of addresses may be longer than one of reviews, but has no spaces in it.
    return sum(len(text) for text in texts if " " in text.strip()), sum(map(len, texts))


def draft(seen: Look, job: Path) -> str:
    """Write the job file at `job` for an input that was looked at."""
    templates = Environment(  # noqa: S701  (YAML, not HTML)
        loader=FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    templates.filters.update(quoted=_quoted, short=short, printable=printable)
    csv = {}
    if seen.csv.separator is not None:
        csv["separator"] = _quoted(seen.csv.separator)
    if seen.csv.encoding != CsvOptions().encoding:
        csv["encoding"] = seen.csv.encoding
    schemas = (base / SCHEMA for base in (job.parent, job.parent.parent) if (base / SCHEMA).is_file())
    return templates.get_template("job.yaml.j2").render(
        seen=seen,
        schema=next((_relative(schema, job) for schema in schemas), None),
        # ${NAME} in a path is a variable of the environment.
        path=_relative(seen.file, job).replace("$", "$$"),
        columns=list(seen.columns.items()),
        most=_NAMED,
        csv=[f"{name}: {value}" for name, value in csv.items()],
        where=_condition(seen.column),
        column=spelled(seen.column),
        output=str(_output(seen, job)).replace("$", "$$"),
        prefix=_prefix(seen.columns),
        count="{:,}".format,
        plural=plural,
    )


def _output(seen: Look, job: Path) -> Path:
    """Return the path of the output as the job file names it: in the input's format where that can be written."""
    folder = Path("out")
    if job.parent.name == "jobs":
        folder = Path("..", "out")
    suffix = _KEPT_FORMAT.get(seen.file.suffix.lower(), _KEPT_FORMAT.get(Path(seen.file.stem).suffix.lower(), ".csv"))
    path = folder / f"{job.stem}{suffix}"
    if (job.parent / path).resolve() == seen.file.resolve():
        path = folder / f"{job.stem}-answers{suffix}"
    return path


def _prefix(columns: Mapping[str, str]) -> str:
    """Return a prefix that keeps new columns apart from the input's; none where they are."""
    new = (*_ANSWERS, *DEFAULT_DETAILS)
    # An input that is an output of ours has a column called label and one called status already.
    candidates = ("", "ai_", *(f"ai{number}_" for number in range(2, len(columns) + 3)))
    return next(prefix for prefix in candidates if not any(prefix + name in columns for name in new))


def _relative(file: Path, job: Path) -> str:
    return os.path.relpath(file, job.parent)


def _quoted(text: str) -> str:
    """Return a text in double quotes, as YAML and Jinja both read it; unprintable characters are escaped."""

    def escaped(character: str) -> str:
        if character in '"\\':
            return f"\\{character}"
        return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")

    return f'"{"".join(map(escaped, text))}"'


def _condition(column: str) -> str:
    """Return the condition that a column has a value, as a YAML scalar in the quotes that need fewest escapes."""
    name = column.replace('"', '""')
    text = f'"{name}" is not null'
    if "'" in text or not text.isprintable():
        return _quoted(text)
    return f"'{text}'"
