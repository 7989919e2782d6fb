"""Stops a run whose requests are refused for a reason that nobody explains: no row of it is failed without proof."""

from collections.abc import Sequence

from batchrun.records import Outcome

UNEXPLAINED = "unexplained"
"""The ending of a failure that may be the account's or the server's, as long as nothing has succeeded."""

PROBES = 15
"""Requests, one at a time, that may bring a success before the run stops: twenty bad rows may stand first in a file."""

NOWHERE = float("inf")


class Breaker:
    """Counts equal failures that blame nobody, since the last success. `after` of them: probe. 0: never.

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
