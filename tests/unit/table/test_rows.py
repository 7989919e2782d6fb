"""Files to batches of rows: what is read, in which types, and what `where` may say."""

import csv
import datetime as dt
import decimal
import io
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nasty_files import READ, REFUSED, Nasty

from batchrun.errors import InputError
from batchrun.job import CsvOptions, Input
from batchrun.table import expand, open_rows, stamp, text

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
PEOPLE = b"id,text\n1,x\nq,\n"


def read(folder: Path, path: str, where: str | None = None, **options: Any) -> list[tuple[Any, ...]]:  # noqa: ANN401  (any CSV option)
    with open_rows(Input(path, where, CsvOptions(**options)), folder) as rows:
        return [row for batch in rows.batches() for row in batch.rows]


def refusal(folder: Path, path: str, where: str | None = None, **options: Any) -> str:  # noqa: ANN401  (any CSV option)
    # Not `pytest.raises`: what it catches keeps the reader's frames, and with them the open file.
    message = "\n"  # where nothing is refused
    try:
        read(folder, path, where, **options)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    return message


def asked(folder: Path, where: str) -> list[bool]:
    (folder / "p.csv").write_bytes(PEOPLE)
    with open_rows(Input("p.csv", where), folder) as rows:
        return [mask for batch in rows.batches(["id"]) for mask in batch.asked or []]


@pytest.mark.parametrize("nasty", READ, ids=lambda nasty: nasty.name)
def test_a_nasty_file_reads_equal(tmp_path: Path, nasty: Nasty) -> None:
    """Every cell of a file that is only unusual is read as it stands."""
    (tmp_path / nasty.name).write_bytes(nasty.data)
    with open_rows(Input(nasty.name, None, CsvOptions(**nasty.csv)), tmp_path) as rows:
        assert rows.columns == nasty.columns
        assert [row for batch in rows.batches() for row in batch.rows] == nasty.rows


@pytest.mark.parametrize("nasty", REFUSED, ids=lambda nasty: nasty.name)
def test_a_flawed_file_is_refused_with_one_line(tmp_path: Path, nasty: Nasty) -> None:
    """A file that can't be read as rows ends with the line that names place and remedy."""
    (tmp_path / nasty.name).write_bytes(nasty.data)
    assert refusal(tmp_path, nasty.name, **nasty.csv) == nasty.line


CELLS = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def written(header: Sequence[str | None], rows: Sequence[Sequence[str | None]], end: str) -> str:
    """Write CSV as RFC 4180 says, with null as nothing at all."""
    cells = [["" if cell is None else '"' + cell.replace('"', '""') + '"' for cell in row] for row in [header, *rows]]
    return "".join(",".join(line) + end for line in cells)


@given(
    rows=st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=8),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
@settings(max_examples=60)
def test_any_csv_reads_equal(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str | None]], end: str, encoding: str
) -> None:
    """Any table written as CSV is read equal cell by cell; an empty text is a null."""
    folder = tmp_path_factory.mktemp("csv")
    (folder / "x.csv").write_bytes(written(["a", "b"], rows, end).encode(encoding))
    assert read(folder, "x.csv") == [tuple(cell or None for cell in row) for row in rows]


@given(text=st.text(st.sampled_from('a",\r\n '), max_size=30))
@settings(max_examples=200)
def test_any_bytes_read_or_are_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """No sequence of quotes, separators and line ends makes Polars fail or read other rows than Python's own reader."""
    folder = tmp_path_factory.mktemp("csv")
    (folder / "x.csv").write_text("h,i\n" + text, newline="")
    try:
        found = read(folder, "x.csv")
    except InputError as error:
        problem = str(error)
    else:
        problem = ""
    assert "can't be read" not in problem
    if problem:
        return
    if "\r" in text.replace("\r\n", ""):
        return  # a lone CR in a file of LF is text for us, a line end for Python
    expected = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    assert [[cell or "" for cell in row] for row in found] == expected


def test_batches_start_anywhere_and_keep_the_order_of_columns(tmp_path: Path) -> None:
    """Batches begin at the row asked for, hold at most that many rows, and only the columns asked for."""
    pl.DataFrame({"a": range(25), "b": range(100, 125), "c": ["x"] * 25}).write_csv(tmp_path / "x.csv")
    with open_rows(Input("x.csv"), tmp_path) as rows:
        batches = list(rows.batches(["b", "a"], start=3, size=10))
        assert [(batch.position, len(batch.rows)) for batch in batches] == [(3, 10), (13, 10), (23, 2)]
        assert batches[0].rows[0] == ("103", "3")
        assert list(rows.batches(start=25)) == []
        assert [batch.rows for batch in rows.batches([], start=24)] == [[()]]


def test_frames_hold_every_row_also_without_columns(tmp_path: Path) -> None:
    """Frames for the output have all rows in order; without columns they still have their height."""
    pl.DataFrame({"a": range(25)}).write_csv(tmp_path / "x.csv")
    with open_rows(Input("x.csv"), tmp_path) as rows:
        assert [frame.height for frame in rows.frames(None, 10)] == [10, 10, 5]
        assert sum(frame.height for frame in rows.frames([], 10)) == 25


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", b"a,b\n1,\n2,u\n3,v\n"),
        ("x.jsonl", b'{"a": 1, "b": null}\n\n{"a": 2, "b": "u"}\n{"b": "v", "a": 3}\n'),
    ],
)
def test_a_small_text_file_is_parsed_once(tmp_path: Path, name: str, content: bytes) -> None:
    """What was read to its end is not read again: any start, size and column comes from what is kept."""
    (tmp_path / name).write_bytes(content)
    with open_rows(Input(name), tmp_path) as rows:
        first = next(rows.batches(size=2)).rows  # read in part, nothing is kept
        whole = [row for batch in rows.batches() for row in batch.rows]
        assert whole[: len(first)] == first
        (tmp_path / name).unlink()
        assert [row for batch in rows.batches(size=1) for row in batch.rows] == whole
        assert [(batch.position, batch.rows) for batch in rows.batches(start=2)] == [(2, whole[2:])]
        assert [frame.rows() for frame in rows.frames(["b"], 2)] == [[(None,), ("u",)], [("v",)]]


def test_a_text_file_too_large_to_keep_is_parsed_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays flat: of a file that would take more than KEPT nothing is kept, and it is read as before."""
    monkeypatch.setattr(text, "KEPT", 700)
    (tmp_path / "x.csv").write_bytes(b"a,b\n" + b"1,2\n" * 4)
    with open_rows(Input("x.csv"), tmp_path) as rows:
        assert [len(batch.rows) for batch in [*rows.batches(), *rows.batches()]] == [4, 4]
        (tmp_path / "x.csv").unlink()
        with pytest.raises(InputError, match="No such file"):
            next(rows.batches())


def test_several_files_are_one_input(tmp_path: Path) -> None:
    """A glob is read in sorted order across formats and column orders; a start may lie in a later file."""
    (tmp_path / "f2.csv").write_bytes(b"b,a\n6,5\n")
    (tmp_path / "f1.csv").write_bytes(b"a,b\n1,2\n3,4\n")
    assert read(tmp_path, "f*.csv") == [("1", "2"), ("3", "4"), ("5", "6")]
    with open_rows(Input(("f2.csv", "f1.csv")), tmp_path) as rows:
        assert [(batch.position, batch.rows) for batch in rows.batches(["a"], start=2)] == [(2, [("3",)])]
        assert [Path(file.path).name for file in rows.files] == ["f2.csv", "f1.csv"]


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    """Files whose columns or types differ are named with the difference."""
    (tmp_path / "f1.csv").write_bytes(b"a,b\n1,2\n")
    (tmp_path / "f2.csv").write_bytes(b"a,c\n1,2\n")
    pl.DataFrame({"a": [1], "b": ["x"]}).write_parquet(tmp_path / "f3.parquet")
    assert refusal(tmp_path, "f?.csv") == 'f2.csv: its columns are not those of f1.csv: "c" is new, "b" is missing'
    with pytest.raises(
        InputError, match=r'f3.parquet: column "a" is whole numbers, but text in f1.csv; give it one type'
    ):
        expand_and_read(tmp_path, ("f1.csv", "f3.parquet"))


def expand_and_read(folder: Path, paths: tuple[str, ...]) -> None:
    with open_rows(Input(paths), folder):
        pass


def test_jsonl_files_share_their_types(tmp_path: Path) -> None:
    """A field of one JSONL file is null in the other, and integers beside fractions are numbers."""
    (tmp_path / "f1.jsonl").write_bytes(b'{"z":1}\n')
    (tmp_path / "f2.jsonl").write_bytes(b'{"z":1.5,"y":"t"}\n')
    assert read(tmp_path, "f*.jsonl") == [(1.0, None), (1.5, "t")]


def test_declared_columns_have_their_types(tmp_path: Path) -> None:
    """csv.columns types cells by fixed rules; null and empty cells are null; the rest stays text."""
    (tmp_path / "x.csv").write_bytes(
        b"i,n,b,d,t,s\n007,1e3,TRUE,2024-02-29,2024-01-02T03:04:05+02:00,1\n-1,2,false,,2024-01-02 03:04,\n"
        b',,"",,2024-01-02T03:04:05.25,x\n'
    )
    kinds = {"i": "integer", "n": "number", "b": "boolean", "d": "date", "t": "datetime"}
    assert read(tmp_path, "x.csv", columns=kinds) == [
        (7, 1000.0, True, dt.date(2024, 2, 29), dt.datetime(2024, 1, 2, 1, 4, 5), "1"),  # noqa: DTZ001  (UTC)
        (-1, 2.0, False, None, dt.datetime(2024, 1, 2, 3, 4), None),  # noqa: DTZ001
        (None, None, None, None, dt.datetime(2024, 1, 2, 3, 4, 5, 250000), "x"),  # noqa: DTZ001
    ]


def test_a_cell_of_another_type_is_reported_with_its_line(tmp_path: Path) -> None:
    """A cell that does not fit csv.columns is named by line, also behind line breaks in cells and blank lines."""
    (tmp_path / "x.csv").write_bytes(b'a,b\n1,"l\nm"\n\nn/a,z\n')
    assert refusal(tmp_path, "x.csv", columns={"a": "integer"}) == (
        'x.csv:5: column "a": "n/a" is not an integer of at most 64 bits: fix it, add it to input.csv.null_values, '
        "or declare the column as string"
    )
    assert "did you mean" in refusal(tmp_path, "x.csv", columns={"bb": "integer"})


def test_a_row_never_changes_how_others_read(tmp_path: Path) -> None:
    """An appended "n/a" leaves all other cells as they were."""
    (tmp_path / "x.csv").write_bytes(b"a\n01\n2.50\n")
    before = read(tmp_path, "x.csv")
    (tmp_path / "x.csv").write_bytes(b"a\n01\n2.50\nn/a\n")
    assert read(tmp_path, "x.csv") == [*before, ("n/a",)]


def test_parquet_and_arrow_keep_their_types(tmp_path: Path) -> None:
    """Typed files give Python values: dates, decimals, lists, dicts, and their schema."""
    frame = pl.DataFrame(
        {"d": [dt.date(2024, 1, 2)], "l": [[1]], "s": [{"k": None}], "m": [decimal.Decimal("1.50")]},
        schema_overrides={"s": pl.Struct({"k": pl.String})},
    )
    frame.write_parquet(tmp_path / "x.parquet")
    frame.write_ipc(tmp_path / "x.arrow")
    frame.write_ipc_stream(tmp_path / "stream.arrow")
    for name in ("x.parquet", "x.arrow", "stream.arrow"):
        assert read(tmp_path, name) == frame.rows()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no parquet")
    (tmp_path / "bad.arrow").write_bytes(b"ARROW1 no arrow")
    assert refusal(tmp_path, "bad.parquet").startswith("bad.parquet: can't be read: ")
    assert refusal(tmp_path, "bad.arrow").startswith("bad.arrow: can't be read: ")


def test_json_lines_with_a_field_of_their_own_each_are_opened_in_linear_time(tmp_path: Path) -> None:
    """Four times as many names, of columns or in a map by user, take four times as many steps, not sixteen times."""

    def steps(lines: int) -> int:
        made = (json.dumps({f"f{n}": n, "users": {f"u{n}": n}}) for n in range(lines))
        (tmp_path / "x.jsonl").write_text("\n".join(made), encoding="utf-8")
        number = itertools.count()
        sys.setprofile(lambda *_: next(number))
        try:
            with open_rows(Input("x.jsonl"), tmp_path) as rows:
                assert len(rows.schema) == lines + 1
        finally:
            sys.setprofile(None)
        return next(number)

    assert steps(400) < 6 * steps(100)


@pytest.mark.parametrize(
    ("where", "mask"),
    [
        ("text is not null", [True, False]),
        ("text = 'x'", [True, False]),
        ("try_cast(id as int) > 0", [True, False]),
        ("id in ('q') or length(text) > 5", [False, True]),
        ("case when id = 'q' then true else false end", [False, True]),
        ("true", [True, True]),
        ("text = '9.5' or text is null", [False, True]),
        ("text <=> null", [False, True]),
        ("concat(id, 1.5) = 'q1.5'", [False, True]),
        ("text in ('x', '1') and length(id) in (1, 2)", [True, False]),
        ("length(id) in (1, /* or 'a' */ 2) or text = '> 9.5'", [True, True]),
    ],
)
def test_where_masks_rows(tmp_path: Path, where: str, mask: list[bool]) -> None:
    """`where` keeps every row and says which are asked; null counts as no."""
    assert asked(tmp_path, where) == mask


ONE_ROW = "may look at one row only: windows, aggregates and subqueries are not possible"
NUMBER = "input.where: compares text with a number: write cast(x as int), or declare input.csv.columns"
NULL = "input.where: a comparison with null is never true: write is null, or is not null"
CLOCK = "depends on the time of the run; write a date: date '2024-01-31'"
CONTAINS = "there is no function contains: write text like '%x%', or strpos(text, 'x') > 0"


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("id > 1", NUMBER),
        ("id in (1, 2)", NUMBER),
        ("id > 9.5", NUMBER),
        ("9.5 < id", NUMBER),
        ("id = 10.0", NUMBER),
        ("id = .5", NUMBER),
        ("id between 1.5 and 50.5", NUMBER),
        ("id in ('1', 1.5)", NUMBER),
        ("text not in (1, 'de')", NUMBER),
        ("/* don't */ id > 9.5 and text = 'x'", NUMBER),
        ("id > null", NULL),
        ("id < NULL", NULL),
        ("id >= null", NULL),
        ("id != null", NULL),
        ("contains(id, 'x')", f"input.where: not valid: {CONTAINS}"),
        ("id > 9.5 = = 'a'", "input.where: not valid SQL at column 12: expected an expression, found ="),
        ("count(*) > 1", f"input.where {ONE_ROW}"),
        ("id = max(id)", f"input.where {ONE_ROW}"),
        ("id = max(id) over (partition by text)", f"input.where {ONE_ROW}"),
        ("row_number() over (order by id) = 1", f"input.where {ONE_ROW}"),
        ("first(id) = id", f"input.where {ONE_ROW}"),
        ("lag(id) = 'x'", f"input.where: {ONE_ROW}"),
        ("id = (select max(id) from self)", f"input.where: {ONE_ROW}"),
        ("exists(select 1)", f"input.where: {ONE_ROW}"),
        ("id in (select 1)", f"input.where: {ONE_ROW}"),
        ("id > any(select 1)", f"input.where: {ONE_ROW}"),
        ("try_cast(id as date) < current_date", f"input.where: current_date {CLOCK}"),
        ("try_cast(id as datetime) < NOW()", f"input.where: NOW {CLOCK}"),
        ("txt = 'x'", 'input.where: the input has no column "txt", did you mean "text"?'),
        ('text = "x"', "input.where: the input has no column \"x\"; a text stands in single quotes: 'x'"),
        ("id =", "input.where: not valid SQL: expected an expression, found the end"),
        ("id = = 'a'", "input.where: not valid SQL at column 6: expected an expression, found ="),
        ("id like 'a", "input.where: not valid SQL at column 9: Unterminated string literal"),
        ("id = 'a'; select 1", "input.where: must be one condition, such as n > 2"),
        ("lenght(id) > 3", 'input.where: there is no function "lenght", did you mean "length"?'),
        ("length(id, 1) > 3", "input.where: a function is called with arguments that it does not take: length(id, 1)"),
        ("regexp_like(id, '(')", "input.where: a pattern is not valid: unclosed group"),
        ("id", "input.where gives String, not true or false; write a comparison"),
    ],
)
def test_where_is_refused_when_the_input_is_opened(tmp_path: Path, where: str, line: str) -> None:
    """A predicate over more than one row, of another type, or on no column is refused before any row is read."""
    (tmp_path / "p.csv").write_bytes(PEOPLE)
    with pytest.raises(InputError) as caught:
        expand_and_read_where(tmp_path, where)
    assert str(caught.value) == line


def test_where_compares_decimals_exactly(tmp_path: Path) -> None:
    """A decimal number in a condition is exact, so digits that no float holds count."""
    amounts = [decimal.Decimal(text) for text in ("9.50000000000000000000", "9.50000000000000000002")]
    pl.DataFrame({"amount": amounts}, {"amount": pl.Decimal(38, 20)}).write_parquet(tmp_path / "x.parquet")
    with open_rows(Input("x.parquet", "amount > 9.50000000000000000001"), tmp_path) as opened:
        assert next(opened.batches()).asked == [False, True]


@pytest.mark.parametrize("where", ["day > '2026-01-31'", "day in ('2026-01-31')", "at in ('2026-01-31')"])
def test_where_says_how_to_write_a_date(tmp_path: Path, where: str) -> None:
    """A date or a time that is compared with a text is refused, with the form that works."""
    rows = {"day": [dt.date(2026, 1, 31)], "at": [dt.datetime(2026, 1, 31, tzinfo=dt.UTC)]}
    pl.DataFrame(rows).write_parquet(tmp_path / "x.parquet")
    line = "input.where: compares a date with a text: write date '2024-01-31'"
    assert refusal(tmp_path, "x.parquet", where) == line
    with open_rows(Input("x.parquet", where.replace("'2", "date '2")), tmp_path) as opened:
        assert len(list(opened.batches())) == 1


def expand_and_read_where(folder: Path, where: str) -> None:
    with open_rows(Input("p.csv", where), folder):
        pass


def test_where_that_fails_on_a_row_says_so(tmp_path: Path) -> None:
    """A cast that one row refuses ends with one line that names try_cast."""
    (tmp_path / "p.csv").write_bytes(PEOPLE)
    assert refusal(tmp_path, "p.csv", "cast(id as int) > 0").endswith("try_cast gives null instead")


def test_paths_that_are_not_files_are_refused(tmp_path: Path) -> None:
    """No match, a folder, a missing file, a misspelt one and an unknown suffix each have their line."""
    (tmp_path / "x.xls").write_bytes(b"")
    (tmp_path / "x.parquet.gz").write_bytes(b"")
    (tmp_path / "peoples.tsv").write_bytes(b"")
    for path, line in (
        ("*.csv", 'input.path: nothing matches "*.csv"'),
        ("nope.csv", "input.path: there is no file"),
        ("people.csv", 'people.csv, did you mean "peoples.tsv"?'),
        (".", "is a folder"),
        ("x.xls", "x.xls is an old Excel workbook: save it as .xlsx"),
        ("x.parquet.gz", "x.parquet.gz has an unknown suffix; files can be .csv"),
    ):
        assert line in refusal(tmp_path, path)


def test_stamps_show_when_a_file_changed(tmp_path: Path) -> None:
    """The stamp of a file changes with its content and stays otherwise."""
    path = tmp_path / "x.csv"
    path.write_bytes(b"a\n1\n")
    files = expand(Input("*.csv"), tmp_path)
    before = stamp(files)
    assert stamp(files) == before
    path.write_bytes(b"a\n12\n")
    assert stamp(files) != before


@pytest.mark.skipif(not DATA.is_dir(), reason="no sample data here")
@pytest.mark.parametrize(("name", "rows", "columns"), [("banking77_test.csv", 3080, 2), ("tate_artists.csv", 3532, 9)])
def test_real_csv_reads_as_python_reads_it(name: str, rows: int, columns: int) -> None:
    """Real files with a BOM, CRLF and line breaks in cells are read as Python's own reader reads them."""
    found = read(DATA, name)
    with (DATA / name).open(encoding="utf-8-sig", newline="") as text:
        expected = list(csv.reader(text))[1:]
    assert (len(found), len(found[0])) == (rows, columns)
    assert [[cell or "" for cell in row] for row in found] == expected
