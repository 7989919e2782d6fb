"""The command line for tests, in this process: arguments in, exit code and both streams out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from simulator_server import Running, running

from batchrun.__main__ import _guarded

KEY = "sk-or-v1-canary-4711"
JOB = """\
input:
  path: rows.csv
prompt:
  system: You label.
  user: "Review: {{ text }}"
model:
  endpoint: openrouter
  name: openai/gpt-4o-mini
answer:
  columns: {label: [good, bad]}
output:
  path: out.csv
"""
ROWS = "id,text\n1,fine\n2,bad\n3,fine\n4,\n"


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return what runs `batchrun ARGUMENTS` in an empty folder of its own, with a key and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENROUTER_API_KEY", KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Signals belong to the test runner.
    monkeypatch.setattr("batchrun.cli.termination.raise_on_termination", lambda: None)

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        try:
            code = _guarded(list(arguments))
        except SystemExit as ended:
            code = int(ended.code or 0)
        streams = capsys.readouterr()
        return Ended(code, streams.out, streams.err)

    return run


@pytest.fixture(scope="session")
def simulator() -> Iterator[Running]:
    """Serve one simulator for all tests."""
    with running() as server:
        yield server


@pytest.fixture
def openrouter(simulator: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    """Put the simulator in OpenRouter's place, with fresh books."""
    simulator.reset()
    monkeypatch.setattr("batchrun.api.endpoints.OPENROUTER_URL", simulator.url)
    return simulator


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Write a job of four rows: two are equal, one has no text."""
    (tmp_path / "rows.csv").write_text(ROWS)
    file = tmp_path / "job.yaml"
    file.write_text(JOB)
    return file


def files(folder: Path) -> dict[str, int]:
    """Return what lies in a folder with its sizes, without what SQLite keeps beside a file that is read."""
    return {
        str(file.relative_to(folder)): file.stat().st_size
        for file in folder.rglob("*")
        if file.is_file() and not file.name.endswith(("-shm", "-wal")) and "cache" not in file.parts
    }
