"""Whole jobs, run again: what is answered is never asked again, and every change asks exactly what it changes."""

import json
import os
import random
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from crash.ledger import TOKENS, Ledger, serving
from job_running import Ran, run

from batchrun.errors import CheckpointError, ConfirmError, ExitCode, JobFileError, StorageError, UserError
from batchrun.job import RunOptions
from batchrun.records import Summary

COST = 2 * TOKENS / 1_000_000
YES = RunOptions(yes=True)
RETRY = RunOptions(retry=frozenset())
Rows = Sequence[tuple[int, str, str]]


@pytest.fixture(scope="module")
def server() -> Iterator[Ledger]:
    """Serve for all tests of this file."""
    with serving(Ledger(latency=(0.0, 0.002))) as ledger:
        yield ledger


@pytest.fixture
def ledger(server: Ledger) -> Ledger:
    """Begin with empty books."""
    server.forget()
    server.on_event = None
    server.refuse = lambda _: 0
    return server


class Job:
    """A job in a folder whose file and input a test edits between runs."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self.folder, self.ledger = folder, ledger
        self.path = folder / "job.yaml"
        self.output = folder / "out.csv"
        self.says: dict[str, Any] = {
            "input": {"path": "rows.csv"},
            "prompt": {"user": "Label: {{ text }}"},
            "model": {"endpoint": ledger.url, "name": "m", "price": {"prompt": 1, "completion": 1}},
            "limits": {"concurrency": 32},
            "output": {"path": "out.csv", "details": ["status", "error_type"]},
        }
        self.edit()

    def edit(self, **sections: Any) -> None:  # noqa: ANN401  (JSON)
        """Put sections over the job's, key by key."""
        for name, section in sections.items():
            self.says[name] = {**self.says.get(name, {}), **section} if isinstance(section, dict) else section
        self.path.write_text(json.dumps(self.says))

    def rows(self, rows: Rows) -> None:
        """Write the input."""
        text = "".join(f"{number},{text},{note}\n" for number, text, note in rows)
        (self.folder / "rows.csv").write_text("id,text,note\n" + text)
        os.utime(self.folder / "rows.csv", (1_600_000_000 + len(text), 1_600_000_000 + len(text)))

    def run(self, options: RunOptions | None = None) -> Summary:
        """Run it in this process."""
        return ran(self, options).summary

    def requests(self, options: RunOptions | None = None) -> int:
        """Run it to the end and give how many requests it made, by the server's books."""
        before = self.ledger.requests
        summary = self.run(options)
        assert summary.exit_code == ExitCode.DONE, summary
        assert summary.pending == 0
        assert summary.requests == self.ledger.requests - before
        return self.ledger.requests - before


def ran(job: Job, options: RunOptions | None = None) -> Ran:
    return run(job.path, options)


@pytest.fixture
def job(tmp_path: Path, ledger: Ledger) -> Job:
    return Job(tmp_path, ledger)


def numbered(count: int, start: int = 0) -> list[tuple[int, str, str]]:
    return [(number, f"text {number}", "old") for number in range(start, start + count)]


def test_done_when(job: Job) -> None:
    """Of 1,000 rows run, each change asks exactly what it changes: the issue's own numbers."""
    rows = numbered(1_000)
    job.rows(rows)
    assert job.requests() == 1_000
    random.Random(5).shuffle(rows)  # noqa: S311  (a seed, not a secret)
    job.rows(rows := rows + numbered(10, 1_000))
    assert job.requests() == 10
    job.rows([(number, text, "new") for number, text, _ in rows])
    assert job.requests() == 0
    job.edit(model={"params": {"max_tokens": 999}})
    assert job.requests() == 0
    job.edit(model={"params": {"max_tokens": 999, "provider": {"order": ["azure"]}}})
    assert job.requests() == 0
    job.rows(rows[:1_000])
    assert job.requests() == 0
    job.edit(prompt={"user": "Judge: {{ text }}"})
    assert job.requests(YES) == 1_000
    job.edit(prompt={"user": "Label: {{ text }}"})
    assert job.requests() == 0


def test_equal_rows_are_asked_once(job: Job) -> None:
    """1,000 rows of 100 distinct texts are 100 requests; with dedupe: false the n-th equal row is asked for itself."""
    job.rows([(number, f"text {number % 100}", "") for number in range(1_000)])
    assert job.requests() == 100
    job.edit(dedupe=False)
    assert job.requests() == 900
    job.edit(dedupe=True)
    assert job.requests() == 0


def test_yes_is_needed_for_surprises_only(job: Job) -> None:
    """More than 100 answered rows are asked again only with --yes; the line names number and cost; no plan is lost."""
    job.rows(numbered(101))
    job.requests()
    job.edit(prompt={"user": "Judge: {{ text }}"})
    with pytest.raises(ConfirmError, match=r"101 answered rows would be asked again, for about \$0\.020.*add --yes"):
        job.run()
    assert job.ledger.requests == 101
    job.edit(prompt={"user": "Label: {{ text }}"})
    assert job.requests() == 0
    job.rows([(number, f"other {number}", "") for number in range(500)])
    assert job.requests() == 500, "changed data alone never asks"
    job.rows(numbered(100))
    job.edit(prompt={"user": "Judge: {{ text }}"})
    assert job.requests() == 100, "up to 100 rows are no surprise"


def test_retry_asks_what_failed_for_good(job: Job) -> None:
    """A refused row is left alone by every run, and asked again by `retry`, of all types or of the named ones."""
    job.rows([*numbered(50), (50, "bad", "")])
    job.ledger.refuse = lambda text: 400 if text == "Label: bad" else 0
    assert (first := job.run()).exit_code == ExitCode.SOME_FAILED
    assert first.errors == {"bad_request": 1}
    assert (again := job.run()).requests == 0
    assert again.exit_code == ExitCode.SOME_FAILED
    with pytest.raises(UserError, match="nothing to retry: no row failed with timeout; 1 row failed with bad_request"):
        job.run(RunOptions(retry=frozenset({"timeout"})))
    job.ledger.refuse = lambda _: 0
    assert job.requests(RETRY) == 1
    assert job.ledger.received["Label: bad"] == 2


def test_what_the_server_failed_is_asked_again(job: Job) -> None:
    """Rows that failed in a way that passes are asked by the next run, the others are not."""
    job.rows(numbered(20))
    job.edit(limits={"attempts": 1})
    job.ledger.refuse = lambda text: 500 if text.endswith((" 3", " 17")) else 0
    assert job.run().failed == 2
    job.ledger.refuse = lambda _: 0
    assert job.requests() == 2


def test_limit_asks_so_many_and_the_rest_later(job: Job) -> None:
    """--limit asks N questions and ends well; the partial output holds all rows; the finished one replaces it."""
    job.rows(numbered(30))
    partial = job.folder / "out.partial.csv"
    summary = job.run(RunOptions(limit=12))
    assert (summary.exit_code, summary.requests, summary.pending) == (0, 12, 18)
    assert partial.read_text().count("pending") == 18
    assert not job.output.exists()
    assert job.requests() == 18
    assert not partial.exists()
    assert job.output.read_text().count(",ok,") == 30


def test_a_finished_output_outlives_an_unfinished_run(job: Job) -> None:
    """New rows that can't be answered leave yesterday's output as it was, and what is known beside it."""
    job.rows(numbered(10))
    job.requests()
    before = job.output.read_bytes()
    job.rows(numbered(20))
    job.ledger.refuse = lambda _: 401
    assert job.run().exit_code == ExitCode.STOPPED_BY_API
    assert job.output.read_bytes() == before
    assert (job.folder / "out.partial.csv").read_text().count("\n") == 21


@pytest.mark.parametrize(("rows", "lines"), [(10, 11), (11, 6)])
def test_a_look_at_a_large_input_writes_no_pending_rows(
    job: Job, monkeypatch: pytest.MonkeyPatch, rows: int, lines: int
) -> None:
    """--limit writes all rows to the partial output of a small input, and of a large one those that are settled."""
    monkeypatch.setattr("batchrun.runner.run.LARGE_ROWS", 10)
    job.rows(numbered(rows))
    job.run(RunOptions(limit=5))
    assert (job.folder / "out.partial.csv").read_text().count("\n") == lines


def test_output_is_made_again_without_a_request(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that was touched, deleted or overwritten, or is wanted otherwise, is right after the next run."""
    monkeypatch.setattr("batchrun.prepare.plan.YOUNG", float("-inf"))  # this input is as young as the test
    job.rows(numbered(10))
    job.requests()
    whole = job.output.read_bytes()
    run_ids = len(runs(job))
    assert job.requests() == 0
    assert len(runs(job)) == run_ids, "nothing new and nothing touched is no run"
    job.output.touch()
    assert job.requests() == 0
    job.output.unlink()
    assert job.requests() == 0
    assert job.output.read_bytes() == whole
    job.output.write_text("id\n")
    assert job.requests() == 0
    assert job.output.read_bytes() == whole
    job.edit(output={"details": ["status", "attempts"]})
    assert job.requests() == 0
    assert job.output.read_text().startswith("id,text,note,answer,status,attempts\n")
    job.edit(output={"keep": ["id"]})
    assert job.requests() == 0
    assert job.output.read_text().startswith("id,answer,status,attempts\n")


def runs(job: Job) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(job.folder / ".batchrun" / "job.sqlite")) as connection:
        return connection.execute("SELECT exit_code, requests, cost FROM runs ORDER BY id").fetchall()


def test_fresh_starts_over_and_keeps_the_old(job: Job) -> None:
    """--fresh asks all again, leaves the old checkpoint under another name, and still counts the day's money."""
    job.rows(numbered(10))
    job.requests()
    summary = job.run(RunOptions(fresh=True))
    assert summary.requests == 10
    assert float(summary.cost_today_usd) == pytest.approx(20 * COST)
    assert len(list((job.folder / ".batchrun").glob("job.2*.sqlite"))) == 1


def test_totals_add_up_over_resumes(job: Job) -> None:
    """Requests and money of all runs are what the server counted, however the runs ended."""
    job.rows(numbered(100))
    costs = [float(job.run(RunOptions(limit=limit)).cost_usd) for limit in (7, 20, 33)]
    job.ledger.refuse = lambda text: 500 if text.endswith("99") else 0
    job.edit(limits={"attempts": 2})
    costs.append(float(job.run().cost_usd))
    job.ledger.refuse = lambda _: 0
    summary = job.run()
    assert sum(number for _, number, _ in runs(job)) == job.ledger.requests
    assert float(summary.cost_total_usd) == pytest.approx(100 * COST)
    assert sum(costs) + float(summary.cost_usd) == pytest.approx(100 * COST)
    assert float(summary.cost_output_usd) == pytest.approx(100 * COST)


@pytest.mark.parametrize("how", ["in place", "replaced", "deleted"])
def test_input_changed_during_a_run_is_noticed(job: Job, how: str) -> None:
    """The run says so, keeps what was answered, joins no row with another row's answer; the next asks what is new."""
    job.rows(numbered(40))
    source = job.folder / "rows.csv"
    changed = source.read_text().replace("text 7,", "else 7,").replace("text 39,", "else 39,")

    def change() -> None:
        if job.ledger.requests == 20:
            job.ledger.on_event = None
            if how == "in place":
                source.write_text(changed)
            else:
                source.unlink()
            if how == "replaced":
                source.write_text(changed)

    job.ledger.on_event = change
    summary = job.run()
    assert summary.exit_code == ExitCode.USER
    assert "the input changed during the run" in summary.reason
    assert not job.output.exists()
    if how == "deleted":
        with pytest.raises(JobFileError, match=r"no file .*rows\.csv"):
            job.run()
    source.write_text(changed)
    answered = set(job.ledger.received)
    assert job.requests() == len({f"Label: {line.split(',')[1]}" for line in changed.splitlines()[1:]} - answered)
    assert "else 7" in job.output.read_text()


@pytest.mark.parametrize("late", ['"n/a"', "2.5", "[1]", '{"a": 1}', "99999999999999999999"])
@pytest.mark.parametrize("first", ["true", "1", "0.5", "[true]", '{"a": 1}'])
def test_a_value_of_another_type_that_comes_during_a_run(job: Job, first: str, late: str) -> None:
    """A line that is appended to JSON Lines while the run asks is asked by the next one, whatever it holds."""
    source = job.folder / "rows.jsonl"
    source.write_text("".join(f'{{"text": "text {number}", "extra": {first}}}\n' for number in range(20)))
    job.edit(input={"path": "rows.jsonl"})

    def append() -> None:
        job.ledger.on_event = None
        with source.open("a") as lines:
            lines.write(f'{{"text": "late", "extra": {late}}}\n')

    job.ledger.on_event = append
    summary = job.run()
    assert (summary.exit_code, "the input changed during the run" in summary.reason) == (ExitCode.USER, True)
    assert job.run().exit_code == ExitCode.DONE
    assert len(job.ledger.received) == len(set(job.ledger.received)) == 21


def test_max_failed_accepts_so_many(job: Job) -> None:
    """So many failed rows are exit 0; one more stops the run, which then stays stopped until something changes."""
    job.rows(numbered(100))
    job.ledger.refuse = lambda text: 400 if text.endswith("0") else 0
    job.edit(limits={"max_failed": "10%", "breaker": 0, "concurrency": 1})
    assert (summary := job.run()).exit_code == ExitCode.DONE
    assert summary.failed == 10
    job.rows(numbered(200))
    job.edit(limits={"max_failed": 12})
    assert (summary := job.run()).exit_code == ExitCode.STOPPED_BY_LIMIT
    assert summary.failed == 13
    assert job.run().requests == 0
    job.edit(limits={"max_failed": 20})
    assert job.run().exit_code == ExitCode.DONE
    assert max(job.ledger.received.values()) == 1


def test_clock_jumps_change_nothing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that leaps by days in both directions ends no timeout, no deadline and no wait early."""
    real = time.time
    chance = random.Random(3)  # noqa: S311  (a seed, not a secret)
    monkeypatch.setattr(time, "time", lambda: real() + chance.choice([-400_000, 0, 400_000]))
    job.rows(numbered(200))
    job.edit(limits={"deadline": "1h", "timeout": 30})
    assert job.requests() == 200
    assert job.requests() == 0


def test_places_that_cannot_be_written_are_found_before_a_request(job: Job) -> None:
    """A checkpoint or an output below a file, and an output that is a folder, cost no request."""
    job.rows(numbered(3))
    (job.folder / "file").write_text("x")
    (job.folder / "folder.csv").mkdir()
    job.edit(output={"path": "file/out.csv"})
    with pytest.raises((StorageError, UserError), match=r"output\.path"):
        job.run()
    job.edit(output={"path": "folder.csv"})
    with pytest.raises(UserError, match=r"output\.path"):
        job.run()
    job.edit(output={"path": "new/folders/out.csv"}, checkpoint="file/x.sqlite")
    with pytest.raises(UserError, match="set checkpoint:"):
        job.run()
    assert job.ledger.requests == 0
    job.edit(checkpoint="other/folder/x.sqlite")
    assert job.requests() == 3


@pytest.mark.parametrize("version", [99, -1, 0])
def test_a_checkpoint_of_another_version_is_refused(job: Job, version: int) -> None:
    """The line says how to go on, nothing is asked and nothing is changed."""
    job.rows(numbered(3))
    job.requests()
    checkpoint = job.folder / ".batchrun" / "job.sqlite"
    with closing(sqlite3.connect(checkpoint)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    job.rows(numbered(5))
    with pytest.raises(CheckpointError, match="use the batchrun that wrote it"):
        job.run()
    assert job.ledger.requests == 3


def test_an_answer_damaged_on_the_disk_is_refused(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are not UTF-8 mean a damaged checkpoint: exit 5 with advice, and the answer is not quoted."""
    job.rows(numbered(3))
    job.requests()
    checkpoint = job.folder / ".batchrun" / "job.sqlite"
    with closing(sqlite3.connect(checkpoint)) as connection:
        connection.execute("UPDATE answers SET answer = CAST(x'736563726574ff' AS TEXT) WHERE id = 2")
        connection.commit()
    job.output.unlink()
    assert job.run().exit_code == ExitCode.STORAGE
    said = capsys.readouterr().err
    assert "is damaged" in said
    assert "--fresh" in said
    assert "secret" not in said
    assert job.ledger.requests == 3
