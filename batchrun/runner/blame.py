"""Who is to blame for a failure, the row, the server or the account: what a run has seen, and what follows from it."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum

from batchrun.api import TABLE, Action, Count, Ending
from batchrun.records import Outcome, Verdict
from batchrun.runner.outage import Outage
from batchrun.runner.queueing import Queue
from batchrun.runner.stop import reason_of
from batchrun.runner.work import Refusal, Rules, Work

LUCK = 1e-4
"""The chance that is accepted of failing any row of a run for nothing but the server's random failures."""

MOST_ATTEMPTS = 25
RARE = 0.01
"""A server that fails fewer requests needs no more than the usual attempts."""

FREE_RECONNECTS = 8
"""Connections lost before a reply, without a success, after which the server is down and not just closing idle ones.

As many as may be in flight can be lost together, where a server closes all idle connections at once.
"""

MOST_BOUGHT = 3
"""Replies of one question that may be billed and were lost, outside of an outage, after which the row is to blame.

Not where the server loses those of good rows, too: one that loses half of all replies would fail an eighth of them.
"""

MANY = 20
"""Answers without a failure before them that show that the server loses no replies of good rows."""

ALONE, ALONE_SECONDS = 5, 50.0
"""Refusals of a question that is asked alone, and seconds without any success, after which the row is to blame."""

UNEXPLAINED = "unexplained"
"""The ending of a failure that may be the account's or the server's, as long as nothing has succeeded."""

REFUSED_ALONE = "refused_alone"
"""The ending of a row that alone meets what would otherwise stop the run."""

PROBES = 15
"""Requests, one at a time, that may bring a success before the run stops: twenty bad rows may stand first in a file."""

WITNESSES, FIRST_WITNESSES = 3, 2
"""Different questions that are refused before a run stops that had a success, and one that had none yet."""

REFUSALS = 3
"""Refusals of one question, each with a success of another one after it, after which the row is to blame."""

NOWHERE = float("inf")


class Fate(Enum):
    """What becomes of a question whose reply would stop or hold the whole run."""

    BELIEVE = "the run stops or waits, as the reply asks"
    AGAIN = "it is asked again"
    LAST_ROUND = "it is asked again when all others are settled"
    FAIL = "its row fails"
    LEAVE = "it stays pending"


class Evidence:
    """The failures and successes of a run, in the light of each other. Times are in seconds, monotonic."""

    def __init__(self, rules: Rules) -> None:
        self.outage = Outage(rules.patience, loopback=rules.loopback)
        self.succeeded_at: float | None = None
        self._worked_at = -math.inf  # when the newest of the requests that succeeded was sent
        self._rules = rules
        self._unsettled, self._doubtful = rules.questions, rules.doubtful
        self._answers = self._faults = self._losses = 0
        self._reconnects = 0

    @property
    def proven(self) -> bool:
        """Whether this run has had a success."""
        return self.succeeded_at is not None

    def take(self, queue: Queue, now: float) -> Work | None:
        """Return the question whose turn it is, in an outage the next one to probe with; None: none now."""
        if self.outage.declared:
            return queue.take_probe(now, self.outage.tried)
        return queue.take(now, self.outage.failed)

    def record_sent(self, work: Work, now: float) -> None:
        """Note that a request starts; in an outage it is a probe."""
        work.sent_at, work.probe = now, self.outage.declared
        if work.probe:
            self.outage.probe_sent()

    def record_reply(self, work: Work, now: float) -> None:
        """Note that a request has ended."""
        if work.probe:
            self.outage.probe_ended(now)

    def record_success(self, work: Work, now: float) -> bool:
        """Note that the server works; return whether that ends an outage."""
        self.succeeded_at = now
        self._reconnects = 0
        self._worked_at = max(self._worked_at, work.sent_at)
        return self.outage.record_success(work.sent_at)

    def may_reconnect(self, work: Work, concurrency: int) -> bool:
        """Count a connection lost before the reply; return whether its question may be asked again for nothing."""
        if work.reconnects:
            return False
        self._reconnects += 1
        return self._reconnects <= max(FREE_RECONNECTS, concurrency) and not self.outage.declared

    def record_answer(self, work: Work) -> None:
        """Note an answer: the failures before it were not the row's fault, which shows how often the server fails."""
        self._answers += 1
        self._faults += work.tries.attempts + work.tries.sent
        self._losses += work.tries.sent

    def record_failure(self, work: Work, verdict: Verdict, ending: Ending, now: float) -> bool:
        """Note a failure by the server's fault; return whether it declares an outage."""
        if self._worked_since(work):
            self._doubt(work)
        work.failed_at = now
        # A probe of a few questions may be billed in vain as well: nobody knows whether that was an outage.
        work.bought += ending.count is Count.SENT and (not self.outage.declared or self.outage.is_few)
        return self.outage.record_failure(now, work, verdict, ending, self._unsettled, self._doubtful)

    def _worked_since(self, work: Work) -> bool:
        """Check whether the server took and answered another request after this question's last failure."""
        return work.failed_at is not None and self._worked_at > work.failed_at

    # -- refusals that would stop or hold the whole run
    # A row may be routed to a provider that needs another key: its 401 must not stop the other 9,999 rows. So such a
    # reply is believed only when different questions meet it, the last of them sent after the others were refused.

    def record_refusal(self, work: Work, ending: Ending) -> None:
        """Note a reply that stops the run only after `limits.attempts` of them ("no provider is available")."""
        if ending.action is Action.RETRY and work.refused_since is None:
            work.refused_since = work.sent_at

    def suspects_everybody(self, held: Sequence[Refusal]) -> bool:
        """Check whether one more refusal stops the run, so that the next request is sent alone."""
        return bool(held) and self._strangers(held) + 1 >= self._witnesses

    def refuses_everybody(self, work: Work, held: Sequence[Refusal]) -> bool:
        """Check whether the server refuses all that it is asked: the newest refused question, and those held so far."""
        return work.witness and self._strangers(held) >= self._witnesses

    def is_its_own(self, work: Work) -> bool:
        """Check whether a request that was sent no earlier than this refused one has succeeded by now."""
        return self._worked_at >= (work.sent_at if work.refused_since is None else work.refused_since)

    @property
    def _witnesses(self) -> int:
        return WITNESSES if self.proven else FIRST_WITNESSES

    def _strangers(self, held: Iterable[Refusal]) -> int:
        """Count those whose refusal says something about the server."""
        return sum(not self._is_known(refused) for refused in held)

    def _is_known(self, refused: Refusal) -> bool:
        """Check whether a question was refused before while others succeeded, or failed in an earlier run.

        Where a job's only open row is the one that is refused alone, each night would stop with "the key is wrong".
        A wait is kept all the same: the row may have failed for another reason.
        """
        return refused.work.refusals > 0 or (refused.work.doubtful and refused.ending.action is not Action.GATE)

    def after_success(self, held: Iterable[Refusal]) -> Iterator[tuple[Refusal, Fate]]:
        """Yield what becomes of refused questions after which another one succeeded: the refusals are their own."""
        for refused in held:
            self._doubt(refused.work)
            yield refused, self._fate(refused)

    def without_witness(self, held: Sequence[Refusal]) -> Iterator[tuple[Refusal, Fate]]:
        """Yield what becomes of refused questions when no other one is left to ask.

        Those that were refused before are to blame, but not while a new refusal may mean that the server refuses
        everybody.
        """
        unsure = self._strangers(held) > 0
        for refused in held:
            if not unsure and refused.ending.action is Action.GATE:
                yield refused, Fate.FAIL  # the next run asks it again
            elif not unsure:
                yield refused, self._fate(refused)
            elif refused.decision.action is Action.CONFIRM or self._is_known(refused):
                yield refused, Fate.AGAIN
            else:
                yield refused, Fate.BELIEVE

    def _fate(self, refused: Refusal) -> Fate:
        """Count a refusal that is the question's own; return what becomes of it."""
        work, attempts = refused.work, self._rules.attempts
        work.refusals += 1
        if refused.ending.count is Count.ONCE:
            work.tries.once -= 1
        if refused.ending.action is Action.RETRY:  # it had all its attempts
            return Fate.FAIL
        if refused.ending.action is Action.GATE:
            # At the edge of a quota's minute a good row is refused between others that succeed: no number fails it.
            return Fate.LEAVE if attempts == 1 else Fate.LAST_ROUND
        return Fate.FAIL if work.refusals >= min(REFUSALS, attempts) else Fate.AGAIN

    # -- failures of the server, and rows that cause them

    def _doubt(self, work: Work) -> None:
        """Note that a question failed again after another one succeeded: it proves nothing about the server."""
        if not work.doubtful:
            work.doubtful = True
            self._doubtful += 1

    def settled(self, work: Work) -> None:
        """Note that a question is settled in this run."""
        self._unsettled -= 1
        self._doubtful -= work.doubtful
        self.outage.forget(work.question)

    def blames(self, work: Work, ending: Ending) -> bool:
        """Check whether a question that failed so is failed now instead of being asked once more."""
        if (
            work.bought >= MOST_BOUGHT
            and (work.deferred or self._answers >= MANY)
            and self._share(self._losses) <= RARE
            and self.proven
            and (not self.outage.declared or self.outage.is_few)
        ):
            return True
        return work.deferred and work.tries.charged >= self.attempts_to_blame(work, ending)

    def _share(self, faults: int) -> float:
        """Return the share of faults among the attempts of questions that were answered in the end."""
        return faults / max(1, self._faults + self._answers)

    def attempts_to_blame(self, work: Work, ending: Ending) -> int:
        """Return how many failures of one row the server's own rate of failures does not explain.

        A server that fails half of all requests fails a good row five times in a row once in 32 times. So the number
        is chosen for all rows of the run together, by the failures of those that were answered in the end.
        """
        if not work.deferred or not (work.doubtful or self._worked_since(work)):
            return sys.maxsize  # the rate is known best in the last round
        if self._rules.attempts == 1:
            return 1
        least = 0 if ending.count is Count.SENT else self._rules.attempts + 1
        # At a rate of 1 no number of failures would ever be enough.
        rate = min(0.9, self._share(self._faults))
        if rate <= RARE:
            return least
        # rate ** needed * questions <= LUCK: chance fails no good row of the whole run.
        needed = math.ceil(math.log(LUCK / max(1, self._rules.questions)) / math.log(rate))
        return max(least, min(needed, MOST_ATTEMPTS))

    def blames_refused(self, work: Work, now: float) -> bool:
        """Note that a question was refused as "not now" though nothing else was asked; return whether it is to blame.

        OpenAI answers 429 for a single prompt above the quota of a minute: such a row can never pass.
        """
        work.alone += 1
        # Others may have succeeded just now; then their requests, not this row, may have used up the minute's quota.
        idle = self.succeeded_at is not None and now - self.succeeded_at >= ALONE_SECONDS
        return work.alone >= ALONE and (work.doubtful or idle)

    @property
    def waits_for(self) -> str:
        """What the run waits for, with the server's words where it has any; empty: nothing."""
        waiting = self.outage.waiting
        if waiting is None:
            return ""
        return reason_of(TABLE[waiting.ending], waiting.message)


class Breaker:
    """Stops a run whose requests are all refused for a reason that nobody explains: no row is failed without proof.

    It counts equal failures that blame nobody, since the last success. `after` of them: probe. 0: never.

    Until the first success of a run they are recorded as UNEXPLAINED; without one they are taken back (pending).
    """

    def __init__(self, after: int) -> None:
        self._after = after
        self._equal = 0
        self._proven = False
        self.unproven: list[tuple[Outcome, str]] = []
        """The failures since the last success, and the name of the ending that each was recorded with."""
        self.position = NOWHERE
        """The row position from which on failures may still be taken back."""
        self.tripped = False

    @property
    def probing(self) -> bool:
        """Whether requests go one at a time, since all of the last ones were refused alike."""
        return bool(self._after) and self._equal >= self._after

    def success(self) -> Sequence[Outcome]:
        """Note a success; return the failures that it explains: the server works, so their rows are to blame."""
        self._proven = True
        if self.tripped or not self.unproven:
            return ()
        explained = [outcome for outcome, name in self.unproven if name == UNEXPLAINED]
        self.unproven.clear()
        self._equal, self.position = 0, NOWHERE
        return explained

    def failure(self, outcome: Outcome, position: int) -> str:
        """Note a failure and return the name of the ending to record; the one that stops the run sets `tripped`.

        A failure with text of the model (`raw`) needs no explanation.
        """
        # Twenty different refusals in a row are rows with different mistakes, not a reason that all share.
        if self.unproven and _kind(self.unproven[-1][0]) != _kind(outcome):
            self._equal = 0
        self._equal += 1
        self.position = min(self.position, position)
        name = outcome.error_type or ""
        if self._after and not self._proven and outcome.raw is None:
            name = UNEXPLAINED
        self.unproven.append((outcome, name))
        self.tripped = self.tripped or (bool(self._after) and self._equal >= self._after + PROBES)
        return name


def _kind(outcome: Outcome) -> tuple[str | None, int | None]:
    return outcome.error_type, outcome.error_code
