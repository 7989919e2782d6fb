"""Rows and answers to files: what is written reads back equal, is whole or not there, and has the types it promises."""

import csv
import datetime as dt
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nasty_files import READ, Nasty

from batchrun.errors import StorageError, UserError
from batchrun.job import OUTPUT_SUFFIXES, CsvOptions, Detail, Input, OutputCsv
from batchrun.table import (
    DETAIL_TYPES,
    answer_columns,
    check_writable,
    dtype_of,
    open_rows,
    partial_path,
    read_output,
    write_output,
)

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
Row = tuple[Any, ...]
suffixes = pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)


def copy(source: str, folder: Path, target: Path, size: int = 10_000, **options: Any) -> None:  # noqa: ANN401  (any CSV option)
    """Read an input and write it to an output."""
    with open_rows(Input(source, None, CsvOptions(**options)), folder) as rows:
        write_output(rows.frames(None, size), target, schema=rows.schema)


def read(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    with open_rows(Input(path.name), path.parent) as rows:
        return rows.columns, [row for batch in rows.batches() for row in batch.rows]


def write(frame: pl.DataFrame, path: Path, *, escape_formulas: bool = False) -> bool:
    return write_output(
        iter([frame]), path, schema=frame.schema, csv=OutputCsv(escape_formulas=escape_formulas)
    ).changed


@pytest.mark.parametrize("suffix", sorted({*OUTPUT_SUFFIXES} - {".ndjson"}))  # another name of .jsonl
@pytest.mark.parametrize("nasty", [file for file in READ if "json" not in file.name], ids=lambda nasty: nasty.name)
def test_nasty_csv_survives_to_every_format(tmp_path: Path, nasty: Nasty, suffix: str) -> None:
    """Each cell of each nasty CSV file reads back equal from each output format, null beside empty text."""
    if suffix == ".xlsx" and nasty.name == "huge_cell.csv":
        pytest.skip("a cell of Excel is too short")
    if nasty.name == "wide.csv" and suffix in {".xlsx", ".tsv", ".arrow"}:
        pytest.skip("10,000 columns take seconds: the formats that are written alike are enough")
    (tmp_path / nasty.name).write_bytes(nasty.data)
    target = tmp_path / f"out{suffix}"
    copy(nasty.name, tmp_path, target, **nasty.csv)
    if "json" in suffix and not nasty.rows:
        assert target.read_bytes() == b""
    else:
        assert read(target) == (nasty.columns, in_format(nasty.rows or [], suffix))


def in_format(rows: list[Row], suffix: str) -> list[Row]:
    """Return the rows that a file of this format is read as: a row without any cell is none in Excel."""
    return [row for row in rows if suffix != ".xlsx" or any(cell is not None for cell in row)]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl"])
@pytest.mark.parametrize("nasty", [file for file in READ if "json" in file.name], ids=lambda nasty: nasty.name)
def test_nasty_jsonl_survives_to_typed_formats(tmp_path: Path, nasty: Nasty, suffix: str) -> None:
    """Each value of each nasty JSONL file reads back equal from the formats that have types."""
    (tmp_path / nasty.name).write_bytes(nasty.data)
    target = tmp_path / f"out{suffix}"
    copy(nasty.name, tmp_path, target, **nasty.csv)
    assert read(target) == (nasty.columns, nasty.framed or nasty.rows)


TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8), suffix=st.sampled_from(OUTPUT_SUFFIXES))
@settings(max_examples=80)
def test_any_text_survives_to_every_format(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], suffix: str
) -> None:
    """Any texts and nulls, through CSV and an output format, read back equal, an empty text as null."""
    folder = tmp_path_factory.mktemp("out")
    write(pl.DataFrame(rows, schema={"a": pl.String, "b": pl.String}, orient="row"), folder / "in.csv")
    copy("in.csv", folder, folder / f"out{suffix}")
    expected = in_format([tuple(cell or None for cell in row) for row in rows], suffix)
    assert read(folder / f"out{suffix}") == (("a", "b"), expected)


def typed() -> pl.DataFrame:
    moment = dt.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC)
    return pl.DataFrame(
        {
            "text": ["x", None, ""],
            "count": [2**62, None, -1],
            "share": [0.1, 1e-7, None],
            "yes": [True, None, False],
            "day": [dt.date(2024, 2, 29), None, dt.date(1, 1, 1)],
            "moment": [moment, None, moment],
            "label": pl.Series(["b", None, "a"], dtype=pl.Enum(["a", "b"])),
            "tags": [["x", None], [], None],
            "place": [{"city": 'Z"ü', "n": 1}, None, {"city": None, "n": None}],
        }
    )


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_types_survive(tmp_path: Path, suffix: str) -> None:
    """Parquet and Arrow hold every type of an answer exactly, also with no row at all."""
    frame = typed()
    for part in (frame, frame.clear()):
        write(part, tmp_path / f"x{suffix}")
        back = pl.read_parquet(tmp_path / "x.parquet") if suffix == ".parquet" else pl.read_ipc(tmp_path / "x.arrow")
        assert back.schema == frame.schema
        assert back.equals(part)


def test_csv_and_jsonl_spell_types(tmp_path: Path) -> None:
    """CSV has JSON text for lists and objects, nothing for null, ISO dates; JSONL one object a line in UTF-8."""
    write(typed().head(2), tmp_path / "x.csv")
    moment = "2024-01-02T03:04:05.000006+00:00"
    assert (tmp_path / "x.csv").read_text(encoding="utf-8").splitlines() == [
        "text,count,share,yes,day,moment,label,tags,place",
        f'x,{2**62},0.1,true,2024-02-29,{moment},b,"[""x"",null]","{{""city"":""Z\\""ü"",""n"":1}}"',
        ",,1e-7,,,,,[],",
    ]
    write(typed().select("text", "day", "moment", "tags").head(1), tmp_path / "x.jsonl")
    assert (tmp_path / "x.jsonl").read_text() == (
        f'{{"text":"x","day":"2024-02-29","moment":"{moment}","tags":["x",null]}}\n'
    )


def test_a_sheet_never_loses_rows_or_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sheet has no room for is refused, whoever writes it, and the old file stays."""
    frame, path = pl.DataFrame({"a": range(4), "b": range(4)}), tmp_path / "x.xlsx"
    write(frame.head(3), path)
    before = path.read_bytes()
    monkeypatch.setattr("batchrun.table.sheet.MOST_ROWS", 3)
    with pytest.raises(UserError, match="holds 3 rows, and there are more"):
        write(frame, path)
    monkeypatch.setattr("batchrun.table.write.MOST_COLUMNS", 1)
    with pytest.raises(UserError, match="holds 1 columns, and the output has 2"):
        write(frame.head(3), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@suffixes
def test_an_output_without_rows_is_read_back(tmp_path: Path, suffix: str) -> None:
    """An output that holds no row is read with the types that it was written with, from each format."""
    empty = typed().clear()
    write(empty, tmp_path / f"x{suffix}")
    back = read_output(tmp_path / f"x{suffix}", empty.schema)
    assert back.equals(empty)
    assert back.schema == empty.schema


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_null_in_a_single_column_is_a_line_for_every_reader(tmp_path: Path, suffix: str) -> None:
    """A null alone in its row is written as quotes, since pandas and Python's csv pass over an empty line."""
    frame = pl.DataFrame({"n": [1, None, 3]})
    write(frame, tmp_path / f"x{suffix}")
    with (tmp_path / f"x{suffix}").open(newline="") as file:
        assert [row["n"] for row in csv.DictReader(file)] == ["1", "", "3"]
    assert read(tmp_path / f"x{suffix}")[1] == [("1",), (None,), ("3",)]
    assert read_output(tmp_path / f"x{suffix}", frame.schema).equals(frame)


@suffixes
def test_equal_rows_give_equal_bytes(tmp_path: Path, suffix: str) -> None:
    """The file's bytes do not depend on how the rows arrive, and equal bytes leave the old file alone."""
    # Parquet and Arrow hold groups of 20,000 rows; a workbook has none, and its cells are dear.
    rows = 900 if suffix == ".xlsx" else 45_000
    whole = pl.concat([typed()] * (rows // 3), rechunk=True)
    path = tmp_path / f"x{suffix}"
    assert write(whole, path)
    before = (path.stat().st_ino, path.stat().st_mtime_ns)
    for size in (rows // 7, rows * 4 // 9, rows * 3 // 4):
        written = write_output(whole.iter_slices(size), path, schema=whole.schema)
        assert (written.rows, written.changed) == (rows, False)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    assert write(whole.head(5), path)


def test_formulas_are_escaped_when_asked(tmp_path: Path) -> None:
    """With escape_formulas no text and no header starts as a formula would; without it data is exact."""
    frame = pl.DataFrame({"=h": ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "x=1", None], "n": [-1] * 8})
    write(frame, tmp_path / "x.csv", escape_formulas=True)
    columns, rows = read(tmp_path / "x.csv")
    assert columns == ("'=h", "n")
    assert [row[0] for row in rows] == ["'=1+1", "'+x", "'-x", "'@x", "'\tx", "'\rx", "x=1", None]
    assert {row[1] for row in rows} == {"-1"}
    write(frame, tmp_path / "x.csv")
    assert read(tmp_path / "x.csv")[1] == [(text, "-1") for text in frame["=h"]]


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow beyond 4 KiB, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@suffixes
@pytest.mark.usefixtures("small_files")
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fails the old output stays, nothing else is left, and one line says so."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"old")
    frame = pl.DataFrame({"a": [f"{number * 7919 % 100_003:x}" for number in range(50_000)]})
    with pytest.raises(StorageError, match=r"x\.\w+: can't be written: .*File too large") as caught:
        write(frame, path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["temporary", path.name]  # noqa: PTH208  (all names, hidden ones too)
    assert not list(temporary.iterdir())


@suffixes
def test_a_problem_of_the_rows_comes_through(tmp_path: Path, suffix: str) -> None:
    """What the frames raise is raised as it is, and nothing is left behind."""

    def frames() -> Iterator[pl.DataFrame]:
        yield pl.DataFrame({"a": ["x"]})
        raise UserError("the rows end here")

    with pytest.raises(UserError, match=r"^the rows end here$"):
        write_output(frames(), tmp_path / f"x{suffix}", schema={"a": pl.String()})
    assert list(tmp_path.iterdir()) == []


def test_the_output_has_the_umasks_mode_and_replaces_a_link(tmp_path: Path) -> None:
    """An output is as readable as any new file, and a symbolic link in its place is replaced, not followed."""
    (tmp_path / "elsewhere.csv").write_bytes(b"mine")
    (tmp_path / "x.csv").symlink_to("elsewhere.csv")
    before = os.umask(0o027)
    try:
        write(typed(), tmp_path / "x.csv")
    finally:
        os.umask(before)
    assert not (tmp_path / "x.csv").is_symlink()
    assert (tmp_path / "x.csv").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "elsewhere.csv").read_bytes() == b"mine"


def test_answers_become_typed_columns() -> None:
    """Answers fill columns of exactly the schema's types; None, a null and a missing key are null."""
    columns = {
        "label": pl.Enum(["pos", "neg"]),
        "n": pl.Int64(),
        "x": pl.Float64(),
        "day": pl.Date(),
        "tags": pl.List(pl.String()),
        "where": pl.Struct({"city": pl.String(), "since": pl.Date()}),
    }
    text = '{"label":"neg","n":9223372036854775807,"x":1,"day":"2024-02-29","tags":["é"],"where":{"city":null}}'
    frame = answer_columns([text, None, '{"label":null}'], columns)
    assert frame.schema == pl.Schema(columns)
    day = dt.date(2024, 2, 29)
    assert frame.rows() == [
        ("neg", 2**63 - 1, 1.0, day, ["é"], {"city": None, "since": None}),
        (None,) * 6,
        (None,) * 6,
    ]
    for empty in ([None, None], []):
        assert answer_columns(empty, columns).schema == pl.Schema(columns)


@pytest.mark.parametrize(
    ("schema", "dtype"),
    [
        ({"type": "string"}, pl.String()),
        ({"type": ["string", "null"]}, pl.String()),
        ({"type": "string", "format": "date"}, pl.Date()),
        ({"type": "string", "format": "email"}, pl.String()),
        ({"type": "integer"}, pl.Int64()),
        ({"type": "number"}, pl.Float64()),
        ({"type": ["integer", "number"]}, pl.Float64()),
        ({"type": ["boolean", "null"]}, pl.Boolean()),
        ({"enum": ["a", "b", None]}, pl.Enum(["a", "b"])),
        ({"type": ["string", "integer"], "enum": ["a", "b"]}, pl.Enum(["a", "b"])),
        ({"enum": [1, 2]}, pl.Int64()),
        ({"enum": [True, None]}, pl.Boolean()),
        ({"type": "number", "enum": [1, 2.5]}, pl.Float64()),
        ({"enum": ["a", 1]}, pl.String()),
        ({"enum": [[1]]}, pl.String()),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, pl.String()),
        ({"type": "array", "items": {"type": "integer"}}, pl.List(pl.Int64())),
        ({"type": "array", "items": {}, "prefixItems": [{}]}, pl.String()),
        ({"type": "object", "properties": {"a": {"type": "boolean"}}}, pl.Struct({"a": pl.Boolean()})),
        ({"type": ["string", "integer"]}, pl.String()),
        ({}, pl.String()),
    ],
)
def test_a_schema_has_a_type(schema: dict[str, Any], dtype: pl.DataType) -> None:
    """Each property of an answer's schema has one type, whatever the answers are."""
    assert dtype_of(schema) == dtype


def test_every_detail_has_a_type() -> None:
    """The table of details is complete against the job's words, in their order; probabilities depend on the answer."""
    assert tuple(DETAIL_TYPES) == tuple(name for name in get_args(Detail) if name != "probabilities")


def test_details_fit_every_format(tmp_path: Path) -> None:
    """A row of nulls and a row of values of all details can be written to every format."""
    values = {name: [None] for name in DETAIL_TYPES}
    frame = pl.DataFrame(values, schema={str(name): dtype for name, dtype in DETAIL_TYPES.items()})
    for suffix in OUTPUT_SUFFIXES:
        assert write(frame, tmp_path / f"x{suffix}")


def test_partial_path_keeps_the_suffix() -> None:
    """An unfinished run's output stands beside the finished one, in the same format."""
    assert partial_path(Path("out/reviews.v2.parquet")) == Path("out/reviews.v2.partial.parquet")


def test_an_output_is_checked_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parents are made; a folder, an input, an unknown suffix, a file as a parent and a missing extra are refused."""
    check_writable(tmp_path / "new" / "deep" / "x.csv")
    assert (tmp_path / "new" / "deep").is_dir()
    assert list((tmp_path / "new" / "deep").iterdir()) == []
    (tmp_path / "in.csv").write_bytes(b"a\n")
    (tmp_path / "link.csv").symlink_to("in.csv")
    (tmp_path / "folder.csv").mkdir()
    for name, line in (
        ("x.ods", "unknown format"),
        ("folder.csv", "is a folder: name a file in it"),
        ("link.csv", "an input file"),
    ):
        with pytest.raises(UserError, match=line):
            check_writable(tmp_path / name, [tmp_path / "in.csv"])
    with pytest.raises(UserError, match="is not a folder: write another path"):
        check_writable(tmp_path / "in.csv" / "x.csv")
    # Of any file that a command writes, such as that of `export -o`; `check` looks at the job's own output alone.
    monkeypatch.setitem(sys.modules, "xlsxwriter", None)
    with pytest.raises(UserError, match="needs XlsxWriter: pip install"):
        check_writable(tmp_path / "x.xlsx", named="-o")


@pytest.mark.skipif(not DATA.is_dir(), reason="no sample data here")
@suffixes
@pytest.mark.parametrize("name", ["banking77_test.csv", "tate_artists.csv", "clinc_intents.parquet"])
def test_real_files_survive_to_every_format(tmp_path: Path, name: str, suffix: str) -> None:
    """Real files read back equal cell by cell from each output format (a CSV's cells being text)."""
    copy(name, DATA, tmp_path / f"out{suffix}", size=1000)
    columns, rows = read(DATA / name)
    text = suffix in {".csv", ".tsv"}
    expected = [tuple(None if cell is None else str(cell) for cell in row) for row in rows] if text else rows
    assert read(tmp_path / f"out{suffix}") == (columns, expected)
