"""Excel workbooks in and out, and JSON arrays in: whole jobs, and what each cell becomes in a prompt."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import xlsxwriter
from command_line import Command, command
from plain_server import Asked, recording_server
from python_calamine import CalamineWorkbook

from batchrun.table import MOST_ROWS

__all__ = ["command"]

FORMATS = {date: "yyyy-mm-dd", datetime: "yyyy-mm-dd hh:mm", time: "hh:mm:ss", timedelta: "[h]:mm:ss"}


@pytest.fixture
def asked() -> Iterator[Asked]:
    """Serve a model."""
    with recording_server() as asked:
        yield asked


def write(asked: Asked, path: str, prompt: str, **sections: Any) -> None:  # noqa: ANN401  (JSON)
    """Write job.yaml in the working directory."""
    job = {
        "input": path,
        "prompt": prompt,
        "model": {"endpoint": asked.url, "name": "big"},
        "output": {"path": "out.csv", "details": []},
    }
    Path("job.yaml").write_text(json.dumps(job | sections))


def write_workbook(path: Path | str, **sheets: list[list[Any]]) -> None:
    """Write a workbook: its sheets by name, each a list of rows; a formula is ("=…", result)."""
    book = xlsxwriter.Workbook(str(path))
    formats = {kind: book.add_format({"num_format": form}) for kind, form in FORMATS.items()}
    for name, rows in sheets.items():
        sheet = book.add_worksheet(name)
        for row, cells in enumerate(rows):
            for column, cell in enumerate(cells):
                if isinstance(cell, tuple):
                    sheet.write_formula(row, column, cell[0], None, cell[1])
                elif type(cell) in formats:
                    sheet.write_datetime(row, column, cell, formats[type(cell)])
                elif isinstance(cell, str):
                    sheet.write_string(row, column, cell)
                elif cell is not None:
                    sheet.write(row, column, cell)
    book.close()


def read_workbook(path: Path) -> dict[str, list[Any]]:
    """Return the first sheet of a workbook: its cells by the names in its first row."""
    names, *rows = CalamineWorkbook.from_path(path).get_sheet_by_index(0).to_python()
    return {str(name): list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)}


CELLS: list[tuple[Any, str]] = [
    (3.0, "3"),
    (2.5, "2.5"),
    (1 / 3, "0.3333333333333333"),
    (-7, "-7"),
    (1e21, "1e+21"),
    ("007", "007"),
    ("1e5", "1e5"),
    ("true", "true"),
    (True, "true"),
    (date(2024, 1, 2), "2024-01-02"),
    (datetime(2024, 1, 2, 3, 4, 5), "2024-01-02 03:04:05"),  # noqa: DTZ001  (Excel has no time zones)
    (datetime(2024, 1, 2), "2024-01-02"),  # noqa: DTZ001  (Excel has no time zones)
    (time(3, 4, 5), "03:04:05"),
    (timedelta(hours=30, minutes=5), "30:05:00"),
    (("=A1&A1", "xx"), "xx"),
    (("=1+2", 3), "3"),
    ("Zoë 🦆\nsecond", "Zoë 🦆\nsecond"),
]
"""Cells of Excel, and what a prompt shows."""


def test_a_cell_of_excel_is_rendered_by_itself(tmp_path: Path, command: Command, asked: Asked) -> None:
    """A cell becomes the same text alone in its column, among its kind, and among cells of every other kind."""
    column = [["id", "cell"], *([number, cell] for number, (cell, _) in enumerate(CELLS))]
    write_workbook(tmp_path / "all.xlsx", Sheet1=column)
    write(asked, "all.xlsx", "{{ id }} {{ cell }}")
    ended = command("job.yaml")
    assert ended.code == 0, ended.err
    assert sorted(asked.prompts()) == sorted(f"{number} {text}" for number, (_, text) in enumerate(CELLS))
    for number, row in enumerate(column[1:]):
        write_workbook(tmp_path / "one.xlsx", Sheet1=[column[0], row])
        assert command("job.yaml", "--input", "one.xlsx", "--variant", f"v{number}").code == 0
    assert asked.prompts() == [], "each of these questions was asked before"


def test_a_workbook_goes_in_and_out(tmp_path: Path, command: Command, asked: Asked) -> None:
    """Numbers, dates and texts stay what they are from workbook to workbook; the second run changes nothing."""
    rows: list[list[Any]] = [
        ["text", "n", "x", "day", "at", "ok", "long"],
        ["=1+1", 3, 0.5, date(2024, 5, 6), datetime(2024, 5, 6, 7, 8), True, "12345678901234567890"],  # noqa: DTZ001
        [None, None, None, None, None, None, None],
        ["http://x.example", 4, 2, date(2023, 1, 1), datetime(2023, 1, 1, 1, 1), False, None],  # noqa: DTZ001
    ]
    write_workbook(tmp_path / "in.xlsx", Reviews=rows)
    write(asked, "in.xlsx", "{{ text }} {{ n }}", output={"path": "out.xlsx", "details": ["status", "finished_at"]})
    assert command("job.yaml").code == 0
    assert asked.prompts() == ["=1+1 3", "http://x.example 4"]
    found = read_workbook(tmp_path / "out.xlsx")
    assert list(found) == [*rows[0], "answer", "status", "finished_at"]
    assert found["text"] == ["=1+1", "http://x.example"]
    assert found["x"] == [0.5, 2.0]
    assert found["day"] == [date(2024, 5, 6), date(2023, 1, 1)]
    assert found["at"] == [rows[1][4], rows[3][4]]
    assert all(isinstance(moment, datetime) for moment in found["finished_at"])
    assert found["ok"] == [True, False]
    assert found["long"] == ["12345678901234567890", ""]
    written = (tmp_path / "out.xlsx").read_bytes()
    (tmp_path / "out.xlsx").unlink()
    assert command("job.yaml").code == 0
    assert asked.prompts() == []
    assert (tmp_path / "out.xlsx").read_bytes() == written
    ended = command("export", "job.yaml", "-o", "again.xlsx")
    assert ended.code == 0, ended.err
    assert (tmp_path / "again.xlsx").read_bytes() == written


def test_the_how_to_page_runs_as_written(tmp_path: Path, command: Command) -> None:
    """The job and the commands of docs/how-to/excel.md lead to a labelled workbook; new rows alone are asked."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "excel.md").read_text(encoding="utf-8")
    yaml, commands = re.findall(r"```(?:yaml|console)\n(.*?)```", page, re.DOTALL)[1:3]
    rows: list[list[Any]] = [
        ["customer", "date", "comment"],
        [1001, date(2024, 5, 6), "Too dear"],
        [1002, None, "Late"],
    ]
    write_workbook(tmp_path / "feedback.xlsx", Cover=[["A title"]], Answers=rows)
    (tmp_path / "feedback.yaml").write_text(yaml)
    for line in commands.splitlines():
        ended = command(*shlex.split(line)[1:])
        assert ended.code == 0, ended.err
    rows.append([1003, date(2024, 5, 8), "Broken"])
    write_workbook(tmp_path / "feedback.xlsx", Cover=[["A title"]], Answers=rows)
    ended = command("feedback.yaml", "--json")
    assert json.loads(ended.out)["requests"] == 1
    found = read_workbook(tmp_path / "feedback-labelled.xlsx")
    assert list(found)[:5] == ["customer", "date", "comment", "topic", "urgent"]
    assert found["customer"] == [1001.0, 1002.0, 1003.0]
    assert set(found["topic"]) <= {"price", "delivery", "product", "other"}


def test_sheets(tmp_path: Path, command: Command, asked: Asked) -> None:
    """`sheet` chooses one by its name; the first one is read else; a wrong name is a mistake with the near one."""
    write_workbook(tmp_path / "in.xlsx", First=[["text"], ["a"]], Reviews=[["text"], ["b"]])
    write(asked, "in.xlsx", "{{ text }}")
    assert command("job.yaml").code == 0
    write(asked, "in.xlsx", "{{ text }}", input={"path": "in.xlsx", "sheet": "Reviews"})
    assert command("job.yaml").code == 0
    assert asked.prompts() == ["a", "b"]
    write(asked, "in.xlsx", "{{ text }}", input={"path": "in.xlsx", "sheet": "Revews"})
    ended = command("job.yaml")
    assert ended.code == 2
    assert 'in.xlsx has no sheet "Revews", did you mean "Reviews"?' in ended.err
    (tmp_path / "in.csv").write_text("text\na\n")
    write(asked, "in.csv", "{{ text }}", input={"path": "in.csv", "sheet": "Reviews"})
    assert "in.csv is not an Excel workbook" in command("job.yaml").err


def test_answers_are_never_put_beside_the_rows_of_another_sheet(tmp_path: Path, command: Command, asked: Asked) -> None:
    """After an edit of `sheet` the job must run before its answers are looked at; two sheets are not paired by row."""
    write_workbook(tmp_path / "in.xlsx", First=[["text"], ["fine"], ["bad"]], Other=[["text"], ["cold"], ["warm"]])
    write(asked, "in.xlsx", "{{ text }}", input={"path": "in.xlsx", "sheet": "First"})
    assert command("job.yaml", "--quiet").code == 0
    write(asked, "in.xlsx", "{{ text }}", input={"path": "in.xlsx", "sheet": "Other"})
    for look in (("show", "job.yaml"), ("export", "job.yaml", "-o", "x.csv"), ("report", "job.yaml")):
        ended = command(*look)
        assert (ended.code, "input.csv or input.sheet has changed since the last run" in ended.err) == (2, True), look
    write(asked, "in.xlsx", "Say: {{ text }}", input={"path": "in.xlsx", "sheet": "Other"})
    assert command("job.yaml", "--quiet").code == 0
    assert command("show", "job.yaml").code == 0
    ended = command("compare", "job.yaml", "--before")
    assert (ended.code, "or the input changed as well" in ended.err) == (2, True)
    first = (tmp_path / "job.yaml").read_text().replace("Other", "First").replace("out.csv", "first.csv")
    (tmp_path / "first.yaml").write_text(first)
    assert command("first.yaml", "--quiet").code == 0
    ended = command("compare", "job.yaml", "first.yaml")
    assert (ended.code, "name the column that identifies a row" in ended.err) == (2, True), ended.out
    assert command("report", "job.yaml", "--compare", "first.yaml").code == 2


def test_a_sheet_that_begins_elsewhere(tmp_path: Path, command: Command, asked: Asked) -> None:
    """Empty rows above the header and empty columns before it, as people leave for looks, are passed over."""
    write_workbook(tmp_path / "in.xlsx", A=[[], [None, None, "text", "n"], [None, None, "a", 1.5]])
    write(asked, "in.xlsx", "{{ text }} {{ n }}")
    ended = command("job.yaml")
    assert ended.code == 0, ended.err
    assert asked.prompts() == ["a 1.5"]
    write_workbook(tmp_path / "in.xlsx", A=[[], [None, None, "A title"], [None, None, "text", "n", "m"], [None] * 5])
    assert "columns D and E have no name in the first row" in command("job.yaml").err


def test_several_workbooks_share_the_types_of_their_columns(tmp_path: Path, command: Command, asked: Asked) -> None:
    """A column that is whole in one file, broken in the next and text in a third is one column."""
    for number, cell in enumerate((1, 2.5, "x", None)):
        write_workbook(tmp_path / f"in{number}.xlsx", A=[["text", "n"], [f"t{number}", cell]])
    write(asked, "in?.xlsx", "{{ text }} {{ n | default('-') }}")
    ended = command("job.yaml")
    assert ended.code == 0, ended.err
    assert asked.prompts() == ["t0 1", "t1 2.5", "t2 x", "t3 -"]
    assert pl.read_csv(tmp_path / "out.csv", infer_schema=False)["n"].to_list() == ["1", "2.5", "x", None]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "the sheet is empty"),
        ([["text", "text"], ["a", "b"]], 'column "text" occurs twice'),
        ([["A title"], ["text", "n", "m"], ["a", 1]], "columns B and C have no name in the first row"),
    ],
)
def test_sheets_that_name_no_columns(
    tmp_path: Path, command: Command, asked: Asked, rows: list[list[Any]], says: str
) -> None:
    """A sheet whose first row does not name its columns is refused with what to do."""
    write_workbook(tmp_path / "in.xlsx", A=rows)
    write(asked, "in.xlsx", "{{ text }}")
    ended = command("job.yaml")
    assert ended.code == 2
    assert says in ended.err


def test_a_file_that_is_not_a_workbook(tmp_path: Path, command: Command, asked: Asked) -> None:
    """A CSV file called .xlsx, and a workbook called .csv, are one line each."""
    (tmp_path / "in.xlsx").write_text("text\na\n")
    write(asked, "in.xlsx", "{{ text }}")
    assert "in.xlsx is text, not a .xlsx file: name it .csv" in command("job.yaml").err
    write_workbook(tmp_path / "in.csv", A=[["text"], ["a"]])
    write(asked, "in.csv", "{{ text }}")
    assert "name it .xlsx" in command("job.yaml").err


@pytest.mark.parametrize(
    ("missing", "suffixes"), [("python_calamine", (".xlsx", ".csv")), ("xlsxwriter", (".csv", ".xlsx"))]
)
def test_a_missing_extra_is_a_mistake(
    tmp_path: Path,
    command: Command,
    asked: Asked,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    suffixes: tuple[str, str],
) -> None:
    """Without the libraries the command ends with exit 2 and the line that installs them, before anything is asked."""
    write_workbook(tmp_path / "in.xlsx", A=[["text"], ["a"]])
    (tmp_path / "in.csv").write_text("text\na\n")
    write(asked, f"in{suffixes[0]}", "{{ text }}", output=f"out{suffixes[1]}")
    monkeypatch.setitem(sys.modules, missing, None)
    for arguments in (["job.yaml"], ["check", "job.yaml"]):
        ended = command(*arguments)
        assert ended.code == 2
        assert "pip install 'batchrun-llm[excel]'" in ended.err
    assert asked.prompts() == []


def test_a_sheet_that_is_too_small_is_refused_before_the_first_question(
    tmp_path: Path, command: Command, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, columns and kept cells that Excel can't hold end the command before anything is paid."""
    output = {"path": "out.xlsx", "details": []}
    assert MOST_ROWS == 2**20 - 1, "Excel's limit, without the header"
    with monkeypatch.context() as small:
        small.setattr("batchrun.runner.outputs.MOST_ROWS", 3)
        (tmp_path / "in.csv").write_text("text\n" + "a\n" * 4)
        write(asked, "in.csv", "{{ text }}", output=output)
        ended = command("job.yaml")
    assert ended.code == 2
    assert "a sheet holds 3 rows, and the input has 4: write .parquet or .csv" in ended.err
    (tmp_path / "in.csv").write_text(f"text,more\na,b\nc,{'🦆' * 16_384}\n")
    ended = command("job.yaml")
    assert ended.code == 2
    assert 'column "more" has a text of 16,384 characters in row 2, and a cell of out.xlsx holds 32,767' in ended.err
    monkeypatch.setattr("batchrun.table.write.MOST_COLUMNS", 1)
    (tmp_path / "in.csv").write_text("text,more\na,b\n")
    assert "a sheet of Excel holds 1 columns, and the output has 2" in command("job.yaml").err
    assert asked.prompts() == []


def test_a_json_array_is_read_as_json_lines_are(tmp_path: Path, command: Command, asked: Asked) -> None:
    """Objects over several lines, numbers as they are written, long integers whole, missing fields null."""
    rows = [
        '{"text": "a",\n   "n": 2.50}',
        '{"n": 12345678901234567890123, "text": "b\\nc"}',
        '{"text": "d", "n": {"x": [1.0]}}',
    ]
    (tmp_path / "in.json").write_text("\ufeff[ " + ",\r\n".join(rows) + "\n]\n", encoding="utf-8")
    (tmp_path / "in.jsonl").write_text("\n".join(row.replace("\n", " ") for row in rows))
    for path in ("in.json", "in.jsonl"):
        write(asked, path, "{{ text }} {{ n }}")
        assert command("job.yaml").code == 0
        output = (tmp_path / "out.csv").read_bytes()
        assert command("job.yaml", "--fresh", "--yes", "--limit", "2").code == 0
    assert asked.prompts()[:3] == ["a 2.50", "b\nc 12345678901234567890123", 'd {"x": [1.0]}']
    write(asked, "in.json", "{{ text }} {{ n }}")
    assert command("job.yaml").code == 0
    assert (tmp_path / "out.csv").read_bytes() == output


def test_large_json_arrays(tmp_path: Path, command: Command, asked: Asked) -> None:
    """Objects that cross the blocks in which a file is read, and one larger than a block, are read whole."""
    rows = [{"text": "same", "more": "é" * 1_000} for _ in range(1_500)]
    rows[700]["more"] = "x" * 3_000_000
    (tmp_path / "in.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    write(asked, "in.json", "{{ text }}", output={"path": "out.jsonl", "details": []})
    assert command("job.yaml").code == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert found == [row | {"answer": "yes"} for row in rows]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "in.json:1: not a JSON array of objects"),
        (
            '{"text": 1}\n{"text": 2}',
            "in.json:1: an object, not an array of objects; for one object a line name the file",
        ),
        ("[]", "names no columns"),
        ('[{"text": 1},\n 2]', "in.json:2: an element of the array is not an object"),
        ('[{"text": 1}\n{"text": 1}]', "in.json:2: not JSON (a comma or ] is missing between two objects)"),
        ('[{"text": 1},\n{"text": ]', "in.json:2: not JSON (Expecting value)"),
        ('[{"text": 1}] x', "in.json:1: not JSON (something follows the array)"),
        ('[{"text": NaN}]', "in.json: object 1: not JSON (NaN is not a JSON value)"),
    ],
)
def test_json_that_is_not_an_array_of_objects(
    tmp_path: Path, command: Command, asked: Asked, text: str, says: str
) -> None:
    """What is wrong with a JSON file is said with its line, and nothing is asked."""
    (tmp_path / "in.json").write_text(text)
    write(asked, "in.json", "{{ text }}")
    ended = command("job.yaml")
    assert ended.code == 2
    assert says in ended.err
    assert asked.prompts() == []


def test_every_command_that_cuts_a_text_for_a_cell_says_so(command: Command, asked: Asked) -> None:
    """The model's long answers are kept in full, and whoever gets their beginnings in a workbook reads that."""
    Path("in.csv").write_text("id,text\n1,a\n2,b\n")
    asked.text = "y" * 40_000
    write(asked, "in.csv", "{{ text }}")
    assert command("job.yaml").code == 0
    asked.text = "short"
    assert command("job.yaml", "--variant", "short", "--set", "prompt=Short: {{ text }}", "--yes").code == 0
    wanted = {
        ("job.yaml", "--output", "run.xlsx"): "2 texts",
        ("export", "job.yaml", "-o", "export.xlsx"): "2 texts",
        ("show", "job.yaml", "--review", "-o", "review.xlsx"): "4 texts",  # the model's answer stands beside
        ("compare", "job.yaml", "--variant", "short", "-o", "compare.xlsx"): "2 texts",
    }
    for words, texts in wanted.items():
        ended = command(*words)
        said = f"{texts} cut to 32,767 characters, the most that a cell of Excel holds"
        assert (ended.code, said in ended.err) == (0, True), (words, ended.err)
