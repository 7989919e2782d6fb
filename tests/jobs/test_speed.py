"""A guard against slow decay: calls of functions a row and memory, held to what they were; and files read only once."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchrun.checkpoint import PlanInfo
from batchrun.job import Input
from batchrun.prepare.plan import known_files, stamps_text
from batchrun.table import open_rows

ROWS = 6_000
MOST_CALLS = 180
"""Calls of functions that one row may cost, in all threads: half as many again as when this was written (118)."""
MOST_MEMORY = 270.0
"""MB at the peak; it was 134 when this was written."""

SERVER = """
import asyncio, json
reply = {"id": "gen-1", "model": "m", "choices": [{"finish_reason": "stop", "message": {"content": "good, all told"}}],
         "usage": {"prompt_tokens": 150, "completion_tokens": 12, "cost": 0.0000297}}
body = json.dumps(reply).encode()
head = b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: %d\\r\\n\\r\\n"
answer = head % len(body) + body
async def talk(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\\r\\n")[0]))
            writer.write(answer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""

MEASURE = """
import itertools, json, re, sys, threading
from batchrun.__main__ import main

def job(path):
    sys.argv = ["batchrun", path, "--quiet"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code

calls = itertools.count()
def count(frame, event, argument):
    if event == "call":
        next(calls)

small, large, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
job(small)  # imports, compiles, connects
threading.setprofile(count)
sys.setprofile(count)
job(large)
sys.setprofile(None)
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1000
print(json.dumps({"calls": next(calls) / rows, "mb": peak}))
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve one good reply from a process of its own, whose CPU time is not ours."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        server.kill()


def a_job(folder: Path, url: str, rows: int) -> Path:
    """Write a job and its CSV of that many rows, old enough to be trusted."""
    folder.mkdir()
    table = folder / "rows.csv"
    text = "lorem ipsum dolor sit amet " * 16
    table.write_text("id,text\n" + "".join(f'{row},"{row} {text}"\n' for row in range(rows)))
    job = {
        "input": {"path": "rows.csv"},
        "prompt": {"system": "You label reviews.", "user": "Review: {{ text }}"},
        "model": {"endpoint": url, "name": "m"},
        "limits": {"concurrency": 64},
        "output": {"path": "out.parquet"},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_a_row_costs_as_few_calls_as_ever(tmp_path: Path, url: str) -> None:
    """A whole job calls at most half as many functions more for a row than it did, whatever else the machine does."""
    jobs = [str(a_job(tmp_path / name, url, rows)) for name, rows in (("small", 100), ("large", ROWS))]
    command = [sys.executable, "-c", MEASURE, *jobs, str(ROWS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    found = json.loads(done.stdout)
    assert found["calls"] < MOST_CALLS, found
    assert found["mb"] < MOST_MEMORY, found


def test_a_known_layout_saves_reading_the_file(tmp_path: Path) -> None:
    """Of a JSON Lines file whose layout is known nothing is read when it is opened, unless it was too young."""
    (tmp_path / "rows.jsonl").write_text('{"id":1}\n{"id":2}\n')
    given = Input("rows.jsonl")
    with open_rows(given, tmp_path) as rows:
        assert [len(batch.rows) for batch in rows.batches()] == [2]
        plan = PlanInfo(1, "mark", "wording", stamps_text(rows.files), "", 1, 1, 0, rows.layout.text())
        layout = rows.layout
    assert known_files(plan) == {rows.files: layout.text()}
    assert known_files(replace(plan, fingerprint="")) == {}
    layout.columns = {"other": "String"}
    with open_rows(given, tmp_path, {rows.files: layout.text()}) as rows:
        assert rows.columns == ("other",)


def test_reading_starts_near_the_row_that_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the byte offsets of a first pass, rows far into a file are read from near them, whatever lies between."""
    monkeypatch.setattr("batchrun.table.read.OFFSET_ROWS", 10)
    lines = [f'{number},"a\n{number}"\n' + "\n" * (number % 2) for number in range(100)]
    (tmp_path / "a.csv").write_text("\ufeffid,text\n" + "".join(lines[:50]), encoding="utf-8")
    (tmp_path / "b.csv").write_text("text,id\n" + "".join(f'"a\n{number}",{number}\n' for number in range(50, 100)))
    given = Input(("a.csv", "b.csv"))
    with open_rows(given, tmp_path) as rows:
        first = [row for batch in rows.batches(size=7) for row in batch.rows]
        layout = rows.layout
    assert layout.starts == [0, 50]
    assert len(layout.offsets) == 6
    with open_rows(given, tmp_path, {rows.files: layout.text()}) as rows:
        for start in (0, 13, 14, 15, 49, 50, 51, 77, 99, 100):
            assert [row for batch in rows.batches(start=start, size=3) for row in batch.rows] == first[start:]
    assert first == [(str(number), f"a\n{number}") for number in range(100)]
