"""Runs the whole harness and prints its figures: `make crash`, or `python -m crash [kills calls failures …]`."""

import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from crash import damage, kills, starts, syscalls

SEED = 1
KILLS = {"SIGKILL": 1_000, "SIGTERM": 60, "SIGINT": 60, "SIGINT twice": 40, "SIGTERM, then SIGKILL": 40}
PACE_KILLS, PACE_IN_FLIGHT = 300, 18
"""SIGKILLs at about 1,000 answers a second: 18 in flight, each answered after 5 to 30 ms."""
POINTS = 38
"""Kills at each of the eight calls: 304."""
FAILURES = 54
PLACES = 100
STARTS = 100


def _kills(folder: Path) -> Iterable[str]:
    return kills.kill_until(KILLS, folder, SEED, tell=_tell).lines()


def _pace(folder: Path) -> Iterable[str]:
    return kills.kill_until({"SIGKILL": PACE_KILLS}, folder, SEED, limits={"concurrency": PACE_IN_FLIGHT}).lines()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201  (a run of half an hour should show that it lives)


def _calls(folder: Path) -> Iterable[str]:
    return [reason] if (reason := syscalls.why_not()) else syscalls.kill_at_calls(POINTS, folder, SEED).lines()


def _failures(folder: Path) -> Iterable[str]:
    return [reason] if (reason := syscalls.why_not()) else syscalls.fail_at_calls(FAILURES, folder, SEED).lines()


def _damage(folder: Path) -> Iterable[str]:
    return damage.lines(damage.damage_at(PLACES, folder, SEED))


def _starts(folder: Path) -> Iterable[str]:
    return [f"{len(starts.start_together(STARTS, folder))} starts at once: one sent, the others left with exit 75"]


PARTS: dict[str, Callable[[Path], Iterable[str]]] = {
    "kills": _kills,
    "pace": _pace,
    "calls": _calls,
    "failures": _failures,
    "damage": _damage,
    "starts": _starts,
}


def main() -> None:
    """Run the parts that are named, or all; the first broken promise ends it with an AssertionError."""
    # A shell ignores SIGINT for what it starts with &, and a run keeps to what its parent ignores.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in sys.argv[1:] or PARTS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="crash-") as folder:
            for line in PARTS[name](Path(folder)):
                print(line, flush=True)  # noqa: T201  (the figures are what it is for)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)  # noqa: T201  (as above)


main()
