"""judge: every reply gives one verdict, and every row of the decision table its ending."""

import json
from collections import UserDict
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchrun.api.codes import TABLE, Action
from batchrun.api.judge import judge
from batchrun.job import Answer
from batchrun.money import from_usd
from batchrun.prompt.answers import AnswerForm
from batchrun.records import READ_HEADERS, Fault, Parse, Reply, Verdict

LOCAL = {"template_error", "request_too_large", "image_error", "file_error"}  # before anything is sent
SEED_CODES = (400, 401, 402, 403, 408, 429, 502, 503)
NOW = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC
MIDNIGHT = 1_790_035_200.0


def error(code: object = None, message: object = "", **more: object) -> dict[str, Any]:
    """Return an error in OpenRouter's envelope; keywords are its metadata."""
    inner = {"code": code, "message": message} | ({"metadata": more} if more else {})
    return {"error": inner}


def relayed(code: int, raw: object = "no", **more: object) -> dict[str, Any]:
    return error(code, "Provider returned error", provider_name="P", raw=raw, **more)


def answer(content: object = "Hello!", finish: object = "stop", **more: object) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **more}
    return {
        "id": "gen-1",
        "model": "m/served",
        "provider": "P",
        "choices": [{"finish_reason": finish, "message": message}],
    }


def parser(answer: Answer | None = None) -> Parse:
    form = AnswerForm.compile(answer)
    assert isinstance(form, AnswerForm)
    return form.parse


TEXT = parser()
LABEL = parser(Answer(columns={"label": ["good", "bad"]}))


def judged(status: int, body: object, **headers: str) -> Verdict:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return judge(Reply(status, named, raw), TEXT, now=NOW)


def labelled(content: object, finish: object = "stop", **more: object) -> Verdict:
    """Judge a reply for a job whose answer is one label."""
    return judge(Reply(200, {}, json.dumps(answer(content, finish, **more)).encode()), LABEL, now=NOW)


HTML = b"<html><head><title>Attention required!</title></head><body>x</body></html>"
STOP, GATE, RETRY, FAIL, CONFIRM = Action.STOP, Action.GATE, Action.RETRY, Action.FAIL, Action.CONFIRM
PROVEN, ACCEPT = Action.FAIL_IF_PROVEN, Action.ACCEPT


@dataclass(frozen=True)
class Case:
    """One row of the decision table: a reply, its ending and what is done."""

    ending: str
    action: Action
    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


ROWS = [
    # 400
    Case("invalid_model", STOP, 400, error(400, "foo/bar is not a valid model ID")),
    Case("invalid_model", STOP, 400, {"error": {"code": 400, "availability": {"code": "model_not_found"}}}),
    Case("invalid_model", STOP, 400, {"error": {"code": 400, "availability": {"code": "wrong_endpoint"}}}),
    Case("wrong_mode", STOP, 400, error(400, "a/b is a decisions model and cannot be used with chat/completions")),
    Case("wrong_mode", STOP, 501, error(501, "This model is not a decision model")),
    Case("bad_parameters", PROVEN, 422, {"detail": [{"loc": ["body", "questions", "a"], "msg": "x", "type": "y"}]}),
    Case("bad_parameters", PROVEN, 400, error(400, "Invalid schema for response_format 'x'")),
    Case("bad_parameters", PROVEN, 400, error(400, "Unrecognized key(s) in object: 'ordr'")),
    Case("bad_parameters", PROVEN, 400, error(400, "'models' array must have 3 items or fewer.")),
    Case("bad_parameters", PROVEN, 400, relayed(400, "Invalid schema for response_format 'x': 'required' is required")),
    Case("context_length", FAIL, 400, error(400, "x", error_type="context_length_exceeded")),
    Case("context_length", FAIL, 400, error(400, "x", error_type="string_too_long")),
    Case("context_length", FAIL, 400, {"detail": {"error_type": "context_length_exceeded", "message": "x"}}),
    Case("context_length", FAIL, 400, error(400, "This endpoint's maximum context length is 8192 tokens.")),
    Case("context_length", FAIL, 400, relayed(400, '{"error":{"message":"maximum context length is 9 tokens"}}')),
    Case("invalid_prompt", FAIL, 400, error(400, "x", error_type="invalid_prompt")),
    Case("invalid_image", FAIL, 400, error(400, "x", error_type="invalid_image")),
    Case("invalid_image", FAIL, 400, error(400, "x", error_type="image_download_failed")),
    Case("content_policy", FAIL, 400, error(400, "x", error_type="content_policy_violation")),
    Case("refused", FAIL, 400, error(400, "x", error_type="refusal")),
    Case("provider_rejected", RETRY, 400, relayed(400)),
    Case("bad_request", FAIL, 400, error(400, "x", error_type="invalid_request")),
    Case("bad_request", FAIL, 400, HTML),
    # 401
    Case("unauthorized", CONFIRM, 401, error(401, "Missing Authentication header")),
    Case("unauthorized", CONFIRM, 401, error(401, "User not found.") | {"user_id": "user_abc"}),
    Case("unauthorized", CONFIRM, 401, error(401, "No cookie auth credentials found", error_type="authentication")),
    Case("provider_error", RETRY, 401, relayed(401, '{"error":{"code":"authentication_error","message":"x"}}')),
    # 402
    Case("in_flight_budget", GATE, 402,
         error(402, "This request would exceed your available credits given your current in-flight requests.",
               reason="in_flight_budget_exhausted", limit_source="openrouter_in_flight_budget"), {"retry_after": "3"}),
    Case("in_flight_budget", GATE, 402, error(402, "later"), {"retry_after": "3"}),
    Case("request_over_budget", FAIL, 402, error(402, "x", reason="weight_exceeds_budget")),
    Case("request_over_budget", FAIL, 402,
         error(402, "x", reason="weight_exceeds_budget", limit_source="openrouter_in_flight_budget")),
    Case("no_credit", STOP, 402,
         error(402, "This request requires more credits, or fewer max_tokens. You requested up to 8192 tokens.",
               limit_source="openrouter_credits", provider_name=None, previous_errors=[{"code": 402, "message": "x"}])),
    Case("no_credit", STOP, 402, error(402, "Prompt tokens limit exceeded: 9 > 8")),
    Case("no_credit", STOP, 402, error(402, "Insufficient credits. Add more using https://openrouter.ai/credits")),
    Case("key_limit", STOP, 402, error(402, "x", reason="key_limit")),
    Case("provider_error", RETRY, 402, relayed(402)),
    # 403
    Case("content_policy", FAIL, 403, error(403, "m requires moderation.", reasons=["violence"], provider_name="P")),
    Case("content_policy", FAIL, 403, error(403, "x", flagged_input="a…b")),
    Case("content_policy", FAIL, 403, error(403, "x", patterns=["ssn"])),
    Case("content_policy", FAIL, 403, error(403, "Request blocked: sensitive data")),
    Case("key_limit", STOP, 403, error(403, "Key limit exceeded (total limit). Manage it using https://x/keys")),
    Case("key_limit", STOP, 403, error(403, "x", limit_source="openrouter_workspace_budget")),
    Case("forbidden", FAIL, 403, error(403, "x", error_type="permission_denied")),
    Case("provider_rejected", RETRY, 403, relayed(403)),
    Case("edge_blocked", GATE, 403, HTML, {"content_type": "text/html; charset=UTF-8"}),
    # 404
    Case("no_endpoint", STOP, 404, error(404, "No endpoints found for meta-llama/llama-3.2-1b-instruct:free.")),
    Case("no_endpoint", STOP, 404, error(404, "No endpoints found that can handle the requested parameters.")),
    Case("no_endpoint", STOP, 404, error(404, "No endpoints found matching your data policy.")),
    Case("no_endpoint", STOP, 404, error(404, "Free model training violation")),
    Case("no_endpoint", STOP, 404, error(404, "No allowed providers are available for the selected model.")),
    Case("no_endpoint", STOP, 404, {"error": {"code": 404, "availability": {"code": "model_deprecated"}}}),
    Case("invalid_image", FAIL, 404, error(404, "No endpoints found that support image input")),
    Case("invalid_image", FAIL, 400, error(400, "The PDF specified is password protected.")),
    Case("invalid_image", FAIL, 400, error(400, "A maximum of 100 PDF pages may be provided.")),
    Case("provider_error", RETRY, 404, {"error": {"code": 404, "availability": {"retryable": True}}}),
    Case("provider_error", RETRY, 404,
         {"error": {"code": 404, "availability": {"code": "no_endpoints", "retryable": True, "retry_after": 1}}}),
    Case("provider_error", RETRY, 404, relayed(404)),
    Case("not_found", PROVEN, 404, error(404, "x")),
    Case("not_found", PROVEN, 404, HTML),
    # other 3xx and 4xx
    Case("redirected", STOP, 302, b"", {"location": "https://x"}),
    Case("server_error", RETRY, 408, error(408, "x")),
    Case("server_error", RETRY, 409, error(409, "x")),
    Case("bad_request", FAIL, 410, error(410, "gone")),
    Case("bad_request", FAIL, 412, error(412, "x")),
    Case("payload_too_large", FAIL, 413, error(413, "x")),
    Case("bad_request", FAIL, 415, error(415, "x")),
    Case("bad_request", FAIL, 418, error(418, "x")),
    Case("bad_request", FAIL, 422, error(422, "x")),
    Case("server_error", RETRY, 425, error(425, "x")),
    Case("server_error", RETRY, 499, error(499, "x")),
    # 429
    Case("daily_quota", STOP, 429,
         error(429, "Rate limit exceeded: free-models-per-day. Add credits", limit_source="openrouter_free_tier_daily",
               headers={"X-RateLimit-Limit": "50", "X-RateLimit-Reset": str(int(MIDNIGHT * 1000))})),
    Case("daily_quota", STOP, 429, error(429, "Rate limit exceeded: free-models-per-day-high-balance.")),
    Case("rate_limited", GATE, 429, error(429, "x", limit_source="openrouter_free_tier_per_minute")),
    Case("rate_limited", GATE, 429, error(429, "Rate limit exceeded: free-models-per-min")),
    Case("rate_limited", GATE, 429, error(429, "Rate limit exceeded: m.", limit_source="openrouter_shared_capacity")),
    Case("rate_limited", GATE, 429,
         relayed(429, "m is temporarily rate-limited upstream.", limit_source="upstream_provider_shared_pool")),
    Case("rate_limited", GATE, 429, relayed(429)),
    Case("rate_limited", GATE, 429, error(429, "m is temporarily rate-limited upstream")),
    Case("rate_limited", GATE, 429, {"error": {"code": 429, "availability": {"code": "capacity_exhausted"}}}),
    Case("rate_limited", GATE, 429, HTML, {"content_type": "text/html"}),
    Case("rate_limited", GATE, 429, b""),
    # 5xx
    Case("server_error", RETRY, 500, error(500, "Internal Server Error", error_type="server")),
    Case("server_error", RETRY, 501, b""),
    Case("server_error", RETRY, 502, error(502, "Provider returned error")),
    Case("overloaded", GATE, 503, error(503, "x", error_type="provider_overloaded"), {"retry_after": "2"}),
    Case("no_provider_available", RETRY, 503,
         error(503, "There is no available model provider that meets your routing requirements")),
    Case("server_error", RETRY, 504, error(504, "x")),
    *(Case("server_error", RETRY, status, HTML) for status in (520, 521, 522, 523, 525, 526, 527, 530)),
    Case("server_error", RETRY, 524, HTML),
    Case("overloaded", GATE, 529, error(529, "Provider returned error")),
    # errors inside a 200
    Case("server_error", RETRY, 200,
         error(524, "Provider returned error", raw="error code: 524", provider_name="G") | {"user_id": "u"}),
    Case("unauthorized", CONFIRM, 200, error(401, "User not found.")),
    Case("no_credit", STOP, 200, error("402", "Insufficient credits")),
    Case("rate_limited", GATE, 200, relayed(429)),
    Case("server_error", RETRY, 200, error(502, "flagged for possible cybersecurity risk")),
    Case("server_error", RETRY, 200, error("server_error", "x")),
    Case("unauthorized", CONFIRM, 200, error("invalid_api_key", "x")),
    Case("server_error", RETRY, 200, error(None, "x")),
    Case("server_error", RETRY, 200, {"error": "it broke"}),
    Case("server_error", RETRY, 200,
         {"choices": [{"finish_reason": "error", "message": {"content": "partial…"},
                       "error": {"code": 502, "message": "Provider disconnected mid-stream",
                                 "metadata": {"error_type": "provider_unavailable"}}}],
          "usage": {"prompt_tokens": None, "completion_tokens": None, "total_tokens": 0}}),
    Case("content_policy", FAIL, 200,
         {"choices": [{"error": {"code": 400, "metadata": {"error_type": "content_policy_violation"}}}]}),
    Case("server_error", RETRY, 200, answer("partial", "error")),
    # generations
    Case("wrong_api", PROVEN, 200, {"candidates": []}),
    Case("empty_response", RETRY, 200, {"choices": []}),
    Case("empty_response", RETRY, 200, {"id": "gen-1"}),
    Case("empty_response", RETRY, 200, answer(None)),
    Case("empty_response", RETRY, 200, answer(" \n ")),
    Case("truncated", FAIL, 200, answer("", "length", reasoning="hm")),
    Case("truncated", FAIL, 200, answer('{"a": ', "length")),
    Case("content_filter", FAIL, 200, answer("Hel", "content_filter")),
    Case("refused", FAIL, 200, answer(None, refusal="I can't")),
    Case("invalid_response", RETRY, 200, b'{"choices": [{"mess'),
    Case("invalid_response", RETRY, 200, b""),
    Case("invalid_response", RETRY, 200, b"  \n\n "),
    Case("invalid_response", RETRY, 200, b"[1]"),
    Case("invalid_response", RETRY, 200, {"choices": "no"}),
    Case("edge_blocked", GATE, 200, HTML, {"content_type": "text/html"}),
    Case("edge_blocked", GATE, 200, b'<html><script>\n{"@context": "x"}\n</script></html>'),  # not a stream of events
    Case("ok", ACCEPT, 200, answer()),
    Case("ok", ACCEPT, 200, b" \n\n " + orjson.dumps(answer())),
    Case("no_answer", RETRY, 200, answer(None, reasoning="The user wants a number.")),
    Case("no_answer", RETRY, 200, answer("<think>hm")),
    Case("no_answer", RETRY, 200, answer("<thinking>hm</thinking>\n")),
    Case("no_answer", RETRY, 200, answer("") | {"usage": {"completion_tokens": 1}}),
    Case("truncated", FAIL, 200, answer("<think>hm", "length")),
    Case("interrupted", RETRY, 200, answer("The capital of Fra", "a_new_reason")),
    Case("interrupted", RETRY, 200, answer("The capital of Fra", 7)),
    Case("truncated", FAIL, 200, answer("The capital of Fra", "model_length")),
    Case("truncated", FAIL, 200, answer("The capital of Fra", "FinishReason.MAX_TOKENS")),
    Case("content_filter", FAIL, 200, answer("The capital of Fra", "SAFETY")),
    Case("server_error", RETRY, 200, answer("The capital of Fra", "insufficient_system_resource")),
    Case("server_error", RETRY, 200, answer("The capital of Fra", "abort")),
    Case("ok", ACCEPT, 200, answer("Paris", "eos_token")),
    Case("ok", ACCEPT, 200, answer("Paris", "STOP")),
    Case("ok", ACCEPT, 200, answer() | {"error": {"code": None, "message": ""}}),
    Case("broken_text", RETRY, 200, answer("Gr\ufffdn")),
    # error text inside a 200
    Case("not_found", PROVEN, 200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}),
    Case("server_error", RETRY, 200, {"error": "Internal error, try later"}),
    Case("server_error", RETRY, 200, {"detail": "upstream timed out"}),
    Case("server_error", RETRY, 200, {"success": False, "errors": [], "message": "no"}),
    Case("server_error", RETRY, 200, {"error": True, "message": "no"}),
    Case("not_found", PROVEN, 200, {"detail": "Not Found"}),
    Case("not_found", PROVEN, 200, {"code": 500, "msg": "404 NOT_FOUND", "success": False}),
    Case("rate_limited", GATE, 200, {"error": "rate limit exceeded"}),
    Case("rate_limited", GATE, 200, [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "x"}}]),
    # accounts, in the words of other servers
    Case("unauthorized", CONFIRM, 400,
         [{"error": {"code": 400, "message": "API key expired.", "status": "INVALID_ARGUMENT",
                     "details": [{"@type": "google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]}}]),
    Case("unauthorized", CONFIRM, 400, {"error": {"message": "API key not valid. Please pass a valid API key."}}),
    Case("unauthorized", CONFIRM, 400, {"code": "invalid argument", "error": "Incorrect API key provided: ab***yz."}),
    Case("unauthorized", CONFIRM, 401, {"error": {"message": "x", "type": "expired_key", "code": "401"}}),
    Case("no_credit", STOP, 400,
         {"type": "error", "error": {"type": "invalid_request_error",
                                     "message": "Your credit balance is too low to access the Anthropic API."}}),
    Case("no_credit", STOP, 429,
         {"error": {"message": "Your account is not active, please check your billing details on our website.",
                    "type": "billing_not_active", "param": None, "code": "billing_not_active"}}),
    Case("no_credit", STOP, 403, {"error": "Your newly created team doesn't have any credits or licenses yet."}),
    Case("no_credit", STOP, 412, {"error": {"message": "Account x is suspended", "code": "PRECONDITION_FAILED"}}),
    Case("no_credit", STOP, 429, {"error": {"code": "1113", "message": "Insufficient balance. Please recharge."}}),
    Case("key_limit", STOP, 400,
         {"error": {"message": "Budget has been exceeded! Current cost: 10.2, Max budget: 10.0",
                    "type": "budget_exceeded", "param": None, "code": "400"}}),
    Case("key_limit", STOP, 429,
         {"error": {"message": "ExceededBudget: User=u over budget. Spend=2, Budget=1", "code": "429"}}),
    Case("key_limit", STOP, 400, {"error": {"message": "You have reached your specified API usage limits."}}),
    Case("region_restricted", STOP, 403, {"error": {"code": 403, "availability": {"code": "region_restricted"}}}),
    Case("region_restricted", STOP, 503, {"error": {"code": 503, "availability": {"code": "region_restricted"}}}),
    Case("region_restricted", STOP, 400,
         [{"error": {"code": 400, "message": "User location is not supported for the API use.",
                     "status": "FAILED_PRECONDITION"}}]),
    Case("provider_error", RETRY, 404,
         {"error": {"code": 404, "availability": {"code": "model_unavailable_upstream"}}}),
    Case("provider_error", RETRY, 503,
         {"error": {"code": 503, "availability": {"code": "model_unavailable_upstream"}}}),
    # one row's size
    Case("payload_too_large", FAIL, 429,
         {"error": {"message": "Request too large for m on tokens per min (TPM): Limit 30000, Requested 36278. The "
                               "input or output tokens must be reduced in order to run successfully.",
                    "type": "tokens", "code": "rate_limit_exceeded"}}),
    Case("payload_too_large", FAIL, 429,
         {"error": {"message": "tokens per minute: Limit 6,000, Used 0, Requested 8,000.", "code": "429"}}),
    Case("rate_limited", GATE, 429,
         {"error": {"message": "Rate limit reached for m on tokens per min (TPM): Limit 10000, Used 9500, Requested "
                               "1000. Please try again in 3s.", "type": "tokens", "code": "rate_limit_exceeded"}}),
    Case("payload_too_large", FAIL, 413, {"error": {"message": "Request too large", "code": "rate_limit_exceeded"}}),
    *(Case("context_length", FAIL, status, {"error": {"message": text, "type": kind, "param": None, "code": code}})
      for status, text, kind, code in (
          (400, "max_tokens must be at least 1, got -186.", "BadRequestError", 400),
          (400, "max_completion_tokens must be at least 1, got 0.", "BadRequestError", 400),
          (400, "The decoder prompt (length 5000) is longer than the maximum model length of 4096.", None, None),
          (400, "litellm.BadRequestError: litellm.ContextWindowExceededError: OpenAIException", None, "400"),
          (400, "prompt is too long: 210000 tokens > 200000 maximum", "invalid_request_error", None),
          (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193.", None, None))),
    Case("context_length", FAIL, 422,
         {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 1300",
          "error_type": "validation"}),
    Case("context_length", FAIL, 400,
         {"error": {"message": "'max_tokens' is too large: 4096. This model's maximum context length is 8192 tokens.",
                    "type": "BadRequestError", "param": "max_tokens", "code": 400}}),
    # models, parameters and the rest
    Case("invalid_model", STOP, 400,
         {"object": "error", "message": "Invalid model: x", "type": "invalid_model", "param": None, "code": "1500"}),
    Case("invalid_model", STOP, 400,
         {"error": {"message": "/chat/completions: Invalid model name passed in model=x. Call `/v1/models`",
                    "type": "None", "param": "None", "code": "400"}}),
    Case("invalid_model", STOP, 400, {"error": {"message": "x", "param": "model", "code": "model_not_supported"}}),
    Case("bad_parameters", PROVEN, 400,
         {"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                               "'max_completion_tokens' instead.", "type": "invalid_request_error",
                    "param": "max_tokens", "code": "unsupported_parameter"}}),
    Case("bad_parameters", PROVEN, 400,
         {"error": {"message": "Unsupported value: 'temperature' does not support 0 with this model.",
                    "type": "invalid_request_error", "param": "temperature", "code": "unsupported_value"}}),
    Case("bad_parameters", PROVEN, 400,
         relayed(400, '{"error": {"message": "no", "type": "invalid_request_error", "param": "temperature"}}')),
    Case("bad_parameters", PROVEN, 422, {"detail": [{"loc": ["body", "top_k"], "msg": "Extra inputs"}]}),
    Case("bad_request", FAIL, 400, {"error": {"message": "Invalid content", "param": "messages.[0].content"}}),
    Case("server_error", RETRY, 424, {"error": "Request failed during generation", "error_type": "generation"}),
    Case("daily_quota", STOP, 429,
         [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Check your billing details", "details": [
             {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]},
             {"retryDelay": "34.07s"}]}}]),
    Case("rate_limited", GATE, 429,
         [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Check your billing details", "details": [
             {"violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}]}]}}]),
    Case("schema_mismatch", RETRY, 400,
         {"error": {"message": "Failed to validate JSON.", "type": "invalid_request_error",
                    "code": "json_validate_failed", "failed_generation": '{"label": goo'}}),
    # texts of many servers
    *(Case(ending, TABLE[ending].action, status, {"error": {"message": text, "type": "invalid_request_error"}})
      for ending, status, text in (
          ("bad_parameters", 400, "The provided JSON schema contains features not supported by xgrammar."),
          ("bad_parameters", 400, "Grammar error: Unimplemented keys"),
          ("bad_parameters", 400, "you must provide a chat template"),
          ("bad_parameters", 422, "Template error: template not found"),
          ("bad_parameters", 400, "System role not supported"),
          ("bad_parameters", 400, "Conversation roles must alternate user/assistant"),
          ("bad_parameters", 400, "Expected last role User for serving but got assistant"),
          ("bad_parameters", 400, "temperature must be non-negative, got -1.0."),
          ("bad_parameters", 400, "`reasoning_effort` must be one of `none` or `default`"),
          ("bad_parameters", 400, "parameter.enable_thinking must be false for non-streaming calls"),
          ("bad_parameters", 400, "Argument not supported on this model: presencePenalty"),
          ("bad_parameters", 400, "Requests with max_tokens > 4096 must have stream=true"),
          ("bad_parameters", 400, "the valid range of max_tokens is [1, 8192]"),
          ("bad_parameters", 400, "generation_config.response_schema.properties: should be non-empty"),
          ("bad_parameters", 400, "invalid format: expected a JSON schema"),
          ("bad_parameters", 400, "JSON schema conversion failed"),
          ("bad_parameters", 500, "JSON schema conversion failed"),
          ("invalid_model", 500, "model requires more system memory (5.6 GiB) than is available (3.2 GiB)"),
          ("bad_parameters", 422, "Failed to deserialize the JSON body: invalid type: string, expected f32"),
          ("invalid_image", 422, "Failed to deserialize the JSON body: unknown variant `image_url`, expected `text`"),
          ("invalid_image", 400, "m is not a multimodal model"),
          ("invalid_image", 400, "Model does not support images."),
          ("invalid_image", 400, "Unable to process input image."),
          ("invalid_image", 500, "image input is not supported - hint: you may need to provide the mmproj"),
          ("invalid_image", 500, "this model is missing data required for image input"),
          ("context_length", 400, "Input length (5000 tokens) exceeds the maximum allowed length (4096 tokens)."),
          ("context_length", 400, "Cannot truncate prompt with n_keep (15028) >= n_ctx (7424)"),
          ("context_length", 400, "Your request exceeded model token limit: 8192 (requested: 9000)"),
          ("context_length", 400, "max_total_tokens (33000) must be less than or equal to max_seq_len (32768)"),
          ("context_length", 500, "input (600 tokens) is too large to process. increase the physical batch size"),
          ("content_policy", 400, "litellm.ContentPolicyViolationError: AzureException"),
          ("content_policy", 400, "Violated guardrail policy"),
          ("invalid_model", 400, "LLM Provider NOT provided. You passed model=x"),
          ("invalid_model", 400, "AiError: No such model x or task"),
          ("invalid_model", 400, "You have not filled out the required use-case form for this model."),
          ("invalid_model", 403, "No access to model: x"),
          ("invalid_model", 403, "You don't have access to the model with the specified model ID."),
          ("invalid_model", 404, "This model version has reached the end of its life."),
          ("invalid_model", 404, "This Model is marked by provider as Legacy"),
          ("invalid_model", 404, "Model use case details have not been submitted for this account."),
          ("invalid_model", 404, "model: claude-x"),
          ("invalid_model", 404, "Function 'f': Not found for account 'a'"),
          ("invalid_model", 404, "Your account has not activated the model x."),
          ("invalid_model", 404, "The given endpoint does not exist"),
          ("invalid_model", 404, "This is not a chat model. Did you mean to use v1/completions?"),
          ("invalid_model", 404, "This model is only supported in v1/responses and not in v1/chat/completions."),
          ("unauthorized", 400, "Missing or invalid Authorization header."),
          ("unauthorized", 403, "The security token included in the request is invalid."),
          ("unauthorized", 403, "Authentication failed: Please make sure your API Key is valid."),
          ("unauthorized", 403, "Authorization failed"),
          ("unauthorized", 403, "Method doesn't allow unregistered callers"),
          ("unauthorized", 403, "Not authenticated"),
          ("unauthorized", 403, "Invalid access token."),
          ("no_credit", 403, "The free tier of the model has been exhausted."),
          ("key_limit", 403, "Out of call volume quota. Quota will be replenished in 9 days."),
          ("key_limit", 429, "you have reached your weekly usage limit"),
          ("daily_quota", 429, "Too many tokens per day, please wait before trying again."),
          ("daily_quota", 429, "Tokens per day limit exceeded"),
          ("daily_quota", 429, "Rate limit of 50 per 86400s exceeded"),
          ("daily_quota", 429, "Rate limit exceeded: limit_rpd/m/f1395"),
          ("no_provider_available", 503, "No available channel for model x under group default"),
          ("rate_limited", 429, "Too many tokens, please wait before trying again."),
          ("rate_limited", 429, "Rate limit reached on tokens per day (TPD): Limit 100000, Used 99000, Requested 200"),
      )),
    *(Case(ending, TABLE[ending].action, 403, {"error": {"message": "x", "code": code}})
      for ending, code in (("no_credit", "insufficient_user_quota"), ("key_limit", "pre_consume_token_quota_failed"),
                           ("key_limit", "blocked_api_access"), ("invalid_model", "model_access_forbidden"),
                           ("invalid_model", "1211"), ("context_length", "1261"), ("content_policy", "1301"),
                           ("content_policy", "InputTextSensitiveContentDetected"))),
    Case("context_length", FAIL, 200, {"error": "Cannot truncate prompt with n_keep (15028) >= n_ctx (7424)"}),
    # servers that are not OpenRouter
    Case("unauthorized", CONFIRM, 401,
         {"error": {"message": "Incorrect API key", "type": "invalid_request_error", "code": "invalid_api_key"}}),
    Case("no_credit", STOP, 429,
         {"error": {"message": "You exceeded your current quota", "type": "insufficient_quota",
                    "code": "insufficient_quota"}}),
    Case("rate_limited", GATE, 429, {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}),
    Case("invalid_model", STOP, 404, {"error": {"message": "x", "code": "model_not_found"}}),
    Case("context_length", FAIL, 400, {"error": {"message": "x", "code": "context_length_exceeded"}}),
    Case("context_length", FAIL, 400,
         {"error": {"code": 400, "message": "the request exceeds the available context size",
                    "type": "exceed_context_size_error"}}),
    Case("overloaded", GATE, 503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}),
    Case("context_length", FAIL, 400,
         {"object": "error", "message": "This model's maximum context length is 8 tokens.", "type": "BadRequestError",
          "param": None, "code": 400}),
    Case("bad_request", FAIL, 422, {"detail": [{"loc": ["body"], "msg": "field required"}]}),
    Case("not_found", PROVEN, 404, {"detail": "Not Found"}),
    Case("invalid_model", STOP, 404, {"error": "model 'x' not found, try pulling it first"}),
    Case("content_policy", FAIL, 400, {"error": {"message": "filtered", "code": "content_filter", "status": 400}}),
    Case("server_error", RETRY, 200, {"object": "error", "message": "x", "type": "server_error"}),
    # gateways and proxies
    Case("connection", GATE, 407, HTML, {"content_type": "text/html"}),
    Case("overloaded", GATE, 498, b""),
    Case("content_policy", FAIL, 424,
         {"success": False, "error": [{"code": 2016, "message": "Prompt blocked due to security configurations"}]}),
    Case("content_policy", FAIL, 424,
         {"error": [{"code": 2030, "message": "Request content blocked due to DLP policy violations"}]}),
    Case("content_policy", FAIL, 446, {"code": "900514", "type": "REGEX_GUARDRAIL",
                                       "message": {"action": "GUARDRAIL_INTERVENED", "direction": "REQUEST"}}),
    Case("content_filter", FAIL, 200, answer("The capital of Fra", "IMAGE_PROHIBITED_CONTENT")),
    Case("content_filter", FAIL, 200, answer("The capital of Fra", "MODEL_ARMOR")),
    Case("content_filter", FAIL, 200,
         {"choices": [{"finish_reason": "content_filter: PROHIBITED_CONTENT", "index": 0}],
          "usage": {"prompt_tokens": 10, "completion_tokens": 0}}),
    Case("bad_request", FAIL, 400,
         {"error": {"message": "prompt injection detected", "type": "None", "param": "None", "code": "400"}}),
    *(Case(ending, TABLE[ending].action, status, {"error": {"message": text, "code": status}})
      for ending, status, text in (
          ("context_length", 400, "the input token count is 32825 but model only supports up to 32768."),
          ("context_length", 400, "Too many input tokens. Max input tokens: 8192, request input token count: 9279"),
          ("daily_quota", 429, "Requests per day limit exceeded - too many requests sent."),
          ("bad_parameters", 400, "property 'store' is unsupported, did you mean 'stop'?"),
          ("bad_parameters", 400, "This model does not support structured outputs"),
          ("bad_parameters", 400, "JSON mode is not supported for this model"),
          ("bad_parameters", 400, "Malformed input request: #: extraneous key [seed] is not permitted"),
          ("bad_parameters", 400, "it has a maxOutputTokens of 100000 but the supported range is from 1 to 65537"),
          ("bad_parameters", 400, "The maximum tokens you requested exceeds the model limit of 4096."),
      )),
    # max_tokens that alone fills the context is the same for every row
    *(Case(ending, TABLE[ending].action, 400, {"error": {"message": text, "code": "context_length_exceeded"}})
      for ending, text in (
          ("bad_parameters", "'max_tokens' is too large: 5000. This model's maximum context length is 4096 tokens"),
          ("bad_parameters", "maximum context length is 4096 tokens. However, you requested 4096 output tokens"),
          ("context_length", "maximum context length is 128000 tokens. However, you requested 65535 output tokens"),
          ("bad_parameters", "maximum context length is 4097 tokens. (10 in the messages, 5000 in the completion)."),
          ("bad_parameters", "maximum context length of 4096 tokens. 11 of the input, 5000 tokens for the completion"),
          ("bad_parameters", "maximum context length is 4,096 tokens. (10 of text input, 20000 in the output)."),
          ("bad_parameters", "`max_new_tokens` must be <= 4096. Given: 11 `inputs` tokens and 5000 `max_new_tokens`"),
          ("context_length", "`max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 200 `max_new_tokens`"),
      )),
]  # fmt: skip


@pytest.mark.parametrize("case", ROWS, ids=lambda case: f"{case.status}-{case.ending}")
def test_every_row_of_the_decision_table_has_its_ending_and_action(case: Case) -> None:
    """A reply of the decision table gets the ending and the action that the table says."""
    verdict = judged(case.status, case.body, **case.headers)
    assert (verdict.ending, TABLE[verdict.ending].action) == (case.ending, case.action)
    assert verdict.http_status == case.status


FAULTS = [
    (Fault.DNS, False, "connection"),
    (Fault.CONNECT, False, "connection"),
    (Fault.CONNECT, True, "reset"),
    (Fault.TIMEOUT, False, "connection"),
    (Fault.TIMEOUT, True, "timeout"),
    (Fault.RESET, False, "connection"),
    (Fault.RESET, True, "reset"),
    (Fault.TLS, False, "tls"),
    (Fault.TLS, True, "reset"),
    (Fault.PROTOCOL, True, "invalid_response"),
    (Fault.TOO_LARGE, True, "response_too_large"),
]


@pytest.mark.parametrize(("fault", "sent", "ending"), FAULTS)
def test_a_fault_is_judged_by_what_was_sent(fault: Fault, sent: bool, ending: str) -> None:  # noqa: FBT001
    """What was not sent can't be billed, whatever the library calls it."""
    verdict = judge(Reply(fault=fault, sent=sent, detail="gone"), TEXT, now=NOW)
    assert (verdict.ending, verdict.message, verdict.code, verdict.http_status) == (ending, "gone", None, None)


def test_every_ending_is_reached_by_a_reply_or_is_local() -> None:
    """No ending in the table is dead."""
    reached = {case.ending for case in ROWS} | {ending for _, _, ending in FAULTS}
    assert reached | LOCAL | {"unexplained", "refused_alone"} == set(TABLE)  # by what other rows show
    assert not reached & LOCAL


@pytest.mark.parametrize("code", SEED_CODES)
def test_each_code_of_the_seed_is_reported_as_status_and_inside_a_200(code: int) -> None:
    """Each of the promised codes reaches the row's error_code, with words, by status and wrapped in a success."""
    for status in (code, 200):
        verdict = judged(status, error(code, "why"))
        assert (verdict.code, verdict.http_status, verdict.message) == (code, status, "why")


# -- words for people


def test_the_message_names_the_provider_and_its_own_words() -> None:
    """The upstream's words are dug out of metadata.raw, as JSON in a string, as an object, or as text."""
    for raw in ('{"error":{"message":"too hot"}}', {"detail": [{"msg": "too hot"}]}, "too hot", '{"error":"too hot"}'):
        assert judged(400, relayed(400, raw)).message == "[P] too hot"
    assert judged(400, relayed(400, {"odd": 1})).message == "[P] Provider returned error"
    assert judged(400, relayed(400)).provider == "P"


def test_the_message_names_the_reasons_of_a_moderation() -> None:
    """Reasons that the text lacks are added."""
    assert judged(403, error(403, "flagged", reasons=["violence", "hate"])).message == "flagged (violence, hate)"


def test_the_message_holds_no_key_no_control_character_and_no_novel() -> None:
    """Foreign words are one clean line of at most 2,000 characters."""
    secret = "sk-or-v1-0123456789abcdef"
    verdict = judged(400, error(400, f"a\x1b[31m\nb {secret} Bearer {secret} Authorization: bearer\tabc123 \u202eend"))
    assert verdict.message == "a [31m b *** *** Authorization: *** end"
    assert len(judged(400, error(400, "x" * 9_999)).message) == 2_000
    assert secret not in judge(Reply(fault=Fault.RESET, detail=f"Bearer {secret}"), TEXT, now=NOW).message
    assert judged(520, HTML).message == "Attention required!"
    assert judged(500, b"plain words").message == "plain words"


def test_a_verdict_always_says_something() -> None:
    """A failure without words gets those of the table."""
    assert judged(503, b"").message == TABLE["overloaded"].means


def test_words_in_a_shape_that_nobody_knows_are_shown() -> None:
    """Apigee's and WSO2's words are found; where there are none, the body itself stands behind those of the table."""
    fault = {"fault": {"faultstring": "Invalid ApiKey", "detail": {"errorcode": "oauth.v2.InvalidApiKey"}}}
    assert judged(401, fault).message == "Invalid ApiKey"
    assert judged(403, {"type": "about:blank", "title": "Not for you", "status": 403}).message == "Not for you"
    assert judged(400, {"httpCode": 400, "moreInformation": "no"}).message == (
        TABLE["bad_request"].means + ': {"httpCode": 400, "moreInformation": "no"}'
    )
    assert judged(407, HTML).message.startswith("the proxy wants a user name and a password")


# -- what an answer holds


def test_an_answer_gives_its_facts() -> None:
    """Text, model really used, provider, id, tokens and cost are read."""
    body = answer() | {"usage": {"prompt_tokens": 9, "completion_tokens": 10, "cost": 0.00000735, "is_byok": False,
                                 "cost_details": {"upstream_inference_cost": 0.00000735}}}  # fmt: skip
    verdict = judged(200, body)
    assert (verdict.ending, verdict.text, verdict.finish_reason) == ("ok", "Hello!", "stop")
    assert (verdict.model, verdict.provider, verdict.generation_id) == ("m/served", "P", "gen-1")
    assert (verdict.usage.prompt_tokens, verdict.usage.completion_tokens, verdict.usage.cost) == (9, 10, 7_350_000)


@pytest.mark.parametrize(
    ("usage", "read", "written"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 2}}, 5, 2),
        ({"prompt_tokens_details": {"cached_tokens": 5}, "cache_creation_input_tokens": 3}, 5, 3),
        ({"cache_read_input_tokens": 4, "cache_creation_input_tokens": 3}, 4, 3),
        ({"prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 5}, 4, None),
        ({"cached_tokens": 4}, 4, None),
        ({"prompt_tokens_details": {"cached_tokens": 5}, "prompt_cache_hit_tokens": 4}, 5, None),
        ({"prompt_tokens_details": None}, None, None),
        ({"prompt_tokens_details": {"cached_tokens": "many", "cache_write_tokens": -1}}, None, None),
    ],
)
def test_what_a_prompt_cache_served_is_counted(usage: dict[str, Any], read: int | None, written: int | None) -> None:
    """Under OpenAI's names, or those of Anthropic, DeepSeek and Kimi; nonsense counts as unknown."""
    found = judged(200, answer() | {"usage": {"prompt_tokens": 9, **usage}}).usage
    assert (found.prompt_tokens, found.cached_tokens, found.cache_write_tokens) == (9, read, written)


@pytest.mark.parametrize(
    ("content", "finish", "text"),
    [
        ("  x", "stop", "  x"),
        ("x", None, "x"),
        ([{"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "text", "text": "x"}], "stop", "x"),
        ([{"type": "reasoning", "text": "hm"}, {"text": "hm", "thought": True}, {"text": "x"}], "stop", "x"),
        ([{"type": "text", "text": "a"}, {"type": "odd"}, "b", 3], "stop", "ab"),
    ],
)
def test_content_and_finish_reasons_are_read_leniently(content: object, finish: object, text: str) -> None:
    """Parts are joined, and a server that sends no finish_reason is believed."""
    assert (judged(200, answer(content, finish)).ending, judged(200, answer(content, finish)).text) == ("ok", text)


def test_what_the_model_wrote_is_kept_where_it_is_not_an_answer() -> None:
    """Partial text survives truncation, filters, refusals and errors."""
    assert judged(200, answer("par", "length")).text == "par"
    assert judged(200, answer("par", "error")).text == "par"
    assert judged(200, answer(None, refusal="no")).text == "no"
    broken = {"choices": [{"error": {"code": 502}, "message": {"content": "par"}}]}
    assert (judged(200, broken).text, judged(200, broken).code) == ("par", 502)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (rb"cut in an emoji \ud83d", "cut in an emoji \ufffd"),
        (b"no UTF-8 \xff", "no UTF-8 \ufffd"),
        (rb"\\ud83d", r"\ud83d"),
    ],
)
def test_half_characters_cost_no_answer(content: bytes, text: str) -> None:
    """A text that was cut inside a character is read with a mark in its place, and judged as what it is."""
    body = b'\xef\xbb\xbf{"choices": [{"message": {"content": "' + content + b'"}, "finish_reason": "length"}]}'
    verdict = judge(Reply(200, body=body), TEXT, now=0.0)
    assert (verdict.ending, verdict.text) == ("truncated", text)


def test_tool_calls_are_an_answer() -> None:
    """A model that calls a tool did not answer nothing."""
    verdict = judged(200, answer(None, "tool_calls", tool_calls=[{"id": "c"}]))
    assert (verdict.ending, verdict.text) == ("ok", '[{"id":"c"}]')


def test_with_the_users_own_provider_key_the_upstreams_cost_counts() -> None:
    """The fee and the provider's charge are added, only with is_byok."""
    usage = {"cost": 0.05, "is_byok": True, "cost_details": {"upstream_inference_cost": 1}}
    assert judged(200, answer() | {"usage": usage}).usage.cost == from_usd("1.05")
    assert judged(200, answer() | {"usage": usage | {"is_byok": False}}).usage.cost == from_usd("0.05")


def test_a_cached_reply_costs_nothing() -> None:
    """A hit of OpenRouter's response cache is reported and free."""
    usage = judged(200, answer() | {"usage": {"prompt_tokens": 0, "cost": 0.1}}, x_openrouter_cache_status="HIT").usage
    assert (usage.cached, usage.cost) == (True, 0)
    assert not judged(200, answer(), x_openrouter_cache_status="MISS").usage.cached


@pytest.mark.parametrize("cost", [None, -1, "x", True, [], 1e300, "NaN", {}])
def test_an_absurd_cost_is_unknown(cost: object) -> None:
    """A cost that can't be one is not counted as money."""
    assert judged(200, answer() | {"usage": {"cost": cost, "prompt_tokens": "9"}}).usage.cost is None


@given(st.decimals(min_value=0, max_value=1000, places=12, allow_nan=False))
def test_a_cost_is_exactly_what_was_printed(usd: object) -> None:
    """The digits of the JSON number are kept, to the picodollar."""
    body = b'{"choices":[{"message":{"content":"x"}}],"usage":{"cost":%s}}' % format(float(str(usd)), ".15g").encode()
    assert judged(200, body).usage.cost == from_usd(float(str(usd)))


# -- answers that are half of one, or not only one

GOOD = '{"label": "good"}'


@pytest.mark.parametrize(
    ("content", "finish", "ending"),
    [
        (GOOD, "length", "ok"),
        (f"```json\n{GOOD}\n```", "length", "ok"),
        (f"<think>hm</think>{GOOD}   ", "max_tokens", "ok"),
        (GOOD, "a_new_reason", "ok"),
        (GOOD, "content_filter", "content_filter"),
        (GOOD[:-2], "length", "truncated"),
        (f"A naive reading gives {GOOD}. But", "length", "truncated"),
        (f"{GOOD} is wrong, since", "length", "truncated"),
        (f"<think>maybe {GOOD}", "length", "truncated"),
        (f"<think>maybe {GOOD}", "stop", "no_answer"),
        ("", "length", "truncated"),
        ('{"label": "gr\ufffdn"}', "stop", "schema_mismatch"),
        (f"<think>\ufffd</think>{GOOD}", "stop", "ok"),
    ],
)
def test_a_complete_answer_is_an_answer_and_half_of_one_is_none(content: str, finish: str, ending: str) -> None:
    """Where the text may be cut off, it counts only if it is the whole object."""
    verdict = labelled(content, finish)
    assert (verdict.ending, verdict.answer) == (ending, '{"label":"good"}' if ending == "ok" else None)
    assert verdict.text == (content or None)


def test_what_no_column_needs_costs_no_answer() -> None:
    """NaN, numbers too large, raw line breaks, half characters and broken bytes beside the answer are passed over."""
    choice = b'{"message": {"content": "fine"}, "finish_reason": "stop", "logprobs": [NaN, -Infinity, 1e999]}'
    for more in (
        b'"usage": "x"',
        b'"created": NaN',
        b'"id": "\\ud83d"',
        b'"model": "\xff"',
        b'"x": "a\nb"',
        b'"id": 5',
    ):
        verdict = judge(Reply(200, {}, b'{"choices": [' + choice + b"], " + more + b"}"), TEXT, now=NOW)
        assert (verdict.ending, verdict.answer) == ("ok", "fine"), more


def test_broken_characters_in_an_answer_are_not_silently_ok() -> None:
    """Bytes broken on the way, halves of characters, and U+FFFD that the prompt does not contain."""

    def said(content: bytes, prompt: bytes = b"", **headers: str) -> str:
        body = b'{"choices": [{"message": {"content": "%s"}, "finish_reason": "stop"}]}' % content
        return judge(Reply(200, headers, body), TEXT, now=NOW, prompt=prompt).ending

    mark = "\ufffd".encode()
    assert said(b"Gr\xfcn") == said(b"\\ud83d") == said(mark) == said(b"Gr\xfcn", prompt=mark) == "broken_text"
    assert said(mark, prompt=b"quote " + mark) == "ok"


def test_reasoning_without_an_answer_says_so() -> None:
    """The message names what was paid for."""
    body = answer(None, reasoning_content="hm") | {"usage": {"prompt_tokens": 30, "completion_tokens": 700}}
    assert judged(200, body).message == "the model wrote only reasoning and no answer (700 tokens are billed)"


@pytest.mark.parametrize(
    ("reasoning", "finish", "ending"),
    [
        (GOOD, "stop", "ok"),
        (f" {GOOD}\n", None, "ok"),
        (f"I would say {GOOD}", "stop", "no_answer"),
        (f"{GOOD} But is it?", "stop", "no_answer"),
        ('{"label": "other"}', "stop", "no_answer"),
        (GOOD, "content_filter", "content_filter"),
    ],
)
def test_an_answer_in_the_place_of_the_thoughts_counts(reasoning: str, finish: object, ending: str) -> None:
    """It counts if it is all that the model wrote, whole and valid; a text without a schema may be a thought."""
    for name in ("reasoning", "reasoning_content"):
        verdict = labelled(None, finish, **{name: reasoning})
        assert (verdict.ending, verdict.answer) == (ending, '{"label":"good"}' if ending == "ok" else None)
    assert judged(200, answer(None, reasoning_content="Paris")).ending == "no_answer"


@pytest.mark.parametrize(
    ("usage", "written"),
    [
        ({"completion_tokens": 1499, "total_tokens": 14428}, 4308),
        ({"completion_tokens": 0, "total_tokens": 10180}, 60),
        ({"total_tokens": 10180}, 60),
        ({"completion_tokens": 60, "total_tokens": 10180, "completion_tokens_details": {"reasoning_tokens": 50}}, 60),
        ({"completion_tokens": 60, "total_tokens": 15180, "cache_read_input_tokens": 5000}, 60),
        ({"completion_tokens": 60, "total_tokens": 0}, 60),
        ({"completion_tokens": 60, "total_tokens": "many"}, 60),
        ({"completion_tokens": 60}, 60),
    ],
)
def test_thoughts_that_only_the_total_counts_are_counted(usage: dict[str, Any], written: int) -> None:
    """Such as those of xAI and Gemini, which bill them and leave them out of completion_tokens."""
    used = judged(200, answer() | {"usage": {"prompt_tokens": 10120, **usage}}).usage
    assert (used.prompt_tokens, used.completion_tokens) == (10120, written)


def test_thoughts_without_a_text_are_not_nothing() -> None:
    """Gemini shows no thoughts and no text, and 0 tokens beside a total: it is not a cold start, and was billed."""
    body = answer(None) | {"usage": {"prompt_tokens": 21, "completion_tokens": 0, "total_tokens": 81}}
    assert judged(200, body).message == "the model wrote no answer (60 tokens are billed)"


def test_zeros_are_no_count_of_tokens() -> None:
    """No prompt has 0 tokens: a server that counts nothing says nothing about the cost."""
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    used = judged(200, answer() | {"usage": nothing}).usage
    assert (used.prompt_tokens, used.completion_tokens) == (None, None)
    assert judged(200, answer() | {"usage": nothing | {"cost": 0}}).usage.prompt_tokens == 0
    assert judged(200, answer() | {"usage": nothing | {"prompt_tokens": 9}}).usage.completion_tokens == 0


def test_a_failed_generation_is_kept_for_the_repair() -> None:
    """What the server says the model wrote is the text of the verdict."""
    body = {"error": {"message": "x", "code": "json_validate_failed", "failed_generation": "{goo"}}
    assert (judged(400, body).ending, judged(400, body).text) == ("schema_mismatch", "{goo")


# -- when to come back


@pytest.mark.parametrize(
    ("headers", "body", "wait"),
    [
        ({}, error(429), None),
        ({"retry_after": "5"}, error(429), 5.0),
        ({"retry_after": "1.5"}, error(429), 1.5),
        ({"retry_after": "Mon, 21 Sep 2026 14:13:50 GMT"}, error(429), 30.0),
        ({"retry_after": "Mon, 21 Sep 2026 14:13:00 GMT"}, error(429), 0.0),
        ({"retry_after": "-5"}, error(429), 0.0),
        ({"retry_after": "soon"}, error(429), None),
        ({"retry_after": "nan"}, error(429), None),
        ({"retry_after": "1e999"}, error(429), None),
        ({"retry_after_ms": "250", "retry_after": "9"}, error(429), 0.25),
        ({"x_ratelimit_reset": str(int(NOW + 40))}, error(429), 40.0),
        ({"x_ratelimit_reset": "7"}, error(429), 7.0),
        ({}, error(429, headers={"X-RateLimit-Reset": str(int((NOW + 20) * 1000))}), 20.0),
        ({}, error(429, headers={"Retry-After": 3}), 3.0),
        ({"retry_after": "9"}, {"error": {"availability": {"retry_after": 2}}}, 2.0),
        ({}, [{"error": {"code": 429, "details": [{"@type": "x"}, {"retryDelay": "34.5s"}]}}], 34.5),
        ({}, error(429, "No deployments available for selected model, Try again in 60 seconds. Passed model=m"), 60.0),
        ({}, error(429, "Limit 200, Used 200, Requested 1. Please try again in 7m12s. Visit https://x"), 432.0),
        ({}, error(429, "Please try again in 20ms."), 0.02),
        ({}, error(429, "Please retry in 34.074824224s."), 34.074824224),
        ({}, error(429, "Please retry after 26 seconds."), 26.0),
        ({}, error(429, "Please wait 1 minute and 5 seconds before retrying."), 65.0),
        ({}, error(429, "Try again in 5 models"), None),
        ({}, error(429, "please wait before trying again"), None),
        ({"retry_after": "5"}, error(429, "Try again in 60 seconds"), 5.0),
    ],
)
def test_the_wait_is_read_in_all_its_forms(headers: dict[str, str], body: object, wait: float | None) -> None:
    """Seconds, dates, milliseconds, metadata and resets, in the order of their authority."""
    assert judged(429, body, **headers).wait == wait


def test_a_reset_counts_only_for_rate_limits() -> None:
    """Servers that send X-RateLimit-Reset with every reply do not delay other retries."""
    assert judged(502, b"", x_ratelimit_reset="50").wait is None
    assert judged(503, b"", retry_after="50").wait == 50.0


def test_a_limit_that_stops_the_run_says_when_it_ends() -> None:
    """The daily quota ends at its reset or at midnight UTC, a key limit when it says so."""
    reset = error(429, "free-models-per-day", headers={"X-RateLimit-Reset": str(int((NOW + 99) * 1000))})
    assert judged(429, reset).resume_at == NOW + 99
    assert judged(429, error(429, "free-models-per-day")).resume_at == MIDNIGHT
    limit = error(403, "x", limit_source="openrouter_key_limit", resets_at="2026-09-22T00:00:00Z")
    assert judged(403, limit).resume_at == MIDNIGHT
    assert judged(403, error(403, "Key limit exceeded", resets_at="tomorrow")).resume_at is None
    assert judged(429, error(429), retry_after="5").resume_at is None


# -- any bytes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["error", "code", "message", "metadata", "choices", "finish_reason", "content", "usage", "cost", "raw", "headers",
     "availability", "retry_after", "provider_name", "type", "detail", "object", "reasons", "resets_at", "is_byok",
     "cost_details", "refusal", "tool_calls", "id", "model", "prompt_tokens", "X-RateLimit-Reset"]
)  # fmt: skip
SHAPED = st.recursive(
    JSON | st.sampled_from([400, "402", 429, "stop", "error", "Provider returned error"]),
    lambda inner: st.dictionaries(KEYS, inner, max_size=4) | st.lists(inner, max_size=2),
    max_leaves=12,
)
BODIES = st.binary(max_size=200) | SHAPED.map(lambda value: json.dumps(value).encode())
HEADERS = st.dictionaries(
    st.sampled_from(READ_HEADERS),
    st.text(max_size=30) | st.integers().map(str) | st.sampled_from(["HIT", "text/html"]),
    max_size=3,
)


class Watched(UserDict[str, str]):
    """Headers that remember which of them were looked for."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.read: set[str] = set()
        super().__init__(headers)

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return super().__contains__(name)

    def __getitem__(self, name: str) -> str:
        self.read.add(name)
        return super().__getitem__(name)


@example(503, {}, b'{"availability": {"code": []}}')
@given(st.integers(-1, 1000) | st.sampled_from([200, 400, 401, 402, 403, 404, 429, 503]), HEADERS, BODIES)
def test_any_reply_gives_exactly_one_verdict(status: int, headers: dict[str, str], body: bytes) -> None:
    """Any bytes with any status and headers never raise and end in the table, with sane facts.

    No header is read that the senders may leave out.
    """
    watched = Watched(headers)
    verdict = judge(Reply(status, watched, body), TEXT, now=NOW)
    assert watched.read <= set(READ_HEADERS)
    assert verdict.ending in TABLE
    assert verdict.ending not in LOCAL
    assert verdict.code is None or 300 <= verdict.code <= 599
    assert len(verdict.message) <= 2_000
    assert verdict.wait is None or 0 <= verdict.wait < float("inf")
    assert (verdict.ending == "ok") <= bool(verdict.text)
    verdict.message.encode()
