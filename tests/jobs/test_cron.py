"""The page on cron and systemd: its lines are run as written, with nothing changed but paths and the monitor."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash.harness import environment, write_job
from crash.ledger import Ledger, serving

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "cron.md"
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
CRONTAB = [line for kind, text in BLOCKS for line in text.splitlines() if not kind and line.startswith("0 3 * * *")]
UNITS = [text for kind, text in BLOCKS if kind == "ini"]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with serving(Ledger()) as server:
        yield server


def programs(folder: Path) -> Path:
    """Make the two programs of the page: batchrun, and a curl that notes that it was called."""
    folder.mkdir()
    (folder / "batchrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m batchrun "$@"\n')
    (folder / "curl").write_text(f'#!/bin/sh\necho "$@" >> {folder}/pinged\n')
    for name in ("batchrun", "curl"):
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("line", CRONTAB, ids=["plain", "ping"])
def test_crontab_lines_run_as_written(tmp_path: Path, ledger: Ledger, line: str) -> None:
    """A line runs in cron's poor environment; the ping comes after a good end alone; only new rows are asked."""
    jobs, bin_ = tmp_path / "jobs", programs(tmp_path / "bin")
    write_job(jobs, ledger.url, ["a", "b", "bad c"])
    (jobs / "job.yaml").rename(jobs / "reviews.yaml")
    command = line.split(None, 5)[5].replace("/srv/jobs", str(jobs)).replace("/srv/venv/bin", str(bin_))
    assert "%" not in command, "cron would end the line there"
    poor = {"PATH": f"{bin_}:/usr/bin:/bin"} | {k: v for k, v in environment().items() if k == "PYTHONPATH"}

    def night() -> int:
        return subprocess.run(["/bin/sh", "-c", command], env=poor, cwd="/", check=False).returncode

    assert night() == 1
    assert "1 failed" in (jobs / "reviews.log").read_text()
    assert not (bin_ / "pinged").exists()
    write_job(jobs, ledger.url, ["a", "b", "c"])
    (jobs / "job.yaml").rename(jobs / "reviews.yaml")
    said = (jobs / "reviews.log").read_text()
    assert night() == 0
    assert (jobs / "reviews.log").read_text() == said, "a good night is silent"
    assert (bin_ / "pinged").exists() == ("curl" in line)
    assert set(ledger.received.values()) == {1}
    before = sum(ledger.received.values())
    write_job(jobs, ledger.url, ["new 1", "c", "a", "b", "new 2"])
    (jobs / "job.yaml").rename(jobs / "reviews.yaml")
    assert night() == 0
    assert sum(ledger.received.values()) == before + 2, "rows were added and moved: the new ones alone are asked"


def test_units_are_valid(tmp_path: Path) -> None:
    """The service and the timer have no flaw that systemd finds; the service has what the page explains."""
    service, timer = UNITS
    for word in ("Type=oneshot", "SuccessExitStatus=6 75", "TimeoutStartSec=infinity"):
        assert word in service
    stop = re.search(r"TimeoutStopSec=(\d+)", service)
    assert stop is not None
    assert int(stop[1]) > 120, "above the default grace"
    assert "[Timer]" in timer
    if shutil.which("systemd-analyze") is None:
        print("\nthe units are not verified: systemd-analyze is missing")  # noqa: T201  (who reads the log should know)
        pytest.skip("systemd-analyze is missing")
    (tmp_path / "reviews.service").write_text(service.replace("/srv/venv/bin/batchrun", sys.executable))
    (tmp_path / "reviews.timer").write_text(timer)
    files = [str(tmp_path / "reviews.service"), str(tmp_path / "reviews.timer")]
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False)
    assert "reviews" not in done.stderr.replace("reviews.service: Command /usr/bin/curl is not executable", ""), done


def test_the_service_command_runs(tmp_path: Path, ledger: Ledger) -> None:
    """ExecStart runs as written, without a shell, a terminal or a home."""
    job = write_job(tmp_path / "jobs", ledger.url, ["a", "b"])
    bin_ = programs(tmp_path / "bin")
    line = next(line for line in UNITS[0].splitlines() if line.startswith("ExecStart="))
    words = line.removeprefix("ExecStart=").replace("/srv/venv/bin", str(bin_)).split()
    words[-1] = words[-1].replace("/srv/jobs/reviews.yaml", str(job.path))
    poor = {"PATH": "/usr/bin:/bin"} | {k: v for k, v in environment().items() if k == "PYTHONPATH"}
    done = subprocess.run(words, env=poor, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert job.output.exists()
