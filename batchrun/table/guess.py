"""Encoding and separator of a CSV file that no job file describes, found by trying."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from batchrun.errors import InputError, UserError
from batchrun.job import CsvOptions, Input
from batchrun.table.files import kind_of, near_file
from batchrun.table.read import Rows, open_rows
from batchrun.terminal import short

_SEPARATORS = (None, ";", "\t", "|")
# What Excel writes in Western Europe, then an encoding in which every byte is a letter.
_ENCODINGS = ("utf-8", "cp1252", "latin-1")


@contextmanager
def open_guessed(file: Path) -> Iterator[tuple[Rows, CsvOptions]]:
    """Open a file that no job file describes; yield its rows, and how it is read if it is CSV.

    Raises UserError where there is no file, InputError for one that can't be read as rows.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder: name a file in it")
    if not file.exists():
        raise UserError(f"there is no file {file}{near_file(file)}")
    csv = _guessed(file)
    with open_rows(Input(file.name, csv=csv), file.parent) as rows:
        yield rows, csv


def _guessed(file: Path) -> CsvOptions:
    """Return the encoding and the separator that read a CSV file: others are tried where UTF-8 and a comma do not.

    Files of other formats need no options. Raises InputError for a file that can't be read as rows.
    """
    if kind_of(file) != "csv":
        return CsvOptions()
    problems = []
    for encoding, separator in product(_ENCODINGS, _SEPARATORS):
        csv = CsvOptions(encoding=encoding, separator=separator)
        try:
            columns = _columns(file, csv)
        except InputError as problem:
            problems.append(problem)
            continue
        # A separator that splits no line is a guess that hides the real flaw.
        if len(columns) > (separator is not None):
            return csv
    raise problems[0]


def encoding_note(file: Path, csv: CsvOptions, texts: Iterable[str]) -> str:
    """Return which encoding was guessed for a file, with a text that shows whether that is right.

    Empty where nothing had to be guessed: the file is UTF-8, or none of its texts that count has such a byte.
    """
    shown = next((text for text in texts if not text.isascii()), None)
    if csv.encoding == CsvOptions().encoding or shown is None:
        return ""
    return f'{file} is not UTF-8 and was read as {csv.encoding}: if "{short(shown, 60)}" is wrong, save it as UTF-8'


def _columns(file: Path, csv: CsvOptions) -> tuple[str, ...]:
    with open_rows(Input(file.name, csv=csv), file.parent) as rows:
        for _ in rows.batches(()):
            pass
        return rows.columns
