"""The lines that people read at the end of a run."""

from collections.abc import Iterator
from pathlib import Path

from batchrun.api.codes import TABLE
from batchrun.errors import ExitCode
from batchrun.money import from_usd, show
from batchrun.records import Summary
from batchrun.terminal import duration, place, printable, when


def told(summary: Summary, cwd: Path) -> Iterator[str]:
    """Say how a run ended: rows, errors with advice, money and time, the output as seen from `cwd`, what to do next."""
    counts = [f"{summary.ok:,} ok", f"{summary.failed:,} failed", f"{summary.pending:,} pending"]
    if summary.skipped:
        counts.append(f"{summary.skipped:,} skipped")
    yield f"{summary.rows:,} rows: {', '.join(counts)}"
    for name, number in sorted(summary.errors.items(), key=lambda item: -item[1]):
        yield f"  {number:,} {name}{advice(name)}"
    money = f"{show(from_usd(summary.cost_usd))} this run, {show(from_usd(summary.cost_total_usd))} in all"
    billed = f", {summary.possibly_billed:,} requests may be billed on top" if summary.possibly_billed else ""
    cached = f", {summary.cached:,} answers from OpenRouter's cache at no cost" if summary.cached else ""
    yield f"{summary.requests:,} requests in {duration(summary.seconds)}, {money}{billed}{cached}"
    if summary.output:
        yield f"output: {place(Path(summary.output), cwd)}" + ("" if summary.output_changed else " (unchanged)")
    if summary.exit_code:
        yield printable(summary.reason if summary.exit_code == ExitCode.SOME_FAILED else f"stopped: {summary.reason}")
    if summary.resume_at:
        yield f"it makes sense again from {when(summary.resume_at)} on"
    if summary.next:
        yield summary.next


def advice(error_type: str) -> str:
    """Give `: what it means; what to do`, nothing for an unknown name."""
    ending = TABLE.get(error_type)
    return f": {ending.means}; {ending.do}" if ending else ""
