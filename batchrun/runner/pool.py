"""Many questions through one Send: limits, judgement, retries.

A worker takes a question when all limits admit it, sends it, settles it (`_settle` has all that can happen
to one attempt) and takes the next. A question that waits for its retry holds no slot. `_take` never waits: a worker
that finds nothing to do ends, and the feeder starts new ones when a timer or an event says that there is something to
do again.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from batchrun.api import TABLE, Action, Blame, Count, Ending, judge
from batchrun.errors import BatchrunError, ExitCode
from batchrun.money import ZERO, Pico
from batchrun.prompt import AnswerForm, RowProblem, with_turns
from batchrun.records import Outcome, Reply, Request, Send, Status, Verdict
from batchrun.runner.alone import Alone
from batchrun.runner.blame import REFUSED_ALONE, Evidence, Fate
from batchrun.runner.ends import Ends
from batchrun.runner.limits import NOW, ON_CHANGE, Limits, Permit
from batchrun.runner.log import event
from batchrun.runner.queueing import Queue
from batchrun.runner.retry import Decision, decide
from batchrun.runner.stop import Valve, reason_of
from batchrun.runner.work import CAP_TOO_LOW, REAL_TIME, Charge, Keep, Refusal, Rules, Tally, Time, Work, cap_too_low
from batchrun.terminal import duration

BACKLOG_WAIT = 0.01
LARGE_BODY = 64 * 2**10
SLOW_START = 0.1  # seconds for which all is held back when an outage ends; then the gate opens step by step
NOTABLE_WAIT = 60.0  # seconds; a run that gives up says when a longer one ends
MOST_PASSED_OVER = 1_000  # questions in a row that the cap on spending does not admit stop the run


class Pool:
    """Asks the questions of a source until it is dry, or the valve is closed and the grace is over. One use."""

    def __init__(
        self,
        send: Send,
        keep: Keep,
        valve: Valve,
        limits: Limits,
        *,
        rules: Rules,
        form: AnswerForm,
        body_of: Callable[[tuple[Any, ...]], bytes | RowProblem],
        worst_case: Callable[[int, tuple[Any, ...]], Pico],
        time: Time = REAL_TIME,
    ) -> None:
        self.tally = Tally(limit=limits.limit.limit)
        self._send, self._keep, self._valve, self._limits = send, keep, valve, limits
        self._rules, self._form, self._body_of, self._worst_case = rules, form, body_of, worst_case
        self._clock, self._wall, self._jitter, self._speed = time.clock, time.wall, time.jitter, time.speed
        self._queue = Queue(iter(()))
        self._in_flight: dict[int, Work] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._evidence = Evidence(rules)
        self._ends = Ends(keep, valve, self.tally, self._evidence, rules)
        self._alone = Alone(rules.first_alone, rules.cache_life)
        self._witness_at = 0.0
        self._passed_over = 0
        self._smallest_refused: Pico | None = None
        self._drain_until: float | None = None
        self._wake_at = ON_CHANGE
        self._wake = asyncio.Event()
        self._crash: Exception | None = None

    async def ask(self, source: Iterator[Work]) -> None:
        """Ask the questions of a source. A problem of the source or of ours is raised after the requests in flight."""
        self._queue = Queue(source, self._rules.questions - self._rules.doubtful)
        self._valve.on_change = self._wake.set
        while self._advance():
            await self._sleep()
        self._end()
        if self._crash is not None:
            raise self._crash

    # -- the feeder

    def _advance(self) -> bool:
        """Start the requests that may start now; return whether there is anything to wait for."""
        self._check_time()
        try:
            self._start_workers()
            if not self._in_flight and not self._valve.closed and self._queue.is_empty():
                if not self._queue.held:
                    self._stop_at_cap()
                    return False
                self._settle_held(self._evidence.without_witness(self._queue.release()))
        except Exception as crash:  # noqa: BLE001  (requests in flight are paid for: they end first)
            self._crashed(crash)
        if self._in_flight:
            return not self._valve.aborted
        return not self._valve.closed

    def _start_workers(self) -> None:
        self._wake_at = ON_CHANGE
        while (work := self._take()) is not None:
            task = asyncio.get_running_loop().create_task(self._worker(work))
            self._tasks.add(task)
            task.add_done_callback(self._worker_ended)

    def _worker_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake.set()
        if not task.cancelled() and isinstance(crash := task.exception(), Exception):
            self._crashed(crash)

    def _crashed(self, crash: Exception) -> None:
        self._crash = self._crash or crash
        self._ends.all_open()
        if isinstance(crash, BatchrunError):
            self._valve.close(crash.exit_code, str(crash))
        else:
            self._valve.close(ExitCode.BUG, f"internal error: {crash!r}")

    async def _sleep(self) -> None:
        """Wait for an event, or for the next moment at which something can happen."""
        end = self._rules.deadline if self._drain_until is None else self._drain_until
        until = min(self._wake_at, ON_CHANGE if end is None else end)
        if not self._valve.closed and not self._in_flight:
            until = min(until, self._evidence.outage.looks_up_at())
        wait = None if until == ON_CHANGE else max(0.0, until - self._clock()) / self._speed
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._wake.wait()
        self._wake.clear()

    def _check_time(self) -> None:
        now = self._clock()
        if self._drain_until is not None:
            if now >= self._drain_until:
                self._valve.abort()
        elif self._valve.closed:
            self._drain_until = now + self._rules.grace
        elif self._rules.deadline is not None and now >= self._rules.deadline:
            self._valve.close(ExitCode.STOPPED_BY_LIMIT, "limits.deadline is reached")
        elif self._in_flight:
            pass  # a request that is out may still succeed
        elif self._evidence.outage.blames_rows(now):
            self._fail_suspects()
        elif (lasted := self._evidence.outage.lasted(now)) and (waiting := self._evidence.outage.waiting):
            reason = f"no success for {duration(lasted)}: {self._evidence.waits_for}"
            left = self._limits.gate.wait(now)
            resume_at = self._wall() + left if left > NOTABLE_WAIT else None
            self._valve.close(ExitCode.STOPPED_BY_API, reason, ending=waiting.ending, resume_at=resume_at)

    # -- taking a question

    def _take(self) -> Work | None:
        """Return the next question that all limits admit; or None, and when to look again is known."""
        now = self._clock()
        while not self._valve.closed:
            wait = BACKLOG_WAIT if self._keep.is_full else self._wait_before_any(now)
            if wait > 0:
                self._wake_at = min(self._wake_at, now + wait)
                break
            work = self._evidence.take(self._queue, now)
            if work is None:
                self._wake_at = min(self._wake_at, self._queue.next_at)
                break
            if (permit := self._prepare(work)) is None:
                continue
            if (wait := self._limits.take(now, permit)) == NOW:
                work.permit, work.witness = permit, bool(self._queue.held)
                self._evidence.record_sent(work, now)
                self._in_flight[work.question] = work
                self.tally.in_flight += 1
                self._passed_over = 0
                return work
            if self._limits.over_cap is not None and not self._limits.in_flight:
                self._pass_over(work, self._limits.over_cap)
            else:
                self._queue.put_back(work)
                self._wake_at = min(self._wake_at, now + wait)
                break
        return None

    def _wait_before_any(self, now: float) -> float:
        """Return the seconds until any request may start; ON_CHANGE while one that goes alone is in flight."""
        in_flight = self._limits.in_flight
        alone = self._alone.needed(now, in_flight, self._evidence.succeeded_at) or self._ends.probing
        witness = self._evidence.suspects_everybody(self._queue.held)
        if (alone or witness or self._queue.holds_only_refused(self._rules.attempts)) and in_flight:
            return ON_CHANGE
        wait = self._witness_at - now if witness else NOW
        return max(self._limits.wait_before_any(now), self._evidence.outage.wait(now), wait)

    def _prepare(self, work: Work) -> Permit | None:
        """Make the body and return what it needs; None if the row is failed instead (its outcome is kept)."""
        if work.last is not None and self._evidence.blames(work, ending := TABLE[work.last.error_type or ""]):
            self._ends.fail(work, work.last, ending)
            return None
        if work.body is None:
            body = self._body_of(work.values)
            if isinstance(body, RowProblem):
                self._ends.fail(work, work.unsent(body, at=self._wall()), TABLE[body.error_type])
                return None
            work.body = with_turns(body, work.turns) if work.turns else body
        tokens = len(work.body) // 4 + (self._rules.max_tokens or 0)
        return self._limits.permit(len(work.body), tokens, self._worst_case(len(work.body), work.values))

    def _pass_over(self, work: Work, amount: Pico) -> None:
        """Leave a question pending that the cap does not admit though nothing is in flight; others may cost less."""
        self._passed_over += 1
        self._smallest_refused = min(amount, self._smallest_refused or amount)
        self._ends.leave_pending(work)
        if self._passed_over >= MOST_PASSED_OVER:
            self._stop_at_cap()

    def _stop_at_cap(self) -> None:
        least, cap = self._smallest_refused, self._rules.cap
        if least is not None and cap is not None and least > cap:
            why = cap_too_low(cap, self._rules.questions, least)
            self._valve.close(ExitCode.STOPPED_BY_LIMIT, why, ending=CAP_TOO_LOW)
        elif least is not None:
            why = self.tally.cap_reached(self._rules.questions, least)
            self._valve.close(ExitCode.STOPPED_BY_LIMIT, why, ending="max_cost_usd")

    # -- one attempt

    async def _worker(self, work: Work | None) -> None:
        """Send questions and settle their replies, one after the other, until none may be sent now."""
        while work is not None:
            try:
                reply = await self._send(Request(work.body or b"", work.reconnects))
                self._settle(work, reply)
            except Exception:
                self._abandon(work)
                raise
            if self._keep.is_full:
                with suppress(BatchrunError):  # the keeper's failure has closed the valve
                    await self._keep.room()
            work = self._take()

    def _settle(self, work: Work, reply: Reply) -> None:
        """Settle one attempt: judge the reply, book its money, and decide what becomes of the question.

        It ends as an answer, a repair, a stop of the run, a question that waits for a witness of its refusal, a
        failure, or one more try: on a new connection, after a pause, behind the gate, after an outage, in the last
        round.
        """
        now, at = self._clock(), self._wall()
        verdict = judge(reply, self._form.parse, now=at, prompt=work.body or b"", mask=self._rules.mask)
        ending = TABLE[verdict.ending]
        charge = self._book(work, verdict, reply, now)
        if ending.action is Action.ACCEPT:
            self._record_success(work, now)
            self._evidence.record_answer(work)
            self.tally.ok += 1
            self._evidence.settled(work)
            self._keep.put(work.outcome(Status.OK, verdict, reply, at=at, rules=self._rules))
            return
        if verdict.text is not None and ending.blames is Blame.ROW:
            self._record_success(work, now)  # the server works, though the model wrote something else
        work.last = work.outcome(Status.FAILED, verdict, reply, at=at, rules=self._rules)
        self._keep.failed_attempt(work.last._replace(cost=charge.cost or ZERO, possibly_billed=charge.maybe))
        if reply.before_reply and not self._valve.closed and self._evidence.may_reconnect(work, self.tally.limit):
            work.reconnects = True  # the server may just have closed an idle connection
            self._queue_retry(work, 0.0)
            return
        if ending.outage and self._belongs_to_an_outage(work, verdict, ending, now):
            self._retry_after_outage(work, verdict, now)
            return
        if ending.count is Count.REPAIRS:
            self._repair(work, work.last, verdict)
            return
        self._evidence.record_refusal(work, ending)
        decision = self._decide(work, verdict, ending)
        refused = Refusal(work, work.last, verdict, ending, decision)
        if decision.action is Action.FAIL or self._never_passes(work, ending, now):
            self._ends.fail(work, work.last, ending)
        elif decision.concerns_all and not self._valve.closed:
            self._hold(refused, now)
        else:
            self._obey(refused, now)

    def _obey(self, refused: Refusal, now: float) -> None:
        """Stop the run, close the gate, or ask again, as was decided about a question without an answer."""
        work, _, verdict, ending, decision = refused
        if decision.action in (Action.STOP, Action.CONFIRM):
            # Waiting makes no wrong key right: the delay of a confirmation was for this run alone.
            self._stop(work, verdict, ending, 0.0 if decision.action is Action.CONFIRM else decision.delay)
        elif self._valve.closed or self._exceeds_deadline(decision, verdict, ending) or decision.becomes:
            self._close_gate(work, verdict, ending, decision, now)
            self._ends.leave_pending(work)
        else:
            self._close_gate(work, verdict, ending, decision, now)
            self._ask_again(work, decision)

    def _book(self, work: Work, verdict: Verdict, reply: Reply, now: float) -> Charge:
        """Settle the money of one attempt, free what it held, and let the limits learn from it."""
        del self._in_flight[work.question]
        self._evidence.record_reply(work, now)
        self._alone.replied()
        self.tally.in_flight -= 1
        self.tally.requests += 1
        charge, usage = self._rules.charge(verdict), verdict.usage
        used = None if usage.prompt_tokens is None else usage.prompt_tokens + (usage.completion_tokens or 0)
        if work.permit is not None:
            self._limits.give_back(now, work.permit, spent=charge.cost or ZERO, keep=charge.keep, tokens=used)
        work.paid(charge)
        self.tally.cost += charge.cost or 0
        self.tally.possibly_billed += charge.maybe
        answered = verdict.text is not None and not self._evidence.outage.declared
        self._limits.learn(TABLE[verdict.ending], now, reply.seconds, verdict.wait, answered=answered)
        self.tally.limit = self._limits.limit.limit
        if self._limits.in_flight + 1 < self.tally.limit:
            self._wake.set()  # what this worker gave back may be enough for more than its next question
        return charge

    def _record_success(self, work: Work, now: float) -> None:
        """Note that the server works, so that rows are to blame for the refusals before."""
        self._ends.explain()
        self._limits.gate.answered(now)
        if self._queue.held:
            self._settle_held(self._evidence.after_success(self._queue.release(work.sent_at)))
        if self._evidence.record_success(work, now):
            event("outage_ended")
            self._limits.gate.close(now, SLOW_START, now)

    def _decide(self, work: Work, verdict: Verdict, ending: Ending) -> Decision:
        return decide(
            ending,
            work.tries,
            attempts=self._rules.attempts,
            needed=self._evidence.attempts_to_blame(work, ending),
            wait=verdict.wait,
            proven=self._evidence.proven,
            jitter=self._jitter(),
            closings=self._limits.gate.refused(work.sent_at) if ending.action is Action.GATE else 0,
        )

    # -- the server's faults

    def _belongs_to_an_outage(self, work: Work, verdict: Verdict, ending: Ending, now: float) -> bool:
        """Record a failure by the server's fault; return whether the server is to blame for it, and no row."""
        if self._evidence.record_failure(work, verdict, ending, now):
            event("outage_began", ending=ending.name, http_status=verdict.http_status)
            for waiting in self._queue.remaining:
                waiting.tries.forgive()
        return self._evidence.outage.declared

    def _retry_after_outage(self, work: Work, verdict: Verdict, now: float) -> None:
        """Let a question wait for the end of the outage; it costs the row no attempt."""
        work.tries.forgive()
        if self._valve.closed:
            self._ends.leave_pending(work)
            return
        if verdict.wait:
            self._evidence.outage.record_wait(now, work, verdict, verdict.wait)
            self._limits.gate.close(now, verdict.wait, work.sent_at)
        self._queue_retry(work, 0.0)

    def _fail_suspects(self) -> None:
        """Fail the few rows that alone have seen the outage: most likely they are its cause."""
        for work in self._queue.drain():
            if work.last is not None and self._evidence.outage.failed(work.question):
                self._ends.fail(work, work.last, TABLE[work.last.error_type or "server_error"])
            else:
                self._queue.retry(work, self._clock())
        self._evidence.outage.end()
        event("outage_ended")

    def _never_passes(self, work: Work, ending: Ending, now: float) -> bool:
        """Check whether a row is refused as "not now" for ever: alone, again and again, while the server works."""
        if ending.count is not Count.TIME or self._in_flight or work.tries.gated < self._rules.attempts:
            return False
        last = self._queue.is_empty() or self._queue.holds_only_refused(self._rules.attempts)
        return last and self._evidence.blames_refused(work, now)

    # -- what becomes of a question without an answer

    def _repair(self, work: Work, outcome: Outcome, verdict: Verdict) -> None:
        """Continue the conversation with the invalid answer and the mistake in it.

        An answer that the server itself refused (Groq: json_validate_failed) is asked for once more as it was.
        """
        if work.repairs >= self._rules.repairs:
            self._ends.fail(work, outcome, TABLE[verdict.ending])
        else:
            work.repairs += 1
            if verdict.http_status == HTTPStatus.OK:
                work.turns += self._form.repair_turns(verdict.text or "", verdict.message)
            work.body = None
            self._queue_retry(work, 0.0)

    def _exceeds_deadline(self, decision: Decision, verdict: Verdict, ending: Ending) -> bool:
        """Stop where all would wait behind the gate until after the deadline."""
        deadline = self._rules.deadline
        if decision.gate and deadline is not None and self._clock() + decision.gate > deadline:
            reason = f"{ending.means}; the wait of {decision.gate:.0f} s goes beyond limits.deadline"
            resume_at = verdict.resume_at or self._wall() + decision.gate
            self._valve.close(ExitCode.STOPPED_BY_LIMIT, reason, ending=ending.name, resume_at=resume_at)
        return self._valve.closed

    def _close_gate(self, work: Work, verdict: Verdict, ending: Ending, decision: Decision, now: float) -> None:
        """Hold all requests back for as long as the server asked, or as long as its refusals suggest."""
        if ending.action is Action.GATE and not self._valve.closed:
            self._limits.gate.close(now, decision.gate, work.sent_at)
            if not ending.outage:
                self._evidence.outage.record_wait(now, work, verdict, decision.delay)

    def _ask_again(self, work: Work, decision: Decision) -> None:
        """Queue a question for its next attempt: after a pause, or once all others are settled."""
        if decision.last_round and not work.deferred:
            work.deferred = True
            self._queue.defer(work)
            self._wake.set()
        else:
            self._queue_retry(work, decision.delay)

    def _queue_retry(self, work: Work, delay: float) -> None:
        if work.body is not None and len(work.body) > LARGE_BODY:
            work.body = None
        self._queue.retry(work, self._clock() + delay)
        self.tally.waiting = self._queue.waiting
        self._wake.set()

    # -- whose refusal it is

    def _hold(self, refused: Refusal, now: float) -> None:
        """Let a question wait that would stop the run, or hold it for long, until it is known whose refusal it is."""
        self._queue.held.append(refused)
        self._evidence.outage.record_wait(now, refused.work, refused.verdict, 0.0)
        self._witness_at = now + (refused.decision.delay if refused.decision.action is Action.CONFIRM else 0.0)
        if self._evidence.is_its_own(refused.work):
            self._settle_held(self._evidence.after_success(self._queue.release(refused.work.sent_at)))
        elif self._evidence.refuses_everybody(refused.work, self._queue.held):
            self._settle_held((held, Fate.BELIEVE) for held in self._queue.release())
        self._wake.set()

    def _settle_held(self, fates: Iterable[tuple[Refusal, Fate]]) -> None:
        """Do what follows once it is known, or can't be known, whose refusals these are."""
        now = self._clock()
        for refused, fate in fates:
            work, ending = refused.work, refused.ending
            match fate:
                case Fate.BELIEVE:
                    self._obey(refused, now)
                case Fate.FAIL:
                    self._ends.fail(work, refused.outcome, ending if ending.again else TABLE[REFUSED_ALONE])
                case Fate.LEAVE:
                    self._ends.leave_pending(work)
                case Fate.LAST_ROUND:
                    self._queue.defer(work)
                case Fate.AGAIN:
                    self._queue_retry(work, max(0.0, self._witness_at - now))
        self._wake.set()

    def _stop(self, work: Work, verdict: Verdict, ending: Ending, delay: float) -> None:
        resume_at = verdict.resume_at
        if delay and not resume_at:
            resume_at = self._wall() + delay
        reason = reason_of(ending, verdict.message)
        self._valve.close(ExitCode.STOPPED_BY_API, reason, ending=ending.name, resume_at=resume_at)
        self._ends.leave_pending(work)

    def _end(self) -> None:
        """At the end: questions that wait stay pending; those still in flight may be billed."""
        for work in list(self._in_flight.values()):
            self._abandon(work)
        for work in self._queue.remaining:
            self._ends.leave_pending(work)
        for task in self._tasks:
            task.cancel()

    def _abandon(self, work: Work) -> None:
        """Leave a question pending whose reply nobody waits for."""
        in_flight = self._in_flight.pop(work.question, None) is not None
        self._ends.abandon(work, at=self._wall(), in_flight=in_flight)

    # -- what others see of it

    @property
    def low_water(self) -> int:
        """The row position below which every question of this run is final."""
        in_flight = (work.position for work in self._in_flight.values())
        return int(min(self._ends.low_water, self._queue.position, *in_flight))

    @property
    def answered_at(self) -> float | None:
        """When the server last succeeded (Unix time); None: never."""
        at = self._evidence.succeeded_at
        return None if at is None else self._wall() - (self._clock() - at)

    def observe(self) -> None:
        """Bring up to date what the tally shows of time: the oldest request, and the wait with its beginning."""
        now, tally = self._clock(), self.tally
        tally.waiting = self._queue.waiting
        tally.oldest = now - min((work.sent_at for work in self._in_flight.values()), default=now)
        outage = self._evidence.outage
        tally.gate_why = tally.waiting_for = ""
        if outage.waiting is not None:
            tally.gate_why = outage.waiting.ending
            tally.waiting_for = f"{self._evidence.waits_for} (for {duration(now - outage.since)})"
