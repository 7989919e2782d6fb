"""Values of text files: JSON objects and CSV cells to Python values, and the types of their columns."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from math import isfinite
from typing import Any, NamedTuple, NoReturn, Self

import polars as pl

from batchrun.job import CsvType


class JsonNumber(float):
    """A number of a JSON line that Python would write otherwise, such as 2.50: it prints as it is written."""

    def __new__(cls, written: str) -> Self:
        """Keep the text with the value."""
        self = super().__new__(cls, written)
        self.written = written
        return self

    written: str

    def __str__(self) -> str:
        return self.written


class JsonType:
    """What the values of a JSON field have been so far; `dtype` is the narrowest type that holds them all."""

    def __init__(self) -> None:
        self._kinds: set[type] = set()
        self._largest = 0
        self._items: JsonType | None = None
        self._fields: dict[str, JsonType] = {}

    def add(self, values: Sequence[Any]) -> None:
        """Take more values."""
        kinds = set(map(type, values)) - {type(None)}
        if JsonNumber in kinds:
            kinds = (kinds - {JsonNumber}) | {float}
        self._kinds |= kinds
        if int in kinds:
            self._largest = max(self._largest, *(abs(value) for value in values if type(value) is int))
        if float in kinds and not all(isfinite(value) for value in values if isinstance(value, float)):
            self._kinds.add(str)  # 1e400 is a JSON number and no float
        if list in kinds:
            self._items = self._items or JsonType()
            self._items.add([item for value in values if type(value) is list for item in value])
        if dict in kinds:
            add_fields(self._fields, (value for value in values if type(value) is dict))

    @property
    def is_empty(self) -> bool:
        """Whether there was no value but null."""
        return not self._kinds

    def dtype(self) -> pl.DataType:
        """Return the type of the column; text where no other type holds all values as they are."""
        if self._kinds == {bool}:
            return pl.Boolean()
        if self._kinds == {int} and self._largest < 2**63:
            return pl.Int64()
        # Beyond 2**53 an id would change where a 2.5 stands in the same column.
        if self._kinds == {float} or (self._kinds == {int, float} and self._largest <= 2**53):
            return pl.Float64()
        if self._kinds == {list}:
            return pl.List(self._items.dtype() if self._items else pl.String())
        if self._kinds == {dict} and self._fields:
            return pl.Struct({name: kind.dtype() for name, kind in self._fields.items()})
        return pl.String()


def add_fields(types: dict[str, JsonType], objects: Iterable[dict[str, Any]]) -> None:
    """Add what each field of some objects holds, in the order of their first objects."""
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for fields in objects:
        for name, value in fields.items():
            found[name].append(value)
    for name, values in found.items():
        types.setdefault(name, JsonType()).add(values)


def as_type(value: Any, dtype: pl.DataType) -> Any:  # noqa: ANN401  (any JSON)
    """Return a JSON value as its column's type holds it; in a column of text any other value becomes JSON text."""
    if value is None:
        return None
    if isinstance(dtype, pl.String):
        if isinstance(value, (str, JsonNumber)):
            return str(value)
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if isinstance(dtype, pl.List):
        return [as_type(item, dtype.inner) for item in value]  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return {part.name: as_type(value.get(part.name), part.dtype) for part in dtype.fields}  # type: ignore[arg-type]
    return float(value) if isinstance(dtype, pl.Float64) else value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"not JSON ({constant} is not a JSON value)")


def _number(written: str) -> float:
    value = float(written)
    return value if repr(value) == written else JsonNumber(written)


_raw_decode = json.JSONDecoder(parse_float=_number, parse_constant=_refuse_constant).raw_decode


def json_object(text: str) -> dict[str, Any]:
    """Return the object of one line, without white space around it. Raises ValueError, which says what it is."""
    try:
        value, end = _raw_decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError("not JSON (nested too deeply)") from None
    if end != len(text):
        raise ValueError("not JSON (Extra data)")
    if type(value) is not dict:
        raise ValueError(_JSON_KINDS.get(type(value), "null"))
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair (\\ud800 to \\udfff) is not text") from None
    return value


_JSON_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    JsonNumber: "a number",
    str: "a text",
    list: "a list",
}


_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|infinity|nan)", re.IGNORECASE)
_DATE = re.compile(r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})")
_DATETIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}.*")
_TRUTH = {"true": True, "false": False}


def _integer(cell: str) -> int:
    if not _INTEGER.fullmatch(cell) or not -(2**63) <= (value := int(cell)) < 2**63:
        raise ValueError(cell)
    return value


def _float(cell: str) -> float:
    if not _NUMBER.fullmatch(cell):
        raise ValueError(cell)
    return float(cell)


def _boolean(cell: str) -> bool:
    try:
        return _TRUTH[cell.lower()]
    except KeyError:
        raise ValueError(cell) from None


def _date(cell: str) -> date:
    if not (match := _DATE.fullmatch(cell)):
        raise ValueError(cell)
    return date(int(match[1]), int(match[2]), int(match[3]))


def _datetime(cell: str) -> datetime:
    if not _DATETIME.fullmatch(cell):
        raise ValueError(cell)
    return without_zone(datetime.fromisoformat(cell))


def without_zone(moment: datetime) -> datetime:
    """Return a moment in UTC where it names an offset, else as it is; without its zone, which no column here has."""
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


class CsvKind(NamedTuple):
    """A type that `csv.columns` declares: that of its column, its name for people, and how a cell is read.

    `parse` raises ValueError or OverflowError where the cell does not fit.
    """

    dtype: pl.DataType
    words: str
    parse: Callable[[str], Any]


CSV_KINDS: dict[CsvType, CsvKind] = {
    "string": CsvKind(pl.String(), "a text", str),
    "integer": CsvKind(pl.Int64(), "an integer of at most 64 bits", _integer),
    "number": CsvKind(pl.Float64(), "a number", _float),
    "boolean": CsvKind(pl.Boolean(), "true or false", _boolean),
    "date": CsvKind(pl.Date(), "a date (2024-12-31)", _date),
    "datetime": CsvKind(pl.Datetime("us"), "a date and time (2024-12-31T23:59:59)", _datetime),
}


INTERVAL = pl.Struct({"months": pl.Int32(), "days": pl.Int32(), "nanoseconds": pl.Duration("ns")})
"""How Polars names the type of calendar intervals (DuckDB: INTERVAL), which it can't read from Parquet."""


def has_intervals(dtype: pl.DataType) -> bool:
    """Check whether a type is that of calendar intervals, or made of it."""
    return dtype == INTERVAL or any(map(has_intervals, inner_types(dtype)))


def inner_types(dtype: pl.DataType) -> list[pl.DataType]:
    """Return the types of which a list, a map or a struct is made; none for any other type."""
    if isinstance(dtype, pl.List | pl.Array):
        return [dtype.inner]  # type: ignore[list-item]
    if isinstance(dtype, pl.Map):
        return [dtype.key, dtype.value]  # type: ignore[list-item]
    if isinstance(dtype, pl.Struct):
        return [part.dtype for part in dtype.fields]  # type: ignore[misc]
    return []
