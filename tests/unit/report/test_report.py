"""The report as a file: what it says, what it leaves out, what it may hold."""

import base64
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_job
from command_line import Command, command
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.checkpoint import RunInfo
from batchrun.money import ZERO
from batchrun.report import charts
from batchrun.report.gather import Column, label, visible

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
    """Give a job that ran twice: first a part of it, then the rest."""
    with report_job.serving() as url:
        path = report_job.write_job(tmp_path, url)
        assert command(str(path), "--limit", "30", "--quiet").code == 1
        assert command(str(path), "--quiet").code == 1
        yield path


@pytest.fixture
def text(job: Path, command: Command) -> str:
    """Give the report's text."""
    ended = command("report", str(job), "--gold", "label=gold")
    assert (ended.code, ended.out, ended.err) == (0, "", "the report is out.report.html\n")
    return (job.parent / "out.report.html").read_text(encoding="utf-8")


def test_the_report_tells_how_the_job_stands(text: str) -> None:
    """Rows by status, money, errors with advice and samples, runs, accuracy: the numbers are the job's own."""
    words = re.sub(r"\s+", " ", Page(text).words)
    assert "78 rows ok" in words
    assert "11 rows failed" in words
    assert "1 rows skipped" in words
    # 78 answers: 40 + number % 9 tokens of prompt and 20 of answer each, at 0.15 and 0.60 USD a million.
    numbers = [n for n in range(90) if n % 15 != 7 and n % 20 != 9 and n != 3]
    prompt = sum(40 + n % 9 for n in numbers)
    counted = re.search(r"prompt tokens ([\d,]+)", words)
    assert counted is not None
    assert int(counted[1].replace(",", "")) > prompt, "the tokens of failed rows count as well"
    assert (
        "content_policy 6 rows failed, 6 attempts in all runs a content policy or guardrail refuses this row's text"
        in words
    )
    assert "row 8 flagged: </script>" in words
    compared = [n for n in numbers if n % 9]
    right = sum((n + (n % 11 == 0)) % 3 == n % 3 for n in compared)
    assert f"{right / len(compared):.1%} of {len(compared)} answers in label are equal to it ({right})" in words
    assert sum(map(int, re.findall(r'class="s\d right">(\d+)<', text))) == right
    assert words.count("finished, some rows failed (exit 1)") == 2
    assert "All 90 rows" in words


def test_the_policy_lets_nothing_run_but_our_own(text: str) -> None:
    """The policy names our style and script by digest; there is no other style, script, handler or address."""
    page = Page(text)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        bodies = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.DOTALL)
        assert len(bodies) == 1
        digest = base64.b64encode(hashlib.sha256(bodies[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    for tag, attrs in page.tags:
        assert tag not in {"img", "iframe", "object", "embed", "base", "form", "a"}
        assert not [name for name in attrs if name.startswith("on") or name in {"style", "src", "action"}]
        assert attrs.get("href") in {None, "data:,"}


def test_without_samples_no_text_of_a_row_is_there(job: Path, command: Command) -> None:
    """--no-samples leaves out prompts, answers, messages and the job's own text, not the numbers."""
    assert command("report", str(job), "--no-samples", "--gold", "label=gold", "-o", "private.html").code == 0
    text = (job.parent / "private.html").read_text(encoding="utf-8")
    words = Page(text).words
    for secret in ("window.hit", "gnp.exe", "example.invalid", "flagged:", "שלום", "You label", "there is no JSON"):
        assert secret not in text
    assert "a content policy or guardrail refuses this row's text" in words
    assert "good · " in words.replace("\u2068", "").replace("\u2069", "")


def test_large_jobs_show_the_failed_rows_and_a_sample(
    job: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the table's size the first failed rows are there, others at equal distances; the rest is counted."""
    monkeypatch.setattr("batchrun.report.gather.ROWS", 30)
    monkeypatch.setattr("batchrun.report.gather.FAILED_ROWS", 5)
    assert command("report", str(job)).code == 0
    page = Page((job.parent / "out.report.html").read_text(encoding="utf-8"))
    rows = [attrs["data-status"] for tag, attrs in page.tags if tag == "tr" and "data-status" in attrs]
    assert 5 <= rows.count("failed") <= 8
    assert 20 <= len(rows) <= 31
    assert f"{len(rows)} of 90 rows" in page.words
    assert f"{90 - len(rows)} are not here" in page.words


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--gold", "glod"], 'the input has no column "glod", did you mean "gold"?'),
        (["--gold", "gold"], "say which answer it belongs to: ANSWER=gold; there are label, score, reason"),
        (["--gold", "lable=gold"], 'there is no answer column "lable", did you mean "label"?'),
        (["-o", "rows.parquet"], "is no name for a report"),
    ],
)
def test_mistakes_are_told(job: Path, command: Command, arguments: list[str], told: str) -> None:
    """A gold column or a file name that can't be meant ends with exit 2 and one line; no file is touched."""
    before = (job.parent / "rows.parquet").read_bytes()
    ended = command("report", str(job), *arguments)
    assert ended.code == 2
    assert told in ended.err
    assert (job.parent / "rows.parquet").read_bytes() == before
    assert not (job.parent / "out.report.html").exists()


def test_gold_may_be_a_column_of_the_prompt(job: Path, command: Command) -> None:
    """--gold with a column that the prompt uses as well reads it once."""
    ended = command("report", str(job), "--gold", "label=text")
    assert ended.code == 0, ended.err


def test_pending_rows_do_not_push_answers_out(job: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `--limit` on a large job the table holds the rows that are settled, and the head says what is open."""
    monkeypatch.setattr("batchrun.report.gather.ROWS", 50)
    monkeypatch.setattr("batchrun.report.gather.FAILED_ROWS", 5)
    text = job.read_text()
    job.write_text(text.replace("You label.", "You label again."))
    assert command(str(job), "--limit", "20", "--quiet", "--yes").code in {0, 1}
    assert command("report", str(job)).code == 0
    page = Page((job.parent / "out.report.html").read_text(encoding="utf-8"))
    rows = [attrs["data-status"] for tag, attrs in page.tags if tag == "tr" and "data-status" in attrs]
    assert rows.count("ok") + rows.count("failed") == 20
    assert "rows still pending" in page.words


def test_a_changed_input_is_refused(job: Path, command: Command) -> None:
    """Rows are never shown beside the answers of other rows."""
    report_job.write_job(job.parent, "http://127.0.0.1:1/v1", rows=91)
    ended = command("report", str(job))
    assert ended.code == 2
    assert "run the job again" in ended.err


def test_pauses_between_runs_take_no_time() -> None:
    """Times of several runs stand on one clock that stops between the runs; a killed run ends with its last answer."""
    runs = [_run(1, 100.0, 110.0), _run(2, 1_000.0, None), _run(3, 5_000.0, 5_010.0)]
    assert charts.work_seconds([105.0, 110.0, 1_004.0, 1_006.0, 5_001.0], runs) == [5.0, 10.0, 14.0, 16.0, 17.0]


def _run(number: int, started: float, ended: float | None) -> RunInfo:
    return RunInfo(
        id=number, plan=1, started_at=started, ended_at=ended, exit_code=0, reason="", host="h", pid=1, version="1",
        requests=1, cost=ZERO, possibly_billed=0, cached=0, output=None, resume_at=None, job="", counts=None,
    )  # fmt: skip


@given(st.text())
def test_visible_text_holds_no_control_character(text: str) -> None:
    """Whatever a text holds, what is shown turns no direction, holds no control character, and is writable as UTF-8."""
    shown = visible(text)
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    shown.encode()


@settings(max_examples=40)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12), min_size=1))
def test_any_numbers_can_be_drawn(numbers: list[float]) -> None:
    """A histogram counts each number once, whatever their spread."""
    drawn = charts.histogram("numbers", numbers)
    assert sum(map(int, re.findall(r"<title>[^<]* to [^<]*: (\d+)</title>", drawn))) == len(numbers)


@pytest.mark.parametrize("name", ["</text><script>x</script>", '"><img onerror=x>', "&amp;", ""])
def test_labels_of_charts_are_escaped(name: str) -> None:
    """A label can't leave its text element."""
    drawn = charts.bars(name, [(name, 3), ("other", 1)])
    assert "<script" not in drawn
    assert "<img" not in drawn
    assert "style" not in drawn


def test_equal_values_have_equal_labels() -> None:
    """Answers compare to a gold column of another type: 330 to "330", true to "True", but never "a" to "b"."""
    assert label("330.0", like=330) == label(330) == label(330.0) == "330"
    assert label("True", like=True) == label(True) == "true"
    assert label(" good ") == "good"
    assert label("n/a", like=3) == "n/a"


def test_many_different_texts_are_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of free texts keeps a bounded number of them; what is beyond is counted."""
    monkeypatch.setattr("batchrun.report.gather.MOST_LABELS", 3)
    column = Column()
    for number in range(10):
        column.add(f"text {number}")
    assert (len(column.labels), column.beyond) == (3, 7)
