"""An outage is a state of the server, not of rows: when one begins, who probes it and when, and how long it may last.

Pure arithmetic: `now` is in seconds on a monotonic clock. The pool reports what happens and asks what may be sent.
"""

from batchrun.api import Ending
from batchrun.records import Verdict
from batchrun.runner.work import Work

QUESTIONS = 10
"""Different questions that fail by the server's fault, without a success between, declare an outage."""

PAUSES, LONGEST_PAUSE = (1.0,) * 10 + (10.0,), 30.0
"""Seconds before each of the first probes, and before all later ones."""

PATIENCE = 900.0
"""Seconds without a success after which a run gives up, where the job does not say (`limits.patience`)."""

REFUSED_PATIENCE, UNREACHED_PATIENCE = 3.0, 60.0
"""The same for a server that was never reached: on loopback and refused, and anything else."""

FEW_PATIENCE, FEW_BILLED_PATIENCE = 45.0, 30.0
"""Seconds that fewer than QUESTIONS may hold a run, since rows that the server can't take look like an outage; and the
same where each failure may be billed: then each question is probed once in that time, and no more."""

ON_CHANGE = float("inf")


class Outage:
    """The failures since the last success, and what they mean.

    `patience` is what the job writes (None: nothing), `loopback` whether the server is on this machine. `waiting` is
    the newest reply that says why nothing succeeds, `since` when the first of them came.
    """

    def __init__(self, patience: float | None = None, *, loopback: bool = False) -> None:
        self._patience, self._loopback = patience, loopback
        self._longest_wait = 0.0
        self._failures: dict[int, int] = {}
        self._proofs: set[int] = set()
        self._refused: set[int] = set()
        self._failing_since = 0.0
        self._reached = self._from_content = self._billed = False
        self._probes = 0
        self._probing = False
        self._next_probe = 0.0
        self.declared = False
        self.waiting: Verdict | None = None
        self.since = 0.0

    def tried(self, question: int) -> bool:
        """Check whether a question has failed since the last success, as often as it needs to."""
        if question in self._refused:
            return True
        return self._failures.get(question, 0) >= (2 if self.is_few else 1)

    def failed(self, question: int) -> bool:
        """Check whether a question failed by the server's fault since the last success."""
        return question in self._failures

    def forget(self, question: int) -> None:
        """Leave out a question that is settled."""
        if self.waiting is None:  # nothing failed since the last success
            return
        self._failures.pop(question, None)
        self._refused.discard(question)
        self._proofs.discard(question)

    def record_success(self, sent_at: float) -> bool:
        """Note that the server answered a request that was sent at `sent_at`; return whether that ends an outage.

        A request that was sent before the first failure may be answered while the server takes no new ones.
        """
        self._reached = True
        if self.waiting is None:  # nothing failed since the last success
            return False
        if self.declared and sent_at < self._failing_since:
            return False
        ended = self.declared
        self.end()
        return ended

    def end(self) -> None:
        """Forget what failed so far."""
        self.declared, self.waiting, self._longest_wait, self._probes = False, None, 0.0, 0
        self._from_content = self._billed = False
        self._failures.clear()
        self._proofs.clear()
        self._refused.clear()

    def record_wait(self, now: float, work: Work, verdict: Verdict, wait: float) -> None:
        """Note a "not now" after which a question waits for `wait` seconds: no failure, but no success either."""
        self._reached = True
        if self.waiting is None:
            self.waiting, self.since = verdict, now
        self._longest_wait = max(self._longest_wait, wait)
        self._refused.add(work.question)

    def record_failure(
        self, now: float, work: Work, verdict: Verdict, ending: Ending, unsettled: int, doubtful: int
    ) -> bool:
        """Note a failure by the server's fault; return whether it declares an outage.

        `doubtful` of the `unsettled` questions failed before while others succeeded: their failures prove nothing
        about the server, unless nothing was sent. Then no row is to blame.
        """
        reached = ending.name != "connection"
        proves = not (work.doubtful and reached)
        could_prove = max(1, unsettled - doubtful if reached else unsettled)
        if self.waiting is None:
            self.since = now
        self.waiting = verdict
        self._reached |= reached
        self._from_content |= reached
        self._billed |= ending.maybe_billed or bool(verdict.usage.completion_tokens)
        if not self._failures:
            self._failing_since = now
        self._failures[work.question] = self._failures.get(work.question, 0) + 1
        if proves:
            self._proofs.add(work.question)
        # Where fewer questions than QUESTIONS are open all of them must fail, but for those that only wait for a limit.
        if (
            self.declared
            or not proves
            or len(self._proofs) < min(QUESTIONS, could_prove - len(self._refused - self._proofs))
        ):
            return False
        self.declared = True
        self._next_probe = now + self._pause()
        return True

    def probe_sent(self) -> None:
        """Note that a probe is in flight."""
        self._probing = True

    def probe_ended(self, now: float) -> None:
        """Note that a probe came back; if it did not succeed, the next one comes after a pause."""
        self._probing = False
        self._probes += 1
        self._next_probe = now + self._pause()

    def _pause(self) -> float:
        # Each of these probes may be billed for nothing: each of the few questions is asked once more, not more often.
        if self._billed and self.is_few:
            return FEW_BILLED_PATIENCE / len(self._failures)
        return PAUSES[self._probes] if self._probes < len(PAUSES) else LONGEST_PAUSE

    @property
    def is_few(self) -> bool:
        """Whether so few questions have failed that nobody knows whether rows or server are to blame."""
        return self._from_content and 0 < len(self._proofs) < QUESTIONS

    def wait(self, now: float) -> float:
        """Return the seconds until one more request may start; ON_CHANGE while a probe is in flight."""
        if not self.declared:
            return 0.0
        return ON_CHANGE if self._probing else max(0.0, self._next_probe - now)

    def blames_rows(self, now: float) -> bool:
        """Check whether so few questions hold the run for so long that they are failed instead of waited for."""
        return now >= self._blames_rows_at()

    def _blames_rows_at(self) -> float:
        once = any(self._failures.get(question) == 1 for question in self._proofs)  # which may be chance
        if not self.declared or not self.is_few or once:
            return ON_CHANGE
        return self._failing_since + (FEW_BILLED_PATIENCE if self._billed else FEW_PATIENCE)

    def looks_up_at(self) -> float:
        """Return when the next of `blames_rows` and `lasted` becomes true if nothing succeeds; ON_CHANGE: never."""
        return min(self._gives_up_at(), self._blames_rows_at())

    def lasted(self, now: float) -> float:
        """Return for how many seconds nothing has succeeded once that is too long, else 0."""
        return now - self.since if now >= self._gives_up_at() else 0.0

    def _gives_up_at(self) -> float:
        if self.waiting is None:
            return ON_CHANGE
        if self._patience is not None:
            return self.since + self._patience
        # A server that says when to come back is waited for, and half as long again: it may be late.
        return self.since + max(self._limit(), 1.5 * self._longest_wait)

    def _limit(self) -> float:
        if self._reached:
            return PATIENCE
        refused = self._loopback and self.waiting is not None and self.waiting.ending == "connection"
        return REFUSED_PATIENCE if refused else UNREACHED_PATIENCE
