"""Whole jobs with rows that the server never takes, and accounts that it refuses, night after night."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from outages import FORMS, Night, Server, good, refusal

from batchrun.errors import ExitCode
from batchrun.records import Reply, Summary


def server_with(bad: Collection[str], reply: Reply) -> Server:
    """Return a server that always answers some prompts with this reply, and all others well."""
    return Server(lambda _, prompt, __: reply if prompt in bad else good())


def rows(number: int, first: int = 1) -> list[str]:
    return [f"row {row}" for row in range(first, first + number)]


def failed(night: Night) -> dict[str, str]:
    """Return the error types of the failed rows in the output."""
    frame = pl.read_csv(night.output).filter(pl.col("status") == "failed")
    return dict(zip(frame["text"], frame["error_type"], strict=True))


POISON = {
    "500": (FORMS["500"], "server_error"),
    "503": (FORMS["503"], "overloaded"),
    "broken JSON": (FORMS["broken JSON"], "invalid_response"),
    "400": (refusal(400), "bad_request"),
}
poisons = pytest.mark.parametrize("poison", POISON)


@poisons
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_small_job_of_bad_rows_ends_within_a_minute_each_night(
    number: int, poison: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether rows or server are to blame, so they fail and are asked again the next night."""
    night = Night(tmp_path, monkeypatch, rows(number), {"concurrency": 1})
    reply, error_type = POISON[poison]
    server = server_with(rows(number), reply)
    for _ in range(3):
        summary = night.run(server)
        assert (summary.exit_code, summary.failed) == (ExitCode.SOME_FAILED, number)
        assert summary.seconds < 60
        assert set(failed(night).values()) == {"unexplained" if poison == "400" else error_type}


WHERE = {
    "first": rows(1),
    "twenty first": rows(20),
    "three among others": ["row 3", "row 17", "row 33"],
    "twelve last": rows(12, 49),
    "last": rows(1, 60),
}


@poisons
@pytest.mark.parametrize(
    ("where", "concurrency"), [*((where, 8) for where in WHERE), ("first", 1), ("twenty first", 1)]
)
def test_bad_rows_fail_alone_each_night(
    where: str, concurrency: int, poison: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they stand: exit 1 within a minute of waiting, all others answered, and asked never again."""
    night = Night(tmp_path, monkeypatch, rows(60), {"concurrency": concurrency})
    reply, error_type = POISON[poison]
    bad = WHERE[where]
    for number in range(3):
        server = server_with(bad, reply)
        summary = night.run(server)
        assert (summary.exit_code, summary.failed, summary.ok) == (ExitCode.SOME_FAILED, len(bad), 60 - len(bad))
        assert summary.seconds < 60 + len(server.received) * 0.2 / concurrency
        assert failed(night) == dict.fromkeys(bad, error_type)
        if number:
            assert set(server.prompts) == (set() if poison == "400" else set(bad))


def test_rows_that_failed_at_the_end_of_a_night_do_not_look_like_an_outage_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the last half is bad, the control with them: exit 3 once, then exit 1 within a minute."""
    night = Night(tmp_path, monkeypatch, rows(24))
    server = server_with(rows(14, 11), FORMS["500"])
    first = night.run(server)
    assert (first.exit_code, first.pending, night.kept) == (ExitCode.STOPPED_BY_API, 14, True)
    for _ in range(2):
        summary = night.run(server)
        assert (summary.exit_code, summary.failed) == (ExitCode.SOME_FAILED, 14)
        assert summary.seconds < 60


GROQ = refusal(400, "Failed to generate JSON", code="json_validate_failed", failed_generation='{"label": "bad')
ONE_ROW = {
    "OpenAI's 429 above the limit of a minute": (
        refusal(429, "Request too large for m: Limit 30000, Requested 36278.", code="rate_limit_exceeded"),
        "payload_too_large",
    ),
    "a 429 without reason": (refusal(429, "slow down", wait=1), "rate_limited"),
    "vLLM's negative max_tokens": (refusal(400, "max_tokens must be at least 1, got -186."), "context_length"),
    "TGI's 422": (
        Reply(422, {}, b'{"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. '
                       b'Given: 5000 `inputs` tokens", "error_type": "validation"}'),
        "context_length",
    ),
    "Together's 422": (
        refusal(422, "Input validation error: `inputs` must have less than 8193 tokens. Given: 9000"),
        "context_length",
    ),
    "LiteLLM's context window": (
        refusal(400, "litellm.ContextWindowExceededError: This model's maximum context length is 4097 tokens."),
        "context_length",
    ),
    "a 500 for one input": (refusal(500, "Internal server error"), "server_error"),
    "TGI's failed generation": (
        Reply(424, {}, b'{"error": "Request failed during generation", "error_type": "generation"}'),
        "server_error",
    ),
    "an unexplained 400": (refusal(400, "no"), "bad_request"),
    "Anthropic's input with max_tokens": (
        refusal(400, "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"),
        "context_length",
    ),
    "Groq's 413": (
        refusal(413, "Request too large for model `m` on tokens per minute (TPM): Limit 6000, Requested 9000",
                code="rate_limit_exceeded"),
        "payload_too_large",
    ),
    "OpenAI's dead link of an image": (
        refusal(400, "Error while downloading https://x.example/y.png.", code="invalid_image_url"),
        "invalid_image",
    ),
    "Anthropic's content filter": (refusal(400, "Output blocked by content filtering policy"), "content_policy"),
    "DeepSeek's content filter": (refusal(400, "Content Exists Risk"), "content_policy"),
    "Cloudflare's guardrail": (
        Reply(424, {}, b'{"success": false, "result": [], "messages": [], "error": [{"code": 2016, "message": '
                       b'"Prompt blocked due to security configurations"}]}'),
        "content_policy",
    ),
    "MiniMax's filter inside a 200": (
        Reply(200, body=b'{"choices": null, "base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}}'),
        "content_policy",
    ),
    "Groq's JSON": (GROQ, "schema_mismatch"),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_ROW)
def test_one_row_fails_with_its_right_name(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is the first in the file, the run ends with exit 1, and the next night never asks it first."""
    night = Night(tmp_path, monkeypatch, rows(30))
    reply, error_type = ONE_ROW[case]
    bad = "row 1"
    server = server_with([bad], reply)
    summary = night.run(server)
    assert (summary.exit_code, summary.ok) == (ExitCode.SOME_FAILED, 29)
    assert failed(night) == {bad: error_type}
    assert summary.seconds < 120
    with (night.folder / "rows.csv").open("a") as file:
        file.write("new 1\nnew 2\nnew 3\n")
    server = server_with([bad], reply)
    assert night.run(server).ok == 32
    assert set(server.prompts[:3]) == {"new 1", "new 2", "new 3"}


@pytest.mark.parametrize(
    "reply",
    [
        refusal(400, "max_tokens is too large: 4096", param="max_tokens"),
        refusal(404, "not here"),
        refusal(422, "Unsupported value"),
    ],
)
@pytest.mark.parametrize("first_alone", [True, False])
def test_the_first_row_alone_proves_no_fault_of_the_job(
    reply: Reply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, first_alone: bool
) -> None:
    """What is refused as if it were the same for every row is the row's own fault, once another row is answered."""
    night = Night(tmp_path, monkeypatch, rows(40))
    if not first_alone:  # an answer of today
        night.path.with_name("rows.csv").write_text("text\nrow 40\n")
        assert night.run(Server(lambda *_: good())).ok == 1
        night.path.with_name("rows.csv").write_text("\n".join(["text", *rows(40), ""]))
    server = server_with(["row 1"], reply)
    summary = night.run(server)
    assert (summary.exit_code, summary.failed) == (ExitCode.SOME_FAILED, 1)
    assert list(failed(night)) == ["row 1"]
    assert server.prompts.count("row 1") <= 2
    again = server_with(["row 1"], reply)
    assert (night.run(again).exit_code, again.prompts) == (ExitCode.SOME_FAILED, [])


def test_a_server_that_says_that_the_model_wrote_no_json_is_asked_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groq refuses its own model's answer: another try often fits."""
    seen: set[str] = set()

    def answer(_: float, prompt: str, __: int) -> Reply:
        again = prompt in seen
        seen.add(prompt)
        return good('{"label": "good"}') if again else GROQ

    night = Night(tmp_path, monkeypatch, rows(5), more={"answer": {"columns": {"label": ["good", "bad"]}}})
    server = Server(answer)
    assert night.run(server).ok == 5
    assert len(server.received) == 10


ACCOUNTS = {
    "Gemini's expired key": (
        Reply(400, {}, b'[{"error": {"code": 400, "message": "API key expired. Please renew the API key.", '
                       b'"status": "INVALID_ARGUMENT"}}]'),
        "key",
    ),
    "Anthropic's credit": (
        refusal(400, "Your credit balance is too low to access the Anthropic API.", type="invalid_request_error"),
        "credit",
    ),
    "LiteLLM's budget, 400": (
        refusal(400, "Budget has been exceeded! Current cost: 1.2, Max budget: 1.0", type="budget_exceeded"),
        "limit",
    ),
    "LiteLLM's budget, 429": (
        refusal(429, "Budget has been exceeded! Current cost: 1.2, Max budget: 1.0", type="budget_exceeded"),
        "limit",
    ),
    "OpenAI's inactive account": (
        refusal(429, "Your account is not active, please check your billing details.", code="billing_not_active"),
        "credit",
    ),
    "a region": (refusal(403, "This model is not available in your region", error_type="region_restricted"), "region"),
    "Mistral's unknown model": (refusal(400, "Invalid model: mm", type="invalid_model"), "model"),
    "LiteLLM's unknown model": (refusal(400, "Invalid model name passed in model=mm."), "model"),
    "a parameter of the o-series": (
        refusal(400, "Unsupported parameter: 'max_tokens' is not supported with this model.", param="max_tokens"),
        "parameter",
    ),
    "vLLM's context, filled by max_tokens": (
        refusal(400, "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length "
                     "is 4096 tokens and your request has 11 input tokens (5000 > 4096 - 11).", code=400),
        "parameter",
    ),
    "xAI's credits": (
        refusal(429, "Your team has either used all available credits or reached its monthly spending limit."),
        "credit",
    ),
    "Gemini's credits": (refusal(429, "Your prepayment credits are depleted."), "credit"),
    "Cohere's trial": (refusal(429, "You are using a Trial key, which is limited to 1000 API calls / month."), "limit"),
    "MiniMax's credits inside a 200": (
        Reply(200, body=b'{"choices": null, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}'),
        "credit",
    ),
    "Cloudflare's allocation of a day": (
        Reply(429, {}, b'{"success": false, "errors": [{"code": 4006, "message": "you have used up your daily free '
                       b'allocation of 10,000 neurons"}]}'),
        "day",
    ),
    "Anthropic's closed account": (refusal(400, "This organization has been disabled."), "key"),
    "Amazon's old token": (Reply(403, {}, b'{"Message": "Bearer Token has expired"}'), "key"),
    "Groq's old model": (
        refusal(400, "The model `m` has been decommissioned and is no longer supported.", code="model_decommissioned"),
        "model",
    ),
    "Together's model": (
        refusal(400, "Unable to access non-serverless model m.", code="model_not_available"),
        "model",
    ),
    "Groq's max_tokens": (
        refusal(400, "`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less "
                     "than the `context_window` for this model", param="max_tokens"),
        "parameter",
    ),
    "Gemini's quota of a day": (
        refusal(429, "You exceeded your current quota", details=[
            {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}]),
        "day",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCOUNTS)
@pytest.mark.parametrize("begin", [0, 1])
def test_what_the_server_refuses_to_everybody_stops_the_run(
    begin: int, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request meets it alone; rows stay pending, and the last output stands."""
    reply, word = ACCOUNTS[case]
    if begin and word == "parameter":
        pytest.skip("a parameter that the server took before is a row's own fault")
    night = Night(tmp_path, monkeypatch, rows(100))
    server = Server(lambda now, _, __: reply if now >= begin else good())
    summary = night.run(server)
    assert (summary.exit_code, summary.failed, night.kept) == (ExitCode.STOPPED_BY_API, 0, True)
    assert word in summary.reason
    refused = len(server.received) - summary.ok
    assert refused <= (9 if begin else 2)


ONE_ROW_ALONE = {
    "401": (refusal(401, "No key for provider Zed."), "refused_alone"),
    "402": (refusal(402, "Insufficient credits."), "refused_alone"),
    "the limit of a key": (refusal(403, "Key limit exceeded"), "refused_alone"),
    "no endpoint": (refusal(404, "No endpoints found for m."), "refused_alone"),
    "an unknown model": (refusal(400, "Invalid model: mm", type="invalid_model"), "refused_alone"),
    "an hour's wait": (refusal(429, "slow down", wait=3600), "rate_limited"),
    "a wait of two hours": (refusal(429, "slow down", wait=7200), "rate_limited"),
    "no provider": (refusal(503, "There is no available model provider"), "no_provider_available"),
}


@pytest.mark.parametrize("case", ONE_ROW_ALONE)
@pytest.mark.parametrize(
    ("bad", "number", "concurrency"),
    [(1, 60, 8), (1, 60, 1), (30, 60, 8), (30, 60, 1), (60, 60, 8), (60, 60, 1), (2, 3, 8), (2, 3, 1)],
)
def test_what_the_server_refuses_to_one_row_alone_fails_that_row(
    bad: int, number: int, concurrency: int, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key, account, model or an hour's wait: all others are answered within a minute, and the row never holds them."""
    night = Night(tmp_path, monkeypatch, rows(number), {"concurrency": concurrency})
    reply, error_type = ONE_ROW_ALONE[case]
    server = server_with([f"row {bad}"], reply)
    summary = night.run(server)
    assert (summary.exit_code, summary.ok) == (ExitCode.SOME_FAILED, number - 1)
    assert failed(night) == {f"row {bad}": error_type}
    assert summary.seconds < 60
    assert server.prompts.count(f"row {bad}") <= (3 if error_type != "no_provider_available" else 5)


@pytest.mark.parametrize("case", ["401", "402", "an hour's wait"])
def test_some_rows_that_are_refused_alone_stop_no_run(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row in ten is routed to where the key is not good, pairs of neighbours among them."""
    night = Night(tmp_path, monkeypatch, rows(200))
    bad = [f"row {row}" for row in (*range(5, 190, 20), *range(6, 190, 20))]
    reply, error_type = ONE_ROW_ALONE[case]
    summary = night.run(server_with(bad, reply))
    assert (summary.exit_code, summary.ok, summary.pending) == (ExitCode.SOME_FAILED, 200 - len(bad), 0)
    assert failed(night) == dict.fromkeys(bad, error_type)


@pytest.mark.parametrize("case", ["401", "402", "no endpoint"])
@pytest.mark.parametrize("number", [1, 3])
def test_rows_that_were_refused_alone_stop_no_later_night(
    number: int, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are all that is left to ask: they fail again, the output stands, and they are answered when they can be."""
    night = Night(tmp_path, monkeypatch, rows(40))
    bad = [f"row {row}" for row in range(20, 20 + number)]
    reply, error_type = ONE_ROW_ALONE[case]
    server = server_with(bad, reply)
    for _ in range(3):
        asked = len(server.received)
        summary = night.run(server)
        assert (summary.exit_code, summary.ok, summary.failed) == (ExitCode.SOME_FAILED, 40 - number, number)
        assert failed(night) == dict.fromkeys(bad, error_type)
    assert len(server.received) - asked <= 3 * number
    assert night.run(Server(lambda *_: good())).exit_code == ExitCode.DONE


@pytest.mark.parametrize("case", ["401", "402"])
@pytest.mark.parametrize("begin", [0, 2])
def test_a_revoked_key_or_an_empty_account_fails_no_row(
    begin: int, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops after one more request, asked alone; once the key is good again the same command answers all."""
    reply, _ = ONE_ROW_ALONE[case]
    night = Night(tmp_path, monkeypatch, rows(100))
    server = Server(lambda now, _, __: reply if now >= begin else good())
    summary = night.run(server)
    assert (summary.exit_code, summary.failed, night.kept) == (ExitCode.STOPPED_BY_API, 0, True)
    assert len(server.received) - summary.ok <= (9 if begin else 2)
    assert night.run(Server(lambda *_: good())).ok == 100


def test_a_wrong_key_names_no_time_after_which_to_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting makes no key right; a scheduler that kept the time would try every few seconds."""
    night = Night(tmp_path, monkeypatch, rows(20))
    summary = night.run(Server(lambda *_: refusal(401, "bad key")))
    assert (summary.exit_code, summary.resume_at) == (ExitCode.STOPPED_BY_API, None)


def test_an_outage_after_a_night_of_unexplained_failures_fails_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing succeeded beside the 403 of the first night, so they say nothing about the rows."""
    night = Night(tmp_path, monkeypatch, rows(12))
    assert night.run(Server(lambda *_: refusal(403, "no"))).errors == {"unexplained": 12}
    summary = night.run(Server(lambda *_: FORMS["500"]))
    assert (summary.exit_code, summary.failed, summary.pending) == (ExitCode.STOPPED_BY_API, 0, 12)


NOT_NOW = {
    "LM Studio's crash": refusal(400, "The model has crashed without additional information. (Exit code: 9)"),
    "LM Studio's unloaded model": refusal(400, "Model unloaded."),
    "Amazon's limit": Reply(
        400, {}, b'{"__type": "ThrottlingException", "message": "Too many tokens, please wait before trying again."}'
    ),
    "Groq's flexible tier": refusal(498, "Flex tier capacity exceeded", code="capacity_exceeded"),
    "Cloudflare's error inside a 200": Reply(
        200, body=b'{"result": null, "success": false, "errors": [{"message": "Upstream service unavailable"}]}'
    ),
}


@pytest.mark.parametrize("case", NOT_NOW)
def test_a_short_state_of_the_server_is_no_fault_of_a_row(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a run, under a code that usually blames the row: all rows are answered."""
    night = Night(tmp_path, monkeypatch, rows(60))
    server = Server(lambda now, _, __: NOT_NOW[case] if 0.5 < now < 3 else good())
    summary = night.run(server)
    assert (summary.exit_code, summary.ok) == (ExitCode.DONE, 60)


def test_the_delay_that_gemini_names_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 429 carries a retryDelay and no header."""
    details = [
        {"violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}]},
        {"retryDelay": "34.07s"},
    ]
    server = Server(lambda now, _, __: good() if now > 34 else refusal(429, "quota", details=details))
    night = Night(tmp_path, monkeypatch, rows(20))
    assert night.run(server).ok == 20
    assert len(server.received) == 21


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (429, "No deployments available for selected model, Try again in 30 seconds. Passed model=m."),  # LiteLLM
        (429, "Rate limit reached for m on requests per min (RPM): Limit 3, Used 3. Please try again in 0m30s."),
        (503, "Please retry after 30 seconds."),
    ],
)
def test_a_wait_that_stands_only_in_the_words_is_kept(
    status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a header no request is sent before the time that the message names."""
    night = Night(tmp_path, monkeypatch, rows(20), {"concurrency": 1})
    server = Server(lambda now, *_: good() if now > 30 else refusal(status, message))
    assert night.run(server).ok == 20
    assert len([at for at in server.times if at <= 30]) == 1


def test_a_refusal_for_no_known_reason_is_never_final_before_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops after some requests, one at a time; once the cause is gone the same command answers all."""
    night = Night(tmp_path, monkeypatch, rows(60))
    server = Server(lambda *_: refusal(400, "no"))
    summary = night.run(server)
    assert (summary.exit_code, summary.pending, night.kept) == (ExitCode.STOPPED_BY_API, 60, True)
    assert len(server.received) <= 40
    assert night.run(Server(lambda *_: good())).ok == 60


def test_reasoning_without_an_answer_is_bought_at_most_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that uses its tokens for thoughts alone is paid for them; the next night does not pay again."""
    message = {"content": None, "reasoning": "hmm"}
    usage = {"prompt_tokens": 10, "completion_tokens": 500}
    body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    server = Server(lambda *_: Reply(200, body=json.dumps(body).encode()))
    night = Night(tmp_path, monkeypatch, rows(8))
    for _ in range(2):
        summary = night.run(server)
        assert (summary.exit_code, summary.failed) == (ExitCode.SOME_FAILED, 8)
        assert len(server.received) == 16
    assert "only reasoning" in pl.read_csv(night.output)["error_message"][0]


def test_a_reply_that_is_always_lost_is_bought_at_most_three_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was lost three times while another row waited; once that one is settled, it is not taken for an outage."""
    empty = json.dumps({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}).encode()
    slow = iter([Reply(200, body=empty), refusal(400)])
    server = Server(
        lambda _, prompt, __: {"lost": lambda: FORMS["reset"], "slow": lambda: next(slow)}.get(prompt, good)()
    )
    night = Night(tmp_path, monkeypatch, ["slow", "row 1", "lost"])
    summary = night.run(server)
    assert (summary.exit_code, failed(night)) == (ExitCode.SOME_FAILED, {"slow": "bad_request", "lost": "reset"})
    assert server.prompts.count("lost") == 3


@pytest.mark.parametrize(("url", "seconds"), [("http://127.0.0.1:9/v1", 3), ("https://server.example/v1", 60)])
def test_a_wrong_port_or_name_ends_soon(
    url: str, seconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 3 s on this machine, in a minute elsewhere, with the reason."""
    night = Night(tmp_path, monkeypatch, rows(20), url=url)
    summary = night.run(Server(lambda *_: FORMS["refused"]))
    assert (summary.exit_code, summary.pending, night.kept) == (ExitCode.STOPPED_BY_API, 20, True)
    assert seconds <= summary.seconds < seconds + 1
    assert "connection refused" in summary.reason


def test_a_web_page_for_ever_makes_one_look_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A web interface answers each path with its page: waiting never helps then, and the last line says so."""
    night = Night(tmp_path, monkeypatch, rows(20))
    page = Reply(200, {"content-type": "text/html"}, b"<html><title>Open WebUI</title></html>")
    summary = night.run(Server(lambda *_: page))
    assert (summary.exit_code, summary.pending) == (ExitCode.STOPPED_BY_API, 20)
    assert "Open WebUI" in summary.reason
    assert "correct model.endpoint" in (summary.advice or "")


def test_patience_that_the_job_writes_waits_for_a_server_that_is_still_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of 400 GB takes minutes before its port answers."""
    night = Night(tmp_path, monkeypatch, rows(20), {"patience": "10m"}, url="http://127.0.0.1:9/v1")
    assert night.run(Server(lambda now, *_: good() if now > 400 else FORMS["refused"])).ok == 20


def test_patience_that_the_job_writes_ends_a_wait_that_the_server_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour's Retry-After and ten minutes of patience: the run ends after these, and says when to try again."""
    night = Night(tmp_path, monkeypatch, rows(20), {"patience": "10m"})
    summary = night.run(Server(lambda *_: refusal(429, "slow down", wait=3600)))
    assert (summary.exit_code, summary.pending) == (ExitCode.STOPPED_BY_API, 20)
    assert 600 <= summary.seconds < 610
    assert summary.resume_at is not None


def limited(night: Night, server: Server, accepted: int) -> Summary:
    job: dict[str, Any] = json.loads(night.path.read_text())
    job["limits"]["max_failed"] = accepted
    night.path.write_text(json.dumps(job))
    return night.run(server)


def test_max_failed_counts_rows_before_during_and_after_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that failed for good before count; the run stops at the first too many; equal rows count each."""
    night = Night(tmp_path, monkeypatch, [*rows(30), "bad 1", "bad 2", "bad 2", "bad 3"])
    bad = ["bad 1", "bad 2", "bad 3"]
    server = server_with(bad, refusal(400, "max_tokens must be at least 1, got -1"))
    during = limited(night, server, 1)
    assert during.exit_code == ExitCode.STOPPED_BY_LIMIT
    after = limited(night, server, 3)
    assert (after.exit_code, after.failed, night.kept) == (ExitCode.STOPPED_BY_LIMIT, 4, True)
    asked = len(server.received)
    before = limited(night, server, 2)
    assert before.exit_code == ExitCode.STOPPED_BY_LIMIT
    assert len(server.received) == asked
    assert limited(night, server, 4).exit_code == ExitCode.DONE


def test_a_template_error_does_not_make_each_night_a_full_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing about the row has changed, so nothing is sent and the output is not written again."""
    night = Night(tmp_path, monkeypatch, ["4", "0", "8"], more={"prompt": {"user": "{{ 8 // (text | int) }}"}})
    server = Server(lambda *_: good())
    assert night.run(server).failed == 1
    written = night.output.stat().st_mtime_ns
    again = night.run(server)
    assert (again.exit_code, again.failed, len(server.received)) == (ExitCode.SOME_FAILED, 1, 2)
    assert not again.output_changed
    assert night.output.stat().st_mtime_ns == written
