"""What `status` says of a job that is running, was killed, or was edited since."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash.harness import DONE, CrashJob, ended, write_job
from crash.ledger import Ledger, serving


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with serving(Ledger()) as server:
        yield server


def facts(job: CrashJob) -> dict[str, object]:
    found = json.loads(job.said_by("status", "--json"))
    return {name: found[name] for name in ("running", "job_changed", "input_changed")}


def test_a_run_that_is_running_is_distinguished_from_a_killed_one(tmp_path: Path, ledger: Ledger) -> None:
    """While the lock is held status names pid and start; afterwards it says that the run was killed."""
    job = write_job(tmp_path, ledger.url, [f"text {number}" for number in range(50)])
    said: list[str] = []
    process = job.start()

    def event() -> None:
        if ledger.answered.total() == 20:
            ledger.on_event = None
            said.append(job.said_by("status"))
            os.kill(process.pid, signal.SIGKILL)

    ledger.on_event = event
    ended(process)
    assert f"running now (pid {process.pid} on " in said[0]
    assert "UTC: running now, " in said[0]
    after = job.said_by("status")
    assert "running" not in after
    assert "was killed" in after
    assert facts(job)["running"] is None


def test_an_edit_since_the_last_run_is_said(tmp_path: Path, ledger: Ledger) -> None:
    """After an edit of the job file or its input status says that it shows what was before."""
    job = write_job(tmp_path, ledger.url, ["a", "b"])
    assert job.run().code == DONE
    assert facts(job) == {"running": None, "job_changed": False, "input_changed": False}
    with (tmp_path / "rows.csv").open("a") as file:
        file.write("2,c,note\n")
    assert facts(job)["input_changed"] is True
    assert "the input changed since run 1" in job.said_by("status")
    assert job.run().code == DONE
    assert facts(job)["input_changed"] is False
    job.path.write_text(job.path.read_text().replace("{{ text }}", "Say {{ text }}"))
    assert facts(job) == {"running": None, "job_changed": True, "input_changed": False}
    assert "the job file changed since run 2" in job.said_by("status")
