"""Draws whole jobs and lives: a combination of everyday choices, the inputs, and steps across days."""

import datetime as dt
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from oracle.cells import Number
from oracle.desk import FAULTS, Batching
from oracle.excel import LONGEST
from oracle.files import TEXT_TYPES, WRONG_COLUMNS, Row, encoded, with_wrong_column
from oracle.server import KINDS, Weather
from oracle.sizes import SIZES

# -- the combination: plain choices first, so that a failure shrinks to them

DIMENSIONS: dict[str, tuple[Any, ...]] = {
    "format": ("csv", "jsonl", "parquet", "tsv", "arrow", "json", "xlsx"),
    "files": ("one", "list", "glob", "reordered"),
    "where": tuple(range(17)),
    "keep": ("all", "none", "some"),
    "details": ("default", "none", "many"),
    "dedupe": (True, False),
    "answer": ("text", "enum", "typed", "loose", "decision"),
    "output": ("csv", "jsonl", "parquet", "arrow", "xlsx"),
    "engine": ("live", "batch"),
    "flag": ("", "--limit", "--concurrency", "--output", "--max-cost", "--json"),
}
"""The two plainest come first; they are drawn twice as often."""

Combination = dict[str, Any]
JSON = {"jsonl", "json"}
"""Formats whose files name no columns where they have no rows."""


def covering(seed: int) -> Iterator[Combination]:
    """Yield combinations for ever; each round of about a hundred covers every pair of choices, in a random order."""
    chance = random.Random(seed)  # noqa: S311  (a seed, not a secret)
    order = sorted(all_pairs(), key=repr)
    while True:
        found: list[Combination] = []
        missing = set(order)
        for pair in order:
            if pair not in missing:
                continue
            # The first open pair is set, the other choices are those of some tries that cover most.
            (a, x), (b, y) = pair
            tries = [
                {name: chance.choice(values + values[:2]) for name, values in DIMENSIONS.items()} | {a: x, b: y}
                for _ in range(12)
            ]
            best = max(tries, key=lambda one: len(missing & set(pairs_of(one))))
            missing -= set(pairs_of(best))
            found.append(best)
        chance.shuffle(found)
        yield from found


Pair = tuple[tuple[str, Any], tuple[str, Any]]


def pairs_of(combination: Combination) -> Iterator[Pair]:
    """Yield the pairs of choices in a combination."""
    return itertools.combinations(combination.items(), 2)


def all_pairs() -> Iterator[Pair]:
    """Yield every pair of choices."""
    for (a, xs), (b, ys) in itertools.combinations(DIMENSIONS.items(), 2):
        yield from (((a, x), (b, y)) for x in xs for y in ys)


# -- conditions, each with its twin; null is None, and is not true


def _like(prefix: str) -> Callable[[Any], bool]:
    return lambda value: value is not None and value.startswith(prefix)


CONDITIONS: tuple[tuple[str, Callable[[Any, Any], bool | None]], ...] = (
    ("", lambda _t, _n: True),
    ("{n} > 2", lambda _t, n: n is not None and n > 2),
    ("{n} is null", lambda _t, n: n is None),
    ("{n} is not null", lambda _t, n: n is not None),
    ("{n} between 1 and 3", lambda _t, n: n is not None and 1 <= n <= 3),
    ("{n} in (1, 3)", lambda _t, n: n in {1, 3}),
    ("not ({n} = 1)", lambda _t, n: n is not None and n != 1),
    ("{n} % 2 = 0", lambda _t, n: n is not None and n % 2 == 0),
    ("{n} >= 1 and {t} is not null", lambda t, n: n is not None and n >= 1 and t is not None),
    ("{n} is null or {n} < 2", lambda _t, n: n is None or n < 2),
    ("{t} = 'a'", lambda t, _n: t == "a"),
    ("{t} <> 'a'", lambda t, _n: t is not None and t != "a"),
    ("{t} like 'a%'", lambda t, _n: _like("a")(t)),
    ("length({t}) > 3", lambda t, _n: t is not None and len(t) > 3),
    ("{t} in ('a', 'b', 'c d')", lambda t, _n: t in {"a", "b", "c d"}),
    ("lower({t}) = 'abc'", lambda t, _n: t is not None and t.lower() == "abc"),
    ("coalesce({n}, 0) = 0", lambda _t, n: (n or 0) == 0),
)

# -- columns and cells

NAMES = ("text", "select", "loop", "order", "true", "null", "yes", "a b", "größe", "items", "on", "range", "x.y", "end")
TEXTS = (
    "a", "b", "abc", "ABC", "c d", "ü 😀 日本", "0", "null", "=1+1", 'say "hi", please', "line\nbreak", " lead ",
    "{{ n }}", "NaN", "true", "x" * 70_000, "tab\there", "a\u2028b", "",
)  # fmt: skip
MARKS = tuple(f"row !{kind}" for kind in sorted(KINDS))
NUMBERS = (0, 1, 2, 3, 4, 7, 2**40)
EXTRAS: dict[str, dict[str, tuple[Any, ...]]] = {
    "csv": {
        "string": ("p", "q", "ß"),
        "integer": (0, 5, -7),
        "number": (2.0, 0.1, -3.5, 1e20),
        "boolean": (True, False),
        "date": (dt.date(2024, 2, 29), dt.date(1999, 12, 31)),
        "datetime": (dt.datetime(2024, 2, 29, 13, 5), dt.datetime(1999, 12, 31, 23, 59, 58)),  # noqa: DTZ001
    },
    "jsonl": {
        "string": ("p", "q", "ß"),
        "number": tuple(map(Number, ("3", "2.5", "1e3", "10.0", "-7"))),
        "boolean": (True, False),
        "list": (["p"], [], ["q", 'x "y"']),
        "mixed": ("p", Number("3"), Number("2.50"), True),
    },
    "parquet": {
        "string": ("p", "q", "ß"),
        "integer": (0, 5, -7),
        "number": (2.0, 0.1, -3.5, 1e20),
        "single": (2.7, 0.5, 3.0),
        "boolean": (True, False),
        "date": (dt.date(2024, 2, 29), dt.date(1999, 12, 31)),
        "datetime": (dt.datetime(2024, 2, 29, 13, 5), dt.datetime(1999, 12, 31, 23, 59, 58)),  # noqa: DTZ001
        "decimal": (Decimal("1.50"), Decimal("-0.25")),
        "list": (["p"], [], ["q", 'x "y"']),
    },
    "xlsx": {
        "string": ("p", "q", "ß"),
        "number": (3, 2.5, -7, 1e20),
        "boolean": (True, False),
        "date": (dt.date(2024, 2, 29), dt.date(1999, 12, 31)),
        "datetime": (dt.datetime(2024, 2, 29, 13, 5), dt.datetime(1999, 12, 31, 23, 59, 58)),  # noqa: DTZ001
        "mixed": ("p", 3, 2.5, True),
    },
}


def extras_of(kind: str) -> dict[str, tuple[Any, ...]]:
    """Return the cells of the extra column by its type, in files of this format."""
    return EXTRAS[{"tsv": "csv", "json": "jsonl", "arrow": "parquet"}.get(kind, kind)]


ANSWERS: dict[str, dict[str, Any] | None] = {
    "text": None,
    "enum": {"label": ["good", "bad"]},
    "typed": {"label": ["good", "bad"], "count": "integer", "share": "number", "fine": "boolean", "day": "date"},
    "loose": {"note": "string", "maybe": "string?", "tags": ["string"]},
    "decision": {"label": ["good", "bad"], "label_prob": "chance", "fine": "boolean", "fine_prob": "chance"},
}
DETAILS = {
    "default": ["status", "error_code", "error_type", "error_message"],
    "none": [],
    "many": ["status", "error_type", "attempts", "cost_usd", "finish_reason", "finished_at", "answer_raw", "key"],
}
KEYWORDS = {"true", "false", "none", "not", "and", "or", "in", "is", "if", "else", "for"}


def printed(name: str, filters: str = "") -> str:
    """Return how a template prints a column."""
    word = name if name.isidentifier() and name not in KEYWORDS else f"row[{json.dumps(name, ensure_ascii=False)}]"
    return "{{ " + word + filters + " }}"


MOST_USD = 0.00003
"""More than any request costs."""

# -- steps


@dataclass(frozen=True)
class Step:
    """One step: a command, or an edit. `at` is the number of the server's event at which something happens."""

    what: str
    at: int = 0
    event: str = "answered"
    number: int = 0
    weather: Weather = field(default_factory=Weather)
    row: tuple[int, ...] = ()
    days: int = 0

    def __str__(self) -> str:
        """Return the step as people read it in a report."""
        words = {
            "kill": f"batchrun JOB, SIGKILL at the {self.at + 1}. request {self.event}",
            "stop": f"batchrun JOB, Ctrl-C at the {self.at + 1}. request {self.event}",
            "edited": f"batchrun JOB, the input is appended to at the {self.at + 1}. request {self.event}",
            "exported": f"batchrun JOB, `export` at the {self.at + 1}. request {self.event}",
            "second": f"batchrun JOB, a second start at the {self.at + 1}. request {self.event}",
            "rewritten": f"batchrun JOB, the prompt is changed at the {self.at + 1}. request {self.event}",
            "limit": f"batchrun JOB --limit {self.number + 1}",
            "sample": f"batchrun JOB --sample {self.number + 1}",
            "run": "batchrun JOB",
            "wait": "batchrun JOB, without waiting for batches",
            "retry": "batchrun retry JOB",
            "export": "batchrun export JOB -o snapshot.jsonl",
            "trial": f"batchrun JOB --variant v, with the first word {'ABC'[self.number % 3]}",
            "correct": f"batchrun show JOB --review; a person decides (number {self.number}); batchrun correct JOB",
            "look": "batchrun preview JOB; status; eval",
            "append": f"append a row of cells {self.row}",
            "edit": f"edit row {self.number}: cells {self.row}",
            "shuffle": f"shuffle the rows (seed {self.number})",
            "delete": f"delete row {self.number}",
            "repeat": f"repeat row {self.number}",
            "where": f"set the condition to number {self.number} of CONDITIONS",
            "prompt": f"set the first word of the prompt to {'AB'[self.number % 2]}",
        }
        later = f"{self.days} days later: " if self.days else ""
        return later + words[self.what] + (f"   [{self.weather}]" if self.weather.kind != "calm" else "")


RUNS = {"run", "wait", "limit", "sample", "retry", "kill", "stop", "edited", "exported", "second", "rewritten"}


@dataclass(frozen=True)
class Life:
    """A job and its steps, all drawn before anything runs."""

    combination: Combination
    names: tuple[str, str, str]
    extra: str
    template: int
    rows: tuple[tuple[int, ...], ...]
    count: int
    height: int
    priced: bool
    billed_openly: bool
    cap: str
    day_cap: str
    mistake: str
    text_as: str
    odd_name: bool
    prefix: str
    keep: tuple[int, ...]
    job_name: str
    sizes: dict[str, int]
    attempts: int
    repairs: int
    concurrency: int
    mode: str
    batching: Batching | None
    seed: int
    steps: tuple[Step, ...]

    @property
    def format(self) -> str:
        """The input's format."""
        return str(self.combination["format"])

    def cells(self, drawn: Sequence[int], number: int) -> Row:
        """Return a row: its number, a text, an integer, and a cell of the extra column."""
        text, whole, extra = drawn
        extras = extras_of(self.format)[self.extra]
        texts = (*TEXTS, *MARKS, None)
        if self.combination["output"] == "xlsx":  # what its cells can't hold is refused
            texts = tuple(one and one[:LONGEST] for one in texts)
        values = (
            str(number),
            texts[text % len(texts)],
            (*NUMBERS, None)[whole % 8],
            (*extras, None)[extra % (len(extras) + 1)],
        )
        return dict(zip(("id", *self.names), values, strict=True))

    def unlike(self, step: Step) -> dict[str, str]:
        """Return cells that do not fit their columns, for a row that is appended during a run; it is taken out again.

        Every second such row in a format whose readers see a type in the cells.
        """
        return {self.names[1]: "many"} if self.format in {"csv", "tsv", *JSON} and not step.at % 2 else {}

    @property
    def mistaken(self) -> bool:
        """Whether the job has a mistake that must be found before anything is asked."""
        if self.mistake == "unfit cell":
            return self.format in {"csv", "tsv"}
        return bool(self.mistake) and (self.mistake != "far date" or bool(self.rows))

    @property
    def knows_costs(self) -> bool:
        """Whether anybody can know what an answer costs: the job names a price, or the server reports each cost."""
        return self.priced or self.billed_openly

    @property
    def types(self) -> dict[str, str]:
        """The input's columns."""
        return dict(zip(("id", *self.names), ("string", "string", "integer", self.extra), strict=True))

    def prompt(self, word: str) -> str:
        """Return the prompt's template with this first word."""
        text, whole, extra = self.names
        if self.mistake == "no column":
            return f"{word}: {{{text}}}"
        dash = ' | default("-")'
        if self.mistaken and self.mistake == "far date":
            word += " {{ late }}"
        return (
            word
            + (
                ": " + printed(text),
                ": " + printed(text, dash),
                " " + printed(extra, dash) + " / " + printed(text, dash),
                ": " + printed(text) + " " + printed(whole, " | default(0)"),
                ": " + printed("id") + ": " + printed(text, ' | default("")'),
            )[self.template]
        )

    @property
    def asked_columns(self) -> tuple[str, ...]:
        """The columns that the prompt uses."""
        text, whole, extra = self.names
        return ((text,), (text,), (extra, text), (text, whole), ("id", text))[self.template]

    def kept(self) -> str | list[str]:
        """Return the job's output.keep."""
        if self.combination["keep"] != "some":
            return str(self.combination["keep"])
        return [list(self.types)[place] for place in self.keep]

    def job(self, url: str, word: str, where: int) -> dict[str, Any]:
        """Return the job file's content, with one of CONDITIONS."""
        text, whole, extra = self.names
        paths: Any = (
            [name for name, _ in self.files([{}])] if self.combination["files"] != "glob" else "part*." + self.format
        )
        source: dict[str, Any] = {"path": paths[0] if self.combination["files"] == "one" else paths}
        if self.format in {"csv", "tsv"}:
            typed = {whole: "integer"} | ({extra: self.extra} if self.extra != "string" else {})
            source["csv"] = {"columns": typed}
        if condition := CONDITIONS[where][0]:
            source["where"] = condition.format(n=f'"{whole}"', t=f'"{text}"')
        job: dict[str, Any] = {
            "input": source,
            "prompt": {"system": "You answer.", "user": self.prompt(word)},
            "model": {"endpoint": url, "name": "m"},
            "output": {
                "path": f"out.{self.combination['output']}",
                "keep": self.kept(),
                "details": DETAILS[self.combination["details"]],
                "prefix": self.prefix,
            },
            "limits": {"attempts": self.attempts, "concurrency": self.concurrency, "timeout": 10, "grace": 1000},
        }
        is_decision = self.combination["answer"] == "decision"
        job["model"] |= {} if is_decision else {"params": {"max_tokens": 100}}
        if self.priced:
            job["model"] |= {"price": {"prompt": 1, "completion": 2}}
        if self.batching is not None:
            job |= {"engine": {"batch": {"size": self.batching.size}}}
            job["model"] |= {"batch_api": "openai"}
        if self.batching is not None and self.priced:
            job["model"]["price"] |= {"batch": {"prompt": 0.5, "completion": 1}}
        if self.day_cap:
            job["model"] |= {"max_request_usd": MOST_USD}
            job["limits"] |= {"max_cost_usd": {"day": float(self.day_cap)}}
        columns = ANSWERS[self.combination["answer"]]
        if columns is not None and is_decision:
            asked = {name: kind for name, kind in columns.items() if kind != "chance"}
            job["answer"] = {"columns": asked, "mode": "decision"}
        elif columns is not None:
            job["answer"] = {"columns": columns, "repairs": self.repairs, "mode": self.mode}
        return job if self.combination["dedupe"] else job | {"dedupe": False}

    def files(self, rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
        """Return each input file's name and rows; in one choice every second file has another order of columns."""
        how = self.combination["files"]
        number = 1 if how == "one" else self.count
        shares = [list(rows[len(rows) * k // number : len(rows) * (k + 1) // number]) for k in range(number)]
        if how == "reordered":
            shares = [[dict(reversed(row.items())) for row in s] if k % 2 else s for k, s in enumerate(shares)]
        odd = "\udcff" if self.odd_name and how == "glob" else ""  # a byte that is not UTF-8
        return [(f"part{odd}{k}.{self.format}", share) for k, share in enumerate(shares)]

    def write(self, folder: Path, rows: Sequence[Row]) -> None:
        """Write the input's files."""
        for place, (name, share) in enumerate(self.files(rows)):
            names = list(self.types)
            if self.combination["files"] == "reordered" and place % 2:
                names.reverse()
            raw = encoded(self.format, {n: self.types[n] for n in names}, share, self.text_as)
            if self.mistaken and self.mistake == "unfit cell":
                separator = "," if self.format == "csv" else "\t"
                cells = ["1", "late", "many", ""] if names == list(self.types) else ["", "many", "late", "1"]
                raw += separator.join(cells).encode() + b"\n"
            if self.mistaken and self.mistake in WRONG_COLUMNS:
                raw = with_wrong_column(self.format, raw, self.mistake)
            (folder / name).write_bytes(raw)

    def first_rows(self) -> list[Row]:
        """Return the rows that the life begins with: the drawn ones, repeated up to its height where it has one."""
        rows = [self.cells(drawn, number) for number, drawn in enumerate(self.rows)]
        return list(itertools.islice(itertools.cycle(rows), self.height)) if self.height else rows

    def all_rows(self) -> list[Row]:
        """Return every row that is there at some time."""
        drawn = [*self.rows, *(step.row for step in self.steps if step.row), (0, 1, 0)]
        return [self.cells(row, number) for number, row in enumerate(drawn)]

    def story(self, url: str = "http://127.0.0.1:PORT/v1") -> str:
        """Return the life as a person reads it: job file, inputs, steps."""
        rows = self.first_rows()
        lines = [
            f"-- {self.job_name} (sizes {self.sizes}, server's seed {self.seed}, costs reported: {self.billed_openly})",
            f"-- {self.batching or 'no batches'}",
        ]
        lines += [json.dumps(self.job(url, "A", self.combination["where"]), indent=1, ensure_ascii=False)]
        for name, share in self.files(rows):
            lines.append(f"-- {name}: {len(share)} rows")
            if self.format in {"csv", "tsv", *JSON} and len(share) < 30:
                raw = encoded(self.format, self.types, share).decode()
                lines.append("\n".join(line[:200] for line in raw.split("\n")))
            else:
                lines += [f"{row!r:.200}" for row in share[:30]]
        if self.mistaken:
            lines.append(f"-- the mistake: {self.mistake}")
        lines.append(f"-- steps; the first run has the flag {self.combination['flag'] or 'none'}")
        return "\n".join([*lines, *(f"{number}. {step}" for number, step in enumerate(self.steps, 1))])

    def _repr_pretty_(self, printer: Any, _cycle: object) -> None:  # noqa: ANN401  (hypothesis' own)
        printer.text("as described below")


# -- drawing

MISTAKES = ("no column", "unfit cell", *WRONG_COLUMNS)
"""A prompt that uses no column; in the last row a cell that its declared type does not hold; a column of Parquet or
Arrow that the output's format, or the prompt, can not hold."""


@st.composite
def lives(draw: st.DrawFn, pinned: Combination) -> Life:
    """Draw a life of this combination; a failure shrinks to the plain choices, which are rare otherwise."""
    combination = {
        name: values[0] if draw(st.integers(0, 99)) == 0 else pinned[name] for name, values in DIMENSIONS.items()
    }
    mistake = draw(st.sampled_from(("",) * 45 + MISTAKES + ("unfit cell",)))
    if mistake in WRONG_COLUMNS:
        kind = "arrow" if mistake == "interval" else "parquet"
        combination |= {"format": kind, "keep": "all", "output": "csv"}
    if mistake == "unfit cell" and combination["format"] not in {"csv", "tsv"}:
        combination["format"] = "csv"
    kind = combination["format"]
    names = draw(st.lists(st.sampled_from(NAMES), min_size=3, max_size=3, unique=True))
    steps = draw(st.lists(_steps(), min_size=1, max_size=5))
    rows = draw(_rows(4 if kind in JSON else 0))
    # Many rows that ask few questions cross the real borders of frames, batches and row groups.
    height = draw(st.sampled_from((0,) * 158 + (19_999, 20_001))) if rows and combination["dedupe"] else 0
    if height:
        rows = [(text % TEXTS.index("x" * 70_000), whole, extra) for text, whole, extra in rows]
        steps = steps[:2]
    sizes = {} if height else {name: draw(st.sampled_from((0, 1, 2, 3, 7))) for name in SIZES}
    template = draw(st.integers(0, 4))
    meeting = draw(st.integers(0, 59))
    if not mistake and meeting in RARE_MEETINGS:
        choices, rows, first, template = RARE_MEETINGS[meeting]
        combination |= choices
        steps, height = [*first], 0
        sizes["BATCH_ROWS"] = 2
    is_batch = combination["engine"] == "batch" and combination["answer"] != "decision"
    if steps[-1].what not in {"run", "limit", "sample", "retry"}:
        steps.append(Step("run"))
    if draw(st.integers(0, 3)) == 0:  # a person needs answers to look at
        steps = [Step("run"), Step("correct", number=draw(st.integers(0, 9))), *steps]
    if draw(st.integers(0, 2)) == 0:
        steps.append(Step("look", number=draw(st.integers(0, 99))))
    day_cap = draw(st.sampled_from(("0.0002",) if meeting == UNDER_CAP else ("", "", "", "0.0002")))
    if combination["flag"] == "--max-cost" or is_batch:
        day_cap = ""
    if day_cap and draw(st.booleans()):  # a day's cap is most at risk where a run of the same day was killed
        steps.insert(0, Step("kill", at=draw(st.integers(0, 3)), event=draw(_EVENTS)))
    return Life(
        combination=combination,
        names=(names[0], names[1], names[2]),
        extra=draw(st.sampled_from(tuple(extras_of(combination["format"])))),
        template=template,
        rows=tuple(rows),
        count=draw(st.integers(1, 4)),
        height=height,
        priced=combination["flag"] == "--max-cost" or bool(day_cap) or draw(st.sampled_from((True, True, False))),
        billed_openly=draw(st.booleans()),
        cap=draw(st.sampled_from(("5", "0.0015"))),
        day_cap=day_cap,
        mistake=mistake,
        text_as=draw(st.sampled_from(("text", "text", *TEXT_TYPES))),
        odd_name=draw(st.booleans()),
        prefix=draw(st.sampled_from(("", "llm_"))),
        keep=tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))),
        job_name=draw(st.sampled_from(("job.yaml", "my job.yaml"))),
        sizes={name: size for name, size in sizes.items() if size},
        attempts=draw(st.sampled_from((5, 5, 3, 3, 1))),
        repairs=draw(st.sampled_from((1, 0))) if combination["answer"] != "decision" else 0,
        concurrency=draw(st.sampled_from((1, 2, 8))),
        mode=draw(st.sampled_from(("schema", "object", "prompt"))),
        batching=draw(_BATCHING) if is_batch else None,
        seed=draw(st.integers(0, 99)),
        steps=tuple(steps),
    )


@st.composite
def _rows(draw: st.DrawFn, fewest: int) -> list[tuple[int, ...]]:
    rows = draw(st.lists(_row(), min_size=fewest, max_size=fewest + draw(st.sampled_from((2, 4, 8, 16)))))
    if draw(st.integers(0, 3)) == 0:  # equal rows, which are rare otherwise
        return [(text % 3, whole % 2, 0) for text, whole, _ in rows]
    return rows


def _row() -> st.SearchStrategy[tuple[int, ...]]:
    plain, marks = st.integers(0, len(TEXTS) - 1), st.integers(len(TEXTS), len(TEXTS) + len(MARKS) - 1)
    text = st.one_of(*[plain] * 6, marks, marks, st.just(NULL))
    return st.tuples(text, st.integers(0, 7), st.integers(0, 9))


NULL = len(TEXTS) + len(MARKS)
LOST = (len(TEXTS) + MARKS.index("row !lost"), 0, 0)
REFUSED = (len(TEXTS) + MARKS.index("row !badrequest"), 0, 0)

UNDER_CAP = 24

RARE_MEETINGS: dict[int, tuple[Combination, list[tuple[int, ...]], tuple[Step, ...], int]] = {
    # Two kills, each with a request that is paid and not committed, and then as many as a day's cap admits.
    UNDER_CAP: (
        {"where": 0, "flag": "", "engine": "live", "dedupe": True},
        [(number % 5, number, 0) for number in range(40)],
        (Step("kill", at=2), Step("kill", at=5)),
        4,
    ),
    # A person answers all that failed, so that `retry` is refused: nothing may forget that.
    25: (
        {"where": 0, "flag": "", "engine": "live"},
        [REFUSED, *((number, number, 0) for number in range(4))],
        (Step("run"), Step("correct"), Step("run"), Step("retry"), Step("look")),
        0,
    ),
    # Rows that can't be asked, beside ones that a sample has left open.
    26: (
        {"where": 0, "flag": "", "engine": "live"},
        [(NULL if number in {1, 2} else number, number, 0) for number in range(8)],
        (Step("sample", number=1),),
        0,
    ),
    # A batch that is submitted on one day and collected on another.
    27: (
        {"where": 0, "flag": "", "answer": "text", "engine": "batch"},
        [(number, number, 0) for number in range(4)],
        (Step("wait"), Step("run", days=1)),
        4,
    ),
    # A row that always loses its reply, beside equal ones that meet a server's odd failures in turn.
    28: (
        {"where": 0, "flag": "", "dedupe": False, "engine": "live"},
        [LOST, *((number % 5, number, number) for number in range(39))],
        (Step("run", weather=Weather("half")),),
        0,
    ),
    # A line that comes while its file is being read, with a text where `where` has seen numbers alone.
    29: (
        {"where": 1, "format": "jsonl", "files": "one", "engine": "live"},
        [(number, 3 + number, 0) for number in range(3)],
        (Step("edited", at=0, event="received"),),
        4,
    ),
    # Such a line, where a person corrected rows: what they answered is looked up in the input at the end of the run.
    30: (
        {"where": 1, "format": "csv", "files": "one", "engine": "live", "answer": "enum"},
        [(number, 3 + number, 0) for number in range(3)],
        (Step("run"), Step("correct"), Step("append", row=(4, 3, 0)), Step("edited", at=0, event="received")),
        4,
    ),
    # A trial's prompt that becomes the job's.
    31: (
        {"where": 0, "flag": "", "engine": "live"},
        [(number, number, 0) for number in range(4)],
        (Step("trial", number=1), Step("prompt", number=1), Step("run"), Step("trial", number=0)),
        0,
    ),
}
"""What chance alone seldom brings together: choices, rows, the first steps and the template of a life."""


_BATCHING = st.builds(
    Batching, st.sampled_from((1, 2, 3, 7, 1_000)), st.integers(0, 2), st.sampled_from(("", "", *FAULTS))
)
_DAYS = st.sampled_from((0, 0, 1, 40))
_EVENTS = st.sampled_from(("answered", "received"))
_WEATHER = st.one_of(
    *[st.just(Weather())] * 6,
    st.just(Weather("half")),
    st.just(Weather("stale")),
    st.just(Weather("lossy")),
    st.builds(
        lambda since, length, status: Weather("outage", since, since + length, status),
        st.integers(0, 6),
        st.sampled_from((1, 3, 12)),
        st.sampled_from((503, 500, 502, 0)),
    ),
    st.builds(lambda status: Weather("dead", status=status), st.sampled_from((503, 500, 502, 0))),
)


STEPS = (
    *["run"] * 3, *["kill"] * 2, "stop", "wait", "append", "edit", "limit", "shuffle", "prompt", "delete", "repeat",
    "retry", "export", "edited", "exported", "second", "rewritten", "look", "sample", "where", "correct",
    *["trial"] * 2,
)  # fmt: skip
"""What a life may do, weighted."""


@st.composite
def _steps(draw: st.DrawFn) -> Step:
    what = draw(st.sampled_from(STEPS))
    if what in {"run", "limit", "sample", "retry"}:
        return Step(what, number=draw(st.integers(0, 5)), weather=draw(_WEATHER), days=draw(_DAYS))
    if what in RUNS:
        return Step(what, at=draw(st.integers(0, 9)), event=draw(_EVENTS), days=draw(_DAYS))
    return Step(
        what, number=draw(st.integers(0, len(CONDITIONS) - 1)), row=draw(_row()) if what in {"append", "edit"} else ()
    )
