"""The command that a run's last line offers is the one that was run: quoted, with its flags."""

import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Command, command  # noqa: F401  (a fixture)
from job_running import run, write_job

from batchrun.job import RunOptions, command_line


def offered(err: str) -> list[str]:
    """Return the words of the command in the last line of stderr."""
    found = re.search("`(.*)`", err.rstrip().split("\n")[-1])
    assert found, err
    return shlex.split(found[1])


def test_the_next_command_keeps_endpoint_cap_and_limit(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """Pasted, the last line asks the next ten rows of the same server, under the same cap; then the last ones."""
    write_job(tmp_path, "openrouter", rows=25).rename(tmp_path / "my job.yaml")
    words = ["my job.yaml", "--endpoint", "simulator", "--max-cost", "0.01", "--limit", "10"]
    for asked in (10, 20):
        ended = command(*words)
        assert ended.code == 0, ended.err
        assert f"{asked} ok, 0 failed, {25 - asked} pending" in ended.err
        program, *words = offered(ended.err)
        assert program == "batchrun"
        assert sorted(words) == sorted(
            ["my job.yaml", "--endpoint", "simulator", "--max-cost", "0.01", "--limit", "10"]
        )
    assert "25 ok" in command(*words).err


def test_a_fresh_start_is_not_offered_again(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """--fresh and --yes have had their effect: pasted again they would pay for everything a second time."""
    write_job(tmp_path, "openrouter", rows=4)
    ended = command("job.yaml", "--endpoint", "simulator", "--fresh", "--yes", "--limit", "1")
    assert offered(ended.err) == ["batchrun", "job.yaml", "--endpoint", "simulator", "--limit", "1"]


@pytest.mark.parametrize("name", ["a b.yaml", "it's.yaml", "-x.yaml", "$HOME.yaml", "jobs/ä;rm.yaml"])
def test_file_names_survive_a_shell(name: str) -> None:
    """Whatever a job file is called, the command names it and nothing else."""
    words = shlex.split(command_line(name, RunOptions(output=Path("out put.csv")), "retry"))
    assert words == ["batchrun", "retry", f"./{name}" if name[0] == "-" else name, "--output", "out put.csv"]


def test_one_row_is_one_row(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """A single row, request and answer are written in the singular."""
    write_job(tmp_path, "openrouter", rows=1)
    said = command("job.yaml", "--endpoint", "simulator").err
    assert "1 row: 1 ok" in said
    assert "1 request in" in said
    assert "1 rows" not in said
    assert "1 requests" not in said


def test_a_handler_from_c_does_not_break_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where C code handles a signal, Python knows no handler; the run ends as ever."""
    known: Callable[[int], object] = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGHUP else known(number))
    before = known(signal.SIGHUP)
    try:
        assert run(write_job(tmp_path, "simulator", rows=2)).summary.ok == 2
    finally:
        signal.signal(signal.SIGHUP, before)  # type: ignore[arg-type]
