"""`batchrun status JOB`: where a job stands."""

import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrun.cli.arguments import job_argument, job_options, print_err, print_json, print_out, to_read
from batchrun.errors import ExitCode
from batchrun.terminal import duration, place, plural, printable, when

if TYPE_CHECKING:
    from batchrun.checkpoint import Batch, Checkpoint, RunInfo
    from batchrun.job import Job
    from batchrun.money import CostKind


@click.command("status")
@job_argument
@job_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--verify", is_flag=True, help="Check the whole checkpoint: every page and all sums.")
def command(job: Path, *, as_json: bool, verify: bool, **flags: Any) -> None:  # noqa: ANN401  (click gives each flag its type)
    """Show rows by status and error, money, and the runs so far; whether one is running, and what changed since.

    Nothing is sent.
    """
    from batchrun.checkpoint import Checkpoint

    link = to_read(job, **flags)
    with Checkpoint.open(link.job.checkpoint_path, read_only=True) as checkpoint:
        facts = _facts(checkpoint, link.job)
        # On ten million rows that reads gigabytes, so it is asked for.
        wrong = checkpoint.verify() if verify else []
    if as_json:
        print_json({"job": link.job.name, **facts, "wrong": wrong})
    else:
        print_out("\n".join(_lines(facts)))
    if wrong:
        print_err("\n".join(f"wrong: {line}" for line in wrong))
        sys.exit(ExitCode.STORAGE)
    if verify:
        print_err("the checkpoint is intact")


def _facts(checkpoint: "Checkpoint", job: "Job") -> dict[str, Any]:
    from batchrun.api import cost_kind
    from batchrun.checkpoint import running, utc_day
    from batchrun.money import to_usd
    from batchrun.prepare import Corrections, input_changed
    from batchrun.report import worth_a_look

    counts, runs, plan = checkpoint.counts(), checkpoint.runs(), checkpoint.current_plan()
    changed, confirmed = Corrections(job).counts()
    return {
        "rows": counts.rows,
        "ok": counts.ok,
        "failed": counts.failed,
        "pending": counts.pending,
        "skipped": counts.skipped,
        "questions": counts.questions,
        "errors": counts.errors or {},
        "by_person": counts.by_person,
        "corrected": changed,
        "confirmed": confirmed,
        "worth_a_look": worth_a_look(checkpoint),
        "cost_output_usd": to_usd(counts.cost),
        "cost_last_run_usd": to_usd(runs[0].cost if runs else 0),
        "cost_today_usd": to_usd(checkpoint.spent(day=utc_day(time.time()))),
        "cost_total_usd": to_usd(checkpoint.spent()),
        "cost_kind": cost_kind(job),
        "running": running(checkpoint.path),
        "job_changed": bool(runs) and runs[0].job != job.text,
        "input_changed": plan is not None and input_changed(plan, job),
        "possibly_billed": checkpoint.possibly_billed(),
        "batches": [_batch(batch) for batch in checkpoint.batches.open()],
        "checkpoint": str(checkpoint.path),
        "runs": [_run(run, cost_kind(job)) for run in runs],
    }


def _batch(batch: "Batch") -> dict[str, Any]:
    from batchrun.money import to_usd

    return {
        "number": batch.number,
        "id": batch.provider_id,
        "questions": batch.questions,
        "submitted_at": batch.submitted_at,
        "reserved_usd": to_usd(batch.reserved),
        "problem": batch.problem,
    }


def _run(run: "RunInfo", of_job: "CostKind") -> dict[str, Any]:
    from batchrun.money import CostKind, to_usd

    names = (
        "id", "started_at", "ended_at", "exit_code", "reason", "requests", "possibly_billed", "cached", "resume_at",
        "pid", "host",
    )  # fmt: skip
    # A job is often tried on the simulator before its endpoint is edited.
    kind = of_job
    if run.endpoint == "simulator":
        kind = CostKind.SIMULATED
    elif of_job == CostKind.SIMULATED:
        kind = CostKind.CHARGED
    return {name: getattr(run, name) for name in names} | {"cost_usd": to_usd(run.cost), "cost_kind": kind}


def _now(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the differences from the last run's end: a run that is running, a job or an input that changed."""
    if running := facts["running"]:
        yield f"running now ({running})"
    changed = [name for name, key in (("job file", "job_changed"), ("input", "input_changed")) if facts[key]]
    if changed:
        last = next((f"run {run['id']}" for run in facts["runs"]), "the plan was made")
        yield f"the {' and the '.join(changed)} changed since {last}: the lines below are from before the change"


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    from batchrun.api import TABLE
    from batchrun.money import cost, from_usd

    def usd(amount: Decimal, kind: str = facts["cost_kind"]) -> str:
        return cost(from_usd(amount), kind)

    yield from _now(facts)
    counts = ", ".join(f"{facts[name]:,} {name}" for name in ("ok", "failed", "pending", "skipped"))
    yield f"{plural(facts['rows'], 'row')} ({plural(facts['questions'], 'distinct question')}): {counts}"
    if facts["corrected"] or facts["confirmed"]:
        yield f"corrections: {facts['corrected']:,} corrected, {facts['confirmed']:,} confirmed"
    for name, number in sorted(facts["errors"].items(), key=lambda item: -item[1]):
        line = f"  {number:,} {name}"
        if (ending := TABLE.get(name)) is not None:
            line += f": {ending.means}; {ending.do}"
        yield line
    yield from (f"worth a look: {printable(sentence)}" for sentence in facts["worth_a_look"])
    yield _money(facts)
    if facts["possibly_billed"]:
        more = plural(facts["possibly_billed"], "more request")
        yield f"{more} may have been billed: the replies were lost or named no cost"
    for batch in facts["batches"]:
        yield ", ".join(_batch_line(batch, usd(batch["reserved_usd"])))
    for number, run in enumerate(facts["runs"]):
        took = "was killed"
        if run["ended_at"]:
            took = duration(run["ended_at"] - run["started_at"])
        elif facts["running"] and number == 0:
            took = "running now"
        yield ", ".join(_run_line(run, took, usd(run["cost_usd"], run["cost_kind"])))
    yield f"checkpoint: {place(Path(facts['checkpoint']), Path.cwd())}"


def _batch_line(batch: dict[str, Any], at_most: str) -> Iterator[str]:
    """Yield the parts of the line about a batch."""
    questions = plural(batch["questions"], "question")
    yield f"batch {batch['number']} is out ({printable(batch['id'] or 'not confirmed')}): {questions}"
    yield f"submitted {when(batch['submitted_at'])}"
    yield f"at most {at_most}"
    if batch["problem"]:
        yield printable(batch["problem"])


def _run_line(run: dict[str, Any], took: str, cost: str) -> Iterator[str]:
    """Yield the parts of the line about a run."""
    yield f"run {run['id']} at {when(run['started_at'])}: {took}"
    yield plural(run["requests"], "request")
    yield cost
    if run["cached"]:
        yield f"{run['cached']:,} from OpenRouter's cache at no cost"
    if run["exit_code"] is not None:
        yield f"exit {run['exit_code']} ({printable(run['reason'] or '')})"
    if run["resume_at"]:
        yield f"try again after {when(run['resume_at'])}"


def _money(facts: dict[str, Any]) -> str:
    from batchrun.money import CostKind, cost, from_usd

    kind = facts["cost_kind"]
    if kind == CostKind.UNKNOWN and not facts["cost_total_usd"]:
        return "money: cost unknown (the server reports none; set model.price)"
    sums = (("this output", "output"), ("the last run", "last_run"), ("today (UTC)", "today"), ("all runs", "total"))
    amounts = {name: cost(from_usd(facts[f"cost_{key}_usd"]), kind) for name, key in sums}
    charged = ""
    if kind == CostKind.SIMULATED:
        charged = " (simulated: nothing was charged)"
        amounts = {name: amount.removesuffix(" simulated") for name, amount in amounts.items()}
    return f"money{charged}: " + ", ".join(f"{amount} {name}" for name, amount in amounts.items())
