"""Our formulas against scikit-learn and scipy, and Wilson's interval against a simulation."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.money import CostKind
from batchrun.report.figures import JobFigures
from batchrun.report.statistics import label_scores, labels_needed, mcnemar, wilson

SHARES = st.integers(1, 2_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@given(SHARES)
def test_wilson_is_that_of_scipy(share: tuple[int, int]) -> None:
    """The interval is its to nine digits, for every share."""
    from scipy.stats import binomtest  # noqa: PLC0415  (the import takes seconds, of each worker)

    right, total = share
    found = wilson(right, total)
    theirs = binomtest(right, total).proportion_ci(method="wilson")
    assert found == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_wilson_covers_the_truth_as_often_as_it_says() -> None:
    """Of 2,000 simulated sets of labels 94 to 96 % of the intervals hold the true accuracy."""
    chance = random.Random(21)  # noqa: S311  (a simulation)
    covered = 0
    for _ in range(2_000):
        truth, total = chance.uniform(0.5, 0.99), chance.randint(50, 600)
        low, high = wilson(sum(chance.random() < truth for _ in range(total)), total)
        covered += low <= truth <= high
    assert 0.94 <= covered / 2_000 <= 0.96


@given(st.lists(st.sampled_from([0.1, 0.2, 1.5, 3.0]), min_size=1, max_size=70), st.sampled_from([0.5, 0.95]))
def test_a_share_of_the_answers_came_within_its_latency(seconds: list[float], share: float) -> None:
    """The latency of a share is the lowest one within which at least that share of the answers came."""
    latency = JobFigures("a", CostKind.CHARGED, seconds=Counter(seconds)).latency(share)
    lowest = next(one for one in sorted(seconds) if sum(other <= one for other in seconds) >= share * len(seconds))
    assert latency == lowest


def test_no_labels_leave_everything_possible() -> None:
    """The interval of nothing is the whole."""
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_test_of_scipy(first: int, second: int) -> None:
    """The exact p-value is its, also for large counts; where nothing differs it is 1."""
    from scipy.stats import binomtest  # noqa: PLC0415  (as above)

    theirs = binomtest(first, first + second).pvalue if first + second else 1
    assert mcnemar(first, second) == pytest.approx(theirs, abs=1e-9)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["a", "b", "c", "e", None])), min_size=1))
def test_label_scores_are_those_of_scikit_learn(pairs: list[tuple[str, str | None]]) -> None:
    """Precision, recall, F1 and support are theirs; what is not answered counts as another label."""
    from sklearn.metrics import precision_recall_fscore_support  # noqa: PLC0415  (as above)

    scores = label_scores(Counter(pairs))
    precision, recall, f1, support = precision_recall_fscore_support(
        [gold for gold, _ in pairs],
        [answer or "none" for _, answer in pairs],
        labels=[score.label for score in scores],
        zero_division=0,
    )
    assert [score.precision or 0 for score in scores] == pytest.approx(list(precision))
    assert [score.recall or 0 for score in scores] == pytest.approx(list(recall))
    assert [score.f1 for score in scores] == pytest.approx(list(f1))
    assert [score.support for score in scores] == list(support)


def test_the_labels_that_are_needed_settle_it() -> None:
    """With that many labels McNemar's test sees the difference in 80 % of simulated sets, give or take five."""
    needed = labels_needed(20, 40, 400)
    assert needed is not None
    chance = random.Random(4)  # noqa: S311  (a simulation)
    settled = 0
    for _ in range(400):
        split = Counter(chance.choices("-fs", (340, 20, 40), k=needed))
        settled += mcnemar(split["f"], split["s"]) < 0.05
    assert 0.72 <= settled / 400 <= 0.86
    assert labels_needed(3, 3, 100) is None
