"""THE table of the simulator: every way it can treat a request, by name.

A case is chosen by the model's name (`sim/429-daily`) or drawn at a seeded rate. It is one of three kinds: a refusal
(an error body before any generation), an answer altered by a function of altering.py, or a reply put on the wire by a
function of wire.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

ALWAYS = 1 << 62
"""As a number of attempts: all of them."""

_HTML = "<!DOCTYPE html><html><head><title>$MODEL</title></head><body>cloudflare</body></html>"


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table.

    `error` is the body of a refusal, JSON or text, with $NAMES to be filled in. `headers` are added to the reply's.
    `alter` and `wire` name functions. `billed` is false where a reply is lost that never was a generation.
    """

    name: str
    says: str
    status: int = 200
    error: Mapping[str, Any] | str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    alter: str = ""
    wire: str = ""
    billed: bool = True


def _refusal(name: str, says: str, message: str, *, http: int = 0, **more: Any) -> Case:  # noqa: ANN401  (JSON)
    """Return a refusal in the API's envelope: `more` is the error's metadata, but for what is popped here."""
    code = more.pop("code", None) or int(name[:3])
    headers, user = more.pop("http_headers", {}), more.pop("user_id", None)
    error: dict[str, Any] = {"code": code, "message": message, **more.pop("beside", {})}
    body: dict[str, Any] = {"error": error | ({"metadata": more} if more else {})}
    return Case(name, says, http or code, body | ({"user_id": user} if user else {}), headers)


def _relayed(name: str, says: str, raw: Any, **more: Any) -> Case:  # noqa: ANN401  (JSON)
    """Return a refusal that relays a provider's own error."""
    return _refusal(name, says, "Provider returned error", raw=raw, provider_name="Simulated Provider", **more)


def _page(name: str, says: str) -> Case:
    """Return a refusal by the network edge, as an HTML page."""
    return Case(name, says, int(name[:3]), _HTML, {"content-type": "text/html; charset=UTF-8"})


def _altered(name: str, says: str, alter: str = "") -> Case:
    return Case(name, says, alter=alter or name.removeprefix("200-"))


def _wired(name: str, says: str, *, billed: bool = True) -> Case:
    return Case(name, says, wire=name, billed=billed)


def _limit(limit: str, reset: str) -> dict[str, Any]:
    """Return a platform limit's headers, which stand in HTTP and in the body."""
    headers = {"X-RateLimit-Limit": limit, "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}
    return {"headers": headers, "http_headers": {name.lower(): value for name, value in headers.items()}}


_NO_CREDIT = "Insufficient credits. Add more using https://openrouter.ai/credits"
_AFFORD = (
    "This request requires more credits, or fewer max_tokens. You requested up to $TOKENS tokens, but can only afford"
)

_REFUSALS = (
    _refusal("400", "a bad request that says nothing more", "Bad Request"),
    _refusal("400-model", "the model does not exist", "$MODEL is not a valid model ID"),
    _relayed("400-schema", "the answer's schema is refused by the provider",
             '{"error":{"message":"Invalid schema for response_format \'answer\': \'required\' is required to be '
             'supplied and to be an array including every key in properties.","type":"invalid_request_error"}}'),
    _refusal("400-unrecognized-key", "an unknown key in `provider`", "Unrecognized key(s) in object: 'fastest'"),
    _refusal("400-models-limit", "too many fallback models", "'models' array must have 3 items or fewer"),
    _refusal("400-context", "prompt and max_tokens exceed the context",
             "This endpoint's maximum context length is 8192 tokens. However, you requested about 9000 tokens.",
             error_type="context_length_exceeded"),
    _refusal("400-string-too-long", "one string is too long", "string too long", error_type="string_too_long"),
    _refusal("400-prompt", "the messages are refused", "invalid messages", error_type="invalid_prompt"),
    _refusal("400-image", "an image can't be used", "unsupported image format", error_type="unsupported_image_format"),
    _refusal("400-content-policy", "the content policy refuses the row", "The request violates the content policy.",
             error_type="content_policy_violation"),
    _refusal("400-refusal", "the model refuses before it writes", "The model refused.", error_type="refusal"),
    _relayed("400-relayed", "the provider refuses the request", '{"detail":"this request can not be served"}'),
    _refusal("401", "the key is unknown", "User not found.", user_id="user_simulated"),
    _refusal("401-missing", "there is no key", "Missing Authentication header"),
    _refusal("401-no-cookie", "there is no key, in other words", "No cookie auth credentials found"),
    _relayed("401-relayed", "the provider's own key is broken",
             '{"error":{"code":"authentication_error","message":"invalid API key"}}', is_byok=False),
    _refusal("402-in-flight", "requests in flight hold too much credit; with Retry-After",
             "This request would exceed your available credits given your current in-flight requests. Retry after "
             "in-flight requests settle, or add credits.", reason="in_flight_budget_exhausted",
             limit_source="openrouter_in_flight_budget", remedy_hint="Lower max_tokens.",
             http_headers={"retry-after": "$WAIT"}),
    _refusal("402-weight", "this one request exceeds the budget", "This request alone exceeds the in-flight budget.",
             reason="weight_exceeds_budget", limit_source="openrouter_in_flight_budget"),
    _refusal("402-credits", "the credit left does not pay this request", f"{_AFFORD} $AFFORD.",
             limit_source="openrouter_credits", provider_name=None,
             previous_errors=[{"code": 402, "message": f"{_AFFORD} $AFFORD."}]),
    _refusal("402-prompt-tokens", "the credit left does not pay this prompt",
             "Prompt tokens limit exceeded: $TOKENS > $AFFORD. To increase, add more credits."),
    _refusal("402-insufficient", "no credit is left", _NO_CREDIT),
    _refusal("402-key-limit", "the key's limit is reached, as 402", "Key limit exceeded.",
             limit_source="openrouter_key_limit"),
    _refusal("403-moderated", "moderation flagged the row's text",
             '$MODEL requires moderation on Simulated Provider. Your input was flagged for "violence". No credits were '
             "charged.", reasons=["violence"], flagged_input="simulated", provider_name="Simulated Provider",
             model_slug="$MODEL"),
    _refusal("403-guardrail", "a guardrail blocks the row's text", "Request blocked: simulated pattern",
             patterns=["simulated"]),
    _refusal("403-key-limit", "the key's limit is reached",
             "Key limit exceeded (total limit). Manage it using https://openrouter.ai/settings/keys"),
    _refusal("403-budget", "a spending budget is reached until its reset", "Workspace budget exceeded.",
             limit_source="openrouter_workspace_budget", scope="workspace", limit_usd=10, spend_usd=10,
             resets_at="$DAY_ISO"),
    _refusal("403-forbidden", "the key may not do this", "This model is not available in your region.",
             error_type="permission_denied"),
    _page("403-html", "the network edge blocks, with a page"),
    _refusal("404-no-endpoints", "no provider serves the model", "No endpoints found for $MODEL."),
    _refusal("404-parameters", "no provider supports all parameters",
             "No endpoints found that can handle the requested parameters."),
    _refusal("404-data-policy", "the privacy settings exclude all providers",
             "No endpoints found matching your data policy (Free model training)."),
    _refusal("404-providers", "the routing excludes all providers",
             "No allowed providers are available for the selected model."),
    _refusal("404-image-input", "the model takes no images", "No endpoints found that support image input"),
    _relayed("404-relayed", "the provider does not find the model", "model not found"),
    _refusal("404-retryable", "no endpoint for now", "No endpoints found for $MODEL.",
             beside={"availability": {"code": "no_endpoints", "retryable": True, "retry_after": 1}}),
    _refusal("404", "nothing is at this address", "Not Found"),
    _refusal("408", "the server ran out of time", "Request timed out"),
    _refusal("409", "a conflict", "Conflict"),
    _refusal("412", "a precondition failed", "Precondition failed", error_type="precondition_failed"),
    _refusal("413", "the request is too large", "Payload too large", error_type="payload_too_large"),
    _refusal("415", "the content type is refused", "Unsupported media type"),
    _refusal("418", "a status that no documentation names", "I'm a teapot"),
    _refusal("422", "the request can't be processed", "Unprocessable", error_type="unprocessable"),
    _refusal("425", "too early", "Too early"),
    _relayed("429", "the upstream pool is at its limit; no hint when it ends",
             "$MODEL is temporarily rate-limited upstream. Please retry shortly, or add your own key.",
             limit_source="upstream_provider_shared_pool", remedy_hint="Add a fallback model."),
    _relayed("429-retry-after", "the upstream pool is at its limit; Retry-After in seconds", "rate limited",
             limit_source="upstream_provider_shared_pool", http_headers={"retry-after": "$WAIT"}),
    _relayed("429-retry-after-date", "the same; Retry-After is a date", "rate limited",
             limit_source="upstream_provider_shared_pool", http_headers={"retry-after": "$DATE"}),
    _relayed("429-retry-after-ms", "the same; retry-after-ms", "rate limited",
             limit_source="upstream_provider_shared_pool", http_headers={"retry-after-ms": "$WAIT_MS"}),
    _refusal("429-availability", "the same; the wait stands in `availability`", "capacity exhausted",
             beside={"availability": {"code": "capacity_exhausted", "retryable": True, "retry_after": "$WAIT_NUMBER"}}),
    _refusal("429-per-minute", "the account's requests of this minute are used up",
             "Rate limit exceeded: free-models-per-min. ", limit_source="openrouter_free_tier_per_minute",
             **_limit("$MINUTE_LIMIT", "$MINUTE_MS")),
    _refusal("429-shared-capacity", "the model's requests of this minute are used up",
             "Rate limit exceeded: $MODEL. High demand for $MODEL on OpenRouter - limited to 15 requests per minute. "
             "Please retry shortly.", limit_source="openrouter_shared_capacity", **_limit("15", "$MINUTE_MS")),
    _refusal("429-daily", "the day's free requests are used up",
             "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free model requests per day",
             limit_source="openrouter_free_tier_daily", **_limit("$DAY_LIMIT", "$DAY_MS")),
    _page("429-html", "the network edge asks to slow down, with a page"),
    _refusal("499", "the server saw the connection closed", "Client closed request"),
    _refusal("500", "the server failed", "Internal Server Error", error_type="server"),
    _refusal("502", "the model is down", "Provider returned error"),
    _refusal("503", "the model is overloaded; Retry-After in seconds", "Provider overloaded",
             error_type="provider_overloaded", http_headers={"retry-after": "$WAIT"}),
    _refusal("503-no-provider", "no provider that the routing allows is up",
             "There is no available model provider that meets your routing requirements."),
    _refusal("504", "the model did not answer in time", "Gateway timeout", error_type="timeout"),
    _page("520-html", "the network edge failed, with a page"),
    _page("524-html", "the network edge gave up waiting, with a page"),
    _refusal("529", "the provider is overloaded", "Provider returned error"),
    _refusal("530", "the origin is unreachable", "Origin unreachable"),
    Case("error-string", "500 whose error is a plain string", 500, {"error": "upstream exploded"}),
    _refusal("error-code-string", "502 whose code is a word", "The provider failed", code="server_error", http=502),
    Case("redirect", "307 to another path of this server", 307, "", {"location": "/api/v1/redirected"}),
    _relayed("200-error-524", "HTTP 200 with error 524 in place of choices", "error code: 524", http=200, code=524,
             user_id="user_simulated"),
    _relayed("200-error-429", "HTTP 200 with error 429 in place of choices", "rate limited", http=200, code=429),
    _relayed("200-error-400", "HTTP 200 with error 400 in place of choices", "bad request", http=200, code=400),
    _refusal("200-error-policy", "HTTP 200 with a policy block that calls itself 502",
             "This request was flagged for possible cybersecurity risk", http=200, code=502),
)  # fmt: skip

_ANSWERS = (
    Case("good", "a good answer"),
    _altered("200-error-choice", "the generation breaks off: an error inside the choice"),
    _altered("200-error-finish", "the generation breaks off: finish_reason error, no error object, usage null"),
    _altered("200-no-choices", "choices is empty, as on a cold start"),
    _altered("200-choices-missing", "there is no choices"),
    _altered("200-empty", "content null and no tokens, as on a cold start"),
    _altered("200-empty-string", 'content "" with finish_reason stop'),
    _altered("200-reasoning", "reasoning used up max_tokens: no content, finish_reason length"),
    _altered("200-parts", "a good answer as a list of parts"),
    _altered("200-null-usage", "a good answer without token counts and cost"),
    _altered(
        "byok", "a good answer on the user's own provider key: cost is the fee, the upstream's cost stands beside it"
    ),
    _altered("unknown-fields", "a good answer with fields and a finish_reason that no documentation names"),
    _altered("fenced", "the JSON in a code fence"),
    _altered("prose", "the JSON with prose around it"),
    _altered("not-json", "prose in place of JSON"),
    _altered("cut-json", "the JSON ends in the middle, though finish_reason is stop"),
    _altered("wrong-enum", "an enum's value that is not allowed"),
    _altered("wrong-type", "a value of another type"),
    _altered("extra-key", "a key that the schema does not name"),
    _altered("missing-key", "a required key is missing"),
    _altered("null", "null where a value is required"),
    _altered("truncated", "the answer cut at max_tokens, finish_reason length"),
    _altered("content-filter", "the answer cut by a filter, finish_reason content_filter"),
    _altered("refusal", "the model refuses: message.refusal"),
    _altered("hostile-text", "terminal escapes, markup, bidi controls and a formula in every text"),
)

_WIRES = (
    _wired("200-cut-json", "the body ends in the middle of its JSON"),
    _wired("200-empty-body", "an empty body"),
    _wired("200-whitespace", "a body of blanks"),
    _wired("200-html", "a page of the network edge", billed=False),
    _wired("leading-whitespace", "a good answer after blanks that kept the connection alive"),
    _wired("lone-surrogate", "a text with half a surrogate pair"),
    _wired("not-utf8", "bytes that are no UTF-8 inside the JSON"),
    _wired("deep-json", "JSON nested 100,000 deep"),
    _wired("gzip", "a good answer, compressed"),
    _wired("bad-gzip", "says gzip and is not"),
    _wired("gzip-bomb", "200 MiB in 200 KiB of gzip"),
    _wired("endless-body", "a body without end", billed=False),
    _wired("endless-headers", "headers without end", billed=False),
    _wired("garbage", "bytes that are no HTTP", billed=False),
    _wired("wrong-length", "a content-length that is too small, more bytes behind it"),
    _wired("connection-close", "a good answer, then the connection is closed"),
    _wired("slow-first-byte", "a good answer whose first byte comes late"),
    _wired("drip", "a good answer that drips in piece by piece"),
    _wired("hang", "no answer at all; the connection stays open"),
    _wired("drop", "the connection is closed in place of an answer"),
    _wired("reset", "the connection is reset in place of an answer"),
    _wired("drop-mid-body", "the connection is closed in the middle of the answer"),
)

TABLE: dict[str, Case] = {case.name: case for case in (*_REFUSALS, *_ANSWERS, *_WIRES)}
"""All cases by name."""

GOOD = TABLE["good"]


def names() -> tuple[str, ...]:
    """List all cases, as they follow `sim/` in a model's name."""
    return tuple(TABLE)


def with_senders(senders: Sequence[str]) -> list[tuple[str, str]]:
    """Return the cases with who sends: in turn, and all of them where the wire itself is broken.

    Other replies are whole, and their bytes are the same for every sender (tests/unit/senders holds them to that).
    """
    return [
        (name, sender)
        for place, name in enumerate(names())
        for sender in senders
        if TABLE[name].wire or sender == senders[place % len(senders)]
    ]


@lru_cache(maxsize=1024)
def find(name: str) -> tuple[Case, int | None]:
    """Return the case of a name and how many first attempts it has (None where the name says nothing).

    `503:2` is the case 503 for two attempts, `503:always` for all. Raises ValueError.
    """
    base, colon, times = name.partition(":")
    case = TABLE.get(base)
    if case is None or (colon and not (times == "always" or times.isdecimal())):
        raise ValueError(f'the simulator has no case "{name}"; tests/openrouter/cases.py lists them')
    return case, None if not colon else ALWAYS if times == "always" else int(times)
