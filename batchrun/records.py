"""Frozen values that cross the borders between rooms.

Those that are made for each request are named tuples, which are made several times faster than frozen dataclasses.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

from batchrun.errors import UserError
from batchrun.money import ZERO, CostKind, Pico

if TYPE_CHECKING:
    import polars as pl


class Status(StrEnum):
    """How a row stands; the output's column `status`."""

    OK = "ok"
    FAILED = "failed"
    PENDING = "pending"
    SKIPPED = "skipped"


class JsonRow(tuple[Any, ...]):  # noqa: SLOT001  (Python allows a tuple no slots)
    """The cells of a row whose JSON object has not all columns of the input, or has them in another order.

    `fields` are the names that the object itself has, in its own order.
    """

    fields: tuple[str, ...]

    def __new__(cls, cells: Iterable[Any], fields: tuple[str, ...]) -> Self:
        """Keep the names with the cells."""
        self = super().__new__(cls, cells)
        self.fields = fields
        return self


class Secret:
    """A key that shows itself only on request, so that no log, repr or traceback holds it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the key itself; only senders and the key check call this."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    # Ray and multiprocessing would pickle it into files and logs of theirs.
    def __reduce__(self) -> Any:  # noqa: ANN401  (the signature of object)
        raise TypeError("a secret is not pickled")


class Fault(StrEnum):
    """Why an attempt brought no HTTP reply."""

    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    RESET = "reset"
    PROTOCOL = "protocol"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how a sender sends: everything that is the same for all requests of a run.

    `timeout` (seconds) is the total for one attempt; `connect_timeout` must be below it, since only then
    a failed connect differs from a silent server. All is checked before (net.py): `certificates` are PEM, trusted
    in addition to the public ones, `proxy` is the URL of an HTTP proxy, with its password.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    key: Secret | None = None
    timeout: float = 120.0
    connect_timeout: float = 10.0
    max_response_bytes: int = 32 * 2**20
    certificates: tuple[bytes, ...] = field(default=(), repr=False)
    proxy: str | None = field(default=None, repr=False)
    concurrency: int = 256


_NO_HEADERS: Mapping[str, str] = {}


class Request(NamedTuple):
    """One attempt: the JSON body, ready to send. `new_connection`: never over a connection that was used before."""

    body: bytes
    new_connection: bool = False


class Usage(NamedTuple):
    """What an attempt used, as the server counted it; None where it did not say.

    `cost` is what the server says it charged, in picodollars (with BYOK the upstream's cost included).
    `cached` is true where a response cache answered and nothing is billed. `prompt_tokens` includes `cached_tokens`,
    which were read from the provider's prompt cache, and `cache_write_tokens`, which were written to it.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: Pico | None = None
    cached: bool = False
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


READ_HEADERS = (
    *("content-type", "content-length", "x-generation-id", "x-openrouter-cache-status"),
    *("retry-after", "retry-after-ms", "x-ratelimit-reset", "location"),
)
"""The headers of a reply that anything here reads. A gateway adds twenty, and each takes 3,000 instructions."""


class Reply(NamedTuple):
    """What one attempt brought: an HTTP reply, or a fault.

    `headers` are those of READ_HEADERS that it has, maybe others; names are lower case.

    `sent`: the request may have reached the server (and so may be billed); it is true for
    every HTTP reply. `detail` is the fault in the library's words, without secrets.

    `before_reply` is true where the connection broke after the request left and before the head of a reply came (with
    Fault.RESET alone). Often the server had closed an idle connection while the request was under way: nobody saw the
    request, but nobody can know. So it may be billed, charges no attempt, and is asked again once, as a Request with
    `new_connection`.

    `earlier` is what requests before this one used that belong to the same attempt: many questions are sent in parts.
    """

    status: int = 0
    headers: Mapping[str, str] = _NO_HEADERS
    body: bytes = b""
    seconds: float = 0.0
    fault: Fault | None = None
    sent: bool = True
    detail: str = ""
    before_reply: bool = False
    earlier: Usage | None = None


Send = Callable[[Request], Awaitable[Reply]]
"""One attempt: no judgement, no retry; never raises but CancelledError."""


Kind = Literal["text", "date", "enum", "integer", "number", "boolean", "list", "object", "json"]
"""What a column of an answer holds; "json" is JSON text, where values of several kinds are allowed."""


def kind_of(schema: Mapping[str, Any]) -> Kind:
    """Return what the column of an answer holds, by its JSON Schema."""
    if "enum" in schema:
        return _kind_of_values([value for value in schema["enum"] if value is not None])
    written = schema.get("type", ())
    kinds = {written} if isinstance(written, str) else set(written)
    kinds.discard("null")
    if kinds == {"array"} and "items" in schema and "prefixItems" not in schema:
        return "list"
    if kinds == {"string"}:
        return "date" if schema.get("format") == "date" else "text"
    if kinds == {"object"} and not schema.get("properties"):
        return "json"
    if kinds in ({"object"}, {"integer"}, {"boolean"}):
        kind: Kind = kinds.pop()
        return kind
    return "number" if kinds and kinds <= {"integer", "number"} else "json"


def _kind_of_values(values: Sequence[Any]) -> Kind:
    kinds = {type(value) for value in values}
    if kinds == {str}:
        return "enum"
    if kinds in ({bool}, {int}):
        return "boolean" if bool in kinds else "integer"
    return "number" if kinds and kinds <= {int, float} else "json"


@dataclass(frozen=True, slots=True)
class Decision:
    """One typed question to a decision model, in the dialect of no server.

    `kind`: yes or no, one of the options, or one of options in their order (the lowest first). `options` are labels
    with their meanings (None: nothing is said), empty for yes or no. `instructions` is a text, or what a row fills.
    """

    name: str
    kind: Literal["boolean", "choice", "scale"]
    instructions: Any
    options: tuple[tuple[str, str | None], ...] = ()


class Mismatch(NamedTuple):
    """Why a text is not a usable answer, in words for people and for the model; `empty`: it holds no answer at all."""

    message: str
    empty: bool = False


class Parse(Protocol):
    """Reads what a model wrote; never raises."""

    def __call__(self, text: str, *, finished: bool) -> str | Mismatch:
        """Return the answer as it is stored. `finished` is false where the text may end in the middle of an answer."""


class Verdict(NamedTuple):
    """What the judge says of one reply: the name of its ending in the table of codes, and the facts read from it.

    `wait` is the wait in seconds that the server asked for; `resume_at` is the Unix time at which a limit
    ends, where the server said so. `text` is what the model wrote, also where it is partial or refused; `answer` is
    what the output gets, where the ending is ok. `service_tier` is the one that served the request. `reasoning` is what
    the model thought aloud, `citations` a JSON list of the web pages that it names.
    """

    ending: str
    message: str = ""
    code: int | None = None
    http_status: int | None = None
    text: str | None = None
    usage: Usage = Usage()
    finish_reason: str | None = None
    model: str | None = None
    provider: str | None = None
    generation_id: str | None = None
    answer: str | None = None
    service_tier: str | None = None
    reasoning: str | None = None
    citations: str | None = None
    wait: float | None = None
    resume_at: float | None = None


class Outcome(NamedTuple):
    """How a question stands after this run's attempts; the checkpoint adds attempts and cost to earlier runs'.

    `status` is OK, FAILED or PENDING (it had an attempt and is to be asked again). `answer` is the text, or for
    structured answers the valid object as compact JSON. `raw` keeps what the model wrote where the status is not
    OK; `reasoning` and `citations` are kept where the output shows them. `finished_at` is Unix time.
    """

    question: int
    status: Status
    finished_at: float
    answer: str | None = None
    raw: str | None = None
    error_type: str | None = None
    error_code: int | None = None
    error_message: str | None = None
    http_status: int | None = None
    attempts: int = 1
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: Pico = ZERO
    possibly_billed: int = 0
    cached: bool = False
    model: str | None = None
    provider: str | None = None
    finish_reason: str | None = None
    generation_id: str | None = None
    seconds: float | None = None
    max_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    service_tier: str | None = None
    reasoning: str | None = None
    citations: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did and how the job stands now; what `--json` prints and `batchrun.run` returns.

    Counts are of rows. Money is in USD, exact: `cost_usd` of this run, `cost_today_usd` of all runs
    of this job since 00:00 UTC, `cost_total_usd` of all runs ever, `cost_output_usd` of the answers in this output.
    `cost_at_most_usd` is `cost_usd` with what a cap holds for lost replies and for open batches.
    `possibly_billed` counts requests of this run that may cost more on top, `cached` its answers from OpenRouter's
    cache, which cost nothing; `adopted` counts answers that came from other checkpoints. `cost_kind` is "charged",
    "simulated", or "unknown" where the server has no price and only what it reports is counted.

    `by_person` of the `ok` rows failed, and a person gave their answers. `answers` counts the values of answer columns
    that have fixed ones, as the output has them, most frequent first; `failed_rows` names the first failed rows (from
    1) by error_type, and `error_messages` has the error_message of the first of them. `advice` is what to do before the
    command `next`, which is for a shell; `commands` are that one and others, each with what it does.
    """

    job: str
    exit_code: int
    reason: str
    rows: int
    ok: int
    failed: int
    pending: int
    skipped: int
    asked: int
    requests: int
    seconds: float
    cost_usd: Decimal
    cost_today_usd: Decimal
    cost_total_usd: Decimal
    cost_output_usd: Decimal
    cost_at_most_usd: Decimal
    possibly_billed: int
    cached: int
    errors: Mapping[str, int]
    output: str | None
    output_changed: bool
    checkpoint: str
    resume_at: float | None = None
    next: str | None = None
    cost_kind: str = CostKind.CHARGED
    adopted: int = 0
    by_person: int = 0
    answers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    failed_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    error_messages: Mapping[str, str] = field(default_factory=dict)
    advice: str | None = None
    commands: tuple[tuple[str, str], ...] = ()
    _read: Callable[[], "pl.DataFrame"] | None = field(default=None, repr=False, compare=False)

    def frame(self) -> "pl.DataFrame":
        """Return the output that this run left, read from its file with the types that the job gives its columns.

        Raises UserError where the run wrote none, StorageError where the file is not there any more.
        """
        if self._read is None:
            raise UserError(f"this run wrote no output: {self.reason}")
        return self._read()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, how it is, and a sentence about it."""

    kind: Literal["ok", "warning", "mistake"]
    what: str
    text: str


@dataclass(frozen=True, slots=True)
class Check:
    """What `check` found, in the order in which it looked; what `check --json` prints and `batchrun.check` returns."""

    job: str
    mistakes: int
    warnings: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """A request for people: its row (from 1), its messages (an image is its path) and all else that is sent."""

    row: int
    messages: list[dict[str, Any]]
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unasked:
    """Rows for which no request can be made: why, how many, and the first one (from 1) with its problem."""

    error_type: str
    rows: int
    row: int
    message: str


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would find and need.

    `rows` and `skipped` are exact; other counts are extrapolated from a sample unless `exact`. `questions` are the
    distinct ones among the `open` rows; those of `in_batch` rows are out in a provider's batch. Tokens, `cost_usd` and
    `seconds` are what they likely need, from `answers` of this job's own or from a rule of thumb; `uncached_cost_usd`
    is `cost_usd` without the provider's prompt cache,
    `max_cost_usd` is what they can cost at most, `batch_cost_usd` the likely cost in the provider's batches. Money is
    None where it is unknown or unbounded; `cost_kind` is as in a Summary. `in_flight` is the most requests at once
    that `seconds` assumes. `beginning_tokens` are those with which all requests begin, as far as a prompt cache can
    hold them. `sample` is that of `--sample`, of whose run `questions` and their need then are.
    `requests` are the first ones, as they would be sent.
    """

    job: str
    rows: int
    skipped: int
    answered: int
    failed: int
    in_batch: int
    open: int
    questions: int
    exact: bool
    unasked: tuple[Unasked, ...]
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Decimal | None
    uncached_cost_usd: Decimal | None
    max_cost_usd: Decimal | None
    batch_cost_usd: Decimal | None
    cost_kind: str
    seconds: float
    in_flight: int
    answers: int
    characters_per_token: float
    beginning_tokens: int
    sample: int | None
    requests: tuple[Shown, ...]
