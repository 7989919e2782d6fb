"""An event loop whose clock jumps to the next timer: hours pass at once, and a hang is an error."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_YEAR = 365 * 86_400.0


class HangError(Exception):
    """Nothing is left that could wake the program, or it never ends."""


class _Jumping(selectors.SelectSelector):
    """Waits for nothing: what would be a wait moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise HangError("nothing is left that could wake the program")
        self.now += timeout or 1e-7
        self.turns += 1
        if self.now > _YEAR or self.turns > 1_000_000:
            raise HangError("the program never ends")
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time begins at 1000 seconds and passes only while everything waits."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self._jumping.now


def run(program: Coroutine[Any, Any, T]) -> T:
    """Run a program in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(program)
