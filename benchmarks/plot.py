"""Draws scale.json as docs/images/scale.svg: how time and memory grow with the rows."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SVG = HERE.parent / "docs" / "images" / "scale.svg"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 340, 60, 12, 34, 40
COLOURS = ("#4e79a7", "#e15759", "#59a14f", "#b07aa1", "#d08a2e")
SECONDS = {
    "input touched": "touched_cpu_s",
    "resume, 1 % open": "resume_cpu_s",
    "export": "export_cpu_s",
    "nothing new": "no_op_cpu_s",
}
MEMORY = {
    "input touched": "touched_mb",
    "resume, 1 % open": "resume_mb",
    "export": "export_mb",
    "nothing new": "no_op_mb",
}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 } .grid { stroke: #ccc } .title { font-weight: 600 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .grid { stroke: #555 } }
"""


class Panel:
    """One diagram; `x` counts rows on a logarithmic scale, `y` goes from 0 to 1."""

    def __init__(self, left: int, title: str, rows: Sequence[int], y: Callable[[float], float]) -> None:
        self._left, self._rows, self._y = left + LEFT, rows, y
        self.parts = [f'<text class="title" x="{self._left}" y="18">{title}</text>']

    def _place(self, rows: float, value: float) -> tuple[float, float]:
        low, high = math.log10(self._rows[0]), math.log10(self._rows[-1])
        right = (math.log10(rows) - low) / (high - low or 1)
        return (
            round(self._left + right * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - self._y(value) * (HEIGHT - TOP - BOTTOM), 1),
        )

    def grid(self, values: Sequence[float], unit: str) -> None:
        """Draw lines and numbers."""
        for value in values:
            x, y = self._place(self._rows[0], value)
            end = self._place(self._rows[-1], value)[0]
            self.parts.append(f'<line class="grid" x1="{x}" y1="{y}" x2="{end}" y2="{y}"/>')
            self.parts.append(f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{value:,g}{unit}</text>')
        for rows in self._rows:
            x, _ = self._place(rows, values[0])
            self.parts.append(f'<text x="{x}" y="{HEIGHT - 18}" text-anchor="middle">{_short(rows)}</text>')

    def line(self, colour: str, points: Sequence[tuple[int, float]], *, dashed: bool) -> None:
        """Draw one curve with its points."""
        places = [self._place(*point) for point in points]
        path = " ".join(f"{x},{y}" for x, y in places)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        self.parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in places]


def _short(rows: int) -> str:
    return f"{rows // 1_000_000}M" if rows >= 1_000_000 else f"{rows // 1_000}k"


def draw(found: Sequence[dict[str, Any]]) -> str:
    """Return the SVG."""
    rows = sorted({one["rows"] for one in found})
    most = 10 ** math.ceil(math.log10(max(one[name] for one in found for name in SECONDS.values())))
    decades = int(math.log10(most)) + 1
    seconds = Panel(0, "CPU seconds", rows, lambda value: (math.log10(value) + 1) / decades)
    seconds.grid([10.0**power for power in range(-1, decades)], " s")
    memory = Panel(WIDTH, "peak of memory, MB", rows, lambda value: value / 600)
    memory.grid([0, 100, 200, 300, 400, 500, 600], "")
    legend = []
    for number, name in enumerate(SECONDS):
        for suffix in (".csv", ".parquet"):
            of = [one for one in found if one["input"] == suffix]
            dashed = suffix == ".parquet"
            seconds.line(COLOURS[number], [(one["rows"], one[SECONDS[name]]) for one in of], dashed=dashed)
            memory.line(COLOURS[number], [(one["rows"], one[MEMORY[name]]) for one in of], dashed=dashed)
        x = LEFT + number * 150
        legend.append(f'<rect x="{x}" y="{HEIGHT + 2}" width="12" height="12" fill="{COLOURS[number]}"/>')
        legend.append(f'<text x="{x + 18}" y="{HEIGHT + 12}">{name}</text>')
    legend.append(f'<text x="{LEFT + 4 * 150}" y="{HEIGHT + 12}">CSV —  Parquet - -</text>')
    size = f'viewBox="0 0 {2 * WIDTH} {HEIGHT + 24}" width="{2 * WIDTH}" height="{HEIGHT + 24}"'
    label = "How CPU time and memory of each step grow with the rows"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}"><style>{STYLE}</style>'
    return "\n".join([head, *seconds.parts, *memory.parts, *legend, "</svg>", ""])


if __name__ == "__main__":
    SVG.write_text(draw(json.loads((HERE / "scale.json").read_text())))
