"""The report as a file: what it says, what it leaves out, what it may hold."""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import report_job
from command_line import Command, command
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_server import completion, plain_server

from batchrun.errors import ExitCode
from batchrun.report import page
from batchrun.report.bars import Distribution
from batchrun.report.gather import visible

__all__ = ["command"]


class Page(HTMLParser):
    """The page's text, by element ids and in all, and its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += f" {data}"


@pytest.fixture
def job(tmp_path: Path, command: Command) -> Iterator[Path]:
    """Yield a job that ran twice: first a part of it, then the rest."""
    with report_job.serving() as url:
        path = report_job.write_job(tmp_path, url)
        assert command(str(path), "--limit", "30", "--quiet").code == 1
        assert command(str(path), "--quiet").code == 1
        yield path


@pytest.fixture
def text(job: Path, command: Command) -> str:
    """Return the report's text."""
    ended = command("report", str(job), "--gold", "label=gold")
    assert (ended.code, ended.out, ended.err) == (0, "", "the report is out.report.html\n")
    return (job.parent / "out.report.html").read_text(encoding="utf-8")


def test_the_report_shows_how_the_job_stands(text: str) -> None:
    """Rows by status, money, errors with advice and samples, runs, accuracy: the numbers are the job's own."""
    words = re.sub(r"\s+", " ", Page(text).words)
    assert "78 rows ok" in words
    assert "11 rows failed" in words
    assert "1 rows skipped" in words
    # 78 answers: 40 + number % 9 tokens of prompt and 20 of answer each, at 0.15 and 0.60 USD a million.
    numbers = [n for n in range(90) if n % 15 != 7 and n % 20 != 9 and n != 3]
    prompt = sum(40 + n % 9 for n in numbers)
    counted = re.search(r"tokens ([\d,]+) of prompts", words)
    assert counted is not None
    assert int(counted[1].replace(",", "")) > prompt, "the tokens of failed rows count as well"
    assert "content_policy 6 rows failed , 6 attempts in all runs a content policy or guardrail refuses" in words
    assert "row 8 prompt row 7" in words
    assert "message flagged: </script>" in words
    assert "reply no object" in words
    compared = [n for n in numbers if n % 9]
    right = sum((n + (n % 11 == 0)) % 3 == n % 3 for n in compared)
    assert f"without them {right} of {len(compared)} questions: {right / len(compared):.1%}"[:-1] in words
    assert sum(map(int, re.findall(r'class="s\d right"><button[^>]*>(\d+)<', text))) == right
    assert words.count("finished, some rows failed (exit 1)") == 2
    assert "All 90 rows" in words


def table(text: str) -> tuple[list[str], list[list[Any]]]:
    """Return the fields and the rows of a page's table."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    lines = gzip.decompress(base64.b64decode(data["rows"])).splitlines()
    return data["fields"], [json.loads(line) for line in lines]


def test_rows_hold_cells_answers_and_gold(text: str) -> None:
    """A row of the table holds the cells of the prompt, the answers, gold, whether they differ, and the error."""
    fields, rows = table(text)
    assert fields[:7] == ["row", "status", "text", "label", "score", "reason", "gold"]
    assert [row[0] for row in rows] == list(range(1, 91))
    by_number = {row[0]: dict(zip(fields, row, strict=True)) for row in rows}
    wrong = by_number[12]  # a multiple of 11
    assert (wrong["status"], wrong["label"], wrong["gold"], wrong["differs"]) == ("ok", "good", "mixed", True)
    assert (by_number[3]["score"], by_number[3]["differs"]) == (4, False)
    assert (by_number[1]["gold"], by_number[1]["differs"]) == (None, None)
    assert (by_number[8]["error"], by_number[8]["label"], by_number[8]["differs"]) == ("content_policy", None, True)
    assert by_number[10]["reply"] == "no object"


def test_long_labels_find_their_rows(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where cells have little room the bar of a long label asks for the text that the cells of the table have."""
    label = "a label of more than 24 characters"
    monkeypatch.setattr("batchrun.report.gather.SHOWN_CHARACTERS", 1)
    (tmp_path / "rows.csv").write_text("text\na\nb\n")
    with plain_server(lambda _: completion(json.dumps({"label": label}))) as url:
        job = {"input": "rows.csv", "prompt": "{{ text }}", "model": {"endpoint": url, "name": "m"}}
        job |= {"answer": {"columns": {"label": [label, "no"]}}, "output": "out.csv"}
        (tmp_path / "job.yaml").write_text(json.dumps(job))
        assert command("job.yaml", "--quiet").code == 0
    assert command("report", "job.yaml").code == 0
    text = (tmp_path / "out.report.html").read_text(encoding="utf-8")
    fields, rows = table(text)
    wanted = [json.loads(attrs["data-wanted"] or "") for tag, attrs in Page(text).tags if "data-wanted" in attrs]
    assert [[fields.index("label"), rows[0][fields.index("label")]]] in wanted


def test_numbers_of_json_are_numbers_of_the_table(tmp_path: Path, command: Command) -> None:
    """A number of JSON Lines is a number in the report, also where it is written as 2.50 or stands in a list."""
    (tmp_path / "rows.jsonl").write_text('{"size": 2.50, "sizes": [1, 1e1]}\n{"size": 1e400, "sizes": []}\n')
    with plain_server(lambda _: completion("fine")) as url:
        job = {"input": "rows.jsonl", "prompt": "{{ size }} {{ sizes }}", "model": {"endpoint": url, "name": "m"}}
        (tmp_path / "job.yaml").write_text(json.dumps({**job, "output": "out.parquet"}))
        assert command("job.yaml", "--quiet").code == 0
    assert command("report", "job.yaml").code == 0
    _, rows = table((tmp_path / "out.report.html").read_text(encoding="utf-8"))
    assert [row[2:4] for row in sorted(rows)] == [[2.5, [1, 10.0]], ["1e400", []]]


def test_what_needs_a_review_is_as_in_the_output(tmp_path: Path, command: Command) -> None:
    """In the table needs_review is the output's: true for an unsure answer, and false once a person gave the answer."""
    texts = ["sure", "unsure", "broken", "lost", "fine"]
    pl.DataFrame({"text": texts}).write_csv(tmp_path / "rows.csv")

    def decide(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["state"] in {"broken", "lost"}:
            return 400, {"error": {"message": "this text can't be read"}}
        sure = 0.55 if body["state"] == "unsure" else 0.9
        found = {"type": "choice", "choice": "x", "probabilities": {"x": sure, "y": 1 - sure}}
        return 200, {"model": "m", "answers": {"label": found}, "usage": {"input_tokens": 9, "output_tokens": 0}}

    with plain_server(decide) as url:
        job = {
            "input": "rows.csv",
            "prompt": "{{ text }}",
            "model": {"endpoint": url, "name": "m"},
            "answer": {"mode": "decision", "columns": {"label": ["x", "y"]}},
            "output": {"path": "out.csv", "review_below": 0.6},
        }
        (tmp_path / "job.yaml").write_text(json.dumps(job))
        assert command("job.yaml", "--quiet").code == 1
        assert command("show", "job.yaml", "--review", "-o", "todo.csv").code == 0
        todo = pl.read_csv(tmp_path / "todo.csv", infer_schema=False)
        edited = pl.when(pl.col("text") == "broken").then(pl.lit("y")).otherwise("label")
        todo.with_columns(label=edited).write_csv(tmp_path / "todo.csv")
        assert command("correct", "job.yaml", "todo.csv").code == 0
        assert command("job.yaml", "--quiet").code == 1
    assert command("report", "job.yaml").code == 0
    fields, rows = table((tmp_path / "out.report.html").read_text(encoding="utf-8"))
    shown = [row[fields.index("needs_review")] for row in sorted(rows)]
    assert shown == pl.read_csv(tmp_path / "out.csv")["needs_review"].to_list() == [False, True, False, None, False]


def test_a_table_of_many_labels_says_that_it_is_cut(tmp_path: Path, command: Command) -> None:
    """Compared with another model the page shows 15 labels at most, and says of how many."""
    labels = [f"label {number}" for number in range(20)]
    pl.DataFrame({"text": range(60)}).write_csv(tmp_path / "rows.csv")

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        number = int(body["messages"][-1]["content"]) + (body["model"] == "n")
        return completion(json.dumps({"label": labels[number % 20]}))

    with plain_server(answer) as url:
        for name in "mn":
            job = {
                "input": "rows.csv",
                "prompt": "{{ text }}",
                "model": {"endpoint": url, "name": name},
                "answer": {"columns": {"label": labels}},
                "output": f"{name}.csv",
            }
            (tmp_path / f"{name}.yaml").write_text(json.dumps(job))
            assert command(f"{name}.yaml", "--quiet").code == 0
    assert command("report", "n.yaml", "--compare", "m.yaml").code == 0
    words = Page((tmp_path / "n.report.html").read_text(encoding="utf-8")).words
    assert "the 15 of 20 labels that changed most" in words


def test_the_policy_lets_nothing_run_but_our_own(text: str) -> None:
    """The policy names our style and script by digest; there is no other style, script, handler or address."""
    parsed = Page(text)
    policy = next(
        attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(bodies) == 1
        digest = base64.b64encode(hashlib.sha256(bodies[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    for tag, attrs in parsed.tags:
        assert tag not in {"img", "iframe", "object", "embed", "base", "form", "a"}
        assert not [name for name in attrs if name.startswith("on") or name in {"style", "src", "action"}]
        assert attrs.get("href") in {None, "data:,"}


def test_every_end_of_a_run_has_words() -> None:
    """The page names each exit code that a run can leave."""
    codes = {value for name, value in vars(ExitCode).items() if name.isupper()}
    assert set(page._EXITS) == codes - {ExitCode.BUG, ExitCode.BUSY}


def test_without_samples_no_text_of_a_row_is_there(job: Path, command: Command) -> None:
    """--no-samples leaves out prompts, answers, messages and the job's own text, not the numbers."""
    assert command("report", str(job), "--no-samples", "--gold", "label=gold", "-o", "private.html").code == 0
    text = (job.parent / "private.html").read_text(encoding="utf-8")
    words = Page(text).words
    for secret in ("window.hit", "gnp.exe", "example.invalid", "flagged:", "שלום", "You label", "there is no JSON"):
        assert secret not in text
    assert "a content policy or guardrail refuses this row's text" in words
    assert re.search(r"good\s+27", words)


def test_large_jobs_show_the_failed_rows_and_a_sample(
    job: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the table's size the first failed rows are there, others at equal distances; the rest is counted."""
    monkeypatch.setattr("batchrun.report.gather.MOST_ROWS", 30)
    monkeypatch.setattr("batchrun.report.gather.MOST_FAILED", 5)
    assert command("report", str(job)).code == 0
    text = (job.parent / "out.report.html").read_text(encoding="utf-8")
    statuses = [row[1] for row in table(text)[1]]
    assert 5 <= statuses.count("failed") <= 8
    assert 20 <= len(statuses) <= 31
    assert f"{len(statuses)} of 90 rows" in Page(text).words
    assert f"{90 - len(statuses)} are not here" in Page(text).words


def test_the_table_has_a_largest_size(job: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that would make the page larger than it may be are left out and counted."""
    monkeypatch.setattr("batchrun.report.gather.PACKED_BYTES", 1)
    assert command("report", str(job)).code == 0
    text = (job.parent / "out.report.html").read_text(encoding="utf-8")
    assert f"{len(table(text)[1])} of 90 rows" in Page(text).words
    assert len(table(text)[1]) < 90


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gold", "glod"], 'the input has no column "glod", did you mean "gold"?'),
        (
            ["--gold", "gold"],
            'which answer has its right values in "gold"? Write one of label=gold, score=gold, reason=gold',
        ),
        (["--gold", "lable=gold"], 'there is no answer column "lable", did you mean "label"?'),
        (["-o", "rows.parquet"], "is not a name for a report"),
    ],
)
def test_mistakes_are_reported(job: Path, command: Command, arguments: list[str], message: str) -> None:
    """A gold column or a file name that can't be meant ends with exit 2 and one line; no file is touched."""
    before = (job.parent / "rows.parquet").read_bytes()
    ended = command("report", str(job), *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert (job.parent / "rows.parquet").read_bytes() == before
    assert not (job.parent / "out.report.html").exists()


def test_gold_may_be_a_column_of_the_prompt(job: Path, command: Command) -> None:
    """--gold with a column that the prompt uses as well reads it once."""
    ended = command("report", str(job), "--gold", "label=text")
    assert ended.code == 0, ended.err


def test_pending_rows_do_not_push_answers_out(job: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `--limit` on a large job the table holds the rows that are settled, and the head says what is open."""
    monkeypatch.setattr("batchrun.report.gather.MOST_ROWS", 50)
    monkeypatch.setattr("batchrun.report.gather.MOST_FAILED", 5)
    text = job.read_text()
    job.write_text(text.replace("You label.", "You label again."))
    assert command(str(job), "--limit", "20", "--quiet", "--yes").code in {0, 1}
    assert command("report", str(job)).code == 0
    text = (job.parent / "out.report.html").read_text(encoding="utf-8")
    rows = [row[1] for row in table(text)[1]]
    assert rows.count("ok") + rows.count("failed") == 20
    assert "rows still pending" in Page(text).words


def test_a_changed_input_is_refused(job: Path, command: Command) -> None:
    """Rows are never shown beside the answers of other rows."""
    report_job.write_job(job.parent, "http://127.0.0.1:1/v1", rows=91)
    ended = command("report", str(job))
    assert ended.code == 2
    assert "run the job again" in ended.err


@given(st.text())
def test_visible_text_holds_no_control_character(text: str) -> None:
    """Whatever a text holds, what is shown turns no direction, holds no control character, and is writable as UTF-8."""
    shown = visible(text)
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    shown.encode()


@settings(max_examples=40)
@given(st.lists(st.floats(min_value=-1e12, max_value=1e12) | st.integers(-(10**30), 10**30), min_size=1))
def test_bars_count_each_number_once(numbers: list[float]) -> None:
    """A histogram counts each number in one bar, whatever their spread, and has few bars."""
    tally = Distribution()
    for number in numbers:
        tally.add(number)
    bars = tally.bars()
    assert sum(bar.count for bar in bars) == len(numbers)
    assert len(bars) <= 15
    for lower, upper in pairwise(bars):
        assert lower.wanted is not None
        assert upper.wanted is not None
        assert lower.wanted[1] == upper.wanted[0]


def test_any_number_of_values_is_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of free texts keeps a bounded number of them; numbers are counted rounded to four digits."""
    monkeypatch.setattr("batchrun.report.bars.MOST_VALUES", 3)
    tally = Distribution()
    for number in range(100_000):
        tally.add(f"text {number}")
        tally.add(number / 100_000)
    assert (len(tally.counts), tally.beyond) == (3, 99_997)
    assert len(tally.numbers) < 40_000
    assert sum(bar.count for bar in tally.bars()) == 100_000
