"""What a reply says beside its answer, through whole jobs: thoughts and cited pages become columns where asked for."""

import csv
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from job_running import run, write_job
from plain_server import completion, plain_server

from batchrun.api.judge import judge
from batchrun.records import Reply

DETAILS = ["status", "reasoning", "citations"]
PAGE = {"url": "https://example.org/a", "title": "A page", "content": "It says so.", "start_index": 3, "end_index": 9}
BARE = {"url": "https://example.org/b", "title": None, "content": None, "start_index": None, "end_index": None}


def thinking(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Answer with a thought and two cited pages, of which one says no more than its URL; the third row has neither."""
    status, reply = completion('{"label": "good", "score": 1}')
    if "text 2" not in json.dumps(body):
        annotations = [
            {"type": "url_citation", "url_citation": PAGE},
            {"type": "file", "file": {"hash": "x"}},
            {"type": "url_citation", "url_citation": {"url": BARE["url"]}},
        ]
        reply["choices"][0]["message"] |= {"reasoning": "First, …\nso good.", "annotations": annotations}
    return status, reply


def stored(folder: Path) -> list[tuple[Any, ...]]:
    """Return what the checkpoint keeps."""
    with closing(sqlite3.connect(folder / ".batchrun" / "job.sqlite")) as connection:
        return connection.execute("SELECT reasoning, citations FROM answers").fetchall()


def test_reasoning_and_citations_are_typed_columns(tmp_path: Path) -> None:
    """Parquet and JSON Lines hold a list of structs, CSV its JSON text; a row without them has nulls."""
    with plain_server(thinking) as url:
        ran = run(write_job(tmp_path, url, output={"details": DETAILS}))
        assert ran.column("reasoning") == ["First, …\nso good.", "First, …\nso good.", None]
        assert ran.column("citations") == [[PAGE, BARE], [PAGE, BARE], None]
        assert ran.output is not None
        assert ran.output.schema["citations"] == pl.List(
            pl.Struct({name: pl.Int64 if "index" in name else pl.String for name in PAGE})
        )
        run(write_job(tmp_path, url, output={"path": "out.jsonl", "details": DETAILS}))
        run(write_job(tmp_path, url, output={"path": "out.csv", "details": DETAILS}))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["citations"] for line in lines] == [[PAGE, BARE], [PAGE, BARE], None]
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert json.loads(rows[0]["citations"]) == [PAGE, BARE]
    assert (rows[0]["reasoning"], rows[2]["citations"]) == ("First, …\nso good.", "")


def test_what_no_column_shows_is_not_stored(tmp_path: Path) -> None:
    """Thoughts can be longer than all answers together: the checkpoint keeps them only where the job names them."""
    with plain_server(thinking) as url:
        run(write_job(tmp_path, url))
    assert stored(tmp_path) == [(None, None)] * 3
    with plain_server(thinking) as url:
        run(write_job(tmp_path, url, rows=["a new row"], output={"details": ["reasoning"]}))
    assert [row for row in stored(tmp_path) if any(row)] == [("First, …\nso good.", None)]


@pytest.mark.parametrize(
    "annotations",
    [None, [], {}, "x", [1], [{"type": "url_citation"}], [{"type": "url_citation", "url_citation": {"url": 1}}]],
)
def test_annotations_that_name_no_page_are_passed_over(annotations: object) -> None:
    """Whatever a server puts there, the answer counts."""
    message = {"content": "fine", "annotations": annotations, "reasoning": {"no": "text"}}
    reply = {"choices": [{"message": message, "finish_reason": "stop"}]}
    verdict = judge(Reply(200, body=json.dumps(reply).encode()), lambda text, **_: text, now=0.0)
    assert (verdict.ending, verdict.answer) == ("ok", "fine")
    assert (verdict.reasoning, verdict.citations) == (None, None)
