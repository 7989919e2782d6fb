"""Programs as processes that start in milliseconds: each is forked from a process that has imported the package.

Importing the package takes half a second of a processor, which a test of what a process does need not pay. A forked one
has its own pid, session, streams, folder and environment, and can be killed at any moment. Real starts stay where the
promise is about the start itself: shells, cron, strace, the memory that a process takes.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

BATCHRUN = "from batchrun.__main__ import main; main()"
"""The program of `python -m batchrun`."""

PIPE = 2**14
"""Characters that a pipe takes in before anybody reads."""

MESSAGE = 2**18
"""Bytes; a request holds an environment and a program of a page."""


class Started:
    """A process that runs; what it writes is kept in files until it has ended."""

    def __init__(
        self, arguments: list[str], connection: socket.socket, out: io.BufferedRandom, err: io.BufferedRandom
    ) -> None:
        self._arguments, self._connection, self._streams = arguments, connection, (out, err)
        self.pid = int(connection.recv(MESSAGE))

    def is_running(self) -> bool:
        """Check whether the process has not ended yet."""
        return not select.select([self._connection], [], [], 0)[0]

    def wait(self, timeout: float = 180) -> "subprocess.CompletedProcess[str]":
        """Wait for the end. A process that takes longer than `timeout` seconds is killed, with an AssertionError."""
        hangs = not select.select([self._connection], [], [], timeout)[0]
        if hangs:
            os.killpg(self.pid, signal.SIGKILL)
        code = int(self._connection.recv(MESSAGE))
        self._connection.close()
        said = []
        for stream in self._streams:
            stream.seek(0)
            said.append(stream.read().decode("utf-8", "replace"))
            stream.close()
        assert not hangs, f"{self._arguments} hangs: {said}"
        return subprocess.CompletedProcess(self._arguments, code, *said)


def start(
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str],
    program: str = BATCHRUN,
    input: str = "",  # noqa: A002  (as subprocess.run calls it)
    terminal: int | None = None,
) -> Started:
    """Start a program with arguments and `input` on its standard input, or with a terminal for all three streams."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(_server())
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process's end)
    request = {"arguments": arguments, "cwd": str(cwd), "env": dict(env), "program": program}
    reading, writing = os.pipe()
    assert len(input) < PIPE
    os.write(writing, input.encode())
    os.close(writing)
    streams = [reading, out.fileno(), err.fileno()] if terminal is None else [terminal] * 3
    socket.send_fds(connection, [json.dumps(request).encode()], streams)
    os.close(reading)
    return Started(list(arguments), connection, out, err)


def run(
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str],
    program: str = BATCHRUN,
    input: str = "",  # noqa: A002  (as above)
    terminal: int | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Start a program as above, and wait for its end."""
    return start(*arguments, cwd=cwd, env=env, program=program, input=input, terminal=terminal).wait()


@functools.cache
def _server() -> str:
    """Start the process that forks, one for all tests of this process, and return its socket's address."""
    folder = tempfile.mkdtemp(prefix="forking-")
    address = f"{folder}/socket"
    # Polars' allocator and numpy start threads at import by default; a process that forks must have none.
    environment = os.environ | {"_RJEM_MALLOC_CONF": "background_thread:false", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, __file__, address], env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"

    def stop() -> None:
        process.communicate()
        Path(address).unlink()
        Path(folder).rmdir()

    atexit.register(stop)
    return address


def _serve(address: str) -> None:
    """Fork for each connection, until standard input ends."""
    _import_all()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(address)
    listening.listen(64)
    gc.freeze()  # what a child's collector does not touch stays shared
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
        connection, _ = listening.accept()
        if not os.fork():
            listening.close()
            _keep(connection)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _import_all() -> None:
    package = importlib.import_module("batchrun")
    for found in pkgutil.walk_packages(package.__path__, "batchrun."):
        if not {"servers", "ray", "ray_cluster"} & set(found.name.split(".")):
            importlib.import_module(found.name)
    threads = [Path(task, "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    # Polars starts one for spilled files at import; it is idle, and nothing was spilled.
    assert sum(not name.startswith("polars-ooc") for name in threads) == 1, f"what has threads must not fork: {threads}"


def _keep(connection: socket.socket) -> NoReturn:
    """Start one program, whose first word is its pid; when it has ended, send its exit code."""
    message, streams, _, _ = socket.recv_fds(connection, MESSAGE, 3)
    pid = os.fork()
    if not pid:
        os.setsid()
        connection.send(b"%d" % os.getpid())
        connection.close()
        _become(json.loads(message), streams)
    for stream in streams:
        os.close(stream)
    with contextlib.suppress(OSError):  # the test has gone
        connection.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _become(request: dict[str, object], streams: list[int]) -> NoReturn:
    code: object = 97
    try:
        os.chdir(str(request["cwd"]))
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        os.closerange(3, 64)
        os.environ.clear()
        os.environ.update(request["env"])  # type: ignore[call-overload]
        time.tzset()
        tempfile.tempdir = None
        for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
            buffering = 1 if number == 2 or os.isatty(number) else -1
            stream = open(number, mode, buffering, encoding="utf-8", closefd=False)  # noqa: SIM115  (for good)
            setattr(sys, name, stream)
        sys.argv = ["batchrun", *request["arguments"]]  # type: ignore[misc]
        exec(compile(str(request["program"]), "<program>", "exec"), {"__name__": "__main__"})  # noqa: S102  (a test's)
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:  # noqa: BLE001  (the child must not come back into the server's loop)
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve(sys.argv[1])
