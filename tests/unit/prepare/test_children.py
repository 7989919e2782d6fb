"""Children: our servers start, are watched, and end with us."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from batchrun.errors import SenderError
from batchrun.prepare import children

STARTER = """
import sys, time
from batchrun.prepare import children
with children.simulator() as child:
    print(child.url, child._process.pid, flush=True)
    time.sleep(60)
"""


def script(folder: Path, text: str) -> str:
    """Write a module that stands for a server; gives its name."""
    (folder / "stand_in.py").write_text(text, encoding="utf-8")
    return "stand_in"


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose modules the child can run."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_simulator_serves_and_ends() -> None:
    """The simulator answers at its address within the block, and is gone after it."""
    with children.simulator(["--seed", "3"]) as child:
        assert httpx.get(f"{child.url}/models", headers={"Authorization": "Bearer x"}).status_code == 200
    assert not child.alive


def test_child_has_a_process_group_of_its_own() -> None:
    """A Ctrl-C in the terminal does not reach the child: what is in flight is finished first."""
    with children.simulator() as child:
        assert os.getpgid(child._process.pid) != os.getpgid(0)


def test_death_is_reported_with_last_words(on_path: Path) -> None:
    """A child that ends before it is ready is reported at once, with what it said last."""
    module = script(on_path, "import sys\nfor n in range(30): print('line', n, file=sys.stderr)\nsys.exit('no model')")
    with pytest.raises(SenderError) as caught, children.started("the server", ["-m", module]):
        pass
    words = str(caught.value).splitlines()
    assert words[0] == "the server did not start:"
    assert words[-1] == "no model"
    assert len(words) <= 13


def test_slow_start_ends(on_path: Path) -> None:
    """A child that is not ready in time is ended, whatever it does."""
    module = script(on_path, "import sys\nsys.stdin.read()")
    with pytest.raises(SenderError, match=r"was not ready within 0\.1 s"), children.started("it", ["-m", module], 0.1):
        pass


@pytest.mark.parametrize("line", ["ready", "{}", "[]", "null", '{"url": ""}'])
def test_other_first_lines(on_path: Path, line: str) -> None:
    """A child that says something else than its address is not a server."""
    module = script(on_path, f"import sys\nprint({line!r}, flush=True)\nsys.stdin.read()")
    with pytest.raises(SenderError, match="did not start"), children.started("it", ["-m", module]):
        pass


def test_chatter_does_not_block_the_child(on_path: Path) -> None:
    """A child may say far more than a pipe holds, on both streams, and still ends in good order."""
    module = script(
        on_path,
        "import sys\n"
        'print(\'{"url": "http://x"}\', flush=True)\n'
        "for _ in range(4000): print('x' * 99); print('y' * 99, file=sys.stderr)\n"
        "print('done', file=sys.stderr, flush=True)\n"
        "sys.stdin.read()\n",
    )
    with children.started("it", ["-m", module]) as child:
        assert child.url == "http://x"
    assert child._process.returncode == 0
    assert child._last[-1] == "done"


def test_working_directory_can_not_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the working directory that is called like a module of ours or of Python is not run."""
    for name in ("json", "socket", "batchrun"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hijacked')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with children.simulator() as child:
        assert child.alive


def test_child_ends_when_we_are_killed() -> None:
    """SIGKILL of the parent leaves no server behind."""
    parent = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    with parent, parent.stdout:
        url, pid = parent.stdout.readline().split()
        parent.kill()
    assert url.startswith("http://127.0.0.1:")
    assert gone(int(pid))


def gone(pid: int) -> bool:
    """Wait, within bounds, until a process of ours has ended."""
    for _ in range(500):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":  # ended, and nobody here is its parent
            return True
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return False
