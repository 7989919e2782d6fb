"""A process that has imported the whole package and forks one child for each command: a start costs milliseconds.

Each child is a real process with its own files and streams, and can be killed at any moment. Requests come over a Unix
socket as one line of JSON; the answers are two lines: the child's pid at once, its exit status when it ends.
"""

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from oracle import sizes

PATIENCE = 60.0
"""Seconds without a word after which a command hangs."""

_INTERNAL = 97
"""The exit status of a child that could not even begin."""


@dataclass(frozen=True)
class Ended:
    """What a command left: exit status (negative: the signal that killed it) and both streams."""

    code: int
    out: str
    err: str


class Started:
    """A command that is running."""

    def __init__(self, connection: socket.socket, folder: Path) -> None:
        self._connection, self._folder = connection, folder
        self._lines = connection.makefile("r")
        self.pid = int(self._lines.readline())

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send SIGKILL, or another signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for the end. Raises AssertionError where it does not come, and ends the command then."""
        try:
            code = int(self._lines.readline())
        except TimeoutError:
            self.kill()
            raise AssertionError(f"the command hangs; it said: {self._read('stderr')}") from None
        self._lines.close()
        self._connection.close()
        return Ended(code, self._read("stdout"), self._read("stderr"))

    def _read(self, name: str) -> str:
        return (self._folder / name).read_text("utf-8", "replace")


class Zygote:
    """The test's side: starts commands."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._number = 0

    def start(self, arguments: list[str], cwd: Path, values: dict[str, Any], days: int = 0) -> Started:
        """Start `batchrun ARGUMENTS` in a folder with these sizes."""
        self._number += 1
        streams = Path(self._address).parent / f"{self._number}"
        streams.mkdir()
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(self._address)
        request = {"arguments": arguments, "cwd": str(cwd), "streams": str(streams), "sizes": values, "days": days}
        connection.sendall(json.dumps(request).encode() + b"\n")
        return Started(connection, streams)

    def run(self, arguments: list[str], cwd: Path, values: dict[str, Any], days: int = 0) -> Ended:
        """Start a command and wait for its end."""
        return self.start(arguments, cwd, values, days).wait()


@contextlib.contextmanager
def zygote() -> Iterator[Zygote]:
    """Run a zygote; `ORACLE_PACKAGE` names a folder whose copy of the package is used in place of the installed one."""
    with tempfile.TemporaryDirectory(prefix="zygote-", dir=fast_folder()) as folder:
        address = f"{folder}/socket"
        # Polars' allocator starts threads at import unless it is told not to; what forks must have none.
        environment = {**os.environ, "_RJEM_MALLOC_CONF": "background_thread:false", "POLARS_MAX_THREADS": "2"}
        environment["OPENBLAS_NUM_THREADS"] = "1"  # numpy, which Polars imports where it is installed, starts more
        # One certificate: a client that reads all of the system's takes longer than many a life's requests.
        trustme.CA().cert_pem.write_to_path(f"{folder}/certificate.pem")
        environment |= {"SSL_CERT_FILE": f"{folder}/certificate.pem", "SSL_CERT_DIR": folder}
        tests = str(Path(__file__).resolve().parents[1])
        support = str(Path(tests, "support"))
        package = os.environ.get("ORACLE_PACKAGE")
        environment["PYTHONPATH"] = os.pathsep.join([package, tests, support] if package else [tests, support])
        command = [sys.executable, "-m", "oracle.zygote", address]
        with subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                yield Zygote(address)
            finally:
                process.terminate()


def fast_folder() -> str | None:
    """Return a folder in memory where there is one: a life commits hundreds of times."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  (each life has a private folder in it)


def serve(address: str) -> None:
    """Fork for each request; ends with SIGTERM."""
    sizes.load_all()
    if package := os.environ.get("ORACLE_PACKAGE"):
        assert sizes.module("batchrun").__file__ == f"{package}/batchrun/__init__.py", "another copy was imported"
    sizes.check()
    found = sizes.threads()
    if len(found) > 1:
        raise RuntimeError(f"a process with threads must not fork: {found}")
    gc.freeze()  # what a child's collector does not touch stays shared
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, socket.socket] = {}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    with selectors.DefaultSelector() as selector:
        selector.register(listening, selectors.EVENT_READ)
        selector.register(reading, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == reading:
                    os.read(reading, 512)
                    _reap(children)
                else:
                    connection, _ = listening.accept()
                    with connection.makefile("r") as lines:
                        request = json.loads(lines.readline())
                    pid = os.fork()
                    if not pid:
                        _child(request)
                    children[pid] = connection
                    connection.sendall(b"%d\n" % pid)


def _reap(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        connection = children.pop(pid)
        with contextlib.suppress(OSError):
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        connection.close()


def _child(request: dict[str, Any]) -> None:
    """Become the command: streams, folder and sizes, then its main(). Never returns."""
    code = _INTERNAL
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.chdir(request["cwd"])
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            opened = os.open(f"{request['streams']}/{name}", os.O_WRONLY | os.O_CREAT)
            os.dup2(opened, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.closerange(3, 64)
        os.environ.update(XDG_CACHE_HOME=request["cwd"], NO_COLOR="1")
        sizes.apply(request["sizes"], request["days"])
        sys.argv = ["batchrun", *request["arguments"]]
        from batchrun.__main__ import main  # noqa: PLC0415  (the package is not imported on the test's side)

        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else bool(ended.code)
    except BaseException:  # noqa: BLE001  (the child must not come back into the zygote's loop)
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    serve(sys.argv[1])
