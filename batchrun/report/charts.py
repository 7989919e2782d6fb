"""Charts as SVG elements for the page: drawn by pygal, coloured by the page's style sheet."""

import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import pygal
from markupsafe import Markup
from pygal.style import Style

from batchrun.checkpoint import RunInfo

# Its hook for pygal's own plugins, of which we use none, is of a kind that Python 3.11 warns of at any later import.
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "pygal"]

WIDTH, HEIGHT, BAR_HEIGHT = 420, 200, 20
POINTS, BINS = 120, 30
MOST_BARS = 12
LONGEST_LABEL = 32
_TAIL = 0.99

_KEPT = {"g", "rect", "path", "circle", "text"}

# Sizes are for pygal's own arithmetic; the page's style sheet repeats them.
_OPTIONS: dict[str, Any] = {
    "style": Style(label_font_size=11, major_label_font_size=11, value_font_size=11),
    "js": (),
    "no_prefix": True,
    "disable_xml_declaration": True,
    "show_legend": False,
    "width": WIDTH,
    "margin": 6,
    "margin_right": 18,
}


def bars(title: str, counts: Sequence[tuple[str, int]]) -> Markup:
    """Draw how often each label came, the first one on top; what is beyond MOST_BARS is one bar."""
    shown = list(counts[:MOST_BARS])
    if rest := counts[MOST_BARS:]:
        shown.append((f"{len(rest):,} others", sum(number for _, number in rest)))
    total = sum(number for _, number in counts) or 1
    chart = pygal.HorizontalBar(
        **_OPTIONS, height=40 + BAR_HEIGHT * len(shown), show_x_labels=False, show_x_guides=False, min_scale=2
    )
    names = [
        f"\u2068{name[:LONGEST_LABEL] or '(empty)'}\u2069 · {number:,} ({number / total:.0%})" for name, number in shown
    ]
    chart.x_labels = names[::-1]
    chart.add(title, [number for _, number in shown[::-1]])
    return _drawn(chart, title)


def histogram(title: str, values: Sequence[float], unit: str = "") -> Markup:
    """Draw how numbers are spread; the largest hundredth goes into the last bin."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[min(len(ordered) - 1, math.ceil(_TAIL * len(ordered)))]
    whole = all(float(value).is_integer() for value in ordered)
    width = math.ceil((high - low + 1) / BINS) if whole else (high - low) / BINS or 1.0
    counts = [0] * (int((high - low) / width) + 1 if whole else BINS)
    for value in ordered:
        counts[min(int((value - low) / width), len(counts) - 1)] += 1
    shift = width / 2 if whole and width == 1 else 0.0
    spans = [(number, low - shift + at * width, low - shift + (at + 1) * width) for at, number in enumerate(counts)]
    chart = _spans(title, spans, lambda at: f"{at:,.4g}{unit}" if abs(at) < 1_000 else f"{at:.0f}{unit}")  # noqa: PLR2004  (years keep their form)
    return _drawn(chart, title)


def progress(title: str, answered: Sequence[float], failed: Sequence[float]) -> Markup:
    """Draw how many questions were settled over time; times in seconds of work, ascending."""
    chart = pygal.XY(**_OPTIONS, height=HEIGHT, show_dots=False, min_scale=3, max_scale=6, xrange=None)
    _mark_times(chart, max(*answered[-1:], *failed[-1:], 0.0, 0.0))
    chart.value_formatter = "{:,.0f}".format
    chart.add("answered", _cumulative(answered))
    if failed:
        chart.add("failed", _cumulative(failed))
    return _drawn(chart, title)


def throughput(title: str, settled: Sequence[float]) -> Markup:
    """Draw questions per second over time; times in seconds of work, ascending."""
    width = max(settled[-1] / BINS, 0.1)
    counts = [0] * (int(settled[-1] / width) + 1)
    for at in settled:
        counts[int(at / width)] += 1
    spans = [(number / width, at * width, (at + 1) * width) for at, number in enumerate(counts)]
    chart = _spans(title, spans, lambda at: f"{at:.4g} s")
    _mark_times(chart, settled[-1])
    return _drawn(chart, title)


def work_seconds(times: Sequence[float], runs: Sequence[RunInfo]) -> list[float]:
    """Put Unix times on one clock that runs while a run runs, so that the pauses between runs take no room."""
    ordered, runs = sorted(times), sorted(runs, key=lambda run: run.started_at)
    if not ordered or not runs:
        return []
    starts = [run.started_at for run in runs]
    offsets, total = [], 0.0
    for index, run in enumerate(runs):
        offsets.append(total)
        following = starts[index + 1] if index + 1 < len(runs) else math.inf
        last = ordered[bisect_right(ordered, following) - 1]
        total += max(0.0, min(run.ended_at or last, following) - run.started_at)
    places = [max(0, bisect_right(starts, at) - 1) for at in ordered]
    return [max(0.0, offsets[at_run] + at - starts[at_run]) for at, at_run in zip(ordered, places, strict=True)]


def _cumulative(times: Sequence[float]) -> list[tuple[float, int]]:
    step = max(1, len(times) // POINTS)
    chosen = {*range(0, len(times), step), len(times) - 1} if times else set()
    return [(0.0, 0), *((times[index], index + 1) for index in sorted(chosen))]


def _spans(title: str, spans: Sequence[tuple[float, float, float]], show: Callable[[float], str]) -> Any:  # noqa: ANN401  (pygal's chart)
    chart = pygal.Histogram(**_OPTIONS, height=HEIGHT, min_scale=3, max_scale=6)
    chart.x_value_formatter = show
    chart.value_formatter = lambda value: f"{value:,.0f}" if value >= 10 else f"{value:.3g}"  # noqa: PLR2004  (digits)
    tips = (f"{show(start)} to {show(end)}: {value:,.6g}" for value, start, end in spans)
    chart.add(title, [{"value": span, "label": tip} for span, tip in zip(spans, tips, strict=True)])
    return chart


def _mark_times(chart: Any, longest: float) -> None:  # noqa: ANN401  (pygal has no type information)
    """Put round times on the x axis, in the unit that fits the longest one."""
    size, unit = next(((size, unit) for size, unit in ((3_600, "h"), (60, "min")) if longest > 3 * size), (1, "s"))
    rough = longest / size / 5 or 1.0
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(decade * factor for factor in (1, 2, 5, 10) if decade * factor >= rough)
    chart.x_labels = [at * step * size for at in range(int(longest / size / step) + 1)]
    chart.x_value_formatter = lambda at: f"{at / size:.3g} {unit}"


def _drawn(chart: Any, title: str) -> Markup:  # noqa: ANN401  (pygal has no type information)
    def plain(root: Any) -> Any:  # noqa: ANN401  (an element)
        """Leave shapes and texts alone: no script, no style, no comment; a value is shown by the browser's tooltip."""
        for parent in list(root.iter()):
            told = [child.text for child in parent.findall("desc")]
            for child in list(parent):
                if child.tag not in _KEPT or "tooltip-overlay" in child.get("class", ""):
                    parent.remove(child)
            if told or parent is root:
                parent.insert(0, parent.makeelement("title", {}))
                parent[0].text = told[0] if told else title
        root.attrib.pop("id", None)
        root.set("role", "img")
        return root

    chart.add_xml_filter(plain)
    return Markup(chart.render(is_unicode=True))  # noqa: S704  (the library escapes the labels; the test holds it to that)
