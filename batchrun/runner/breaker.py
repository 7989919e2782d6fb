"""Stops a run whose requests are refused for a reason that nobody explains: no row of it is failed without proof."""

from batchrun.records import Outcome

PROBES = 15
"""Requests, one at a time, that may bring a success before the run stops: twenty bad rows may stand first in a file."""

NOWHERE = float("inf")


class Breaker:
    """Counts equal failures that blame nobody, since the last success. `after` of them: probe. 0: never.

    They are recorded as failed and taken back (pending) where no success ever proves that the server works.
    """

    def __init__(self, after: int) -> None:
        self._after = after
        self._equal = 0
        self.unproven: list[Outcome] = []
        """The failures since the last success."""
        self.position = NOWHERE
        """The row position from which on failures may still be taken back."""
        self.tripped = False

    @property
    def probing(self) -> bool:
        """Whether requests go one at a time, since all of the last ones were refused alike."""
        return bool(self._after) and self._equal >= self._after

    def success(self) -> None:
        """Note a success: what failed before it failed for a reason of its own."""
        if not self.tripped:
            self.unproven.clear()
            self._equal, self.position = 0, NOWHERE

    def failure(self, outcome: Outcome, position: int) -> None:
        """Note a failure; `tripped` is true from the one on that stops the run."""
        if self.unproven and _kind(self.unproven[-1]) != _kind(outcome):
            self._equal = 0
        self._equal += 1
        self.position = min(self.position, position)
        self.unproven.append(outcome)
        self.tripped = self.tripped or (bool(self._after) and self._equal >= self._after + PROBES)


def _kind(outcome: Outcome) -> tuple[str | None, int | None]:
    return outcome.error_type, outcome.error_code
