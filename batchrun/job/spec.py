"""The job as frozen dataclasses: what a job file says, as it is written, with its defaults.

Fields keep the short forms that a user may write; properties give the one form that the program works with. The text
below a field is its description in the job file's JSON Schema.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen

JobPath = tuple[str | int, ...]
"""Where something stands in a job: ("prompt", "messages", 0, "role")."""

Text = Annotated[str, MinLen(1)]
Usd = Annotated[Decimal, Ge(0), Le(1_000_000)]
AtLeastOne = Annotated[int, Ge(1)]
Seconds = Annotated[float, Gt(0), Le(86_400)]
CsvType = Literal["string", "integer", "number", "boolean", "date", "datetime"]
SHORT_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
"""What people write for a type, in input.csv.columns and in answer.columns."""

PdfEngine = Literal["cloudflare-ai", "mistral-ocr", "native"]
Role = Literal["system", "user", "assistant", "developer"]
Detail = Literal[
    "status", "error_code", "error_type", "error_message", "http_status", "attempts", "model", "provider",
    "finish_reason", "prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "service_tier",
    "cost_usd", "latency_s", "generation_id", "finished_at", "key", "answer_raw", "reasoning", "citations",
    "probabilities", "corrected",
]  # fmt: skip
OPENROUTER_KEY = "OPENROUTER_API_KEY"
DEFAULT_DETAILS: tuple[Detail, ...] = ("status", "error_code", "error_type", "error_message")
OUTPUT_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".arrow", ".xlsx")
"""The formats of output files."""

TOKEN_BOUNDS = ("max_tokens", "max_completion_tokens")
"""Parameters of a request that bound the tokens of its answer."""

PAID_ENGINE: PdfEngine = "mistral-ocr"
"""Costs PAGE_USD for each page, whoever answers."""
PAGE_USD = Decimal("0.002")

FREE_ENGINE: PdfEngine = "cloudflare-ai"
"""Set where a job names none: without one OpenRouter takes mistral-ocr, which costs."""

# What `auto` goes up to by itself; more sockets than that should be a decision of the user.
AUTO_CEILING = 256
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)
_UNITS = (86_400, 3_600, 60, 1)


def dotted(path: JobPath) -> str:
    """Return a path as people write it: `prompt.messages[0].role`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def parse_duration(text: str) -> float:
    """Return a duration such as `90s`, `2h` or `1h30m` in seconds; ValueError for zero and anything else."""
    if match := _DURATION.fullmatch(text):
        seconds = sum(float(amount) * unit for amount, unit in zip(match.groups("0"), _UNITS, strict=True))
        if 0 < seconds < 1e9:  # noqa: PLR2004  (thirty years: beyond it no clock adds up)
            return seconds
    raise ValueError(f"not a duration: {text!r}")


class Section:
    """A part of a job; pydantic refuses keys that it does not know."""

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class CsvOptions(Section):
    """How CSV and TSV files are read."""

    separator: str | None = None
    """The character between two cells, one byte; a comma, and a tab in .tsv files, when absent."""
    quote: str | None = '"'
    """The character around a cell that holds the separator, one byte; null where cells are never quoted."""
    encoding: Text = "utf-8"
    """The encoding of the files: utf-8, latin-1, utf-16, big5, …"""
    null_values: tuple[str, ...] = ()
    """Cells that mean "no value", such as NA."""
    header: bool = True
    """Whether the first line holds the names of the columns."""
    skip: Annotated[int, Ge(0)] = 0
    """Lines above the header to pass over."""
    comment: Text | None = None
    """Lines that begin with this are passed over, such as "#"; not within a quoted cell."""
    columns: Mapping[str, CsvType] = field(default_factory=dict)
    """Types of columns by name (int, float, bool, str work too); others are text, exactly as written."""


@dataclass(frozen=True, slots=True)
class Input(Section):
    """The files that hold the rows."""

    path: Text | Annotated[tuple[Text, ...], MinLen(1)]
    """A file, a list of files, or a glob (sorted): .csv .tsv .jsonl .ndjson .json .parquet .arrow .xlsx, text also
    .gz .zst. ${VAR} expands."""
    where: Text | None = None
    """A condition in SQL over one row; rows that do not meet it are kept in the output with the status "skipped"."""
    csv: CsvOptions = CsvOptions()
    """How CSV and TSV files are read."""
    sheet: Text | None = None
    """The sheet of an Excel workbook, by name; the first that is not hidden when absent."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """The files and globs, as written."""
        return (self.path,) if isinstance(self.path, str) else self.path


@dataclass(frozen=True, slots=True)
class Part(Section):
    """One part of a message: a text, an image or a PDF (path or URL), all templates."""

    text: str | None = None
    """A text; a Jinja template. Beside file, the word extracted: the PDF's text is sent in the file's place."""
    image: Text | None = None
    """An image: a path (relative to the job file) or a URL; a Jinja template."""
    file: Text | None = None
    """A PDF: a path (relative to the job file) or a URL; a Jinja template."""
    engine: PdfEngine | None = None
    """What reads the PDF for OpenRouter's models: cloudflare-ai is free and the default, mistral-ocr reads scans for
    2 USD per 1,000 pages, native is the model itself, if it takes files."""

    @property
    def is_extracted(self) -> bool:
        """Whether the text of the PDF is sent rather than the file."""
        return self.file is not None and self.text is not None

    @property
    def templates(self) -> tuple[tuple[str, str], ...]:
        """The part's template, with its key."""
        written = {"text": self.text, "image": self.image, "file": self.file}
        if self.is_extracted:
            del written["text"]
        return tuple((name, source) for name, source in written.items() if source is not None)


@dataclass(frozen=True, slots=True)
class Message(Section):
    """One turn of the conversation."""

    role: Role
    """Who says it."""
    content: Text | Annotated[tuple[Part, ...], MinLen(1)]
    """What is said: a Jinja template, or a list of parts: texts, images and PDFs."""


@dataclass(frozen=True, slots=True)
class Prompt(Section):
    """What is asked: `system` and `user` (or `state`), or `messages`."""

    system: str | None = None
    """The instruction that is the same for each row; a Jinja template, or {file: prompts/system.md}."""
    user: Text | None = None
    """The question; a Jinja template in which {{ name }} is the row's cell in the column "name", or {file: …}."""
    state: Annotated[Mapping[str, Text | Part], MinLen(1)] | None = None
    """Several fields by name in place of `user`, each a Jinja template or {image: …}. A decision model gets them as
    they are, a chat model as JSON."""
    messages: Annotated[tuple[Message, ...], MinLen(1)] | None = None
    """The whole conversation, for examples, images and PDFs, in place of system and user."""

    @property
    def turns(self) -> tuple[tuple[JobPath, Message], ...]:
        """The messages in order, whichever form was written, each with the path of its content in the job file."""
        if self.messages is not None:
            return tuple((("prompt", "messages", number, "content"), one) for number, one in enumerate(self.messages))
        written: tuple[tuple[Role, str | None], ...] = (("system", self.system), ("user", self.user))
        return tuple((("prompt", role), Message(role, text)) for role, text in written if text is not None)

    @property
    def contents(self) -> tuple[tuple[JobPath, str | Part], ...]:
        """The texts and parts of the messages and of the state in order, each with its path in the job file."""
        contents: list[tuple[JobPath, str | Part]] = []
        for path, turn in self.turns:
            if isinstance(turn.content, str):
                contents.append((path, turn.content))
            else:
                contents += [((*path, number), part) for number, part in enumerate(turn.content)]
        contents += [(("prompt", "state", name), field) for name, field in (self.state or {}).items()]
        return tuple(contents)

    @property
    def parts(self) -> tuple[tuple[JobPath, Part], ...]:
        """The parts of messages that are lists of parts and of the state, each with its path in the job file."""
        return tuple((path, part) for path, part in self.contents if isinstance(part, Part))

    @property
    def pdf_engine(self) -> PdfEngine | None:
        """What reads the PDFs that are sent as files; None without any."""
        engines = [part.engine for _, part in self.parts if part.file is not None and not part.is_extracted]
        if not engines:
            return None
        return next(filter(None, engines), FREE_ENGINE)


@dataclass(frozen=True, slots=True)
class BatchPrice(Section):
    """What a model costs in a provider's batch, in USD per million tokens."""

    prompt: Usd
    """USD per million tokens of the prompt."""
    completion: Usd
    """USD per million tokens of the answer."""


@dataclass(frozen=True, slots=True)
class PriceOption(Section):
    """What a model costs, in USD per million tokens."""

    prompt: Usd
    """USD per million tokens of the prompt."""
    completion: Usd
    """USD per million tokens of the answer."""
    cache_read: Usd | None = None
    """USD per million tokens of the prompt that are read from the provider's prompt cache."""
    cache_write: Usd | None = None
    """USD per million tokens of the prompt that are written to the provider's prompt cache."""
    batch: BatchPrice | None = None
    """What it costs in a provider's batch."""


@dataclass(frozen=True, slots=True)
class Model(Section):
    """Which model is asked, where and how."""

    endpoint: Text
    """Where it is asked: openrouter, local, simulator, or the URL of an OpenAI-compatible API. ${VAR} expands."""
    name: Text | None = None
    """The model's name, as the endpoint calls it. ${VAR} expands."""
    fallbacks: tuple[Text, ...] = ()
    """At most two models that OpenRouter asks when the first one is not available."""
    api_key_env: Text | None = None
    """The environment variable that holds the key, also read from .env; OPENROUTER_API_KEY for openrouter."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Any parameter of the API's body, as it is: temperature, max_tokens, provider, reasoning, seed, …"""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further HTTP headers. ${VAR} expands in their values."""
    price: PriceOption | None = None
    """What the model costs, for endpoints that do not list prices."""
    max_request_usd: Annotated[Decimal, Gt(0), Le(1_000_000)] | None = None
    """The most that one request can cost, in USD, where tokens do not bound it (images, plugins)."""
    cache: bool = False
    """Whether OpenRouter's response cache may answer."""
    prompt_cache: bool = True
    """Whether the provider's prompt cache is used for the beginning of the prompts that is the same for each row."""
    identity: Text | None = None
    """A name that stands for the endpoint in a question's identity, so that a new URL asks nothing again."""
    ca_file: Text | None = None
    """A PEM file of certificates that are trusted besides the system's. ${VAR} expands."""
    allow_plain_http: bool = False
    """Whether rows and key may go over plain http to a host that is not this one."""
    batch_api: Literal["openai"] | None = None
    """The batch API of an endpoint that is a URL: openai for the files + batches of OpenAI and APIs like it."""
    max_response_mb: Annotated[int, Ge(1), Le(1_024)] = 32
    """The largest reply that is read, in MiB after decompression."""

    @property
    def key_variable(self) -> str | None:
        """The variable that holds the key, if one is to be sent."""
        return self.api_key_env or (OPENROUTER_KEY if self.endpoint == "openrouter" else None)


AnswerMode = Literal["schema", "object", "prompt", "decision"]


@dataclass(frozen=True, slots=True)
class Answer(Section):
    """What an answer must look like; without it the answer is text."""

    columns: Mapping[str, Any] | None = None
    """The answer's columns by name with their types: string, integer, number, boolean or date, also str, int, float
    and bool (string? may be null), [a, b] for one of these, [string] for a list, {city: string} for an object;
    {values: {a: "what it means", b: …}, description: …, ordered: true} describes a choice and its labels."""
    schema: Mapping[str, Any] | None = None
    """The answer's JSON Schema in full; its top-level properties become columns."""
    repairs: Annotated[int, Ge(0), Le(10)] = 1
    """How often an answer that does not fit is asked again with the error; each time counts and costs."""
    mode: AnswerMode = "schema"
    """How the form is asked for: the API's strict schema, its JSON mode, or the prompt alone; decision: the model is a
    decision model, which answers yes or no and labels, each with its probability."""


@dataclass(frozen=True, slots=True)
class CostCap(Section):
    """Hard caps on spending, in USD."""

    run: Usd | None = None
    """USD that one run may spend."""
    day: Usd | None = None
    """USD that all runs of this job may spend on one day (UTC)."""


@dataclass(frozen=True, slots=True)
class Limits(Section):
    """How fast, how often, how long, how much. Seconds, USD."""

    concurrency: Annotated[int, Ge(1), Le(20_000)] | Literal["auto"] = "auto"
    """The most requests in flight; auto finds it, up to 256."""
    requests_per_minute: AtLeastOne | None = None
    """The most requests sent in a minute."""
    tokens_per_minute: AtLeastOne | None = None
    """The most tokens asked for in a minute."""
    attempts: Annotated[int, Ge(1), Le(100)] = 5
    """Attempts for each question and run when failures are transient; 1 = never again."""
    timeout: Seconds = 120.0
    """Seconds for one attempt, in total."""
    grace: Annotated[float, Ge(0), Le(86_400)] | None = None
    """Seconds that a stopping run waits for requests in flight; the timeout when absent."""
    max_cost_usd: Usd | CostCap | None = None
    """A hard cap on spending in USD: a number (for each run) or {run: 5, day: 20}."""
    max_failed: Annotated[int, Ge(0)] | str | None = None
    """Failed rows that are accepted, a number or a share such as 5%; more stop the run."""
    deadline: str | None = None
    """When the run stops, counted from its start: 90s, 2h, 1h30m. It can be resumed."""
    patience: str | None = None
    """How long a run waits for a server that is down or says "not now", from its first failure: 90s, 15m, 2h. When
    absent: 15m, at most a minute for a server that it never reached, and half as long again as a server asks for."""
    breaker: Annotated[int, Ge(0)] = 10
    """Unexplained equal failures in a row, without any success, after which requests go one at a time; 15 more stop the
    run; 0 = never."""

    @property
    def ceiling(self) -> int:
        """The most requests in flight."""
        return AUTO_CEILING if isinstance(self.concurrency, str) else self.concurrency

    @property
    def cap(self) -> CostCap:
        """The caps on spending, whichever form was written."""
        if isinstance(self.max_cost_usd, CostCap):
            return self.max_cost_usd
        return CostCap(run=self.max_cost_usd)

    @property
    def deadline_seconds(self) -> float | None:
        """Seconds from the start to the deadline."""
        return None if self.deadline is None else parse_duration(self.deadline)

    @property
    def patience_seconds(self) -> float | None:
        """Seconds that a run waits for a server that is down; None: the run's own rules (15 minutes at most)."""
        return None if self.patience is None else parse_duration(self.patience)

    def accepted_failures(self, rows: int) -> int | None:
        """Return how many of this many rows may fail, rounded down; None without a limit."""
        if self.max_failed is None:
            return None
        amount = str(self.max_failed)
        return int(Decimal(amount[:-1]) * rows / 100) if amount.endswith("%") else int(amount)


@dataclass(frozen=True, slots=True)
class OutputCsv(Section):
    """How a CSV output is written."""

    escape_formulas: bool = False
    """Whether cells that a spreadsheet would run as a formula get an apostrophe before them."""
    bom: bool = False
    """Whether the file begins with the mark by which Excel recognises UTF-8."""


@dataclass(frozen=True, slots=True)
class Output(Section):
    """The file that is written: the input's rows with new columns."""

    path: Text
    """The file: .parquet, .csv, .tsv, .jsonl, .ndjson, .arrow or .xlsx. ${VAR} expands."""
    keep: Literal["all", "none"] | tuple[Text, ...] = "all"
    """The input's columns to carry along: all, none or a list."""
    details: tuple[Detail, ...] = DEFAULT_DETAILS
    """The columns that show how each row ended."""
    prefix: str = ""
    """Put before the name of each new column."""
    review_below: Annotated[float, Gt(0), Le(1)] | None = None
    """Adds the column needs_review: whether any answer of the row has a probability below this (decision models)."""
    csv: OutputCsv = OutputCsv()
    """How a CSV output is written."""


@dataclass(frozen=True, slots=True)
class RayOptions(Section):
    """Where the senders run on Ray."""

    address: Text = "auto"
    """The cluster: auto (the Ray that runs on this machine, else a new one), local (a new one on this machine, with as
    many processes as senders), or HOST:PORT."""
    senders: AtLeastOne | None = None
    """How many actors send; one for each node when absent."""
    concurrency_per_sender: AtLeastOne | None = None
    """The most requests in flight of one actor."""
    resources: Mapping[str, Annotated[float, Ge(0), Le(1e9)]] = field(default_factory=dict)
    """Ray resources that one actor asks for."""


@dataclass(frozen=True, slots=True)
class BatchOptions(Section):
    """How a provider's batch API is used."""

    wait: str | None = None
    """How long a run waits for its batches: 0, 90s, 2h; until all are done when absent."""
    size: Annotated[int, Ge(1), Le(50_000)] = 5_000
    """The most questions in one batch."""
    then: Literal["live", "failed"] = "live"
    """What becomes of a question that two batches did not answer: it is asked live, or fails."""

    @property
    def wait_seconds(self) -> float | None:
        """Seconds that a run waits for its batches; None: until all are done."""
        if self.wait in {"0", "0s"}:
            return 0.0
        return None if self.wait is None else parse_duration(self.wait)


@dataclass(frozen=True, slots=True)
class EngineOptions(Section):
    """An engine with its options: ray or batch."""

    ray: RayOptions | None = None
    """Where the senders run on Ray."""
    batch: BatchOptions | None = None
    """How a provider's batch API is used."""


@dataclass(frozen=True, slots=True)
class Job(Section):
    """A whole job. `file` is the job file (absolute), `text` what it says; both are set by the loader."""

    input: Input
    """The rows. A path alone, such as reviews.csv, stands for {path: reviews.csv}."""
    prompt: Prompt
    """What is asked for each row. A text alone stands for {user: …}."""
    model: Model
    """Which model is asked, where and how."""
    output: Output
    """The file that is written. A path alone, such as out/x.parquet, stands for {path: out/x.parquet}."""
    answer: Answer | None = None
    """What an answer must look like; without it the text goes into the column "answer"."""
    dedupe: bool = True
    """Whether equal questions are asked once and share the answer."""
    limits: Limits = Limits()
    """How fast, how often, how long, how much."""
    checkpoint: Text | None = None
    """The file that keeps the answers; .batchrun/NAME.sqlite in the job file's folder when absent. ${VAR} expands."""
    engine: Literal["local", "ray", "batch"] | EngineOptions = "local"
    """How requests are sent: from this process, from Ray actors, or in the provider's batches at half price."""
    file: Path = field(default=Path("job.yaml"), metadata={"set_by_loader": True})
    text: str = field(default="", metadata={"set_by_loader": True})

    @property
    def ray(self) -> RayOptions | None:
        """The options of the engine `ray`, None where requests are sent from this process."""
        if isinstance(self.engine, EngineOptions):
            return self.engine.ray
        return RayOptions() if self.engine == "ray" else None

    @property
    def batch(self) -> BatchOptions | None:
        """The options of the engine `batch`, None where requests are sent one by one."""
        if isinstance(self.engine, EngineOptions):
            return self.engine.batch
        return BatchOptions() if self.engine == "batch" else None

    @property
    def name(self) -> str:
        """The job's name: the stem of its file."""
        return self.file.stem

    @property
    def folder(self) -> Path:
        """The folder that relative paths are relative to."""
        return self.file.parent

    def resolve(self, path: str) -> Path:
        """Return a path of the job file as an absolute one, without `..`."""
        return Path(os.path.normpath(self.folder / Path(path).expanduser()))

    @property
    def output_path(self) -> Path:
        """Where the output goes."""
        return self.resolve(self.output.path)

    @property
    def checkpoint_path(self) -> Path:
        """Where the checkpoint is: as written, else `.batchrun/NAME.sqlite` in the job file's folder."""
        return self.resolve(self.checkpoint or f".batchrun/{self.name}.sqlite")
