"""How a question ends without an answer: its books, the breaker, and `limits.max_failed`."""

import sys

from batchrun.api import TABLE, Blame, Ending
from batchrun.errors import ExitCode
from batchrun.records import Outcome, Status
from batchrun.runner.blame import UNEXPLAINED, Breaker, Evidence
from batchrun.runner.stop import Valve
from batchrun.runner.work import Keep, Rules, Tally, Work, recorded


class Ends:
    """Books failed and pending questions, and stops the run where they are too many."""

    def __init__(self, keep: Keep, valve: Valve, tally: Tally, evidence: Evidence, rules: Rules) -> None:
        self._keep, self._valve, self._tally, self._evidence = keep, valve, tally, evidence
        self._max_failed = rules.max_failed
        self._breaker = Breaker(rules.breaker)
        self._first_open = rules.first_doubtful if rules.doubtful else sys.maxsize

    @property
    def probing(self) -> bool:
        """Whether requests go one at a time, since all of the last ones were refused for no known reason."""
        return self._breaker.probing

    @property
    def low_water(self) -> float:
        """The row position below which no question that ended is open, or may be taken back."""
        return min(self._first_open, self._breaker.position)

    def fail(self, work: Work, outcome: Outcome, ending: Ending) -> None:
        """Fail a question, under a name that says how much is known by now."""
        if ending.blames is Blame.UNKNOWN:
            ending = TABLE[self._breaker.failure(outcome, work.position)]
        if ending.again:
            self._first_open = min(self._first_open, work.position)
        self._tally.count_failure(ending.name)
        self._evidence.settled(work)
        self._keep.put(outcome._replace(error_type=ending.name))
        if self._breaker.tripped:
            self._retract()
        if self._max_failed is not None and self._tally.failed > self._max_failed:
            reason = "more rows failed than limits.max_failed accepts"
            self._valve.close(ExitCode.STOPPED_BY_LIMIT, reason, ending="max_failed")

    def explain(self) -> None:
        """Record the unexplained failures under their own names: the server works, so their rows are to blame."""
        for outcome in self._breaker.success():
            self._tally.count_failure(UNEXPLAINED, -1)
            self._tally.count_failure(outcome.error_type or "")
            self._keep.put(recorded(outcome))

    def _retract(self) -> None:
        """Stop the run; the failures since the last success go back to pending."""
        unproven, (last, _) = self._breaker.unproven, self._breaker.unproven[-1]
        reason = f"{len(unproven)} failures in a row, no success: {last.error_message}"
        self._valve.close(ExitCode.STOPPED_BY_API, reason, ending=last.error_type)
        for outcome, name in unproven:
            self._tally.count_failure(name, -1)
            self._keep.put(recorded(outcome)._replace(status=Status.PENDING))
        unproven.clear()

    def leave_pending(self, work: Work) -> None:
        """Leave a question pending for the next run, with what it has cost."""
        self._first_open = min(self._first_open, work.position)
        self._tally.left += 1
        self._evidence.settled(work)
        if work.last is not None:
            self._keep.put(work.last._replace(status=Status.PENDING))

    def abandon(self, work: Work, *, at: float, in_flight: bool) -> None:
        """Leave a question pending whose reply nobody waits for; `at` is Unix time."""
        self._first_open = min(self._first_open, work.position)
        if in_flight:
            self._tally.count_abandoned()
            self._keep.put(work.abandoned(at=at))

    def all_open(self) -> None:
        """Note that nothing is certain any more: the next run looks at every row."""
        self._first_open = 0
