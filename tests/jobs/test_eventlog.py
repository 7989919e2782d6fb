"""The log for machines: its events, and what is never in it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, command
from job_running import KEY, run, write_job
from simulator_server import running

from batchrun.errors import BatchrunError, InputError, StorageError, UserError
from batchrun.job import RunOptions
from batchrun.runner.log import EVENTS, event, logged

__all__ = ["command"]


def read(path: Path) -> list[dict[str, Any]]:
    """Read a log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_is_logged_from_its_start_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line has a time, a known name and the facts; a second run is appended, and says that nothing is new."""
    monkeypatch.setattr("batchrun.prepare.plan.YOUNG", 0.0)  # else a file this new is always read again
    log = tmp_path / "log.jsonl"
    with running() as simulator:
        path = write_job(tmp_path, simulator.url, rows=5)
        for _ in range(2):
            with logged(log):
                run(path)
    events = read(log)
    assert [entry["event"] for entry in events] == [
        "run_started", "plan_made", "asking_started", "asking_ended", "output_written", "run_ended",
        "run_started", "plan_made", "nothing_new", "run_ended",
    ]  # fmt: skip
    assert {entry["event"] for entry in events} <= set(EVENTS)
    assert all(entry["time"].endswith("+00:00") for entry in events)
    assert events[2]["questions"] == 5
    assert (events[3]["ok"], events[3]["requests"]) == (5, 5)
    assert events[5]["exit_code"] == 0
    assert events[5]["ok"] == 5


def test_a_stop_and_its_cause_are_reported(tmp_path: Path) -> None:
    """What closes a run is an event with the exit code and the ending's name."""
    log = tmp_path / "log.jsonl"
    with running(require_key="another") as simulator, logged(log):
        run(write_job(tmp_path, simulator.url, rows=5))
    stopped = next(entry for entry in read(log) if entry["event"] == "stopped")
    assert (stopped["exit_code"], stopped["ending"]) == (3, "unauthorized")


def test_no_text_of_rows_models_or_servers_and_no_key_is_in_it(tmp_path: Path) -> None:
    """Prompts, answers and messages of errors stay out, whatever happens to the rows; so does the key."""
    log = tmp_path / "log.jsonl"
    with running(faults={"403-moderated": 0.4, "503:1": 0.3}) as simulator, logged(log):
        path = write_job(tmp_path, simulator.url, rows=[f"canary {number}" for number in range(40)])
        ended = run(path)
        run(path, RunOptions(retry=frozenset()))
    text = log.read_text(encoding="utf-8")
    assert ended.summary.failed
    assert "canary" not in text
    assert KEY not in text
    assert "imulated" not in text
    for message in ended.column("error_message"):
        assert message is None or message not in text


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (UserError("the key's variable KEY is not set"), "the key's variable KEY is not set"),
        (InputError("rows.csv:4: 'canary' is not an integer"), None),
        (UserError("the price is unknown (canary of a server)", quotes_data=True), None),
        (StorageError("canary of another library"), None),
    ],
)
def test_a_problem_before_the_run_is_logged(tmp_path: Path, problem: BatchrunError, message: str | None) -> None:
    """A run that ends without a summary leaves its exit code, its job, and a message that quotes nobody."""
    log = tmp_path / "log.jsonl"
    with pytest.raises(BatchrunError), logged(log, [tmp_path / "job.yaml"]):
        raise problem
    (entry,) = read(log)
    assert (entry["event"], entry["exit_code"]) == ("failed", problem.exit_code)
    assert (entry["problem"], entry["jobs"]) == (type(problem).__name__, [str(tmp_path / "job.yaml")])
    assert entry.get("message") == message
    assert "canary" not in log.read_text(encoding="utf-8")


def test_each_failed_job_of_several_is_logged(tmp_path: Path, command: Command) -> None:
    """Where one of several jobs can't start, its event names that job alone."""
    model = {"name": "sim/good", "api_key_env": None}
    for name in ("a", "b"):
        sections: dict[str, Any] = {"input": {"path": f"{name}.parquet"}, "output": {"path": f"out/{name}.csv"}}
        write_job(tmp_path, "simulator", model=model, **sections).rename(tmp_path / f"{name}.yaml")
    (tmp_path / "rows.parquet").rename(tmp_path / "b.parquet")
    assert command("a.yaml", "b.yaml", "--log", "log.jsonl").code == 2
    (entry,) = [entry for entry in read(tmp_path / "log.jsonl") if entry["event"] == "failed"]
    assert entry["jobs"] == [str(tmp_path / "a.yaml")]


def test_the_flag_writes_the_log(tmp_path: Path, command: Command) -> None:
    """`--log FILE` logs a run, also one that ends with a mistake; a place that can't be written ends it first."""
    (tmp_path / "job.yaml").write_text("nonsense: 1\n", encoding="utf-8")
    assert command("job.yaml", "--log", "log.jsonl").code == 2
    (entry,) = read(tmp_path / "log.jsonl")
    assert (entry["event"], entry["jobs"]) == ("failed", [str(tmp_path / "job.yaml")])
    assert "unknown key nonsense" in entry["message"].replace('"', "")
    ended = command("job.yaml", "--log", "no/such/log.jsonl")
    assert (ended.code, "the log no/such/log.jsonl can't be opened" in ended.err) == (5, True)


def test_a_log_that_fails_never_stops_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    """A full disk ends the log with one line on stderr; later events are lost in silence."""
    with logged(Path("/dev/full")):
        event("nothing_new")
        event("nothing_new")
    assert capsys.readouterr().err.count("can't be written any more") == 1


def test_a_log_that_cant_be_opened_is_reported(tmp_path: Path) -> None:
    """A missing folder is a problem at the start, not a traceback of logging."""
    with pytest.raises(StorageError, match="can't be opened"), logged(tmp_path / "no" / "log"):
        raise AssertionError("nothing runs")


def test_without_a_log_nothing_is_configured(tmp_path: Path) -> None:
    """Logging of the program around us is left as it was, during and after."""
    before = (logging.root.handlers[:], logging.root.level)
    with logged(None):
        event("nothing_new")
    with logged(tmp_path / "log"):
        assert (logging.root.handlers[:], logging.root.level) == before
    logger = logging.getLogger("batchrun.events")
    assert (logger.handlers, logger.level, logger.propagate) == ([], logging.NOTSET, True)


def test_only_known_names_are_logged() -> None:
    """The names are a public list; a typing mistake in one can't get out."""
    with pytest.raises(ValueError, match="unknown event"):
        event("run_endet")
