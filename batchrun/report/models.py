"""Several models on one job: accuracy, cost and latency side by side, and the cheapest one that passes."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from batchrun.report.answered import OpenJob
from batchrun.report.evaluation import evaluate
from batchrun.report.figures import JobFigures, Share, percent
from batchrun.report.gold import GoldOptions
from batchrun.report.texttable import Table


class ModelResult(NamedTuple):
    """What one model cost, how long it took, and how many answers are right (None without gold)."""

    figures: JobFigures
    accuracy: Share | None

    @property
    def order(self) -> float:
        """The cost of a question, for sorting: a model whose cost nobody knows comes last."""
        cost = self.figures.cost_per_question
        return math.inf if cost is None else cost


def model_result(job: OpenJob, gold: GoldOptions | None) -> ModelResult:
    """Return the figures of one model's checkpoint. Raises UserError as `evaluate` does."""
    if gold is not None:
        found = evaluate(job, gold)
        return ModelResult(found.job, found.accuracy)
    figures = JobFigures.of(job)
    for row in job.rows():
        figures.take(row)
    return ModelResult(figures, None)


def _cheapest(results: Sequence[ModelResult], minimum: float | None) -> str | None:
    """Return the model with the lowest cost of a question among those whose accuracy is at least `minimum`.

    None where none passes, or no accuracy is wanted.
    """
    if minimum is None:
        return None
    # The point estimate counts, as for `eval --min`. The table shows the interval as well.
    passing = [one for one in results if one.accuracy and (one.accuracy.value or 0.0) >= minimum]
    return min(passing, key=lambda one: one.order).figures.name if passing else None


def model_facts(results: Sequence[ModelResult], minimum: float | None) -> dict[str, Any]:
    """Return the table for JSON."""
    models = [one.figures.facts(one.accuracy) for one in results]
    return {"models": models, "min": minimum, "cheapest": _cheapest(results, minimum)}


def model_parts(results: Sequence[ModelResult], minimum: float | None) -> Iterator[str | Table]:
    """Yield the table for a terminal, the cheapest model first, and which one to take."""
    header = ["model", "cost per 1,000", "median", "95 % within", "failed"]
    if any(one.accuracy for one in results):
        header[1:1] = ["right", "95 % interval"]
    rows = []
    for figures, accuracy in sorted(results, key=lambda one: one.order):
        right = [percent(accuracy.value), accuracy.interval] if accuracy else []
        rows.append([figures.name, *right, *figures.cells])
    yield Table(header, rows, range(1, len(header)))
    if minimum is None:
        return
    cheapest = _cheapest(results, minimum)
    if cheapest is None:
        yield f"none reaches {percent(minimum)}"
    else:
        yield f"the cheapest that reaches {percent(minimum)} is {cheapest}"
