"""THE table: every way an attempt or a row can end, and the action that follows.

The names are public (the output's column `error_type`). A code has a name of its own only where something else is done
about it: the code itself stands in `error_code`, the server's own words in `error_message`.
"""

from dataclasses import dataclass
from enum import StrEnum


class Blame(StrEnum):
    """Whose fault an ending is; it decides what the summary shows and what the breaker counts."""

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
    FAIL_IF_PROVEN = "stop the run at the second such row unless an answer has come, then fail the row"
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
    concurrency. `again`: the next run asks the row again by itself. `retry`: asking the same question again may bring
    an answer, which is what `batchrun retry` is for. `exhausted`: the action when the tries are
    used up (FAIL or STOP). `maybe_billed`: the server may charge for it and did not say how much, so its reservation
    stays. `outage`: many different rows that end so prove an outage, which no row is to blame for.
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
    retry: bool = False
    exhausted: Action = Action.FAIL
    maybe_billed: bool = False
    outage: bool = False


_ROW, _JOB, _SERVER, _UNKNOWN = Blame.ROW, Blame.JOB, Blame.SERVER, Blame.UNKNOWN
_RETRY, _GATE, _FAIL, _STOP = Action.RETRY, Action.GATE, Action.FAIL, Action.STOP
_TRIES, _SENT = Count.ATTEMPTS, Count.SENT

_ENDINGS = (
    Ending("ok", None, Blame.NOBODY, Action.ACCEPT, "the model answered", "nothing"),
    # 400, and every 4xx without a row of its own
    Ending("bad_request", 400, _UNKNOWN, _FAIL,
           "the server refused this request and did not say what in it is wrong",
           "read error_message; if many rows fail alike, look at model.params"),
    Ending("unexplained", 400, _UNKNOWN, _FAIL,
           "the server refused this request for no known reason, and no request of the run succeeded",
           "read error_message; look at the key, the account and model.params; the next run asks again", again=True),
    Ending("bad_parameters", 400, _JOB, Action.FAIL_IF_PROVEN,
           "the server refuses a parameter or the answer's schema, which are the same for every row",
           "correct model.params or answer; a chat server without strict schemas needs answer.mode: object, or prompt"),
    Ending("invalid_model", 400, _JOB, _STOP,
           "the server does not know the model",
           "correct model.name or model.fallbacks"),
    Ending("wrong_mode", 400, _JOB, _STOP,
           "the model does not answer at this address: it is a decision model and was asked as a chat model, or the "
           "other way round",
           "set answer.mode: decision for a decision model and answer.mode: schema for a chat model, or change "
           "model.name"),
    Ending("context_length", 400, _ROW, _FAIL,
           "prompt and max_tokens do not fit into the model's context",
           "shorten the prompt, lower max_tokens, or take a model with a longer context"),
    Ending("invalid_prompt", 400, _ROW, _FAIL,
           "the server refuses this row's messages", "look at the row with `batchrun preview --row N`"),
    Ending("invalid_image", 400, _ROW, _FAIL,
           "an image or a file can't be used: its format or size, it can't be fetched, or the model takes none",
           "correct the image or file of this row, or take a model that takes such input"),
    Ending("content_policy", 400, _ROW, _FAIL,
           "a content policy or guardrail refuses this row's text; nothing was charged",
           "leave the row, ask another model, or change the account's guardrail"),
    Ending("provider_rejected", 400, _UNKNOWN, _RETRY,
           "the provider behind OpenRouter refused the request", "read error_message for the provider's own words",
           count=Count.ONCE, retry=True),
    # 401
    Ending("unauthorized", 401, _JOB, Action.CONFIRM,
           "the API key is missing, wrong, expired or revoked",
           "set the key's variable, then run the same command again",
           count=Count.ONCE, exhausted=_STOP),
    Ending("provider_error", None, _SERVER, _RETRY,
           "the provider behind OpenRouter does not work: its own key, its credit, or it lost the model",
           "run again later, or take other providers", count=_TRIES, again=True, outage=True),
    # 402
    Ending("in_flight_budget", 402, _SERVER, _GATE,
           "requests in flight hold more credit than the account's in-flight budget",
           "concurrency is lowered by itself; a lower max_tokens or more credit makes it faster",
           count=Count.TIME, slows=True, again=True),
    Ending("request_over_budget", 402, _UNKNOWN, _FAIL,
           "this one request costs more than the budget allows", "lower max_tokens or raise the budget", retry=True),
    Ending("no_credit", 402, _JOB, _STOP,
           "the account's credit is used up", "add credit or activate billing, then run the same command again"),
    # 403
    Ending("key_limit", 403, _JOB, _STOP,
           "the key's or the account's spending limit is reached",
           "raise the limit or wait for its reset, then run the same command again"),
    Ending("region_restricted", 403, _JOB, _STOP,
           "the model is not available in this region",
           "choose another model or provider, or correct the account's region settings"),
    Ending("forbidden", 403, _UNKNOWN, _FAIL,
           "the server does not permit this request", "look at the key's rights and the model's regions", retry=True),
    Ending("edge_blocked", 403, _SERVER, _GATE,
           "the server's edge answered with a web page in place of the API",
           "wait, then run the same command again; if every request ends so, correct model.endpoint",
           count=_TRIES, slows=True, again=True, outage=True),
    # 404
    Ending("no_endpoint", 404, _JOB, _STOP,
           "no provider serves this model with these parameters and routing",
           "correct model.name, model.params.provider or the account's privacy settings; for a model without strict "
           "schemas set answer.mode: object, or prompt"),
    Ending("not_found", 404, _JOB, Action.FAIL_IF_PROVEN,
           "there is no such address on the server",
           "correct model.endpoint or model.name; a server without decision models needs answer.mode: schema"),
    Ending("wrong_api", None, _JOB, Action.FAIL_IF_PROVEN,
           "the server answers in the form of another API",
           "write the server's OpenAI-compatible address into model.endpoint"),
    # 401, 402, 403, 404 to one row alone
    Ending("refused_alone", 401, _ROW, _FAIL,
           "the server refused this row (key, credit or model) and answered others",
           "read error_message; this row's provider may need another key, or the row more credit than is left",
           again=True),
    # other 3xx and 4xx
    Ending("redirected", None, _JOB, _STOP,
           "the server answers with a redirect, which is never followed with a key",
           "write the final address into model.endpoint"),
    Ending("payload_too_large", 413, _ROW, _FAIL,
           "this one request is larger than the server, or the account's limit per minute, allows",
           "shorten the prompt, shrink the images, lower max_tokens, or raise the account's limit"),
    # 429
    Ending("rate_limited", 429, _SERVER, _GATE, "too many requests for now",
           "wait, as a run does; limits.requests_per_minute, a fallback model or your own provider key avoids it",
           count=Count.TIME, slows=True, again=True),
    Ending("daily_quota", 429, _JOB, _STOP, "the day's requests are used up",
           "run the same command again after the reset, or add credit"),
    # 5xx, and the server's faults under other codes
    Ending("server_error", 500, _SERVER, _RETRY, "the server failed", "run again later", count=_TRIES, again=True,
           outage=True),
    Ending("overloaded", 503, _SERVER, _GATE, "the server or the model is overloaded", "wait, as a run does",
           count=_TRIES, slows=True, again=True, outage=True),
    Ending("no_provider_available", 503, _JOB, _RETRY, "no provider that the routing allows is available",
           "loosen model.params.provider, or run again later", count=_TRIES, again=True, exhausted=_STOP),
    # inside an HTTP 200
    Ending("invalid_response", None, _SERVER, _RETRY, "the reply is not what the API promises (cut off, or not JSON)",
           "run again; if it repeats, look at model.endpoint", count=_SENT, again=True, maybe_billed=True,
           outage=True),
    Ending("empty_response", None, _SERVER, _RETRY, "the model answered nothing, as on a cold start", "run again later",
           count=Count.EMPTY, again=True),
    Ending("no_answer", None, _ROW, _RETRY, "the model wrote no answer, or only reasoning, and its tokens are billed",
           "lower the reasoning effort in model.params or change the prompt",
           count=Count.ONCE, retry=True),
    Ending("interrupted", None, _UNKNOWN, _RETRY,
           "the model stopped for a reason that batchrun does not know, so the answer may be half of one",
           "read what the model wrote (`show --row`); if the answer is whole, report its finish_reason",
           count=Count.ONCE, retry=True),
    Ending("broken_text", None, _ROW, _RETRY,
           "the answer contains broken characters (U+FFFD) that the prompt does not contain",
           "read what the model wrote (`show --row`)", count=Count.ONCE, retry=True),
    Ending("truncated", None, _ROW, _FAIL, "the answer was cut off at max_tokens",
           "raise model.params.max_tokens: such rows are then asked again"),
    Ending("content_filter", None, _ROW, _FAIL, "the provider's content filter cut the answer",
           "leave the row, or ask another model"),
    Ending("refused", None, _ROW, _FAIL, "the model refused to answer", "leave the row, or ask another model"),
    Ending("schema_mismatch", None, _ROW, _RETRY, "the answer does not fit the answer's schema, repairs included",
           "read what the model wrote (`show --row`); describe the columns better, raise answer.repairs; a server "
           "that ignores schemas needs answer.mode: prompt",
           count=Count.REPAIRS, retry=True),
    # no HTTP reply
    Ending("timeout", None, _SERVER, _RETRY, "no full reply within limits.timeout; it may be billed",
           "raise limits.timeout or lower concurrency, then run again", count=_SENT, again=True, maybe_billed=True,
           outage=True),
    Ending("reset", None, _SERVER, _RETRY, "the connection broke after sending; the request may be billed", "run again",
           count=_SENT, again=True, maybe_billed=True, outage=True),
    Ending("connection", None, _SERVER, _GATE, "no connection to the server; nothing was sent",
           "look at the network and model.endpoint, then run again", count=_TRIES, again=True, outage=True),
    Ending("tls", None, _JOB, Action.CONFIRM, "no TLS connection that can be trusted; nothing was sent",
           "set model.ca_file, write http:// for a server without TLS, or look at the network",
           count=Count.ONCE, exhausted=_STOP),
    Ending("response_too_large", None, _ROW, _FAIL, "the reply is larger than model.max_response_mb",
           "raise model.max_response_mb or lower max_tokens", maybe_billed=True),
    # before sending
    Ending("template_error", None, _ROW, _FAIL, "the prompt can't be made for this row; nothing was sent",
           "use {{ x | default('…') }} or input.where, or correct the row", again=True),
    Ending("request_too_large", None, _ROW, _FAIL, "the prompt made for this row is too long to send; nothing was sent",
           "shorten the row's text", again=True),
    Ending("image_error", None, _ROW, _FAIL, "a local image is missing, too large or not an image; nothing was sent",
           "correct the image of this row", again=True),
    Ending("file_error", None, _ROW, _FAIL,
           "a local PDF is missing, too large, not a PDF, or its text can't be read; nothing was sent",
           "correct the file of this row, as error_message says; a scan without text needs engine: mistral-ocr",
           again=True),
)  # fmt: skip

TABLE: dict[str, Ending] = {ending.name: ending for ending in _ENDINGS}
"""All endings by name."""

UNSENT: frozenset[str] = frozenset({"template_error", "request_too_large", "image_error", "file_error"})
"""Names of failures found before sending: asking again changes nothing until the row, the prompt or the file does."""

ASKED_AGAIN: frozenset[str] = frozenset(ending.name for ending in _ENDINGS if ending.again)
"""Names of failures that the next run asks again by itself."""
