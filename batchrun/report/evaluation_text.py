"""An evaluation for people and for programs."""

from collections.abc import Iterator
from typing import Any

from batchrun.report.calibration import (
    FEW,
    FEWEST,
    Chosen,
    Scored,
    at_thresholds,
    expected_error,
    threshold_for,
)
from batchrun.report.evaluation import Evaluation
from batchrun.report.figures import Share, percent
from batchrun.report.gold import contradiction_text
from batchrun.report.texttable import Table
from batchrun.terminal import plural, short

SHOWN_LABELS, SHOWN_CONFUSIONS = 20, 10
_LABELS = 80  # characters of a list of labels


def evaluation_facts(found: Evaluation, minimum: float | None = None) -> dict[str, Any]:
    """Return an evaluation for JSON: shares from 0 to 1, money in USD. `minimum`: the accuracy that is wanted."""
    accuracy = found.accuracy.facts()
    if found.reviewed:  # rows that were picked have no interval
        accuracy |= {"low": None, "high": None}
    return {
        "answer": found.gold.answer,
        "gold": found.gold.column,
        "compared": str(found.gold.rule),
        "accuracy": accuracy,
        "reviewed": found.reviewed,
        "accuracy_answered": found.answered.facts(),
        "failed": found.accuracy.total - found.answered.total,
        "pending": found.pending,
        "contradictory": found.contradictory,
        "ties": found.ties,
        "unmatched": found.unmatched,
        "unrendered": found.unrendered,
        "macro_f1": found.macro_f1,
        "labels": found.labels,
        "confusions": found.confusions,
        "calibration": _calibration_facts(found.scored, minimum) if found.scored else None,
        **found.job.cost_facts(found.accuracy),
    }


def _calibration_facts(scored: list[Scored], minimum: float | None) -> dict[str, Any]:
    return {
        "n": len(scored),
        "expected_calibration_error": expected_error(scored),
        "thresholds": at_thresholds(scored),
        "threshold": _chosen(scored, minimum),
    }


def _chosen(scored: list[Scored], minimum: float | None) -> Chosen | None:
    return None if minimum is None or len(scored) < FEWEST else threshold_for(scored, minimum)


def evaluation_parts(found: Evaluation, minimum: float | None = None) -> Iterator[str | Table]:
    """Yield an evaluation for a terminal: sentences and tables."""
    yield from sentences(found)
    if found.scored:
        yield calibration_table(found.scored, minimum)
    if found.labels:
        yield _label_table(found)
    if found.confusions:
        rows = []
        for one in found.confusions[:SHOWN_CONFUSIONS]:
            more = ["…"] if one.questions > len(one.rows) else []
            answer = "(no answer)" if one.answer is None else one.answer
            rows.append((one.gold, answer, f"{one.questions:,}", ", ".join([*map(str, one.rows), *more])))
        yield Table(("gold", "answer", "questions", "rows"), rows, {2})


def sentences(found: Evaluation) -> Iterator[str]:
    """Yield how many answers are right, the counts behind that, and the cost of a right answer."""
    gold, job = found.gold, found.job
    if found.reviewed:
        agreement = found.accuracy.of("reviewed questions", interval=False)
        yield f'a person agrees with the model\'s "{gold.answer}" in {agreement}'
        yield "  reviewed rows were picked, not drawn at random: this says nothing about the other rows"
    else:
        yield f'"{gold.answer}" equals "{gold.column}" for {found.accuracy.of("distinct questions")}'
    if failed := found.accuracy.total - found.answered.total:
        answered = found.answered.of("questions", interval=not found.reviewed)
        yield f"  {plural(failed, 'failed question')} counted as wrong; without them {answered}"
    yield f"  compared {gold.rule}"
    if gold.note:
        yield f"  {gold.note}"
    if found.other_case and not gold.rule.ignore_case:
        yield f"  {plural(found.other_case, 'wrong answer')} would be right with --ignore-case"
    elif found.labels and found.answered.total and not found.accuracy.right:
        # With a column of codes (1, 2) and answers in words, 0 % says nothing about the model.
        known = ", ".join(one.label for one in found.labels if one.support)
        answered = ", ".join(one.label for one in found.labels if one.answered)
        yield f'  "{gold.column}" holds {short(known, _LABELS)}, and the answers are {short(answered, _LABELS)}'
    yield from _left_out(found)
    if job.cost_per_question is None:
        yield job.money(None)
        return
    costs = f"cost: {job.cost_per_1000} per 1,000 questions"
    if (per_right := job.cost_per_right(found.accuracy)) is not None:
        costs += f", {job.money(per_right)} per right answer"
    yield costs


def _left_out(found: Evaluation) -> Iterator[str]:
    """Yield sentences on rows and values that are not counted, and on the gold of equal rows."""
    if found.contradictory:
        yield f"  {contradiction_text(found.contradictory, found.ties)}"
    if found.unmatched:
        values = plural(found.unmatched, "value")
        yield f'  {values} of the gold file without a row: no "{found.gold.source}" in the input is equal'
    if found.pending:
        yield f"  {plural(found.pending, 'question')} with gold not answered yet, and not counted"
    if found.unrendered:
        yield f"  {plural(found.unrendered, 'row')} with gold can't be asked, and not counted while others are pending"


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
            f"answers with a probability of at least {chosen.threshold:g} reach {percent(minimum)}: "
            f"{percent(chosen.accuracy)} right, {percent(chosen.coverage)} of all answers (estimated out of bag)"
        )
        if len(scored) < FEW:
            yield f"  {len(scored)} labelled questions are few for a threshold: label {FEW} to rely on it"


def calibration_table(scored: list[Scored], minimum: float | None = None) -> Table:
    """Return coverage and accuracy at some thresholds, under sentences on what the probabilities are worth."""
    rows = [
        (f"{one.threshold:g}", percent(one.coverage), percent(Share(one.right, one.answers).value))
        for one in at_thresholds(scored)
    ]
    title = "\n".join(calibration_sentences(scored, minimum))
    return Table(("at least", "coverage", "right"), rows, {0, 1, 2}, title)


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
