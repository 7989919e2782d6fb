"""What probabilities are worth: accuracy of the surer answers, calibration error, and the threshold to trust.

expected_error   mean distance of probability and accuracy over ten equal bins: M. P. Naeini, G. F. Cooper,
                 M. Hauskrecht, AAAI 2015, 2901
threshold_for    out-of-bag estimate: B. Efron, J. Am. Stat. Assoc. 78 (1983), 316; L. Breiman, Out-of-bag
                 estimation (1996)
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

BINS = 10
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
FEWEST, FEW = 50, 200
"""Labelled questions below which no threshold is chosen, and below which there is a warning."""

MOST = 5_000
"""Answers by which probabilities are judged: of more, that many drawn at random."""

_BAGS, _FEWEST_INSIDE = 100, 10

Scored = tuple[float, bool]
"""An answer's probability, and whether it is right."""


class Reservoir:
    """Takes any number of answers and holds at most MOST of them, each with the same chance."""

    def __init__(self) -> None:
        self.scored: list[Scored] = []
        self._taken, self._chance = 0, random.Random(0)  # noqa: S311  (the same answers each time)

    def add(self, one: Scored) -> None:
        """Take one answer."""
        self._taken += 1
        if len(self.scored) < MOST:
            self.scored.append(one)
        # Algorithm R: each answer so far is held with the same chance, however many there are.
        elif (place := self._chance.randrange(self._taken)) < MOST:
            self.scored[place] = one


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """Of the answers at least that probable: which share of all they are, how many there are, and are right."""

    threshold: float
    coverage: float
    answers: int
    right: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """The threshold for an accuracy; `accuracy` and `coverage` are estimated on questions it was not chosen by."""

    threshold: float
    accuracy: float
    coverage: float


def at_thresholds(scored: Sequence[Scored]) -> list[AtThreshold]:
    """Return coverage and accuracy at each of THRESHOLDS."""
    found = []
    for threshold in THRESHOLDS:
        right = [is_right for probability, is_right in scored if probability >= threshold]
        found.append(AtThreshold(threshold, len(right) / len(scored), len(right), sum(right)))
    return found


def expected_error(scored: Sequence[Scored]) -> float:
    """Return the expected calibration error, from 0 (probabilities are what they say) to 1."""
    bins: dict[int, list[Scored]] = {}
    for one in scored:
        bins.setdefault(min(BINS - 1, int(one[0] * BINS)), []).append(one)
    gaps = (abs(sum(is_right - probability for probability, is_right in some)) for some in bins.values())
    return sum(gaps) / len(scored)


def threshold_for(scored: Sequence[Scored], minimum: float) -> Chosen | None:
    """Return the lowest threshold whose answers are right as often as `minimum`, also on questions outside the choice.

    Each of 100 bags (as many questions, drawn with replacement) chooses its lowest threshold. The median of them is
    taken, or the next higher one of which the questions outside the bags are right that often. None: out of reach.
    """
    ordered = sorted(scored, reverse=True)
    chance = random.Random(0)  # noqa: S311  (the same bags each time)
    bags = [_bag(ordered, chance) for _ in range(_BAGS)]
    chosen = (next((one.threshold for one in bag if one.inside >= minimum), math.inf) for bag in bags)
    for threshold in sorted(chosen)[_BAGS // 2 :]:
        cuts = [cut for bag in bags if (cut := next((one for one in bag if one.threshold >= threshold), None))]
        answers, right = sum(one.outside for one in cuts), sum(one.right for one in cuts)
        if answers and right >= minimum * answers:
            return Chosen(threshold, right / answers, answers / sum(one.left_out for one in cuts))
    return None


@dataclass(frozen=True, slots=True)
class _Cut:
    """A threshold in one bag: accuracy inside the bag; answers outside, right ones; all questions left out."""

    threshold: float
    inside: float
    outside: int
    right: int
    left_out: int


def _bag(ordered: Sequence[Scored], chance: random.Random) -> list[_Cut]:
    """Return all thresholds of a bag, the lowest first; `ordered` begins with the surest answer."""
    weights = [0] * len(ordered)
    for place in chance.choices(range(len(ordered)), k=len(ordered)):
        weights[place] += 1
    left_out = weights.count(0)
    cuts = []
    inside = inside_right = outside = outside_right = 0
    for place, ((probability, is_right), weight) in enumerate(zip(ordered, weights, strict=True), 1):
        inside += weight
        inside_right += weight * is_right
        outside += not weight
        outside_right += is_right and not weight
        # Equal probabilities are on one side of a threshold.
        is_last = place == len(ordered) or ordered[place][0] != probability
        if is_last and inside >= _FEWEST_INSIDE:
            cuts.append(_Cut(probability, inside_right / inside, outside, outside_right, left_out))
    return cuts[::-1]
