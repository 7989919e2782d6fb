"""A simulator for tests: served by uvicorn in a thread, on a free port of loopback."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from openrouter import Config, create_app
from openrouter.account import Account
from openrouter.ledger import Counters
from openrouter.server import Server


@dataclass(frozen=True, slots=True)
class Running:
    """A simulator that accepts connections at `url` (it ends in /api/v1)."""

    url: str
    account: Account

    @property
    def counters(self) -> Counters:
        """The books; read them when no request is under way."""
        return self.account.counters

    def change(self, **changes: Any) -> None:  # noqa: ANN401  (any setting)
        """Change settings in mid-run, as POST /_sim/config does."""
        self.account.change(changes)

    def reset(self) -> None:
        """Begin again: books, limits, settings."""
        self.account.reset()


@contextmanager
def running(config: Config | None = None, **settings: Any) -> Iterator[Running]:  # noqa: ANN401  (same)
    """Serve a simulator while the block runs; `settings` are fields of Config."""
    app = create_app(config or Config(**settings))
    accepts = threading.Event()
    server = Server(app, ready=accepts.set)
    thread = threading.Thread(target=server.serve_until_stopped, name="simulator")
    thread.start()
    try:
        if not accepts.wait(10):
            raise RuntimeError("the simulator does not accept connections after 10 seconds")
        yield Running(server.url, app.account)
    finally:
        server.should_exit = True
        thread.join()
