"""Probabilities of answers: formulas against scikit-learn's curve and simulations."""

import random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from batchrun.report.calibration import Reservoir, Scored, at_thresholds, expected_error, threshold_for
from batchrun.report.evaluation_text import calibration_sentences


def simulated(count: int, seed: int) -> list[Scored]:
    """Return answers that are right as often as their probabilities say."""
    chance = random.Random(seed)  # noqa: S311  (a simulation)
    probabilities = [chance.uniform(0.5, 1) for _ in range(count)]
    return [(probability, chance.random() < probability) for probability in probabilities]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.001, 0.999), st.booleans()), min_size=1))
def test_the_calibration_error_is_that_of_scikit_learns_curve(scored: list[Scored]) -> None:
    """The gaps of scikit-learn's ten bins, weighted by their counts, add up to it."""
    from sklearn.calibration import calibration_curve  # noqa: PLC0415  (the import takes seconds, of each worker)

    probabilities = np.array([probability for probability, _ in scored])
    right = np.array([is_right for _, is_right in scored])
    edges = np.linspace(0, 1, 11)
    # On an edge, or a rounding away from it, the two may put an answer into different bins.
    assume(np.abs(probabilities[:, None] - edges).min() > 1e-9)
    accuracy, confidence = calibration_curve(right, probabilities, n_bins=10)
    counts = np.histogram(probabilities, edges)[0]
    assert expected_error(scored) == pytest.approx(
        float(np.sum(np.abs(accuracy - confidence) * counts[counts > 0]) / len(scored))
    )


def test_honest_probabilities_have_a_small_error() -> None:
    """Probabilities that are what they say have an error near 0; those that say 1 have their share of wrong answers."""
    scored = simulated(5_000, 1)
    assert expected_error(scored) < 0.02
    wrong = sum(not is_right for _, is_right in scored) / len(scored)
    assert expected_error([(1.0, is_right) for _, is_right in scored]) == pytest.approx(wrong)


def test_coverage_falls_and_accuracy_rises_with_the_threshold() -> None:
    """Counts at each threshold are those of a plain filter."""
    scored = simulated(1_000, 2)
    for one in at_thresholds(scored):
        kept = [is_right for probability, is_right in scored if probability >= one.threshold]
        assert (one.answers, one.right, one.coverage) == (len(kept), sum(kept), len(kept) / 1_000)


def test_a_chosen_threshold_holds_on_other_questions() -> None:
    """Over 30 simulated sets the chosen threshold reaches 0.9 on average on questions that nobody labelled."""
    fresh = simulated(5_000, 99)
    reached, estimated = [], []
    for seed in range(30):
        chosen = threshold_for(simulated(200, seed), 0.9)
        assert chosen is not None
        kept = [is_right for probability, is_right in fresh if probability >= chosen.threshold]
        reached.append(sum(kept) / len(kept))
        estimated.append(chosen.accuracy)
    assert 0.88 <= sum(reached) / 30 <= 0.93
    assert all(one >= 0.9 for one in estimated)


def test_what_no_threshold_reaches_is_not_promised() -> None:
    """Coin flips with high probabilities reach nothing."""
    chance = random.Random(3)  # noqa: S311  (a simulation)
    assert threshold_for([(chance.uniform(0.9, 1), chance.random() < 0.5) for _ in range(300)], 0.9) is None


def test_any_number_of_answers_is_judged_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the room for them a random part of the answers stands for all."""
    monkeypatch.setattr("batchrun.report.calibration.MOST", 500)
    reservoir = Reservoir()
    for number in range(20_000):
        reservoir.add((number / 20_000, True))
    assert len(reservoir.scored) == 500
    assert sum(probability for probability, _ in reservoir.scored) / 500 == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("count", "said", "warned"),
    [(49, "no threshold is chosen from 49", False), (50, "out of bag", True), (199, "out of bag", True),
     (200, "out of bag", False)],
)  # fmt: skip
def test_a_threshold_from_few_labels_is_refused_or_warned_of(count: int, said: str, *, warned: bool) -> None:
    """Below 50 labelled questions no threshold is chosen, below 200 there is a warning, at 200 none."""
    lines = list(calibration_sentences([(0.9, True)] * count, 0.8))
    assert any(said in line for line in lines)
    assert any("are few for a threshold" in line for line in lines) == warned


def test_a_threshold_is_printed_with_all_its_digits() -> None:
    """The printed threshold is the chosen one: 0.999612 is not shown as 1, above which there is no answer."""
    scored = [(0.999612, True)] * 80 + [(0.9, False)] * 80
    lines = list(calibration_sentences(scored, 0.9))
    assert any("a probability of at least 0.999612 reach" in line for line in lines)
