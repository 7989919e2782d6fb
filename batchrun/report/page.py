"""The page: facts, bars and a table of rows, as one HTML file that needs no network."""

import base64
import hashlib
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from batchrun._version import __version__
from batchrun.api import cost_kind
from batchrun.checkpoint import utc_day
from batchrun.disk import write_whole
from batchrun.errors import ExitCode, UserError
from batchrun.money import CostKind, cost
from batchrun.prepare import Prepared
from batchrun.report import comparison_text, evaluation_text
from batchrun.report.answered import OpenJob
from batchrun.report.bars import Bar
from batchrun.report.comparison import compare
from batchrun.report.evaluation import Evaluation, evaluate
from batchrun.report.figures import Share, percent
from batchrun.report.gather import FailedRow, Gathered, cut, gather, visible
from batchrun.report.gold import GoldOptions
from batchrun.report.patterns import worth_a_look
from batchrun.runner import advice
from batchrun.terminal import duration, when

FOLDER = Path(__file__).parent
RUNS = 20
MOST_CLASSES = 12
"""Labels of a confusion table."""

_EXITS = {
    ExitCode.DONE: "done",
    ExitCode.SOME_FAILED: "finished, some rows failed",
    ExitCode.USER: "a mistake in job, key or input",
    ExitCode.STOPPED_BY_API: "stopped by the API",
    ExitCode.STOPPED_BY_LIMIT: "stopped by a limit of the job",
    ExitCode.STORAGE: "disk, checkpoint or senders failed",
    ExitCode.WAITING: "waiting for a provider's batch",
    ExitCode.SIGINT: "interrupted",
    ExitCode.SIGTERM: "terminated",
}


class Chart(NamedTuple):
    """Bars under a title. `field` is the place of their values in a row of the table."""

    title: str
    field: int
    bars: list[Bar]
    note: str
    most: int


class Matrix(NamedTuple):
    """Counts of (gold, answer); `gold` is empty where a table would be too large. `fields`: their places in a row."""

    gold: list[str]
    answers: list[str | None]
    cells: dict[tuple[str, str | None], int]
    most: int
    fields: tuple[int, int]


class ErrorGroup(NamedTuple):
    """An error: rows that failed by it, attempts in all runs, what to do, examples."""

    name: str
    rows: int
    attempts: int
    advice: str
    samples: list[FailedRow]


def report_path(prepared: Prepared) -> Path:
    """Return the report's default path: NAME.report.html next to the output NAME.SUFFIX."""
    return prepared.job.output_path.with_name(f"{prepared.job.output_path.stem}.report.html")


def write_report(
    job: OpenJob, path: Path, *, gold: str | None = None, other: OpenJob | None = None, samples: bool = True
) -> None:
    """Write the report to `path`, whole or not at all. `samples`: whether text of rows and servers is in it.

    `other` is an earlier state of the job, or another job on the same input, to compare with.
    Raises UserError where input or wording are not those of the last run, StorageError where the disk fails.
    """
    prepared, checkpoint = job.prepared, job.checkpoint
    if path.suffix.lower() not in {".html", ".htm"}:
        raise UserError(f"{path} is not a name for a report: write one that ends in .html")
    job.check_plan()
    if other is not None and not other.prepared.rows.has_rows_of(prepared.rows):
        raise UserError("a report compares jobs on the same rows; `batchrun compare --on COLUMN` pairs rows of others")
    counts, runs = checkpoint.counts(), checkpoint.runs(RUNS)
    options = evaluation = right = None
    if gold:
        options = GoldOptions(gold)
        evaluation = evaluate(job, options)
        right = evaluation.gold
    found = gather(job, gold=right, other=other, samples=samples)
    page = _page(
        cost_kind(prepared.job),
        job=prepared.job,
        model=prepared.endpoint.model,
        counts=counts,
        runs=runs,
        exits=_EXITS,
        seconds=sum((run.ended_at or run.started_at) - run.started_at for run in runs),
        spent=(counts.cost, checkpoint.spent(day=utc_day(time.time())), checkpoint.spent()),
        possibly_billed=checkpoint.possibly_billed(),
        errors=_errors(counts.errors or {}, checkpoint.failed_attempts(), found),
        charts=list(_charts(found, samples=samples)),
        evaluation=evaluation,
        comparison=other and compare(other, job, gold=options, on=None),
        boxes=list(_boxes(found, other)),
        matrix=evaluation and _matrix(evaluation, found, samples=samples),
        patterns=worth_a_look(checkpoint, texts=samples),
        found=found,
        data=_data(found) if samples else None,
        samples=samples,
        version=__version__,
        now=time.time(),
    )
    write_whole(path, page.encode())


def _page(kind: CostKind, **facts: Any) -> str:  # noqa: ANN401  (what the template names)
    """Return the page; `kind` says what its costs mean.

    Its policy lets only our own style and script run, known by their digests.
    """
    # A template that escapes would break them, and their digests must be those of the exact text.
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:"
    files = FileSystemLoader(FOLDER)
    templates = Environment(loader=files, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    filters = {"when": when, "duration": duration, "visible": visible, "cut": cut, "percent": percent}
    templates.filters.update(filters, usd=lambda amount: cost(amount, kind))
    wanted = partial(_wanted, facts["found"].room)
    templates.globals.update(share=Share, wanted=wanted, judged=evaluation_text, compared=comparison_text)
    ours = {"style": Markup(style), "script": Markup(script)}  # noqa: S704  (our own files)
    return templates.get_template("page.html.j2").render(facts, policy=f"{policy}; base-uri 'none'", **ours)


def _wanted(room: int, *pairs: tuple[int, list[Any]]) -> str:
    """Return an attribute that names the rows to show: places in a row, each with what its value must be.

    That is a value, cut as the table's cells are, a range [from, below], or any value [].
    """
    return orjson.dumps(
        [[field, *(cut(one, room) if isinstance(one, str) else one for one in wanted)] for field, wanted in pairs]
    ).decode()


def _boxes(found: Gathered, other: OpenJob | None) -> Iterator[tuple[str, str]]:
    """Yield the names of filters, each with the attribute that names its rows."""
    compared = f"changed from {visible(other.name)}" if other else ""
    for text, name, wanted in (
        ("needs review", "needs_review", ["true"]),
        ("corrected", "corrected", ["true"]),
        ("differs from gold", "differs", ["true"]),
        (compared, "change", []),
    ):
        if (place := found.place(name)) >= 0:
            yield text, _wanted(found.room, (place, wanted))


def _data(found: Gathered) -> Markup:
    """Return the table for the script; no "<" in it can end the element that holds it."""
    facts = {
        "fields": [visible(name) for name in found.fields],
        "inputs": found.inputs,
        "behind": found.behind,
        "hidden": [found.place("differs"), found.place("corrected")],
        "rows": found.rows,
    }
    return Markup(orjson.dumps(facts).decode().replace("<", "\\u003c"))  # noqa: S704  (JSON without "<")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _errors(rows: Mapping[str, int], attempts: Mapping[str, int], found: Gathered) -> list[ErrorGroup]:
    names = sorted({*rows, *attempts}, key=lambda name: (-rows.get(name, 0), -attempts.get(name, 0)))
    return [
        ErrorGroup(name, rows.get(name, 0), attempts.get(name, 0), advice(name).removeprefix(": "), found.samples[name])
        for name in names
    ]


def _charts(found: Gathered, *, samples: bool) -> Iterator[Chart]:
    for place, (name, tally) in enumerate(found.columns.items(), found.first_answer):
        if bars := tally.bars(all_texts=samples):
            yield _chart(name, place, bars, tally.null)
    for place, (name, tally) in enumerate(found.probabilities.items(), found.first_answer + len(found.columns)):
        if bars := tally.bars():
            yield _chart(f"Probability of {name}", place, bars)
    for name, field, tally, unit in (
        ("Latency of answers", "seconds", found.seconds, " s"),
        ("Cost of 1,000 questions like this one, USD", "$ / 1,000", found.cost, ""),
    ):
        if bars := tally.bars(unit=unit):
            yield _chart(name, found.place(field), bars)


def _chart(title: str, field: int, bars: list[Bar], null: int = 0) -> Chart:
    return Chart(visible(title), field, bars, f"{null:,} null" if null else "", max(bar.count for bar in bars) or 1)


def _matrix(evaluation: Evaluation, found: Gathered, *, samples: bool) -> Matrix | None:
    """Return the confusion matrix; None where labels are many, or hidden since the job does not name them."""
    gold = [one.label for one in evaluation.labels if one.support]
    answers: list[str | None] = [one.label for one in evaluation.labels if one.answered]
    declared = found.columns[evaluation.gold.answer].declared
    if not gold or (not samples and not {*gold, *answers} <= {*declared}):
        return None
    cells: dict[tuple[str, str | None], int] = {(one.gold, one.answer): one.questions for one in evaluation.confusions}
    cells.update(((one.label, one.label), one.right) for one in evaluation.labels)
    if any(answer is None for _, answer in cells):
        answers.append(None)
    is_small = max(len(gold), len(answers)) <= MOST_CLASSES
    fields = (found.place("gold"), found.first_answer + list(found.columns).index(evaluation.gold.answer))
    return Matrix(gold if is_small else [], answers, cells, max(cells.values()), fields)
