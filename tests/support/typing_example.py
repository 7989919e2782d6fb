"""What a typed program may write with batchrun; checked by mypy, never run."""

from decimal import Decimal
from pathlib import Path

import polars as pl

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
    spent: Decimal = summary.cost_usd
    rows: int = summary.frame().height + batchrun.run({"prompt": "{{ text }}"}, summary.frame(), quiet=True).rows
    found: batchrun.Check = batchrun.check("jobs/reviews.yaml", "rows.csv", set={"limits.timeout": 9})
    seen: batchrun.Preview = batchrun.preview({"prompt": "{{ text }}"}, pl.DataFrame({"text": ["x"]}), n=1)
    batchrun.run({"prompt": "{{ text }}"}, pl.LazyFrame({"text": ["x"]}))
    right: batchrun.Evaluation = batchrun.evaluate("jobs/reviews.yaml", gold="label", model="a/b")
    if right.accuracy.value is None or found.mistakes or seen.cost_usd or any(one.text for one in found.findings):
        return rows
    return summary.exit_code if spent and any(counts) and endpoint and name else batchrun.ExitCode.DONE


def wrong() -> None:
    batchrun.run("jobs/reviews.yaml", limit="ten")  # type: ignore[arg-type]
    batchrun.run("jobs/reviews.yaml", 10)  # type: ignore[arg-type]
    batchrun.simulate()  # type: ignore[attr-defined]
