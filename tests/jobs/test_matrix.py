"""The whole job against every case of the simulator, through both senders: requests, status, codes, exit, money."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from job_running import KEY, Ran, fast, run, write_job
from openrouter import cases
from simulator_server import Running, running

from batchrun.api.codes import TABLE, Action, Blame, Count

ATTEMPTS, REPAIRS, SENT, EMPTY = 5, 1, 2, 4
MOST_PROBES, MOST_BILLED = 12, 3  # of a single row in 45 s, and in 30 s where each may be billed
SENDERS = ("reqwest", "httpx")


@dataclass(frozen=True)
class Expect:
    """How one row ends in a run, and after how many requests."""

    requests: int
    status: str
    error_type: str | None
    error_code: int | None
    exit_code: int
    possibly_billed: int = 0


def good(possibly_billed: int = 0) -> Expect:
    return Expect(1, "ok", None, None, 0, possibly_billed)


def fails(error_type: str, code: int | None, requests: int = 1, possibly_billed: int = 0) -> Expect:
    return Expect(requests, "failed", error_type, code, 1, possibly_billed)


def stops(error_type: str, code: int | None, requests: int = 1) -> Expect:
    return Expect(requests, "pending", error_type, code, 3)


def retried(error_type: str, code: int | None) -> Expect:
    """Expect a failed row: a job of one row can't tell an outage from a row that the server can't take."""
    return fails(error_type, code, ATTEMPTS)


def lost(error_type: str) -> Expect:
    return fails(error_type, None, SENT, possibly_billed=SENT)


def gated(error_type: str, code: int) -> Expect:
    """Such a row is bounded by time; here it is allowed one attempt only, which leaves it pending."""
    return Expect(1, "pending", error_type, code, 3)


CASES: dict[str, Expect] = {
    "400": fails("bad_request", 400),
    "400-model": stops("invalid_model", 400),
    "400-schema": stops("bad_parameters", 400),
    "400-unrecognized-key": stops("bad_parameters", 400),
    "400-models-limit": stops("bad_parameters", 400),
    "400-context": fails("context_length", 400),
    "400-string-too-long": fails("context_length", 400),
    "400-prompt": fails("invalid_prompt", 400),
    "400-image": fails("invalid_image", 400),
    "400-content-policy": fails("content_policy", 400),
    "400-refusal": fails("refused", 400),
    "400-relayed": fails("provider_rejected", 400, 2),
    "401": stops("unauthorized", 401, 2),
    "401-missing": stops("unauthorized", 401, 2),
    "401-no-cookie": stops("unauthorized", 401, 2),
    "401-relayed": retried("provider_error", 401),
    "402-in-flight": gated("in_flight_budget", 402),
    "402-weight": fails("request_over_budget", 402),
    "402-credits": stops("no_credit", 402),
    "402-prompt-tokens": stops("no_credit", 402),
    "402-insufficient": stops("no_credit", 402),
    "402-key-limit": stops("key_limit", 402),
    "403-moderated": fails("content_policy", 403),
    "403-guardrail": fails("content_policy", 403),
    "403-key-limit": stops("key_limit", 403),
    "403-budget": stops("key_limit", 403),
    "403-forbidden": fails("forbidden", 403),
    "403-html": retried("edge_blocked", 403),
    "404-no-endpoints": stops("no_endpoint", 404),
    "404-parameters": stops("no_endpoint", 404),
    "404-data-policy": stops("no_endpoint", 404),
    "404-providers": stops("no_endpoint", 404),
    "404-image-input": fails("invalid_image", 404),
    "404-relayed": retried("provider_error", 404),
    "404-retryable": retried("provider_error", 404),
    "404": stops("not_found", 404),
    "408": retried("server_error", 408),
    "409": retried("server_error", 409),
    "412": fails("bad_request", 412),
    "413": fails("payload_too_large", 413),
    "415": fails("bad_request", 415),
    "418": fails("bad_request", 418),
    "422": fails("bad_request", 422),
    "425": retried("server_error", 425),
    "429": gated("rate_limited", 429),
    "429-retry-after": gated("rate_limited", 429),
    "429-retry-after-date": gated("rate_limited", 429),
    "429-retry-after-ms": gated("rate_limited", 429),
    "429-availability": gated("rate_limited", 429),
    "429-per-minute": gated("rate_limited", 429),
    "429-shared-capacity": gated("rate_limited", 429),
    "429-daily": stops("daily_quota", 429),
    "429-html": gated("rate_limited", 429),
    "499": retried("server_error", 499),
    "500": retried("server_error", 500),
    "502": retried("server_error", 502),
    "503": retried("overloaded", 503),
    "503-no-provider": stops("no_provider_available", 503, ATTEMPTS),
    "504": retried("server_error", 504),
    "520-html": retried("server_error", 520),
    "524-html": retried("server_error", 524),
    "529": retried("overloaded", 529),
    "530": retried("server_error", 530),
    "error-string": retried("server_error", 500),
    "error-code-string": retried("server_error", 502),
    "redirect": stops("redirected", 307),
    "200-error-524": retried("server_error", 524),
    "200-error-429": gated("rate_limited", 429),
    "200-error-400": fails("provider_rejected", 400, 2),
    "200-error-policy": retried("server_error", 502),
    "good": good(),
    "200-error-choice": retried("server_error", 502),
    "200-error-finish": retried("server_error", None),
    "200-no-choices": fails("empty_response", None, EMPTY),
    "200-choices-missing": fails("empty_response", None, EMPTY),
    "200-empty": fails("empty_response", None, EMPTY),
    "200-empty-string": fails("empty_response", None, EMPTY),
    "200-reasoning": fails("truncated", None),
    "200-parts": good(),
    "200-null-usage": good(possibly_billed=1),
    "byok": good(),
    "unknown-fields": good(),
    "fenced": good(),
    "prose": good(),
    "not-json": fails("schema_mismatch", None, 1 + REPAIRS),
    "cut-json": fails("schema_mismatch", None, 1 + REPAIRS),
    "wrong-enum": fails("schema_mismatch", None, 1 + REPAIRS),
    "wrong-type": fails("schema_mismatch", None, 1 + REPAIRS),
    "extra-key": fails("schema_mismatch", None, 1 + REPAIRS),
    "missing-key": fails("schema_mismatch", None, 1 + REPAIRS),
    "null": fails("schema_mismatch", None, 1 + REPAIRS),
    "truncated": fails("truncated", None),
    "content-filter": fails("content_filter", None),
    "refusal": fails("refused", None),
    "hostile-text": good(),
    "200-cut-json": lost("invalid_response"),
    "200-empty-body": lost("invalid_response"),
    "200-whitespace": lost("invalid_response"),
    "200-html": retried("edge_blocked", None),
    "leading-whitespace": good(),
    "lone-surrogate": good(),
    "not-utf8": good(),
    "deep-json": lost("invalid_response"),
    "gzip": good(),
    "bad-gzip": lost("invalid_response"),
    "gzip-bomb": fails("response_too_large", None, possibly_billed=1),
    "endless-body": fails("response_too_large", None, possibly_billed=1),
    "endless-headers": lost("invalid_response"),
    "garbage": lost("invalid_response"),
    "wrong-length": lost("invalid_response"),
    "connection-close": good(),
    "slow-first-byte": lost("timeout"),
    "drip": lost("timeout"),
    "hang": lost("timeout"),
    "drop": lost("reset"),
    "reset": lost("reset"),
    "drop-mid-body": lost("invalid_response"),
}
LOCAL = {"template_error", "request_too_large", "image_error", "file_error", "connection", "tls",
         "no_answer", "unexplained", "refused_alone", "interrupted", "broken_text", "region_restricted"}  # fmt: skip
"""Endings that no case of the simulator can bring; the tests at the end reach them."""


@pytest.fixture(scope="module")
def simulator() -> Iterator[Running]:
    with running(retry_after=0.02, slow=3.0, minute=0.2) as server:
        yield server


def ask(folder: Path, url: str, case: str, sender: str, attempts: int = ATTEMPTS, **sections: Any) -> Ran:  # noqa: ANN401  (JSON)
    """Run a job of one row."""
    model = {"name": f"sim/{case}", "max_response_mb": 1}
    slow = CASES[case.partition(":")[0]].error_type == "timeout"
    limits = {"timeout": 0.5 if slow else 20, "attempts": attempts, "concurrency": 1}
    path = write_job(folder, url, rows=1, model=model, limits=limits, **sections)
    return run(path, sender=sender, clock=fast(2_000))


def seen(ran: Ran) -> Expect:
    """Read from summary and output how the row ended."""
    summary = ran.summary
    (status,), (error_type,), (code,) = map(ran.column, ("status", "error_type", "error_code"))
    return Expect(summary.requests, status, error_type, code, summary.exit_code, summary.possibly_billed)


def like_expected(ended: Expect, expect: Expect) -> Expect:
    """Return how a row ended, with the expected numbers where the clock decides how often it was probed.

    A refusal for no known reason is unexplained where no other request succeeded.
    """
    ending = TABLE[expect.error_type or "ok"]
    most = MOST_BILLED if ending.maybe_billed else MOST_PROBES
    if ending.outage and 2 <= ended.requests <= most:
        ended = replace(ended, requests=expect.requests)
        if 2 <= ended.possibly_billed <= MOST_BILLED:
            ended = replace(ended, possibly_billed=expect.possibly_billed)
    if {ended.error_type, expect.error_type} == {"reset", "invalid_response"}:
        ended = replace(ended, error_type=expect.error_type)  # a body that breaks off is either, by what came first
    if ending.blames is Blame.UNKNOWN:
        assert ended.error_type == "unexplained"
        ended = replace(ended, error_type=expect.error_type)
    return ended


def waits_behind_the_gate(case: str) -> bool:
    name = CASES[case].error_type
    return name is not None and TABLE[name].count is Count.TIME


@pytest.mark.parametrize(("case", "sender"), cases.with_senders(SENDERS))
def test_a_row_that_always_meets_a_case(case: str, sender: str, simulator: Running, tmp_path: Path) -> None:
    """Exactly that many requests, then this status, type, code and exit code; all money that was reported is booked."""
    simulator.reset()
    attempts = 1 if waits_behind_the_gate(case) else ATTEMPTS
    ran = ask(tmp_path, simulator.url, case, sender, attempts)
    assert like_expected(seen(ran), CASES[case]) == CASES[case]
    assert simulator.counters.requests == ran.summary.requests
    booked, billed = Decimal(ran.summary.cost_usd), simulator.counters.billed_usd
    assert booked == billed or (booked < billed and ran.summary.possibly_billed)
    (message,) = ran.column("error_message")
    assert (message is None) is (CASES[case].status == "ok")
    assert KEY not in str(ran)


def is_transient(expect: Expect) -> bool:
    ending = TABLE[expect.error_type or "ok"]
    return ending.action in {Action.RETRY, Action.GATE, Action.CONFIRM} and ending.count is not Count.REPAIRS


@pytest.mark.parametrize("case", [case for case, expect in CASES.items() if is_transient(expect)])
def test_a_row_that_meets_a_case_once(case: str, simulator: Running, tmp_path: Path) -> None:
    """What is transient is answered by the second request; of a lost reply it is reported that it may be billed."""
    simulator.reset()
    ran = ask(tmp_path, simulator.url, f"{case}:1", "reqwest")
    assert seen(ran) == Expect(2, "ok", None, None, 0, min(CASES[case].possibly_billed, 1))


def test_every_case_of_the_simulator_is_in_the_matrix() -> None:
    """A new case must say how it ends."""
    assert set(CASES) == set(cases.names())


def test_every_row_of_the_table_of_codes_is_reached() -> None:
    """By a case of the simulator, or a test below; wrong_mode by those of decisions, wrong_api by test_other_apis."""
    assert {expect.error_type or "ok" for expect in CASES.values()} | LOCAL | {"wrong_mode", "wrong_api"} == set(TABLE)


# -- what no reply brings


def test_no_connection_stops_the_run(tmp_path: Path) -> None:
    """A dead server is not the rows' fault: they stay pending, and nothing is billed."""
    ran = ask(tmp_path, "http://127.0.0.1:9/api/v1", "good", "reqwest", attempts=3)
    requests = ran.summary.requests  # as many as three seconds bring
    assert seen(ran) == Expect(requests, "pending", "connection", None, 3)


@pytest.mark.parametrize("sender", SENDERS)
def test_a_server_without_tls_stops_the_run(sender: str, simulator: Running, tmp_path: Path) -> None:
    """A broken handshake is confirmed once, then the run stops and says so plainly; the key was not sent."""
    simulator.reset()
    ran = ask(tmp_path, simulator.url.replace("http:", "https:"), "good", sender)
    assert seen(ran) == Expect(2, "pending", "tls", None, 3)
    assert ran.summary.reason == (
        "no TLS connection that can be trusted; nothing was sent: the server does not speak TLS at this address"
    )
    assert simulator.counters.requests == 0


@pytest.mark.parametrize(
    ("prompt", "error_type"),
    [
        ({"user": "{{ text | int / 0 }}"}, "template_error"),
        ({"user": "{% for _ in range(90000) %}{{ text }}" + "x" * 990 + "{% endfor %}"}, "request_too_large"),
        ({"user": None, "messages": [{"role": "user", "content": [{"image": "{{ text }}"}]}]}, "image_error"),
    ],
)
def test_a_row_without_a_request(prompt: dict[str, Any], error_type: str, simulator: Running, tmp_path: Path) -> None:
    """A row whose prompt can't be made fails without a request, and each plan judges it again."""
    simulator.reset()
    for _ in range(2):
        ran = ask(tmp_path, simulator.url, "good", "reqwest", prompt=prompt)
        assert seen(ran) == Expect(0, "failed", error_type, None, 1)
    assert simulator.counters.requests == 0
