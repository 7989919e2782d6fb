"""Connects server, sender, limits, pool and checkpoint writer for one run."""

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

import uvloop

from batchrun._version import __version__
from batchrun.api import Endpoint, Mask, Prices, in_parts
from batchrun.checkpoint import Checkpoint
from batchrun.errors import BatchrunError, ExitCode
from batchrun.job import Job
from batchrun.money import ZERO, Pico, to_usd
from batchrun.net import is_loopback, proxy_for
from batchrun.records import Reply, Request, Send, Target
from batchrun.runner.budget import Budget, Reserve, page_fee, worst_case
from batchrun.runner.children import LOCAL_PARALLEL, local_server, simulator
from batchrun.runner.limits import AdaptiveLimit, Gate, Limits, TokenBucket
from batchrun.runner.log import event
from batchrun.runner.plan import open_work
from batchrun.runner.pool import Pool
from batchrun.runner.prepare import INPUT_CHANGED, Prepared
from batchrun.runner.progress import NOTABLE_GATE, Ui
from batchrun.runner.stop import Valve, closed_by_signals
from batchrun.runner.work import Rules, Tally, Time, Work
from batchrun.senders import Events, open_sender

CONNECT_TIMEOUT = 10.0
TICK = 0.2
KNOWN_FOR = 86_400.0
"""Seconds; an endpoint that succeeded so recently gets many requests at once from the start."""

LOG_EVERY = 30.0


@dataclass(frozen=True, slots=True)
class Asking:
    """What one run asks: `again`, `where` (SQL) and `start` say which questions are open, `most` how many are asked.

    `moves_low_water`: what is open below the last question asked is asked by this run, none of it is out in a batch.
    `questions` is how many that makes; `started` is when the run began, on the clock of `time`.
    """

    prepared: Prepared
    checkpoint: Checkpoint
    run_id: int
    endpoint: Endpoint
    again: frozenset[str]
    where: str
    moves_low_water: bool
    start: int
    most: int | None
    questions: int
    max_failed: int | None
    budget: Budget
    prices: Prices
    sender: str | None
    started: float
    time: Time


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
    given = os.sched_getscheduler(0) if sys.platform == "linux" else None
    if given != getattr(os, "SCHED_OTHER", -1):
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
                tally = Tally() if send is None else await _asked(asking, send, valve, ui)
        finally:
            writer.close()
    event("asking_ended", **_facts(tally), lost=writer.lost)
    if writer.lost:
        valve.close(ExitCode.STORAGE, str(writer.failure))
        ui.warn(f"{writer.lost} outcomes could not be kept; these questions are asked (and may be paid) again")
    return tally


async def _opened(stack: AsyncExitStack, asking: Asking, valve: Valve, ui: Ui) -> Send | None:
    """Open the sender, which on Ray takes seconds to minutes; give None if the valve is closed meanwhile."""
    job = asking.prepared.job
    events = Events(warn=ui.warn, lost=lambda reason: valve.close(ExitCode.STORAGE, reason))
    targets = [_target(job, asking.endpoint, url) for url in asking.endpoint.urls]
    senders = [open_sender(target, asking.sender, ray=job.ray, events=events) for target in targets]
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
        async with lock:
            if send is first:
                send = await stack.enter_async_context(senders[1])
        return reply if used is send else await send(request)

    return to_either


async def _asked(asking: Asking, send: Send, valve: Valve, ui: Ui) -> Tally:
    limits = _limits(asking.prepared.job, asking.endpoint, asking.budget)
    pool = _pool(asking, send, valve, limits, ui)
    ticker = asyncio.create_task(_tick(pool, limits.gate, ui, asking))
    try:
        await pool.ask(_questions(asking, valve))
    finally:
        ticker.cancel()
        with suppress(asyncio.CancelledError):
            await ticker
        ui.update(pool.tally)
    pool.tally.answered_at = pool.answered_at
    _note_low_water(pool, asking)
    return pool.tally


async def _tick(pool: Pool, gate: Gate, ui: Ui, asking: Asking) -> None:
    tally, loop, closed_for = pool.tally, asyncio.get_running_loop(), 0.0
    logged_at = loop.time()
    while True:
        await asyncio.sleep(TICK)
        pool.observe()
        before, closed_for = closed_for, gate.wait(asking.time.clock())
        ui.update(tally, closed_for)
        if closed_for > max(before, NOTABLE_GATE):
            event("gate_closed", why=tally.gate_why, seconds=round(closed_for, 3))
        if loop.time() - logged_at >= LOG_EVERY:
            logged_at = loop.time()
            event("progress", **_facts(tally))
        _note_low_water(pool, asking)


def _facts(tally: Tally) -> dict[str, Any]:
    """Return what the log tells of a tally."""
    names = ("ok", "failed", "requests", "in_flight", "waiting", "limit", "possibly_billed", "gate_why", "errors")
    return {**{name: getattr(tally, name) for name in names}, "cost_usd": to_usd(tally.cost)}


def _note_low_water(pool: Pool, asking: Asking) -> None:
    if asking.moves_low_water and not asking.checkpoint.is_sampled:  # between the rows of a sample others are open
        asking.checkpoint.writer.note_low_water(max(asking.start, pool.low_water))


def _questions(asking: Asking, valve: Valve) -> Iterator[Work]:
    """Yield the open questions, those that failed in an earlier run last.

    What goes wrong with them closes the valve, since replies are still under way.
    """
    p = asking.prepared

    def changed() -> bool:
        if not p.input_changed():
            return False
        valve.close(ExitCode.USER, INPUT_CHANGED)
        return True

    left = sys.maxsize if asking.most is None else asking.most
    try:
        for failed in (False, True):
            blocks = asking.checkpoint.open_questions(
                start=asking.start,
                again=asking.again,
                max_tokens=p.max_tokens,
                failed=failed,
                before=asking.run_id,
                where=asking.where,
            )
            for work in open_work(p.rows, p.renderer.columns, blocks, most=left, changed=changed):
                left -= 1
                work.doubtful = failed
                yield work
    except BatchrunError as problem:
        if not changed():
            valve.close(problem.exit_code, str(problem))


def _pool(asking: Asking, send: Send, valve: Valve, limits: Limits, ui: Ui) -> Pool:
    p = asking.prepared
    rules = p.job.limits
    repairs = p.job.answer.repairs if p.job.answer and not p.form.questions else 0
    cap = rules.cap
    capped = cap.run is not None or cap.day is not None
    reserve = Reserve(worst_case(p, asking.prices) if capped else None, ui.warn)
    fee = page_fee(p)

    def most(body: bytes, values: tuple[Any, ...]) -> Pico:
        return Pico(reserve.amount(body) + fee(values)) if capped else ZERO

    asking.budget.surpassed = reserve.raise_to
    doubtful, first = asking.checkpoint.failed_before(start=asking.start, again=asking.again, max_tokens=p.max_tokens)
    return Pool(
        send,
        asking.checkpoint.writer,
        valve,
        limits,
        rules=Rules(
            attempts=rules.attempts,
            repairs=repairs,
            breaker=rules.breaker,
            grace=rules.timeout if rules.grace is None else rules.grace,
            max_failed=asking.max_failed,
            deadline=None if rules.deadline_seconds is None else asking.started + rules.deadline_seconds,
            max_tokens=p.max_tokens,
            openrouter=asking.endpoint.openrouter,
            price=asking.prices.likely.get(asking.endpoint.model),
            questions=asking.questions,
            doubtful=doubtful,
            first_doubtful=first,
            patience=rules.patience_seconds,
            loopback=is_loopback(asking.endpoint.base_url),
            mask=Mask(asking.endpoint.key, p.job.model.headers, proxy_for(asking.endpoint.base_url)),
            details=p.job.output.details,
            # What a decision model costs is only an estimate before its first bill.
            first_alone=bool(p.form.questions)
            or not asking.checkpoint.answered_since(asking.endpoint.namespace, asking.time.wall() - KNOWN_FOR),
            cache_life=None if p.caching is None else p.caching.life,
        ),
        form=p.form,
        body_of=p.renderer.body,
        worst_case=most,
        time=asking.time,
    )


def _limits(job: Job, endpoint: Endpoint, budget: Budget) -> Limits:
    limits = job.limits
    fixed = endpoint.name == "local" or not isinstance(limits.concurrency, str)
    limit = min(limits.ceiling, LOCAL_PARALLEL) if endpoint.name == "local" else limits.ceiling
    return Limits(
        AdaptiveLimit(limit, start=limit) if fixed else AdaptiveLimit(limit),
        Gate(),
        budget,
        fixed=fixed,
        requests=TokenBucket(limits.requests_per_minute) if limits.requests_per_minute else None,
        tokens=TokenBucket(limits.tokens_per_minute) if limits.tokens_per_minute else None,
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


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Return the endpoint with its address; `local` and `simulator` get a server of their own for as long."""
    if endpoint.name == "local" and endpoint.model_file is not None:
        with local_server(endpoint.model_file) as child:
            yield replace(endpoint, base_url=child.url)
    elif endpoint.name == "simulator":
        with simulator() as child:
            yield replace(endpoint, base_url=child.url)
    else:
        yield endpoint
