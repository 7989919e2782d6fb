"""What a run would do before it does: the questions it would ask, their tokens, money and time.

A sample of the rows is rendered and extrapolated. Likely tokens need no tokenizer: a token has as many characters as
in the job's own answers, else four. The worst case is what a run reserves: no tokenizer makes more tokens than bytes.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from batchrun.api import Family, Prices, family_of
from batchrun.checkpoint import Checkpoint, Settled
from batchrun.job import Limits
from batchrun.money import ZERO, Pico, Price
from batchrun.prompt import RowProblem
from batchrun.records import Shown, Unasked
from batchrun.runner.budget import page_fee, worst_case
from batchrun.runner.children import most_in_flight
from batchrun.runner.plan import Keys, open_work
from batchrun.runner.prepare import Prepared
from batchrun.runner.sample import MIXED, mix
from batchrun.table import Batch

SAMPLE = 4_000
"""Rows of a sample, at least, where the input has as many; at most twice that number."""

CHARACTERS_PER_TOKEN = 4.0
"""Where nothing is answered yet. Measured with a tokenizer of 49,000 tokens: English sentences have 4.3 to 4.4, names
3.0, JSON with numbers and addresses 2.3."""

MESSAGE_TOKENS = 4
"""What a chat template adds to a message, where nothing is answered yet."""

HIDDEN_TOKENS = 150
"""What a decision model's template adds to a question, where nothing is answered yet."""

TEXT_TOKENS = 150
OBJECT_TOKENS, COLUMN_TOKENS = 8, 12
"""Tokens of an answer, where nothing is answered yet: a text; an object and each of its columns."""

LATENCY = 2.0
"""Seconds for one answer, where nothing is answered yet."""

_FIRST = 200
"""Questions on which `likely_cost` rests."""


@dataclass(slots=True)
class Used:
    """What this job's answers used: the base of an estimate. Seconds."""

    answers: int = 0
    characters: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Survey:
    """What a run would find: how many rows are answered, failed for good, filtered out or open.

    `rows` and `skipped` are exact; all else is extrapolated from a sample, unless `exact`. `questions` are the
    distinct open ones; `characters` is what their messages hold, `worst` what they can cost at most (None: unknown or
    not bounded), `fees` what of it the pages of PDFs cost. `answer_tokens` is the mean length of this job's other
    answers, where none in the sample was answered. With `sample`, `questions` and what follows from them are those of
    a run with `--sample`.
    """

    rows: int
    skipped: int
    answered: int
    failed: int
    open: int
    questions: int
    exact: bool
    characters: int
    worst: Pico | None
    fees: Pico
    unasked: tuple[Unasked, ...]
    used: Used
    answer_tokens: int | None
    first: tuple[Shown, ...]
    sample: int | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the open questions will likely need; `cost` is None where the price is unknown, `seconds` is a duration.

    `constant` counts the tokens with which all requests begin, as far as the provider's prompt cache can hold them.
    `cost` follows where all requests but the first read them from it, `uncached` where none does.
    `answers` is the number of this job's answers that the estimate follows from; without any it is a rule of thumb.
    `in_flight` is the most requests at once that `seconds` assumes.
    """

    prompt_tokens: int
    completion_tokens: int
    cost: Pico | None
    seconds: float
    in_flight: int
    answers: int
    characters_per_token: float
    constant: int = 0
    uncached: Pico | None = None


def survey(
    prepared: Prepared, checkpoint: Checkpoint | None, prices: Prices, show: int = 0, sample: int | None = None
) -> Survey:
    """Read the input once, render a sample of its rows, and return what a run would ask, also one with `--sample`.

    The first `show` requests are included. Raises InputError. Nothing is sent and nothing is written.
    """
    rows = _Sample(prepared, checkpoint, worst_case(prepared, prices), show if sample is None else 0)
    for batch in prepared.rows.batches(prepared.renderer.columns):
        rows.take(batch)
    if sample is None:
        return rows.survey()
    return rows.survey_of(sample, show)


def shown(prepared: Prepared, position: int, values: tuple[Any, ...]) -> Shown | RowProblem:
    """Return the request of the row at a position (from 0), for people."""
    messages = prepared.renderer.messages(values)
    body = prepared.renderer.body(values)
    if isinstance(messages, RowProblem):
        return messages
    if isinstance(body, RowProblem):
        return body
    prompt = {"messages", "state", "input"}
    params = {name: value for name, value in orjson.loads(body).items() if name not in prompt}
    return Shown(position + 1, messages, params)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the sample that is not filtered out; `problem` is (error_type, message) of one that can't be asked."""

    position: int
    key: bytes | None
    problem: tuple[str, str] | None
    settled: Settled | None
    characters: int
    worst: Pico
    fee: Pico

    @property
    def is_open(self) -> bool:
        return self.key is not None and self.settled is None


class _Sample:
    """A sample of the rows that is spread evenly over an input of unknown length.

    A row belongs to it if the hash of its position is below a bound; the bound is halved when the sample is full.
    """

    def __init__(
        self, prepared: Prepared, checkpoint: Checkpoint | None, worst: Callable[[int], Pico] | None, show: int
    ) -> None:
        self._prepared, self._checkpoint, self._worst, self._show = prepared, checkpoint, worst, show
        self._keys_of = Keys(prepared.renderer, dedupe=prepared.job.dedupe)
        # A constant bound needs no bodies; with images they would hold whole files.
        self._needs_size = worst is not None and prepared.job.model.max_request_usd is None
        self._fee = page_fee(prepared)
        self._bound = MIXED
        self._total = self._skipped = 0
        self._rows: list[_Row] = []
        self._first: list[Shown] = []

    def take(self, batch: Batch) -> None:
        """Count one batch and render its rows of the sample."""
        self._total += len(batch.rows)
        asked = [index for index in range(len(batch.rows)) if batch.asked is None or batch.asked[index]]
        self._skipped += len(batch.rows) - len(asked)
        is_beginning = batch.position == 0 and self._show > 0  # people expect the requests of the very first rows
        chosen = [index for index in asked if is_beginning or self._is_in(batch.position + index)]
        self._rows += self._rendered(batch, chosen)
        while len(self._rows) > 2 * SAMPLE:
            self._bound //= 2
            self._rows = [row for row in self._rows if self._is_in(row.position)]

    def _is_in(self, position: int) -> bool:
        return mix(position) < self._bound

    def _rendered(self, batch: Batch, chosen: list[int]) -> list[_Row]:
        prepared, values = self._prepared, [batch.rows[index] for index in chosen]
        keys, problems = self._keys_of(Batch(0, values, None))
        settled: dict[bytes, Settled] = {}
        if self._checkpoint is not None:
            known = [key for key in keys if key is not None]
            settled = self._checkpoint.settled(known, prepared.open_rule)
        shown_keys = {row.key for row in self._rows}
        rows = []
        for number, (index, key) in enumerate(zip(chosen, keys, strict=True)):
            position = batch.position + index
            row = _Row(position, key, problems.get(number), settled.get(key or b""), *self._sizes(values[number]))
            rows.append(row)
            if row.is_open and len(self._first) < self._show and key not in shown_keys:
                shown_keys.add(key)
                if isinstance(request := shown(prepared, position, values[number]), Shown):
                    self._first.append(request)
        return rows

    def _sizes(self, values: tuple[Any, ...]) -> tuple[int, Pico, Pico]:
        """Return the characters of a row's messages, what it can cost at most, and what its pages cost of that."""
        size = 0
        if self._needs_size and not isinstance(body := self._prepared.renderer.body(values), RowProblem):
            size = len(body)
        fee = self._fee(values)
        worst = ZERO
        if self._worst is not None:
            worst = Pico(self._worst(size) + fee)
        return _characters(self._prepared, values), worst, fee

    def survey(self) -> Survey:
        """Return what the sample says of the whole input."""
        sampled, asked = len(self._rows), self._total - self._skipped

        def scaled(number: int) -> int:
            return round(number * asked / max(1, sampled))

        states = Counter(row.settled.status for row in self._rows if row.settled is not None)
        counted = {row.key: row for row in self._rows if row.is_open}
        questions = self._questions(scaled(sum(row.is_open for row in self._rows)))
        characters, worst, fees = self._needs(counted.values(), questions / max(1, len(counted)))
        used = self._used()
        return Survey(
            rows=self._total,
            skipped=self._skipped,
            answered=scaled(states["ok"]),
            failed=scaled(states["failed"]),
            open=scaled(sum(row.is_open for row in self._rows)),
            questions=questions,
            exact=sampled == asked,
            characters=characters,
            worst=worst,
            fees=fees,
            unasked=self._unasked(scaled),
            used=used,
            answer_tokens=None if used.answers else self._answer_tokens(),
            first=tuple(self._first),
        )

    def survey_of(self, count: int, show: int) -> Survey:
        """Return what a run with `--sample` would ask: of the first `count` distinct questions those that are open."""
        whole = self.survey()
        drawn: dict[bytes, _Row] = {}
        for row in sorted(self._rows, key=lambda row: mix(row.position)):
            if row.key is not None and len(drawn) < count:
                drawn.setdefault(row.key, row)
        rows = [row for row in drawn.values() if row.is_open]
        # Where more questions are wanted than were looked at, the others are like these.
        share = 1.0
        if drawn and not whole.exact:
            share = min(count, self._total) / len(drawn)
        characters, worst, fees = self._needs(rows, share)
        return replace(
            whole,
            questions=round(len(rows) * share),
            characters=characters,
            worst=worst,
            fees=fees,
            first=tuple(self._requests(rows[:show])),
            sample=count,
        )

    def _needs(self, rows: Collection[_Row], share: float) -> tuple[int, Pico | None, Pico]:
        """Return the characters of rows, what they can cost at most, and the fees in that, times a share."""
        worst = Pico(round(sum(row.worst for row in rows) * share))
        return (
            round(sum(row.characters for row in rows) * share),
            None if self._worst is None else worst,
            Pico(round(sum(row.fee for row in rows) * share)),
        )

    def _requests(self, rows: list[_Row]) -> Iterator[Shown]:
        """Yield the requests of rows, in the input's order."""
        for row in sorted(rows, key=lambda row: row.position):
            batch = next(self._prepared.rows.batches(self._prepared.renderer.columns, start=row.position, size=1))
            if isinstance(request := shown(self._prepared, row.position, batch.rows[0]), Shown):
                yield request

    def _questions(self, rows: int) -> int:
        """Estimate the distinct questions among `rows` open rows (Chao 1984): exact where the sample is the whole."""
        often = Counter(Counter(row.key for row in self._rows if row.is_open).values())
        distinct = often.total()
        if self._bound == MIXED:
            return distinct
        if not self._prepared.job.dedupe:
            return rows
        if often[2]:
            return min(rows, distinct + often[1] ** 2 // (2 * often[2]))
        return rows if often[1] else distinct

    def _unasked(self, scaled: Callable[[int], int]) -> tuple[Unasked, ...]:
        first: dict[str, _Row] = {}
        number: Counter[str] = Counter()
        for row in self._rows:
            if row.problem is not None:
                first.setdefault(row.problem[0], row)
                number[row.problem[0]] += 1
        return tuple(
            Unasked(name, scaled(rows), first[name].position + 1, (first[name].problem or ("", ""))[1])
            for name, rows in number.most_common()
        )

    def _used(self) -> Used:
        used = Used()
        for row in self._rows:
            state = row.settled
            if state is not None and state.status == "ok" and state.prompt_tokens is not None:
                used.answers += 1
                used.characters += row.characters
                used.prompt_tokens += state.prompt_tokens
                used.completion_tokens += state.completion_tokens or 0
                used.seconds += state.seconds or 0.0
        return used

    def _answer_tokens(self) -> int | None:
        if self._checkpoint is None:
            return None
        usage = self._checkpoint.usage()
        return round(usage.completion_tokens / usage.answers) if usage.answers else None


def _characters(prepared: Prepared, values: tuple[Any, ...]) -> int:
    """Return the characters of a row's messages; 0 if it can't be rendered."""
    messages = prepared.renderer.messages(values)
    if isinstance(messages, RowProblem):
        return 0
    return sum(len(text) for message in messages for text in _texts(message["content"]))


def _texts(content: str | Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    else:
        yield from (part.get("text", "") for part in content)


def forecast(prepared: Prepared, found: Survey, prices: Prices) -> Forecast:
    """Return what the open questions of a survey will likely need, each asked once."""
    return _forecast(prepared, prices, found.questions, found.characters, found.fees, found.used, found.answer_tokens)


def _forecast(
    prepared: Prepared, prices: Prices, number: int, characters: int, fees: Pico, used: Used, answer_tokens: int | None
) -> Forecast:
    if used.answers and used.prompt_tokens:
        ratio = used.characters / used.prompt_tokens
        prompt = characters / ratio if ratio else number * used.prompt_tokens / used.answers
        completion = number * used.completion_tokens / used.answers
    else:
        ratio = CHARACTERS_PER_TOKEN
        around = 0
        if prepared.form.response_format is not None:
            around = len(orjson.dumps(prepared.form.response_format))
        prompt = (characters + number * around) / ratio + number * MESSAGE_TOKENS * len(prepared.job.prompt.turns)
        if answer_tokens is None:
            answer_tokens = _answer_tokens(prepared)
        completion = float(number * answer_tokens)
        if prepared.form.questions:
            prompt = sum((characters + number * len(one.instructions)) / ratio for one in prepared.form.questions)
            prompt += number * HIDDEN_TOKENS * len(prepared.form.questions)
    if prepared.max_tokens is not None:
        completion = min(completion, number * prepared.max_tokens)
    price = prices.likely.get(prepared.endpoint.model)
    tokens = (round(prompt), round(completion))
    constant = round(_constant(prepared) / (ratio or math.inf))
    cost = uncached = None
    if price is not None:
        more = price.request * (number - 1) + fees
        cost = Pico(price.cost(*tokens, *_from_cache(prepared, price, constant, number)) + more)
        uncached = Pico(price.cost(*tokens) + more)
    latency = used.seconds / max(1, used.answers) or LATENCY
    at_once = most_in_flight(prepared.job, prepared.endpoint)
    seconds = likely_seconds(number, sum(tokens), latency, prepared.job.limits, at_once)
    return Forecast(*tokens, cost, seconds, at_once, used.answers, ratio, constant, uncached)


def _constant(prepared: Prepared) -> int:
    """Return the characters with which all requests begin, as far as a prompt cache can hold them."""
    beginning = prepared.beginning
    return beginning.characters if is_marked(prepared) else beginning.characters + beginning.loose


def is_marked(prepared: Prepared) -> bool:
    """Check whether the model caches only what a mark ends: whole texts, no part of one."""
    if prepared.caching is not None:
        return prepared.caching.mark is not None
    known = family(prepared)
    return known is not None and known.marked


def family(prepared: Prepared) -> Family | None:
    """Return how the model's family caches prompts, where that is known."""
    return family_of(prepared.endpoint.model) if prepared.endpoint.openrouter else None


def _from_cache(prepared: Prepared, price: Price, constant: int, number: int) -> tuple[int, int]:
    """Return how many tokens of that many requests are read from the prompt cache, and how many are written to it."""
    if prepared.caching is None or price.cache_read is None or constant < prepared.caching.minimum or not number:
        return 0, 0
    written = constant if prepared.caching.mark is not None else 0
    return constant * (number - 1), written


def likely_cost(
    prepared: Prepared, checkpoint: Checkpoint, prices: Prices, *, start: int, questions: int
) -> Pico | None:
    """Return what that many open questions will likely cost, by the first ones; None where the price is unknown.

    No prompt cache is counted on: whether it works shows only in the run.
    """
    if not questions or prepared.endpoint.model not in prices.likely:
        return None
    blocks = checkpoint.open_questions(prepared.open_rule, start=start, batch=_FIRST)
    works = list(open_work(prepared.rows, prepared.renderer.columns, blocks, limit=_FIRST, changed=lambda: False))
    if not works:
        return None
    characters = sum(_characters(prepared, work.values) for work in works)
    fees = Pico(sum(map(page_fee(prepared), (work.values for work in works))) * questions // len(works))
    return _forecast(prepared, prices, questions, characters * questions // len(works), fees, Used(), None).uncached


def _answer_tokens(prepared: Prepared) -> int:
    if prepared.form.schema is None:
        return TEXT_TOKENS
    return OBJECT_TOKENS + COLUMN_TOKENS * len(prepared.form.columns)


def likely_seconds(questions: int, tokens: int, latency: float, limits: Limits, at_once: int) -> float:
    """Return the seconds that the slowest of the limits takes for that many questions."""
    if not questions:
        return 0.0
    return max(
        latency * -(-questions // at_once),
        60.0 * questions / (limits.requests_per_minute or math.inf),
        60.0 * tokens / (limits.tokens_per_minute or math.inf),
    )
