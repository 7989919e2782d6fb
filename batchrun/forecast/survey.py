"""What a run would find: a sample of the rows is rendered, and extrapolated to the whole input."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson

from batchrun.api import Endpoint, Prices, cost_kind, prices_for
from batchrun.checkpoint import Checkpoint, OpenRule, Settled
from batchrun.forecast.likely import Used, characters_of, forecast
from batchrun.money import ZERO, Pico, to_usd
from batchrun.prepare import MIXED, Corrections, Keys, Prepared, corrected, mix, page_fee, serving, worst_case
from batchrun.prompt import RowProblem
from batchrun.records import Preview, Shown, Unasked
from batchrun.table import Batch

_BY_PERSON, _IN_BATCH = Settled("ok", None, None, None), Settled("in_batch", None, None, None)

SAMPLE = 4_000
"""Rows of a sample, at least, where the input has as many; at most twice that number."""


@contextmanager
def reachable(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Yield the endpoint with an address that lists prices; a local model has none and is not loaded for it."""
    if endpoint.name == "local":
        yield endpoint
        return
    with serving(endpoint) as served:
        yield served


def look(prepared: Prepared, show: int, sample: int | None = None) -> tuple[Preview, Prices]:
    """Return what a run would find and need, with the first `show` requests, and the prices behind that.

    Nothing is sent to a model.
    """
    with ExitStack() as stack:
        checkpoint = None
        if prepared.job.checkpoint_path.exists():
            checkpoint = stack.enter_context(Checkpoint.open(prepared.job.checkpoint_path, read_only=True))
        with reachable(prepared.endpoint) as served:
            prices = prices_for(prepared.job, served, prepared.cache_dir, time.time())
        return survey(prepared, checkpoint, prices, show, sample), prices


def survey(
    prepared: Prepared, checkpoint: Checkpoint | None, prices: Prices, show: int = 0, sample: int | None = None
) -> Preview:
    """Read the input once, render a sample of its rows, and return what a run would ask, also one with `--sample`.

    The first `show` requests are included. Raises InputError. Nothing is sent and nothing is written.
    """
    rows = _Sample(prepared, checkpoint, prices, show if sample is None else 0)
    for batch in prepared.rows.batches(rows.columns):
        rows.take(batch)
    return rows.preview(sample, show)


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

    def __init__(self, prepared: Prepared, checkpoint: Checkpoint | None, prices: Prices, show: int) -> None:
        self._prepared, self._checkpoint, self._prices, self._show = prepared, checkpoint, prices, show
        self._worst, self._fee = worst_case(prepared, prices), page_fee(prepared)
        self._corrections = Corrections(prepared.job)
        asked = prepared.renderer.columns
        more = self._corrections.columns(prepared.rows.columns)
        self.columns = tuple(dict.fromkeys([*asked, *more]))  # the prompt's first
        self._keys_of = Keys(prepared.renderer, dedupe=prepared.job.dedupe)
        # A constant bound needs no bodies; with images they would hold whole files.
        self._needs_size = self._worst is not None and prepared.job.model.max_request_usd is None
        self._bound = MIXED
        self._total = self._skipped = 0
        self._rows: list[_Row] = []
        self._first: list[Shown] = []

    def take(self, batch: Batch) -> None:
        """Count one batch and render its rows of the sample."""
        self._total += len(batch.rows)
        asked = [index for index in range(len(batch.rows)) if batch.asked is None or batch.asked[index]]
        self._skipped += len(batch.rows) - len(asked)
        # The bound is halved only after the first batch, so that the requests of the very first rows are among these.
        chosen = [index for index in asked if self._is_in(batch.position + index)]
        self._rows += self._rendered(batch, chosen)
        while len(self._rows) > 2 * SAMPLE:
            self._bound //= 2
            self._rows = [row for row in self._rows if self._is_in(row.position)]

    def _is_in(self, position: int) -> bool:
        return mix(position) < self._bound

    def _rendered(self, batch: Batch, chosen: list[int]) -> list[_Row]:
        # As they were read: a row of JSON knows which of the fields it has, and its question depends on that.
        prepared, whole = self._prepared, [batch.rows[index] for index in chosen]
        keys, problems = self._keys_of(Batch(0, whole, None))
        settled: dict[bytes, Settled] = {}
        if self._checkpoint is not None:
            known = [key for key in keys if key is not None]
            settled = self._checkpoint.settled(known, prepared.open_rule)
            # Asked, and not to be asked again; the next run collects the answers.
            settled |= dict.fromkeys(self._checkpoint.batches.out_among(known), _IN_BATCH)
        # Three equal rows at the beginning are one request, and people want to see three.
        shown_keys = {row.key for row in self._rows}
        reviewed = self._reviewed(keys, whole)
        rows = []
        for number, (index, cells, key) in enumerate(zip(chosen, whole, keys, strict=True)):
            position = batch.position + index
            row = _Row(
                position,
                key,
                None if number in reviewed else problems.get(number),
                _BY_PERSON if number in reviewed else settled.get(key or b""),
                characters_of(prepared, cells),
                self._worst_of(cells),
                self._fee(cells),
            )
            rows.append(row)
            if row.is_open and len(self._first) < self._show and key not in shown_keys:
                shown_keys.add(key)
                if isinstance(request := shown(prepared, position, cells), Shown):
                    self._first.append(request)
        return rows

    def _reviewed(self, keys: list[bytes | None], rows: list[tuple[Any, ...]]) -> set[int]:
        """Return the numbers of the rows that failed and that a person answered: no run asks them again."""
        if self._checkpoint is None or not self._corrections.columns(self.columns):
            return set()
        # Each failed question, also those that a run would ask again.
        states = self._checkpoint.settled([key for key in keys if key is not None], OpenRule(max_tokens=0))
        failed = {key for key, state in states.items() if state.status == "failed"}
        found = set()
        for number, (key, cells) in enumerate(zip(keys, rows, strict=True)):
            if key is None or key in failed:
                correction = self._corrections.find(dict(zip(self.columns, cells, strict=True)))
                if corrected(self._prepared.form, None, correction) is not None:
                    found.add(number)
        return found

    def _worst_of(self, values: tuple[Any, ...]) -> Pico:
        if self._worst is None:
            return ZERO
        body = self._prepared.renderer.body(values) if self._needs_size else b""
        return self._worst(0 if isinstance(body, RowProblem) else len(body), values)

    def preview(self, sample: int | None, show: int) -> Preview:
        """Return what the sample says of the whole input: of a run, or of one with `--sample`."""
        prepared, rows = self._prepared, self._rows
        asked = self._total - self._skipped

        def scaled(number: int) -> int:
            return round(number * asked / max(1, len(rows)))

        states = Counter(row.settled.status for row in rows if row.settled is not None)
        open_rows = [row for row in rows if row.is_open]
        if sample is None:
            chosen, requests = list({row.key: row for row in open_rows}.values()), self._first
            questions = self._distinct(open_rows, scaled(len(open_rows)))
        else:
            chosen, questions = self._drawn(sample, exact=len(rows) == asked)
            requests = list(self._requests(chosen[:show]))
        # What was rendered stands for all: 4,000 rows of a million.
        share = questions / max(1, len(chosen))
        characters = round(sum(row.characters for row in chosen) * share)
        fees = Pico(round(sum(row.fee for row in chosen) * share))
        used = self._used()
        likely = forecast(prepared, self._prices, questions, characters, fees, used)
        batch = None
        if self._prices.batch is not None:
            batch = self._prices.batch.likely.cost(likely.prompt_tokens, likely.completion_tokens)
        worst = Pico(round(sum(row.worst for row in chosen) * share))
        return Preview(
            job=prepared.job.name,
            rows=self._total,
            skipped=self._skipped,
            answered=scaled(states["ok"]),
            failed=scaled(states["failed"]),
            in_batch=scaled(states["in_batch"]),
            open=scaled(len(open_rows)),
            questions=questions,
            exact=len(rows) == asked,
            unasked=self._unasked(scaled),
            prompt_tokens=likely.prompt_tokens,
            completion_tokens=likely.completion_tokens,
            cost_usd=_usd(likely.cost),
            uncached_cost_usd=_usd(likely.uncached),
            max_cost_usd=None if self._worst is None else to_usd(worst),
            batch_cost_usd=_usd(batch),
            cost_kind=cost_kind(prepared.job),
            seconds=likely.seconds,
            in_flight=likely.in_flight,
            answers=used.answers,
            characters_per_token=likely.characters_per_token,
            beginning_tokens=likely.beginning_tokens,
            sample=sample,
            requests=tuple(requests),
        )

    def _drawn(self, count: int, *, exact: bool) -> tuple[list[_Row], int]:
        """Return the open rows of a run with `--sample`, and how many questions that makes.

        It asks those of the first `count` distinct questions that are open. Where more questions are wanted than were
        looked at, the others are like these.
        """
        drawn: dict[bytes, _Row] = {}
        for row in sorted(self._rows, key=lambda row: mix(row.position)):
            if row.key is not None and len(drawn) < count:
                drawn.setdefault(row.key, row)
        rows = [row for row in drawn.values() if row.is_open]
        if exact or not drawn:
            return rows, len(rows)
        return rows, round(len(rows) * min(count, self._total) / len(drawn))

    def _requests(self, rows: list[_Row]) -> Iterator[Shown]:
        """Yield the requests of rows, in the input's order."""
        for row in sorted(rows, key=lambda row: row.position):
            batch = next(self._prepared.rows.batches(self._prepared.renderer.columns, start=row.position, size=1))
            if isinstance(request := shown(self._prepared, row.position, batch.rows[0]), Shown):
                yield request

    def _distinct(self, open_rows: list[_Row], number: int) -> int:
        """Estimate the distinct questions among `number` open rows (Chao 1984): exact where the sample is the whole.

        A million rows with a hundred different texts are a hundred questions, which no share of a sample would show.
        """
        often = Counter(Counter(row.key for row in open_rows).values())
        distinct = often.total()
        if self._bound == MIXED:
            return distinct
        if not self._prepared.job.dedupe:
            return number
        if often[2]:
            return min(number, distinct + often[1] ** 2 // (2 * often[2]))
        return number if often[1] else distinct

    def _unasked(self, scaled: Callable[[int], int]) -> tuple[Unasked, ...]:
        first: dict[str, tuple[int, str]] = {}
        numbers: Counter[str] = Counter()
        for row in self._rows:
            if row.problem is not None:
                name, message = row.problem
                first.setdefault(name, (row.position + 1, message))
                numbers[name] += 1
        return tuple(Unasked(name, scaled(number), *first[name]) for name, number in numbers.most_common())

    def _used(self) -> Used:
        """Return what the answers in the sample used; without any, only the mean length of the job's other answers."""
        used = Used()
        for row in self._rows:
            state = row.settled
            if state is not None and state.status == "ok" and state.prompt_tokens is not None:
                used.answers += 1
                used.characters += row.characters
                used.prompt_tokens += state.prompt_tokens
                used.completion_tokens += state.completion_tokens or 0
                used.seconds += state.seconds or 0.0
        if not used.answers and self._checkpoint is not None:
            used.others = self._checkpoint.answer_tokens()
        return used


def _usd(amount: Pico | None) -> Decimal | None:
    return None if amount is None else to_usd(amount)
