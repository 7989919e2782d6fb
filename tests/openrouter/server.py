"""Serves the simulator on loopback: as a process of its own, or within a test."""

import contextlib
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable

import orjson
import uvicorn

from openrouter.app import Simulator, create_app
from openrouter.config import Config

_BACKLOG = 8_192
_KEEP_ALIVE = 300
"""Seconds that an idle connection stays open: a client that backs off finds it again."""


class Server(uvicorn.Server):
    """uvicorn for one simulator, quiet, on a free port of 127.0.0.1; calls `ready` when it accepts connections.

    Raises OSError when the port is taken.
    """

    def __init__(self, app: Simulator, port: int = 0, ready: Callable[[], None] = lambda: None) -> None:
        self._ready = ready
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("127.0.0.1", port))
        except OSError:
            self._socket.close()
            raise
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/api/v1"
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=0,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections, and say so."""
        await super().startup(sockets)
        self._ready()

    def serve_until_stopped(self) -> None:
        """Serve until `should_exit` is set or a signal comes."""
        self.run([self._socket])

    def stop_with_stdin(self) -> None:
        """Stop when stdin ends: it does when the parent is gone, even by SIGKILL."""

        def watch() -> None:
            with contextlib.suppress(OSError):  # a closed stdin has ended, too
                while os.read(0, 65_536):
                    pass
            self.should_exit = True

        threading.Thread(target=watch, daemon=True, name="stdin").start()


def serve(config: Config, port: int = 0, *, until_stdin_closes: bool = False) -> None:
    """Serve until a signal comes (or stdin ends); print one line of JSON with the address when ready.

    Raises OSError when the port is taken.
    """
    _allow_many_connections()
    server = Server(create_app(config), port, lambda: _announce(server.url))
    if until_stdin_closes:
        server.stop_with_stdin()
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_until_stopped()


def _announce(url: str) -> None:
    sys.stdout.write(orjson.dumps({"ready": True, "url": url}).decode() + "\n")
    sys.stdout.flush()


def _allow_many_connections() -> None:
    """Raise the soft limit of open files to the hard one: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
