"""Whole jobs over every shape of input: several files, short files, odd names, formats that come and go."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_line import Command, command
from job_running import write_job
from simulator_server import Running, running

__all__ = ["command"]

ROWS = [{"id": f"{number}", "text": f"text {number}"} for number in range(7)]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Serve one simulator for all tests here."""
    with running() as simulator:
        yield simulator


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the key that the jobs name."""
    monkeypatch.setenv("KEY", "sk-canary")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows in the format of the path's suffix."""
    frame = pl.DataFrame(rows, schema={"id": pl.String, "text": pl.String})
    if path.suffix == ".csv":
        frame.write_csv(path)
    elif path.suffix == ".jsonl":
        frame.write_ndjson(path)
    elif path.suffix == ".arrow":
        frame.write_ipc(path)
    else:
        frame.write_parquet(path, row_group_size=2)


@pytest.mark.parametrize("keep", ["all", "none", ["id"]])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".arrow"])
def test_several_files_get_one_output(
    command: Command,
    server: Running,
    tmp_path: Path,
    suffix: str,
    keep: Any,  # noqa: ANN401  (JSON)
) -> None:
    """A job over three files, none of which fills a frame, writes each row once, in order; so does export."""
    for number, rows in enumerate((ROWS[:3], ROWS[3:4], ROWS[4:])):
        write_rows(tmp_path / f"part{number}{suffix}", rows)
    write_job(
        tmp_path, server.url, input={"path": f"part?{suffix}"}, answer=None, output={"path": "out.jsonl", "keep": keep}
    )
    assert command("job.yaml").code == 0
    assert command("job.yaml").code == 0
    assert command("export", "job.yaml", "-o", "again.jsonl").code == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["ok"] * 7
    if keep != "none":
        assert [line["id"] for line in lines] == [row["id"] for row in ROWS]
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def test_where_may_name_a_column_twice(command: Command, server: Running, tmp_path: Path) -> None:
    """A column named twice by where, and by the prompt as well, is read once."""
    (tmp_path / "in.csv").write_text("text,year\na,1980\nb,1995\nc,2005\n")
    write_job(
        tmp_path,
        server.url,
        input={"path": "in.csv", "where": "year >= 1990 and year < 2000", "csv": {"columns": {"year": "integer"}}},
        prompt={"user": "{{ text }} {{ year }}"},
        answer=None,
        output={"path": "out.csv"},
    )
    assert command("job.yaml").code == 0
    assert pl.read_csv(tmp_path / "out.csv")["status"].to_list() == ["skipped", "ok", "skipped"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("column", ["*", "^t.*$"])
def test_a_column_may_be_called_like_a_pattern(
    command: Command, server: Running, tmp_path: Path, column: str, suffix: str
) -> None:
    """Columns whose names are patterns to Polars are read, filtered and written as any other."""
    frame = pl.DataFrame({"text": ["a", "b"], column: ["x", None]})
    writers: dict[str, Callable[[Path], Any]] = {
        ".csv": frame.write_csv,
        ".jsonl": frame.write_ndjson,
        ".parquet": frame.write_parquet,
    }
    writers[suffix](tmp_path / f"in{suffix}")
    write_job(
        tmp_path,
        server.url,
        input={"path": f"in{suffix}", "where": f'"{column}" is not null'},
        prompt={"user": f"{{{{ text }}}} {{{{ row['{column}'] }}}}"},
        answer=None,
        output={"path": "out.jsonl"},
    )
    assert command("job.yaml").code == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line[column], line["status"]) for line in lines] == [("x", "ok"), (None, "skipped")]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".arrow"])
def test_a_file_name_need_not_be_utf_8(command: Command, server: Running, tmp_path: Path, suffix: str) -> None:
    """An input whose name is no UTF-8 text is found by a glob and read as any other."""
    write_rows(tmp_path / f"in{suffix}", ROWS)
    os.rename(os.fsencode(tmp_path / f"in{suffix}"), os.fsencode(tmp_path) + b"/caf\xe9" + suffix.encode())  # noqa: PTH104  (bytes)
    write_job(tmp_path, server.url, input={"path": f"caf*{suffix}"}, answer=None, output={"path": "out.csv"})
    assert command("job.yaml").code == 0
    assert command("job.yaml").code == 0
    assert pl.read_csv(tmp_path / "out.csv")["status"].to_list() == ["ok"] * 7


@pytest.mark.parametrize("suffix", [".tsv", ".ndjson"])
def test_output_formats_have_their_other_names(command: Command, server: Running, tmp_path: Path, suffix: str) -> None:
    """What export writes can be an output.path as well."""
    write_job(tmp_path, server.url, answer=None, output={"path": f"out{suffix}"})
    assert command("job.yaml").code == 0
    assert command("export", "job.yaml", "-o", f"again{suffix}").code == 0
    assert (tmp_path / f"again{suffix}").read_bytes() == (tmp_path / f"out{suffix}").read_bytes()
