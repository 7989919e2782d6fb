"""What one reply means: the only place that reads an HTTP reply.

Every status, body and header gives exactly one verdict whose `ending` is a name in the table of codes; nothing raises.
The words of an API that are meant for programs decide first, its status next, its English text only within a status.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from http import HTTPStatus
from typing import Any

import orjson

from batchrun.api.codes import HIGHEST_CODE, LOWEST_CODE, RELAYED, STATUSES, TABLE, TEXTS, WORD_CODES, WORDS, Action
from batchrun.api.waits import midnight_after, reset_of, seconds_of, time_of, wait_of
from batchrun.api.wording import MESSAGE_LENGTH, clean, first_words, is_page, mended, page_words
from batchrun.money import PER_USD, ZERO, Pico, from_usd
from batchrun.records import Fault, Reply, Usage, Verdict

_LARGEST_USD = 1_000_000
_LARGEST_COUNT = 2**53

_SUCCESS = 200  # a plain number: HTTPStatus costs the hot path a microsecond

Json = Mapping[str, Any]
_NOTHING: Json = {}


def judge(reply: Reply, *, now: float, openrouter: bool = True) -> Verdict:
    """Judge one reply. `now` is Unix time; `openrouter` tells that `usage.cost` is in USD, as OpenRouter defines it."""
    if reply.fault is not None:
        return Verdict(_fault(reply), clean(reply.detail))
    if not _SUCCESS <= reply.status < LOWEST_CODE:
        return _refusal(_read_error(reply, _parse(reply.body)), reply, now)
    data = _parse(reply.body)
    if data is None:
        return _unreadable(reply)
    if type(data) is not dict:
        return _invalid("the reply is not a JSON object", reply)
    if data.get("error") or data.get("object") == "error":
        return _refusal(_read_error(reply, data), reply, now, data, openrouter=openrouter)
    return _completion(data, reply, now, openrouter=openrouter)


# -- a reply that answers


def _completion(data: Json, reply: Reply, now: float, *, openrouter: bool) -> Verdict:
    choices = data.get("choices")
    if not choices:
        return _verdict("empty_response", "the reply holds no choices", data, reply, openrouter=openrouter)
    choice = choices[0] if isinstance(choices, list) else None
    if type(choice) is not dict:
        return _invalid("the reply's choices can't be read", reply)
    if choice.get("error"):
        return _broken_off(choice, data, reply, now, openrouter=openrouter)
    message = choice.get("message")
    if type(message) is not dict:
        message = {"content": choice.get("text")}
    content = message.get("content")
    text = content if type(content) is str else _join(content)
    finish = choice.get("finish_reason")
    if finish == "stop" and text and not message.get("refusal") and not text.isspace():
        return _verdict("ok", "", data, reply, openrouter=openrouter, text=text, finish=finish)
    finish = finish if type(finish) is str else None
    ending, why, text = _other_finish(message, text, finish)
    return _verdict(ending, why, data, reply, openrouter=openrouter, text=text or None, finish=finish)


_CUT = {
    "error": ("generation_error", "the model broke off with an error"),
    "length": ("truncated", "the answer was cut off at max_tokens"),
    "max_tokens": ("truncated", "the answer was cut off at max_tokens"),
    "max_output_tokens": ("truncated", "the answer was cut off at max_tokens"),
    "content_filter": ("content_filter", "the provider's content filter cut the answer"),
}


def _other_finish(message: Json, text: str, finish: str | None) -> tuple[str, str, str]:
    """Judge a generation that did not simply stop with a text: its ending, why, and its text."""
    refusal, reason = message.get("refusal"), (finish or "").lower()
    if reason in _CUT:
        return *_CUT[reason], text
    if reason == "refusal" or refusal:
        words = refusal if isinstance(refusal, str) else text
        return "refused", clean(words) or "the model refused to answer", text or words
    if text.strip():
        return "ok", "", text
    if isinstance(calls := message.get("tool_calls"), list) and calls:
        return "ok", "", orjson.dumps(calls).decode()
    return "empty_response", "the model answered nothing", text


def _broken_off(choice: Json, data: Json, reply: Reply, now: float, *, openrouter: bool) -> Verdict:
    """Judge an error inside a choice: the generation had begun, so what it wrote is kept."""
    error = _read_error(reply, choice)
    message = choice.get("message")
    text = _join(message.get("content")) if isinstance(message, dict) else ""
    return _refusal(error, reply, now, data, openrouter=openrouter, text=text or None, begun=True)


def _join(content: Any) -> str:  # noqa: ANN401  (whatever the server sent)
    """Give the text of a message's content: a string, or the texts of its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") if isinstance(part, dict) else part for part in content)
    return "".join(text for text in texts if isinstance(text, str))


def _verdict(
    ending: str,
    message: str,
    data: Json,
    reply: Reply,
    *,
    openrouter: bool,
    text: str | None = None,
    finish: str | None = None,
    code: int | None = None,
) -> Verdict:
    model, provider, made = data.get("model"), data.get("provider"), data.get("id")
    return Verdict(
        ending,
        message,
        code,
        reply.status,
        text,
        _usage(data.get("usage"), reply.headers, openrouter=openrouter),
        finish,
        model if type(model) is str else None,
        provider if type(provider) is str else None,
        made if type(made) is str else reply.headers.get("x-generation-id"),
    )


def _invalid(why: str, reply: Reply) -> Verdict:
    return Verdict("invalid_response", why, None, reply.status, generation_id=reply.headers.get("x-generation-id"))


def _unreadable(reply: Reply) -> Verdict:
    """Judge a success without JSON: a page of the edge or of another server, or an answer that was cut off."""
    if is_page(reply.headers, reply.body):
        words = page_words(reply.body)
        return Verdict("edge_blocked", f"a web page in place of JSON: {words}", None, reply.status)
    if not reply.body.strip():
        return _invalid("the reply is empty", reply)
    return _invalid("the reply is no JSON, or was cut off", reply)


def _usage(usage: Any, headers: Mapping[str, str], *, openrouter: bool) -> Usage:  # noqa: ANN401
    if type(usage) is not dict:
        usage = _NOTHING
    cached = "x-openrouter-cache-status" in headers and headers["x-openrouter-cache-status"].upper() == "HIT"
    if not usage and not cached:
        return Usage()
    cost = ZERO if cached else (_cost(usage) if openrouter else None)
    return Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), cost, cached)


def _count(number: Any) -> int | None:  # noqa: ANN401
    return number if type(number) is int and 0 <= number < _LARGEST_COUNT else None


def _cost(usage: Json) -> Pico | None:
    """Give what OpenRouter charged; with the user's own provider key, what the provider charges as well."""
    cost = _amount(usage.get("cost"))
    if cost is not None and usage.get("is_byok") is True and isinstance(details := usage.get("cost_details"), dict):
        return Pico(cost + (_amount(details.get("upstream_inference_cost")) or ZERO))
    return cost


def _amount(usd: Any) -> Pico | None:  # noqa: ANN401
    if type(usd) is float:
        # The shortest digits that print as this float are usually whole picodollars: then there is nothing to round.
        scaled = round(usd * PER_USD) if 0 <= usd < 1 else 0
        if scaled and scaled / PER_USD == usd:
            return Pico(scaled)
    elif type(usd) is not int and type(usd) is not str:
        return None
    try:
        exact = Decimal(str(usd))
        return from_usd(exact) if 0 <= exact < _LARGEST_USD else None
    except InvalidOperation:
        return None


# -- a reply that refuses


@dataclass(frozen=True, slots=True)
class _Error:
    """An error of an API in one shape. `words` are for programs, `text` is lower-case English."""

    code: int | None = None
    message: str = ""
    words: frozenset[str] = frozenset()
    text: str = ""
    upstream: str = ""
    provider: str | None = None
    relayed: bool = False
    page: bool = False
    meta: Json = field(default_factory=dict)
    availability: Json = field(default_factory=dict)


def _refusal(
    error: _Error,
    reply: Reply,
    now: float,
    data: Json = _NOTHING,
    *,
    openrouter: bool = True,
    text: str | None = None,
    begun: bool = False,
) -> Verdict:
    """Judge an error: by the HTTP status, or by the code inside a 200."""
    wrapped = reply.status < LOWEST_CODE
    code = error.code if wrapped else reply.status
    ending = _ending(code, error, waits="retry-after" in reply.headers)
    if begun and (code is None or code >= HTTPStatus.INTERNAL_SERVER_ERROR):
        ending = "generation_error"
    known = code if code is not None and LOWEST_CODE <= code <= HIGHEST_CODE else TABLE[ending].code
    inner = {name.lower(): value for name, value in _mapping(error.meta, "headers").items()}
    wait = seconds_of(error.availability.get("retry_after"))
    if wait is None:
        wait = wait_of(reply.headers, inner, now, resets=code == HTTPStatus.TOO_MANY_REQUESTS)
    made = data.get("id")
    return Verdict(
        ending,
        error.message or TABLE[ending].means,
        known,
        reply.status,
        text,
        _usage(data.get("usage"), reply.headers, openrouter=openrouter),
        "error" if begun else None,
        provider=error.provider,
        generation_id=made if type(made) is str else reply.headers.get("x-generation-id"),
        wait=wait,
        resume_at=_resume_at(ending, error, reset_of(reply.headers, inner, now), wait, now),
    )


def _ending(code: int | None, error: _Error, *, waits: bool) -> str:
    """Give the name of the ending for a code and what the API said beside it."""
    if code is None:
        return _by_word(None, error) or "generation_error"
    if not HTTPStatus.BAD_REQUEST <= code <= HIGHEST_CODE:
        return "redirected" if LOWEST_CODE <= code < HTTPStatus.BAD_REQUEST else "unexpected_status"
    by_words = _by_word(code, error) if code < HTTPStatus.INTERNAL_SERVER_ERROR else None
    return by_words or _by_circumstance(code, error, waits=waits) or _by_text(code, error) or _by_status(code, error)


def _by_word(code: int | None, error: _Error) -> str | None:
    """Give the ending that words for programs name."""
    retryable = code == HTTPStatus.NOT_FOUND and error.availability.get("retryable") is True
    if retryable or error.words.isdisjoint(WORDS):
        return None
    found = next(WORDS[word] for word in WORDS if word in error.words)
    if code == HTTPStatus.NOT_FOUND and found == "invalid_model":
        return "not_found"
    return found


def _by_circumstance(code: int, error: _Error, *, waits: bool) -> str | None:
    """Give the ending that the shape of the reply tells."""
    if code == HTTPStatus.FORBIDDEN:
        if error.page:
            return "edge_blocked"
        if error.meta.get("reasons") or error.meta.get("flagged_input"):
            return "moderated"
        return "guardrail" if error.meta.get("patterns") else None
    if code == HTTPStatus.NOT_FOUND and error.availability.get("retryable") is True:
        return "provider_not_found"
    if code == HTTPStatus.PAYMENT_REQUIRED and waits and not error.relayed:
        return "in_flight_budget"
    return None


def _by_text(code: int, error: _Error) -> str | None:
    """Give the ending that English text tells within a code; of a provider's words only what they say of the row."""
    if error.relayed and code != HTTPStatus.BAD_REQUEST:
        return None
    for codes, pattern, ending in TEXTS:
        if code in codes and pattern.search(error.upstream if error.relayed else error.text):
            return None if error.relayed and ending == "invalid_model" else ending
    return None


def _by_status(code: int, error: _Error) -> str:
    if error.relayed and code in RELAYED:
        return RELAYED[code]
    return STATUSES.get(code) or ("server_error" if code >= HTTPStatus.INTERNAL_SERVER_ERROR else "unexpected_status")


# -- reading an error, whatever its shape


def _parse(body: bytes) -> Any:  # noqa: ANN401
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return mended(body)


def _read_error(reply: Reply, data: Any) -> _Error:  # noqa: ANN401
    """Bring the shapes of OpenRouter, OpenAI, llama.cpp, vLLM, FastAPI and plain text into one."""
    if isinstance(data, list) and data:
        data = data[0]
    if not isinstance(data, dict):
        page = is_page(reply.headers, reply.body)
        shown = page_words(reply.body) if page else reply.body[: 4 * MESSAGE_LENGTH].decode("utf-8", "replace")
        message = clean(data if isinstance(data, str) else shown)
        return _Error(message=message, text=message.lower(), page=page)
    inner = data.get("error")
    body: Json = inner if isinstance(inner, dict) else data
    meta, availability = _mapping(body, "metadata"), _mapping(body, "availability")
    said = inner if isinstance(inner, str) and inner else (first_words(body) or "")
    provider = meta.get("provider_name") if isinstance(meta.get("provider_name"), str) else None
    named = [meta.get("error_type"), meta.get("limit_source"), meta.get("reason"), availability.get("code")]
    named += [body.get("error_type"), body.get("type"), body.get("code"), data.get("error_type")]
    words = frozenset(word.lower() for word in named if isinstance(word, str))
    upstream = first_words(_unpack(meta.get("raw"))) or ""
    return _Error(
        code=_code(body, words),
        message=_for_people(provider, upstream or said, meta),
        words=words,
        text=said[: 8 * MESSAGE_LENGTH].lower(),
        upstream=upstream[: 8 * MESSAGE_LENGTH].lower(),
        provider=provider,
        relayed=provider is not None and said.strip().lower() == "provider returned error",
        meta=meta,
        availability=availability,
    )


def _mapping(body: Json, name: str) -> Json:
    value = body.get(name)
    return value if isinstance(value, dict) else _NOTHING


def _code(body: Json, words: frozenset[str]) -> int | None:
    """Give the number of an error, which may be a number, digits, or only implied by a word."""
    for name in ("code", "status", "http_status"):
        number = body.get(name)
        if type(number) is int and LOWEST_CODE <= number <= HIGHEST_CODE:
            return number
        if isinstance(number, str) and re.fullmatch(r"[3-5]\d\d", number):
            return int(number)
    return next((code for word, code in WORD_CODES.items() if word in words), None)


def _unpack(raw: Any) -> Any:  # noqa: ANN401
    """Give what a provider sent, which is often JSON inside a string."""
    if isinstance(raw, str) and raw.lstrip().startswith(("{", "[")):
        parsed = _parse(raw.encode("utf-8", "replace"))
        return raw if parsed is None else parsed
    return raw


def _for_people(provider: str | None, words: str, meta: Json) -> str:
    """Give `[provider] its own words (reasons)`."""
    message = f"[{provider}] {words}" if provider else words
    reasons = meta.get("reasons") or meta.get("patterns")
    if isinstance(reasons, list):
        missing = [str(reason) for reason in reasons[:20] if str(reason) not in message]
        message += f" ({', '.join(missing)})" if missing else ""
    return clean(message)


def _resume_at(ending: str, error: _Error, reset: float | None, wait: float | None, now: float) -> float | None:
    """Give the Unix time at which the limit that stopped the run ends, if anything tells."""
    if TABLE[ending].action is not Action.STOP:
        return None
    if (told := time_of(error.meta.get("resets_at"))) is not None:
        return told
    if ending == "daily_quota":
        return midnight_after(now) if reset is None else reset
    return None if wait is None else now + wait


def _fault(reply: Reply) -> str:
    """Give the ending of an attempt without an HTTP reply; what was not sent can't be billed."""
    match reply.fault:
        case Fault.TOO_LARGE:
            return "response_too_large"
        case Fault.TLS if not reply.sent:
            return "tls"
        case _ if not reply.sent:
            return "connection"
        case Fault.TIMEOUT:
            return "timeout"
        case Fault.PROTOCOL:
            return "invalid_response"
        case _:
            return "reset"
