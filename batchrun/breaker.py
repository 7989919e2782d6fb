"""The circuit breaker: so many unexplained equal failures in a row, without any success, stop the run."""

from batchrun.records import Outcome


class Breaker:
    """Counts failures that blame nobody. `after` = 0 never trips."""

    def __init__(self, after: int) -> None:
        self._after = after
        self._streak: list[Outcome] = []
        self.tripped = False

    def success(self) -> None:
        """Any success starts the count anew."""
        self._streak.clear()

    def failure(self, outcome: Outcome) -> list[Outcome]:
        """Count one; give the failures that are taken back: none, or all of the streak once it has tripped."""
        if self.tripped:
            return [outcome]
        if not self._after:
            return []
        if self._streak and (self._streak[-1].error_type, self._streak[-1].error_code) != (
            outcome.error_type,
            outcome.error_code,
        ):
            self._streak.clear()
        self._streak.append(outcome)
        self.tripped = len(self._streak) >= self._after
        return self._streak if self.tripped else []
