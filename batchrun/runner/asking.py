"""Connects server, sender, limits, pool and checkpoint writer for one run."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import chain
from typing import Any

import uvloop

from batchrun._version import __version__
from batchrun.api import Endpoint, Mask, Prices, in_parts
from batchrun.checkpoint import FOR_BATCH, NOT_OUT, Checkpoint
from batchrun.errors import BatchrunError, ExitCode
from batchrun.job import Job
from batchrun.money import ZERO, to_usd
from batchrun.net import is_loopback, proxy_for
from batchrun.prepare import INPUT_CHANGED, Prepared, most_in_flight, worst_case
from batchrun.records import Reply, Request, Send, Target
from batchrun.runner.budget import Budget, lowest_cap
from batchrun.runner.limits import AdaptiveLimit, Gate, Limits, TokenBucket
from batchrun.runner.log import event
from batchrun.runner.pool import Pool
from batchrun.runner.progress import NOTABLE_GATE, Ui
from batchrun.runner.stop import Valve, closed_by_signals
from batchrun.runner.work import Rules, Tally, Time, Work
from batchrun.senders import Events, open_sender
from batchrun.table import Batch

CONNECT_TIMEOUT = 10.0
TICK = 0.2
KNOWN_FOR = 86_400.0
"""Seconds; an endpoint that succeeded so recently gets many requests at once from the start."""

LOG_EVERY = 30.0


@dataclass(frozen=True, slots=True)
class Asking:
    """What one run asks, in the pool or in batches: the questions that are open from position `start` on.

    `limit` is how many of them may be asked (sys.maxsize: all), `questions` how many that makes in the pool, and
    `where` (SQL) chooses them. `max_failed` is how many may still fail (None: no limit), in batches with the rows that
    failed before. `started` is when the run began, on the clock of `time`.
    """

    prepared: Prepared
    checkpoint: Checkpoint
    run_id: int
    endpoint: Endpoint
    prices: Prices
    start: int
    limit: int
    max_failed: int | None
    started: float
    time: Time
    questions: int = 0
    where: str = NOT_OUT
    budget: Budget = field(default_factory=Budget)


def ask(asking: Asking, valve: Valve, ui: Ui) -> Tally:
    """Ask until all is settled or the valve is closed; the endpoint is up. The outcomes are committed on return."""
    with _scheduled_as_batch(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_ask(asking, valve, ui))


@contextmanager
def _scheduled_as_batch() -> Iterator[None]:
    """Let Linux run this thread, and those that it starts, in turns of milliseconds.

    Otherwise each reply that arrives stops the event loop for the thread that reads it, and both find cold caches: on
    one core that costs an eighth of all CPU.
    """
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    with suppress(OSError):  # a sandbox may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


async def _ask(asking: Asking, valve: Valve, ui: Ui) -> Tally:
    writer = asking.checkpoint.writer

    def failed(failure: BatchrunError) -> None:
        valve.close(failure.exit_code, str(failure))

    with closed_by_signals(valve, ui.warn):
        writer.start(asking.run_id, failed)
        try:
            async with AsyncExitStack() as stack:
                send = await _opened(stack, asking, valve, ui)
                tally = await _asked(asking, send, valve, ui) if send else Tally()
        finally:
            writer.close()
    event("asking_ended", **_facts(tally), lost=writer.lost)
    if writer.lost:
        valve.close(ExitCode.STORAGE, str(writer.failure))
        ui.warn(f"{writer.lost} outcomes could not be kept; these questions are asked again (and may be billed twice)")
    return tally


async def _opened(stack: AsyncExitStack, asking: Asking, valve: Valve, ui: Ui) -> Send | None:
    """Open the sender, which on Ray takes seconds to minutes; return None if the valve is closed meanwhile."""
    job = asking.prepared.job
    events = Events(warn=ui.warn, lost=lambda reason: valve.close(ExitCode.STORAGE, reason))
    targets = [_target(job, asking.endpoint, url) for url in asking.endpoint.urls]
    senders = [open_sender(target, asking.prepared.sender, ray=job.ray, events=events) for target in targets]
    opening = asyncio.create_task(_open(stack, senders))

    def changed() -> None:
        opening.cancel()

    valve.on_change = changed
    try:
        return in_parts(await opening, asking.endpoint, len(asking.prepared.form.questions))
    except asyncio.CancelledError:
        if not valve.closed:
            raise
        return None
    finally:
        valve.on_change = lambda: None


async def _open(stack: AsyncExitStack, senders: Sequence[AbstractAsyncContextManager[Send]]) -> Send:
    """Open the first sender; where its address answers 404 before anything else, the other one takes its place."""
    send = first = await stack.enter_async_context(senders[0])
    if len(senders) == 1:
        return first
    lock, settled = asyncio.Lock(), False

    async def to_either(request: Request) -> Reply:
        nonlocal send, settled
        used = send
        reply = await used(request)
        if reply.status != HTTPStatus.NOT_FOUND or settled:
            settled = settled or reply.fault is None
            return reply
        # Hundreds of requests may get their 404 at the same time: the first of them opens the other sender.
        async with lock:
            if send is first:
                send = await stack.enter_async_context(senders[1])
        if used is send:
            return reply
        return await send(request)

    return to_either


async def _asked(asking: Asking, send: Send, valve: Valve, ui: Ui) -> Tally:
    limits = _limits(asking.prepared.job, asking.endpoint, asking.budget)
    pool = _pool(asking, send, valve, limits)
    checkpoint = asking.checkpoint
    # Between the rows of a sample, and of batches, others are open that this run does not ask.
    is_whole = asking.where == NOT_OUT and not checkpoint.is_sampled and not checkpoint.batches.out()

    def note_low_water() -> None:
        if is_whole:
            checkpoint.writer.note_low_water(max(asking.start, pool.low_water))

    ticker = asyncio.create_task(_tick(pool, limits.gate, ui, asking.time, note_low_water))
    try:
        await pool.ask(open_work(asking, valve))
    finally:
        ticker.cancel()
        with suppress(asyncio.CancelledError):
            await ticker
        ui.update(pool.tally)
    pool.tally.answered_at = pool.answered_at
    note_low_water()
    return pool.tally


async def _tick(pool: Pool, gate: Gate, ui: Ui, time: Time, note_low_water: Callable[[], None]) -> None:
    tally, loop, closed_for = pool.tally, asyncio.get_running_loop(), 0.0
    logged_at = loop.time()
    while True:
        await asyncio.sleep(TICK)
        pool.observe()
        before, closed_for = closed_for, gate.wait(time.clock())
        ui.update(tally, closed_for)
        if closed_for > max(before, NOTABLE_GATE):
            event("gate_closed", why=tally.gate_why, seconds=round(closed_for, 3))
        if loop.time() - logged_at >= LOG_EVERY:
            logged_at = loop.time()
            event("progress", **_facts(tally))
        note_low_water()


def _facts(tally: Tally) -> dict[str, Any]:
    """Return the figures of a tally for the log."""
    names = ("ok", "failed", "requests", "in_flight", "waiting", "limit", "possibly_billed", "gate_why", "errors")
    return {**{name: getattr(tally, name) for name in names}, "cost_usd": to_usd(tally.cost)}


def take_up(asking: Asking) -> None:
    """Choose what a limited run asks in batches, and then live. A question whose batch was lost is the same one."""
    if asking.limit < sys.maxsize:
        asking.checkpoint.take_up(asking.prepared.open_rule, start=asking.start, where=asking.where, limit=asking.limit)


def open_work(asking: Asking, valve: Valve) -> Iterator[Work]:
    """Yield the open questions with the values of their rows, at most `asking.limit`, in input order.

    Live, those that failed in an earlier run come last: nobody knows yet whether they or the server were to blame.
    It ends where the input is not the planned one any more or can't be read, and closes the valve then: replies are
    still under way.
    """
    prepared, left = asking.prepared, asking.limit
    try:
        for failed in (None,) if asking.where == FOR_BATCH else (False, True):
            blocks = asking.checkpoint.open_questions(
                prepared.open_rule, start=asking.start, failed=failed, before=asking.run_id, where=asking.where
            )
            batches: Iterator[Batch] = iter(())
            batch = Batch(0, [], None)
            for position, question in chain.from_iterable(blocks):
                if not batch.rows:
                    batches = prepared.rows.batches(prepared.renderer.columns, start=position)
                while position >= batch.position + len(batch.rows):
                    following = next(batches, None)
                    if _input_changed(prepared, valve) or following is None:
                        return
                    batch = following
                if left <= 0:
                    return
                left -= 1
                values = batch.rows[position - batch.position]
                yield Work(question, position, values, doubtful=bool(failed))
    except BatchrunError as problem:
        if not _input_changed(prepared, valve):
            valve.close(problem.exit_code, str(problem))


def _input_changed(prepared: Prepared, valve: Valve) -> bool:
    if changed := prepared.input_changed():
        valve.close(ExitCode.USER, INPUT_CHANGED)
    return changed


def _pool(asking: Asking, send: Send, valve: Valve, limits: Limits) -> Pool:
    prepared, worst = asking.prepared, None
    if prepared.job.limits.max_cost_usd is not None:
        worst = worst_case(prepared, asking.prices)
    return Pool(
        send,
        asking.checkpoint.writer,
        valve,
        limits,
        rules=rules_of(asking),
        form=prepared.form,
        body_of=prepared.renderer.body,
        worst_case=worst or (lambda *_: ZERO),
        time=asking.time,
    )


def rules_of(asking: Asking) -> Rules:
    """Return the rules for the attempts of one run."""
    prepared, checkpoint, endpoint = asking.prepared, asking.checkpoint, asking.endpoint
    job, limits = prepared.job, prepared.job.limits
    is_decision, repairs = bool(prepared.form.questions), 0
    if job.answer and not is_decision:
        repairs = job.answer.repairs
    doubtful, first = checkpoint.failed_before(prepared.open_rule, start=asking.start)
    known = checkpoint.answered_since(endpoint.namespace, asking.time.wall() - KNOWN_FOR)
    return Rules(
        attempts=limits.attempts,
        repairs=repairs,
        breaker=limits.breaker,
        grace=limits.timeout if limits.grace is None else limits.grace,
        max_failed=asking.max_failed,
        deadline=None if limits.deadline_seconds is None else asking.started + limits.deadline_seconds,
        max_tokens=prepared.max_tokens,
        cap=lowest_cap(limits.cap),
        openrouter=endpoint.openrouter,
        price=asking.prices.likely.get(endpoint.model),
        questions=asking.questions,
        doubtful=doubtful,
        first_doubtful=first,
        patience=limits.patience_seconds,
        loopback=is_loopback(endpoint.base_url),
        mask=Mask(endpoint.key, job.model.headers, proxy_for(endpoint.base_url)),
        details=job.output.details,
        first_alone=is_decision or not known,  # a decision model's cost is only an estimate before its first bill
        cache_life=prepared.caching.life if prepared.caching else None,
    )


def _limits(job: Job, endpoint: Endpoint, budget: Budget) -> Limits:
    limits = job.limits
    ceiling = most_in_flight(job, endpoint)
    # A local model answers LOCAL_PARALLEL requests at a time: there is nothing to find out.
    fixed = endpoint.name == "local" or not isinstance(limits.concurrency, str)
    return Limits(
        AdaptiveLimit(ceiling, start=ceiling) if fixed else AdaptiveLimit(ceiling),
        Gate(),
        budget,
        fixed=fixed,
        requests=TokenBucket.of(limits.requests_per_minute),
        tokens=TokenBucket.of(limits.tokens_per_minute),
    )


def _target(job: Job, endpoint: Endpoint, url: str) -> Target:
    timeout = job.limits.timeout
    headers = {"User-Agent": f"batchrun/{__version__}", **job.model.headers}
    if job.model.cache:
        headers["X-OpenRouter-Cache"] = "true"
    return Target(
        url,
        headers,
        endpoint.key,
        timeout=timeout,
        connect_timeout=min(CONNECT_TIMEOUT, timeout * 0.9),
        max_response_bytes=job.model.max_response_mb * 2**20,
        certificates=endpoint.certificates,
        proxy=proxy_for(url),
        concurrency=job.limits.ceiling,
    )
