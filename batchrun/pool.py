"""Many questions through one Send: permits, judgement, retries.

A worker takes a question when all permits for it are there, sends it, and goes on with the next; a question that waits
for its retry holds no slot. `_take` never waits: a worker that finds nothing to do ends, and the feeder starts new
ones when a timer or an event says that there is something to do again.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from batchrun.answers import AnswerForm, Mismatch, Valid, with_turns
from batchrun.breaker import Breaker
from batchrun.codes import TABLE, Action, Blame, Count, Ending
from batchrun.errors import BatchrunError, ExitCode
from batchrun.judge import judge
from batchrun.money import ZERO, Pico, show
from batchrun.permits import NOW, ON_CHANGE, Permit, Permits
from batchrun.queueing import Queue
from batchrun.records import FailedAttempt, Outcome, Reply, Request, Send, Status, Verdict
from batchrun.render import RowProblem
from batchrun.retry import GATE_PATIENCE, Decision, Tries, decide
from batchrun.stop import Valve
from batchrun.work import REAL_TIME, Rules, Tally, Time, Work

BACKLOG = 2_000
LARGE_BODY = 64 * 2**10


class Keep(Protocol):
    """Where outcomes go; the checkpoint's writer."""

    @property
    def backlog(self) -> int:
        """How many outcomes are not yet committed."""

    def put(self, outcome: Outcome) -> None:
        """Take an outcome; the question is answered only when it is committed."""

    def failed_attempt(self, attempt: FailedAttempt) -> None:
        """Take a failed attempt."""

    async def room(self) -> None:
        """Wait until the backlog is bounded again."""


class Pool:
    """Asks the questions of a source until it is dry, or the valve is closed and the grace is over. One use."""

    def __init__(
        self,
        send: Send,
        keep: Keep,
        valve: Valve,
        permits: Permits,
        *,
        rules: Rules,
        form: AnswerForm,
        body_of: Callable[[tuple[Any, ...]], bytes | RowProblem],
        worst_case: Callable[[bytes], Pico],
        time: Time = REAL_TIME,
    ) -> None:
        self.tally = Tally()
        self._send, self._keep, self._valve, self._permits = send, keep, valve, permits
        self._rules, self._form, self._body_of, self._worst_case = rules, form, body_of, worst_case
        self._clock, self._wall, self._jitter, self._speed = time.clock, time.wall, time.jitter, time.speed
        self._queue = Queue(iter(()))
        self._unfinal = sys.maxsize
        self._in_flight: dict[int, Work] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._breaker = Breaker(rules.breaker)
        self._last_success = time.clock()
        self._drain_until: float | None = None
        self._wake_at = ON_CHANGE
        self._wake = asyncio.Event()
        self._crash: BaseException | None = None

    async def ask(self, source: Iterator[Work]) -> None:
        """Ask what the source gives. A bug of ours in a worker is raised after what is in flight has ended."""
        self._queue = Queue(source)
        self._last_success = self._clock()
        self._valve.on_change = self._wake.set
        while True:
            self._start_workers()
            if self._finished():
                break
            await self._sleep()
        self._give_back()
        if self._crash is not None:
            raise self._crash

    @property
    def low_water(self) -> int:
        """The row position below which every question of this run is final."""
        in_flight = (work.position for work in self._in_flight.values())
        return min(self._unfinal, self._queue.position, *in_flight)

    def observe(self) -> None:
        """Bring up to date what the tally shows of time: how long the oldest request is on its way."""
        now = self._clock()
        self.tally.waiting = self._queue.waiting
        self.tally.oldest = now - min((work.sent_at for work in self._in_flight.values()), default=now)

    # -- the feeder

    def _finished(self) -> bool:
        if self._in_flight:
            return self._valve.aborted
        return self._valve.closed or self._queue.empty

    def _start_workers(self) -> None:
        self._wake_at = ON_CHANGE
        while (work := self._take()) is not None:
            task = asyncio.get_running_loop().create_task(self._work(work))
            self._tasks.add(task)
            task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake.set()
        if not task.cancelled() and (crash := task.exception()) is not None:
            self._crash = self._crash or crash
            self._valve.close(ExitCode.BUG, "a bug of batchrun")

    async def _sleep(self) -> None:
        """Wait for an event, or for the next moment at which something can happen."""
        now = self._clock()
        if self._valve.closed and self._drain_until is None:
            self._drain_until = now + self._rules.grace
        end = self._drain_until if self._drain_until is not None else self._rules.deadline
        until = min(self._wake_at, ON_CHANGE if end is None else end)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if until == ON_CHANGE else max(0.0, until - now) / self._speed):
                await self._wake.wait()
        self._wake.clear()
        self._look_at_the_clock()

    def _look_at_the_clock(self) -> None:
        now = self._clock()
        if self._drain_until is not None:
            if now >= self._drain_until:
                self._valve.abort()
        elif self._rules.deadline is not None and now >= self._rules.deadline:
            self._valve.close(ExitCode.STOPPED_BY_LIMIT, "limits.deadline is reached")
        elif self.tally.gate_why and now - self._last_success > GATE_PATIENCE:
            reason = f"no success for {GATE_PATIENCE / 60:.0f} minutes: {TABLE[self.tally.gate_why].means}"
            self._valve.close(ExitCode.STOPPED_BY_API, reason, ending=self.tally.gate_why)

    def _later(self, wait: float) -> None:
        self._wake_at = min(self._wake_at, self._clock() + wait)

    # -- taking a question

    def _take(self) -> Work | None:
        """Give the next question with all its permits; or None, and when to look again is known."""
        if self._valve.closed:
            return None
        now = self._clock()
        if (wait := self._permits.open_at(now)) > 0:
            self._later(wait)
            return None
        while (work := self._queue.take(now)) is not None:
            if (permit := self._prepare(work)) is None:
                continue
            wait = self._permits.take(now, permit)
            if wait == NOW:
                work.permit, work.sent_at = permit, now
                self._in_flight[work.question] = work
                self.tally.in_flight += 1
                return work
            self._put_back(work, wait, now)
            return None
        self._wake_at = min(self._wake_at, self._queue.next_at)
        return None

    def _prepare(self, work: Work) -> Permit | None:
        """Make the body and say which permits it needs; None if the row can't be asked (its outcome is kept)."""
        if work.body is None:
            body = self._body_of(work.values)
            if isinstance(body, RowProblem):
                self._fail(work, work.unsent(body, at=self._wall()), TABLE[body.error_type])
                return None
            work.body = with_turns(body, work.turns) if work.turns else body
        tokens = len(work.body) // 4 + (self._rules.max_tokens or 0)
        return Permit(len(work.body), tokens, self._worst_case(work.body))

    def _put_back(self, work: Work, wait: float, now: float) -> None:
        self._queue.put_back(work, now)
        self._later(wait)
        starved = self._permits.starved
        if starved is not None and not self._permits.in_flight:
            self._valve.close(
                ExitCode.STOPPED_BY_LIMIT,
                f"limits.max_cost_usd is reached: the next request may cost {show(starved)}",
                ending="max_cost_usd",
            )

    # -- one attempt

    async def _work(self, work: Work | None) -> None:
        while work is not None:
            reply = await self._send(Request(work.body or b""))
            self._settle(work, reply)
            if self._keep.backlog > BACKLOG:
                with suppress(BatchrunError):  # the keeper's failure has closed the valve
                    await self._keep.room()
            work = self._take()

    def _settle(self, work: Work, reply: Reply) -> None:
        """Judge a reply, settle its money, and decide what becomes of the question."""
        now, at = self._clock(), self._wall()
        verdict = judge(reply, now=at, openrouter=self._rules.openrouter)
        ending = TABLE[verdict.ending]
        del self._in_flight[work.question]
        self.tally.in_flight -= 1
        self.tally.requests += 1
        maybe = self._pay(work, verdict, reply, now)
        self._permits.learn(ending, now, reply.seconds, verdict.wait)
        if self._permits.limit.limit != self.tally.limit:
            self.tally.limit = self._permits.limit.limit
            self._wake.set()
        if ending.action is not Action.CONFIRM:
            self._queue.acquit(work)
        if ending.action is Action.ACCEPT:
            parsed = self._success(verdict, now)
            if not isinstance(parsed, Mismatch):
                self._answer(work, verdict, reply, parsed.json, at)
                return
            verdict = replace(verdict, ending="schema_mismatch", message=parsed.message)
            work.mismatch = parsed
        self._keep.failed_attempt(work.failed_attempt(verdict, reply, at=at, maybe=maybe))
        work.last = work.outcome(Status.FAILED, verdict, reply, at=at, max_tokens=self._rules.max_tokens)
        self._refuse(work, work.last, verdict, now - reply.seconds)

    def _pay(self, work: Work, verdict: Verdict, reply: Reply, now: float) -> bool:
        """Settle the money of one attempt; true if it may be billed and nobody said how much."""
        usage = verdict.usage
        cost = usage.cost
        if cost is None and self._rules.price is not None and usage.prompt_tokens is not None:
            cost = self._rules.price.cost(usage.prompt_tokens, usage.completion_tokens or 0)
        lost = reply.sent and (reply.fault is not None or verdict.ending == "invalid_response")
        maybe = lost and cost is None
        used = None if usage.prompt_tokens is None else usage.prompt_tokens + (usage.completion_tokens or 0)
        if work.permit is not None:
            self._permits.give_back(now, work.permit, spent=cost or ZERO, keep=maybe, tokens=used)
        work.paid(cost, maybe=maybe)
        self.tally.cost += cost or 0
        self.tally.possibly_billed += maybe
        return maybe

    def _success(self, verdict: Verdict, now: float) -> Valid | Mismatch:
        self._last_success = now
        self._permits.gate.answered(now)
        self._breaker.success()
        self.tally.gate_why = ""
        return self._form.parse(verdict.text or "")

    def _answer(self, work: Work, verdict: Verdict, reply: Reply, answer: str, at: float) -> None:
        self.tally.ok += 1
        tokens = self._rules.max_tokens
        self._keep.put(work.outcome(Status.OK, verdict, reply, at=at, answer=answer, max_tokens=tokens))

    # -- what becomes of a question without an answer

    def _refuse(self, work: Work, outcome: Outcome, verdict: Verdict, sent_at: float) -> None:
        """Repair, retry, wait behind the gate, give up, or stop, as the table and the counts say."""
        ending = TABLE[verdict.ending]
        if ending.count is Count.REPAIRS:
            self._repair(work, outcome, verdict)
            return
        decision = decide(
            ending,
            work.tries,
            attempts=self._rules.attempts,
            wait=verdict.wait,
            proven=self.tally.ok > 0,
            jitter=self._jitter(),
            closings=self._permits.gate.refused(sent_at) if ending.action is Action.GATE else 0,
        )
        if decision.action is Action.FAIL:
            self._fail(work, outcome, ending)
        elif decision.action is Action.STOP:
            self._stop(work, verdict, ending, decision.delay)
        elif self._valve.closed or self._beyond_deadline(decision, verdict, ending):
            self._return(work)
        elif decision.action is Action.CONFIRM:
            self._suspend(work, decision.delay)
        else:
            if decision.action is Action.GATE:
                self._permits.gate.close(self._clock(), decision.gate, sent_at)
                self.tally.gate_why = ending.name
            if decision.becomes is Status.PENDING:
                self._return(work)
            else:
                self._wait(work, decision.delay)

    def _repair(self, work: Work, outcome: Outcome, verdict: Verdict) -> None:
        """Go on with the conversation: the invalid answer, and what is wrong with it."""
        if self._valve.closed or work.mismatch is None or work.repairs >= self._rules.repairs:
            self._fail(work, outcome, TABLE[verdict.ending])
            return
        work.repairs += 1
        work.turns += self._form.repair_turns(verdict.text or "", work.mismatch)
        work.body = None
        self._wait(work, 0.0)

    def _beyond_deadline(self, decision: Decision, verdict: Verdict, ending: Ending) -> bool:
        """Stop where all would wait behind the gate until after the deadline."""
        deadline = self._rules.deadline
        late = deadline is not None and self._clock() + decision.delay > deadline
        if late and decision.action is Action.GATE:
            reason = f"{ending.means}; the wait of {decision.delay:.0f} s goes beyond limits.deadline"
            resume_at = verdict.resume_at or self._wall() + decision.delay
            self._valve.close(ExitCode.STOPPED_BY_LIMIT, reason, ending=ending.name, resume_at=resume_at)
        return self._valve.closed

    def _wait(self, work: Work, delay: float) -> None:
        if work.body is not None and len(work.body) > LARGE_BODY:
            work.body = None
        self._queue.retry(work, self._clock() + delay)
        self.tally.waiting = self._queue.waiting
        self._wake.set()

    def _suspend(self, work: Work, delay: float) -> None:
        """Send nothing but one confirming retry; other questions with the same reply wait for it uncounted."""
        if not self._queue.suspect(work, self._clock() + delay):
            work.tries = Tries()
            self._wait(work, 0.0)
        self._wake.set()

    def _stop(self, work: Work, verdict: Verdict, ending: Ending, delay: float) -> None:
        self._queue.acquit(work)
        reason = f"{ending.means}: {verdict.message}" if verdict.message else ending.means
        resume_at = verdict.resume_at or (self._wall() + delay if delay else None)
        self._valve.close(ExitCode.STOPPED_BY_API, reason, ending=ending.name, resume_at=resume_at)
        self._return(work)

    def _fail(self, work: Work, outcome: Outcome, ending: Ending) -> None:
        if ending.again:
            self._unfinal = min(self._unfinal, work.position)
        if ending.blames is Blame.UNKNOWN and self._broken(outcome):
            return
        self.tally.count_failure(ending.name)
        self._keep.put(outcome)
        self._watch_failures()

    def _broken(self, outcome: Outcome) -> bool:
        """Ask the breaker; once it has tripped, its failures go back to pending and the run stops."""
        was_tripped = self._breaker.tripped
        taken_back = self._breaker.failure(outcome)
        if taken_back and not was_tripped:
            reason = f"{len(taken_back)} equal failures in a row, no success: {outcome.error_message}"
            self._valve.close(ExitCode.STOPPED_BY_API, reason, ending=outcome.error_type)
            for earlier in taken_back[:-1]:
                self.tally.count_failure(earlier.error_type or "", -1)
                # The checkpoint adds up: what the failure cost is recorded already.
                self._keep.put(replace(earlier, status=Status.PENDING, attempts=0, cost=ZERO, possibly_billed=0))
        if taken_back:
            self._unfinal = 0
            self._keep.put(replace(outcome, status=Status.PENDING))
        return bool(taken_back)

    def _watch_failures(self) -> None:
        most = self._rules.max_failed
        if most is not None and self.tally.failed > most:
            reason = f"more rows failed than limits.max_failed accepts ({most})"
            self._valve.close(ExitCode.STOPPED_BY_LIMIT, reason, ending="max_failed")

    def _return(self, work: Work) -> None:
        """Leave a question pending for the next run, with what it has cost."""
        self._unfinal = min(self._unfinal, work.position)
        if work.last is not None:
            self._keep.put(replace(work.last, status=Status.PENDING))

    def _give_back(self) -> None:
        """At the end: what waits stays pending; what is still in flight may be billed."""
        for work in self._in_flight.values():
            self.tally.possibly_billed += 1
            self._unfinal = min(self._unfinal, work.position)
            self._keep.put(work.abandoned(at=self._wall()))
        for work in self._queue.left:
            self._return(work)
        for task in self._tasks:
            task.cancel()
