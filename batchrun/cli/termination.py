"""SIGTERM and SIGHUP outside the sending: the program ends as after Ctrl-C."""

import signal
from types import FrameType
from typing import NoReturn

from batchrun.errors import Terminated


def raise_on_termination() -> None:
    """Outside the sending, make SIGTERM and SIGHUP end the program like Ctrl-C, so that everything is closed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup ignores SIGHUP, so that a run outlives its terminal.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated
