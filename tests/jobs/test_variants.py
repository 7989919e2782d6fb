"""Flags that change a job: --set, --model, --input, --endpoint, --variant, --sample."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from command_line import Command, command  # noqa: F401  (a fixture)
from job_running import run, write_job
from plain_server import PlainServer, serving

from batchrun.job import RunOptions

pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def server() -> Iterator[PlainServer]:
    """Serve one plain server."""
    with serving() as server:
        yield server
