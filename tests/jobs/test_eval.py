"""`eval`: answers against gold, in figures that scikit-learn and scipy confirm."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_line import Command, command
from job_running import write_job as write_plain
from openrouter.decisions import MODEL, deciding
from plain_server import completion, plain_server
from review_jobs import OTHER, labelling, reviews, write_job

__all__ = ["command"]

WRONG, UNFIT = {3, 10, 11, 40, 101, 102}, {5, 150}


def label(number: int, gold: str) -> str:
    """Err on some reviews, and answer with no label on others."""
    if number in UNFIT:
        return ""
    return OTHER.get(gold, "positive") if number in WRONG else gold or "positive"


@pytest.fixture
def job(tmp_path: Path, command: Command) -> Iterator[Path]:
    """Yield a job that labelled all reviews."""
    with labelling({"m": label}) as url:
        path = write_job(tmp_path, url, "m")
        assert command(str(path), "--quiet").code == 1
        yield path


def truth() -> list[tuple[str, str]]:
    """Return (gold, answer) of each distinct text with gold, the answer as the server gives it."""
    return list({row["text"]: (row["gold"], label(int(row["id"]), row["gold"])) for row in reversed(reviews())
                 if row["gold"] and row["text"]}.values())  # fmt: skip


def test_the_figures_are_those_of_scikit_learn_and_scipy(job: Path, command: Command) -> None:
    """Accuracy with its interval, precision, recall, F1, support and their mean; a failed row is wrong."""
    from scipy.stats import binomtest  # noqa: PLC0415  (the import takes seconds, of each worker)
    from sklearn.metrics import classification_report  # noqa: PLC0415

    ended = command("eval", str(job), "--gold", "sentiment=gold", "--json")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    pairs = truth()
    right = sum(gold == answer for gold, answer in pairs)
    theirs = binomtest(right, len(pairs)).proportion_ci(method="wilson")
    assert found["accuracy"] == pytest.approx(
        {"value": right / len(pairs), "low": theirs.low, "high": theirs.high, "right": right, "n": len(pairs)}
    )
    assert found["failed"] == len(UNFIT)
    assert found["accuracy_answered"]["n"] == len(pairs) - len(UNFIT)
    names = ["positive", "negative"]
    table: dict[str, Any] = classification_report(
        [gold for gold, _ in pairs], [answer or "none" for _, answer in pairs], labels=names, output_dict=True
    )
    ours = {one["label"]: one for one in found["labels"]}
    for name in names:
        assert ours[name]["precision"] == pytest.approx(table[name]["precision"])
        assert ours[name]["recall"] == pytest.approx(table[name]["recall"])
        assert ours[name]["f1"] == pytest.approx(table[name]["f1-score"])
        assert ours[name]["support"] == table[name]["support"]
    assert found["macro_f1"] == pytest.approx(table["macro avg"]["f1-score"])
    assert {(one["gold"], one["answer"]): one["rows"] for one in found["confusions"]}["negative", None] == [5, 150]
    # A question costs 10 tokens at 1 and 5 at 2 USD a million, and is asked once.
    assert found["cost_per_1000_usd"] == pytest.approx(0.02)
    assert found["cost_per_right_usd"] == pytest.approx(0.00002 * len(pairs) / right)


def test_the_terminal_shows_the_figures_and_the_rule(job: Path, command: Command) -> None:
    """Accuracy, interval, how values are compared, money, a table of labels and the rows of the worst confusions."""
    out = command("eval", str(job), "--gold", "gold").out
    pairs = truth()
    right = sum(gold == answer for gold, answer in pairs)
    assert out.startswith(f'"sentiment" equals "gold" for {right} of {len(pairs)} distinct questions: ')
    assert f"{right / len(pairs):.1%}".replace("%", " %, 95 % interval ") in out
    assert f"2 failed questions counted as wrong; without them {right} of {len(pairs) - 2} questions" in out
    assert "compared as text without spaces around it; upper and lower case differ" in out
    assert "cost: $0.0200 per 1,000 questions, $0.000021 per right answer" in out
    assert "(no answer)" in out
    assert "mean of all labels" in out


def test_min_decides_the_exit_code(job: Path, command: Command) -> None:
    """The point estimate below --min ends with exit 1; the figures are printed all the same."""
    assert command("eval", str(job), "--gold", "gold", "--min", "0.9").code == 0
    ended = command("eval", str(job), "--gold", "gold", "--min", "0.99")
    assert ended.code == 1
    assert "is below --min 0.99" in ended.err
    assert '"sentiment" equals "gold" for' in ended.out


def test_gold_may_stand_in_another_file(job: Path, command: Command) -> None:
    """A file joined by a column gives the same figures as the column of the input, in another format and order."""
    rows = [row for row in reversed(reviews()) if row["gold"]]
    frame = pl.DataFrame({"id": [int(row["id"]) for row in rows], "truth": [f" {row['gold'].upper()}" for row in rows]})
    frame.write_parquet(job.parent / "gold.parquet")
    flags = ("--gold", "sentiment=truth", "--gold-file", "gold.parquet", "--on", "id")
    inside = json.loads(command("eval", str(job), "--gold", "gold", "--json").out)
    joined = json.loads(command("eval", str(job), *flags, "--ignore-case", "--json").out)
    assert joined["accuracy"] == inside["accuracy"]
    strict = command("eval", str(job), *flags)
    assert "wrong answers would be right with --ignore-case" in strict.out
    assert json.loads(command("eval", str(job), *flags, "--json").out)["accuracy"]["right"] == 0


def test_gold_of_rows_that_are_not_there_is_counted(job: Path, command: Command) -> None:
    """Labels whose id stands in no row of the input (0001 for 1) are named, as they count for nothing."""
    labels = [{"id": row["id"] if int(row["id"]) > 3 else f"000{row['id']}", "gold": row["gold"]} for row in reviews()]
    pl.DataFrame(labels).write_csv(job.parent / "labels.csv")
    flags = ("--gold", "sentiment=gold", "--gold-file", str(job.parent / "labels.csv"), "--on", "id")
    number = sum(1 for row in reviews() if int(row["id"]) <= 3 and row["gold"])
    ended = command("eval", str(job), *flags)
    assert f'{number} values of the gold file without a row: no "id" in the input is equal' in ended.out
    assert json.loads(command("eval", str(job), *flags, "--json").out)["unmatched"] == number
    assert json.loads(command("eval", str(job), "--gold", "sentiment=gold", "--json").out)["unmatched"] == 0


def test_rows_without_an_id_join_no_gold(tmp_path: Path, command: Command) -> None:
    """An empty cell in the column of --on, on both sides, pairs nothing: the row has no gold."""
    (tmp_path / "rows.csv").write_text("text,ref\na,1\nb,\nc,\n")
    (tmp_path / "gold.csv").write_text("ref,gold\n1,y\n,x\n")
    with plain_server(lambda _: completion('{"label": "y"}')) as url:
        _write_rows_job(tmp_path, url)
        assert command("job.yaml", "--quiet").code == 0
    flags = ("--gold", "label=gold", "--gold-file", "gold.csv", "--on", "ref")
    found = json.loads(command("eval", "job.yaml", *flags, "--json").out)
    assert (found["accuracy"]["right"], found["accuracy"]["n"]) == (1, 1)


def test_gold_in_other_words_than_the_answers_is_shown(job: Path, command: Command) -> None:
    """Codes beside labels in words make 0 % right, which says nothing about the model."""
    codes = {"positive": "1", "negative": "2"}
    rows = [row for row in reviews() if row["gold"]]
    frame = pl.DataFrame({"id": [int(row["id"]) for row in rows], "code": [codes[row["gold"]] for row in rows]})
    frame.write_csv(job.parent / "codes.csv")
    out = command("eval", str(job), "--gold", "sentiment=code", "--gold-file", "codes.csv", "--on", "id").out
    assert re.search(r'"code" holds [12], [12], and the answers are (positive|negative), (positive|negative)\n', out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gold", "sentiment=glod"], 'the input has no column "glod", did you mean "gold"?'),
        (["--gold", "sentimnt=gold"], 'there is no answer column "sentimnt", did you mean "sentiment"?'),
        (["--gold", "gold", "--tolerance", "0.5"], '--tolerance: the answers in "sentiment" are not numbers'),
        (["--gold", "gold", "--tolerance", "nan"], "--tolerance must be 0 or more, not nan"),
        (["--reviewed", "sentiment", "--min", "0.5"], "--min needs --gold"),
        (["--reviewed", "sentimnt"], '--reviewed: there is no answer column "sentimnt", did you mean "sentiment"?'),
        (["--gold", "gold", "--gold-file", "nowhere.csv"], "--gold-file needs --on COLUMN"),
        (["--gold", "gold", "--gold-file", "nowhere.csv", "--on", "id"], "there is no file nowhere.csv"),
        (["--gold", "gold", "--gold-file", "twice.csv", "--on", "id"], 'two values of "gold" for "1" in "id"'),
        (["--gold", "gold", "--gold-file", "other.csv", "--on", "id"], 'no answered row has a value in "gold"'),
    ],
)
def test_gold_that_can_not_be_meant_is_a_mistake(job: Path, command: Command, flags: list[str], message: str) -> None:
    """A wrong column or file ends with exit 2 and says what to do."""
    (job.parent / "twice.csv").write_text("id,gold\n1,positive\n1,negative\n")
    (job.parent / "other.csv").write_text("id,gold\nx1,positive\n")
    ended = command("eval", str(job), *flags)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


def _write_rows_job(folder: Path, url: str) -> Path:
    """Write a job that labels the texts of rows.csv with x or y."""
    job = {
        "input": "rows.csv",
        "prompt": "{{ text }}",
        "model": {"endpoint": url, "name": "m"},
        "answer": {"columns": {"label": ["x", "y"]}},
        "output": "out.csv",
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))
    return path


def test_equal_rows_count_once_and_open_ones_not_at_all(tmp_path: Path, command: Command) -> None:
    """Distinct questions are counted; of contradictory gold the most frequent value holds; pending rows wait."""
    (tmp_path / "rows.csv").write_text("text,gold\na,x\na,x\na,x\na,y\na,y\nb,y\nb,y\nc,x\nd,\n")
    with plain_server(lambda _: completion('{"label": "y"}')) as url:
        path = _write_rows_job(tmp_path, url)
        command(str(path), "--quiet", "--limit", "2")
        ended = command("eval", str(path), "--gold", "gold")
        found = json.loads(command("eval", str(path), "--gold", "gold", "--json").out)
    assert (found["accuracy"]["right"], found["accuracy"]["n"]) == (1, 2)
    assert (found["contradictory"], found["pending"]) == (1, 1)
    assert found["cost_per_1000_usd"] is None
    assert "\ncost unknown\n" in ended.out
    assert "1 question with different gold in equal rows; the most frequent counts\n" in ended.out


def test_gold_without_a_most_frequent_value_is_left_out(tmp_path: Path, command: Command) -> None:
    """Equal rows whose gold contradicts itself equally often say nothing, and their number is printed."""
    rows = tmp_path / "rows.csv"
    rows.write_text("text,gold\na,y\na,x\nb,y\nc,x\n")
    with plain_server(lambda _: completion('{"label": "y"}')) as url:
        _write_rows_job(tmp_path, url)
        assert command("job.yaml", "--quiet").code == 0
        ended = command("eval", "job.yaml", "--gold", "gold")
        assert "in equal rows; the most frequent counts, and 1 without one left out\n" in ended.out
        found = json.loads(command("eval", "job.yaml", "--gold", "gold", "--json").out)
        assert (found["accuracy"]["right"], found["accuracy"]["n"], found["ties"]) == (1, 2, 1)
        assert found["accuracy_answered"]["n"] == 2
        rows.write_text("text,gold\na,y\na,x\nb,\nc,\n")
        assert command("job.yaml", "--quiet").code == 0
    ended = command("eval", "job.yaml", "--gold", "gold")
    assert (ended.code, "--gold: 1 question with gold, and equal rows have different values" in ended.err) == (2, True)


def test_numbers_are_compared_with_a_tolerance(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7 equals 7.0, --tolerance 0.1 is exact, and gold that is not a number is a mistake with its row."""
    monkeypatch.setenv("KEY", "k")
    with plain_server(lambda _: completion('{"label": "good", "score": 7}')) as url:
        path = write_plain(tmp_path, url, rows=["a", "b", "c", "d"], model="m")
        frame = pl.read_parquet(tmp_path / "rows.parquet")
        frame.with_columns(
            gold=pl.Series(["7.0", "7.1", "6.9", "8"]),
            bad=pl.Series(["7", "n/a", None, None]),
            far=pl.lit("inf"),
            vast=pl.lit("1e999999999"),
        ).write_parquet(tmp_path / "rows.parquet")
        assert command(str(path), "--quiet").code == 0
    exact = json.loads(command("eval", str(path), "--gold", "score=gold", "--json").out)
    near = json.loads(command("eval", str(path), "--gold", "score=gold", "--tolerance", "0.1", "--json").out)
    assert (exact["accuracy"]["right"], near["accuracy"]["right"]) == (1, 3)
    assert "at most 0.1" in near["compared"]
    wrong = command("eval", str(path), "--gold", "score=bad")
    assert wrong.code == 2
    assert '--gold: row 2: "n/a" is not a number' in wrong.err
    assert '--gold: row 1: "inf" is not a number' in command("eval", str(path), "--gold", "score=far").err
    vast = command("eval", str(path), "--gold", "score=vast")
    assert (vast.code, '--gold: row 1: "1e999999999" is too large to be compared' in vast.err) == (2, True)
    assert "Write one of label=gold, score=gold" in command("eval", str(path), "--gold", "gold").err


def test_numbers_of_json_are_equal_however_they_are_written(tmp_path: Path, command: Command) -> None:
    """In a list, too, 2.50 equals 2.5, and 1e1 equals 10 and 10.0; they are shown as they are written."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "gold": [2.50, 1e1]}\n{"text": "b", "gold": [2.50, 1e1]}\n')
    answers = {"a": "[2.5, 10.0]", "b": "[2.5, 10]"}
    with plain_server(lambda body: completion(f'{{"parts": {answers[body["messages"][-1]["content"]]}}}')) as url:
        job = {
            "input": "rows.jsonl",
            "prompt": "{{ text }}",
            "model": {"endpoint": url, "name": "m"},
            "answer": {"columns": {"parts": ["number"]}},
            "output": "out.csv",
        }
        (tmp_path / "job.yaml").write_text(json.dumps(job))
        assert command("job.yaml", "--quiet").code == 0
    judged = json.loads(command("eval", "job.yaml", "--gold", "gold", "--json").out)
    assert (judged["accuracy"]["right"], judged["accuracy"]["n"]) == (2, 2)
    assert "\ngold: [2.50,1e1]\n" in command("show", "job.yaml", "--row", "1").out


def test_the_mean_cost_is_that_of_settled_questions(tmp_path: Path, command: Command) -> None:
    """What a question cost that is to be asked again is not counted: it has no answer yet."""
    (tmp_path / "rows.csv").write_text("text,gold\na,yes\nb,yes\nc,yes\n")
    ends = ["length"] * 3 + ["stop"]

    def answer(_: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, reply = completion("yes", prompt_tokens=10, completion_tokens=0)
        reply["choices"][0]["finish_reason"] = ends.pop(0)
        return status, reply

    with plain_server(answer) as url:
        job = {
            "input": "rows.csv",
            "prompt": "{{ text }}",
            "model": {"endpoint": url, "name": "m", "price": {"prompt": 1, "completion": 1}},
            "output": "out.csv",
        }
        (tmp_path / "job.yaml").write_text(json.dumps(job))
        assert command("job.yaml", "--quiet").code == 1
        assert command("retry", "job.yaml", "--quiet", "--limit", "1").code == 0
    found = json.loads(command("eval", "job.yaml", "--gold", "gold", "--json").out)
    assert (found["accuracy"]["n"], found["pending"]) == (1, 2)
    assert found["cost_per_1000_usd"] == pytest.approx(0.02)


def test_a_moment_at_midnight_is_its_day(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gold for a date may be a timestamp, which pandas makes of dates; another hour or a word is not that day."""
    monkeypatch.setenv("KEY", "k")
    answer = {"columns": {"day": "date"}}
    with plain_server(lambda _: completion('{"day": "2026-01-31"}')) as url:
        path = write_plain(tmp_path, url, rows=["a", "b", "c"], model="m", answer=answer)
        moments = pl.Series(["2026-01-31 00:00", "2026-01-31 00:00", "2026-01-31 09:30"]).str.to_datetime()
        pl.read_parquet(tmp_path / "rows.parquet").with_columns(
            moment=moments,
            words=pl.Series(["2026-01-31T00:00:00Z", "2026-01-31", "soon"]),
        ).write_parquet(tmp_path / "rows.parquet")
        assert command(str(path), "--quiet").code == 0
    for column in ("moment", "words"):
        found = json.loads(command("eval", str(path), "--gold", f"day={column}", "--json").out)
        assert (found["accuracy"]["right"], found["accuracy"]["n"]) == (2, 3)
    assert found["compared"] == "as dates: a moment at midnight is its day"


def test_patterns_are_worth_a_look(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """One label for most rows, refusals, answers at the length limit, several models and retries stand in status."""
    monkeypatch.setenv("KEY", "k")
    asked: dict[str, int] = {}

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        text = body["messages"][-1]["content"]
        number = int(text.split()[-1])
        asked[text] = asked.get(text, 0) + 1
        if number == 7 and asked[text] == 1:
            return 500, {"error": {"message": "try again"}}
        said = {
            "reply": "I'm sorry, no." if number == 8 else f"fine {number}",
            "mood": "good" if number < 20 else "bad",
        }
        status, found = completion(json.dumps(said))
        found["model"] = "m-2" if number == 9 else "m-1"
        if number == 10:
            found["choices"][0]["finish_reason"] = "length"
        return status, found

    with plain_server(answer) as url:
        columns = {"reply": "string", "mood": ["good", "bad"]}
        rows = [f"row {number}" for number in range(25)]
        job = str(write_plain(tmp_path, url, rows=rows, model="m", answer={"columns": columns}))
        assert command(job, "--quiet").code == 0
    out = command("status", job).out
    for sentence in (
        '"mood" is "good" in 80% of 25 answers',
        "1 of 25 questions were refused or answered by a refusal",
        "1 of 25 answers ended at the length limit",
        "2 models or builds answered: m-1 (24), m-2 (1)",
        "1 of 25 questions took more than one attempt",
    ):
        assert f"worth a look: {sentence}" in out
    found = json.loads(command("status", job, "--json").out)["worth_a_look"]
    assert len(found) == 5
    assert command("report", job).code == 0
    page = (tmp_path / "out.report.html").read_text(encoding="utf-8")
    assert all(html.escape(sentence, quote=False).replace('"', "&#34;") in page for sentence in found)


def test_probabilities_are_judged_and_order_the_review(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decision model's answers get coverage, calibration error and a threshold; the least sure is reviewed first."""
    monkeypatch.setenv("KEY", "k")
    rows = [f"{number} {'payments' if number % 3 else 'my account'} is broken" for number in range(60)]
    answer = {"columns": {"team": {"values": ["payments", "account"]}}, "mode": "decision"}
    with deciding("/v1/systemone") as server:
        sections: dict[str, Any] = {"answer": answer, "prompt": {"user": "{{ text }}"}, "model": MODEL}
        job = str(write_plain(tmp_path, f"{server.url}/v1", rows=rows, **sections))
        pl.read_parquet(tmp_path / "rows.parquet").with_columns(
            gold=pl.col("text").str.extract("(payments|account)")
        ).write_parquet(tmp_path / "rows.parquet")
        assert command(job, "--quiet").code == 0
    found = json.loads(command("eval", job, "--gold", "team=gold", "--min", "0.9", "--json").out)
    calibration = found["calibration"]
    assert calibration["n"] == 60
    assert calibration["thresholds"][0]["coverage"] == 1
    assert 0 <= calibration["expected_calibration_error"] <= 1
    assert calibration["threshold"]["accuracy"] >= 0.9
    out = command("eval", job, "--gold", "team=gold", "--min", "0.9").out
    assert "estimated out of bag" in out
    assert "60 labelled questions are few for a threshold" in out
    ended = command("show", job, "--review", "-o", "todo.csv")
    assert "then the least sure" in ended.err
    probabilities = dict(pl.read_parquet(tmp_path / "out.parquet").select("text", "team_prob").iter_rows())
    todo = pl.read_csv(tmp_path / "todo.csv")["text"].to_list()
    assert [probabilities[text] for text in todo] == sorted(probabilities.values())
