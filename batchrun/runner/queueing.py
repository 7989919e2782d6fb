"""Whose turn it is: a suspect alone, else what was put back, a due retry, a new question. Seconds, monotonic."""

import heapq
from collections.abc import Iterator

from batchrun.runner.work import Work

NEVER = float("inf")


class Queue:
    """The questions that wait: for their turn, for permits, for their retry. None of them holds a slot."""

    def __init__(self, source: Iterator[Work]) -> None:
        self._source: Iterator[Work] | None = source
        self._spare: Work | None = None
        self._retries: list[tuple[float, int, Work]] = []
        self._sequence = 0
        self._suspect: Work | None = None
        self._suspect_due = NEVER
        self._position = 0
        self.next_at = NEVER
        """When, at the latest, `take` is worth calling again though nothing else happens."""

    @property
    def waiting(self) -> int:
        """How many questions wait for a retry."""
        return len(self._retries)

    def is_empty(self) -> bool:
        """Tell whether nothing is left to ask; this takes a look at the next new question."""
        if not self._retries and self._spare is None and self._suspect is None:
            self._spare = self._fresh()
            return self._spare is None
        return False

    @property
    def left(self) -> list[Work]:
        """What waits, without the questions that never had their turn."""
        waiting = [work for _, _, work in self._retries]
        return waiting + [work for work in (self._spare, self._suspect) if work is not None]

    @property
    def position(self) -> int:
        """The row position below which every question has had its turn and waits no more."""
        return min((work.position for work in self.left), default=self._position)

    def take(self, now: float) -> Work | None:
        """Give the question whose turn it is; None if there is none now."""
        if self._suspect is not None:
            self.next_at = self._suspect_due
            if self._suspect_due > now:
                return None
            self._suspect_due = NEVER
            return self._suspect
        if (spare := self._spare) is not None:
            self._spare = None
            return spare
        if self._retries and self._retries[0][0] <= now:
            return heapq.heappop(self._retries)[2]
        self.next_at = self._retries[0][0] if self._retries else NEVER
        return self._fresh()

    def _fresh(self) -> Work | None:
        work = next(self._source, None) if self._source is not None else None
        if work is None:
            self._source = None
        else:
            self._position = work.position
        return work

    def put_back(self, work: Work, now: float) -> None:
        """Keep a question whose permits are not there; it is first the next time."""
        if work is self._suspect:
            self._suspect_due = now
        else:
            self._spare = work

    def retry(self, work: Work, due: float) -> None:
        """Keep a question until its retry is due."""
        self._sequence += 1
        heapq.heappush(self._retries, (due, self._sequence, work))

    def suspect(self, work: Work, due: float) -> bool:
        """Let nothing be sent but one confirming retry of this question; False if another one is the suspect."""
        if self._suspect is None or self._suspect is work:
            self._suspect, self._suspect_due = work, due
            return True
        return False

    def acquit(self, work: Work) -> None:
        """End the suspicion, if this question is the suspect."""
        if self._suspect is work:
            self._suspect = None
