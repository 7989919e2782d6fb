"""`batchrun status JOB`: where a job stands."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrun.cli.arguments import debug_option, endpoint_option, give, job_argument, load, tell
from batchrun.errors import ExitCode
from batchrun.terminal import duration, place, printable, when

if TYPE_CHECKING:
    from batchrun.checkpoint import Checkpoint, RunInfo


@click.command("status")
@job_argument
@endpoint_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--verify", is_flag=True, help="Check the whole checkpoint: every page and the books.")
@debug_option
def command(job: Path, endpoint: str | None, *, as_json: bool, verify: bool, **_: bool) -> None:
    """Show rows by status and error, money, and the runs so far. Nothing is sent."""
    from batchrun.checkpoint import Checkpoint
    from batchrun.job import RunOptions, merged

    loaded, _environment = load(job)
    path = merged(loaded.job, RunOptions(endpoint=endpoint)).checkpoint_path
    with Checkpoint.open(path, read_only=True) as checkpoint:
        facts = _facts(checkpoint)
        wrong = checkpoint.verify() if verify else []
    if as_json:
        import orjson

        give(orjson.dumps({"job": loaded.job.name, **facts, "wrong": wrong}).decode())
    else:
        give("\n".join(_lines(facts)))
    if wrong:
        tell("\n".join(f"wrong: {line}" for line in wrong))
        sys.exit(ExitCode.STORAGE)
    if verify:
        tell("the checkpoint is sound")


def _facts(checkpoint: "Checkpoint") -> dict[str, Any]:
    from batchrun.checkpoint import utc_day
    from batchrun.money import to_usd

    counts, runs = checkpoint.counts(), checkpoint.runs()
    spent = {
        "cost_output_usd": counts.cost,
        "cost_last_run_usd": runs[0].cost if runs else 0,
        "cost_today_usd": checkpoint.spent(day=utc_day(time.time())),
        "cost_total_usd": checkpoint.spent(),
    }
    return {
        "rows": counts.rows,
        "ok": counts.ok,
        "failed": counts.failed,
        "pending": counts.pending,
        "skipped": counts.skipped,
        "questions": counts.questions,
        "errors": dict(counts.errors or {}),
        **{name: str(to_usd(amount)) for name, amount in spent.items()},
        "possibly_billed": checkpoint.possibly_billed(),
        "checkpoint": str(checkpoint.path),
        "runs": [_run(run) for run in runs],
    }


def _run(run: "RunInfo") -> dict[str, Any]:
    from batchrun.money import to_usd

    return {
        "id": run.id,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "exit_code": run.exit_code,
        "reason": run.reason,
        "requests": run.requests,
        "cost_usd": str(to_usd(run.cost)),
        "possibly_billed": run.possibly_billed,
        "cached": run.cached,
        "resume_at": run.resume_at,
        "pid": run.pid,
        "host": run.host,
    }


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    from batchrun.api.codes import TABLE
    from batchrun.money import from_usd, show

    counts = ", ".join(f"{facts[name]:,} {name}" for name in ("ok", "failed", "pending", "skipped"))
    yield f"{facts['rows']:,} rows ({facts['questions']:,} distinct questions): {counts}"
    for name, number in sorted(facts["errors"].items(), key=lambda item: -item[1]):
        ending = TABLE.get(name)
        yield f"  {number:,} {name}" + (f": {ending.means}; {ending.do}" if ending else "")
    sums = (("this output", "output"), ("the last run", "last_run"), ("today (UTC)", "today"), ("all runs", "total"))
    yield "money: " + ", ".join(f"{show(from_usd(facts[f'cost_{key}_usd']))} {name}" for name, key in sums)
    if facts["possibly_billed"]:
        yield f"{facts['possibly_billed']:,} requests may be billed on top: their replies were lost or named no cost"
    for run in facts["runs"]:
        took = duration(run["ended_at"] - run["started_at"]) if run["ended_at"] else "not ended: killed, or going on"
        code = "" if run["exit_code"] is None else f", exit {run['exit_code']} ({printable(run['reason'] or '')})"
        resume = f", again from {when(run['resume_at'])} on" if run["resume_at"] else ""
        cost = f"{run['requests']:,} requests, {show(from_usd(run['cost_usd']))}"
        cost += f", {run['cached']:,} from OpenRouter's cache at no cost" if run["cached"] else ""
        yield f"run {run['id']} at {when(run['started_at'])}: {took}, {cost}{code}{resume}"
    yield f"checkpoint: {place(Path(facts['checkpoint']), Path.cwd())}"
