"""The page: facts in words, charts and tables, as one HTML file that asks nothing of a network."""

import base64
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from batchrun._version import __version__
from batchrun.api import cost_kind
from batchrun.checkpoint import Checkpoint, Counts, RunInfo, utc_day
from batchrun.errors import ExitCode, StorageError, UserError
from batchrun.money import CostKind, cost
from batchrun.report import charts
from batchrun.report.gather import Column, Gathered, Row, cut, gather, visible
from batchrun.runner import outputs
from batchrun.runner.closing import advice
from batchrun.runner.prepare import Prepared
from batchrun.terminal import duration, when

FOLDER = Path(__file__).parent
RUNS = 20
CLASSES = 12
"""A confusion table has at most so many rows and columns."""

_EXITS = {
    ExitCode.DONE: "done",
    ExitCode.SOME_FAILED: "finished, some rows failed",
    ExitCode.USER: "a mistake in job, key or input",
    ExitCode.STOPPED_BY_API: "stopped by the API",
    ExitCode.STOPPED_BY_LIMIT: "stopped by a limit of the job",
    ExitCode.STORAGE: "disk, checkpoint or senders failed",
    ExitCode.SIGINT: "interrupted",
    ExitCode.SIGTERM: "terminated",
}


def report_path(p: Prepared) -> Path:
    """Give where the report goes by itself: NAME.report.html beside the output NAME.SUFFIX."""
    return p.job.output_path.with_name(f"{p.job.output_path.stem}.report.html")


def write_report(
    p: Prepared, checkpoint: Checkpoint, path: Path, *, gold: str | None = None, samples: bool = True
) -> None:
    """Write the report to `path`, whole or not at all. `samples`: whether text of rows and servers is in it.

    Raises UserError where input or wording are not those of the last run, StorageError where the disk fails.
    """
    if path.suffix.lower() not in {".html", ".htm"}:
        raise UserError(f"{path} is no name for a report; write one that ends in .html")
    outputs.check_plan(p, checkpoint.current_plan())
    counts, runs = checkpoint.counts(), checkpoint.runs(RUNS)
    found = gather(p, checkpoint, total=counts.rows - counts.pending, gold=gold, samples=samples)
    page = _page(
        cost_kind(p.job),
        job=p.job,
        model=p.endpoint.model,
        counts=counts,
        runs=runs,
        exits=_EXITS,
        seconds=sum((run.ended_at or run.started_at) - run.started_at for run in runs),
        output_cost=counts.cost,
        spent=(counts.cost, checkpoint.spent(day=utc_day(time.time())), checkpoint.spent()),
        possibly_billed=checkpoint.possibly_billed(),
        time_charts=list(_time_charts(found, runs)),
        errors=list(_errors(counts, checkpoint.failed_attempts(), found)),
        columns=list(_columns(found, samples=samples)),
        confusion=_confusion(found, samples=samples),
        found=found,
        samples=samples,
        version=__version__,
        now=time.time(),
    )
    _write(path, page)


def _page(kind: CostKind, **facts: Any) -> str:  # noqa: ANN401  (what the template names)
    """Return the page; `kind` says what its costs mean.

    Its policy lets only our own style and script run, known by their digests.
    """
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:"
    files = FileSystemLoader(FOLDER)
    templates = Environment(loader=files, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    templates.filters.update(
        usd=lambda amount: cost(amount, kind), when=when, duration=duration, visible=visible, cut=cut
    )
    ours = {"style": Markup(style), "script": Markup(script)}  # noqa: S704  (our own files)
    return templates.get_template("page.html.j2").render(facts, policy=f"{policy}; base-uri 'none'", **ours)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _write(path: Path, page: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(page, encoding="utf-8", newline="\n")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as problem:
        raise StorageError(f"{path} can't be written: {problem.strerror}") from None


def _time_charts(found: Gathered, runs: Sequence[RunInfo]) -> Iterator[tuple[Markup, str]]:
    asked = [run for run in runs if run.requests]
    settled = charts.work_seconds([*found.finished, *found.failed_at], asked)
    if not settled:
        return
    answered, failed = (charts.work_seconds(times, asked) for times in (found.finished, found.failed_at))
    pauses = "; the time between runs is left out" if len(asked) > 1 else ""
    yield (
        charts.progress("Questions settled", answered, failed),
        f"Questions answered (green) and failed (red) over time{pauses}",
    )
    yield charts.throughput("Questions per second", settled), f"Questions per second over time{pauses}"
    if found.seconds:
        ordered = sorted(found.seconds)
        shares = ((0.5, "half"), (0.9, "90 %"), (0.99, "99 %"))
        told = ", ".join(f"{name} within {ordered[int(share * (len(ordered) - 1))]:.2g} s" for share, name in shares)
        chart = charts.histogram("Latency of answers", ordered, " s")
        yield chart, f"Latency of answers: {told}, the slowest {ordered[-1]:.2g} s"


def _errors(
    counts: Counts, attempts: dict[str, int], found: Gathered
) -> Iterator[tuple[str, int, int, str, list[Row]]]:
    """Give each error's name, rows, attempts, advice and sample rows."""
    rows = counts.errors or {}
    for name in sorted({*rows, *attempts}, key=lambda name: (-rows.get(name, 0), -attempts.get(name, 0))):
        samples = found.samples.get(name, [])
        yield visible(name), rows.get(name, 0), attempts.get(name, 0), advice(name).removeprefix(": "), samples


def _columns(found: Gathered, *, samples: bool) -> Iterator[dict[str, Any]]:
    for name, column in found.columns.items():
        drawn = []
        if column.numbers:
            drawn.append(charts.histogram(visible(name), column.numbers))
        if labels := _labels(column, samples=samples):
            drawn.append(charts.bars(visible(name), labels))
        numbers = sorted(column.numbers)
        yield {
            "name": visible(name),
            "charts": drawn,
            "null": column.null,
            "different": len(column.labels),
            "more": bool(column.beyond),
            "range": (f"{numbers[0]:g}", f"{numbers[len(numbers) // 2]:g}", f"{numbers[-1]:g}") if numbers else None,
        }


def _labels(column: Column, *, samples: bool) -> list[tuple[str, int]]:
    """Give the labels worth a chart: those that the job names, else texts that come again; most frequent first."""
    if column.declared:
        counted = {name: column.labels.get(name, 0) for name in column.declared}
        return sorted(((visible(name), number) for name, number in counted.items()), key=lambda item: -item[1])
    counts = column.labels.most_common()
    few = len(counts) <= charts.MOST_BARS or sum(column.labels.values()) >= 2 * len(counts)
    return [(visible(name), number) for name, number in counts] if samples and few else []


def _confusion(found: Gathered, *, samples: bool) -> dict[str, Any] | None:
    """Give how many answers are right, and the labels of a table where there are few."""
    gold = found.gold
    if gold is None:
        return None
    declared = found.columns[gold.answer].declared
    answers = sorted({*declared, *(answer for _, answer in gold.pairs if answer is not None)})
    truths = sorted({truth for truth, _ in gold.pairs})
    few = max(len(answers), len(truths)) <= CLASSES and (samples or {*answers, *truths} <= {*declared})
    return {
        "gold": gold,
        "right": sum(number for (truth, answer), number in gold.pairs.items() if truth == answer),
        "answered": sum(number for (_, answer), number in gold.pairs.items() if answer is not None),
        "total": gold.pairs.total(),
        "answers": [*answers, None] if few else [],
        "truths": truths if few else [],
        "most": max(gold.pairs.values(), default=1),
    }
