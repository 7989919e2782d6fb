"""Several models on one job: accuracy, cost and latency side by side, and the cheapest one that passes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from batchrun.report.comparison import JobFigures, Side
from batchrun.report.comparison_text import MEDIAN, SLOW, job_facts, seconds, side_money
from batchrun.report.evaluation import Evaluation, evaluate, percent
from batchrun.report.gold import GoldOptions
from batchrun.report.statistics import wilson
from batchrun.report.texttable import text_table


@dataclass(frozen=True, slots=True)
class ModelResult:
    """What one model cost, how long it took, and how many answers are right (None without gold)."""

    figures: JobFigures
    evaluation: Evaluation | None


def model_result(side: Side, gold: GoldOptions | None) -> ModelResult:
    """Return the figures of one model's checkpoint. Raises UserError as `evaluate` does."""
    figures = side.figures()
    for row in side.rows():
        figures.take(row)
    if gold is None:
        return ModelResult(figures, None)
    return ModelResult(figures, evaluate(side.prepared, side.checkpoint, gold, any_wording=side.any_wording))


def cheapest(results: Sequence[ModelResult], minimum: float | None) -> ModelResult | None:
    """Return the model with the lowest cost of a question among those whose accuracy is at least `minimum`.

    A model whose cost nobody knows comes after all others. None where none passes, or no accuracy is wanted.
    """
    if minimum is None:
        return None
    passing = (one for one in results if one.evaluation and (one.evaluation.accuracy.value or 0.0) >= minimum)
    return min(passing, key=_cost_order, default=None)


def _cost_order(one: ModelResult) -> float:
    cost = one.figures.cost_per_question
    return math.inf if cost is None else cost


def model_facts(results: Sequence[ModelResult], minimum: float | None) -> dict[str, Any]:
    """Return the table for JSON."""
    best = cheapest(results, minimum)
    return {
        "models": [job_facts(one.figures, one.evaluation.accuracy if one.evaluation else None) for one in results],
        "min": minimum,
        "cheapest": best and best.figures.name,
    }


def model_lines(results: Sequence[ModelResult], minimum: float | None, *, width: int, encoding: str) -> Iterator[str]:
    """Yield the table as lines for a terminal, the cheapest model first."""
    ordered = sorted(results, key=_cost_order)
    header = ["model", "cost per 1,000", "median", "95 % within", "failed"]
    if any(one.evaluation for one in results):
        header[1:1] = ["right", "95 % interval"]
    rows = []
    for one in ordered:
        figures, cells = one.figures, [one.figures.name]
        if one.evaluation:
            share = one.evaluation.accuracy
            cells += [percent(share.value), " to ".join(map(percent, wilson(share.right, share.total)))]
        cells += [side_money(figures, figures.cost_per_question, 1_000), seconds(figures.latency(MEDIAN))]
        rows.append([*cells, seconds(figures.latency(SLOW)), f"{figures.failed:,}"])
    yield from text_table(header, rows, width=width, encoding=encoding, numbers=range(1, len(header)))
    if minimum is None:
        return
    best = cheapest(results, minimum)
    if best is None:
        yield f"none reaches {percent(minimum)}"
    else:
        yield f"the cheapest that reaches {percent(minimum)} is {best.figures.name}"
