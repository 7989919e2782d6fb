"""The lines that people read at the end of a run."""

from collections.abc import Iterator
from pathlib import Path

from batchrun.api import TABLE, UNSENT
from batchrun.errors import ExitCode
from batchrun.money import CostKind, from_usd, show
from batchrun.records import Summary
from batchrun.terminal import duration, place, plural, printable, short, when

_SHOWN_VALUES = 6
_SHOWN_COLUMNS = 20
_LABEL = 24
_MESSAGE = 160

_EXPLAINED = UNSENT | {
    "bad_request",
    "unexplained",
    "bad_parameters",
    "provider_rejected",
    "provider_error",
    "refused_alone",
    "forbidden",
    "invalid_prompt",
    "server_error",
}
"""Failures of which the first message says more than the name: which column is null, what the server refused."""


def closing_lines(summary: Summary, cwd: Path) -> Iterator[str]:
    """Yield how a run ended: rows, time and money, answers, errors with advice, the output, what to do next.

    The output is named as seen from `cwd`. Nothing is said twice.
    """
    yield f"{_rows(summary)}        {' · '.join(_figures(summary))}"
    answers = {name: values for name, values in summary.answers.items() if values}
    width = max((len(name) for name in answers), default=0)
    for name in list(answers)[:_SHOWN_COLUMNS]:
        yield f"  {printable(name):<{width}}  {_values(list(answers[name].items()))}"
    if len(answers) > _SHOWN_COLUMNS:
        yield f"  and {plural(len(answers) - _SHOWN_COLUMNS, 'more column')}: see the report"
    for name, number in sorted(summary.errors.items(), key=lambda item: -item[1]):
        yield f"  {number:,} {name}{advice(name)}{_places(summary.failed_rows.get(name, ()), number)}"
        message = summary.error_messages.get(name, "").removeprefix(f"{TABLE[name].means}: ")
        if name in _EXPLAINED and message not in {"", TABLE[name].means} and message not in summary.reason:
            yield f"    the first says: {short(message, _MESSAGE)}"
    yield from _books(summary)
    if summary.exit_code not in {ExitCode.DONE, ExitCode.SOME_FAILED}:
        word = "waiting for" if summary.exit_code == ExitCode.WAITING else "stopped:"
        reason = printable(summary.reason)
        if summary.advice:
            reason = f"{reason.removesuffix('.')}; {summary.advice}"
        yield f"  {word} {reason}"
    if summary.resume_at:
        yield f"  try again after {when(summary.resume_at)}"
    if summary.output:
        unchanged = "" if summary.output_changed else " (unchanged)"
        yield f"  written {place(Path(summary.output), cwd)}{unchanged}"
    width = max((len(command) for command, _ in summary.commands), default=0)
    label = "next"
    for command, what in summary.commands:
        yield f"  {label:<8}{command:<{width}}   {what}"
        label = ""


def _rows(summary: Summary) -> str:
    asked = summary.rows - summary.skipped
    parts = [f"{summary.ok:,} of {plural(asked, 'row')} answered"]
    if summary.by_person:
        parts[0] += f" ({summary.by_person:,} by a person)"
    for number, what in ((summary.failed, "failed"), (summary.pending, "to ask"), (summary.skipped, "skipped")):
        if number:
            parts.append(f"{number:,} {what}")
    return f"{summary.job}: {', '.join(parts)}"


def _figures(summary: Summary) -> Iterator[str]:
    yield duration(summary.seconds)
    if summary.asked:
        yield f"{summary.asked / max(summary.seconds, 0.001):.1f} rows/s"
    run, total = from_usd(summary.cost_usd), from_usd(summary.cost_total_usd)
    if summary.cost_kind == CostKind.UNKNOWN and not total:
        yield "cost unknown (the server reports none; set model.price)"
        return
    text = show(run)
    if summary.cost_kind == CostKind.UNKNOWN and summary.requests and not run:
        text = "cost unknown"
    # The second of two nights: what the output has cost is more than this run.
    if total != run:
        text += f", {show(total)} in all runs"
    if summary.cost_kind == CostKind.SIMULATED:
        text += " (simulated: nothing was charged)"
    yield text


def _books(summary: Summary) -> Iterator[str]:
    if summary.possibly_billed:
        yield f"  {plural(summary.possibly_billed, 'more request')} may have been billed (no cost was reported)"
    if summary.cached:
        yield f"  {plural(summary.cached, 'answer')} from OpenRouter's cache at no cost"


def _values(counts: list[tuple[str, int]]) -> str:
    shown = [f"{short(str(value), _LABEL).strip() or '(empty)'} {number:,}" for value, number in counts[:_SHOWN_VALUES]]
    if more := counts[_SHOWN_VALUES:]:
        shown.append(f"{plural(len(more), 'other value')} {sum(number for _, number in more):,}")
    return " · ".join(shown)


def _places(rows: tuple[int, ...], number: int) -> str:
    if not rows:
        return ""
    shown = [f"{row:,}" for row in rows]
    if number > len(rows):
        shown.append("…")
    noun = "row" if number == 1 else "rows"
    return f"   ({noun} {', '.join(shown)})"


def advice(error_type: str) -> str:
    """Return `: what it means; what to do`, nothing for an unknown name."""
    ending = TABLE.get(error_type)
    return f": {ending.means}; {ending.do}" if ending else ""
