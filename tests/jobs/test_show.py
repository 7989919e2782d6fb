"""`show`: inputs and answers in the terminal."""

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from command_line import Command, command
from job_running import write_job as write_plain
from plain_server import completion, plain_server
from review_jobs import labelling, write_job, wrong_on

from batchrun.report import Table
from batchrun.report.texttable import display_width

__all__ = ["command"]


@pytest.fixture
def job(tmp_path: Path, command: Command) -> Iterator[Path]:
    """Yield a job that labelled the reviews; review 2 has no answer that fits."""
    with labelling({"m": lambda number, gold: "" if number == 2 else wrong_on(3)(number, gold)}) as url:
        path = write_job(tmp_path, url, "m")
        assert command(str(path), "--quiet").code == 1
        yield path


def test_answers_stand_beside_their_inputs(job: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answered rows come in input order, no wider than the terminal, with the numbers of their rows."""
    monkeypatch.setenv("COLUMNS", "60")
    ended = command("show", str(job), "-n", "3")
    assert ended.code == 0
    header, rule, *rows = ended.out.splitlines()
    assert header.split() == ["row", "text", "sentiment"]
    assert set(rule) == {"-", " "}
    assert [(row.split()[0], row.split()[-1]) for row in rows] == [
        ("1", "positive"),
        ("3", "negative"),
        ("4", "positive"),
    ]
    assert max(map(len, ended.out.splitlines())) <= 60
    assert "…  negative" in rows[1] or "strong" in rows[1]
    assert "-n shows more" in ended.err
    assert "1 row failed: --failed shows them" in ended.err


def test_failed_rows_are_shown_with_their_errors(job: Path, command: Command) -> None:
    """--failed lists the rows that failed, the name of the error and its message."""
    ended = command("show", str(job), "--failed")
    assert ended.code == 0
    assert "error_type" in ended.out
    rows = [line for line in ended.out.splitlines() if "schema_mismatch" in line]
    assert [row.split()[0] for row in rows] == ["2"]


def test_one_row_is_shown_whole(job: Path, command: Command) -> None:
    """--row N shows every cell, the answer or the error with what the model wrote, and what it took."""
    ended = command("show", str(job), "--row", "3")
    assert ended.code == 0
    assert ended.out.startswith("row: 3 (ok)\nid: 3\nproduct: umbrella\n")
    assert "Elegant and strong, I get compliments for it." in ended.out
    assert "\nsentiment: negative\n" in ended.out
    assert "\ncost: $0.000020\n" in ended.out
    failed = command("show", str(job), "--row", "2").out
    assert "row: 2 (failed)" in failed
    assert "raw: no label" in failed
    missing = command("show", str(job), "--row", "100000")
    assert (missing.code, "there is no row 100,000; the input has" in missing.err) == (2, True)


def test_a_row_with_bytes_is_shown_without_them(tmp_path: Path, command: Command) -> None:
    """--row N shows the other cells of a row that has bytes in a column of its own, such as a map of numbers."""
    cells = {"text": ["a"], "photo": [b"\xff"], "sizes": [{7: "XL"}]}
    frame = pl.DataFrame(cells, schema_overrides={"sizes": pl.Map(pl.Int64(), pl.String())})
    frame.write_parquet(tmp_path / "rows.parquet")
    with plain_server(lambda _: completion("fine")) as url:
        job = {"input": "rows.parquet", "prompt": "{{ text }}", "model": {"endpoint": url, "name": "m"}}
        (tmp_path / "job.yaml").write_text(json.dumps({**job, "output": "out.parquet"}))
        assert command("job.yaml", "--quiet").code == 0
    ended = command("show", "job.yaml", "--row", "1")
    assert (ended.code, ended.out.splitlines()[:4]) == (
        0,
        ["row: 1 (ok)", "text: a", 'sizes: {"7":"XL"}', "answer: fine"],
    )


def test_a_job_that_was_edited_or_never_ran_is_refused(job: Path, command: Command) -> None:
    """Answers are never shown beside another input or wording, and a job without a checkpoint says so."""
    job.write_text(job.read_text().replace("Review: ", "Text: "))
    ended = command("show", str(job))
    assert (ended.code, ended.out) == (2, "")
    assert "prompt has changed" in ended.err
    new = job.with_name("new.yaml")
    new.write_text(job.read_text())
    assert "run the job first" in command("show", str(new)).err


def test_hostile_and_wide_text_keeps_the_table_in_place(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control characters are escapes, wide characters count as two cells, and no line is wider than the terminal."""
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("KEY", "k")
    texts = ["\x1b[31mred\u202e", "日本語のレビューはとても良いです。" * 9, "line\nbreak", "e\u0301 🙂 ok"]
    with plain_server(lambda _: completion(json.dumps({"label": "good", "score": 7}))) as url:
        path = write_plain(tmp_path, url, rows=texts, model="m")
        assert command(str(path), "--quiet").code == 0
        ended = command("show", str(path))
    lines = ended.out.splitlines()
    assert max(map(display_width, lines)) <= 50
    assert len(lines) == 6
    assert "\\x1b[31mred\\u202e" in ended.out
    assert "line\\nbreak" in ended.out
    # The answers begin in the same column of the screen in each line.
    assert len({display_width(line[: line.index("good")]) for line in lines[2:]}) == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_ascii_terminal_shows_escapes_in_the_width_it_has(encoding: str) -> None:
    """Letters that the terminal lacks are escapes before the widths are measured."""
    rows = [("1", "Größe 日本 …" * 4), ("2", "plain")]
    lines = list(Table(("n", "text"), rows, {0}).lines(30, encoding))
    assert all(display_width(line) <= 30 for line in lines)
    assert all(line.encode(encoding) for line in lines)


def test_many_columns_become_records() -> None:
    """Where columns would be too narrow to read, each row is a record of name and value."""
    header = tuple(f"column{number}" for number in range(12))
    lines = list(Table(header, [("a long value " * 3,) * 12] * 2).lines(40, "utf-8"))
    assert lines[0].startswith("column0: a long value")
    assert lines.count("") == 1
    assert max(map(len, lines)) <= 40


def test_looking_at_answers_needs_no_key(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A colleague without the key can look at answers, judge and export them; only what sends asks for the key."""
    with labelling({"m": wrong_on(3)}) as url:
        monkeypatch.setenv("MY_KEY", "sk-canary")
        file = write_job(tmp_path, url, "m")
        job = json.loads(file.read_text())
        job["model"]["api_key_env"] = "MY_KEY"
        file.write_text(json.dumps(job))
        path = str(file)
        assert command(path, "--quiet").code == 0
    monkeypatch.delenv("MY_KEY")
    assert "MY_KEY is not set" in command(path).err
    for arguments in (["show"], ["status"], ["export"], ["report"], ["eval", "--gold", "gold"]):
        ended = command(arguments[0], path, *arguments[1:])
        assert ended.code == 0, ended.err
    assert command("show", path, "--review", "-o", str(tmp_path / "todo.csv")).code == 0
    assert command("correct", path, str(tmp_path / "todo.csv")).code == 0


def test_a_moved_folder_and_a_link_to_it_hold_the_same_input(tmp_path: Path, command: Command) -> None:
    """After a move of the job's folder, and through a link, answers are shown, and status reports no change."""
    (tmp_path / "a").mkdir()
    with labelling({"m": wrong_on(3)}) as url:
        assert command(str(write_job(tmp_path / "a", url, "m")), "--quiet").code == 0
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "link").symlink_to("b")
    for folder in ("b", "link"):
        assert command("show", f"{folder}/m.yaml").code == 0
        assert "changed" not in command("status", f"{folder}/m.yaml").out


@pytest.mark.parametrize("change", [{"input": {"path": "reviews.csv"}}, {"dedupe": False}])
def test_rows_that_are_chosen_otherwise_need_a_run(job: Path, command: Command, change: dict[str, object]) -> None:
    """After an edit of input.where or dedupe nothing counts the rows of before as those of now."""
    before, out = job.read_text(), str(job.parent / "x.csv")
    looks = [
        ("show", str(job)),
        ("eval", str(job), "--gold", "sentiment=gold"),
        ("report", str(job)),
        ("export", str(job), "-o", out),
    ]
    job.write_text(json.dumps(json.loads(before) | change))
    wanted = "input.where or dedupe has changed since the last run: run the job again, or change it back"
    for words in looks:
        ended = command(*words)
        assert (ended.code, wanted in ended.err) == (2, True), (words, ended.err)
    assert "the job file changed since run 1" in command("status", str(job)).out
    job.write_text(before)
    assert [command(*words).code for words in looks] == [0] * 4
