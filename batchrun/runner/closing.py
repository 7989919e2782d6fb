"""The lines that people read at the end of a run."""

from collections.abc import Iterator
from pathlib import Path

from batchrun.api import TABLE
from batchrun.errors import ExitCode
from batchrun.money import CostKind, from_usd, show
from batchrun.records import Summary
from batchrun.terminal import duration, place, plural, printable, when


def closing_lines(summary: Summary, cwd: Path) -> Iterator[str]:
    """Yield how a run ended: rows, errors with advice, money and time, the output as seen from `cwd`, the next step."""
    counts = [f"{summary.ok:,} ok", f"{summary.failed:,} failed", f"{summary.pending:,} pending"]
    if summary.skipped:
        counts.append(f"{summary.skipped:,} skipped")
    yield f"{plural(summary.rows, 'row')}: {', '.join(counts)}"
    for name, number in sorted(summary.errors.items(), key=lambda item: -item[1]):
        yield f"  {number:,} {name}{advice(name)}"
    yield f"{plural(summary.requests, 'request')} in {duration(summary.seconds)}, {_money(summary)}"
    if summary.output:
        yield f"output: {place(Path(summary.output), cwd)}" + ("" if summary.output_changed else " (unchanged)")
    if summary.exit_code:
        yield printable(summary.reason if summary.exit_code == ExitCode.SOME_FAILED else f"stopped: {summary.reason}")
    if summary.resume_at:
        yield f"try again after {when(summary.resume_at)}"
    if summary.next:
        yield summary.next


def _money(summary: Summary) -> str:
    run, total = from_usd(summary.cost_usd), from_usd(summary.cost_total_usd)
    money = f"{show(run)} this run, {show(total)} in all"
    if summary.cost_kind == CostKind.SIMULATED:
        money += " (simulated: nothing was charged)"
    if summary.cost_kind == CostKind.UNKNOWN and not total:
        money = "cost unknown (the server reports none; set model.price)"
    if summary.possibly_billed:
        money += f", {plural(summary.possibly_billed, 'more request')} may have been billed (no cost was reported)"
    if summary.cached:
        money += f", {plural(summary.cached, 'answer')} from OpenRouter's cache at no cost"
    return money


def advice(error_type: str) -> str:
    """Return `: what it means; what to do`, nothing for an unknown name."""
    ending = TABLE.get(error_type)
    return f": {ending.means}; {ending.do}" if ending else ""
