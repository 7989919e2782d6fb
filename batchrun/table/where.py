"""`input.where`: an SQL condition over one row, checked when the input is opened."""

from collections.abc import Mapping

import polars as pl
from polars import selectors

from batchrun.errors import InputError, did_you_mean

PROBLEMS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)
"""What Polars raises for data or an expression that it can't take."""

_MASK = "\0asked"
_ONE_ROW = "may look at one row only: windows, aggregates and subqueries are not possible"


class Where:
    """A compiled condition. `columns` are those that it uses."""

    def __init__(self, text: str, schema: Mapping[str, pl.DataType]) -> None:
        """Compile a condition. Raises InputError for text that is not an SQL predicate over one row of this input."""
        # Polars reads the column names "*" and "^…$" as patterns, so such columns are renamed on the way.
        self._renamed = {name: f"\0{number}" for number, name in enumerate(schema) if _is_pattern(name)}
        for name, plain in self._renamed.items():
            text = text.replace(_quoted(name), _quoted(plain))
        by_plain = {self._renamed.get(name, name): name for name in schema}
        self._predicate = _predicate(text, {plain: schema[name] for plain, name in by_plain.items()})
        self.columns = tuple(by_plain[name] for name in dict.fromkeys(self._predicate.meta.root_names()))

    def mask(self, frame: pl.DataFrame) -> list[bool]:
        """Return whether each row meets the condition; null counts as no. Raises InputError where it fails on a row."""
        plain = frame.rename({name: new for name, new in self._renamed.items() if name in frame.columns})
        try:
            return plain.with_columns(self._predicate)[_MASK].fill_null(value=False).to_list()
        except PROBLEMS as error:
            raise InputError(f"input.where fails on a row: {short(error)}; try_cast gives null instead") from None


def column_named(name: str) -> pl.Expr:
    """Return a column by its exact name; pl.col would take "*" for all columns."""
    return selectors.by_name(name).as_expr() if _is_pattern(name) else pl.col(name)


def short(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return str(error).strip().split("\n")[0][:200]


def _is_pattern(name: str) -> bool:
    return name == "*" or (name.startswith("^") and name.endswith("$"))


def _quoted(name: str) -> str:
    """Return a column's name as SQL quotes it."""
    return '"{}"'.format(name.replace('"', '""'))


def _predicate(where: str, schema: dict[str, pl.DataType]) -> pl.Expr:
    empty = pl.LazyFrame(schema=schema)
    try:
        predicate = pl.sql_expr(where).alias(_MASK)
        dtype = empty.with_columns(predicate).collect().schema[_MASK]
        # The optimiser moves only those filters below a sort that look at one row.
        plan = empty.with_columns(pl.lit(1).alias(_MASK)).sort(_MASK).filter(predicate).explain()
    except pl.exceptions.ColumnNotFoundError:
        missing = [name for name in pl.sql_expr(where).meta.root_names() if name not in schema]
        raise InputError(f'input.where: there is no column "{missing[0]}"{did_you_mean(missing[0], schema)}') from None
    except PROBLEMS as error:
        raise InputError(f"input.where: {_problem(error)}") from None
    if dtype != pl.Boolean:
        raise InputError(f"input.where gives {dtype}, not true or false; write a comparison")
    if plan.startswith("FILTER"):
        raise InputError(f"input.where {_ONE_ROW}")
    return predicate


def _problem(error: BaseException) -> str:
    text = str(error)
    if "cannot compare string with numeric" in text or "'is_in' cannot check for" in text:
        return "compares text with a number: write cast(x as int) or declare csv.columns"
    if "subplan" in text or "relation" in text or "OVER clause" in text:
        return _ONE_ROW
    return short(error)
