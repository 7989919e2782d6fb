"""What stops a run that gets nowhere: equal failures that nobody explains, or nothing but "not now" for too long."""

from batchrun.records import Outcome
from batchrun.runner.retry import GATE_PATIENCE

NOWHERE = float("inf")


class Breaker:
    """Counts failures that blame nobody: so many equal ones in a row, without any success, trip it. 0 never trips."""

    def __init__(self, after: int) -> None:
        self._after = after
        self._streak: list[Outcome] = []
        self.position = NOWHERE
        """The row position from which on failures may still be taken back."""
        self.tripped = False

    def success(self) -> None:
        """Any success starts the count anew."""
        if not self.tripped:
            self._streak.clear()
            self.position = NOWHERE

    def failure(self, outcome: Outcome, position: int) -> list[Outcome]:
        """Count one; give the failures that are taken back: none, or all of the streak once it has tripped."""
        if not self._after:
            return []
        self.position = min(self.position, position)
        if self.tripped:
            return [outcome]
        if self._streak and _kind(self._streak[-1]) != _kind(outcome):
            self._streak.clear()
            self.position = position
        self._streak.append(outcome)
        self.tripped = len(self._streak) >= self._after
        return self._streak if self.tripped else []


def _kind(outcome: Outcome) -> tuple[str | None, int | None]:
    return outcome.error_type, outcome.error_code


class Patience:
    """How long nothing but "not now" may come: 15 minutes, more where the server itself told a longer wait.

    Seconds, monotonic.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._seconds = GATE_PATIENCE

    def answered(self) -> None:
        """Any success makes it whole again."""
        self._since, self._seconds = None, GATE_PATIENCE

    def refused(self, now: float, wait: float) -> None:
        """Note a "not now" after which the question waits so long."""
        self._since = now if self._since is None else self._since
        self._seconds = max(self._seconds, 1.5 * wait)  # so that there is a try after the wait

    def lost(self, now: float) -> float:
        """Give for how long there was no success once that is too long, else 0."""
        waited = 0.0 if self._since is None else now - self._since
        return waited if waited > self._seconds else 0.0
