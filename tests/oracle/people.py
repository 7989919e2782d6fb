"""A person who looks at rows: takes the file of `show --review`, edits or confirms some answers, hands it in."""

import csv
import json
from pathlib import Path
from typing import Any

from oracle.looks import Command, Looked
from oracle.model import OK, End, Job, answer_to

TODO = "todo.csv"
COUNT = 3


def review(run: Command, name: str, now: Looked, folder: Path, number: int) -> None:
    """Write the rows to look at, decide some of them, and let `correct` take that; the memory then holds it."""
    file = folder / TODO
    file.unlink(missing_ok=True)
    ended = run("show", name, "--review", "-n", str(COUNT), "-o", TODO)
    assert ended.code == 0, f"show --review ended with {ended.code}: {ended.err}"
    with file.open(encoding="utf-8", newline="") as opened:
        names, *cells = csv.reader(opened)
    lines = [dict(zip(names, row, strict=True)) for row in cells]
    _check(now, lines)
    decided: dict[tuple[str, ...], dict[str, Any]] = {}
    for place, line in enumerate(lines):
        at = int(line["row"]) - 1
        key, one = now.job.cells(now.table.rows[at]), now.planned[at]
        if key in decided or (place + number) % 3 == 2:
            continue
        line["needs_review"] = ""
        if not isinstance(one, End) and now.end(one) == OK and (place + number) % 2:
            answer = answer_to(one, now.job)
            decided[key] = {column: answer[column] for column in _answer(now.job, number)}
        else:
            decided[key] = _answer(now.job, number)
            line |= {column: _text(value) for column, value in decided[key].items()}
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([names, *(list(line.values()) for line in lines)])
    ended = run("correct", name, TODO)
    assert ended.code == 0, f"correct ended with {ended.code}: {ended.err}"
    now.memory.people |= decided


def _check(now: Looked, lines: list[dict[str, str]]) -> None:
    """Hold the lines to the rows that nobody has looked at: each question once, failed rows first."""
    open_rows, seen = 0, set[object]()
    for row, one in zip(now.table.rows, now.planned, strict=True):
        is_first = one not in seen or now.end(one).error == "template_error"
        seen.add(one)
        open_rows += (
            is_first and now.end(one).status in {"ok", "failed"} and now.job.cells(row) not in now.memory.people
        )
    assert len(lines) == min(COUNT, open_rows), f"{len(lines)} rows to look at, expected {open_rows}"
    failed = [now.end(now.planned[int(line["row"]) - 1]).status == "failed" for line in lines]
    assert failed == sorted(failed, reverse=True), f"failed rows do not come first: {failed}"


def _answer(job: Job, number: int) -> dict[str, Any]:
    """Return an answer of a person."""
    if job.columns is None:
        return {"answer": f"Mine {number}"}
    values = {
        "integer": number, "number": number / 4, "boolean": bool(number % 2), "date": "2020-02-02", "string": "mine",
        "string?": "perhaps mine",
    }  # fmt: skip
    lists = {"label": ["good", "bad"][number % 2], "tags": ["p", "q"]}
    return {
        name: lists[name] if isinstance(kind, list) else values[kind]
        for name, kind in job.columns.items()
        if kind != "chance"
    }


def _text(value: Any) -> str:  # noqa: ANN401  (any JSON)
    return value if isinstance(value, str) else json.dumps(value)
