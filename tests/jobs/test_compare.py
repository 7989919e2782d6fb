"""`compare`: two jobs on the same rows, with and without gold."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_line import Command, command
from plain_server import completion, plain_server
from review_jobs import labelling, reviews, write_job, wrong_on

__all__ = ["command"]

FIRST, SECOND = {3, 10, 11, 13, 14, 15, 16, 40, 41}, {3, 50}


@pytest.fixture
def jobs(tmp_path: Path, command: Command) -> Iterator[tuple[str, str]]:
    """Yield two jobs that labelled the reviews; the second errs less often and is dearer."""
    with labelling({"a": wrong_on(*FIRST), "b": wrong_on(*SECOND)}) as url:
        paths = write_job(tmp_path, url, "a"), write_job(tmp_path, url, "b")
        paths[1].write_text(paths[1].read_text().replace('"prompt": 1,', '"prompt": 8,'))
        for path in paths:
            assert command(str(path), "--quiet").code == 0
        yield str(paths[0]), str(paths[1])


def found(command: Command, *arguments: str) -> dict[str, Any]:
    ended = command("compare", *arguments, "--json")
    assert (ended.code, ended.err) == (0, "")
    facts: dict[str, Any] = json.loads(ended.out)
    return facts


def test_who_is_right_where_they_differ(jobs: tuple[str, str], command: Command) -> None:
    """Fixes, breaks and McNemar's exact test, which is scipy's binomial test, are shown; costs stand side by side."""
    from scipy.stats import binomtest  # noqa: PLC0415  (the import takes seconds, of each worker)

    facts = found(command, *jobs, "--gold", "gold")
    gold = facts["gold"]
    assert (gold["fixes"], gold["breaks"], gold["neither"]) == (len(FIRST - SECOND), len(SECOND - FIRST), 1)
    assert gold["mcnemar_p"] == pytest.approx(binomtest(gold["breaks"], gold["breaks"] + gold["fixes"]).pvalue)
    assert gold["mcnemar_p"] < 0.05
    assert gold["more_labels"] == 0
    assert [job["cost_per_1000_usd"] for job in facts["jobs"]] == pytest.approx([0.02, 0.09])
    agreement = facts["columns"][0]["agreement"]
    assert agreement["n"] - agreement["right"] == len(FIRST ^ SECOND)
    assert facts["differ"] >= len(FIRST ^ SECOND)
    out = command("compare", *jobs, "--gold", "gold").out
    assert "8 fixed: only b is right" in out
    assert "1 broken: only a is right" in out
    assert "b is better" in out


def test_changed_rows_become_a_file(jobs: tuple[str, str], command: Command, tmp_path: Path) -> None:
    """-o writes each row that differs with both answers and gold, and never over an input."""
    ended = command("compare", *jobs, "--gold", "gold", "-o", "changed.csv")
    assert ended.code == 0
    changed = pl.read_csv(tmp_path / "changed.csv")
    assert set(changed["id"]) >= FIRST ^ SECOND
    assert all(changed["sentiment_a"] != changed["sentiment_b"])
    assert changed["row"].to_list() == changed["id"].to_list()
    assert f"{changed.height} changed rows in changed.csv" in ended.err
    assert command("compare", jobs[0], jobs[0], "-o", "none.csv").code == 0
    assert (tmp_path / "none.csv").read_text() == "id,product,text,gold,row,sentiment_a_1,sentiment_a_2\n"
    assert command("compare", *jobs, "-o", "reviews.csv").code == 2
    assert reviews()[0]["text"] in (tmp_path / "reviews.csv").read_text()


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_changed_rows_have_the_cells_of_the_input(tmp_path: Path, command: Command, suffix: str) -> None:
    """-o writes cells of any type as the input has them, also those that no prompt can show; -o x.txt is a mistake."""
    frame = pl.DataFrame({"text": ["a", "b", "c"], "more": [1, 2, 3]})
    if suffix == ".parquet":
        frame = frame.with_columns(raw=pl.lit(b"\xff"), took=pl.duration(seconds="more"))
        frame.write_parquet(tmp_path / "rows.parquet")
    else:
        frame = frame.with_columns(more=pl.Series(["1", None, "three"]))
        (tmp_path / "rows.jsonl").write_text('{"text":"a","more":1}\n{"text":"b"}\n{"text":"c","more":"three"}\n')
    with plain_server(lambda body: completion(str(body["model"] == "n" and "b" not in str(body["messages"])))) as url:
        _write_text_job(tmp_path, url, f"rows{suffix}", keep=["text"])
        for flags in ((), ("--model", "n")):
            assert command("job.yaml", "--quiet", *flags).code == 0
    ended = command("compare", "job.yaml", "--model", "n", "-o", "changed.parquet")
    assert ended.code == 0
    expected = frame[[0, 2]].with_columns(row=pl.Series([1, 3]), answer_job=pl.lit("False"), answer_n=pl.lit("True"))
    assert pl.read_parquet(tmp_path / "changed.parquet").equals(expected)
    ended = command("compare", "job.yaml", "--model", "n", "-o", "changed.txt")
    assert (ended.code, '-o: unknown format ".txt"' in ended.err) == (2, True)


def _write_text_job(folder: Path, url: str, rows: str = "rows.csv", **output: object) -> None:
    """Write a job that asks the texts of a file and has plain answers."""
    job = {
        "input": rows,
        "prompt": "{{ text }}",
        "model": {"endpoint": url, "name": "m"},
        "output": {"path": "out.csv", **output},
    }
    (folder / "job.yaml").write_text(json.dumps(job))


def test_a_row_that_became_no_question_is_a_failed_one(tmp_path: Path, command: Command) -> None:
    """A row whose prompt can't be made counts as failed in `compare`, as it does in `eval`."""
    (tmp_path / "rows.csv").write_text("text,gold\na,yes\n,yes\nb,yes\n")
    with plain_server(lambda _: completion("yes")) as url:
        _write_text_job(tmp_path, url)
        assert command("job.yaml", "--quiet").code == 1
        assert command("job.yaml", "--quiet", "--model", "n").code == 1
    facts = found(command, "job.yaml", "--model", "n", "--gold", "gold")
    judged = json.loads(command("eval", "job.yaml", "--gold", "gold", "--json").out)
    assert [one["failed"] for one in facts["jobs"]] == [judged["failed"]] * 2 == [1, 1]
    out = command("compare", "job.yaml", "--model", "n", "--gold", "gold").out
    assert re.search(r"failed questions +1 of 3 +1 of 3\n", out)


def test_rows_that_became_no_question_are_not_added_to_a_sample(tmp_path: Path, command: Command) -> None:
    """In `eval` and `compare` the accuracy of a sample is that of the rows it asked, however many can't be asked."""
    rows = [f"text {number},yes" if number % 2 else ",yes" for number in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,gold", *rows]))
    with plain_server(lambda _: completion("yes")) as url:
        _write_text_job(tmp_path, url)
        for flags in ((), ("--model", "n")):
            assert command("job.yaml", "--quiet", "--sample", "10", *flags).code == 1
        judged = json.loads(command("eval", "job.yaml", "--gold", "gold", "--json").out)
        assert (judged["accuracy"]["right"], judged["accuracy"]["n"], judged["unrendered"]) == (10, 10, 30)
        assert "30 rows with gold can't be asked, and not counted" in command("eval", "job.yaml", "--gold", "gold").out
        facts = found(command, "job.yaml", "--model", "n", "--gold", "gold")
        assert [one["accuracy"]["n"] for one in facts["models"] + facts["jobs"]] == [10] * 4
        assert [one["failed"] for one in facts["models"] + facts["jobs"]] == [0] * 4
        assert command("job.yaml", "--quiet").code == 1
    facts = found(command, "job.yaml", "--model", "n", "--gold", "gold")
    assert [one["accuracy"]["n"] for one in facts["models"] + facts["jobs"]] == [60, 10, 10, 10]
    assert [one["failed"] for one in facts["models"]] == [30, 0]


def test_other_inputs_are_joined_by_a_column(tmp_path: Path, command: Command) -> None:
    """Where the inputs differ --on pairs the rows, whatever their order; without it the command says so."""
    with labelling({"a": wrong_on(1), "b": wrong_on(2)}) as url:
        first, second = write_job(tmp_path, url, "a"), write_job(tmp_path, url, "b")
        rows = pl.read_csv(tmp_path / "reviews.csv").filter(pl.col("text").is_not_null())[:30]
        rows.reverse()[:25].write_csv(tmp_path / "turned.csv")
        rows.write_csv(tmp_path / "reviews.csv")
        second.write_text(second.read_text().replace("reviews.csv", "turned.csv"))
        for path in (first, second):
            assert command(str(path), "--quiet").code == 0
    ended = command("compare", str(first), str(second))
    assert ended.code == 2
    assert "name the column that identifies a row: --on COLUMN" in ended.err
    facts = found(command, str(first), str(second), "--on", "id", "--gold", "gold")
    assert (facts["rows"], facts["unpaired"], facts["differ"]) == (25, 5, 0)
    twice = command("compare", str(first), str(second), "--on", "product")
    assert twice.code == 2
    assert "stands in several rows" in twice.err


def test_few_labels_settle_nothing(tmp_path: Path, command: Command) -> None:
    """A small difference is called open, with the number of labels that would likely settle it."""
    with labelling({"a": wrong_on(3, 4), "b": wrong_on(10)}) as url:
        paths = [str(write_job(tmp_path, url, name)) for name in "ab"]
        for path in paths:
            assert command(path, "--quiet").code == 0
    gold = found(command, *paths, "--gold", "gold")["gold"]
    assert gold["mcnemar_p"] == 1
    assert gold["more_labels"] > 500
    assert "not settled; if the difference" in command("compare", *paths, "--gold", "gold").out


def test_models_of_one_job_stand_in_a_table(tmp_path: Path, command: Command) -> None:
    """--model names variants; the cheapest one that reaches --min is named, and two are also compared row by row."""
    with labelling({"a": wrong_on(*FIRST), "b": wrong_on(*SECOND), "c": wrong_on(3)}) as url:
        job = str(write_job(tmp_path, url, "a"))
        for model, price in (("a", 1), ("b", 8), ("c", 9)):
            flags = ("--set", f"model.price={{prompt: {price}, completion: 2}}")
            assert command(job, "--quiet", "--model", model, *flags).code == 0
    three = found(command, job, "--model", "a", "--model", "b", "--model", "c", "--gold", "gold", "--min", "0.97")
    assert [one["job"] for one in three["models"]] == ["a", "b", "c"]
    assert three["cheapest"] == "b"
    assert three["models"][0]["accuracy"]["value"] < 0.97 <= three["models"][1]["accuracy"]["value"]
    two = command("compare", job, "--model", "a", "--model", "b", "--gold", "gold", "--min", "1").out
    assert "none reaches 100.0 %" in two
    assert "8 fixed: only b is right" in two
    ended = command("compare", job)
    assert (ended.code, "JOB2, --before, --model or --variant" in ended.err) == (2, True)


def test_a_trial_stands_beside_its_job(tmp_path: Path, command: Command) -> None:
    """--variant compares the job with a trial of another prompt, whose --set need not be repeated; two make a table."""
    answers = {"a": wrong_on(*FIRST)}
    with labelling(answers) as url:
        job = str(write_job(tmp_path, url, "a"))
        assert command(job, "--quiet").code == 0
        for name, wrong, words in (("short", SECOND, "Review:  {{ text }}"), ("long", {3}, "Review:   {{ text }}")):
            answers["a"] = wrong_on(*wrong)
            assert command(job, "--quiet", "--variant", name, "--set", f"prompt.user={words}").code == 0
    facts = found(command, job, "--variant", "short", "--gold", "gold")
    assert [one["job"] for one in facts["jobs"]] == ["a", "short"]
    assert (facts["gold"]["fixes"], facts["gold"]["breaks"]) == (len(FIRST - SECOND), len(SECOND - FIRST))
    table = found(command, job, "--variant", "short", "--variant", "long", "--gold", "gold", "--min", "0.99")
    assert [one["job"] for one in table["models"]] == ["a", "short", "long"]
    assert table["cheapest"] == "long"


def test_of_equal_rows_each_pair_of_questions_counts_once(tmp_path: Path, command: Command) -> None:
    """Rows that ask the same in both jobs are one pair; a row that is new to one of the jobs is another."""
    (tmp_path / "rows.csv").write_text("text,more\na,1\na,1\na,2\nb,1\n")
    with plain_server(lambda body: completion(f'{{"label": "{"xy"["1" in str(body["messages"])]}"}}')) as url:
        for name, prompt in (("one", "{{ text }}"), ("two", "{{ text }} {{ more }}")):
            job = {
                "input": "rows.csv",
                "prompt": prompt,
                "model": {"endpoint": url, "name": "m"},
                "answer": {"columns": {"label": ["x", "y"]}},
                "output": f"{name}.csv",
            }
            (tmp_path / f"{name}.yaml").write_text(json.dumps(job))
            assert command(f"{name}.yaml", "--quiet").code == 0
    facts = found(command, "one.yaml", "two.yaml")
    assert (facts["rows"], facts["differ"]) == (4, 3)
    assert facts["columns"][0]["agreement"]["n"] == 3


def test_equal_rows_have_one_gold(tmp_path: Path, command: Command) -> None:
    """The most frequent gold of equal rows counts, whichever row has it, and a tie is left out, as in `eval`."""
    (tmp_path / "rows.csv").write_text("text,gold\na,\na,y\nb,x\nb,y\nb,y\nc,x\nc,y\nd,x\n")
    with plain_server(lambda _: completion('{"label": "y"}')) as url:
        for name in ("one", "two"):
            job = {
                "input": "rows.csv",
                "prompt": "{{ text }}",
                "model": {"endpoint": url, "name": name},
                "answer": {"columns": {"label": ["x", "y"]}},
                "output": f"{name}.csv",
            }
            (tmp_path / f"{name}.yaml").write_text(json.dumps(job))
            assert command(f"{name}.yaml", "--quiet").code == 0
    gold = found(command, "one.yaml", "two.yaml", "--gold", "gold")["gold"]
    assert [gold[name] for name in ("n", "both", "neither", "contradictory", "ties")] == [3, 2, 1, 2, 1]
    share = json.loads(command("eval", "one.yaml", "--gold", "gold", "--json").out)["accuracy"]
    assert (share["right"], share["n"]) == (2, 3)
    out = command("compare", "one.yaml", "two.yaml", "--gold", "gold").out
    assert "2 questions with different gold in equal rows; the most frequent counts, and 1 without one left out" in out


def test_an_edited_prompt_is_compared_with_the_one_before(tmp_path: Path, command: Command) -> None:
    """--before shows what the last edit of the wording changed; without an edit there is nothing to compare."""
    answers = {"a": wrong_on(*FIRST)}
    with labelling(answers) as url:
        path = write_job(tmp_path, url, "a")
        assert command(str(path), "--quiet").code == 0
        ended = command("compare", str(path), "--before")
        assert (ended.code, "--before: the prompt was not edited" in ended.err) == (2, True)
        answers["a"] = wrong_on(*SECOND)
        path.write_text(path.read_text().replace('"Review: ', '"Review:  '))
        assert command(str(path), "--quiet", "--yes").code == 0
    gold = found(command, str(path), "--before", "--gold", "gold")["gold"]
    assert (gold["fixes"], gold["breaks"]) == (len(FIRST - SECOND), len(SECOND - FIRST))
    assert "8 fixed: only now is right" in command("compare", str(path), "--before", "--gold", "gold").out
    assert command("status", str(path), "--verify").code == 0
