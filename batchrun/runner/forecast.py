"""What a run would do before it does: the questions it would ask, their tokens, money and time.

Likely tokens need no tokenizer: a token is so many characters, as the job's own answers show, else four. The worst
case is what a run reserves: no tokenizer makes more tokens than bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from batchrun.api import ASKED_AGAIN, Prices
from batchrun.checkpoint import Checkpoint
from batchrun.job import Limits
from batchrun.money import ZERO, Pico
from batchrun.prompt import RowProblem
from batchrun.runner.plan import Keys, open_work
from batchrun.runner.prepare import Prepared
from batchrun.table.read import Batch

CHARACTERS_PER_TOKEN = 4.0
"""Where nothing is answered yet. Measured with a tokenizer of 49,000 tokens: English sentences have 4.3 to 4.4, names
3.0, JSON with numbers and addresses 2.3."""

MESSAGE_TOKENS = 4
"""What a chat template adds to a message, where nothing is answered yet."""

TEXT_TOKENS = 150
OBJECT_TOKENS, COLUMN_TOKENS = 8, 12
"""Tokens of an answer, where nothing is answered yet: a text; an object and each of its columns."""

LATENCY = 2.0
"""Seconds for one answer, where nothing is answered yet."""

_CALIBRATION = 2_000
_SAMPLE = 200
"""Questions on which `likely_cost` rests."""
_EXACT = 2**20


@dataclass(frozen=True, slots=True)
class Shown:
    """A request for people: its row (from 1), its messages (an image is its path) and all else that is sent."""

    row: int
    messages: list[dict[str, Any]]
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unasked:
    """Rows for which no request can be made: why, how many, the first one (from 1) and what is wrong with it."""

    error_type: str
    rows: int
    row: int
    message: str


@dataclass(slots=True)
class Used:
    """What answers used that this input and prompt had: the base of an estimate. Seconds."""

    answers: int = 0
    characters: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Survey:
    """What a run would find. Rows that are answered, failed for good, left out, not askable, open; then requests.

    `questions` are the distinct open ones, counted exactly up to a million, beyond it with an error of about 0.2 %.
    `characters` is what their messages hold, `worst` what they can cost at most (None: unknown or not bounded).
    `answer_tokens` is the mean length of what the job's other questions were answered, where none of these is.
    """

    rows: int = 0
    answered: int = 0
    failed: int = 0
    skipped: int = 0
    open: int = 0
    questions: int = 0
    exact: bool = True
    characters: int = 0
    worst: Pico | None = None
    unasked: tuple[Unasked, ...] = ()
    used: Used = field(default_factory=Used)
    answer_tokens: int | None = None
    first: tuple[Shown, ...] = ()


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the open questions will likely need; `cost` is None where the price is unknown, `seconds` is a duration.

    `answers` tells from how many of this job's answers that follows; without any it is a rule of thumb.
    """

    prompt_tokens: int
    completion_tokens: int
    cost: Pico | None
    seconds: float
    answers: int
    characters_per_token: float


class Distinct:
    """Counts distinct keys in bounded memory: all of them up to `capacity`, then a share of them, chosen by digest.

    A key that is seen for the first time weighs as many keys as the share stands for; any other weighs nothing.
    """

    def __init__(self, capacity: int = _EXACT) -> None:
        self._capacity = capacity
        self._seen: set[int] = set()
        self.weight = 1

    def first(self, key: bytes) -> int:
        """Give the weight of a key at its first appearance, else 0."""
        number = int.from_bytes(key[:8])
        if number % self.weight or number in self._seen:
            return 0
        self._seen.add(number)
        weight = self.weight
        while len(self._seen) > self._capacity:
            self.weight *= 2
            self._seen = {known for known in self._seen if known % self.weight == 0}
        return weight


def survey(p: Prepared, checkpoint: Checkpoint | None, worst: Callable[[int], Pico] | None, show: int = 0) -> Survey:
    """Read the input once and say what a run would ask; the first `show` requests are given as well.

    Raises InputError. Nothing is sent and nothing is written.
    """
    surveyor = _Surveyor(p, checkpoint, worst, show)
    for batch in p.rows.batches(p.renderer.columns):
        surveyor.take(batch)
    return surveyor.done()


def shown(p: Prepared, position: int, values: tuple[Any, ...]) -> Shown | RowProblem:
    """Give the request of the row at a position (from 0), for people."""
    messages = p.renderer.messages(values)
    body = p.renderer.body(values)
    if isinstance(messages, RowProblem):
        return messages
    if isinstance(body, RowProblem):
        return body
    params = {name: value for name, value in orjson.loads(body).items() if name != "messages"}
    return Shown(position + 1, messages, params)


class _Surveyor:
    """Goes through the rows and adds up."""

    def __init__(
        self, p: Prepared, checkpoint: Checkpoint | None, worst: Callable[[int], Pico] | None, show: int
    ) -> None:
        self._p, self._checkpoint, self._worst, self._show = p, checkpoint, worst, show
        self._keys_of = Keys(p.renderer, dedupe=p.job.dedupe)
        self._distinct = Distinct() if p.job.dedupe else None
        self._unasked: dict[str, Unasked] = {}
        self._sizes = _Sizes(p)
        self._found = Survey(worst=None if worst is None else ZERO)
        self._first: list[Shown] = []

    def take(self, batch: Batch) -> None:
        """Count one batch."""
        keys, problems = self._keys_of(batch)
        settled = {}
        if self._checkpoint is not None:
            known = [key for key in keys if key is not None]
            settled = self._checkpoint.settled(known, again=ASKED_AGAIN, max_tokens=self._p.max_tokens)
        found = self._found
        found.rows += len(keys)
        for index, key in enumerate(keys):
            if index + batch.position in problems:
                self._refused(index + batch.position, *problems[index + batch.position])
            elif key is None:
                found.skipped += 1
            elif (state := settled.get(key)) is None:
                found.open += 1
                self._open(batch.position + index, key, batch.rows[index])
            elif state.status == "ok":
                found.answered += 1
                if state.prompt_tokens is not None and found.used.answers < _CALIBRATION:
                    used = found.used
                    used.answers += 1
                    used.characters += self._sizes(batch.rows[index])[0]
                    used.prompt_tokens += state.prompt_tokens
                    used.completion_tokens += state.completion_tokens or 0
                    used.seconds += state.seconds or 0.0
            else:
                found.failed += 1

    def done(self) -> Survey:
        """Give the sums."""
        found = self._found
        found.exact = self._distinct is None or self._distinct.weight == 1
        found.unasked = tuple(sorted(self._unasked.values(), key=lambda reason: -reason.rows))
        found.first = tuple(self._first)
        if not found.used.answers and self._checkpoint is not None:
            usage = self._checkpoint.usage()
            found.answer_tokens = round(usage.completion_tokens / usage.answers) if usage.answers else None
        return found

    def _refused(self, position: int, error_type: str, message: str) -> None:
        known = self._unasked.get(error_type)
        self._unasked[error_type] = (
            Unasked(error_type, 1, position + 1, message)
            if known is None
            else Unasked(error_type, known.rows + 1, known.row, known.message)
        )

    def _open(self, position: int, key: bytes, values: tuple[Any, ...]) -> None:
        weight = 1 if self._distinct is None else self._distinct.first(key)
        if not weight:
            return
        found = self._found
        characters, size = self._sizes(values)
        found.questions += weight
        found.characters += weight * characters
        if self._worst is not None and found.worst is not None:
            found.worst = Pico(found.worst + weight * self._worst(size))
        if len(self._first) < self._show and isinstance(request := shown(self._p, position, values), Shown):
            self._first.append(request)


class _Sizes:
    """How many characters the messages of a request have, and how many bytes its body has."""

    def __init__(self, p: Prepared) -> None:
        self._renderer = p.renderer
        self._images = any(
            part.image for turn in p.job.prompt.turns if not isinstance(turn.content, str) for part in turn.content
        )
        self._around: int | None = None

    def __call__(self, values: tuple[Any, ...]) -> tuple[int, int]:
        if self._images:  # the body would hold them whole
            return self._written(values), 0
        body = self._renderer.body(values)
        if isinstance(body, RowProblem):
            return 0, 0
        whole = len(body) if body.isascii() else len(body.decode())
        if self._around is None:
            self._around = whole - self._written(values)
        return whole - self._around, len(body)

    def _written(self, values: tuple[Any, ...]) -> int:
        messages = self._renderer.messages(values)
        if isinstance(messages, RowProblem):
            return 0
        texts: list[str] = []
        for message in messages:
            content = message["content"]
            texts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        return sum(map(len, texts))


def forecast(p: Prepared, found: Survey, prices: Prices) -> Forecast:
    """Say what the open questions of a survey will likely need, each asked once."""
    used, number = found.used, found.questions
    if used.answers and used.prompt_tokens:
        ratio = used.characters / used.prompt_tokens
        prompt = found.characters / ratio if ratio else number * used.prompt_tokens / used.answers
        completion = number * used.completion_tokens / used.answers
    else:
        ratio = CHARACTERS_PER_TOKEN
        around = 0 if p.form.response_format is None else len(orjson.dumps(p.form.response_format))
        prompt = (found.characters + number * around) / ratio + number * MESSAGE_TOKENS * len(p.job.prompt.turns)
        completion = float(number * (_answer_tokens(p) if found.answer_tokens is None else found.answer_tokens))
    if p.max_tokens is not None:
        completion = min(completion, number * p.max_tokens)
    price = prices.likely.get(p.endpoint.model)
    tokens = (round(prompt), round(completion))
    cost = None if price is None else Pico(price.cost(*tokens) + price.request * (number - 1) if number else 0)
    latency = used.seconds / used.answers if used.answers and used.seconds else LATENCY
    seconds = likely_seconds(number, sum(tokens), latency, p.job.limits)
    return Forecast(*tokens, cost, seconds, used.answers, ratio)


def likely_cost(p: Prepared, checkpoint: Checkpoint, prices: Prices, *, start: int, questions: int) -> Pico | None:
    """Return what that many open questions will likely cost, by the first ones; None where the price is unknown."""
    if not questions or p.endpoint.model not in prices.likely:
        return None
    blocks = checkpoint.open_questions(start=start, again=ASKED_AGAIN, max_tokens=p.max_tokens, batch=_SAMPLE)
    works = list(open_work(p.rows, p.renderer.columns, blocks, most=_SAMPLE, changed=lambda: False))
    if not works:
        return None
    sizes = _Sizes(p)
    characters = sum(sizes(work.values)[0] for work in works)
    return forecast(p, Survey(questions=questions, characters=characters * questions // len(works)), prices).cost


def _answer_tokens(p: Prepared) -> int:
    if p.form.schema is None:
        return TEXT_TOKENS
    return OBJECT_TOKENS + COLUMN_TOKENS * len(p.form.columns)


def likely_seconds(questions: int, tokens: int, latency: float, limits: Limits) -> float:
    """Give the seconds that the slowest of the limits makes of it."""
    if not questions:
        return 0.0
    return max(
        latency * -(-questions // limits.ceiling),
        60.0 * questions / limits.requests_per_minute if limits.requests_per_minute else 0.0,
        60.0 * tokens / limits.tokens_per_minute if limits.tokens_per_minute else 0.0,
    )
