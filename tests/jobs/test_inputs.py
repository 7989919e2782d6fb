"""Whole jobs over every shape of input: several files, short files, odd names, formats that come and go."""

import base64
import gzip
import json
import os
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Command, command
from job_running import run, write_job
from plain_server import recording_server
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
    elif path.suffix == ".xlsx":
        frame.write_excel(path)
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


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".arrow", ".xlsx"])
def test_a_file_name_need_not_be_utf_8(command: Command, server: Running, tmp_path: Path, suffix: str) -> None:
    """An input whose name is not UTF-8 text is found by a glob and read as any other."""
    write_rows(tmp_path / f"in{suffix}", ROWS)
    os.rename(os.fsencode(tmp_path / f"in{suffix}"), os.fsencode(tmp_path) + b"/caf\xe9" + suffix.encode())  # noqa: PTH104  (bytes)
    write_job(tmp_path, server.url, input={"path": f"caf*{suffix}"}, answer=None, output={"path": "out.csv"})
    assert command("job.yaml").code == 0
    assert command("job.yaml").code == 0
    assert pl.read_csv(tmp_path / "out.csv")["status"].to_list() == ["ok"] * 7


def test_json_names_an_output_in_a_folder_whose_name_is_not_utf_8(
    command: Command, server: Running, tmp_path: Path
) -> None:
    """`--json` writes such a path with JSON's escapes, from which Python gets the path back."""
    folder = tmp_path / "job"
    folder.mkdir()
    write_rows(folder / "in.csv", ROWS)
    write_job(folder, server.url, input={"path": "in.csv"}, answer=None, output={"path": "out.csv"})
    odd = folder.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    path = odd / "job.yaml"
    for words in ((str(path), "--json"), ("status", str(path), "--json")):
        ended = command(*words)
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["ok"] == 7
    assert Path(json.loads(command(str(path), "--json").out)["output"]) == odd / "out.csv"


@pytest.mark.parametrize("suffix", [".tsv", ".ndjson"])
def test_output_formats_have_their_other_names(command: Command, server: Running, tmp_path: Path, suffix: str) -> None:
    """What export writes can be an output.path as well."""
    write_job(tmp_path, server.url, answer=None, output={"path": f"out{suffix}"})
    assert command("job.yaml").code == 0
    assert command("export", "job.yaml", "-o", f"again{suffix}").code == 0
    assert (tmp_path / f"again{suffix}").read_bytes() == (tmp_path / f"out{suffix}").read_bytes()


def test_a_json_number_depends_on_its_line_alone(command: Command, server: Running, tmp_path: Path) -> None:
    """An appended fraction asks one more question, and the others stand; each number is sent as it is written."""
    server.reset()
    (tmp_path / "in.jsonl").write_text('{"stock":3}\n{"stock":2.50}\n{"stock":[1, true, null]}\n')
    write_job(
        tmp_path, server.url, input={"path": "in.jsonl"}, prompt={"user": "{{ stock }} left"}, answer=None,
        output={"path": "out.jsonl"},
    )  # fmt: skip
    assert command("preview", "job.yaml").out.count(" left") == 3
    assert "[1, true, null] left" in command("preview", "job.yaml").out
    assert command("job.yaml").code == 0
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write('{"stock":7.25}\n')
    again = command("job.yaml", "--json")
    assert again.code == 0
    assert json.loads(again.out)["requests"] == 1
    assert [json.loads(line)["stock"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        "3", "2.50", "[1,true,null]", "7.25"
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_whole_json_row_depends_on_its_own_object_alone(tmp_path: Path, suffix: str) -> None:
    """`row` has the fields of the row's object in their order: an object with others, first or last, asks one row."""

    def write(*objects: str) -> None:
        text = "[" + ",".join(objects) + "]" if suffix == ".json" else "\n".join(objects)
        (tmp_path / f"in{suffix}").write_text(text)

    first, second = '{"text": "a", "n": 2.5}', '{"n": null, "text": "b"}'
    prompt = "{{ row | tojson }} {{ n | default('-') }} {{ row.get('n') is none }} {{ row['text'] }}"
    prompts = ['{"text": "a", "n": 2.5} 2.5 false a', '{"n": null, "text": "b"} - true b']
    with recording_server() as asked:
        path = write_job(
            tmp_path, asked.url, input=f"in{suffix}", prompt=prompt, answer=None, output={"path": "out.parquet"}
        )
        write(first, second)
        assert run(path).summary.ok == 2
        assert sorted(asked.prompts()) == sorted(prompts)
        asked.bodies.clear()
        write('{"z": [1], "n": 1, "text": "before"}', first, second, '{"text": "c", "more": {"y": 1, "x": 2}}')
        assert run(path).summary.ok == 4
    assert sorted(asked.prompts()) == sorted(
        ['{"z": [1], "n": 1, "text": "before"} 1 false before', '{"text": "c", "more": {"y": 1, "x": 2}} - true c']
    )


def test_a_field_that_an_object_lacks_is_null_in_its_row(tmp_path: Path) -> None:
    """Named in any way it is an empty cell: false, none, defined, its default; printed it is that row's error."""
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": "b", "a b": 1}\n')
    prompt = (
        "{% for name, value in row.items() %}{{ name }}={{ value }} {% endfor %}{{ row['a b'] is none }} "
        "{{ row['a b'] | default('-') }} {{ row['a b'] is defined }}{% if row['a b'] %} yes{% endif %}"
    )
    with recording_server() as asked:
        path = write_job(tmp_path, asked.url, input="in.jsonl", prompt=prompt, answer=None)
        assert run(path).summary.ok == 2
        assert sorted(asked.prompts()) == ["text=a true - true", "text=b a b=1 false 1 true yes"]
        path = write_job(tmp_path, asked.url, input="in.jsonl", prompt="{{ row }} {{ row['a b'] }}", answer=None)
        ran = run(path)
    assert (ran.summary.ok, ran.summary.failed) == (1, 1)
    assert "column \"a b\" is null: write {{ row['a b'] | default" in ran.column("error_message")[0]


def test_no_python_spelling_reaches_a_prompt_through_filters_and_operators(tmp_path: Path) -> None:
    """Joined, filtered or formatted: a list, a truth and a date look as they do when printed."""
    row = {"tags": [True, False], "flag": True, "day": date(2026, 1, 2), "parts": {"of": [date(2026, 1, 2)]}}
    pl.DataFrame([row]).write_parquet(tmp_path / "in.parquet")
    prompts = {
        '{{ tags ~ "|" ~ flag ~ "|" ~ parts }}': '[true, false]|true|{"of": ["2026-01-02"]}',
        "{{ flag | trim }} {{ parts | trim }}": 'true {"of": ["2026-01-02"]}',
        "{{ parts | upper }} {{ tags | replace('true', 'yes') }}": '{"OF": ["2026-01-02"]} [yes, false]',
        "{{ parts | truncate(9, true, '', 0) }} {{ flag | indent }}": '{"of": [" true',
        "{{ '%s, %s' | format(flag, parts) }}": 'true, {"of": ["2026-01-02"]}',
        "{{ '%s %s' % (flag, day) }}": "true 2026-01-02",
    }
    with recording_server() as asked:
        for prompt, text in prompts.items():
            path = write_job(
                tmp_path, asked.url, input={"path": "in.parquet"}, prompt={"user": prompt}, answer=None,
                output={"path": "out.parquet"},
            )  # fmt: skip
            assert run(path).summary.ok == 1
            assert asked.prompts() == [text]


def test_a_generator_reaches_no_prompt(tmp_path: Path) -> None:
    """Its text is an address in memory: another question at each run, which would be paid each night."""
    with recording_server() as asked:
        for prompt in ("{{ text | map('upper') | string }}", "{{ 'a' ~ (text | map('upper')) }}"):
            ran = run(write_job(tmp_path, asked.url, rows=1, prompt={"user": prompt}, answer=None))
            assert (ran.column("error_type"), asked.prompts()) == (["template_error"], [])
            assert 'add "| list"' in ran.column("error_message")[0]


def test_a_null_list_is_never_an_empty_one(tmp_path: Path) -> None:
    """A filter over a null fails the row as printing it does; Jinja makes an empty list of it, or Python's None."""
    rows = [{"tags": None, "of": {"tags": None}}, {"tags": [True, "a"], "of": {"tags": []}}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = {
        "{{ tags | map('upper') | join(',') }}": "TRUE,A",
        "{{ tags | select('string') | list }}": '["a"]',
        "{{ tags | reject('none') | list | length }}": "2",
        "{{ of.tags | map('upper') | list }}": "[]",
        "{{ tags | pprint }}": '[true, "a"]',
    }
    with recording_server() as asked:
        for prompt, text in prompts.items():
            job = write_job(tmp_path, asked.url, input={"path": "in.jsonl"}, prompt={"user": prompt}, answer=None)
            ran = run(job)
            assert asked.prompts() == [text], prompt
            assert ran.column("error_type") == ["template_error", None]
            assert "null: write {{" in ran.column("error_message")[0]


def test_a_prompt_of_white_space_is_not_sent(tmp_path: Path) -> None:
    """A server would refuse it, or bill for "How can I help you?"; beside an image an empty text says enough."""
    texts = ["a", "", " \n"]
    part = [{"text": "{{ text }}"}, {"image": "https://example.com/x.png"}]
    prompts: list[tuple[dict[str, Any], str | None]] = [
        ({"user": "{{ text }}"}, "prompt.user"),
        ({"user": None, "messages": [{"role": "user", "content": "{{ text }}"}]}, "prompt.messages[0].content"),
        ({"user": None, "messages": [{"role": "user", "content": part}]}, None),
        ({"user": "x", "system": "{{ text }}"}, None),
    ]
    with recording_server() as asked:
        for number, (prompt, place) in enumerate(prompts):
            (folder := tmp_path / str(number)).mkdir()
            ran = run(write_job(folder, asked.url, rows=texts, prompt=prompt, answer=None))
            assert len(asked.prompts()) == (3 if place is None else 1), prompt
            failed = [None] * 3 if place is None else [None, *["template_error"] * 2]
            assert ran.column("error_type") == failed, prompt
            assert place is None or ran.column("error_message")[1:] == [f"{place}: it is empty, or white space"] * 2


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_cell_of_the_wrong_type_is_found_before_a_request(
    command: Command, server: Running, tmp_path: Path, suffix: str
) -> None:
    """A declared column is checked in every cell, though the prompt does not use it, before anything is sent."""
    server.reset()
    data = b"text,n\n" + b"".join(b"row,%d\n" % number for number in range(20_001)) + b"last,abc\n"
    (tmp_path / f"in{suffix}").write_bytes(gzip.compress(data, mtime=0) if suffix.endswith(".gz") else data)
    csv = {"columns": {"n": "integer"}}
    write_job(tmp_path, server.url, input={"path": f"in{suffix}", "csv": csv}, answer=None, output={"path": "out.csv"})
    ended = command("job.yaml")
    assert ended.code == 2
    assert f'in{suffix}:20003: column "n": "abc" is not an integer of at most 64 bits' in ended.err
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_binary_text_is_text(command: Command, server: Running, tmp_path: Path, suffix: str) -> None:
    """A binary column whose values are UTF-8 is text in prompt and output; other bytes are refused in a prompt."""
    names = ["a.parquet", "b.parquet"]
    for name, cell in zip(names, (b'{"k":1}', b"caf\xc3\xa9"), strict=True):
        pl.DataFrame({"text": [cell, None]}).write_parquet(tmp_path / name)
    write_job(
        tmp_path, server.url, input={"path": names, "where": "text is not null"}, answer=None,
        output={"path": f"out{suffix}"},
    )  # fmt: skip
    assert command("job.yaml").code == 0
    out = tmp_path / f"out{suffix}"
    frame = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}[suffix](out)  # type: ignore[operator]
    assert frame["text"].to_list() == ['{"k":1}', None, "café", None]
    pl.DataFrame({"text": [b"\xff"]}).write_parquet(tmp_path / "b.parquet")
    ended = command("job.yaml")
    assert ended.code == 2
    assert 'column "text" holds bytes that are not UTF-8 text' in ended.err


@pytest.mark.parametrize("kind", [pl.Categorical(), pl.Enum(["ab", "b"])], ids=["categorical", "enum"])
def test_a_condition_reads_categories_as_text(
    command: Command, server: Running, tmp_path: Path, kind: pl.DataType
) -> None:
    """DuckDB's ENUM and Arrow's dictionaries are text to `where`, too."""
    pl.DataFrame({"text": pl.Series(["ab", "b", None], dtype=kind)}).write_parquet(tmp_path / "in.parquet")
    where = "text like 'a%' and length(text) = 2 and lower(text) <> 'x'"
    write_job(tmp_path, server.url, input={"path": "in.parquet", "where": where}, answer=None)
    ended = command("job.yaml")
    assert ended.code == 0, ended.err
    assert "1 of 1 row answered, 2 skipped" in ended.err


def _write_numbers(path: Path, numbers: list[int | None]) -> None:
    """Write rows with a text and a number, which no type is given where all are null: so does pandas."""
    frame = pl.DataFrame({"text": [f"{path.stem}{number}" for number in range(len(numbers))], "n": numbers})
    if path.suffix == ".jsonl":
        frame.write_ndjson(path)
    elif path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".arrow":
        frame.write_ipc(path)
    else:
        frame.write_excel(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow", ".xlsx"])
@pytest.mark.parametrize(
    ("where", "rows"),
    [("n > 2", 0), ("n % 2 = 0", 0), ("n is null or n < 2", 2), ("lower(n) = 'a'", 0), ("coalesce(n, 0) = 0", 2)],
)
def test_a_condition_takes_a_column_without_values(
    command: Command, server: Running, tmp_path: Path, suffix: str, where: str, rows: int
) -> None:
    """A column that holds nothing today is compared with whatever it will hold: its rows are null, not a mistake."""
    _write_numbers(tmp_path / f"in{suffix}", [None, None])
    write_job(
        tmp_path,
        server.url,
        input={"path": f"in{suffix}", "where": where},
        prompt="Label {{ text }}",
        answer=None,
        output={"path": "out.parquet"},
    )
    assert command("job.yaml").code == 0
    assert pl.read_parquet(tmp_path / "out.parquet")["status"].to_list() == (["ok"] if rows else ["skipped"]) * 2
    assert pl.read_parquet_schema(tmp_path / "out.parquet")["n"] == pl.String


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow", ".xlsx"])
@pytest.mark.parametrize("empty", ["a", "b"])
def test_a_column_may_be_empty_in_one_of_several_files(
    command: Command, server: Running, tmp_path: Path, suffix: str, empty: str
) -> None:
    """A column that is null in a whole file has the type that the other files give it."""
    for stem in ("a", "b"):
        _write_numbers(tmp_path / f"{stem}{suffix}", [None, None] if stem == empty else [5, None])
    write_job(
        tmp_path,
        server.url,
        input={"path": [f"a{suffix}", f"b{suffix}"], "where": "n is null or n > 2"},
        prompt="Label {{ text }} {{ n | default('-') }}",
        answer=None,
        output={"path": "out.parquet"},
    )
    assert command("job.yaml").code == 0
    output = pl.read_parquet(tmp_path / "out.parquet")
    assert output["n"].to_list() == ([None, None, 5, None] if empty == "a" else [5, None, None, None])
    assert output["status"].to_list() == ["ok"] * 4


def test_what_the_format_can_not_hold_is_refused(command: Command, server: Running, tmp_path: Path) -> None:
    """A kept column that the output's format can't hold is refused by name before a request, and fits another one."""
    frame = pl.DataFrame({"text": ["a"], "raw": [[b"\xff"]]})
    frame.write_parquet(tmp_path / "in.parquet")
    for path, code in (("out.csv", 2), ("out.jsonl", 2), ("out.parquet", 0)):
        write_job(tmp_path, server.url, input={"path": "in.parquet"}, answer=None, output={"path": path})
        ended = command("job.yaml")
        assert ended.code == code
        assert code == 0 or 'column "raw" has bytes inside a list' in ended.err


DUCKDB_INTERVAL = (
    "UEFSMRUAFRQVGCwVBBUAFQYVBgAACiQBAAAAYQEAAABiFQAVYhUyLBUEFQAVBhUGAAAxGCEAAABBAQB2AQAsAQAAAAIAAAAAAAAAFQIZPDUAGA1k"
    "dWNrZGJfc2NoZW1hFQQAFQwlABgBdCUAABUOFRgVAhgBZCUqABYEGRwZLCYAHBUMGRUAGRgBdBUCFgQWNhY6Jgg8GAFiGAFhFgAoAWIYAWEREQAZ"
    "HBUAFQAVAgAAACYAHBUOGRUAGRgBZBUCFgQWhAEWVCZCSRwVABUAFQIAAAAWugEWBCYIFo4BABkcGBxkdWNrZGIuaW50ZXJ2YWxfYmxvb21fZmls"
    "dGVyGA1ub3JtYWxpemVkLXYxABgoRHVja0RCIHZlcnNpb24gdjIuMC4xIChidWlsZCA4ZDc4MTE0ZTkwKRksHAAAHAAAAPcAAABQQVIx"
)
"""A Parquet file of the columns t (text) and d (interval), two rows: no other writer in Python makes such a column."""


def test_a_calendar_interval_is_refused_by_name_and_harms_no_other_column(
    command: Command, server: Running, tmp_path: Path
) -> None:
    """Neither prompt nor output can hold it, and both say so before a request; Polars' panic is not shown."""
    (tmp_path / "in.parquet").write_bytes(base64.b64decode(DUCKDB_INTERVAL))
    for prompt, keep, words in (
        ("{{ d | default('') }}", ["t"], 'column "d" holds calendar intervals, which a prompt can\'t show'),
        ("{{ t }}", "all", 'column "d" holds calendar intervals, which no output can hold'),
        ("{{ t }}", ["t"], ""),
    ):
        write_job(
            tmp_path, server.url, input={"path": "in.parquet"}, prompt={"user": prompt}, answer=None,
            output={"path": "out.csv", "keep": keep},
        )  # fmt: skip
        ended = command("job.yaml")
        assert ended.code == (2 if words else 0), ended.err
        assert words in ended.err
        assert "panicked" not in ended.err


ENDLESS = pl.Series([2**31 - 1, 19_782, None, -(2**31) + 1], dtype=pl.Int32).cast(pl.Date)
"""DuckDB's 'infinity', 2024-02-29, a null and '-infinity'."""


@pytest.mark.parametrize("days", [[5_000_000], ENDLESS], ids=["a late year", "infinity"])
def test_a_date_beyond_those_of_python_is_refused_by_name(
    command: Command, server: Running, tmp_path: Path, days: list[int] | pl.Series
) -> None:
    """A prompt can't show it, which is said before a request."""
    pl.DataFrame({"text": "a", "day": pl.Series(days, dtype=pl.Int32).cast(pl.Date)}).write_parquet(
        tmp_path / "in.parquet"
    )
    write_job(tmp_path, server.url, input={"path": "in.parquet"}, prompt={"user": "{{ text }} {{ day }}"}, answer=None)
    ended = command("job.yaml")
    assert ended.code == 2
    assert 'column "day" (Date) holds a value that no prompt can show (its year is not one of 1 to 9999)' in ended.err
    assert "panicked" not in ended.err


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_endless_date_that_no_prompt_reads_reaches_every_output(
    command: Command, server: Running, tmp_path: Path, suffix: str
) -> None:
    """'infinity' is written as that word where the format has no such date; all is paid by then, so it can't fail."""
    pl.DataFrame({"text": "a", "day": ENDLESS}).write_parquet(tmp_path / "in.parquet")
    write_job(
        tmp_path, server.url, input={"path": "in.parquet"}, prompt={"user": "{{ text }}"}, answer=None,
        output={"path": f"out{suffix}", "keep": ["day"]},
    )  # fmt: skip
    assert command("job.yaml").code == 0
    out = tmp_path / f"out{suffix}"
    if suffix == ".parquet":
        assert pl.read_parquet(out)["day"].equals(ENDLESS)
    else:
        words = (
            pl.read_csv(out)["day"]
            if suffix == ".csv"
            else pl.Series([json.loads(line)["day"] for line in out.read_text().splitlines()])
        )
        assert words.to_list() == ["infinity", "2024-02-29", None, "-infinity"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_map_with_other_keys_than_text_is_refused_by_name(
    command: Command, server: Running, tmp_path: Path, suffix: str
) -> None:
    """JSON has no such thing, which is said before a request; Parquet has."""
    pairs = pa.array([[(1, 2)], None], pa.map_(pa.int32(), pa.int32()))
    pq.write_table(pa.table({"text": ["a", "b"], "pairs": pairs}), tmp_path / "in.parquet")
    for path, code in ((f"out{suffix}", 2), ("out.parquet", 0)):
        write_job(tmp_path, server.url, input={"path": "in.parquet"}, answer=None, output={"path": path})
        ended = command("job.yaml")
        assert ended.code == code, ended.err
        assert code == 0 or 'column "pairs" is a map whose keys are not text' in ended.err


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (b"PK\x03\x04", "Excel workbook"),
        (gzip.compress(b"text\na\n", mtime=0), "add .gz to its name"),
        (b"PAR1", "name it .parquet"),
        (b"sep=;\ntext;n\na;1\n", "delete this line"),
        (b"id;text\n1;a\n", 'input.csv.separator: ";"'),
        (b"Report,,\n\ntext,n,m\na,1,2\n", "set input.csv.skip: N for N lines above the header"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page, not CSV"),
        (b"<?xml version='1.0'?>\n<rows/>", "is XML, not CSV"),
        (b'[{"text": "a"}]', "is a JSON array: name it .json"),
        (b'\xef\xbb\xbf{"text": "a"}\n', "is JSON, not CSV: name it .jsonl"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
    ],
)
def test_a_csv_file_that_is_none_is_called_what_it_is(
    command: Command, server: Running, tmp_path: Path, data: bytes, advice: str
) -> None:
    """Check says what a file really is and what to do."""
    (tmp_path / "in.csv").write_bytes(data)
    write_job(tmp_path, server.url, input={"path": "in.csv"}, answer=None, output={"path": "out.csv"})
    ended = command("check", "job.yaml")
    assert ended.code == 2
    assert advice in ended.out + ended.err


@pytest.mark.parametrize("name", ["in.parquet", "in.arrow", "in.xlsx"])
@pytest.mark.parametrize(
    ("data", "advice"),
    [(b"text,n\na,1\n", "is text, not a "), (b"SQLite format 3\0", "SQLite"), (b"", "is empty"), (b"%PDF-1.7", "PDF")],
)
def test_a_binary_file_that_is_none_is_called_what_it_is(
    command: Command, server: Running, tmp_path: Path, name: str, data: bytes, advice: str
) -> None:
    """A file that is called Parquet, Arrow or Excel and holds something else is called what it is, in plain words."""
    (tmp_path / name).write_bytes(data)
    write_job(tmp_path, server.url, input={"path": name}, answer=None, output={"path": "out.csv"})
    ended = command("check", "job.yaml")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"{name} is " in ended.err
    assert advice in ended.err


def test_lines_above_the_header_and_comments(command: Command, server: Running, tmp_path: Path) -> None:
    """Csv.skip passes over lines, csv.comment over lines that begin so, but not within a quoted cell."""
    text = 'Export of "May\n\n# generated\ntext,n\n# a, "comment\nfine,1\n"two\n# lines",2\n\n# end\nlast,3\n#'
    (tmp_path / "in.csv").write_text(text)
    options = {"skip": 2, "comment": "#", "columns": {"n": "integer"}}
    write_job(
        tmp_path, server.url, input={"path": "in.csv", "csv": options}, answer=None, output={"path": "out.parquet"}
    )
    ended = command("job.yaml")
    assert ended.code == 0, ended.err
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found["text"].to_list() == ["fine", "two\n# lines", "last"]
    assert found["n"].to_list() == [1, 2, 3]
    (tmp_path / "in.csv").write_text(text + "\nx,y\n")
    assert "in.csv:13: " in command("job.yaml").err
    (tmp_path / "in.csv").write_text(text + "\na,b,c\n")
    assert "in.csv:13: 3 cells where the header has 2" in command("job.yaml").err


def test_a_resumed_run_finds_its_rows_behind_comments(command: Command, server: Running, tmp_path: Path) -> None:
    """The byte offsets of a plan count the lines that are passed over, so that the last rows are the right ones."""
    lines = [f"# note {row}\nt{row}\n" if row % 3 == 0 else f"t{row}\n" for row in range(60_000)]
    (tmp_path / "in.csv").write_text("title\ntext\n" + "".join(lines))
    os.utime(tmp_path / "in.csv", (1, 1))
    options = {"skip": 1, "comment": "#"}
    write_job(
        tmp_path,
        server.url,
        input={"path": "in.csv", "csv": options, "where": "text in ('t1', 't59999')"},
        answer=None,
        output={"path": "out.parquet"},
    )
    assert command("job.yaml", "--limit", "1").code == 0
    assert command("job.yaml").code == 0
    found = pl.read_parquet(tmp_path / "out.parquet").filter(pl.col("status") == "ok")
    assert found["text"].to_list() == ["t1", "t59999"]


def test_a_csv_output_for_excel(command: Command, server: Running, tmp_path: Path) -> None:
    """Csv.bom begins the file with the mark of UTF-8, which is not part of a name when it is read back."""
    (tmp_path / "in.csv").write_text("text\nZoë\n", encoding="utf-8")
    output = {"path": "out.csv", "details": [], "csv": {"bom": True}}
    write_job(tmp_path, server.url, input={"path": "in.csv"}, answer=None, output=output)
    assert command("job.yaml").code == 0
    assert (tmp_path / "out.csv").read_bytes().startswith("\ufefftext,answer\nZoë,".encode())
    write_job(tmp_path, server.url, input={"path": "out.csv"}, answer=None, output={"path": "b.csv", "prefix": "b_"})
    ended = command("job.yaml")
    assert ended.code == 0, ended.err
    assert pl.read_csv(tmp_path / "b.csv").columns[:2] == ["text", "answer"]
