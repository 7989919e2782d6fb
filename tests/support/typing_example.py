"""What a typed program may write with batchrun; checked by mypy, never run."""

from decimal import Decimal
from pathlib import Path

import batchrun


def main() -> int:
    job: batchrun.Job = batchrun.load_job("jobs/reviews.yaml")
    endpoint: str = job.model.endpoint
    name: str | None = job.model.name
    try:
        summary: batchrun.Summary = batchrun.run(
            Path("jobs/reviews.yaml"), limit=10, max_cost=Decimal("0.50"), concurrency=8, output="out.parquet"
        )
        batchrun.run("jobs/reviews.yaml", max_cost=2.5, retry=["timeout"], fresh=True, yes=True, quiet=False)
        batchrun.run("jobs/reviews.yaml", endpoint="simulator", api_key_env="MY_KEY", retry=set())
    except batchrun.JobFileError as problem:
        mistake: batchrun.Mistake = problem.mistakes[0]
        return mistake.line
    except (batchrun.UserError, batchrun.StorageError, batchrun.BusyError) as problem:
        return problem.exit_code
    except batchrun.BatchrunError:
        return batchrun.ExitCode.BUG
    counts: list[int] = [summary.ok, summary.failed, summary.pending]
    spent = Decimal(summary.cost_usd)
    return summary.exit_code if spent and any(counts) and endpoint and name else batchrun.ExitCode.DONE


def wrong() -> None:
    batchrun.run("jobs/reviews.yaml", limit="ten")  # type: ignore[arg-type]
    batchrun.run("jobs/reviews.yaml", 10)  # type: ignore[call-arg]
    batchrun.simulate()  # type: ignore[attr-defined]
