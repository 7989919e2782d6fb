"""The batch lane: open questions -> chunks -> submit -> wait -> collect, in the provider's batches at half price.

The pool is made for seconds, and a batch takes minutes to a day, over several runs. Both lanes share plan, judge,
checkpoint, caps and output. Questions that two batches do not answer are left to the pool.
"""

import asyncio
import math
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import uvloop

from batchrun.api import (
    GONE,
    TABLE,
    Action,
    Doubt,
    Gone,
    Refused,
    Shown,
    Submitted,
    UnavailableError,
    batch_api,
    batch_names,
    cost_kind,
)
from batchrun.checkpoint import FOR_BATCH, Batch, BatchState, utc_day
from batchrun.errors import BatchrunError, ExitCode
from batchrun.job import BatchOptions
from batchrun.money import ZERO, cost, show
from batchrun.prepare import batch_prices
from batchrun.records import Status, Verdict
from batchrun.runner.asking import Asking, open_work, rules_of, take_up
from batchrun.runner.budget import budget_of
from batchrun.runner.calls import Calls, GivenUpError
from batchrun.runner.collecting import Collected, collected, read_lines
from batchrun.runner.log import event
from batchrun.runner.open_batches import SHOWN, named
from batchrun.runner.packing import Chunk, Packing
from batchrun.runner.progress import Ui
from batchrun.runner.stop import Valve, closed_by_signals, reason_of
from batchrun.runner.work import CAP_TOO_LOW, Tally, Work, cap_too_low
from batchrun.terminal import aside, plural

FIRST_POLL, SLOWEST_POLL = 5.0, 60.0
"""Seconds between two looks at a batch; half as long again each time, unless the provider says when to come back."""

LOOK_AGAIN = 180.0
"""Seconds, at least, between two searches for a batch whose reply was lost: a provider may still read a large
submission when its gateway has given up, and a list may lag behind."""

LOOKS = 2
"""Searches in vain after which a batch was never received, and its questions are open again."""

_SIGNALS = frozenset({ExitCode.SIGINT, ExitCode.SIGTERM})
_STOPPING = "stopping: waiting for the provider's reply (once more to abort)"
_ABORTING = "aborting: the next run finds out what became of the request in flight"
_LOADED = "token_limit_exceeded"
"""A batch that failed so may run once others are done: the account's limit of enqueued tokens was reached."""


def run_batches(asking: Asking, valve: Valve, ui: Ui) -> Tally:
    """Submit, wait and collect; the valve is closed with ExitCode.WAITING where batches are still out at the end.

    Raises UserError where there is a cap and nobody says what a batch costs.
    """
    lane = _Lane(asking, valve, ui)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(lane.run())
    return lane.tally


class _Lane:
    """One run's batches. What is blocking, the calls of the API, runs in threads, one after the other.

    A second Ctrl-C gives up the call that runs.
    """

    def __init__(self, asking: Asking, valve: Valve, ui: Ui) -> None:
        self.tally = Tally()
        prices = batch_prices(asking.prepared, asking.prices)
        self._asking = replace(asking, prices=prices, where=FOR_BATCH)
        self._valve, self._ui = valve, ui
        self._prepared, self._checkpoint = asking.prepared, asking.checkpoint
        self._batches = asking.checkpoint.batches
        job = self._prepared.job
        self._options = job.batch or BatchOptions()
        self._api = batch_api(asking.endpoint, job.model)
        self._rules, self._cost_kind = rules_of(self._asking), cost_kind(job)
        self._packing = Packing(self._asking, self._options)
        self._clock, self._wall = asking.time.clock, asking.time.wall
        self._until = math.inf
        if self._options.wait_seconds is not None:
            self._until = self._clock() + self._options.wait_seconds
        self._model = self._batches.last_model(batch_names(asking.endpoint.model)) or asking.endpoint.model
        self._hold_until = 0.0
        self._held_by = ""
        self._next_look: dict[int, float] = {}
        self._pause: dict[int, float] = {}
        self._done: dict[int, int] = {}
        self._failed: set[int] = set()  # a later run asks them again, not this one
        self._reached, self._problem = False, ""
        self._refused_once: set[int] = set()
        self._wake = asyncio.Event()
        self._call = Calls()

    def _open(self) -> list[Batch]:
        """Return this endpoint's batches that are not ended: no other one knows their ids."""
        return self._batches.open(self._prepared.endpoint.namespace)

    async def run(self) -> None:
        """Collect batches that ended, submit open questions and wait, until nothing is out or the wait is over."""
        with closed_by_signals(self._valve, self._ui.warn, aborting=_ABORTING, stopping=_STOPPING):
            self._valve.on_change = self._changed
            # A submission is committed before it is sent: given up, it is in doubt, as after a kill.
            with suppress(GivenUpError):
                while not self._valve.closed:
                    await self._look_at_batches()
                    await self._submit_open()
                    self._look_at_the_clock()
                    if not self._can_continue():
                        break
                    await self._sleep()
            self._valve.on_change = lambda: None
        self._say_what_is_out()

    def _changed(self) -> None:
        self._wake.set()
        if self._valve.aborted:
            self._call.give_up()

    def _can_continue(self) -> bool:
        now = self._clock()
        return not self._valve.closed and now < self._until and (bool(self._open()) or self._hold_until > now)

    def _look_at_the_clock(self) -> None:
        deadline = self._rules.deadline
        if deadline is not None and self._clock() >= deadline:
            self._valve.close(ExitCode.STOPPED_BY_LIMIT, "limits.deadline is reached")

    async def _sleep(self) -> None:
        """Wait until something can change: the next look, the end of a pause or of the wait, or the valve."""
        now = self._clock()
        moments = [self._until, *(self._next_look.get(batch.number, now) for batch in self._open())]
        if self._hold_until > now:
            moments.append(self._hold_until)
        if self._rules.deadline is not None:
            moments.append(self._rules.deadline)
        self.tally.waiting_for = self._progress()
        self._ui.update(self.tally)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(moments) - now) / self._asking.time.speed):
                await self._wake.wait()
        self._wake.clear()
        self.tally.waiting_for = ""

    def _progress(self) -> str:
        """Return how far each batch is, the oldest first."""
        out = self._open()
        shown = [f"batch {one.number} {self._done.get(one.number, 0):,}/{one.questions:,}" for one in out[:SHOWN]]
        if len(out) > SHOWN:
            shown[-1] += f" and {plural(len(out) - SHOWN, 'more batch')}"
        return ", ".join(shown)

    def _say_what_is_out(self) -> None:
        """Close the valve where the next run has to continue: batches are out, or none could be submitted."""
        self._ui.update(self.tally)
        out = self._open()
        if elsewhere := [batch for batch in self._batches.open() if batch not in out]:
            numbers = plural(len(elsewhere), "batch")
            self._ui.warn(f"{numbers} of another endpoint left alone ({named(elsewhere)}): a run with it collects")
        interrupted = self._valve.closed and self._valve.exit_code in _SIGNALS
        if out and self._problem and not self._reached and not self._valve.closed:
            # Said to be waiting, a server that is gone would never be noticed at night.
            reason = f"{plural(len(out), 'batch')} ({named(out)}) can't be asked now: {self._problem}"
            self._valve.close(ExitCode.STOPPED_BY_API, reason)
        elif out and (interrupted or not self._valve.closed):
            questions = plural(sum(batch.questions for batch in out), "question")
            reason = f"{questions} in {plural(len(out), 'batch')} ({named(out)})"
            if interrupted:
                reason += "; they are not called back, run on, and are billed"
            self._valve.reopen()
            self._valve.close(ExitCode.WAITING, reason)
        elif self._hold_until > self._clock():
            self._valve.close(ExitCode.STOPPED_BY_API, f"no batch can be submitted: {self._held_by}")

    # -- submitting

    async def _submit_open(self) -> None:
        """Submit open questions, batch after batch, as far as limits, caps and the provider admit it."""
        if not self._may_submit():
            return
        take_up(self._asking)
        questions = open_work(self._asking, self._valve)
        try:
            while not self._valve.closed and self._may_submit():
                chunk = self._next_chunk(questions)
                if not chunk.works:
                    return
                if not await self._submit(chunk):
                    # From the start: those of the chunk are open again.
                    questions = open_work(self._asking, self._valve)
        except BatchrunError as problem:
            self._valve.close(problem.exit_code, str(problem))

    def _may_submit(self) -> bool:
        """Check whether the provider takes a batch now, and no other one is in doubt.

        OpenRouter's list shows a batch's model and size alone: of two equal ones with lost replies each would be taken
        for the other, and both would be asked, and paid, again.
        """
        return self._clock() >= self._hold_until and all(batch.state is BatchState.OUT for batch in self._open())

    def _next_chunk(self, questions: Iterator[Work]) -> Chunk:
        """Take the questions of one batch, and settle those on the way that no batch can take."""
        today = utc_day(self._wall())
        room = budget_of(self._prepared, self._asking.prices, self._checkpoint, today, self._asking.run_id).room
        chunk = self._packing.fill((work for work in questions if work.question not in self._failed), room)
        if chunk.for_live:
            self._batches.leave_for_live(chunk.for_live)
        if chunk.unsent:
            self._batches.fail(
                self._asking.run_id, [work.unsent(problem, at=self._wall()) for work, problem in chunk.unsent]
            )
        for work, problem in chunk.unsent:
            self._failed.add(work.question)
            self.tally.count_failure(problem.error_type)
        if chunk.over_cap is not None and not chunk.works and not self._open():
            # Otherwise what comes back from open batches may make room.
            reason = f"limits.max_cost_usd is reached: the next question may cost {show(chunk.over_cap)}"
            ending = "max_cost_usd"
            if self._rules.cap is not None and chunk.over_cap > self._rules.cap:
                reason, ending = cap_too_low(self._rules.cap, self._asking.questions, chunk.over_cap), CAP_TOO_LOW
            self._valve.close(ExitCode.STOPPED_BY_LIMIT, reason, ending=ending)
        return chunk

    async def _submit(self, chunk: Chunk) -> bool:
        """Commit a batch, then submit it: after a kill in between, the next run knows that it may be there.

        Return False if it was refused.
        """
        # The provider's list may show batches of other jobs that share the account: the tag marks ours.
        tag = secrets.token_hex(4)
        keys = self._batches.keys([work.position for work in chunk.works])
        names = [f"{tag}-{keys[work.question].hex()}" for work in chunk.works]
        batch = self._batches.begin(
            [work.question for work in chunk.works],
            run_id=self._asking.run_id,
            model=self._model,
            tag=tag,
            answer_schema=self._prepared.form.schema,
            price=self._rules.price,
            reserved=chunk.reserved,
            now=self._wall(),
        )
        requests = list(zip(names, chunk.bodies, strict=True))
        done = await self._call(self._api.submit, requests, model=batch.model, tag=tag)
        event("batch_submitted", number=batch.number, questions=len(requests), result=type(done).__name__)
        match done:
            case Submitted():
                self._reached = True
                self._batches.submitted(batch, provider_id=done.id, model=done.model, file_id=done.file_id)
                self._model = done.model
                self._look_later(batch, done.wait)
            case Doubt():
                if done.file_id is not None:
                    self._batches.in_doubt(batch, done.file_id)
                self._ui.warn(f"batch {batch.number}: {done.message}; it is looked for, not submitted again")
                self._look_later(batch, max(LOOK_AGAIN, done.wait or 0.0))
            case Refused():
                self._batches.release(batch, done.verdict.message, self._wall())
                self._refused(done.verdict, chunk)
        return not isinstance(done, Refused)

    def _refused(self, verdict: Verdict, chunk: Chunk) -> None:
        """Submit less at a time, submit later, or stop, as the refusal asks."""
        ending = TABLE[verdict.ending]
        if verdict.ending == "payload_too_large" and len(chunk.works) > 1:
            self._packing.max_bytes = chunk.size // 2
        elif ending.action in {Action.RETRY, Action.GATE}:
            self._hold_until = self._clock() + max(verdict.wait or 0.0, FIRST_POLL)
            self._held_by = verdict.message
        elif verdict.ending == "not_found":  # the address of live requests may be right all the same
            reason = f"the server has no batch API for this key ({verdict.message}): send live, with --engine local"
            self._valve.close(ExitCode.STOPPED_BY_API, reason)
        else:
            reason = reason_of(ending, verdict.message)
            self._valve.close(ExitCode.STOPPED_BY_API, reason, ending=ending.name, resume_at=verdict.resume_at)

    # -- waiting

    async def _look_at_batches(self) -> None:
        """Look at each open batch whose time has come."""
        for batch in self._open():
            if self._valve.closed:
                return
            if self._clock() >= self._next_look.get(batch.number, 0.0):
                try:
                    await self._look_at(batch)
                except UnavailableError as problem:
                    self._unavailable(batch, problem)

    async def _look_at(self, batch: Batch) -> None:
        """Ask the provider for one batch, and collect it when it is done."""
        if batch.state is BatchState.SUBMITTING or batch.provider_id is None:
            await self._look_for(batch)
            return
        shown = await self._call(self._api.show, batch.provider_id)
        self._reached = True
        self._refused_once.discard(batch.number)
        if isinstance(shown, Gone) and (shown.certain or batch.looks >= LOOKS):
            self._collect_gone(batch, batch.provider_id, shown.message)
        elif isinstance(shown, Gone):
            # It may be another job's that took its answers and deleted it, or a slip of the provider.
            self._ui.warn(f"batch {batch.number} ({batch.provider_id}) is not found, it is looked for: {shown.message}")
            self._batches.missing(batch, self._wall())
            self._look_later(batch, LOOK_AGAIN)
        elif shown.withheld:
            problem = f"its results are withheld: {shown.problem}"
            if self._batches.warn(batch, problem):
                self._ui.warn(f"batch {batch.number} ({batch.provider_id}) is done, but {problem}")
            self._look_later(batch, SLOWEST_POLL)
        elif not shown.ended:
            self._done[batch.number] = shown.completed + shown.failed
            self._look_later(batch, shown.wait)
        elif shown.code == _LOADED:  # OpenAI fails the whole batch, and none of its lines was tried
            self._batches.release(batch, shown.problem, self._wall())
            self._hold_until = self._clock() + SLOWEST_POLL
            self._held_by = shown.problem
            self._ui.say(f"batch {batch.number}: {shown.problem}; it is submitted again later")
        else:
            await self._collect_lines(batch, shown)

    async def _look_for(self, batch: Batch) -> None:
        """Search the provider's list for a batch that is in doubt; give it up after two searches in vain."""
        now, last = self._wall(), batch.looked_at or batch.submitted_at
        if batch.number not in self._next_look and now - last < LOOK_AGAIN:  # an earlier run's, which ended just now
            self._look_later(batch, LOOK_AGAIN - (now - last))
            return
        found = await self._call(
            self._api.find,
            model=batch.model,
            tag=batch.tag,
            requests=batch.questions,
            since=batch.submitted_at,
            file_id=batch.file_id,
        )
        self._reached = True
        taken = (self._batches.provider_ids() | batch.foreign_ids) - {batch.provider_id}
        candidates = [one for one in found.batches if one.id not in taken]
        if candidates:
            one = next((one for one in candidates if one.id == batch.provider_id), candidates[0])
            if one.id == batch.provider_id:  # listed, but not found under its id: that must have an end
                self._batches.looked(batch, now)
            self._batches.submitted(batch, provider_id=one.id, model=one.model, file_id=one.file_id)
            self._ui.say(f"batch {batch.number} was received after all: {one.id}")
            self._look_later(batch, found.wait)
        elif batch.looks + 1 >= LOOKS and batch.provider_id is not None:
            self._collect_gone(batch, batch.provider_id, "the provider does not find it")
        elif batch.looks + 1 >= LOOKS:
            self._batches.release(batch, "the provider never received it", now)
            self._ui.say(f"batch {batch.number} was never received: its questions are submitted again")
        else:
            self._batches.looked(batch, now)
            self._look_later(batch, max(LOOK_AGAIN, found.wait or 0.0))

    def _look_later(self, batch: Batch, wait: float | None = None) -> None:
        """Look at a batch again after the seconds that the provider asked for, else less and less often."""
        pause = min(SLOWEST_POLL, self._pause.get(batch.number, FIRST_POLL / 1.5) * 1.5)
        self._pause[batch.number] = pause
        self._next_look[batch.number] = self._clock() + (pause if wait is None else wait)

    def _unavailable(self, batch: Batch, problem: UnavailableError) -> None:
        ending = TABLE[problem.verdict.ending]
        self._problem = str(problem)
        refused = ending.action is Action.CONFIRM and batch.number in self._refused_once
        if ending.action is Action.CONFIRM:
            self._refused_once.add(batch.number)
        if refused or ending.action in {Action.STOP, Action.FAIL_IF_PROVEN}:
            self._valve.close(ExitCode.STOPPED_BY_API, reason_of(ending, str(problem)), ending=ending.name)
        elif self._batches.warn(batch, str(problem)):
            self._ui.warn(f"batch {batch.number} ({batch.provider_id}) can't be asked now: {problem}")
        self._look_later(batch, problem.verdict.wait)

    # -- collecting

    def _collect_gone(self, batch: Batch, id_: str, why: str) -> None:
        """End a batch that the provider no longer has; its money stays reserved, since it may be billed."""
        self._ui.warn(f"batch {batch.number} ({id_}) is gone: {why}")
        self._collect(batch, Shown(id_, GONE, problem=why), {})

    async def _collect_lines(self, batch: Batch, shown: Shown) -> None:
        """Read the lines of a batch that ended; lines with another tag show that it is another job's."""
        mask, now = self._rules.mask, self._wall()
        mine, others = await self._call(read_lines, self._api, batch, shown, mask=mask, now=now)
        if others and not mine:
            self._batches.is_foreign(batch)
            self._ui.say(f"{batch.provider_id} is another job's batch: batch {batch.number} is looked for again")
            return
        if shown.status == "failed" and not mine:
            self._packing.failed_whole(batch.questions)
        if self._collect(batch, shown, mine):
            await self._call(self._api.clean_up, shown, batch.file_id)

    def _collect(self, batch: Batch, shown: Shown, verdicts: dict[bytes, Verdict]) -> bool:
        """Commit at once all that a batch brought."""
        brought = collected(
            shown,
            self._batches.questions(batch),
            verdicts,
            rules=replace(self._rules, price=batch.price),
            fails=self._options.then == "failed",
            proven=self.tally.ok > 0,
            now=self._wall(),
        )
        self._batches.collect(
            batch,
            brought.outcomes,
            unassigned=brought.unassigned,
            tried=brought.stop is None,
            now=self._wall(),
            problem=shown.problem,
            reserved=batch.reserved if shown.is_gone else ZERO,
        )
        self._next_look.pop(batch.number, None)
        self._done.pop(batch.number, None)
        self._count(batch, shown, brought)
        if brought.stop is not None:
            ending = TABLE[brought.stop.ending]
            self._valve.close(ExitCode.STOPPED_BY_API, reason_of(ending, brought.stop.message), ending=ending.name)
        failed = self._checkpoint.count_failed(self._prepared.open_rule)
        self._valve.limit_failures(failed.rows, self._asking.max_failed)
        return bool(verdicts)

    def _count(self, batch: Batch, shown: Shown, brought: Collected) -> None:
        """Add a batch that was collected to what people see."""
        ok, failed, again = map(brought.count, (Status.OK, Status.FAILED, Status.PENDING))
        self.tally.ok += ok
        self.tally.requests += len(brought.outcomes)
        self.tally.cost += brought.cost
        self.tally.possibly_billed += sum(outcome.possibly_billed for outcome in brought.outcomes)
        for outcome in brought.outcomes:
            if outcome.status is Status.FAILED:
                self._failed.add(outcome.question)
                self.tally.count_failure(outcome.error_type or "")
        event("batch_collected", number=batch.number, status=shown.status, ok=ok, failed=failed, again=again)
        counts = [(ok, "answered"), (failed, "failed"), (again, "to ask again")]
        parts = [f"{number:,} {word}" for number, word in counts if number or word == "answered"]
        parts.append(cost(brought.cost, self._cost_kind))
        self._ui.say(f"batch {batch.number} is {shown.status}{aside(shown.problem)}: {', '.join(parts)}")
