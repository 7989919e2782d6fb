"""When a request goes alone: before anything is known of the server, and before its prompt cache is warm."""

from dataclasses import dataclass, field

_TRIES = 3
"""Replies without an answer that come alone before a cold cache; a server that only fails must not be asked so long."""


@dataclass(slots=True)
class Alone:
    """Whether the next request waits for the one in flight.

    `first`: the first reply of a run comes alone. `cache_life`: seconds after its last use for which the provider's
    prompt cache keeps the beginning of the prompts, None where nothing is cached: requests that start together with a
    cold cache would each pay for writing it, so one goes alone until it is answered.
    """

    first: bool
    cache_life: float | None = None
    _replies: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """Begin with a cold cache."""
        self._replies = _TRIES if self.cache_life is not None else int(self.first)

    def needed(self, now: float, in_flight: int, succeeded_at: float | None) -> bool:
        """Check whether the next request goes alone; `succeeded_at` is when the server last answered."""
        if self.cache_life is not None and succeeded_at is not None:
            # An answer from before the pause says nothing about the cache now.
            if succeeded_at >= self._since:
                self._replies = 0
            if not in_flight and now - succeeded_at > self.cache_life and succeeded_at >= self._since:
                self._replies, self._since = _TRIES, now
        return self._replies > 0

    def replied(self) -> None:
        """Count a reply."""
        if self._replies:
            self._replies -= 1
