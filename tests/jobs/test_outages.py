"""Whole jobs whose server is down: what the server receives, which rows fail, what becomes of the output.

The clock is virtual, so that 15 minutes take a moment.
"""

import itertools
from pathlib import Path

import pytest
from outages import FORMS, Night, Server, good

from batchrun.errors import ExitCode

ROWS = 100
EVER = float("inf")
forms = pytest.mark.parametrize("form", FORMS)


def down(form: str, begin: float, end: float) -> Server:
    """Return a server that is down between two times."""
    return Server(lambda now, _, __: FORMS[form] if begin <= now < end else good())


def is_spared(server: Server, begin: float, end: float) -> bool:
    """Check that from 2 s after an outage began the server got a request a second, ten times, then one in 30 s."""
    times = [at for at in server.times if begin + 2 <= at < end]
    gaps = [second - first for first, second in itertools.pairwise(times)]
    return all(gap >= 0.99 for gap in gaps[:9]) and all(gap >= 29.99 for gap in gaps[9:])


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    return Night(tmp_path, monkeypatch, [f"row {number}" for number in range(1, ROWS + 1)])


@forms
def test_a_server_that_is_down_for_ever_leaves_all_rows_pending(form: str, night: Night) -> None:
    """Exit 3 after 15 minutes (a minute where nothing was ever reached), and the last output stands."""
    server = down(form, 0, EVER)
    summary = night.run(server)
    assert (summary.exit_code, summary.failed, summary.pending) == (ExitCode.STOPPED_BY_API, 0, ROWS)
    assert is_spared(server, 0, EVER)
    assert night.kept
    patience = 60 if form in ("refused", "DNS") else 900
    assert patience <= summary.seconds < patience + 31
    assert "no success for" in summary.reason


@forms
def test_a_server_that_goes_down_in_mid_run_for_ever_loses_no_row(form: str, night: Night) -> None:
    """What was answered stays answered, the rest is pending, and the last output stands."""
    server = down(form, 1, EVER)
    summary = night.run(server)
    assert (summary.exit_code, summary.failed) == (ExitCode.STOPPED_BY_API, 0)
    assert summary.ok >= 20
    assert is_spared(server, 1, EVER)
    assert night.kept


@forms
@pytest.mark.parametrize("begin", [0, 1])
def test_an_outage_of_twenty_seconds_costs_some_twenty_requests(begin: int, form: str, night: Night) -> None:
    """At the start or in mid-run: every row is answered, soon after the server is back."""
    server = down(form, begin, begin + 20)
    summary = night.run(server)
    assert (summary.exit_code, summary.ok) == (ExitCode.DONE, ROWS)
    assert is_spared(server, begin, begin + 20)
    assert len(server.received) <= ROWS + 36
    assert summary.seconds < begin + 40


@forms
def test_a_server_that_fails_every_second_request_fails_no_row(form: str, night: Night) -> None:
    """Attempts of a row are apart in time, and a last round comes before a row is failed."""
    server = Server(lambda _, __, number: FORMS[form] if number % 2 else good())
    summary = night.run(server)
    assert (summary.exit_code, summary.ok) == (ExitCode.DONE, ROWS)
    assert len(server.received) < 2.2 * ROWS
