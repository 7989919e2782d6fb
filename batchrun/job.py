"""The job as frozen dataclasses: what a job file says, as it is written, with its defaults.

Fields keep the short forms that a user may write; properties give the one form that the program works with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

CsvType = Literal["string", "integer", "number", "boolean", "date", "datetime"]
Role = Literal["system", "user", "assistant", "developer"]
Detail = Literal[
    "status",
    "error_code",
    "error_type",
    "error_message",
    "http_status",
    "attempts",
    "model",
    "provider",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "cost_usd",
    "latency_s",
    "generation_id",
    "finished_at",
    "key",
    "answer_raw",
]
DEFAULT_DETAILS: tuple[Detail, ...] = ("status", "error_code", "error_type", "error_message")
AUTO_CEILING = 256


@dataclass(frozen=True, slots=True)
class CsvOptions:
    """How CSV and TSV files are read."""

    separator: str | None = None
    quote: str | None = '"'
    encoding: str = "utf-8"
    null_values: tuple[str, ...] = ()
    header: bool = True
    columns: Mapping[str, CsvType] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Input:
    """The files that hold the rows."""

    path: str | tuple[str, ...]
    where: str | None = None
    csv: CsvOptions = CsvOptions()

    @property
    def patterns(self) -> tuple[str, ...]:
        """The files and globs, as written."""
        return (self.path,) if isinstance(self.path, str) else self.path


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a message: a text or an image (path or URL), both templates."""

    text: str | None = None
    image: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the conversation."""

    role: Role
    content: str | tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: `system` and `user`, or `messages`."""

    system: str | None = None
    user: str | None = None
    messages: tuple[Message, ...] | None = None

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages in order, whichever form was written."""
        if self.messages is not None:
            return self.messages
        system = (Message("system", self.system),) if self.system is not None else ()
        user = (Message("user", self.user),) if self.user is not None else ()
        return system + user


@dataclass(frozen=True, slots=True)
class PriceOption:
    """What a model costs, in USD per million tokens."""

    prompt: Decimal
    completion: Decimal


@dataclass(frozen=True, slots=True)
class Model:
    """Which model is asked, where and how."""

    endpoint: str
    name: str | None = None
    fallbacks: tuple[str, ...] = ()
    api_key_env: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    price: PriceOption | None = None
    max_request_usd: Decimal | None = None
    cache: bool = False
    identity: str | None = None
    ca_file: str | None = None
    allow_plain_http: bool = False
    max_response_mb: int = 32


AnswerMode = Literal["schema", "object", "prompt"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer must look like; without it the answer is text."""

    columns: Mapping[str, Any] | None = None
    schema: Mapping[str, Any] | None = None
    repairs: int = 1
    mode: AnswerMode = "schema"


@dataclass(frozen=True, slots=True)
class CostCap:
    """Hard caps on spending, in USD."""

    run: Decimal | None = None
    day: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How fast, how often, how long, how much. Seconds, USD."""

    concurrency: int | Literal["auto"] = "auto"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    attempts: int = 5
    timeout: float = 120.0
    grace: float | None = None
    max_cost_usd: Decimal | CostCap | None = None
    max_failed: int | str | None = None
    deadline: str | None = None
    breaker: int = 10

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


@dataclass(frozen=True, slots=True)
class OutputCsv:
    """How a CSV output is written."""

    escape_formulas: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """The file that is written: the input's rows with new columns."""

    path: str
    keep: Literal["all", "none"] | tuple[str, ...] = "all"
    details: tuple[Detail, ...] = DEFAULT_DETAILS
    prefix: str = ""
    csv: OutputCsv = OutputCsv()


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Where the senders run on Ray."""

    address: str = "auto"
    senders: int | None = None
    concurrency_per_sender: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RayEngine:
    """The engine `ray` with its options."""

    ray: RayOptions


@dataclass(frozen=True, slots=True)
class Job:
    """A whole job. `file` is the job file (absolute), `text` what it says; both are set by the loader."""

    input: Input
    prompt: Prompt
    model: Model
    output: Output
    answer: Answer | None = None
    dedupe: bool = True
    limits: Limits = Limits()
    checkpoint: str | None = None
    engine: Literal["local", "ray"] | RayEngine = "local"
    file: Path = field(default=Path("job.yaml"), metadata={"set_by_loader": True})
    text: str = field(default="", metadata={"set_by_loader": True})

    @property
    def name(self) -> str:
        """The job's name: the stem of its file."""
        return self.file.stem

    @property
    def folder(self) -> Path:
        """The folder that relative paths are relative to."""
        return self.file.parent

    def resolve(self, path: str) -> Path:
        """Give a path of the job file as an absolute one."""
        return self.folder / Path(path).expanduser()

    @property
    def output_path(self) -> Path:
        """Where the output goes."""
        return self.resolve(self.output.path)

    @property
    def checkpoint_path(self) -> Path:
        """Where the checkpoint is: as written, else `.batchrun/NAME.sqlite` beside the job file."""
        return self.resolve(self.checkpoint or f".batchrun/{self.name}.sqlite")
