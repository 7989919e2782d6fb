"""A pool for tests, through its seam: a Send without network, a keeper that remembers, virtual time."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from virtual_time import run

from batchrun.job import Answer
from batchrun.money import ZERO, Pico
from batchrun.prompt import RowProblem
from batchrun.prompt.answers import AnswerForm
from batchrun.records import Fault, Outcome, Reply, Request
from batchrun.runner.budget import Budget
from batchrun.runner.limits import AdaptiveLimit, Gate, Limits
from batchrun.runner.pool import Pool
from batchrun.runner.stop import Valve
from batchrun.runner.work import Rules, Time, Work

BEGINNING, WALL = 1000.0, 1_700_000_000.0
FORM = AnswerForm.compile(None)
TYPED = AnswerForm.compile(Answer(columns={"label": ["good", "bad"]}))
LENIENT = Rules(attempts=5, repairs=1, breaker=10, grace=120.0)

Answering = Callable[[int, int], Awaitable[Reply]]
"""Answers the n-th request (from 1) for a question."""


def answered(text: str = "fine", cost: float | None = 0.001, **more: Any) -> Reply:  # noqa: ANN401  (JSON)
    """Return a good answer; `more` is put over its choice."""
    usage = None if cost is None else {"prompt_tokens": 10, "completion_tokens": 5, "cost": cost}
    choice = {"message": {"content": text}, "finish_reason": "stop", **more}
    return Reply(200, body=json.dumps({"model": "m", "choices": [choice], "usage": usage}).encode())


def refused(status: int, message: str = "", wait: float | None = None, **metadata: Any) -> Reply:  # noqa: ANN401  (JSON)
    """Return a refusal in OpenRouter's envelope; `wait` is its Retry-After."""
    error = {"code": status, "message": message, "metadata": metadata}
    headers = {} if wait is None else {"retry-after": f"{wait:g}"}
    return Reply(status, headers, json.dumps({"error": error}).encode())


def lost(fault: Fault = Fault.RESET, *, sent: bool = True, before_reply: bool = False) -> Reply:
    """Return an attempt without a reply."""
    return Reply(fault=fault, sent=sent, detail="simulated", before_reply=before_reply)


@dataclass
class Kept:
    """A keeper that remembers, and adds up as the checkpoint does."""

    outcomes: list[Outcome] = field(default_factory=list)
    attempts: list[Outcome] = field(default_factory=list)
    is_full: bool = False

    def put(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def failed_attempt(self, attempt: Outcome) -> None:
        self.attempts.append(attempt)

    async def room(self) -> None:
        await asyncio.sleep(60)
        self.is_full = False

    @property
    def last(self) -> dict[int, Outcome]:
        """The outcome of each question as it stands: the last one, with all its attempts and money."""
        found: dict[int, Outcome] = {}
        for new in self.outcomes:
            old = found.get(new.question, new._replace(attempts=0, cost=ZERO, possibly_billed=0))
            found[new.question] = new._replace(
                attempts=old.attempts + new.attempts,
                cost=Pico(old.cost + new.cost),
                possibly_billed=old.possibly_billed + new.possibly_billed,
            )
        return found

    def statuses(self, questions: Iterable[int]) -> list[str]:
        """Return how questions stand; those never heard of are pending."""
        last = self.last
        return [str(last[number].status) if number in last else "pending" for number in questions]


@dataclass
class Asked:
    """What came of it: `sent` holds (seconds since the beginning, question) of each request."""

    questions: int
    keep: Kept
    valve: Valve
    limits: Limits
    sent: list[tuple[float, int]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    low_waters: list[int] = field(default_factory=list)
    seconds: float = 0.0
    crash: Exception | None = None
    pool: Pool = field(init=False)

    @property
    def statuses(self) -> list[str]:
        return self.keep.statuses(range(1, self.questions + 1))

    @property
    def order(self) -> list[int]:
        """The questions in the order of their requests."""
        return [question for _, question in self.sent]


def ask(
    answer: Answering,
    questions: int = 3,
    *,
    concurrency: int = 10,
    budget: Budget | None = None,
    form: Any = FORM,  # noqa: ANN401  (an AnswerForm, as compile gives it)
    body_of: Callable[[int], bytes | RowProblem] | None = None,
    worst_case: Callable[[int], Pico] = lambda _: ZERO,
    keep: Kept | None = None,
    jitter: float = 0.5,
    source: Callable[[], Iterable[Work]] | None = None,
    at: Mapping[float, Callable[[Asked], None]] | None = None,
    **rules: Any,  # noqa: ANN401  (fields of Rules; `deadline` counts from the beginning)
) -> Asked:
    """Ask questions 1, 2, … in virtual time; `at` holds what is done that many seconds after the beginning."""
    assert isinstance(form, AnswerForm)
    limits = Limits(AdaptiveLimit(concurrency, start=concurrency), Gate(), budget or Budget(), fixed=True)
    asked = Asked(questions, keep or Kept(), Valve(), limits)
    if rules.get("deadline") is not None:
        rules["deadline"] += BEGINNING
    works = source or (lambda: (Work(number, number - 1, (number,)) for number in range(1, questions + 1)))

    async def program() -> None:
        loop = asyncio.get_running_loop()
        asked.pool = Pool(
            _sending(answer, asked),
            asked.keep,
            asked.valve,
            limits,
            rules=replace(LENIENT, **{"questions": questions} | rules),
            form=form,
            body_of=lambda values: (body_of or _body)(values[0]),
            worst_case=lambda _, values: worst_case(values[0]),
            time=Time(loop.time, lambda: WALL + loop.time() - BEGINNING, lambda: jitter),
        )
        for delay, action in (at or {}).items():
            loop.call_later(delay, action, asked)
        try:
            await asked.pool.ask(iter(works()))
        except Exception as crash:  # noqa: BLE001  (the test looks at it)
            asked.crash = crash
        asked.seconds = loop.time() - BEGINNING

    run(program())
    return asked


def _body(number: int) -> bytes:
    return json.dumps({"number": number, "messages": []}).encode()


def _sending(answer: Answering, asked: Asked) -> Callable[[Request], Awaitable[Reply]]:
    """Make a Send of what answers, that notes what it is sent."""
    counts: dict[int, int] = {}

    async def send(request: Request) -> Reply:
        body = json.loads(request.body)
        number = body["number"]
        counts[number] = counts.get(number, 0) + 1
        started = asyncio.get_running_loop().time()
        asked.sent.append((started - BEGINNING, number))
        asked.bodies.append(body)
        asked.low_waters.append(asked.pool.low_water)
        asked.in_flight += 1
        asked.peak = max(asked.peak, asked.in_flight)
        try:
            reply = await answer(number, counts[number])
        finally:
            asked.in_flight -= 1
        return reply._replace(seconds=asyncio.get_running_loop().time() - started)

    return send
