"""What a server's error says: the shapes of all dialects read into one, and the ending that it names.

Structure decides first (codes, types, reasons), the status next, English text only within a status.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from batchrun.api.codes import TABLE, Action
from batchrun.api.dialects import HIGHEST_CODE, LOWEST_CODE, RELAYED, STATUSES, TEXTS, WORD_CODES, WORDS
from batchrun.api.waits import midnight_after, seconds_of, time_of
from batchrun.api.wording import (
    MESSAGE_LENGTH,
    clean,
    first_words,
    is_page,
    list_of,
    object_of,
    objects_of,
    page_words,
    read_json,
    text_of,
)
from batchrun.records import Reply

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ApiError:
    """An error of an API in one shape: machine-readable words, lower-case English, and the parameter that it blames.

    `said` is the server's own text, `upstream` that of the provider behind it, `written` what the model had written.
    """

    code: int | None = None
    message: str = ""
    words: frozenset[str] = frozenset()
    said: str = ""
    upstream: str = ""
    blamed: str = ""
    provider: str | None = None
    relayed: bool = False
    page: bool = False
    written: str | None = None
    meta: Json = field(default_factory=dict)
    availability: Json = field(default_factory=dict)
    delay: float | None = None


def ending_of(code: int | None, error: ApiError, *, waits: bool) -> str:
    """Return the name of the ending for a code and the API's words."""
    if code is not None and not HTTPStatus.BAD_REQUEST <= code <= HIGHEST_CODE:
        return "redirected" if LOWEST_CODE <= code < HTTPStatus.BAD_REQUEST else "bad_request"
    return (
        _by_max_tokens(code, error)
        or _by_word(code, error)
        or _by_circumstance(code, error, waits=waits)
        or _by_text(code, error)
        or _by_field(code, error)
        or _by_status(code, error)
    )


def _by_max_tokens(code: int | None, error: ApiError) -> str | None:
    """Return bad_parameters where max_tokens alone fills the model's context: no prompt is short enough then."""
    if code not in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY):
        return None
    text = error.upstream if error.relayed else error.said
    context, completion = _CONTEXT.search(text), _COMPLETION.search(text)
    if context is None or completion is None:
        return None
    return "bad_parameters" if _number(completion[1] or completion[2]) >= _number(context[1]) else None


_CONTEXT = re.compile(r"(?:maximum context length (?:is|of)|must be <=) ([\d,]{1,12})")
# vLLM: "'max_tokens' is too large: 5000", or "you requested 5000 output tokens"; SGLang: "5000 tokens for the
# completion"; OpenRouter: "5000 in the output"; TGI: "5000 `max_new_tokens`".
_COMPLETION = re.compile(
    r"is too large: ([\d,]{1,12})"
    r"|\b([\d,]{1,12}) (?:output tokens|`max_new_tokens`|(?:tokens )?(?:in|for) the (?:completion|output))"
)


def _number(digits: str) -> int:
    return int(digits.replace(",", "") or 0)


def _by_word(code: int | None, error: ApiError) -> str | None:
    """Return the ending that a machine-readable word names; above 499 only OpenRouter's own availability counts."""
    if code == HTTPStatus.NOT_FOUND and error.availability.get("retryable") is True:
        return "provider_error"
    if error.written is not None:
        return "schema_mismatch"
    words: Any = error.words
    if code is not None and code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        words = [error.availability.get("code")]  # any JSON, so perhaps not hashable
    return next((ending for word, ending in WORDS.items() if word in words), None)


def _by_circumstance(code: int | None, error: ApiError, *, waits: bool) -> str | None:
    """Return the ending that the shape of the reply shows."""
    if code == HTTPStatus.FORBIDDEN:
        if error.page:
            return "edge_blocked"
        if any(error.meta.get(name) for name in ("reasons", "flagged_input", "patterns")):
            return "content_policy"
    if code == HTTPStatus.PAYMENT_REQUIRED and waits and not error.relayed:
        return "in_flight_budget"
    if code in _SIZE_CODES and (numbers := _LIMIT.search(error.said)):
        # OpenAI: "tokens per min (TPM): Limit 30000, Requested 36278". Waiting never makes room for such a request.
        limit, requested = map(_number, numbers.groups())
        if requested > limit:
            return "payload_too_large"
    return None


_SIZE_CODES = (413, 429)  # Groq answers 413 where OpenAI answers 429
_LIMIT = re.compile(r"\blimit:? ([\d,]{1,12}).{0,40}?requested:? ([\d,]{1,12})")


def _by_text(code: int | None, error: ApiError) -> str | None:
    """Return the ending that English text names within a code; of a provider's text only what it says of the row."""
    if error.relayed and code != HTTPStatus.BAD_REQUEST:
        return None
    text = error.upstream if error.relayed else error.said
    for codes, pattern, ending in TEXTS:
        if (code is None or code in codes) and re.search(pattern, text):
            if error.relayed and TABLE[ending].action in (Action.STOP, Action.CONFIRM):
                return None  # the provider's own model name, key or credit
            return ending
    return None


def _by_field(code: int | None, error: ApiError) -> str | None:
    """Return the ending that the blamed field of the request shows: all but the messages is the same for every row."""
    if code not in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY) or not error.blamed:
        return None
    if error.blamed.startswith(("messages", "prompt", "input", "state", "contents", "body")):
        return None
    return "invalid_model" if error.blamed == "model" and not error.relayed else "bad_parameters"


def _by_status(code: int | None, error: ApiError) -> str:
    if code is None:
        return "server_error"
    if error.relayed and code in RELAYED:
        return RELAYED[code]
    return STATUSES.get(code) or ("server_error" if code >= HTTPStatus.INTERNAL_SERVER_ERROR else "bad_request")


# -- reading an error of any shape


def read_error(reply: Reply, data: Any) -> ApiError:  # noqa: ANN401
    """Bring the shapes of OpenRouter, OpenAI, Google, llama.cpp, vLLM, FastAPI and plain text into one."""
    if not isinstance(data, dict):
        page = is_page(reply.headers, reply.body)
        if isinstance(data, str):
            message = clean(data)
        elif page:
            message = page_words(reply.body)
        else:
            message = clean(reply.body[: 4 * MESSAGE_LENGTH].decode("utf-8", "replace"))
        return ApiError(message=message, said=message.lower(), page=page)
    inner = data.get("error")
    body = inner if isinstance(inner, dict) else data
    meta, availability = object_of(body.get("metadata")), object_of(body.get("availability"))
    said = text_of(inner) or first_words(body) or first_words(data) or ""
    provider = text_of(meta.get("provider_name"))
    details = objects_of(body.get("details"))
    named = [meta.get("error_type"), meta.get("limit_source"), meta.get("reason"), availability.get("code")]
    named += [body.get("error_type"), body.get("type"), body.get("code"), body.get("status"), data.get("error_type")]
    named += [data.get("__type")]  # Amazon's name of an exception
    named += [object_of(data.get("detail")).get("error_type")]  # TypeSafe's decision models
    named += [detail.get("reason") for detail in details]
    if quotas := " ".join(str(one.get("quotaId")) for one in _violations(details)):
        named.append("quota_per_day" if "PerDay" in quotas else "quota_per_minute")
    words = frozenset(word.lower() for word in named if isinstance(word, str))
    raw = _unpack(meta.get("raw"))
    upstream = first_words(raw) or ""
    wait = seconds_of(availability.get("retry_after"))
    if wait is None:
        wait = next(
            (seconds for detail in details if (seconds := _seconds(detail.get("retryDelay"))) is not None), None
        )
    return ApiError(
        code=_code(body, words),
        message=_for_people(provider, upstream or _located(data, said), meta),
        words=words,
        said=said[: 8 * MESSAGE_LENGTH].lower(),
        upstream=upstream[: 8 * MESSAGE_LENGTH].lower(),
        blamed=_blamed(object_of(raw) or data),
        provider=provider,
        relayed=provider is not None and said.strip().lower() == "provider returned error",
        written=text_of(body.get("failed_generation")),
        meta=meta,
        availability=availability,
        delay=wait,
    )


def _violations(details: Sequence[Json]) -> Iterator[Json]:
    """Yield the quotas that Google names: GenerateRequestsPerDayPerProjectPerModel-FreeTier and the like."""
    for detail in details:
        yield from objects_of(detail.get("violations"))


def _seconds(duration: Any) -> float | None:  # noqa: ANN401
    """Return Google's "34.07s" as seconds."""
    return seconds_of(str(duration).removesuffix("s"))


def _blamed(data: Json) -> str:
    """Return the field of the request that an error blames: OpenAI's `param`, or the `loc` of FastAPI."""
    param = text_of((object_of(data.get("error")) or data).get("param"))
    if param and param != "None":  # LiteLLM's word for nothing
        return param.lower()
    return next((part for part in _place(data) if isinstance(part, str)), "")


def _place(data: Json) -> list[str | int]:
    """Return where in the request's body FastAPI found the first mistake: `loc` without its "body"."""
    body = object_of(data.get("error")) or data
    details = list_of(body.get("detail")) or list_of(object_of(body.get("message")).get("detail"))
    place = object_of(next(iter(details), None)).get("loc")
    return [part for part in list_of(place) if isinstance(part, str | int) and part != "body"]


def _located(data: Json, said: str) -> str:
    """Put the place before words that mean nothing without it, as "Field required"."""
    place = ".".join(map(str, _place(data)))
    return f"{place}: {said}" if place and place not in said else said


def _code(body: Json, words: frozenset[str]) -> int | None:
    """Return the number of an error, which may be a number, digits, or only implied by a word."""
    for name in ("code", "status", "http_status"):
        number = body.get(name)
        if type(number) is int and LOWEST_CODE <= number <= HIGHEST_CODE:
            return number
        if isinstance(number, str) and re.fullmatch(r"[3-5]\d\d", number):
            return int(number)
    return next((code for word, code in WORD_CODES.items() if word in words), None)


def _unpack(raw: Any) -> Any:  # noqa: ANN401
    """Return what a provider sent, which is often JSON inside a string."""
    if isinstance(raw, str) and raw.lstrip().startswith(("{", "[")):
        parsed, _ = read_json(raw.encode("utf-8", "replace"))
        return raw if parsed is None else parsed
    return raw


def _for_people(provider: str | None, words: str, meta: Json) -> str:
    """Return `[provider] its own words (reasons)`."""
    message = words
    if provider:
        message = f"[{provider}] {words}"
    reasons = meta.get("reasons") or meta.get("patterns")
    if missing := [str(reason) for reason in list_of(reasons)[:20] if str(reason) not in message]:
        message += f" ({', '.join(missing)})"
    return clean(message)


def resume_at(ending: str, error: ApiError, reset: float | None, wait: float | None, now: float) -> float | None:
    """Return the Unix time at which the limit that stopped the run ends, if the server says so."""
    if TABLE[ending].action is not Action.STOP:
        return None
    if (until := time_of(error.meta.get("resets_at"))) is not None:
        return until
    if ending == "daily_quota" and "quota_per_day" not in error.words:  # Google's day ends elsewhere
        return midnight_after(now) if reset is None else reset
    if wait is None or ending == "daily_quota":
        return None
    return now + wait
