"""Whole jobs against servers that close connections after each reply: no row is lost, no attempt is charged."""

import json
from pathlib import Path

import pytest
from job_running import run, write_job
from test_senders import ENDS
from wire_server import Script, answer
from wire_thread import served

from batchrun.runner.work import REAL_TIME

ANSWER = {"choices": [{"message": {"content": '{"label": "good", "score": 1}'}, "finish_reason": "stop"}]}


def closing(ends: str) -> Script:
    """Return the script that sends a good reply and then closes in this way."""
    headers = ["connection: close"] if ends == "with notice" else []
    reply = answer(json.dumps(ANSWER).encode(), headers=headers)
    return (reply, *ENDS[ends][1:])


@pytest.mark.parametrize("ends", ENDS)
def test_requests_dropped_with_their_connection_charge_no_attempt(tmp_path: Path, ends: str) -> None:
    """With one attempt a row every row is answered, and few requests may be billed twice."""
    limits = {"concurrency": 20, "attempts": 1}
    with served({"/v1/chat/completions": closing(ends)}) as server:
        done = run(write_job(tmp_path, server.url("/v1"), rows=300, limits=limits), clock=REAL_TIME)
    assert (done.summary.exit_code, done.summary.ok) == (0, 300)
    assert done.summary.possibly_billed <= 2 * 20
    assert done.summary.possibly_billed == done.summary.requests - 300
