"""Provider batches through whole jobs: half the price, exact books, and no question twice, whatever gets lost."""

# ruff: noqa: F811  (an argument of a test names a fixture)

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from batch_jobs import DIALECTS, Job, job, provider, server  # noqa: F401  (fixtures)
from command_line import Command, command  # noqa: F401  (a fixture)
from openrouter.batches import LIVE_COST, MODEL, Provider, serving

from batchrun.checkpoint import Batch, Checkpoint, utc_day
from batchrun.errors import ConfirmError, ExitCode, JobFileError, UserError
from batchrun.job import RunOptions
from batchrun.records import Summary
from batchrun.runner.batches import LOOK_AGAIN, _Lane
from batchrun.runner.closing import closing_lines
from batchrun.servers.simulator.account import Config
from batchrun.servers.simulator.app import Request, Simulator

NOW = RunOptions(wait="0")
HALF = {"prompt": 0.075, "completion": 0.3}


def books_are_exact(job: Job, summary: Summary) -> None:
    """Check that what the checkpoint has booked is what the provider billed."""
    assert Decimal(summary.cost_total_usd) * 10**12 == job.provider.billed


def rank(keys: list[str], line: dict[str, Any]) -> int:
    """Return how many other questions, listed in `keys`, had a line before this one's first: their keys are chance."""
    key = line["custom_id"].partition("-")[2]
    if key not in keys:
        keys.append(key)
    return keys.index(key)


def interrupt_at(event: str, provider: Provider) -> Callable[[str], None]:
    """Return what sends Ctrl-C to this process once, when an event comes."""

    def interrupt(name: str) -> None:
        if name == event:
            provider.on_event = lambda _: None
            os.kill(os.getpid(), signal.SIGINT)

    return interrupt


def test_a_batch_gives_the_bytes_of_a_live_run_for_half_its_price(job: Job, tmp_path: Path) -> None:
    """25 questions in three batches: each asked once, at half of the live price, and the same output."""
    summary = job.rows(25).run()
    assert summary.exit_code == ExitCode.DONE, job.said
    assert set(job.provider.submitted.values()) == {1}
    assert not job.provider.live
    books_are_exact(job, summary)
    assert Decimal(summary.cost_usd) * 10**12 == 25 * LIVE_COST // 2
    live = Job(tmp_path / "live", job.provider).rows(25)
    assert live.run(engine="local").exit_code == ExitCode.DONE
    assert (live.folder / "out.csv").read_bytes() == (job.folder / "out.csv").read_bytes()
    assert job.run().requests == 0


def test_a_run_that_does_not_wait_collects_what_is_done(job: Job) -> None:
    """The cron recipe: the first run submits and ends with 6, later ones end with 6 until all is done."""
    job.provider.polls = 3
    ended = [job.rows(12).run(NOW) for _ in range(4)]
    codes = [summary.exit_code for summary in ended]
    assert ended[0].commands[0][1] == "collects what the provider has answered"
    assert codes == [ExitCode.WAITING, ExitCode.WAITING, ExitCode.WAITING, ExitCode.DONE]
    assert set(job.provider.submitted.values()) == {1}
    assert job.output["status"].to_list() == ["ok"] * 12


def test_ten_nights_with_new_rows(job: Job) -> None:
    """Each night rows are added; each is submitted once, and what was answered stays."""
    for night in range(1, 11):
        job.rows(night * 4)
        codes = [job.run(NOW).exit_code for _ in range(2)]
        assert codes == [ExitCode.WAITING, ExitCode.DONE]
        assert job.output["status"].to_list() == ["ok"] * (night * 4)
    assert set(job.provider.submitted.values()) == {1}
    books_are_exact(job, job.run(NOW))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_reply_is_looked_for(job: Job, when: str) -> None:
    """A submission whose reply is lost is found in the provider's list, or after two looks in vain submitted again."""
    job.provider.lose = {0: when}
    assert job.rows(10).run().exit_code == ExitCode.DONE, job.said
    assert set(job.provider.submitted.values()) == {1}
    assert job.provider.submissions == (2 if when == "before" else 1)


@pytest.mark.parametrize("lose", [{0: "before", 1: "after"}, {0: "after", 1: "before", 2: "after"}])
def test_two_lost_replies_are_not_taken_for_each_other(job: Job, lose: dict[int, str]) -> None:
    """An outage loses the replies to several equal submissions: each question is submitted, and paid, once."""
    job.provider.lose, job.provider.polls = lose, 3
    summary = job.rows(30).run()
    assert (summary.exit_code, summary.ok) == (ExitCode.DONE, 30), job.said
    assert set(job.provider.submitted.values()) == {1}
    books_are_exact(job, summary)


def test_a_lost_batch_is_found_by_its_file(tmp_path: Path, provider: Provider) -> None:
    """A server that drops the metadata shows a lost batch all the same: by the file of its requests."""
    provider.lose, provider.no_metadata = {0: "after"}, True
    job = Job(tmp_path / "job", provider, "openai").rows(10)
    assert job.run().exit_code == ExitCode.DONE, job.said
    assert set(provider.submitted.values()) == {1}


def test_a_file_is_waited_for_until_it_is_processed(
    tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure takes a batch of a file only some time after its upload."""
    monkeypatch.setattr("batchrun.api.batches._FILE_SECONDS", 0.0)
    provider.unprocessed = 3
    job = Job(tmp_path / "job", provider, "openai").rows(4)
    assert job.run().exit_code == ExitCode.DONE, job.said
    assert provider.submissions == 1


def test_the_jobs_own_price_counts_whatever_another_server_reports(tmp_path: Path, provider: Provider) -> None:
    """A gateway's cost of a batch need not be in USD: tokens times the job's price count."""
    provider.reported = 250.0
    job = Job(tmp_path / "job", provider, "openai").rows(4)
    books_are_exact(job, job.run())


def test_two_searches_for_a_lost_batch_are_minutes_apart(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon a provider wants to be asked again, its list has minutes to show a batch before it is given up."""
    job.provider.lose = {0: "before"}
    waits: list[float | None] = []
    look_later = _Lane._look_later

    def noted(lane: _Lane, batch: Batch, wait: float | None = None) -> None:
        waits.append(wait)
        look_later(lane, batch, wait)

    monkeypatch.setattr(_Lane, "_look_later", noted)
    assert job.rows(3).run().exit_code == ExitCode.DONE
    assert waits[:2] == [LOOK_AGAIN, LOOK_AGAIN]


def test_a_copy_of_the_job_beside_it_takes_no_batch_of_the_other(tmp_path: Path, provider: Provider) -> None:
    """Two equal jobs on one account, each with lost replies: each ends with its own batches, all submitted once."""
    first, second = (Job(tmp_path / name, provider).rows(10) for name in ("one", "two"))
    provider.lose = {0: "after", 1: "after"}
    assert [job.run(NOW).exit_code for job in (first, second)] == [ExitCode.WAITING] * 2
    assert [job.run().exit_code for job in (first, second)] == [ExitCode.DONE] * 2, first.said + second.said
    assert any("another job's" in line for line in first.said + second.said)
    assert set(provider.submitted.values()) == {2}
    assert first.output.equals(second.output)


def test_results_that_are_withheld_are_waited_for(tmp_path: Path, provider: Provider) -> None:
    """402 on a finished batch: it is said once, exit 6, and the next run collects once there is credit."""
    job = Job(tmp_path / "job", provider).rows(5)
    provider.withheld = True
    assert [job.run(NOW).exit_code for _ in range(3)] == [ExitCode.WAITING] * 3
    assert sum("withheld" in line for line in job.said) == 1
    provider.withheld = False
    assert job.run(NOW).exit_code == ExitCode.DONE
    assert set(provider.submitted.values()) == {1}


@pytest.mark.parametrize("then", ["live", "failed"])
def test_what_two_batches_do_not_answer(job: Job, then: str) -> None:
    """Questions without a line are submitted once more, then asked live, or failed where the job says so."""
    keys: list[str] = []
    job.provider.alter = lambda line: None if rank(keys, line) < 4 else line
    summary = job.rows(10).run(engine={"batch": {"then": then}})
    assert {key for key, count in job.provider.submitted.items() if count == 2} == set(keys[:4])
    assert len(job.provider.live) == (4 if then == "live" else 0)
    assert summary.exit_code == (ExitCode.DONE if then == "live" else ExitCode.SOME_FAILED)
    books_are_exact(job, summary)


@pytest.mark.parametrize("how", ["failed", "expired", "cancelled"])
def test_a_batch_that_ends_badly_is_tried_once_more(job: Job, how: str) -> None:
    """A batch that fails, expires or is cancelled: its questions go into one more batch, and the reason is said."""
    job.provider.ends = {0: (how, "requests[1]: a schema")}
    late: list[dict[str, Any]] = []

    def alter(line: dict[str, Any]) -> dict[str, Any] | None:
        if how == "expired" and len(late) < 4:
            late.append(line)
            return None
        return line

    job.provider.alter = alter
    assert job.rows(4).run().exit_code == ExitCode.DONE, job.said
    assert any("requests[1]" in line for line in job.said)
    assert not job.provider.live
    assert set(job.provider.submitted.values()) == {2}


def test_one_wrong_request_takes_few_others_with_it(job: Job) -> None:
    """A batch fails as a whole for one request: in its second batch only the nearest rows are with it, then live."""
    job.provider.wrong = "text 17"
    summary = job.rows(150).run(engine={"batch": {"size": 100}})
    assert (summary.exit_code, summary.ok) == (ExitCode.DONE, 150), job.said
    assert sorted(job.provider.live) == [f"text {number}" for number in range(10, 20)]
    books_are_exact(job, summary)


def test_a_batch_that_is_gone(job: Job) -> None:
    """A provider that no longer knows a batch: its questions go into one more, and what it may cost stays reserved."""
    assert job.rows(4).run(NOW).exit_code == ExitCode.WAITING
    job.provider.batches.clear()
    summary = job.run()
    assert summary.exit_code == ExitCode.DONE, job.said
    assert any("is gone" in line for line in job.said)
    assert summary.possibly_billed == 4
    with Checkpoint.open(Path(summary.checkpoint), read_only=True) as checkpoint:
        assert checkpoint.batches.reserved() > 0


def test_a_batch_that_is_not_found_once_is_not_bought_again(job: Job) -> None:
    """A 404 that passes, right after the submission or later, costs nothing: the provider's list still shows it."""
    job.provider.missing, job.provider.polls = 1, 3
    summary = job.rows(4).run()
    assert summary.exit_code == ExitCode.DONE, job.said
    assert set(job.provider.submitted.values()) == {1}
    books_are_exact(job, summary)


def test_a_batch_that_is_listed_and_never_found_is_given_up(job: Job) -> None:
    """A provider that lists a batch and answers 404 for it is looked at a few times, not for ever."""
    job.provider.missing = 1_000
    summary = job.rows(4).run()
    assert summary.exit_code == ExitCode.DONE, job.said
    assert any("is gone" in line for line in job.said)
    assert summary.ok == 4


def test_a_batch_of_another_job_that_was_taken_for_ours_may_be_deleted(tmp_path: Path, provider: Provider) -> None:
    """The other job collects its batch and deletes it: ours is then found in the list, and not paid again."""
    first, second = (Job(tmp_path / name, provider).rows(10) for name in ("one", "two"))
    provider.lose, provider.polls = {0: "after"}, 99
    assert [job.run(NOW).exit_code for job in (first, second)] == [ExitCode.WAITING] * 2

    provider.on_event = interrupt_at("poll", provider)
    assert first.run().exit_code == ExitCode.WAITING
    assert "batch 1 was received after all: batch_1" in first.said
    provider.polls = 1
    assert second.run().exit_code == ExitCode.DONE
    summary = first.run()
    assert (summary.exit_code, summary.ok) == (ExitCode.DONE, 10), first.said
    assert set(provider.submitted.values()) == {2}


def test_lines_are_judged_like_live_replies(job: Job) -> None:
    """A refused line fails its row alone, with the code and the words of a live reply; errors are asked again."""
    keys: list[str] = []

    def alter(line: dict[str, Any]) -> dict[str, Any]:
        if rank(keys, line) < 4:
            error = {"error": {"code": "context_length_exceeded", "message": "too long: 9,000 tokens"}}
            return {**line, "response": {"status_code": 400, "request_id": "q", "body": error}}
        if rank(keys, line) < 8:
            return {**line, "response": None, "error": {"code": "batch_expired", "message": "too late"}}
        return line

    job.provider.alter = alter
    summary = job.rows(16).run(output={"path": "out.csv", "details": ["status", "error_type", "error_code"]})
    failed = job.output.filter(pl.col("status") == "failed")
    assert set(failed["error_type"]) == {"context_length"}
    assert set(failed["error_code"]) == {400}
    assert (summary.failed, len(job.provider.live)) == (4, 4)
    books_are_exact(job, summary)


def test_a_refused_account_is_not_a_try_of_a_question(job: Job) -> None:
    """Lines that say 402 stop the run; afterwards a question still has its two batches before it is asked live."""
    refused = {"error": {"code": 402, "message": "Insufficient credits"}}
    job.provider.alter = lambda line: {**line, "response": {"status_code": 402, "request_id": "q", "body": refused}}
    summary = job.rows(4).run()
    assert (summary.exit_code, summary.pending) == (ExitCode.STOPPED_BY_API, 4)
    missing: list[dict[str, Any]] = []

    def alter(line: dict[str, Any]) -> dict[str, Any] | None:
        if len(missing) < 4:
            missing.append(line)
            return None
        return line

    job.provider.alter = alter
    assert job.run().exit_code == ExitCode.DONE, job.said
    assert not job.provider.live


def test_one_refused_line_among_answers_stops_no_run(job: Job) -> None:
    """A line that says "wrong key" beside answers is tried once more, then asked live: no run stops for it."""
    refused = {"error": {"code": 401, "message": "invalid x-api-key"}}
    odd: list[str] = []

    def alter(line: dict[str, Any]) -> dict[str, Any]:
        odd.append(line["custom_id"].partition("-")[2])
        if line["custom_id"].endswith(odd[0]):
            return {**line, "response": {"status_code": 401, "request_id": "q", "body": refused}}
        return line

    job.provider.alter = alter
    assert [job.rows(count).run().exit_code for count in (4, 8)] == [ExitCode.DONE] * 2, job.said
    assert sorted(job.provider.submitted.values()) == [1] * 7 + [2]
    assert len(job.provider.live) == 1


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        ({"type": "invalid_request_error", "error_type": "context_length_exceeded"}, "context_length"),
        ({"type": "api_error", "error_type": "content_policy_violation"}, "content_policy"),
        ({"code": "content_filter"}, "content_policy"),
    ],
)
def test_an_error_line_that_names_the_row_is_not_submitted_again(
    job: Job, error: dict[str, str], error_type: str
) -> None:
    """Whatever word stands beside it, an error_type that blames the row fails it at once, without a second batch."""
    job.provider.alter = lambda line: {**line, "response": None, "error": {"message": "no", "param": None} | error}
    assert job.rows(3).run().errors == {error_type: 3}
    assert set(job.provider.submitted.values()) == {1}


def test_a_line_that_cannot_be_read_costs_itself(job: Job) -> None:
    """The other lines of the batch are kept, and its question goes into one more batch."""
    broken: list[dict[str, Any]] = []

    def alter(line: dict[str, Any]) -> dict[str, Any]:
        if not broken:
            broken.append(line)
            return {"id": "batch_req_1", "response": None, "error": {"message": "?"}}
        return line

    job.provider.alter = alter
    assert job.rows(6).run().exit_code == ExitCode.DONE
    assert sorted(job.provider.submitted.values()) == [1] * 5 + [2]
    assert not job.provider.files, "files are deleted once they are collected"


def test_results_that_are_not_there_yet_are_waited_for(job: Job) -> None:
    """A batch that is done with answers and shows none of them: nothing is asked, and paid, again."""
    job.provider.hidden = 3
    summary = job.rows(4).run()
    assert (summary.exit_code, summary.ok) == (ExitCode.DONE, 4), job.said
    assert any("retry JOB --only in_batch" in line for line in job.said)
    assert set(job.provider.submitted.values()) == {1}
    books_are_exact(job, summary)


def test_a_missing_file_of_errors_holds_back_no_answer(tmp_path: Path, provider: Provider) -> None:
    """The answers of the output file are kept; a question whose line stood in the other file goes into one more."""
    refused = {"error": {"code": 500, "message": "?"}}
    odd: list[str] = []

    def alter(line: dict[str, Any]) -> dict[str, Any]:
        if not odd:
            odd.append(line["custom_id"])
            return {**line, "response": {"status_code": 500, "request_id": "q", "body": refused}}
        return line

    provider.alter, provider.no_errors = alter, True
    job = Job(tmp_path / "job", provider, "openai").rows(4)
    assert job.run().exit_code == ExitCode.DONE, job.said
    assert sorted(provider.submitted.values()) == [1, 1, 1, 2]


@pytest.mark.parametrize(("refusals", "ends"), [(1, ExitCode.DONE), (2, ExitCode.STOPPED_BY_API)])
def test_a_key_that_is_refused_while_a_batch_runs(job: Job, refusals: int, ends: ExitCode) -> None:
    """One 401 may be a slip; the second one stops the run, which would otherwise wait for ever, and loses nothing."""
    job.provider.refusals = [401] * refusals
    codes = [job.rows(4).run().exit_code for _ in range(2)]
    assert codes == [ends, ExitCode.DONE], job.said
    assert set(job.provider.submitted.values()) == {1}


def test_what_no_column_needs_costs_no_line(job: Job) -> None:
    """NaN among the logprobs, and an integer beyond 64 bits, cost nothing twice, as in a live reply."""

    def alter(line: dict[str, Any]) -> dict[str, Any]:
        line["response"]["body"] |= {"logprobs": [float("nan"), float("-inf")], "seed": 2**70}
        return line

    job.provider.alter = alter
    summary = job.rows(6).run()
    assert (summary.exit_code, summary.ok) == (ExitCode.DONE, 6)
    assert sorted(job.provider.submitted.values()) == [1] * 6
    books_are_exact(job, summary)


def test_too_many_failed_rows_stop_the_run_at_collection(job: Job) -> None:
    """limits.max_failed counts when a batch is collected: the others are left to the next run."""
    refused = {"error": {"code": "context_length_exceeded", "message": "too long"}}
    job.provider.alter = lambda line: {**line, "response": {"status_code": 400, "request_id": "q", "body": refused}}
    summary = job.rows(30).run(limits={"max_failed": 5})
    assert (summary.exit_code, summary.failed) == (ExitCode.STOPPED_BY_LIMIT, 10)
    assert summary.pending == 20


def test_rows_that_failed_in_batches_count_among_the_failed(tmp_path: Path, provider: Provider) -> None:
    """limits.max_failed is for the run: what its batches failed leaves the live questions that much less."""
    refused = {"error": {"code": "context_length_exceeded", "message": "too long"}}
    keys: list[str] = []

    def alter(line: dict[str, Any]) -> dict[str, Any] | None:
        if rank(keys, line) < 15:
            return {**line, "response": {"status_code": 400, "request_id": "q", "body": refused}}
        return None

    provider.alter = alter
    job = Job(tmp_path / "job", provider).rows(60)
    integers = {"columns": {"n": "integer"}, "repairs": 0}
    summary = job.run(engine={"batch": {"size": 60}}, limits={"max_failed": 20, "concurrency": 1}, answer=integers)
    assert summary.errors["context_length"] == 15
    assert (summary.exit_code, summary.failed) == (ExitCode.STOPPED_BY_LIMIT, 21)


@pytest.mark.parametrize("lost", [True, False])
def test_a_batch_that_was_released_leaves_no_busy_loop(
    lost: bool,  # noqa: FBT001
    tmp_path: Path,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lost submission, or one that met the account's queue limit: the next look is waited for, not spun to."""
    if lost:
        provider.lose = {0: "before"}
    else:
        provider.ends = {0: ("failed", "token_limit_exceeded")}
    provider.polls = 10
    rounds: list[None] = []
    look = _Lane._look_at_batches

    async def counted(lane: _Lane) -> None:
        rounds.append(None)
        await look(lane)

    monkeypatch.setattr(_Lane, "_look_at_batches", counted)
    assert Job(tmp_path / "job", provider, "openai").rows(10).run().exit_code == ExitCode.DONE
    assert len(rounds) < 100


def test_lines_without_a_cost_count_as_possibly_billed(tmp_path: Path, provider: Provider) -> None:
    """The summary says so as the checkpoint does."""

    def alter(line: dict[str, Any]) -> dict[str, Any]:
        del line["response"]["body"]["usage"]
        return line

    provider.alter = alter
    summary = Job(tmp_path / "job", provider, "openai").rows(10).run()
    with Checkpoint.open(Path(summary.checkpoint), read_only=True) as checkpoint:
        assert summary.possibly_billed == checkpoint.possibly_billed() == 10


def test_a_provider_that_is_gone_is_no_waiting(job: Job) -> None:
    """Where nothing could be asked, a run that does not wait ends with 3: at night 6 would hide a dead address."""
    job.provider.polls = 3
    assert job.rows(4).run(NOW).exit_code == ExitCode.WAITING
    job.provider.down = True
    summary = job.rows(5).run(NOW)
    assert summary.exit_code == ExitCode.STOPPED_BY_API
    assert "can't be asked now" in summary.reason


def test_lists_and_results_in_another_form_are_read(job: Job) -> None:
    """A server that shows its first page for ever, with times as texts: what was lost is looked for, and given up."""
    job.provider.lose = {0: "before"}
    job.provider.odd_pages = True
    job.provider.submit("other", [])
    assert job.rows(3).run().exit_code == ExitCode.DONE, job.said


def test_ctrl_c_leaves_batches_out(job: Job) -> None:
    """Ctrl-C while a run waits ends it with 6 and says that a batch runs on; the next run collects it."""
    job.provider.polls = 99
    job.provider.on_event = interrupt_at("poll", job.provider)
    summary = job.rows(4).run()
    assert summary.exit_code == ExitCode.WAITING
    assert "run on, and are billed" in summary.reason
    assert "stopping: waiting for the provider's reply (once more to abort)" in job.said
    job.provider.polls = 1
    assert job.run().exit_code == ExitCode.DONE
    assert set(job.provider.submitted.values()) == {1}


@pytest.mark.parametrize("event", ["submission arrives", "poll"])
def test_ctrl_c_twice_waits_for_no_reply(job: Job, event: str) -> None:
    """The second Ctrl-C ends a run whose request hangs; the next run finds its batch, and asks nothing again."""
    ended, hung = threading.Event(), []

    def interrupt_twice(name: str) -> None:
        if name == event:
            job.provider.on_event = lambda _: None
            os.kill(os.getpid(), signal.SIGINT)
            while not any("once more to abort" in line for line in job.said):
                os.sched_yield()
            os.kill(os.getpid(), signal.SIGINT)
            hung.append(not ended.wait(30))

    job.provider.on_event = interrupt_twice
    summary = job.rows(4).run()
    ended.set()
    assert (summary.exit_code, summary.output) == (ExitCode.WAITING, None)
    assert job.run().exit_code == ExitCode.DONE
    assert hung == [False]
    assert set(job.provider.submitted.values()) == {1}


def test_prune_keeps_what_is_out(job: Job) -> None:
    """After an edit `prune` drops old answers, not the questions of an open batch: they are collected and kept."""
    job.provider.polls = 3
    assert job.rows(4).run(NOW).exit_code == ExitCode.WAITING
    assert job.run(RunOptions(engine="local", yes=True), prompt="Again: {{ text }}").exit_code == ExitCode.DONE
    with Checkpoint.open(job.folder / ".batchrun" / "job.sqlite") as checkpoint:
        checkpoint.prune(older_than=2**40)
    assert job.run(prompt="{{ text }}").exit_code == ExitCode.DONE
    assert set(job.provider.submitted.values()) == {1}


@pytest.mark.parametrize("then", ["live", "failed"])
def test_a_prompt_that_may_be_too_long_is_in_no_batch(tmp_path: Path, provider: Provider, then: str) -> None:
    """A batch may shorten a prompt beyond the model's context in silence: such a row is asked live, or fails."""
    job = Job(tmp_path / "job", provider).rows(3)
    pl.DataFrame({"id": [1, 2], "text": ["short", "long " * 25_000]}).write_csv(job.folder / "rows.csv")
    summary = job.run(engine={"batch": {"then": then}})
    assert len(provider.submitted) == 1
    assert len(provider.live) == (then == "live")
    assert summary.errors == ({} if then == "live" else {"context_length": 1})


def test_the_other_name_of_the_model_is_tried_and_remembered(tmp_path: Path, provider: Provider) -> None:
    """Where the model's name is refused the name with :batch is tried, and later batches begin with it."""
    refusal = {"error": {"code": 400, "message": f"{MODEL} is not a valid model ID"}}
    provider.refuse = {0: (400, refusal)}
    job = Job(tmp_path / "job", provider).rows(20)
    assert job.run().exit_code == ExitCode.DONE
    assert {batch.model for batch in provider.batches.values()} == {f"{MODEL}:batch"}
    assert provider.submissions == 3


def test_a_provider_that_refuses_a_submission(job: Job) -> None:
    """No credit stops the run with nothing sent; "too large" halves the batch; a rate limit is waited for."""
    credit = {"error": {"code": 402, "message": "Insufficient credits"}}
    job.provider.refuse = {0: (402, credit)}
    summary = job.rows(8).run()
    assert (summary.exit_code, summary.pending, summary.requests) == (ExitCode.STOPPED_BY_API, 8, 0)
    large = {"error": {"code": 413, "message": "too large"}}
    slow = {"error": {"code": 429, "message": "slow down"}}
    job.provider.refuse = {1: (413, large), 2: (429, slow)}
    assert job.run().exit_code == ExitCode.DONE
    assert [len(batch.requests) for batch in job.provider.batches.values()] == [4, 4]


def test_a_server_without_batches_is_called_so(job: Job) -> None:
    """404 to a submission: the run stops, names the batch API, and does not blame the address of live requests."""
    job.provider.refuse = dict.fromkeys(range(2), (404, {"error": {"code": 404, "message": "Not Found"}}))
    summary = job.rows(2).run()
    assert summary.exit_code == ExitCode.STOPPED_BY_API
    last = "\n".join(closing_lines(summary, job.folder))
    assert "has no batch API for this key (Not Found): send live, with --engine local" in last
    assert "chat/completions" not in last


def test_a_submission_is_bounded_with_what_stands_around_its_requests(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50,000 short prompts have more around them than in them, and a provider counts all of it."""
    monkeypatch.setattr("batchrun.runner.packing.MAX_BYTES", 4_000)
    assert job.rows(40).run(engine={"batch": {"size": 5_000}}).exit_code == ExitCode.DONE
    assert job.provider.largest <= 4_000 + 400, "the last request, and what a form adds"


def test_a_full_queue_of_tokens_is_waited_for(tmp_path: Path, provider: Provider) -> None:
    """A batch that failed for the account's enqueued tokens is submitted again later; no question loses a try."""
    provider.ends = {0: ("failed", "token_limit_exceeded")}
    job = Job(tmp_path / "job", provider, "openai").rows(4)
    assert job.run().exit_code == ExitCode.DONE, job.said
    assert set(provider.submitted.values()) == {2}
    assert not provider.live


def test_caps_hold_over_open_batches(job: Job) -> None:
    """What is out counts with its worst case against the cap of the run and of the day, also in later runs."""
    worst = 12 * LIVE_COST / 10**12  # 12 questions of about 100 bytes cost at most that much in batches
    day = {"max_cost_usd": {"day": worst}}
    job.provider.polls = 100
    assert job.rows(60).run(NOW, limits=day).exit_code == ExitCode.WAITING
    first = job.provider.submitted.total()
    assert 0 < first < 60
    assert job.run(NOW).exit_code == ExitCode.WAITING
    assert job.provider.submitted.total() == first, "the reservations of the first run hold in the second"
    job.provider.polls = 1
    summary = job.run()
    assert summary.exit_code == ExitCode.STOPPED_BY_LIMIT
    assert job.provider.billed <= worst * 10**12
    assert job.provider.submitted.total() > first, "what was reserved beyond the bill is free again"
    books_are_exact(job, summary)


def test_a_cap_needs_the_price_of_a_batch(tmp_path: Path, provider: Provider) -> None:
    """Without a batch price a cap can't be kept, so nothing is sent."""
    job = Job(tmp_path / "job", provider, "openai").rows(3)
    job.sections["model"]["price"] = {"prompt": 3, "completion": 9}
    with pytest.raises(UserError, match=r"set model\.price\.batch"):
        job.run(RunOptions(max_cost=Decimal(1)))
    assert not provider.submissions


def test_a_cap_refuses_a_batch_without_a_bound(tmp_path: Path, provider: Provider) -> None:
    """What an image costs nobody knows before, so a batch of images needs the job's own bound under a cap."""
    job = Job(tmp_path / "job", provider).rows(3)
    image = {"image": "https://example.org/{{ id }}.png"}
    prompt = {"messages": [{"role": "user", "content": [{"text": "Label {{ text }}"}, image]}]}
    summary = job.run(RunOptions(max_cost=Decimal(1)), prompt=prompt)
    assert summary.exit_code == ExitCode.USER
    assert "not bounded (an image in the prompt): set model.max_request_usd" in summary.reason
    assert not provider.submissions
    assert not provider.live


def test_limit_counts_what_is_submitted(job: Job) -> None:
    """--limit submits that many questions in this run, and the next run as many more."""
    for done in (5, 10):
        job.rows(12).run(RunOptions(limit=5))
        assert len(job.provider.submitted) == done


def test_half_in_a_batch_and_the_rest_live(job: Job) -> None:
    """A live run leaves alone what is out, and ends with 6 when only that is left; then a batch run collects."""
    job.provider.polls = 3
    assert job.rows(10).run(RunOptions(wait="0", limit=5)).exit_code == ExitCode.WAITING
    summary = job.run(RunOptions(engine="local"))
    assert (summary.exit_code, summary.ok, summary.pending) == (ExitCode.WAITING, 5, 5)
    assert len(job.provider.live) == 5
    summary = job.run()
    assert (summary.exit_code, summary.ok) == (ExitCode.DONE, 10)
    assert set(job.provider.submitted.values()) | set(job.provider.live.values()) == {1}
    assert Decimal(summary.cost_total_usd) * 10**12 == 5 * LIVE_COST + 5 * LIVE_COST // 2


def test_half_live_and_the_rest_in_a_batch(job: Job) -> None:
    """What was answered live is in no batch, and the books hold both prices."""
    assert job.rows(10).run(RunOptions(engine="local", limit=5)).exit_code == ExitCode.DONE
    summary = job.run()
    assert (summary.exit_code, summary.ok) == (ExitCode.DONE, 10)
    assert (len(job.provider.live), len(job.provider.submitted)) == (5, 5)
    assert Decimal(summary.cost_total_usd) * 10**12 == 5 * LIVE_COST + 5 * LIVE_COST // 2


def test_odd_prices_are_divided_to_the_picodollar(tmp_path: Path, provider: Provider) -> None:
    """12,000 rows in three batches whose costs no row count divides: the rows' costs add up to them exactly."""
    provider.line_cost = 712_345_679
    job = Job(tmp_path / "job", provider).rows(12_000)
    details = ["status", "key"]
    summary = job.run(engine={"batch": {"size": 5_000}}, output={"path": "out.csv", "details": details})
    assert (summary.exit_code, summary.ok) == (ExitCode.DONE, 12_000)
    assert [len(batch.requests) for batch in provider.batches.values()] == [5_000, 5_000, 2_000]
    books_are_exact(job, summary)
    assert summary.cost_output_usd == summary.cost_total_usd


def test_an_edited_prompt_keeps_what_was_out(job: Job) -> None:
    """A batch of the old wording is collected and kept: changing the prompt back asks nothing again."""
    job.provider.polls = 2
    assert job.rows(6).run(NOW).exit_code == ExitCode.WAITING
    assert job.run(prompt="Again: {{ text }}").exit_code == ExitCode.DONE
    assert job.run(prompt="{{ text }}").requests == 0
    assert set(job.provider.submitted.values()) == {1}


def test_fresh_does_not_forget_open_batches(job: Job) -> None:
    """--fresh with open batches names them and their money; --yes does it."""
    job.provider.polls = 9
    job.rows(4).run(NOW)
    with pytest.raises(ConfirmError, match="batch_0"):
        job.run(RunOptions(fresh=True, wait="0"))
    assert job.run(RunOptions(fresh=True, yes=True, wait="0")).exit_code == ExitCode.WAITING
    assert set(job.provider.submitted.values()) == {2}


def test_retry_gives_up_a_batch_that_never_ends(job: Job) -> None:
    """`retry --only in_batch` asks what is out again; what the batch brings later is not collected."""
    job.provider.polls = 99
    assert job.rows(4).run(NOW).exit_code == ExitCode.WAITING
    summary = job.run(RunOptions(retry=frozenset({"in_batch"}), engine="local"))
    assert (summary.exit_code, summary.ok) == (ExitCode.DONE, 4)
    assert set(job.provider.live.values()) == {1}
    with pytest.raises(UserError, match="nothing to retry: no question is out in a batch"):
        job.run(RunOptions(retry=frozenset({"in_batch"}), engine="local"))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"endpoint": "local"}}, "a batch needs model.endpoint openrouter"),
        ({"model": {"endpoint": "openrouter", "name": "m", "fallbacks": ["n"]}}, "a batch asks one model"),
        ({"model": {"endpoint": "openrouter", "name": "m", "params": {"plugins": []}}}, "a batch runs no plugins"),
        (
            {"model": {"endpoint": "openrouter", "name": "m", "params": {"provider": {"zdr": True, "only": ["a"]}}}},
            "a batch can't obey provider.zdr",
        ),
        (
            {"model": {"endpoint": "openrouter", "name": "m", "params": {"web_search_options": {}}}},
            "a batch takes no web_search_options",
        ),
        ({"engine": {"batch": {"wait": "soon"}}}, "engine.batch.wait must be 0 or a time"),
        ({"engine": {"batch": {"size": 5_001}}}, "OpenRouter takes at most 5,000 questions in a batch, not 5,001"),
    ],
)
def test_what_no_batch_takes_is_a_mistake(tmp_path: Path, provider: Provider, sections: Any, message: str) -> None:  # noqa: ANN401
    """It is named with its position before anything is sent."""
    job = Job(tmp_path / "job", provider).rows(2)
    with pytest.raises(JobFileError, match=message):
        job.run(**sections)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_batches_on_the_simulator(tmp_path: Path, dialect: str) -> None:
    """`--engine batch` on the simulator gives the answers of a live run at half its price, in both dialects."""
    outputs, costs = [], []
    openai = {"batch_api": "openai", "price": {"prompt": 0.15, "completion": 0.6, "batch": HALF}}
    for engine in ("local", "batch"):
        job = Job(tmp_path / engine, Provider()).rows(7)
        model = {"endpoint": "simulator", "name": "sim/good", "params": {"max_tokens": 100}} | (
            openai if dialect == "openai" else {}
        )
        summary = job.run(model=model, engine=engine)
        assert (summary.exit_code, summary.ok) == (ExitCode.DONE, 7), job.said
        outputs.append((job.folder / "out.csv").read_bytes())
        costs.append(Decimal(summary.cost_usd))
    assert outputs[0] == outputs[1]
    assert costs[0] == 2 * costs[1]


def test_the_simulator_refuses_what_openrouter_refuses() -> None:
    """A key behind `requests`, a custom_id twice, and deleting a batch that runs; a good batch gets 202."""
    simulator = Simulator(Config(latency=(0, 100)))

    def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:  # noqa: ANN401  (JSON)
        headers = {"authorization": "Bearer k"}
        reply = asyncio.run(simulator.answer(Request(method, f"/api/v1/{path}", headers, json.dumps(body).encode())))
        return reply.status, json.loads(reply.body)

    one = {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "x"}]}}
    head = {"endpoint": "/v1/chat/completions", "model": "sim/good"}
    assert ask("POST", "batches", {"requests": [one], **head})[0] == 400
    assert ask("POST", "batches", {**head, "requests": [one, one]})[0] == 400
    status, batch = ask("POST", "batches", {**head, "requests": [one]})
    assert (status, batch["status"]) == (202, "in_progress")
    assert ask("DELETE", f"batches/{batch['id']}")[0] == 409


def test_open_batches_and_batch_prices_are_shown(tmp_path: Path, provider: Provider, command: Command) -> None:
    """`status` names an open batch with its questions and its money; `preview` asks none of them again."""
    job = Job(tmp_path / "job", provider).rows(4)
    provider.polls = 9
    job.run(NOW)
    waiting = command(str(job.folder / "job.yaml"), "--wait", "0")
    assert waiting.code == ExitCode.WAITING
    assert "  waiting for 4 questions in 1 batch (batch_0)" in waiting.err
    status = command("status", str(job.folder / "job.yaml"))
    assert "batch 1 is out (batch_0): 4 questions" in status.out
    preview = command("preview", str(job.folder / "job.yaml"))
    assert (
        "4 rows: 4 out in a batch, 0 to ask; 0 requests\nNothing to do: the open rows are out in a batch" in preview.out
    )
    assert "row 2 is out in a batch" in command("preview", str(job.folder / "job.yaml"), "--row", "2").out
    checked = command("check", str(job.folder / "job.yaml"))
    assert "4 rows: 4 out in a batch, 0 to ask; 0 requests" in checked.out
    job.rows(5)
    preview = command("preview", str(job.folder / "job.yaml"))
    assert "5 rows: 4 out in a batch, 1 to ask; 1 request\n" in preview.out
    job.rows(4)
    provider.polls = 1
    done = command(str(job.folder / "job.yaml"), "--wait", "0")
    assert done.code == 0
    report = next(line for line in done.err.splitlines() if " report " in line)
    assert "--wait" not in report
    assert "with --engine batch: $1.5 for prompts, $4.5 for answers per million tokens" in preview.out


LABELS = {"columns": {"label": ["good", "bad"]}}


def saying(text: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what lets a provider write this text in each line."""

    def alter(line: dict[str, Any]) -> dict[str, Any]:
        line["response"]["body"]["choices"][0]["message"]["content"] = text
        return line

    return alter


@pytest.mark.parametrize("other", [{"columns": {"label": ["positive", "negative"]}}, None])
def test_answers_are_read_by_the_job_that_asked_for_them(job: Job, other: Any) -> None:  # noqa: ANN401  (JSON)
    """A batch that is out while `answer` is edited is judged by its own labels: changing them back asks nothing."""
    job.provider.alter = saying('{"label": "good"}')
    assert job.rows(3).run(NOW, answer=LABELS).exit_code == ExitCode.WAITING
    others = job.run(NOW, answer=other)
    assert "  label  " not in closing_lines(others, job.folder), "a column without any answer yet"
    summary = job.run(answer=LABELS)
    assert (summary.exit_code, summary.ok) == (ExitCode.DONE, 3), job.said
    assert job.output["label"].to_list() == ["good"] * 3
    assert set(job.provider.submitted.values()) == {1}
    books_are_exact(job, summary)


def test_an_answer_that_does_not_fit_its_own_labels_is_no_answer(job: Job) -> None:
    """A job that was edited to take any text takes no label that the batch was not asked for."""
    job.provider.alter = saying('{"label": "perhaps"}')
    assert job.rows(3).run(NOW, answer=LABELS).exit_code == ExitCode.WAITING
    job.run(NOW, answer=None)
    job.provider.alter = saying('{"label": "good"}')
    assert job.run(answer=LABELS).ok == 3
    assert job.output["label"].to_list() == ["good"] * 3


def test_a_batch_of_another_endpoint_is_left_alone(job: Job) -> None:
    """After an edit of model.endpoint its ids mean nothing to the new server; a run with the old one collects it."""
    job.provider.polls = 2
    before = job.rows(3).run(NOW)
    model = job.sections["model"]
    assert before.exit_code == ExitCode.WAITING
    with serving(Provider()) as other:
        new = model | {"endpoint": other.url + model["endpoint"].removeprefix(job.provider.url)}
        assert job.run(RunOptions(yes=True), model=new).exit_code == ExitCode.DONE, job.said
        assert not any("gone" in line for line in job.said)
        assert job.said[-1] == "1 batch of another endpoint left alone (batch_0): a run with it collects"
    summary = job.run(model=model)
    assert (summary.exit_code, summary.ok) == (ExitCode.DONE, 3), job.said
    assert set(job.provider.submitted.values()) == {1}
    assert Decimal(summary.cost_total_usd) * 10**12 == job.provider.billed + other.billed


def test_another_model_in_the_job_file_is_asked_and_paid_as_such(job: Job) -> None:
    """After an edit of model.name the next batch names the new model, and the one that is out costs its own price."""
    assert job.rows(4).run(NOW).exit_code == ExitCode.WAITING
    model = job.sections["model"] | {"name": "maker/other"}
    if "price" in model:
        model["price"] = {"prompt": 6, "completion": 18, "batch": {"prompt": 3, "completion": 9}}
    summary = job.run(RunOptions(yes=True), model=model)
    assert summary.exit_code == ExitCode.DONE, job.said
    assert [batch.model for batch in job.provider.batches.values()] == [MODEL, "maker/other"]
    with Checkpoint.open(job.folder / ".batchrun" / "job.sqlite") as checkpoint:
        first = checkpoint.runs()[-1]
    assert first.cost == 4 * LIVE_COST // 2


def test_the_output_does_not_wait_for_a_batch_of_an_earlier_prompt(job: Job) -> None:
    """All rows of the new prompt are answered: the output is written, and later runs still collect the old batch."""
    job.provider.polls = 4
    assert job.rows(4).run(NOW).exit_code == ExitCode.WAITING
    assert job.run(RunOptions(engine="local", yes=True), prompt="Again: {{ text }}").exit_code == ExitCode.DONE
    assert (job.folder / "out.csv").exists()
    (job.folder / "out.csv").unlink()
    waiting = job.run(NOW)
    assert (waiting.exit_code, waiting.pending) == (ExitCode.WAITING, 0)
    assert job.output["status"].to_list() == ["ok"] * 4
    assert waiting.commands[0][1] == "collects what the provider has answered"
    done = job.run()
    assert done.exit_code == ExitCode.DONE
    books_are_exact(job, done)


def test_the_command_that_collects_after_a_live_run_names_the_engine(job: Job) -> None:
    """A live run leaves batches alone, so what it prints as the next command is a batch run."""
    job.provider.polls = 2
    job.rows(3).run(NOW)
    live = job.run(RunOptions(engine="local"))
    assert live.exit_code == ExitCode.WAITING
    assert live.next == f"batchrun {job.folder / 'job.yaml'} --engine batch"
    assert job.run(RunOptions(engine="batch")).exit_code == ExitCode.DONE
    assert job.run(RunOptions(limit=2, wait="0", engine="batch")).next is None


@pytest.mark.parametrize("fresh", [True, False])
def test_a_batch_that_was_given_up_stays_reserved_for_the_day(job: Job, fresh: bool) -> None:  # noqa: FBT001
    """The provider runs it and bills it: under a cap for a day nothing else is asked in its place."""
    job.provider.polls = 99
    day = {"max_cost_usd": {"day": 8 * LIVE_COST / 10**12}}
    job.rows(6).run(NOW, limits=day)
    out = job.provider.submitted.total()
    assert out == 6
    again = RunOptions(wait="0", fresh=True, yes=True) if fresh else RunOptions(wait="0", retry=frozenset({"in_batch"}))
    job.run(again)
    cap = day["max_cost_usd"]["day"] * 10**12
    assert job.provider.submitted.total() * LIVE_COST // 2 <= cap
    with Checkpoint.open(job.folder / ".batchrun" / "job.sqlite") as checkpoint:
        today = utc_day(time.time())
        assert checkpoint.spent(day=today) + checkpoint.leased(today) + checkpoint.batches.reserved(day=today) <= cap
    assert job.provider.submitted.total() < 2 * out


RUNS_OF_ONE_PROGRAM = """
import threading
import batchrun, polars as pl
from openrouter.batches import MODEL, Provider, serving
price = {"prompt": 3, "completion": 9, "batch": {"prompt": 1.5, "completion": 4.5}}
with serving(Provider()) as provider:
    model = {"endpoint": provider.url + "/v1", "name": MODEL, "batch_api": "openai", "price": price}
    for number in range(4):
        found = []
        job = {"prompt": f"{number} {{{{ text }}}}", "model": model}
        rows = pl.DataFrame({"text": ["a"]})
        thread = threading.Thread(target=lambda: found.append(batchrun.check(job, rows)))
        thread.start()
        thread.join()
        assert not found[0].mistakes, found
    for number in range(4):
        rows = pl.DataFrame({"text": [f"{number}"]})
        job = {"prompt": "{{ text }}", "model": model, "engine": "batch", "checkpoint": f"{number}.sqlite"}
        codes = [batchrun.run(job, rows, wait=0).exit_code for _ in range(2)]
        assert codes == [6, 0], codes
"""


def test_one_program_checks_in_threads_and_runs_several_jobs_in_batches(tmp_path: Path) -> None:
    """Where the first request of a process is sent from a thread that ends, later ones still work."""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}", "XDG_CACHE_HOME": str(tmp_path)}
    arguments = [sys.executable, "-c", RUNS_OF_ONE_PROGRAM]
    ended = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
