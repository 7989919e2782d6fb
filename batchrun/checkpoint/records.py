"""What a checkpoint shows: how rows stand, what answers used, which runs there were."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from batchrun.money import ZERO, Pico


@dataclass(frozen=True, slots=True)
class Counts:
    """How the rows of the current plan stand.

    `errors` counts failed rows by error_type; `questions` are the distinct ones, `cost` is what they cost. `by_person`
    of the `ok` rows failed, and a person answered them.
    """

    rows: int = 0
    ok: int = 0
    failed: int = 0
    pending: int = 0
    skipped: int = 0
    questions: int = 0
    cost: Pico = ZERO
    errors: Mapping[str, int] | None = None
    by_person: int = 0


UNLIMITED = 2**62
"""A max_tokens of None."""


class OpenRule(NamedTuple):
    """The failed questions that are open: types in `again`, and those truncated at fewer tokens than `max_tokens`.

    None: unlimited.
    """

    again: Collection[str] = ()
    max_tokens: int | None = None

    @property
    def is_again(self) -> str:
        """The condition (SQL) for a failed answer `a` to be open; needs `values`."""
        marks = ", ".join("?" * len(self.again))
        return f"(a.error_type IN ({marks}) OR a.error_type = 'truncated' AND a.max_tokens < ?)"

    @property
    def is_open(self) -> str:
        """The condition (SQL) for the question of a row `r` with the answer `a` to be open; needs `values`."""
        unsettled = "a.id IS NULL OR a.status NOT IN ('ok', 'failed')"
        return f"r.first AND ({unsettled} OR a.status = 'failed' AND {self.is_again})"

    @property
    def values(self) -> tuple[str | int, ...]:
        """The values of the conditions."""
        return (*self.again, UNLIMITED if self.max_tokens is None else self.max_tokens)


@dataclass(frozen=True, slots=True)
class Settled:
    """A question that is not to be asked: `ok` or `failed`, and what its last attempt used (seconds for `seconds`)."""

    status: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Failed:
    """Rows that failed and are not to be asked again, and the distinct questions that are among them."""

    rows: int
    questions: int


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run. `ended_at` is None while it runs, and for ever if it was killed; `plan` is the plan's number.

    `output` is what the caller noted of the output that it left. `requests`, `cost` (picodollars),
    `possibly_billed` and `cached` (answers from OpenRouter's cache) are committed with the answers, also in a killed
    run.
    `job` is the text of the job file.
    """

    id: int
    plan: int | None
    started_at: float
    ended_at: float | None
    exit_code: int | None
    reason: str | None
    host: str
    pid: int
    requests: int
    cost: Pico
    possibly_billed: int
    cached: int
    endpoint: str | None
    output: str | None
    resume_at: float | None
    job: str
    counts: Counts | None


class FirstSettled(NamedTuple):
    """A settled question of the current plan; `answer` is None where it failed."""

    answer: str | None
    error_type: str | None
    finish_reason: str | None
    model: str | None
    attempts: int
