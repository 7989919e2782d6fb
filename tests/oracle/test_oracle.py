"""Whole jobs and lives, drawn by chance, against a naive batchrun (model.py) and a server with faults (server.py).

`make test` lives the same lives each time. ORACLE_LIVES sets a number of others, ORACLE_SEED repeats a run,
ORACLE_PACKAGE names a folder with another copy of the package, and ORACLE_SHRINK=0 shows a failure as it was drawn.
"""

import functools
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings

from oracle.lives import Combination, Life, all_pairs, covering, lives, pairs_of
from oracle.living import live
from oracle.server import Server, serving
from oracle.zygote import Zygote, zygote

LIVES = int(os.environ.get("ORACLE_LIVES", "300"))
SHARE = 25
"""Lives in one test, so that the workers of pytest-xdist share them."""

PHASES = [Phase.generate] if os.environ.get("ORACLE_SHRINK") == "0" else [Phase.generate, Phase.shrink]

SHARES = max(1, LIVES // SHARE)
Note = Callable[[str, object], None]
ENOUGH = 0.98
"""The share of all pairs of choices that the lives of one run must hold, if there are this many at least."""

FEWEST = 300


@pytest.fixture(scope="session")
def first_seed(testrun_uid: str) -> int:
    """Return the run's seed, the same in all workers; a new one each time where a number of lives is named."""
    if "ORACLE_LIVES" not in os.environ:
        return int(os.environ.get("ORACLE_SEED", "1"))
    return int(os.environ.get("ORACLE_SEED") or int(testrun_uid[:8], 16) % 1_000_000)


@pytest.fixture(scope="module")
def machine() -> Iterator[tuple[Server, Zygote]]:
    """Serve, and keep a warm process that forks."""
    with serving() as server, zygote() as warm:
        yield server, warm


@pytest.mark.timeout(1500)  # hypothesis shrinks a failure for five minutes at most
@pytest.mark.parametrize("share", range(SHARES))
def test_lives(share: int, first_seed: int, machine: tuple[Server, Zygote], record_property: Note) -> None:
    """Whatever a job is and lives through, it brings what the naive batchrun expects."""
    server, warm = machine
    counted: Counter[str] = Counter()
    record_property("oracle_seed", first_seed)
    combinations = _combinations(first_seed)[share * SHARE : (share + 1) * SHARE]
    for number, combination in enumerate(combinations, share * SHARE):
        _one_life(number, first_seed, combination, server, warm, counted)
    record_property("oracle_lives", dict(counted))


@functools.cache
def _combinations(first_seed: int) -> list[Combination]:
    """Return the combinations of all lives: drawn once, as each share would otherwise draw those before it again."""
    return list(itertools.islice(covering(first_seed), max(SHARES * SHARE, FEWEST)))


def _one_life(
    number: int, first_seed: int, combination: Combination, server: Server, warm: Zygote, counted: Counter[str]
) -> None:
    """Draw one life of a combination and live it; a failure is shrunk."""
    drawn = 0

    @seed(first_seed * 100_000 + number)
    @settings(
        max_examples=2,
        deadline=None,
        database=None,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )
    @given(lives(combination))
    def body(life: Life) -> None:
        nonlocal drawn
        drawn += 1
        if drawn == 1 and number % SHARE:
            return  # hypothesis begins with the simplest life, which is the same each time
        story = life.story(server.url).encode("utf-8", "backslashreplace").decode()  # a file's odd name
        note(f"ORACLE_SEED={first_seed}, life {number}\n{story}")
        counted["lives"] += 1
        live(life, server, warm)

    body()


def test_pairs_of_choices_are_covered(first_seed: int, record_property: Note) -> None:
    """The lives of one run hold nearly every pair of everyday choices."""
    found = {pair for combination in _combinations(first_seed) for pair in pairs_of(combination)}
    wanted = list(all_pairs())
    missing = [pair for pair in wanted if pair not in found]
    record_property("oracle_pairs", f"{len(wanted) - len(missing)} of {len(wanted)} pairs of choices")
    assert len(missing) <= (1 - ENOUGH) * len(wanted), missing
