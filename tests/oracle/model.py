"""The naive batchrun: what a job over some files must bring, written so that a reader believes it at a glance.

Its spec of a prompt is the table "type → text in a prompt" in docs/reference, that of a failure the table of errors.
"""

import csv
import datetime as dt
import functools
import json
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from oracle.cells import Number, Single
from oracle.excel import read_sheet
from oracle.server import good_answer, has_two_answers, kind_of

# -- reading: names, a type for each, and rows of Python values


@dataclass
class Table:
    """Rows with the columns' names and types, in order."""

    types: dict[str, str]
    rows: list[dict[str, Any]]


def read(files: Sequence[Path], declared: dict[str, str]) -> Table:
    """Read files of one format in order; the first one's columns set the order."""
    tables = [_read(file, declared) for file in files]
    types = {name: _widest([one.types[name] for one in tables]).replace("null", "string") for name in tables[0].types}
    return Table(types, [{name: row[name] for name in types} for table in tables for row in table.rows])


def _read(file: Path, declared: dict[str, str]) -> Table:
    if file.suffix in {".csv", ".tsv"}:
        with file.open(encoding="utf-8", newline="") as opened:
            names, *cells = csv.reader(opened, delimiter="\t" if file.suffix == ".tsv" else ",")
        typed = {name: declared.get(name, "string") for name in names}
        return Table(typed, [{n: _typed(c, typed[n]) for n, c in zip(names, row, strict=True)} for row in cells])
    if file.suffix in {".jsonl", ".json", ".xlsx"}:
        names, rows = read_sheet(file) if file.suffix == ".xlsx" else _read_json(file)
        typed = {name: _widest([_type(row.get(name)) for row in rows]) for name in names}
        return Table(typed, [{name: row.get(name) for name in names} for row in rows])
    raw = pa.BufferReader(file.read_bytes())
    found = pa.parquet.read_table(raw) if file.suffix == ".parquet" else pa.ipc.open_file(raw).read_all()
    texts = [pa.string() if pa.types.is_binary(one.type) else one.type for one in found.schema]
    found = found.cast(pa.schema(zip(found.column_names, texts, strict=True)))
    types, rows = {one.name: arrow_type(one.type) for one in found.schema}, found.to_pylist()
    for name in (name for name, kind in types.items() if kind == "single"):
        rows = [{**row, name: None if row[name] is None else Single(row[name])} for row in rows]
    return Table(types, rows)


def _read_json(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    lines = file.read_text("utf-8")
    array = lines if file.suffix == ".json" else "[" + ",".join(filter(None, lines.split("\n"))) + "]"
    rows = json.loads(array, parse_int=Number, parse_float=Number)
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _typed(cell: str, kind: str) -> Any:  # noqa: ANN401  (any cell)
    """Return the value of a CSV cell; an empty one is null."""
    read: dict[str, Callable[[str], Any]] = {
        "integer": int,
        "number": float,
        "boolean": lambda text: text.lower() == "true",
        "date": dt.date.fromisoformat,
        "datetime": dt.datetime.fromisoformat,
    }
    return None if cell == "" else read.get(kind, str)(cell)


def _type(value: Any) -> str:  # noqa: ANN401  (any cell)
    if isinstance(value, Number):
        return "integer" if isinstance(value.exact, int) else "number"
    words = {bool: "boolean", str: "string", list: "list", dt.date: "date", dt.datetime: "datetime"}
    return words.get(type(value), "null")


def _widest(types: Sequence[str]) -> str:
    """Return the narrowest type that holds all of these."""
    some = set(types) - {"null"}
    if some == {"integer", "number"}:
        return "number"
    return some.pop() if len(some) == 1 else "string" if some else "null"


def arrow_type(kind: pa.DataType) -> str:
    """Return our word for an Arrow type."""
    if pa.types.is_dictionary(kind):
        return arrow_type(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "list"
    words = [
        ("string", (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)),
        ("integer", (pa.types.is_integer,)),
        ("single", (pa.types.is_float32,)),
        ("number", (pa.types.is_float64,)),
        ("boolean", (pa.types.is_boolean,)),
        ("date", (pa.types.is_date,)),
        ("datetime", (pa.types.is_timestamp,)),
        ("decimal", (pa.types.is_decimal,)),
    ]
    return next((word for word, tests in words if any(test(kind) for test in tests)), str(kind))


# -- the prompt


class _NullError(Exception):
    """The template prints a null."""


def text(value: Any) -> str:  # noqa: ANN401  (any cell)
    """Return a value as a prompt shows it: the table in docs/reference."""
    if value is None:
        raise _NullError
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Number):
        return value.written
    if isinstance(value, Single):
        forms = (f"{float(value):.{digits}g}" for digits in range(1, 10))
        shortest = next(form for form in forms if struct.pack("f", float(form)) == struct.pack("f", value))
        return str(float(shortest))
    if isinstance(value, list):
        return "[" + ", ".join(json.dumps(one, ensure_ascii=False) for one in value) + "]"
    return str(value)


def _default(value: Any, instead: Any = "", empty: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002  (Jinja's)
    return instead if value is None or isinstance(value, jinja2.Undefined) or (empty and not value) else value


_JINJA = jinja2.Environment(undefined=jinja2.StrictUndefined, finalize=text, autoescape=False)  # noqa: S701  (no HTML)
_JINJA.filters["default"] = _default
_compiled = functools.cache(_JINJA.from_string)


def render(template: str, row: dict[str, Any]) -> str | None:
    """Return a row's prompt; None where it prints a null."""
    try:
        return _compiled(template).render({"row": row, **row})
    except _NullError:
        return None


# -- how a question can end


@dataclass(frozen=True)
class End:
    """How a row stands; `error` and `code` as in the output."""

    status: str
    error: str | None = None
    code: int | None = None


OK, PENDING, SKIPPED, UNRENDERED = End("ok"), End("pending"), End("skipped"), End("failed", "template_error")
ASKED_AGAIN = {"server_error", "overloaded", "rate_limited", "empty_response", "invalid_response", "reset", "timeout",
               "connection", "unexplained"}  # fmt: skip
"""The failures that the next run asks again by itself; a row of the table of errors says so."""


def ends(question: str, job: "Job") -> tuple[End, int, int]:
    """Return how a question ends under a server that is well, and the fewest and the most requests for that."""
    tries, mismatch = job.attempts, End("failed", "schema_mismatch")
    table: dict[str | None, tuple[End, int, int]] = {
        "badrequest": (End("failed", "bad_request", 400), 1, tries),
        # With one attempt nobody asks again once the server is less busy: the next run does.
        "busy": (End("failed", "rate_limited", 429) if tries > 1 else PENDING, 1, 60),
        "large": (End("failed", "payload_too_large", 429), 1, tries),
        "crash": (End("failed", "server_error", 500), min(2, tries), 60),
        "cut": (End("failed", "truncated"), 1, 1),
        "odd": (End("failed", "interrupted"), 1, tries),
        "filter": (End("failed", "content_filter"), 1, 1),
        "empty": (End("failed", "no_answer"), 1, 2),
        "lost": (End("failed", "invalid_response"), 1, 3),
    }
    if job.columns is None:
        table |= {"whole": (End("failed", "truncated"), 1, 1), "broken": (End("failed", "broken_text"), 1, 2)}
    else:
        table["bad"] = (mismatch, 1 + job.repairs, 1 + job.repairs)
        table["mend"] = (OK, 2, 2) if job.repairs else (mismatch, 1, 1)
        table["two"] = table["bad"] if has_two_answers(question, job.columns) else (OK, 1, 1)
    if "chance" in (job.columns or {}).values():  # a decision model writes no text that could be odd
        table = {kind: table[kind] for kind in ("badrequest", "busy", "large", "crash", "lost", "bad")}
    return table.get(kind_of(question), (OK, 1, 1))


# -- a job, and what is known of its questions


@dataclass
class Job:
    """What the oracle must know of a job."""

    template: str
    where: Callable[[dict[str, Any]], bool | None] | None
    keep: str | list[str]
    details: list[str]
    prefix: str
    columns: dict[str, Any] | None
    dedupe: bool
    attempts: int
    repairs: int
    asked_columns: tuple[str, ...] = ()
    """The columns that the prompt uses."""

    def cells(self, row: dict[str, Any]) -> "Cells":
        """Return the cells that a correction belongs to."""
        return tuple(map(repr, (row[name] for name in self.asked_columns)))


Cells = tuple[str, ...]
Question = tuple[str, int]  # the prompt, and which of its equals: 0 where equal rows share one answer


@dataclass
class Memory:
    """How each question ever asked stands; a prompt that is changed back finds its answers."""

    ends: dict[Question, End] = field(default_factory=dict)
    tried: set[Question] = field(default_factory=set)  # and got no answer, in a run in which others did
    people: dict[Cells, dict[str, Any]] = field(default_factory=dict)  # what a person answered, by column
    left_out: set[Question] = field(default_factory=set)  # failed, and a person answered all rows

    def is_open(self, question: Question) -> bool:
        """Check whether a run asks this question."""
        end = self.ends.get(question, PENDING)
        return end == PENDING or (end.error in ASKED_AGAIN and question not in self.left_out)

    def leave_out(self, job: Job, table: Table, planned: Sequence["Question | End"]) -> None:
        """Find the failed questions of which a person answered all rows: no run asks them again."""
        pairs = list(zip(table.rows, planned, strict=True))
        others = {one for row, one in pairs if job.cells(row) not in self.people}
        failed = {
            one for _, one in pairs if not isinstance(one, End) and self.ends.get(one, PENDING).status == "failed"
        }
        self.left_out = failed - others

    def adopt(self, other: "Memory", planned: Sequence["Question | End"]) -> None:
        """Take the answers to open questions that a trial of the job has, or the job of a trial."""
        for one in planned:
            if isinstance(one, End) or other.ends.get(one) != OK:
                continue
            end = self.ends.get(one, PENDING)
            if end == PENDING or end.error in ASKED_AGAIN:
                self.ends[one] = OK

    def standing(self, job: Job, row: dict[str, Any], one: "Question | End") -> End:
        """Return how a row stands in the output: a failed one that a person answered is answered."""
        end = one if isinstance(one, End) else self.ends.get(one, PENDING)
        return OK if end.status == "failed" and job.cells(row) in self.people else end


def plan(job: Job, table: Table) -> list[Question | End]:
    """Return what each row asks, or why it asks nothing."""
    seen: Counter[str] = Counter()
    asked: list[Question | End] = []
    for row in table.rows:
        if job.where is not None and not job.where(row):
            asked.append(SKIPPED)
            continue
        prompt = render(job.template, row)
        asked.append(UNRENDERED if prompt is None else (prompt, 0 if job.dedupe else seen[prompt]))
        seen[prompt or ""] += 1
    return asked


def wanted(memory: Memory, planned: Sequence[Question | End], limit: int | None) -> list[Question]:
    """Return the questions that a run asks, in the order of the rows; those that were tried before come last."""
    questions = dict.fromkeys(one for one in planned if not isinstance(one, End))
    failed = {one for one, end in memory.ends.items() if end.status == "failed" and end.error != "unexplained"}
    order = sorted(questions, key=lambda one: one in memory.tried or one in failed)
    return [question for question in order if memory.is_open(question)][:limit]


def answer_to(question: Question, job: Job) -> dict[str, Any]:
    """Return the right answer to a question, by column."""
    good = good_answer(question[0], job.columns)
    return {"answer": good} if job.columns is None else dict(good)


DETAIL_TYPES = {"error_code": "integer", "attempts": "integer", "cost_usd": "number", "finished_at": "datetime"}
"""The type of each detail that is not a string."""
ANY = object()  # stands for a value that the model does not foresee


def output(job: Job, table: Table, planned: Sequence[Question | End], memory: Memory) -> Table:
    """Return the output: the kept columns, the answer's, the details."""
    kept = {"all": list(table.types), "none": []}[job.keep] if isinstance(job.keep, str) else job.keep
    answers = {"answer": "string"} if job.columns is None else job.columns
    types = {name: table.types[name] for name in kept}
    types |= {job.prefix + name: _answer_type(kind) for name, kind in answers.items()}
    types |= {job.prefix + name: DETAIL_TYPES.get(name, "string") for name in job.details}
    return Table(types, [_row(job, row, one, memory, kept) for row, one in zip(table.rows, planned, strict=True)])


def _answer_type(kind: Any) -> str:  # noqa: ANN401  (as the job writes it)
    if isinstance(kind, list):
        return "list" if kind == ["string"] else "string"
    return {"string?": "string", "chance": "number"}.get(kind, str(kind))


def _row(job: Job, row: dict[str, Any], one: Question | End, memory: Memory, kept: list[str]) -> dict[str, Any]:
    end = memory.standing(job, row, one)
    found = {name: row[name] for name in kept}
    answer = dict.fromkeys(["answer"] if job.columns is None else job.columns)
    if not isinstance(one, End) and memory.ends.get(one) == OK:
        answer = answer_to(one, job)
    if (edited := memory.people.get(job.cells(row))) is not None:
        # The model's probability says nothing of another label.
        gone = {f"{name}_prob": None for name in edited if f"{name}_prob" in answer and edited[name] != answer[name]}
        answer |= edited | gone
    found |= {job.prefix + name: value for name, value in answer.items()}
    values: dict[str, Any] = {"status": end.status}
    if end != PENDING:  # what an attempt brought may stand there
        values |= {"error_code": end.code, "error_type": end.error}
    return found | {job.prefix + name: values.get(name, ANY) for name in job.details}
