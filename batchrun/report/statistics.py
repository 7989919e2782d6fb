"""Statistics of right and wrong answers: short formulas, each with its source.

wilson                   interval of a share: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209, formula of Newcombe,
                         Statistics in Medicine 17 (1998) 857, method 3
mcnemar                  exact test of two models on the same rows: Q. McNemar, Psychometrika 12 (1947) 153, as the
                         binomial test of the rows that only one of them has right
labels_needed            rows for that test: R. J. Connor, Biometrics 43 (1987) 207
label_scores             precision, recall and F1 of each label: van Rijsbergen, Information Retrieval (1979), ch. 7
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.95
"""Of every interval."""

POWER = 0.8
"""The chance to see a difference that is there, for `labels_needed`."""

_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
_Z_POWER = NormalDist().inv_cdf(POWER)


@dataclass(frozen=True, slots=True)
class LabelScores:
    """How well one label is found. Scores are None where nothing can be divided by: no answer, or no gold row."""

    label: str
    support: int
    answered: int
    right: int
    precision: float | None
    recall: float | None
    f1: float | None


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, from 0 to 1; of nothing it is all of it."""
    if total == 0:
        return 0.0, 1.0
    share, square = right / total, _Z * _Z
    centre = share + square / (2 * total)
    spread = _Z * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    low, high = (centre - spread) / (1 + square / total), (centre + spread) / (1 + square / total)
    # Rounding would leave 1e-17 where the interval ends at 0 or 1.
    if right == 0:
        low = 0.0
    if right == total:
        high = 1.0
    return low, high


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value: how likely so uneven a split is if both models are equally good.

    The arguments count rows that only one of the two has right.
    """
    total = only_first + only_second
    # Whole numbers throughout: with 2,000 uneven rows the binomial coefficients are beyond any float.
    splits = tail = 1
    for number in range(min(only_first, only_second)):
        splits = splits * (total - number) // (number + 1)
        tail += splits
    return min(1.0, 2 * tail / (1 << total))


def labels_needed(only_first: int, only_second: int, total: int) -> int | None:
    """Return how many labelled rows would show the difference that was seen, at p < 0.05 with a power of 80 %.

    None where no difference was seen. `total` counts the labelled rows of which some differ.
    """
    if only_first == only_second:
        return None
    differ, lead = (only_first + only_second) / total, (only_second - only_first) / total
    return math.ceil((_Z * math.sqrt(differ) + _Z_POWER * math.sqrt(differ - lead * lead)) ** 2 / (lead * lead))


def label_scores(pairs: Mapping[tuple[str, str | None], int]) -> list[LabelScores]:
    """Return the scores of each label by counts of (gold, answer), most frequent gold label first.

    None stands for a missing answer: it counts against the recall of its gold label.
    """
    support, answered, right = Counter[str](), Counter[str](), Counter[str]()
    for (gold, answer), number in pairs.items():
        support[gold] += number
        if answer is not None:
            answered[answer] += number
        if answer == gold:
            right[gold] += number
    labels = sorted({*support, *answered}, key=lambda label: (-support[label], label))
    return [_scores(label, support[label], answered[label], right[label]) for label in labels]


def _scores(label: str, support: int, answered: int, right: int) -> LabelScores:
    precision = right / answered if answered else None
    recall = right / support if support else None
    return LabelScores(label, support, answered, right, precision, recall, 2 * right / (support + answered))
