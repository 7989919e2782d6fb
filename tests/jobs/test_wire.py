"""Whole jobs against servers whose bytes are right, and unlike those of other servers."""

import gzip
import json
from pathlib import Path

import pytest
from job_running import run, write_job
from wire_server import Script, answer
from wire_thread import Everywhere, served

from batchrun.senders import KINDS

GOOD = json.dumps({"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}).encode()
PACKED = gzip.compress(GOOD)
FORMS: dict[str, Script] = {
    "x-gzip": (answer(PACKED, headers=["content-encoding: x-gzip"]),),
    "GZIP": (answer(PACKED, headers=["content-encoding: GZIP"]),),
    "gzip without a header": (answer(PACKED),),
    "gzip twice": (answer(gzip.compress(PACKED), headers=["content-encoding: gzip"]),),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_gzip_is_unpacked_however_it_is_marked(kind: str, form: str, tmp_path: Path) -> None:
    """A reply that is paid for is read, though its header is not the one that HTTP libraries know."""
    with served(Everywhere(FORMS[form])) as server:
        ran = run(write_job(tmp_path, server.url("/v1"), rows=3, answer=None), sender=kind)
    assert (ran.column("answer"), len(server.seen)) == (["fine"] * 3, 3)


def test_gzip_without_a_header_is_unpacked_up_to_the_bound(tmp_path: Path) -> None:
    """What would be larger than model.max_response_mb is not held."""
    bomb = gzip.compress(bytes(3 * 2**20))
    with served(Everywhere((answer(bomb),))) as server:
        model = {"name": "m", "max_response_mb": 1}
        ran = run(write_job(tmp_path, server.url("/v1"), rows=1, answer=None, model=model))
    assert ran.column("error_type") == ["response_too_large"]


def test_a_redirect_names_the_address(tmp_path: Path) -> None:
    """The person who has to write the final address into the job is told it, once."""
    there = answer(b"", status="308 Permanent Redirect", headers=["location: https://models.example/v1/"])
    with served(Everywhere((there,))) as server:
        ran = run(write_job(tmp_path, server.url("/v1"), rows=3))
    assert ran.summary.reason == (
        "the server answers with a redirect, which is never followed with a key: to https://models.example/v1/"
    )
    assert len(server.seen) == 2


def test_a_reply_that_is_plain_text_is_shown(tmp_path: Path) -> None:
    """A gateway's words under a 200 say more than that they are not JSON; bytes that are no text are not shown."""
    with served(Everywhere((answer(b"upstream is being upgraded"),))) as server:
        ran = run(write_job(tmp_path, server.url("/v1"), rows=1))
    assert ran.column("error_message") == ["the reply is not JSON: upstream is being upgraded"]
