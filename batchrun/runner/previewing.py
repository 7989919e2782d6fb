"""Looks at what a run would need, for `preview` and for `batchrun.preview`."""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal

from batchrun.api import Prices, cost_kind, prices_for
from batchrun.checkpoint import Checkpoint
from batchrun.money import Pico, to_usd
from batchrun.records import Preview
from batchrun.runner.before import reachable
from batchrun.runner.forecast import Forecast, Survey, forecast, survey
from batchrun.runner.prepare import Prepared


@dataclass(frozen=True, slots=True)
class Looked:
    """A survey of the input, what follows from it, and the prices behind that."""

    survey: Survey
    forecast: Forecast
    prices: Prices

    def preview(self, prepared: Prepared) -> Preview:
        """Return the record for programs."""
        found, likely = self.survey, self.forecast
        batch = None
        if self.prices.batch is not None:
            batch = self.prices.batch.likely.cost(likely.prompt_tokens, likely.completion_tokens)
        return Preview(
            job=prepared.job.name,
            rows=found.rows,
            skipped=found.skipped,
            answered=found.answered,
            failed=found.failed,
            open=found.open,
            questions=found.questions,
            exact=found.exact,
            unasked=found.unasked,
            prompt_tokens=likely.prompt_tokens,
            completion_tokens=likely.completion_tokens,
            cost_usd=_usd(likely.cost),
            uncached_cost_usd=_usd(likely.uncached),
            max_cost_usd=_usd(found.worst),
            batch_cost_usd=_usd(batch),
            cost_kind=cost_kind(prepared.job),
            seconds=likely.seconds,
            in_flight=likely.in_flight,
            answers=likely.answers,
            requests=found.first,
        )


def look(prepared: Prepared, number: int, sample: int | None = None) -> Looked:
    """Survey a job's input and price it, with the first `number` requests, also those of a run with `--sample`.

    Nothing is sent to a model.
    """
    with ExitStack() as stack:
        checkpoint = None
        if prepared.job.checkpoint_path.exists():
            checkpoint = stack.enter_context(Checkpoint.open(prepared.job.checkpoint_path, read_only=True))
        with reachable(prepared.endpoint) as served:
            prices = prices_for(prepared.job, served, prepared.cache_dir, time.time())
        found = survey(prepared, checkpoint, prices, show=number, sample=sample)
    return Looked(found, forecast(prepared, found, prices), prices)


def _usd(amount: Pico | None) -> Decimal | None:
    return None if amount is None else to_usd(amount)
