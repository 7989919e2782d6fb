"""Whose turn it is: a put-back question, a due retry, a new one, then the last round.

Seconds, monotonic.
"""

import heapq
from collections.abc import Callable, Iterator

from batchrun.runner.work import Refusal, Work

NEVER = float("inf")
FEW = 20
"""So few refused questions may go one at a time at the end of a run."""

SHORT = 10
CONTROL_AT = 100
"""A run of more than SHORT new questions keeps one back until the others are asked: that far from the end, or the one
in the middle. Twelve bad rows at the end of a file look like an outage, until this control succeeds after them."""


class Queue:
    """The questions that wait: for their turn, for the limits, for their retry. None of them holds a slot."""

    def __init__(self, source: Iterator[Work], questions: int = 0) -> None:
        self._source: Iterator[Work] | None = source
        self._until_control = questions - min((questions - 1) // 2, CONTROL_AT) if questions > SHORT else 0
        self._control: Work | None = None
        self._spare: Work | None = None
        self._retries: list[tuple[float, int, Work]] = []
        self._deferred: list[Work] = []
        self._sequence = 0
        self.held: list[Refusal] = []
        """Questions that wait until another one shows whose their refusal is; `take` leaves them out."""
        self._position = 0
        self.next_at = NEVER
        """When, at the latest, `take` is worth calling again though nothing else happens."""

    @property
    def waiting(self) -> int:
        """How many questions wait for a retry."""
        return len(self._retries) + len(self._deferred) + len(self.held)

    def holds_only_refused(self, attempts: int) -> bool:
        """Check whether the few that are left were all refused so often: one row may never pass a limit."""
        if self._source is not None or self._spare is not None or not 0 < self.waiting <= FEW:
            return False
        return all(work.tries.gated >= attempts for work in self.remaining)

    def is_empty(self) -> bool:
        """Check whether nothing but held questions is left to ask; this takes a look at the next new question."""
        if not self._retries and not self._deferred and self._spare is None:
            self._spare = self._fresh()
            return self._spare is None
        return False

    @property
    def remaining(self) -> list[Work]:
        """What waits, without the questions that never had their turn."""
        return self._waiting + [refused.work for refused in self.held]

    @property
    def _waiting(self) -> list[Work]:
        waiting = [work for _, _, work in self._retries] + self._deferred
        return waiting + [work for work in (self._spare, self._control) if work is not None]

    @property
    def position(self) -> int:
        """The row position below which every question has had its turn and waits no more."""
        return min((work.position for work in self.remaining), default=self._position)

    def take(self, now: float, failed: Callable[[int], bool]) -> Work | None:
        """Return the question whose turn it is; None if there is none now.

        A due retry comes before a new question; not so if it `failed` since the last success: the server may be down.
        """
        if (spare := self._spare) is not None:
            self._spare = None
            return spare
        self.next_at = self._retries[0][0] if self._retries else NEVER
        due = self.next_at <= now
        new = None
        # A new question shows as well whether a server works again, and has lost no attempt yet.
        if not due or failed(self._retries[0][2].question):
            new = self._fresh()
        if new is None and due:
            return heapq.heappop(self._retries)[2]
        if new is None and self._deferred:
            return self._deferred.pop(0)
        return new

    def take_probe(self, now: float, tried: Callable[[int], bool]) -> Work | None:
        """Return the best question for a probe: one that did not fail in this outage, else the one that waits longest.

        None where nothing is left.
        """
        if self._spare is not None:
            return self.take(now, tried)
        untried = next((entry for entry in self._retries if not tried(entry[2].question)), None)
        if untried is None and (fresh := self._fresh()) is not None:
            return fresh
        if untried is None and self._deferred:
            return self._deferred.pop(0)
        if untried is None and not self._retries:
            return None
        entry = untried or min(self._retries)
        self._retries.remove(entry)
        # Linear in what waits, but a probe goes out once a second at most.
        heapq.heapify(self._retries)
        return entry[2]

    def _fresh(self) -> Work | None:
        """Return the next new question, the control as the last of them; None: no more."""
        work = next(self._source or iter(()), None)
        if work is None:
            self._source = None
            work, self._control = self._control, None
            return work
        self._position = work.position
        self._until_control -= 1
        if self._until_control == 0:
            self._control = work
            return self._fresh()
        return work

    def put_back(self, work: Work) -> None:
        """Keep a question that the limits do not admit yet; it is first the next time."""
        # It stays the first: behind smaller ones a large request would wait for ever for bytes or tokens.
        self._spare = work

    def retry(self, work: Work, due: float) -> None:
        """Keep a question until its retry is due."""
        self._sequence += 1
        # The number decides where two are due at once: heapq would compare the questions themselves.
        heapq.heappush(self._retries, (due, self._sequence, work))

    def defer(self, work: Work) -> None:
        """Keep a question for the last round: it is asked when all others are settled."""
        self._deferred.append(work)

    def drain(self) -> list[Work]:
        """Return what waits, and keep none of it but the held questions."""
        left = self._waiting
        self._retries, self._deferred, self._spare, self._control = [], [], None, None
        return left

    def release(self, sent_at: float = NEVER) -> list[Refusal]:
        """Return the held questions whose requests were sent until then, and hold them no longer."""
        released = [refused for refused in self.held if refused.work.sent_at <= sent_at]
        self.held = [refused for refused in self.held if refused.work.sent_at > sent_at]
        return released
