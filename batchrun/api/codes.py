"""THE table: every way an attempt or a row can end, and what is done about it.

The names are public (the output's column `error_type`). Sources are the sections of OpenRouter's documentation that
docs/openrouter.md lists; "inferred" there means that no documentation says it.
"""

import re
from dataclasses import dataclass
from enum import StrEnum


class Blame(StrEnum):
    """Whose fault an ending is; decides what people are told and what the breaker counts."""

    NOBODY = "nobody"
    ROW = "row"
    JOB = "job"
    SERVER = "server"
    UNKNOWN = "unknown"


class Action(StrEnum):
    """What the pool does with an ending."""

    ACCEPT = "accept"
    RETRY = "retry"
    GATE = "gate all"
    CONFIRM = "confirm, then stop"
    FAIL = "fail the row"
    FAIL_IF_PROVEN = "stop the run until an answer has come, then fail the row"
    STOP = "stop the run"


class Count(StrEnum):
    """Which count bounds the tries of one question in one run."""

    NONE = "none"
    ATTEMPTS = "limits.attempts"
    ONCE = "one more"
    SENT = "at most 2 possibly billed"
    EMPTY = "3 more, with longer waits"
    TIME = "time behind the gate"
    REPAIRS = "answer.repairs"


@dataclass(frozen=True, slots=True)
class Ending:
    """One row of the table.

    `code` is the API's code that it usually comes with (the row keeps the one that came). `slows`: the pool lowers its
    concurrency. `again`: the next run asks the row again by itself. `exhausted`: what is done when the tries are
    used up (FAIL or STOP). `maybe_billed`: the server may charge for it and nobody told how much, so what was reserved
    for it stays reserved.
    """

    name: str
    code: int | None
    blames: Blame
    action: Action
    means: str
    do: str
    count: Count = Count.NONE
    slows: bool = False
    again: bool = False
    exhausted: Action = Action.FAIL
    maybe_billed: bool = False


_ROW, _JOB, _SERVER, _UNKNOWN = Blame.ROW, Blame.JOB, Blame.SERVER, Blame.UNKNOWN
_RETRY, _GATE, _FAIL, _STOP = Action.RETRY, Action.GATE, Action.FAIL, Action.STOP
_TRIES, _SENT = Count.ATTEMPTS, Count.SENT

_ENDINGS = (
    Ending("ok", None, Blame.NOBODY, Action.ACCEPT, "the model answered", "nothing"),
    # 400
    Ending("bad_request", 400, _UNKNOWN, _FAIL,
           "the server refused this request and did not say what in it is wrong",
           "read error_message; if many rows fail alike, look at model.params"),
    Ending("bad_parameters", 400, _JOB, Action.FAIL_IF_PROVEN,
           "the server refuses a parameter or the answer's schema, which are the same for every row",
           "correct model.params or answer; for a server without strict schemas set answer.mode: object, or prompt"),
    Ending("invalid_model", 400, _JOB, _STOP,
           "the server does not know the model",
           "correct model.name or model.fallbacks"),
    Ending("context_length", 400, _ROW, _FAIL,
           "prompt and max_tokens do not fit into the model's context",
           "shorten the prompt, lower max_tokens, or take a model with a longer context"),
    Ending("invalid_prompt", 400, _ROW, _FAIL,
           "the server refuses this row's messages", "look at the row with `batchrun preview --row N`"),
    Ending("invalid_image", 400, _ROW, _FAIL,
           "an image can't be used: its format, its size, or it can't be fetched", "correct the image of this row"),
    Ending("content_policy", 400, _ROW, _FAIL,
           "the server's content policy refuses this row's text", "leave the row, or ask another model"),
    Ending("provider_rejected", 400, _UNKNOWN, _RETRY,
           "the provider behind OpenRouter refused the request", "read error_message for the provider's own words",
           count=Count.ONCE),
    # 401
    Ending("unauthorized", 401, _JOB, Action.CONFIRM,
           "the API key is missing, wrong or revoked", "set the key's variable, then run the same command again",
           count=Count.ONCE, exhausted=_STOP),
    Ending("provider_unauthorized", 401, _SERVER, _RETRY,
           "the provider behind OpenRouter has a problem with its own key", "run again later, or take other providers",
           count=_TRIES, again=True),
    # 402
    Ending("in_flight_budget", 402, _SERVER, _GATE,
           "requests in flight hold more credit than the account's in-flight budget",
           "nothing: concurrency is lowered; a lower max_tokens or more credit makes it faster",
           count=Count.TIME, slows=True, again=True),
    Ending("request_over_budget", 402, _UNKNOWN, _FAIL,
           "this one request costs more than the budget allows", "lower max_tokens or raise the budget"),
    Ending("no_credit", 402, _JOB, _STOP,
           "the account's credit is used up", "add credit, then run the same command again"),
    # 403
    Ending("moderated", 403, _ROW, _FAIL,
           "moderation flagged this row's text; nothing was charged", "leave the row, or ask an unmoderated model"),
    Ending("guardrail", 403, _ROW, _FAIL,
           "a guardrail of the account blocks this row's text", "leave the row, or change the guardrail"),
    Ending("key_limit", 403, _JOB, _STOP,
           "the key's or the account's spending limit is reached",
           "raise the limit or wait for its reset, then run the same command again"),
    Ending("forbidden", 403, _UNKNOWN, _FAIL,
           "the server does not permit this request", "look at the key's rights and the model's regions"),
    Ending("edge_blocked", 403, _SERVER, _GATE,
           "the server's edge answered with a page in place of the API", "wait, then run the same command again",
           count=_TRIES, slows=True, again=True, exhausted=_STOP),
    # 404
    Ending("no_endpoint", 404, _JOB, _STOP,
           "no provider serves this model with these parameters and routing",
           "correct model.name, model.params.provider or the account's privacy settings; for a model without strict "
           "schemas set answer.mode: object, or prompt"),
    Ending("not_found", 404, _JOB, Action.FAIL_IF_PROVEN,
           "the server knows no such address or model", "correct model.endpoint or model.name"),
    Ending("unsupported_input", 404, _ROW, _FAIL,
           "no provider of this model takes the row's kind of input", "take a model that does"),
    Ending("provider_not_found", 404, _SERVER, _RETRY,
           "the provider behind OpenRouter did not find the model", "run again later",
           count=_TRIES, again=True),
    # other 3xx and 4xx
    Ending("redirected", None, _JOB, _STOP,
           "the server answers with a redirect, which is never followed with a key",
           "write the final address into model.endpoint"),
    Ending("request_timeout", 408, _SERVER, _RETRY, "the server ran out of time",
           "run again; for long answers raise limits.timeout", count=_TRIES, again=True),
    Ending("conflict", 409, _SERVER, _RETRY, "the server was in a state that did not fit the request", "run again",
           count=_TRIES, again=True),
    Ending("precondition_failed", 412, _UNKNOWN, _FAIL, "a precondition of the request did not hold",
           "read error_message"),
    Ending("payload_too_large", 413, _ROW, _FAIL, "the request is larger than the server takes",
           "shorten the prompt or shrink the images"),
    Ending("unsupported_media", 415, _UNKNOWN, _FAIL, "the server does not take such content", "read error_message"),
    Ending("unprocessable", 422, _UNKNOWN, _FAIL, "the server can't process this request",
           "read error_message; if many rows fail alike, look at model.params"),
    Ending("too_early", 425, _SERVER, _RETRY, "the server asks to come back", "run again", count=_TRIES, again=True),
    Ending("unexpected_status", None, _UNKNOWN, _FAIL, "the server answered with a status that the table does not know",
           "read error_message"),
    # 429
    Ending("rate_limited", 429, _SERVER, _GATE, "too many requests for now",
           "nothing: the run waits; limits.requests_per_minute avoids it", count=Count.TIME, slows=True, again=True),
    Ending("upstream_rate_limited", 429, _SERVER, _GATE, "the providers behind OpenRouter are at their limit for now",
           "nothing: the run waits; a fallback model or your own provider key avoids it",
           count=Count.TIME, slows=True, again=True),
    Ending("daily_quota", 429, _JOB, _STOP, "the day's free requests are used up",
           "run the same command again after the reset, or add credit"),
    # 5xx
    Ending("client_closed", 499, _SERVER, _RETRY, "the server saw the connection closed", "run again",
           count=_TRIES, again=True),
    Ending("server_error", 500, _SERVER, _RETRY, "the server failed", "run again later", count=_TRIES, again=True),
    Ending("bad_gateway", 502, _SERVER, _RETRY, "the model is down or gave an invalid reply", "run again later",
           count=_TRIES, again=True),
    Ending("overloaded", 503, _SERVER, _GATE, "the server or the model is overloaded", "nothing: the run waits",
           count=Count.TIME, slows=True, again=True),
    Ending("no_provider_available", 503, _JOB, _RETRY, "no provider that the routing allows is available",
           "loosen model.params.provider, or run again later", count=_TRIES, again=True, exhausted=_STOP),
    Ending("gateway_timeout", 504, _SERVER, _RETRY, "the model did not answer in the server's time",
           "run again; lower max_tokens if it repeats", count=_TRIES, again=True),
    Ending("edge_error", 520, _SERVER, _RETRY, "the network edge before the server failed", "run again later",
           count=_TRIES, again=True),
    Ending("provider_overloaded", 529, _SERVER, _RETRY, "the provider behind OpenRouter is overloaded",
           "run again later", count=_TRIES, slows=True, again=True),
    # inside an HTTP 200
    Ending("generation_error", 502, _SERVER, _RETRY, "the model broke off with an error", "run again later",
           count=_TRIES, again=True),
    Ending("invalid_response", None, _SERVER, _RETRY, "the reply is not what the API promises (cut off, or no JSON)",
           "run again; if it repeats, look at model.endpoint", count=_SENT, again=True, maybe_billed=True),
    Ending("empty_response", None, _SERVER, _RETRY, "the model answered nothing, as on a cold start", "run again later",
           count=Count.EMPTY, again=True),
    Ending("truncated", None, _ROW, _FAIL, "the answer was cut off at max_tokens",
           "raise model.params.max_tokens: such rows are then asked again"),
    Ending("content_filter", None, _ROW, _FAIL, "the provider's content filter cut the answer",
           "leave the row, or ask another model"),
    Ending("refused", None, _ROW, _FAIL, "the model refused to answer", "leave the row, or ask another model"),
    Ending("schema_mismatch", None, _ROW, _RETRY, "the answer does not fit the answer's schema, repairs included",
           "see answer_raw; describe the columns better, raise answer.repairs, then `batchrun retry`; a server that "
           "takes no notice of schemas needs answer.mode: prompt",
           count=Count.REPAIRS),
    # no HTTP reply
    Ending("timeout", None, _SERVER, _RETRY, "no full reply within limits.timeout; it may be billed",
           "raise limits.timeout or lower concurrency, then run again", count=_SENT, again=True, maybe_billed=True),
    Ending("reset", None, _SERVER, _RETRY, "the connection broke after sending; the request may be billed", "run again",
           count=_SENT, again=True, maybe_billed=True),
    Ending("connection", None, _SERVER, _GATE, "no connection to the server; nothing was sent",
           "look at the network and model.endpoint, then run again", count=_TRIES, again=True, exhausted=_STOP),
    Ending("tls", None, _JOB, Action.CONFIRM, "the server's certificate can't be trusted; nothing was sent",
           "set model.ca_file, or look at the network", count=Count.ONCE, exhausted=_STOP),
    Ending("response_too_large", None, _ROW, _FAIL, "the reply is larger than model.max_response_mb",
           "raise model.max_response_mb or lower max_tokens", maybe_billed=True),
    # before sending
    Ending("template_error", None, _ROW, _FAIL, "the prompt can't be made for this row; nothing was sent",
           'use {{ x | default("…") }} or input.where, or correct the row', again=True),
    Ending("request_too_large", None, _ROW, _FAIL, "the prompt made for this row is too long to send; nothing was sent",
           "shorten the row's text", again=True),
    Ending("image_error", None, _ROW, _FAIL, "a local image is missing, too large or no image; nothing was sent",
           "correct the image of this row", again=True),
)  # fmt: skip

TABLE: dict[str, Ending] = {ending.name: ending for ending in _ENDINGS}
"""All endings by name."""

ASKED_AGAIN: frozenset[str] = frozenset(ending.name for ending in _ENDINGS if ending.again)
"""Names of failures that the next run asks again by itself."""

LOCAL: frozenset[str] = frozenset({"template_error", "request_too_large", "image_error", "schema_mismatch"})
"""Names of endings that no reply brings by itself: they arise before sending, or from checking an answer."""

SEED_CODES: tuple[int, ...] = (400, 401, 402, 403, 408, 429, 502, 503)
"""The codes that every row's error_code must be able to tell apart."""

LOWEST_CODE, HIGHEST_CODE = 300, 599
"""What counts as a code of the API."""

STATUSES: dict[int, str] = {
    400: "bad_request", 401: "unauthorized", 402: "no_credit", 403: "forbidden", 404: "not_found",
    408: "request_timeout", 409: "conflict", 412: "precondition_failed", 413: "payload_too_large",
    415: "unsupported_media", 422: "unprocessable", 425: "too_early", 429: "rate_limited", 499: "client_closed",
    500: "server_error", 502: "bad_gateway", 503: "overloaded", 504: "gateway_timeout", 524: "gateway_timeout",
    529: "provider_overloaded",
    **dict.fromkeys((520, 521, 522, 523, 525, 526, 527, 530), "edge_error"),
}  # fmt: skip
"""The ending of a code about which nothing more is known."""

RELAYED: dict[int, str] = {
    400: "provider_rejected", 401: "provider_unauthorized", 402: "provider_unauthorized", 403: "provider_rejected",
    404: "provider_not_found", 429: "upstream_rate_limited",
}  # fmt: skip
"""The ending of a code that is a provider's verdict, which OpenRouter only relays: not on our key, credit or model."""

_ENDING_WORDS = {
    "request_over_budget": "weight_exceeds_budget",
    "in_flight_budget": "openrouter_in_flight_budget in_flight_budget_exhausted",
    "key_limit": "openrouter_key_limit openrouter_guardrail_budget openrouter_workspace_budget key_limit",
    "no_credit": "openrouter_credits insufficient_quota billing_hard_limit_reached",
    "daily_quota": "openrouter_free_tier_daily",
    "rate_limited": "openrouter_free_tier_per_minute openrouter_shared_capacity",
    "upstream_rate_limited": "upstream_provider_shared_pool capacity_exhausted",
    "context_length": "context_length_exceeded exceed_context_size_error max_tokens_exceeded token_limit_exceeded "
                      "string_too_long string_above_max_length",
    "content_policy": "content_policy_violation content_filter",
    "refused": "refusal",
    "invalid_prompt": "invalid_prompt",
    "invalid_image": "invalid_image image_too_large image_too_small unsupported_image_format image_download_failed "
                     "image_not_found",
    "invalid_model": "model_not_found wrong_endpoint",
    "no_endpoint": "no_endpoints model_deprecated privacy_restricted constraint_filtered free_variant_ended",
}  # fmt: skip
WORDS: dict[str, str] = {word: ending for ending, words in _ENDING_WORDS.items() for word in words.split()}
"""The ending that a word for programs names, whatever the status below 500; the first one found counts."""

_CODE_WORDS = {
    400: "invalid_request invalid_request_error", 401: "authentication authentication_error invalid_api_key",
    402: "payment_required", 403: "permission_denied", 404: "not_found", 413: "payload_too_large",
    422: "unprocessable", 429: "rate_limit_exceeded rate_limit_error", 500: "server server_error unmapped",
    502: "provider_unavailable", 503: "provider_overloaded overloaded_error", 504: "timeout",
}  # fmt: skip
WORD_CODES: dict[str, int] = {word: code for code, words in _CODE_WORDS.items() for word in words.split()}
"""The code of an error inside a 200 that brings a word in place of a number."""

_ENDING_TEXTS = (
    ((400,), r"not a valid model|model .{0,80}does not exist", "invalid_model"),
    (
        (400,),
        r"context (length|size|window)|maximum .{0,20}tokens|too many tokens|prompt is too long",
        "context_length",
    ),
    ((400,), r"response_format|json_schema|invalid schema|the word .{0,3}json", "bad_parameters"),
    ((400,), r"unrecognized|unknown param|unsupported param|extra inputs|items or fewer", "bad_parameters"),
    ((400,), r"content (policy|management)|safety system|flagged", "content_policy"),
    ((400,), r"image.{0,40}(invalid|unsupported|format|too (large|small)|download|fetch)", "invalid_image"),
    ((400,), r"(invalid|unsupported|download|fetch|decode).{0,40}image", "invalid_image"),
    ((402, 403), r"key limit|spending limit|monthly limit", "key_limit"),
    ((403,), r"request blocked|guardrail", "guardrail"),
    ((403,), r"requires moderation|flagged", "moderated"),
    ((404,), r"that support (image|audio|video|file|tool)", "unsupported_input"),
    ((404,), r"no endpoints|no allowed providers|data policy|guardrail restrictions", "no_endpoint"),
    ((429,), r"per-day|daily limit", "daily_quota"),
    ((429,), r"upstream", "upstream_rate_limited"),
    ((503,), r"no (available |allowed )?(model )?provider|routing requirements", "no_provider_available"),
)
TEXTS = tuple((codes, re.compile(pattern), ending) for codes, pattern, ending in _ENDING_TEXTS)
"""The ending that lower-case English text tells within a code, for APIs without words for programs."""
