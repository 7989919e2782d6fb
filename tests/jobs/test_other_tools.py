"""The checkpoint is public: other people's tools read it through the view `results`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from job_running import run, write_job
from simulator_server import running

BIN = Path(sys.executable).parent


def printed(*command: str) -> str:
    """Run a tool that stands beside our own command, and give what it prints."""
    done = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return the checkpoint of a job of which one row was left out and the others were answered."""
    with running() as simulator:
        job = write_job(tmp_path, simulator.url, rows=4, input={"where": "text <> 'text 2'"})
        return Path(run(job).summary.checkpoint)


def test_sqlite_utils_reads_the_results(checkpoint: Path) -> None:
    """`sqlite-utils rows CHECKPOINT results` gives a row of the view for each row of the input, in order."""
    rows = json.loads(printed("sqlite-utils", "rows", str(checkpoint), "results"))
    assert [(row["position"], row["status"]) for row in rows] == [(0, "ok"), (1, "ok"), (2, "skipped"), (3, "ok")]
    assert json.loads(rows[0]["answer"]).keys() == {"label", "score"}
    assert rows[0]["cost_usd"] > 0


def test_datasette_serves_the_results(checkpoint: Path) -> None:
    """Datasette opens the checkpoint as it is and serves the view."""
    query = f"/{checkpoint.stem}/results.json?_shape=array&_size=10"
    rows = json.loads(printed("datasette", "--get", query, str(checkpoint)))
    assert [row["status"] for row in rows] == ["ok", "ok", "skipped", "ok"]
