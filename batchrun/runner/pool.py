"""Many questions through one Send: permits, judgement, retries.

A worker takes a question when all permits for it are there, sends it, and goes on with the next; a question that waits
for its retry holds no slot. `_take` never waits: a worker that finds nothing to do ends, and the feeder starts new
ones when a timer or an event says that there is something to do again.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from batchrun.api import TABLE, Action, Blame, Count, Ending, judge
from batchrun.errors import BatchrunError, ExitCode
from batchrun.money import ZERO, Pico
from batchrun.prompt import AnswerForm, RowProblem, with_turns
from batchrun.records import Outcome, Reply, Request, Send, Status, Verdict
from batchrun.runner.breaker import Breaker, Patience
from batchrun.runner.permits import NOW, ON_CHANGE, Permit, Permits
from batchrun.runner.queueing import Queue
from batchrun.runner.retry import Decision, decide
from batchrun.runner.stop import Valve
from batchrun.runner.work import REAL_TIME, Charge, Keep, Rules, Tally, Time, Work

BACKLOG_WAIT = 0.01
LARGE_BODY = 64 * 2**10
STARVED = 1_000
"""So many questions in a row that the cap on spending does not admit stop the run."""


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
        self.tally = Tally(limit=permits.limit.limit)
        self._send, self._keep, self._valve, self._permits = send, keep, valve, permits
        self._rules, self._form, self._body_of, self._worst_case = rules, form, body_of, worst_case
        self._clock, self._wall, self._jitter, self._speed = time.clock, time.wall, time.jitter, time.speed
        self._queue = Queue(iter(()))
        self._unfinal = sys.maxsize
        self._in_flight: dict[int, Work] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._breaker, self._patience = Breaker(rules.breaker), Patience()
        self._proven = False
        self._starved = 0
        self._least: Pico | None = None
        self._drain_until: float | None = None
        self._wake_at = ON_CHANGE
        self._wake = asyncio.Event()
        self._crash: Exception | None = None

    async def ask(self, source: Iterator[Work]) -> None:
        """Ask what the source gives. What goes wrong in the source or in us is raised after what is in flight ended."""
        self._queue = Queue(source)
        self._valve.on_change = self._wake.set
        while not self._finished():
            await self._sleep()
        self._give_back()
        if self._crash is not None:
            raise self._crash

    @property
    def low_water(self) -> int:
        """The row position below which every question of this run is final."""
        in_flight = (work.position for work in self._in_flight.values())
        return int(min(self._unfinal, self._queue.position, self._breaker.position, *in_flight))

    def observe(self) -> None:
        """Bring up to date what the tally shows of time: how long the oldest request is on its way."""
        now = self._clock()
        self.tally.waiting = self._queue.waiting
        self.tally.oldest = now - min((work.sent_at for work in self._in_flight.values()), default=now)

    # -- the feeder

    def _finished(self) -> bool:
        """Start what may be started now; tell whether all is done that will be done."""
        self._look_at_the_clock()
        try:
            self._start_workers()
            if not self._in_flight and not self._valve.closed and self._queue.is_empty():
                self._stop_if_starved()
                return True
        except Exception as crash:  # noqa: BLE001  (what is in flight is paid for: it ends first)
            self._crashed(crash)
        return self._valve.aborted if self._in_flight else self._valve.closed

    def _start_workers(self) -> None:
        self._wake_at = ON_CHANGE
        while (work := self._take()) is not None:
            task = asyncio.get_running_loop().create_task(self._work(work))
            self._tasks.add(task)
            task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake.set()
        if not task.cancelled() and isinstance(crash := task.exception(), Exception):
            self._crashed(crash)

    def _crashed(self, crash: Exception) -> None:
        self._crash = self._crash or crash
        self._unfinal = 0
        if isinstance(crash, BatchrunError):
            self._valve.close(crash.exit_code, str(crash))
        else:
            self._valve.close(ExitCode.BUG, f"a bug of batchrun: {crash!r}")

    async def _sleep(self) -> None:
        """Wait for an event, or for the next moment at which something can happen."""
        end = self._rules.deadline if self._drain_until is None else self._drain_until
        until = min(self._wake_at, ON_CHANGE if end is None else end)
        wait = None if until == ON_CHANGE else max(0.0, until - self._clock()) / self._speed
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._wake.wait()
        self._wake.clear()

    def _look_at_the_clock(self) -> None:
        now = self._clock()
        if self._drain_until is not None:
            if now >= self._drain_until:
                self._valve.abort()
        elif self._valve.closed:
            self._drain_until = now + self._rules.grace
        elif self._rules.deadline is not None and now >= self._rules.deadline:
            self._valve.close(ExitCode.STOPPED_BY_LIMIT, "limits.deadline is reached")
        elif waited := self._patience.lost(now):
            why = self.tally.gate_why
            reason = f"no success for {waited / 60:.0f} minutes: {TABLE[why].means}"
            self._valve.close(ExitCode.STOPPED_BY_API, reason, ending=why)

    def _later(self, wait: float) -> None:
        self._wake_at = min(self._wake_at, self._clock() + wait)

    # -- taking a question

    def _take(self) -> Work | None:
        """Give the next question with all its permits; or None, and when to look again is known."""
        now = self._clock()
        while not self._valve.closed:
            wait = self._permits.open_at(now) if not self._keep.is_full else BACKLOG_WAIT
            if wait > 0:
                self._later(wait)
                break
            if (work := self._queue.take(now)) is None:
                self._wake_at = min(self._wake_at, self._queue.next_at)
                break
            if (permit := self._prepare(work)) is None:
                continue
            if (wait := self._permits.take(now, permit)) == NOW:
                work.permit, work.sent_at = permit, now
                self._in_flight[work.question] = work
                self.tally.in_flight += 1
                self._starved = 0
                return work
            if self._permits.starved is not None and not self._permits.in_flight:
                self._starve(work, self._permits.starved)
            else:
                self._queue.put_back(work, now)
                self._later(wait)
                break
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

    def _starve(self, work: Work, amount: Pico) -> None:
        """Leave a question pending that the cap does not admit though nothing is in flight; others may cost less."""
        self._starved += 1
        self._least = amount if self._least is None else min(self._least, amount)
        self._queue.acquit(work)
        self._return(work)
        if self._starved >= STARVED:
            self._stop_if_starved()

    def _stop_if_starved(self) -> None:
        if self._least is not None:
            reason = self.tally.cap_reached(self._rules.questions, self._least)
            self._valve.close(ExitCode.STOPPED_BY_LIMIT, reason, ending="max_cost_usd")

    # -- one attempt

    async def _work(self, work: Work | None) -> None:
        while work is not None:
            try:
                reply = await self._send(Request(work.body or b""))
                self._settle(work, reply)
            except Exception:
                self._abandon(work)
                raise
            if self._keep.is_full:
                with suppress(BatchrunError):  # the keeper's failure has closed the valve
                    await self._keep.room()
            work = self._take()

    def _settle(self, work: Work, reply: Reply) -> None:
        """Judge a reply, settle its money, and decide what becomes of the question."""
        now, at = self._clock(), self._wall()
        verdict = judge(reply, self._form.parse, now=at, prompt=work.body or b"")
        ending = TABLE[verdict.ending]
        del self._in_flight[work.question]
        self.tally.in_flight -= 1
        self.tally.requests += 1
        charge = self._pay(work, verdict, now)
        self._permits.learn(ending, now, reply.seconds, verdict.wait)
        self.tally.limit = self._permits.limit.limit
        if self._permits.in_flight + 1 < self.tally.limit:
            self._wake.set()  # this worker goes on with one question; what it gives back may be enough for more
        if ending.action is not Action.CONFIRM:
            self._queue.acquit(work)
        if ending.action is Action.ACCEPT:
            self._succeeded(now)
            self.tally.ok += 1
            most = self._rules.max_tokens
            self._keep.put(work.outcome(Status.OK, verdict, reply, at=at, answer=verdict.answer, max_tokens=most))
            return
        if verdict.text is not None and ending.blames is Blame.ROW:
            self._succeeded(now)  # the server works, whatever the model wrote
        self._keep.failed_attempt(work.failed_attempt(verdict, reply, charge, at=at))
        work.last = work.outcome(Status.FAILED, verdict, reply, at=at, max_tokens=self._rules.max_tokens)
        self._refuse(work, work.last, verdict)

    def _pay(self, work: Work, verdict: Verdict, now: float) -> Charge:
        """Settle the money of one attempt."""
        charge, usage = self._rules.charge(verdict), verdict.usage
        used = None if usage.prompt_tokens is None else usage.prompt_tokens + (usage.completion_tokens or 0)
        if work.permit is not None:
            self._permits.give_back(now, work.permit, spent=charge.cost or ZERO, keep=charge.keep, tokens=used)
        work.paid(charge)
        self.tally.cost += charge.cost or 0
        self.tally.possibly_billed += charge.maybe
        return charge

    def _succeeded(self, now: float) -> None:
        self._proven = True
        self._permits.gate.answered(now)
        self._breaker.success()
        self._patience.answered()
        self.tally.gate_why = ""

    # -- what becomes of a question without an answer

    def _refuse(self, work: Work, outcome: Outcome, verdict: Verdict) -> None:
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
            proven=self._proven,
            jitter=self._jitter(),
            closings=self._permits.gate.refused(work.sent_at) if ending.action is Action.GATE else 0,
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
                now = self._clock()
                self._permits.gate.close(now, decision.gate, work.sent_at)
                self._patience.refused(now, decision.delay)
                self.tally.gate_why = ending.name
            if decision.becomes is Status.PENDING:
                self._return(work)
            else:
                self._wait(work, decision.delay)

    def _repair(self, work: Work, outcome: Outcome, verdict: Verdict) -> None:
        """Continue the conversation with the invalid answer and what is wrong with it.

        An answer that the server itself refused (Groq: json_validate_failed) is asked for once more as it was.
        """
        if work.repairs >= self._rules.repairs:
            self._fail(work, outcome, TABLE[verdict.ending])
        else:
            work.repairs += 1
            if verdict.http_status == HTTPStatus.OK:
                work.turns += self._form.repair_turns(verdict.text or "", verdict.message)
            work.body = None
            self._wait(work, 0.0)

    def _beyond_deadline(self, decision: Decision, verdict: Verdict, ending: Ending) -> bool:
        """Stop where all would wait behind the gate until after the deadline."""
        deadline = self._rules.deadline
        if decision.gate and deadline is not None and self._clock() + decision.gate > deadline:
            reason = f"{ending.means}; the wait of {decision.gate:.0f} s goes beyond limits.deadline"
            resume_at = verdict.resume_at or self._wall() + decision.gate
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
            work.tries.once -= 1
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
        if ending.blames is Blame.UNKNOWN and self._broken(outcome, work.position):
            return
        self.tally.count_failure(ending.name)
        self._keep.put(outcome)
        self._watch_failures()

    def _broken(self, outcome: Outcome, position: int) -> bool:
        """Ask the breaker; once it has tripped, its failures go back to pending and the run stops."""
        was_tripped = self._breaker.tripped
        taken_back = self._breaker.failure(outcome, position)
        if taken_back and not was_tripped:
            reason = f"{len(taken_back)} equal failures in a row, no success: {outcome.error_message}"
            self._valve.close(ExitCode.STOPPED_BY_API, reason, ending=outcome.error_type)
            for earlier in taken_back[:-1]:
                self.tally.count_failure(earlier.error_type or "", -1)
                # The checkpoint adds up: what the failure cost is recorded already.
                self._keep.put(earlier._replace(status=Status.PENDING, attempts=0, cost=ZERO, possibly_billed=0))
        if taken_back:
            self._keep.put(outcome._replace(status=Status.PENDING))
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
            self._keep.put(work.last._replace(status=Status.PENDING))

    def _give_back(self) -> None:
        """At the end: what waits stays pending; what is still in flight may be billed."""
        for work in list(self._in_flight.values()):
            self._abandon(work)
        for work in self._queue.left:
            self._return(work)
        for task in self._tasks:
            task.cancel()

    def _abandon(self, work: Work) -> None:
        """Leave a question pending whose reply nobody waits for."""
        self._unfinal = min(self._unfinal, work.position)
        self._queue.acquit(work)
        if self._in_flight.pop(work.question, None) is not None:
            self.tally.in_flight -= 1
            self.tally.requests += 1
            self.tally.possibly_billed += 1
            self._keep.put(work.abandoned(at=self._wall()))
