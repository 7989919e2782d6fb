"""`input.where`: an SQL condition over one row, checked when the input is opened."""

import re
from collections.abc import Mapping

import polars as pl
from polars import selectors

from batchrun.errors import InputError, did_you_mean, known_names

PROBLEMS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)
"""What Polars raises for data or an expression that it can't take."""

_MASK = "\0asked"
_BEFORE = "SELECT 1 FROM self WHERE "
_SYNTAX = re.compile(r"sql parser error: (.*?)(?: at Line: (\d+), Column: (\d+))?", re.DOTALL)
_FUNCTION = re.compile("unsupported function '(.*)'")
_CALL = re.compile("no function matches the given name and arguments: `(.*)`", re.DOTALL)
_NOT_A_NUMBER = "cannot compare string with numeric"
_DATES_LISTED = re.compile(r"'is_in' cannot check for (?:Date|Time)\w*(?:\(.*\))? values in List\(String\)")
_FUNCTIONS = (
    "abs", "ceil", "coalesce", "concat", "concat_ws", "date", "date_part", "ends_with", "extract", "floor",
    "greatest", "ifnull", "initcap", "least", "left", "length", "lower", "ltrim", "mod", "nullif", "octet_length",
    "regexp_like", "replace", "reverse", "right", "round", "rtrim", "sign", "split_part", "starts_with", "strftime",
    "strptime", "strpos", "substr", "trim", "upper",
)  # fmt: skip
"""The functions of Polars' SQL that look at one row: what a misspelt one may have meant."""

_ASIDE = r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/"
_QUOTED = re.compile(_ASIDE, re.DOTALL)
_DECIMAL = re.compile(rf"{_ASIDE}|(?<![\w.])(?P<decimal>\d+\.\d*|\.\d+)(?![\w.])", re.DOTALL)
_NULL_COMPARED = re.compile(r"(?<!<=)[=<>]\s*null\b", re.IGNORECASE)  # a <=> null is true where a is null
_MIXED_LIST = re.compile(r"\bin\s*\((?=[^()]*'')(?=[^()]*(?<![\w.])[\d.])[^()]*\)", re.IGNORECASE)
"""A list with a text and a number, such as ('de', 1): Polars makes texts of all."""

_HABITS = (
    (r"\{\{|\}\}", "a column stands without braces: text is not null"),
    (r"^\s*(?:select|where)\b", "write the condition alone, without SELECT and WHERE"),
    (r"\b(?:order\s+by|group\s+by|limit)\b", "a condition only chooses rows: no ORDER BY, GROUP BY or LIMIT"),
    (r"\b(?:isnull|isna|notnull|notna)\b", "write text is null, or text is not null"),
    (r"\.(?:str|isin|contains|startswith|endswith|fillna|astype|eq|ne)\b", "this is SQL, not Python: text like '%x%'"),
    (r"\bcontains\s*\(", "there is no function contains: write text like '%x%', or strpos(text, 'x') > 0"),
    (r"&&|\|\||&|!(?!=)", "write and, or, not"),
    (r";\s*$", "leave out the semicolon"),
)
"""What people write who come from elsewhere, as a pattern, and what to write here; asked only where SQL refuses."""

_NUMBER = "compares text with a number: write cast(x as int), or declare input.csv.columns"
_SUBQUERY = re.compile(r"\(\s*(?:select|with)\b", re.IGNORECASE)
_CLOCK = re.compile(
    r"(?<![\w.])(?:now\s*\(|(?:current_(?:date|time|timestamp)|localtime|localtimestamp)\b)", re.IGNORECASE
)
# A row's rendering, and whether it is asked, depend on that row alone.
_ONE_ROW = "may look at one row only: windows, aggregates and subqueries are not possible"


class Where:
    """A compiled condition. `columns` are those that it uses."""

    def __init__(self, text: str, schema: Mapping[str, pl.DataType]) -> None:
        """Compile a condition. A column of the type Null holds no value, and may be of any type.

        Raises InputError for text that is not an SQL predicate over one row of this input.
        """
        self._texts = [name for name, dtype in schema.items() if isinstance(dtype, pl.Categorical | pl.Enum)]
        schema = {**schema, **dict.fromkeys(self._texts, pl.String())}  # SQL's functions of text refuse categories
        # Polars reads the column names "*" and "^…$" as patterns, so such columns are renamed on the way.
        self._renamed = {name: f"\0{number}" for number, name in enumerate(schema) if _is_pattern(name)}
        for name, plain in self._renamed.items():
            text = text.replace(_quoted(name), _quoted(plain))
        by_plain = {self._renamed.get(name, name): name for name in schema}
        types = {plain: schema[name] for plain, name in by_plain.items()}
        self._nulls = [plain for plain, dtype in types.items() if isinstance(dtype, pl.Null)]
        try:
            self._predicate = _predicate(text, types)
        except InputError:  # SQL's functions of text refuse Null, as its arithmetic refuses text
            if not self._nulls:
                raise
            self._predicate = _predicate(text, {**types, **dict.fromkeys(self._nulls, pl.String())})
            self._nulls = []
        self.columns = tuple(by_plain[name] for name in dict.fromkeys(self._predicate.meta.root_names()))

    def mask(self, frame: pl.DataFrame) -> list[bool]:
        """Return whether each row meets the condition; null counts as no. Raises InputError where it fails on a row."""
        texts = (column_named(name).cast(pl.String) for name in self._texts if name in frame.columns)
        plain = frame.with_columns(texts).rename(
            {name: new for name, new in self._renamed.items() if name in frame.columns}
        )
        nulls = [pl.lit(None).alias(name) for name in self._nulls if name in plain.columns]
        try:
            return plain.with_columns(nulls).with_columns(self._predicate)[_MASK].fill_null(value=False).to_list()
        except PROBLEMS as error:
            raise InputError(f"input.where fails on a row: {first_line(error)}; try_cast gives null instead") from None


def column_named(name: str) -> pl.Expr:
    """Return a column by its exact name; pl.col would take "*" for all columns."""
    if _is_pattern(name):
        return selectors.by_name(name).as_expr()
    return pl.col(name)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return str(error).strip().split("\n")[0][:200]


def _is_pattern(name: str) -> bool:
    return name == "*" or (name.startswith("^") and name.endswith("$"))


def _quoted(name: str) -> str:
    """Return a column's name as SQL quotes it."""
    return '"{}"'.format(name.replace('"', '""'))


def _predicate(where: str, schema: dict[str, pl.DataType]) -> pl.Expr:
    empty = pl.LazyFrame(schema=schema)
    bare = _bare(where)
    if _NULL_COMPARED.search(bare):
        raise InputError("input.where: a comparison with null is never true: write is null, or is not null")
    if _SUBQUERY.search(bare):
        raise InputError(f"input.where: {_ONE_ROW}")
    if clock := _CLOCK.search(bare):
        # The rows that were left out tonight would stay so tomorrow, since neither they nor the condition changed.
        raise InputError(
            f"input.where: {clock[0].rstrip('( ')} depends on the time of the run; write a date: date '2024-01-31'"
        )
    try:
        predicate = pl.sql_expr(where).alias(_MASK)
        dtype = empty.with_columns(predicate).collect().schema[_MASK]
        if dtype != pl.Boolean:
            raise InputError(f"input.where gives {dtype}, not true or false; write a comparison")
        # The optimiser moves only those filters below a sort that look at one row.
        plan = empty.with_columns(pl.lit(1).alias(_MASK)).sort(_MASK).filter(predicate).explain()
    except pl.exceptions.ColumnNotFoundError:
        missing = [name for name in pl.sql_expr(where).meta.root_names() if name not in schema]
        raise InputError(f"input.where: {_no_column(missing[0], where, schema)}") from None
    except PROBLEMS as error:
        raise InputError(f"input.where: {_problem(error, where, schema)}") from None
    if plan.startswith("FILTER"):
        raise InputError(f"input.where {_ONE_ROW}")
    if _MIXED_LIST.search(bare) or _takes_numbers_as_texts(where, empty):
        raise InputError(f"input.where: {_NUMBER}")
    return predicate


def _bare(where: str) -> str:
    """Return a condition without its comments and without what stands in quotes."""
    return _QUOTED.sub(lambda found: {"'": "''", '"': '""'}.get(found[0][0], " "), where)


def _takes_numbers_as_texts(where: str, empty: pl.LazyFrame) -> bool:
    """Check whether a condition compares a text with a decimal number; Polars makes it a text, and '10' > 9.5 is false.

    Polars refuses the same number as a float. The condition that is used keeps it: a float is not exact.
    """
    floats = _DECIMAL.sub(lambda found: f"{found[0]}e0" if found["decimal"] else found[0], where)
    try:
        empty.select(pl.sql_expr(floats)).collect()
    except PROBLEMS as error:
        return _NOT_A_NUMBER in str(error)
    return False


def _no_column(name: str, where: str, schema: Mapping[str, pl.DataType]) -> str:
    # `size.cm > 2` for the column "size.cm": SQL takes `size` for the column and `cm` for a field of it.
    dotted = [known for known in schema if known.startswith(f"{name}.")]
    if dotted:
        return f'the input has no column "{name}"; write {_quoted(dotted[0])}, in double quotes, for that column'
    names = [known for known in schema if "\0" not in known]
    advice = known_names(name, names)
    if f'"{name}"' in where and not did_you_mean(name, names):
        advice = f"; a text stands in single quotes: '{name}'"
    return f'the input has no column "{name}"{advice}'


def _problem(error: BaseException, where: str, schema: Mapping[str, pl.DataType]) -> str:
    """Return the mistake in a condition that Polars refuses."""
    text = str(error)
    bare = _bare(where)
    if habit := next((advice for pattern, advice in _HABITS if re.search(pattern, bare, re.IGNORECASE)), None):
        return f"not valid: {habit}"
    if "to a string value" in text or _DATES_LISTED.match(text):
        problem = "compares a date with a text: write date '2024-01-31'"
    elif _NOT_A_NUMBER in text or "'is_in' cannot check for" in text:
        problem = _NUMBER
    elif "subplan" in text or "relation" in text or "OVER clause" in text:
        problem = _ONE_ROW
    elif text.startswith("regex"):
        problem = f"a pattern is not valid: {first_line(ValueError(text.rpartition('error: ')[2]))}"
    elif found := _FUNCTION.fullmatch(text):
        problem = f'there is no function "{found[1]}"{did_you_mean(found[1], _FUNCTIONS)}'
    elif found := _CALL.fullmatch(text):
        problem = f"a function is called with arguments that it does not take: {found[1]}"
    elif isinstance(error, pl.exceptions.StructFieldNotFoundError):
        problem = (
            f'there is no field "{first_line(error)}"; a column with a dot in its name stands in quotes, as in "a.b"'
        )
    else:
        problem = _syntax(where, schema) or first_line(error)
        spaced = [name for name in schema if " " in name and name in bare]
        if spaced:
            problem += f"; write {_quoted(spaced[0])}, in double quotes, for that column"
    return problem


def _syntax(where: str, schema: Mapping[str, pl.DataType]) -> str | None:
    """Return where a condition breaks the grammar of SQL; None where it does not.

    Polars names the place in a whole statement, but not in an expression.
    """
    try:
        pl.LazyFrame(schema=schema).sql(_BEFORE + where)
    except pl.exceptions.SQLInterfaceError as error:
        found = _SYNTAX.fullmatch(str(error))
        if found is None:
            return "must be one condition, such as n > 2"
        what = (
            found[1].replace("Expected:", "expected").replace("found:", "found").replace("found EOF", "found the end")
        )
        if found[2] is None:
            return f"not valid SQL: {what}"
        line, column = int(found[2]), int(found[3])
        if line == 1:
            return f"not valid SQL at column {column - len(_BEFORE)}: {what}"
        return f"not valid SQL at line {line}, column {column}: {what}"
    except PROBLEMS:
        return None
    return None
