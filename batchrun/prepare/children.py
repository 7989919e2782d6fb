"""Starts, watches and stops what `local` and `simulator` need: one of our servers as a child process."""

import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from batchrun.api import Endpoint
from batchrun.errors import SenderError
from batchrun.job import Job

READY_SECONDS = 120.0
END_SECONDS = 5.0
LOCAL_PARALLEL = 4
"""Requests that a local model answers at the same time; more in flight would only wait, against their timeout."""
LOCAL_CONTEXT = 4096
_KEPT_LINES = 12
_LOCAL = Path(__file__).parents[1] / "servers" / "local.py"
"""Run as a file: as a module it would import the package first, which it does not need."""

# What an interpreter, a search for libraries and a GPU need. No key: a child's environment is open to its debuggers,
# its crash reports and its own children, and none of our servers asks anybody else.
_INHERITED = re.compile(
    "(PATH|HOME|USER|LANG|TZ|TMPDIR|VIRTUAL_ENV|LD_LIBRARY_PATH)|"
    "(LC_|PYTHON|DYLD_|CUDA_|NVIDIA_|HIP_|ROCR_|VK_|GGML_|OMP_).*"
)


def most_in_flight(job: Job, endpoint: Endpoint) -> int:
    """Return how many requests a run may send at once."""
    return min(job.limits.ceiling, LOCAL_PARALLEL) if endpoint.name == "local" else job.limits.ceiling


class Child:
    """A server that runs as a child of this process; ends with it, even when it is killed.

    `url` is the API's base address.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.url = ""
        self._name = name
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)
        self._ready: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process = subprocess.Popen(  # noqa: S603  (our own modules)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name)},
            start_new_session=True,  # a Ctrl-C in the terminal is ours: the child must finish its requests in flight
        )
        self._readers = [
            threading.Thread(target=reader, args=(stream,), daemon=True)
            for reader, stream in ((self._read_stdout, self._process.stdout), (self._read_stderr, self._process.stderr))
        ]
        for thread in self._readers:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether the server still runs."""
        return self._process.poll() is None

    def wait_ready(self, seconds: float) -> None:
        """Wait until the server answers. Raises SenderError when it ends before, or takes longer."""
        try:
            line = self._ready.get(timeout=seconds)
        except queue.Empty:
            raise SenderError(self._why(f"was not ready within {seconds:g} s")) from None
        with suppress(ValueError, TypeError, KeyError):
            self.url = str(json.loads(line)["url"])
        if not self.url:
            if not line:  # stdout is closed just before the process has ended
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(END_SECONDS)
            raise SenderError(self._why("did not start"))

    def stop(self) -> None:
        """End the server: its stdin closes, then SIGTERM, then SIGKILL."""
        for ending in (self._close_stdin, self._process.terminate, self._process.kill):
            ending()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
                break
        for thread in self._readers:
            thread.join(END_SECONDS)

    def _close_stdin(self) -> None:
        if self._process.stdin:
            with suppress(OSError):
                self._process.stdin.close()

    def _read_stdout(self, stream: IO[str]) -> None:
        """Hand on the first line; the rest is read so that the child never waits for us."""
        with stream:
            self._ready.put(stream.readline())
            for _ in stream:
                pass

    def _read_stderr(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._last.append(line.rstrip())

    def _why(self, what: str) -> str:
        if not self.alive:
            self._readers[1].join(END_SECONDS)
        return "\n".join([f"{self._name} {what}:", *filter(None, self._last)]).removesuffix(":")


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Yield the endpoint with its address; `local` and `simulator` get a server of their own. Raises SenderError."""
    if endpoint.name == "local" and endpoint.model_file is not None:
        with local_server(endpoint.model_file) as child:
            yield replace(endpoint, base_url=child.url)
    elif endpoint.name == "simulator":
        with simulator() as child:
            yield replace(endpoint, base_url=child.url)
    else:
        yield endpoint


def local_server(model_file: Path) -> AbstractContextManager[Child]:
    """Serve a GGUF file with llama.cpp. Raises SenderError."""
    arguments = ["--model", str(model_file), "--parallel", str(LOCAL_PARALLEL), "--ctx", str(LOCAL_CONTEXT)]
    return started("the local model's server", [str(_LOCAL), *arguments])


def simulator(arguments: Sequence[str] = ()) -> AbstractContextManager[Child]:
    """Serve the simulator on a free port. Raises SenderError."""
    return started("the simulator", ["-m", "batchrun.servers.simulator", "--port", "0", *arguments])


@contextmanager
def started(name: str, arguments: Sequence[str], seconds: float = READY_SECONDS) -> Iterator[Child]:
    """Run a server by Python's `arguments` while the block runs; it has `seconds` to be ready. Raises SenderError."""
    # -P: a file in the working directory must not stand in for a module.
    child = Child(name, [sys.executable, "-P", *arguments, "--until-stdin-closes"])
    try:
        child.wait_ready(seconds)
        yield child
    finally:
        child.stop()
