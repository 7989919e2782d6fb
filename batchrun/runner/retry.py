"""When is a question asked again: one decision from the table of codes and what this question has tried."""

from dataclasses import dataclass

from batchrun.api import Action, Count, Ending
from batchrun.records import Status

LONGEST_WAIT = 3600.0
"""Seconds; a server that asks to wait longer stops the run."""

HOLDS_ALL = 60.0
"""Seconds; a longer wait may be one question's own, and holds the others only when a second one is asked to wait."""

BASE, CAP = 0.5, 60.0
EMPTY_WAITS = (4.0, 12.0, 30.0)  # a cold model needs seconds to minutes; one row holds a run for a minute at most
CONFIRM_WAIT = 2.0  # long enough for a hiccup of the key check to pass
LAST_ROUND_PAUSE = 2.0  # seconds at most between the attempts of the last round
_LONGEST_SENT, _LONGEST_ONCE = 2, 2


@dataclass(slots=True)
class Tries:
    """How often one question failed in this run, by what bounds it. Rate limits are only counted, never charged."""

    attempts: int = 0
    once: int = 0
    sent: int = 0
    empty: int = 0
    gated: int = 0

    def add(self, count: Count) -> int:
        """Count one failure; return the number of its kind so far."""
        match count:
            case Count.ATTEMPTS:
                self.attempts += 1
                return self.attempts
            case Count.ONCE:
                self.once += 1
                return self.once
            case Count.SENT:
                self.sent += 1
                return self.sent
            case Count.EMPTY:
                self.empty += 1
                return self.empty
            case _:
                self.gated += count is Count.TIME
                return self.gated

    @property
    def charged(self) -> int:
        """The failures that count against limits.attempts."""
        return self.attempts + self.once + self.sent + self.empty

    def forgive(self) -> None:
        """Take back what the server's faults have cost: they came from an outage, not from the row."""
        self.attempts = self.sent = self.empty = 0

    def allows(self, count: Count, attempts: int) -> bool:
        """Check whether one more try of this kind is allowed."""
        if count is Count.TIME:
            return True
        if count in (Count.NONE, Count.REPAIRS) or self.charged >= attempts:
            return False
        if count is Count.SENT:
            return self.sent < _LONGEST_SENT
        if count is Count.ONCE:
            return self.once < _LONGEST_ONCE
        return count is Count.ATTEMPTS or self.empty <= len(EMPTY_WAITS)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done about one ending.

    `delay` is the wait in seconds before this question's next try; `gate` is how long all others wait, which is 0 for a
    lone "not now" without a wait of the server's: the limit of requests in flight sees to that.
    `becomes` is what the question is now in this run: OK, FAILED, PENDING, or None where it is asked again, which is
    in the last round of the run if `last_round` is true.
    """

    action: Action
    delay: float = 0.0
    gate: float = 0.0
    becomes: Status | None = None
    last_round: bool = False

    @property
    def concerns_all(self) -> bool:
        """Whether this stops the whole run, or holds it for long, because of one reply."""
        return self.action in (Action.STOP, Action.CONFIRM) or self.gate > HOLDS_ALL


_FINAL = {
    Action.ACCEPT: Decision(Action.ACCEPT, becomes=Status.OK),
    Action.FAIL: Decision(Action.FAIL, becomes=Status.FAILED),
    Action.STOP: Decision(Action.STOP, becomes=Status.PENDING),
}


def decide(
    ending: Ending,
    tries: Tries,
    *,
    attempts: int,
    needed: int = 0,
    wait: float | None = None,
    proven: bool = False,
    jitter: float = 0.0,
    closings: int = 0,
) -> Decision:
    """Count this ending in `tries` and return what comes next.

    `attempts` is limits.attempts; `needed` is how many failures by the server's fault it takes to blame the row;
    `wait` the seconds the server asked for; `proven` says that this run has had an answer; `jitter` is in [0, 1);
    `closings` is how often the gate closed in a row before this reply. An invalid answer comes here only when its
    repairs are used up.
    """
    action = ending.action
    if action is Action.FAIL_IF_PROVEN:
        action = Action.FAIL if proven else Action.STOP
    if action in _FINAL:
        return _FINAL[action]
    number = tries.add(ending.count)
    if wait is not None and wait > LONGEST_WAIT:
        return Decision(Action.STOP, wait, becomes=Status.PENDING)
    if action is Action.GATE:
        # A row that is refused for the first time behind a gate that closed five times waits as long as the others.
        number = max(number, closings + 1)
    delay = _next_delay(ending, number, wait, jitter, proven=proven)
    refused = closings and not ending.outage  # an outage has probes of its own
    gate = delay if action is Action.GATE and (wait is not None or refused) else 0.0
    if action is Action.GATE and attempts == 1 and not ending.outage:
        return Decision(action, delay, gate, Status.PENDING)
    if tries.allows(ending.count, attempts):
        return Decision(action, delay, gate)
    # Once all others are answered it is known how often this server fails good rows.
    if ending.outage and tries.charged < needed:
        return Decision(action, max(wait or 0.0, min(delay, LAST_ROUND_PAUSE)), gate, last_round=True)
    return _FINAL[ending.exhausted]


def _next_delay(ending: Ending, number: int, wait: float | None, jitter: float, *, proven: bool) -> float:
    if ending.action is Action.CONFIRM:
        return CONFIRM_WAIT * (1 + jitter)
    if ending.count is Count.EMPTY and wait is None and not proven:  # a model that answers other rows is not cold
        return EMPTY_WAITS[min(number, len(EMPTY_WAITS)) - 1] * (1 + 0.2 * jitter)
    if wait is None:
        return backoff(number, jitter)
    # Never earlier than the server asked, never all at once, and never in a tight loop of zero waits. The gate opens
    # slowly by itself, so that behind it a moment is jitter enough: more would waste a server's quota.
    spread = 0.1 if ending.action is Action.GATE else max(0.1, wait / 10)
    least = backoff(number, jitter) if wait < 1 else 0.0
    return max(wait + jitter * spread, least)


def backoff(number: int, jitter: float) -> float:
    """Return the seconds to wait after the `number`-th failure: exponential with full jitter."""
    return jitter * min(CAP, BASE * 2.0 ** min(number - 1, 32))
