"""Every way in which a provider's batch can end, through whole jobs: no row is lost, none paid twice in silence."""

# ruff: noqa: F811  (an argument of a test names a fixture)

from pathlib import Path

import polars as pl
import pytest
from batch_jobs import Job, job, provider, server  # noqa: F401  (fixtures)
from openrouter.batches import Provider

from batchrun.errors import ExitCode
from batchrun.job import RunOptions


def test_a_limited_run_asks_a_lost_question_again(job: Job) -> None:
    """--limit counts different questions: one that its first batch lost needs no room of its own in the second."""
    job.provider.alter = lambda line: line if job.provider.submissions > 1 else None
    summary = job.rows(3).run(RunOptions(limit=1))
    assert (summary.exit_code, summary.ok, summary.pending) == (ExitCode.DONE, 1, 2), job.said
    assert list(job.provider.submitted.values()) == [2]


@pytest.mark.parametrize("sample", [None, 9])
def test_a_limited_run_asks_no_other_question_live(job: Job, sample: int | None) -> None:
    """What two batches lost is asked live in the same run, and in all no more different questions than --limit."""
    job.provider.alter = lambda _: None
    for done in (3, 6, 9):
        summary = job.rows(9).run(RunOptions(limit=3, sample=sample))
        assert (summary.ok, summary.pending) == (done, 9 - done)
        assert (len(job.provider.submitted), len(job.provider.live)) == (done, done)
    assert set(job.provider.submitted.values()) == {2}
    assert set(job.provider.live.values()) == {1}
    assert summary.exit_code == ExitCode.DONE


def test_a_limited_run_takes_up_what_an_earlier_run_lost(job: Job) -> None:
    """The batch of an earlier run was lost: its questions come first, and fill the limit of this run."""
    job.provider.polls = 3
    assert job.rows(5).run(RunOptions(wait="0", limit=2)).exit_code == ExitCode.WAITING
    job.provider.polls = 1
    job.provider.alter = lambda line: line if job.provider.submissions > 1 else None
    summary = job.run(RunOptions(limit=2))
    assert (summary.ok, list(job.provider.submitted.values())) == (2, [2, 2])
    assert job.run(RunOptions(limit=2)).ok == 4
    assert not job.provider.live


def test_questions_for_live_count_against_the_limit(tmp_path: Path, provider: Provider) -> None:
    """A prompt that no batch can take is one of the limited run's questions; so is a row that can't be asked."""
    job = Job(tmp_path / "job", provider)
    texts = ["long " * 25_000, "short", "other"]
    job.rows(3)
    pl.DataFrame({"id": range(3), "text": texts}).write_csv(job.folder / "rows.csv")
    summary = job.run(RunOptions(limit=2))
    assert (summary.ok, len(provider.live), len(provider.submitted)) == (2, 1, 1)
