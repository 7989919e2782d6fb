"""Rows that a person reviews: chosen, corrected, confirmed, kept."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_line import Command, command
from job_running import write_job as write_plain
from plain_server import completion, plain_server
from review_jobs import labelling, write_job, wrong_on

__all__ = ["command"]


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def edit(path: Path, change: Callable[[dict[str, str]], None]) -> None:
    """Change the rows of a CSV file."""
    rows = table(path)
    for row in rows:
        change(row)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def test_a_correction_survives_an_edited_prompt_another_model_a_rerun_and_an_inserted_row(
    tmp_path: Path, command: Command
) -> None:
    """An edited label is in the output of every later run, whatever asks; eval still compares the model's answer."""
    with labelling({"a": wrong_on(3), "b": wrong_on(3)}) as url:
        details = {"path": "out/a.csv", "details": ["status", "corrected"]}
        job = write_job(tmp_path, url, "a", output=details)
        assert command(str(job), "--quiet").code == 0
        ended = command("show", str(job), "--review", "-o", "todo.csv")
        assert ended.code == 0, ended.err
        assert "failed rows first" in ended.err
        todo = table(tmp_path / "todo.csv")
        wanted = next(row for row in todo if row["row"] == "3")
        assert wanted["sentiment"] == wanted["sentiment_model"]
        right = "negative" if wanted["sentiment"] == "positive" else "positive"

        def decide(row: dict[str, str]) -> None:
            if row["row"] == "3":
                row["sentiment"] = right
            if row["row"] == "1":
                row["needs_review"] = ""

        edit(tmp_path / "todo.csv", decide)
        ended = command("correct", str(job), "todo.csv")
        assert (ended.code, "1 answer corrected, 1 confirmed" in ended.err) == (0, True)

        def written(path: str = "out/a.csv") -> tuple[str, str]:
            row = next(row for row in table(tmp_path / path) if row["id"] == "3")
            return row["sentiment"], row["corrected"]

        assert command(str(job), "--quiet").code == 0
        assert written() == (right, "true")
        assert next(row for row in table(tmp_path / "out" / "a.csv") if row["id"] == "1")["corrected"] == "false"
        # Reviewed rows are not asked for again.
        assert command("show", str(job), "--review", "-o", "more.csv").code == 0
        assert not {"1", "3"} & {row["row"] for row in table(tmp_path / "more.csv")}

        write_job(
            tmp_path,
            url,
            "a",
            output=details,
            answer={"columns": {"sentiment": {"values": ["positive", "negative"], "description": "Mood"}}},
        )
        assert command(str(job), "--quiet", "--yes", "--fresh").code == 0
        assert written() == (right, "true")
        assert command(str(job), "--quiet", "--model", "b").code == 0
        variant = next(path for path in (tmp_path / "out").iterdir() if path.name.startswith("a.b-"))
        assert written(f"out/{variant.name}") == (right, "true")
        reviews = tmp_path / "reviews.csv"
        lines = reviews.read_text(encoding="utf-8").splitlines(keepends=True)
        reviews.write_text("".join([lines[0], lines[5], *lines[1:]]), encoding="utf-8")
        assert command(str(job), "--quiet").code == 0
        assert written() == (right, "true")

        judged = json.loads(command("eval", str(job), "--reviewed", "sentiment", "--json").out)
        assert (judged["accuracy"]["right"], judged["accuracy"]["n"]) == (1, 2)
        assert judged["accuracy"]["low"] is None
        ended = command("eval", str(job), "--reviewed", "sentiment")
        assert "picked, not drawn at random" in ended.out
        assert "95 % interval" not in ended.out


def test_failed_rows_come_first_and_can_be_corrected(tmp_path: Path, command: Command) -> None:
    """A failed row is the first to review; with the answer that a person gives it, it is ok and the run ends with 0."""
    errors = ["error_code", "error_type", "error_message"]
    with labelling({"a": lambda number, gold: "" if number == 5 else gold or "positive"}) as url:
        job = write_job(tmp_path, url, "a", output={"path": "out/a.csv", "details": ["status", *errors, "attempts"]})
        assert command(str(job), "--quiet").code == 1
        assert command("show", str(job), "--review", "-o", "todo.csv", "-n", "3", "--id", "id").code == 0
        todo = table(tmp_path / "todo.csv")
        assert todo[0]["id"] == "5"
        assert len(todo) == 3

        def decide(row: dict[str, str]) -> None:
            row["sentiment"] = "negative" if row["id"] == "5" else row["sentiment"]

        edit(tmp_path / "todo.csv", decide)
        assert command("correct", str(job), "todo.csv").code == 0
        ended = command(str(job))
        assert (ended.code, "rows answered (1 by a person), " in ended.err) == (0, True), ended.err
        assert "failed" not in ended.err
        row = next(row for row in table(tmp_path / "out" / "a.csv") if row["id"] == "5")
        assert [row[name] for name in ("sentiment", "status", *errors)] == ["negative", "ok", "", "", ""]
        assert row["attempts"] == "1"
        assert json.loads(command(str(job), "--json").out)["by_person"] == 1
        status = command("status", str(job))
        assert ", 0 failed," in status.out
        ended = command("show", str(job), "-n", "1000")
        assert "shows more" not in ended.err
        assert "1 row failed: --failed shows them" in ended.err
        assert "corrections: 1 corrected, 0 confirmed" in status.out
        os.utime(tmp_path / "reviews.csv")  # so that even a refused command plans again
        ended = command("retry", str(job))
        assert (ended.code, "nothing to retry: every row is answered" in ended.err) == (2, True), ended.err
        assert command("status", str(job)).out.splitlines()[0] == status.out.splitlines()[0]


def test_a_person_writes_yes_and_no_and_fills_failed_rows_whole(tmp_path: Path, command: Command) -> None:
    """Yes, 1 and TRUE are true in a file of a spreadsheet; a failed row that is filled in part is named."""

    def answer(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        text = request["messages"][-1]["content"]
        return completion("?" if text == "bad" else '{"ok": false, "label": "a"}')

    with plain_server(answer) as url:
        columns = {"ok": "boolean", "label": ["a", "b"]}
        texts = ["one", "two", "three", "bad"]
        job = write_plain(
            tmp_path,
            url,
            model={"api_key_env": None, "name": "m"},
            rows=texts,
            prompt={"user": "{{ text }}"},
            answer={"columns": columns, "repairs": 0},
        )
        assert command(str(job), "--quiet").code == 1
        ended = command("eval", str(job), "--reviewed", "ok")
        assert (ended.code, "--reviewed: no answered row was reviewed" in ended.err) == (2, True)
        assert command("show", str(job), "--review", "-o", "todo.csv").code == 0
        said = {"1": "yes", "2": "1", "3": "TRUE", "4": "no"}
        edit(tmp_path / "todo.csv", lambda row: row.update(ok=said[row["row"]]))
        ended = command("correct", str(job), "todo.csv")
        assert ended.code == 2
        assert "row 4: the model gave no answer, so fill all answers; empty: label" in ended.err
        edit(tmp_path / "todo.csv", lambda row: row.update(label=row["label"] or "b"))
        ended = command("correct", str(job), "todo.csv")
        assert (ended.code, "4 answers corrected" in ended.err) == (0, True), ended.err
        command(str(job), "--quiet")
        assert pl.read_parquet(tmp_path / "out.parquet")["ok"].to_list() == [True, True, True, False]


def test_a_correction_belongs_to_cells(tmp_path: Path, command: Command) -> None:
    """An edit of a cell of the prompt ends a correction, one of other cells does not; with --id that column counts."""
    rows = tmp_path / "rows.csv"
    rows.write_text("id,text,note\n1,a,\n2,b,\n3,c,\n")
    job = {
        "input": "rows.csv",
        "answer": {"columns": {"label": ["x", "y"]}},
        "output": {"path": "out.csv", "details": ["corrected"]},
    }

    def write(prompt: str, url: str) -> None:
        facts = {**job, "prompt": prompt, "model": {"endpoint": url, "name": "m"}}
        (tmp_path / "a.yaml").write_text(json.dumps(facts))

    def written() -> list[tuple[str, str]]:
        assert command("a.yaml", "--quiet", "--yes").code == 0
        return [(row["label"], row["corrected"]) for row in table(tmp_path / "out.csv")]

    def to_y(number: str) -> Callable[[dict[str, str]], None]:
        return lambda row: row.update(label="y") if row["row"] == number else None

    with plain_server(lambda _: completion('{"label": "x"}')) as url:
        write("{{ text }}", url)
        assert written() == [("x", "")] * 3
        for number, flags in (("1", ()), ("2", ("--id", "id"))):
            assert command("show", "a.yaml", "--review", "-o", "todo.csv", *flags).code == 0
            edit(tmp_path / "todo.csv", to_y(number))
            assert command("correct", "a.yaml", "todo.csv").code == 0
        assert written() == [("y", "true"), ("y", "true"), ("x", "")]
        rows.write_text("id,text,note\n1,a,new\n2,b,new\n3,c,new\n")
        assert written() == [("y", "true"), ("y", "true"), ("x", "")], "the note is no cell of the prompt"
        write("{{ text }} {{ note }}", url)
        assert written() == [("y", "true"), ("y", "true"), ("x", "")], "another prompt, which uses more cells"
        rows.write_text("id,text,note\n1,a2,new\n2,b2,new\n3,c2,new\n")
        assert written() == [("x", ""), ("y", "true"), ("x", "")]
        rows.write_text("id,text,note\n7,a,new\n8,b2,new\n2,other,new\n")
        assert written() == [("y", "true"), ("x", ""), ("y", "true")]


def test_no_answer_of_a_person_becomes_that_of_another_row(tmp_path: Path, command: Command) -> None:
    """A column of --id that several questions share is refused, and so are two answers to rows with equal cells."""
    (tmp_path / "rows.csv").write_text("id,kind,text\n1,k,a\n2,k,b\n3,k,\n4,k,\n")
    job = {
        "input": "rows.csv",
        "prompt": "{{ text }}",
        "answer": {"columns": {"label": ["x", "y"]}},
        "output": "out.csv",
    }
    with plain_server(lambda _: completion('{"label": "x"}')) as url:
        (tmp_path / "a.yaml").write_text(json.dumps({**job, "model": {"endpoint": url, "name": "m"}}))
        assert command("a.yaml", "--quiet").code == 1
    ended = command("show", "a.yaml", "--review", "-o", "todo.csv", "--id", "kind")
    assert (ended.code, '--id: "k" in "kind" stands in several rows' in ended.err) == (2, True), ended.err
    assert not (tmp_path / "todo.csv").exists()

    def fill(row: dict[str, str]) -> None:
        row.update(label={"3": "x", "4": "y"}.get(row["row"], row["label"]))

    for flags, code in (((), 2), (("--id", "id"), 0), (("--id", "kind", "--id", "id"), 0)):
        (tmp_path / "todo.csv").unlink(missing_ok=True)  # its edits were not taken, so it would not be replaced
        assert command("show", "a.yaml", "--review", "-o", "todo.csv", *flags).code == 0
        edit(tmp_path / "todo.csv", fill)
        ended = command("correct", "a.yaml", "todo.csv")
        assert ended.code == code, ended.err
        if code:
            assert "row 4: text is the same in row 3, which has another answer" in ended.err
        (tmp_path / "a.corrections.jsonl").unlink(missing_ok=True)


def test_a_chat_models_column_may_be_called_like_a_probability(tmp_path: Path, command: Command) -> None:
    """A text in NAME_prob orders no review and is not a probability for eval."""
    (tmp_path / "rows.csv").write_text("text,gold\na,x\nb,y\n")
    with plain_server(lambda _: completion('{"label": "x", "label_prob": "low"}')) as url:
        columns = {"label": ["x", "y"], "label_prob": "string"}
        job = {
            "input": "rows.csv",
            "prompt": "{{ text }}",
            "model": {"endpoint": url, "name": "m"},
            "answer": {"columns": columns},
            "output": "out.csv",
        }
        (tmp_path / "a.yaml").write_text(json.dumps(job))
        assert command("a.yaml", "--quiet").code == 0
    ended = command("show", "a.yaml", "--review", "-o", "todo.csv")
    assert (ended.code, "failed rows first" in ended.err) == (0, True)
    assert json.loads(command("eval", "a.yaml", "--gold", "label=gold", "--json").out)["calibration"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentiment": "lovely"}, "row 1: "),
        ({"sentiment": "negative", "row_key": "1"}, '"row_key" was edited'),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(
    tmp_path: Path, command: Command, change: dict[str, str], message: str
) -> None:
    """A label that the job does not have, or a changed key, ends with exit 2, and nothing is kept."""
    with labelling({"a": lambda _number, gold: gold or "positive"}) as url:
        job = write_job(tmp_path, url, "a")
        assert command(str(job), "--quiet").code == 0
    assert command("show", str(job), "--review", "-o", "todo.csv", "-n", "1").code == 0
    edit(tmp_path / "todo.csv", lambda row: row.update(change))
    ended = command("correct", str(job), "todo.csv")
    assert ended.code == 2
    assert message in ended.err
    assert not (tmp_path / "a.corrections.jsonl").exists()


def test_a_variants_answers_are_corrected_by_its_name(tmp_path: Path, command: Command) -> None:
    """`correct JOB FILE --variant NAME` takes what `show --review --variant NAME` wrote."""
    with labelling({"a": lambda _number, gold: gold or "positive"}) as url:
        job = write_job(tmp_path, url, "a")
        trial = ("--variant", "short", "--set", "prompt.user={{ text }}")
        assert command(str(job), *trial, "--quiet").code == 0
        assert command("show", str(job), "--variant", "short", "--review", "-o", "todo.csv", "-n", "1").code == 0
        edit(tmp_path / "todo.csv", lambda row: row.update(needs_review=""))
        ended = command("correct", str(job), "todo.csv", "--variant", "short")
    assert (ended.code, "0 answers corrected, 1 confirmed" in ended.err) == (0, True), ended.err
    assert f"run `batchrun {job} --variant short`" in ended.err


def test_an_input_that_changes_during_a_run_is_named_where_people_corrected(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that comes meanwhile and can't be read ends the run as any other change, not as a mistake in the input."""
    monkeypatch.setattr("batchrun.table.text.KEPT", 1)  # as of a large file, nothing stays in memory
    rows = tmp_path / "rows.csv"
    rows.write_text("n\n1\n2\n")

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["messages"][-1]["content"] == "Number 2":
            rows.write_text("n\n1\n2\nmany\n")
        return completion('{"label": "good"}')

    job = {
        "input": {"path": "rows.csv", "csv": {"columns": {"n": "integer"}}},
        "prompt": "Number {{ n }}",
        "answer": {"columns": {"label": ["good", "bad"]}},
        "output": "out.csv",
    }
    with plain_server(answer) as url:
        (tmp_path / "job.yaml").write_text(json.dumps(job | {"model": {"endpoint": url, "name": "m"}}))
        assert command("job.yaml", "--limit", "1").code == 0
        assert command("show", "job.yaml", "--review", "-o", "todo.csv").code == 0
        edit(tmp_path / "todo.csv", lambda row: row.update(label="bad"))
        assert command("correct", "job.yaml", "todo.csv").code == 0
        ended = command("job.yaml")
    assert (ended.code, "job: 2 of 2 rows answered" in ended.err) == (2, True), ended.err
    assert "stopped: the input changed during the run; run again to ask the new rows" in ended.err


def test_the_words_of_a_german_excel_are_true_and_false(tmp_path: Path, command: Command, several: Path) -> None:
    """It saves true as WAHR in every row; a person's FALSCH corrects an answer, or confirms the row in needs_review."""

    def save(row: dict[str, str]) -> None:
        row["ok_model"], row["needs_review"] = "WAHR", "FALSCH" if row["row"] == "2" else "WAHR"
        row["ok"] = "FALSCH" if row["row"] == "1" else "WAHR"

    edit(tmp_path / "todo.csv", save)
    ended = command("correct", str(several), "todo.csv")
    assert (ended.code, "1 answer corrected, 1 confirmed" in ended.err) == (0, True), ended.err
    assert command(str(several), "--quiet").code == 0
    found = [(row["ok"], row["corrected"]) for row in answers(tmp_path / "out.jsonl")]
    assert found == [(False, True), (True, False), (True, None)]


def test_another_word_than_true_in_needs_review_is_asked_about(tmp_path: Path, command: Command) -> None:
    """Who writes "done" into needs_review may mean to confirm the row: it is refused, and not left out in silence."""
    with labelling({"a": wrong_on(3)}) as url:
        job = write_job(tmp_path, url, "a")
        assert command(str(job), "--quiet").code == 0
        assert command("show", str(job), "--review", "-o", "todo.csv").code == 0
        edit(tmp_path / "todo.csv", lambda row: row.update(needs_review="done" if row["row"] == "2" else "TRUE"))
        ended = command("correct", str(job), "todo.csv")
    said = 'row 2: needs_review is "done": clear it to confirm the row, or write true'
    assert (ended.code, said in ended.err, "row 1" in ended.err) == (2, True, False), ended.err


def test_files_that_excel_saved_are_read(tmp_path: Path, command: Command) -> None:
    """A todo and a gold file with semicolons in Windows' encoding, as a German Excel saves them, need no option."""
    with labelling({"a": wrong_on(3)}) as url:
        job = write_job(tmp_path, url, "a")
        assert command(str(job), "--quiet").code == 0
        assert command("show", str(job), "--review", "-o", "todo.csv").code == 0
        rows = table(tmp_path / "todo.csv")
        rows[0]["sentiment"] = "negative" if rows[0]["sentiment_model"] == "positive" else "positive"
        rows[1]["text"] = "schön"
        for name, lines in (("todo.csv", rows), ("gold.csv", [{"id": row["row"], "Wert": "positive"} for row in rows])):
            with (tmp_path / name).open("w", encoding="cp1252", errors="replace", newline="") as file:
                writer = csv.DictWriter(file, lines[0].keys(), delimiter=";")
                writer.writeheader()
                writer.writerows(lines)
        ended = command("correct", str(job), "todo.csv")
        assert (ended.code, "1 answer corrected, 0 confirmed" in ended.err) == (0, True), ended.err
        assert "cp1252" not in ended.err  # no answer depends on it
        ended = command("eval", str(job), "--gold", "Wert", "--gold-file", "gold.csv", "--on", "id")
        assert (ended.code, '"sentiment" equals "Wert"' in ended.out) == (0, True), ended.err
        assert "cp1252" not in ended.out


def test_a_guessed_encoding_is_named_where_it_matters(tmp_path: Path, command: Command) -> None:
    """A text beyond ASCII in a file that is not UTF-8 is shown with the encoding that was guessed."""
    with labelling({"a": wrong_on(3)}) as url:
        job = write_job(tmp_path, url, "a")
        assert command(str(job), "--quiet").code == 0
        assert command("show", str(job), "--review", "-o", "todo.csv", "-n", "1").code == 0
    edit(tmp_path / "todo.csv", lambda row: row.update(sentiment="zły"))
    todo = (tmp_path / "todo.csv").read_text()
    (tmp_path / "todo.csv").write_bytes(todo.encode("cp1250"))
    ended = command("correct", str(job), "todo.csv")
    assert ended.code == 2
    guess = 'is not UTF-8 and was read as cp1252: if "z³y" is wrong, save it as UTF-8'
    assert f"todo.csv {guess}" in ended.err
    (tmp_path / "gold.csv").write_bytes("id,gold\n1,positive\n2,zły\n".encode("cp1250"))
    (tmp_path / "utf8.csv").write_text("id,gold\n1,positive\n2,zły\n", encoding="utf-8")
    flags = ("--gold", "gold", "--on", "id", "--gold-file")
    assert f"  gold.csv {guess}\n" in command("eval", str(job), *flags, "gold.csv").out
    assert "UTF-8" not in command("eval", str(job), *flags, "utf8.csv").out


SEVERAL = {"code": "integer", "share": "number", "price": "string", "day": "date", "ok": "boolean", "reason": "string"}
ANSWER = {"code": 12345678901, "share": 3, "price": "1.50", "day": "2026-11-28", "ok": True, "reason": ""}


@pytest.fixture
def several(tmp_path: Path, command: Command) -> Path:
    """Return a job of three rows with several answers each, which was run; todo.csv holds them."""
    with plain_server(lambda _: completion(json.dumps(ANSWER))) as url:
        job = write_plain(
            tmp_path,
            url,
            model={"api_key_env": None, "name": "m"},
            rows=["one", "two", "three"],
            prompt={"user": "{{ text }}"},
            answer={"columns": SEVERAL},
            output={"path": "out.jsonl", "details": ["corrected"]},
        )
        assert command(str(job), "--quiet").code == 0
    assert command("show", str(job), "--review", "-o", "todo.csv").code == 0
    return job


def answers(path: Path) -> list[dict[str, Any]]:
    """Return the answers in a JSONL output, without the cells of the input."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: line[name] for name in (*SEVERAL, "corrected")} for line in lines]


def test_what_a_spreadsheet_rewrote_is_no_answer_of_a_person(tmp_path: Path, command: Command, several: Path) -> None:
    """An answer that was not edited stays the model's, also where it is empty and a spreadsheet saved another text."""
    rewritten = {"code": "1.23457E+10", "price": "1.5", "day": "28.11.2026", "ok": "TRUE"}

    def save(row: dict[str, str]) -> None:
        for name, text in rewritten.items():
            row[name] = row[f"{name}_model"] = text
        row["needs_review"] = "TRUE" if row["row"] == "3" else ""
        row["share"] = "4" if row["row"] == "2" else "3.0"
        row["ok"] = "true"

    edit(tmp_path / "todo.csv", save)
    ended = command("correct", str(several), "todo.csv")
    assert (ended.code, "1 answer corrected, 1 confirmed" in ended.err) == (0, True), ended.err
    assert command(str(several), "--quiet").code == 0
    assert answers(tmp_path / "out.jsonl") == [
        ANSWER | {"corrected": False},
        ANSWER | {"share": 4, "corrected": True},
        ANSWER | {"corrected": None},
    ]


def test_a_stale_file_is_refused_where_the_models_answer_is_needed(
    tmp_path: Path, command: Command, several: Path
) -> None:
    """What a person confirmed is what they saw: after another answer to the row the file can't confirm it."""
    with plain_server(lambda _: completion(json.dumps(ANSWER | {"share": 5}))) as url:
        job = json.loads(several.read_text())
        job["model"]["endpoint"] = url
        several.write_text(json.dumps(job))
        assert command(str(several), "--quiet", "--fresh", "--yes").code == 0
    edit(tmp_path / "todo.csv", lambda row: row.update(needs_review=""))
    ended = command("correct", str(several), "todo.csv")
    assert ended.code == 2
    assert "row 1: the row or its answer has changed since the file was written: write the file again" in ended.err


def test_all_rows_that_cannot_be_taken_are_named_at_once(tmp_path: Path, command: Command) -> None:
    """A file with many mistakes is refused once, with the first twenty rows and the number of the others."""
    with labelling({"a": lambda _number, gold: gold or "positive"}) as url:
        job = write_job(tmp_path, url, "a")
        assert command(str(job), "--quiet").code == 0
    assert command("show", str(job), "--review", "-o", "todo.csv", "-n", "22").code == 0
    edit(tmp_path / "todo.csv", lambda row: row.update(sentiment="lovely"))
    ended = command("correct", str(job), "todo.csv")
    assert (ended.code, ended.err.count("row ")) == (2, 20)
    assert ended.err.endswith("and 2 more rows\n")


def test_a_cleared_text_is_a_mistake(tmp_path: Path, command: Command) -> None:
    """A cleared answer of a job without answer columns is refused, and not ignored."""
    (tmp_path / "rows.csv").write_text("text\none\n")
    with plain_server(lambda _: completion("good")) as url:
        facts = {"input": "rows.csv", "prompt": "{{ text }}", "model": {"endpoint": url, "name": "m"}}
        (tmp_path / "a.yaml").write_text(json.dumps(facts | {"output": "out.csv"}))
        assert command("a.yaml", "--quiet").code == 0
    assert command("show", "a.yaml", "--review", "-o", "todo.csv").code == 0
    edit(tmp_path / "todo.csv", lambda row: row.update(answer=""))
    ended = command("correct", "a.yaml", "todo.csv")
    assert (ended.code, "row 1: the answer is empty: write a text, or the model's again" in ended.err) == (2, True)


def test_what_a_person_answered_is_not_asked_again(tmp_path: Path, command: Command) -> None:
    """A failed row with a person's answer is asked neither by a run nor by retry, while equal rows without one are."""
    asked: list[str] = []

    def answer(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked.append(request["messages"][-1]["content"])
        return completion("?" if asked[-1].startswith("bad") else '{"label": "x"}')

    (tmp_path / "rows.csv").write_text("id,text\n1,bad\n2,bad\n3,bad too\n4,good\n")
    with plain_server(answer) as url:
        job = {
            "input": "rows.csv",
            "prompt": "{{ text }}",
            "model": {"endpoint": url, "name": "m"},
            "answer": {"columns": {"label": ["x", "y"]}, "repairs": 0},
            "output": "out.csv",
        }
        (tmp_path / "a.yaml").write_text(json.dumps(job))
        assert command("a.yaml", "--quiet").code == 1
        asked.clear()

        def review(numbers: set[str]) -> None:
            assert command("show", "a.yaml", "--review", "-o", "todo.csv", "--id", "id").code == 0
            edit(tmp_path / "todo.csv", lambda row: row.update(label="y") if row["id"] in numbers else None)
            assert command("correct", "a.yaml", "todo.csv").code == 0

        review({"1", "3"})
        for forecast in ("check", "preview"):
            ended = command(forecast, "a.yaml")
            assert "4 rows: 3 answered, 1 failed permanently, 0 to ask; 0 requests" in ended.out, ended.out
        ended = command("retry", "a.yaml")
        assert (ended.code, asked) == (1, ["bad"])
        assert "3 of 4 rows answered (2 by a person), 1 failed" in ended.err
        assert "(row 2)" in ended.err
        assert [row["status"] for row in table(tmp_path / "out.csv")] == ["ok", "failed", "ok", "ok"]
        review({"2"})
        (tmp_path / "rows.csv").write_text("id,text\n1,bad\n2,bad\n3,bad too\n4,good\n5,new\n")
        asked.clear()
        ended = command("a.yaml")
        assert (ended.code, asked) == (0, ["new"]), ended.err
        # The labels are those of the output.
        assert "x 2 · y 3" not in ended.err
        assert "y 3 · x 2" in ended.err
        (tmp_path / "a.corrections.jsonl").unlink()
        assert command("a.yaml", "--quiet").code == 1


def test_show_marks_what_a_person_corrected(tmp_path: Path, command: Command) -> None:
    """`show` has the person's answer beside the model's, and beside the error of a failed row."""
    with labelling({"a": lambda number, gold: "" if number == 2 else gold or "positive"}) as url:
        job = write_job(tmp_path, url, "a")
        assert command(str(job), "--quiet").code == 1
    assert command("show", str(job), "--review", "-o", "todo.csv").code == 0

    def decide(row: dict[str, str]) -> None:
        if row["row"] in {"1", "2"}:
            row["sentiment"] = "negative"
        elif row["row"] == "3":
            row["needs_review"] = ""

    edit(tmp_path / "todo.csv", decide)
    assert command("correct", str(job), "todo.csv").code == 0
    assert "positive (corrected: negative)" in command("show", str(job)).out
    header, _, row = command("show", str(job), "--failed").out.splitlines()
    assert header.split()[-2:] == ["error_message", "corrected"]
    assert row.split()[-1] == "negative"
    assert "\nsentiment: positive (corrected: negative)\n" in command("show", str(job), "--row", "1").out
    failed = command("show", str(job), "--row", "2").out
    assert failed.startswith("row: 2 (failed)\n")
    assert "\nsentiment: (corrected: negative)\n" in failed
    assert command("show", str(job), "--row", "3").out.startswith("row: 3 (ok, confirmed)\n")
    assert "corrections: 2 corrected, 1 confirmed" in command("status", str(job)).out


def test_a_reviewed_null_and_an_empty_text_count(tmp_path: Path, command: Command) -> None:
    """`eval --reviewed` counts a confirmed null and an empty text, and a correction to null."""
    (tmp_path / "rows.csv").write_text("text\none\ntwo\nthree\n")
    said = {"one": '{"n": null, "note": ""}', "two": '{"n": 4, "note": ""}', "three": '{"n": 4, "note": ""}'}
    with plain_server(lambda request: completion(said[request["messages"][-1]["content"]])) as url:
        job = {
            "input": "rows.csv",
            "prompt": "{{ text }}",
            "model": {"endpoint": url, "name": "m"},
            "answer": {"columns": {"n": {"type": "integer", "nullable": True}, "note": "string"}},
            "output": "out.csv",
        }
        (tmp_path / "a.yaml").write_text(json.dumps(job))
        assert command("a.yaml", "--quiet").code == 0
    assert command("show", "a.yaml", "--review", "-o", "todo.csv").code == 0

    def decide(row: dict[str, str]) -> None:
        row["needs_review"] = "" if row["row"] == "1" else "true"
        row["n"] = "" if row["row"] == "2" else row["n"]

    edit(tmp_path / "todo.csv", decide)
    assert command("correct", "a.yaml", "todo.csv").code == 0
    for answer, right in (("n", 1), ("note", 2)):
        ended = command("eval", "a.yaml", "--reviewed", answer, "--json")
        assert ended.code == 0, ended.err
        accuracy = json.loads(ended.out)["accuracy"]
        assert (accuracy["right"], accuracy["n"]) == (right, 2), answer


def test_columns_of_json_text_are_corrected_and_left_alone(tmp_path: Path, command: Command) -> None:
    """A row with JSON text takes corrections of that column and of any other, and keeps what is not edited."""
    (tmp_path / "rows.csv").write_text("text\none\ntwo\nthree\n")
    properties = {"label": {"enum": ["x", "y"]}, "more": {"type": "object"}, "id": {"type": ["string", "integer"]}}
    said = {"label": "x", "more": {"parts": [1, 10**24]}, "id": 7}
    with plain_server(lambda _: completion(json.dumps(said))) as url:
        facts = {"input": "rows.csv", "prompt": "{{ text }}", "model": {"endpoint": url, "name": "m"}}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        (tmp_path / "a.yaml").write_text(json.dumps(facts | {"answer": {"schema": schema}, "output": "out.csv"}))
        assert command("a.yaml", "--quiet").code == 0
        before = table(tmp_path / "out.csv")
        assert command("show", "a.yaml", "--review", "-o", "todo.csv").code == 0
        todo = table(tmp_path / "todo.csv")
        todo[0]["label"], todo[1]["more"], todo[2]["needs_review"] = "y", f'{{"n": {10**24}}}', ""
        pl.DataFrame(todo).write_csv(tmp_path / "todo.csv")
        ended = command("correct", "a.yaml", "todo.csv")
        assert (ended.code, "2 answers corrected, 1 confirmed" in ended.err) == (0, True), ended.err
        assert command("a.yaml", "--quiet").code == 0
    before[0]["label"], before[1]["more"] = "y", f'{{"n":{10**24}}}'
    assert table(tmp_path / "out.csv") == before


def test_rows_with_long_integers_are_shown_and_reviewed(tmp_path: Path, command: Command) -> None:
    """Cells of JSON with integers beyond 64 bits are shown with all digits; such rows can be reviewed and corrected."""
    long = 10**24 + 1
    (tmp_path / "rows.jsonl").write_text(f'{{"x": {long}}}\n{{"x": [{long}]}}\n{{"x": {{"id": {long}}}}}\n')
    with plain_server(lambda _: completion('{"label": "x"}')) as url:
        facts = {"input": "rows.jsonl", "prompt": "{{ x }}", "model": {"endpoint": url, "name": "m"}}
        job = facts | {"answer": {"columns": {"label": ["x", "y"]}}, "output": "out.csv"}
        (tmp_path / "a.yaml").write_text(json.dumps(job))
        assert command("a.yaml", "--quiet").code == 0
        assert command("show", "a.yaml", "--review", "-o", "todo.csv").code == 0
        assert [row["x"] for row in table(tmp_path / "todo.csv")] == [f"{long}", f"[{long}]", f'{{"id":{long}}}']
        edit(tmp_path / "todo.csv", lambda row: row.update(label="y"))
        assert command("correct", "a.yaml", "todo.csv").code == 0
        assert command("a.yaml", "--quiet").code == 0
    assert [row["label"] for row in table(tmp_path / "out.csv")] == ["y"] * 3
    assert command("report", "a.yaml").code == 0


def test_an_edited_file_is_not_replaced_before_it_was_taken(tmp_path: Path, command: Command) -> None:
    """`show --review` leaves a file that a person edited alone until `correct` has taken it; a bad -o is named so."""
    (tmp_path / "rows.csv").write_text("text\none\ntwo\n")
    with plain_server(lambda _: completion('{"label": "x"}')) as url:
        facts = {"input": "rows.csv", "prompt": "{{ text }}", "model": {"endpoint": url, "name": "m"}}
        job = facts | {"answer": {"columns": {"label": ["x", "y"]}}, "output": "out.csv"}
        (tmp_path / "a.yaml").write_text(json.dumps(job))
        assert command("a.yaml", "--quiet").code == 0
    show = ("show", "a.yaml", "--review", "-o", "todo.csv")
    assert command(*show).code == command(*show).code == 0
    for label in ("z", "y"):  # one that `correct` refuses, and one that it takes
        rows = (tmp_path / "todo.csv").read_text().splitlines(keepends=True)
        cells = rows[2].split(",")
        cells[2] = label
        (tmp_path / "todo.csv").write_text("".join([*rows[:2], ",".join(cells)]))
        before = (tmp_path / "todo.csv").read_text()
        ended = command(*show)
        assert (ended.code, (tmp_path / "todo.csv").read_text()) == (2, before)
        assert "todo.csv holds 1 row that a person edited and `batchrun correct` has not taken" in ended.err
    assert command("correct", "a.yaml", "todo.csv").code == 0
    assert command(*show).code == 0
    assert [row["row"] for row in table(tmp_path / "todo.csv")] == ["1"]
    assert '-o: unknown format ".txt"' in command(*show[:4], "todo.txt").err
