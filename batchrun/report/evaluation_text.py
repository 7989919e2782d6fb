"""An evaluation for people and for programs."""

from collections.abc import Iterator, Mapping
from typing import Any

from batchrun.money import cost, from_usd
from batchrun.report.calibration import (
    FEW,
    FEWEST,
    Chosen,
    Scored,
    at_thresholds,
    expected_error,
    threshold_for,
)
from batchrun.report.evaluation import Confusion, Evaluation, Share, percent
from batchrun.report.statistics import LabelScores
from batchrun.report.texttable import Table
from batchrun.terminal import plural

SHOWN_LABELS, SHOWN_CONFUSIONS = 20, 10


def evaluation_facts(found: Evaluation, minimum: float | None = None) -> dict[str, Any]:
    """Return an evaluation for JSON: shares from 0 to 1, money in USD. `minimum`: the accuracy that is wanted."""
    per_question = found.cost_per_question_usd
    return {
        "answer": found.gold.answer,
        "gold": found.gold.column,
        "compared": str(found.gold.rule),
        "accuracy": _accuracy_facts(found),
        "reviewed": found.reviewed,
        "accuracy_answered": found.answered.facts(),
        "failed": found.accuracy.total - found.answered.total,
        "pending": found.pending,
        "contradictory": found.contradictory,
        "macro_f1": found.macro_f1,
        "labels": [_label_facts(one) for one in found.labels],
        "confusions": [
            {"gold": one.gold, "answer": one.answer, "questions": one.questions, "rows": one.rows}
            for one in found.confusions
        ],
        "calibration": _calibration_facts(found.scored, minimum) if found.scored else None,
        "cost_per_1000_usd": None if per_question is None else per_question * 1_000,
        "cost_per_right_usd": found.cost_per_right_usd,
        "cost_kind": found.cost_kind,
    }


def _accuracy_facts(found: Evaluation) -> dict[str, Any]:
    facts = found.accuracy.facts()
    if found.reviewed:  # rows that were picked have no interval
        facts |= {"low": None, "high": None}
    return facts


def _label_facts(one: LabelScores) -> Mapping[str, Any]:
    return {name: getattr(one, name) for name in ("label", "precision", "recall", "f1", "support", "answered")}


def _calibration_facts(scored: list[Scored], minimum: float | None) -> dict[str, Any]:
    chosen = _chosen(scored, minimum)
    return {
        "n": len(scored),
        "expected_calibration_error": expected_error(scored),
        "thresholds": [
            {
                "threshold": one.threshold,
                "coverage": one.coverage,
                "answers": one.answers,
                "right": one.right,
            }
            for one in at_thresholds(scored)
        ],
        "threshold": chosen and {name: getattr(chosen, name) for name in ("threshold", "accuracy", "coverage")},
    }


def _chosen(scored: list[Scored], minimum: float | None) -> Chosen | None:
    return None if minimum is None or len(scored) < FEWEST else threshold_for(scored, minimum)


def evaluation_lines(found: Evaluation, *, width: int, encoding: str, minimum: float | None = None) -> Iterator[str]:
    """Yield an evaluation as lines for a terminal."""
    yield from sentences(found)
    if found.scored:
        yield ""
        yield from calibration_sentences(found.scored, minimum)
        yield from calibration_table(found.scored).lines(width, encoding)
    if found.labels:
        yield ""
        yield from _label_table(found).lines(width, encoding)
    if found.confusions:
        yield ""
        rows = [
            (one.gold, "(no answer)" if one.answer is None else one.answer, f"{one.questions:,}", _rows(one))
            for one in found.confusions[:SHOWN_CONFUSIONS]
        ]
        yield from Table(("gold", "answer", "questions", "rows"), rows, {2}).lines(width, encoding)


def sentences(found: Evaluation) -> Iterator[str]:
    """Yield how many answers are right, the counts behind that, and the cost of a right answer."""
    gold = found.gold
    if found.reviewed:
        yield f'a person agrees with the model\'s "{gold.answer}" in {found.accuracy.counts("reviewed questions")}'
        yield "  reviewed rows were picked, not drawn at random: this says nothing about the other rows"
    else:
        yield f'"{gold.answer}" equals "{gold.column}" for {found.accuracy.of("distinct questions")}'
    if failed := found.accuracy.total - found.answered.total:
        answered = found.answered.counts("questions") if found.reviewed else found.answered.of("questions")
        yield f"  {plural(failed, 'failed question')} counted as wrong; without them {answered}"
    yield f"  compared {gold.rule}"
    if found.other_case and not gold.rule.ignore_case:
        yield f"  {plural(found.other_case, 'wrong answer')} would be right with --ignore-case"
    if found.contradictory:
        yield f"  {plural(found.contradictory, 'question')} with different gold in equal rows; the most frequent counts"
    if found.pending:
        yield f"  {plural(found.pending, 'question')} with gold not answered yet, and not counted"
    yield _money(found)


def _money(found: Evaluation) -> str:
    if found.cost_per_question_usd is None:
        return cost(0, found.cost_kind)
    text = f"cost: {cost(from_usd(found.cost_per_question_usd * 1_000), found.cost_kind)} per 1,000 questions"
    if found.cost_per_right_usd is None:
        return text
    return f"{text}, {cost(from_usd(found.cost_per_right_usd), found.cost_kind)} per right answer"


def calibration_sentences(scored: list[Scored], minimum: float | None = None) -> Iterator[str]:
    """Yield what probabilities are worth, and from which one answers reach the accuracy `minimum`."""
    yield f"probabilities: expected calibration error {expected_error(scored):.3f} over {len(scored):,} answers"
    if minimum is None:
        return
    if len(scored) < FEWEST:
        yield f"no threshold is chosen from {len(scored)} labelled questions: label at least {FEWEST}"
    elif (chosen := _chosen(scored, minimum)) is None:
        yield f"no threshold reaches {percent(minimum)}"
    else:
        yield (
            f"answers with a probability of at least {chosen.threshold:.3g} reach {percent(minimum)}: "
            f"{percent(chosen.accuracy)} right, {percent(chosen.coverage)} of all answers (estimated out of bag)"
        )
        if len(scored) < FEW:
            yield f"  {len(scored)} labelled questions are few for a threshold: label {FEW} to rely on it"


def calibration_table(scored: list[Scored]) -> Table:
    """Return coverage and accuracy at some thresholds."""
    rows = [
        (f"{one.threshold:g}", percent(one.coverage), percent(Share(one.right, one.answers).value))
        for one in at_thresholds(scored)
    ]
    return Table(("at least", "coverage", "right"), rows, {0, 1, 2})


def _label_table(found: Evaluation) -> Table:
    labels, title = found.labels, ""
    if len(labels) > SHOWN_LABELS:
        labels = sorted(labels, key=lambda one: (not one.support, one.f1 or 0.0, -one.support))[:SHOWN_LABELS]
        title = f"the {SHOWN_LABELS} of {len(found.labels)} labels with the lowest F1 (--json has all)"
    rows = [
        (one.label, percent(one.precision), percent(one.recall), percent(one.f1), f"{one.support:,}") for one in labels
    ]
    rows.append(("mean of all labels", "", "", percent(found.macro_f1), f"{found.accuracy.total:,}"))
    return Table(("label", "precision", "recall", "F1", "support"), rows, {1, 2, 3, 4}, title)


def _rows(one: Confusion) -> str:
    shown = list(map(str, one.rows))
    if one.questions > len(one.rows):
        shown.append("…")
    return ", ".join(shown)
