"""The lock: one run of a job at a time, however the last one ended."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from batchrun.checkpoint import lock
from batchrun.errors import BusyError, StorageError

HOLDER = """
import sys
from pathlib import Path
from batchrun.checkpoint import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_run_learns_who_holds_it(tmp_path: Path) -> None:
    """Another process is refused at once with pid, host and time of the holder; SIGKILL of the holder frees it."""
    path = tmp_path / "new" / "x.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError, match=rf"pid {holder.pid} on .+, since \d{{4}}-.* UTC"), lock(path):
            pytest.fail("two hold it")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with lock(path):
        held = json.loads((tmp_path / "new" / "x.sqlite.lock").read_bytes())
        assert held["pid"] == os.getpid()
    assert stat.S_IMODE((tmp_path / "new" / "x.sqlite.lock").stat().st_mode) == 0o600


def test_one_process_is_not_an_exception(tmp_path: Path) -> None:
    """Two runs in one process exclude each other too, and the lock is free again after each."""
    path = tmp_path / "x.sqlite"
    for _ in range(2):
        with lock(path), pytest.raises(BusyError), lock(path):
            pytest.fail("two hold it")


def test_unreadable_holder_is_still_busy(tmp_path: Path) -> None:
    """A lock file with nonsense in it is not a lock, and names itself while it is held."""
    file = tmp_path / "x.sqlite.lock"
    file.write_bytes(b"\xff nonsense")
    with lock(tmp_path / "x.sqlite"):
        file.write_bytes(b"[]")
        with pytest.raises(BusyError, match="pid unknown"), lock(tmp_path / "x.sqlite"):
            pytest.fail("two hold it")


def test_files_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without kernel locks the run is refused, never guarded by a file that a killed process leaves behind."""

    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(StorageError, match="Function not implemented"), lock(tmp_path / "x.sqlite"):
        pytest.fail("held without a lock")
