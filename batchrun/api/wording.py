"""Foreign words and numbers made fit to use: from servers, providers and libraries."""

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from batchrun.money import Pico, from_usd

MESSAGE_LENGTH = 2_000
_PAGE_WORDS = 200
_NOTHING: Mapping[str, Any] = {}
# Cloudflare writes `errors`, Amazon `Message`, MiniMax `base_resp: {status_msg}`, which is empty where all is well.
# Apigee and WSO2, which stand before many companies' servers, write `fault: {faultstring}`; RFC 9457 writes `title`.
_WORDED = ("message", "error", "detail", "details", "msg", "errors", "Message", "base_resp", "status_msg", "fault",
           "faultstring", "title")  # fmt: skip

_KEYS = re.compile(r"(?i:bearer)\s+[^\s\"',;]+|\b(?:sk|gsk|xai|hf|nvapi|pplx)[-_][\w*.-]{4,}|\bAIza[\w-]{10,}")
_CONTROLS = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+")


def clean(text: str) -> str:
    """Make foreign words fit for people: one line, no control characters, no keys, at most 2,000 characters."""
    line = _CONTROLS.sub(" ", text[: 8 * MESSAGE_LENGTH]).strip()
    masked = _KEYS.sub("***", line)
    return masked if len(masked) <= MESSAGE_LENGTH else masked[: MESSAGE_LENGTH - 1] + "…"


def read_json(body: bytes) -> tuple[Any, bool]:
    """Return a body's JSON, None where it is not JSON, and whether characters in it were broken.

    What no column needs must not cost an answer: NaN among the logprobs, a number too large, a raw line break, bytes
    that are not UTF-8. Broken characters become U+FFFD; a server that cuts an answer inside an emoji sends such.
    """
    try:
        return orjson.loads(body), False
    except orjson.JSONDecodeError:
        pass
    try:
        text, damaged = _decoded(body)
        value = _LENIENT.decode(text)
        written, halves = _HALF.subn("\ufffd", json.dumps(value, ensure_ascii=False))
        if halves:
            value = json.loads(written)
    except (ValueError, RecursionError):
        return None, False
    return value, damaged or halves > 0


def _decoded(body: bytes) -> tuple[str, bool]:
    """Return a body's text, and whether bytes of it were broken. Senders make UTF-8 of other character sets."""
    text = body.decode("utf-8-sig", "replace")
    return text, text.count("\ufffd") > body.count("\ufffd".encode())


def _number(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


_LENIENT = json.JSONDecoder(parse_float=_number, parse_constant=lambda _: None, strict=False)
_HALF = re.compile("[\ud800-\udfff]")


def is_page(headers: Mapping[str, str], body: bytes) -> bool:
    """Check whether a body is HTML, as an edge or a wrong address answers; header names are lower case."""
    return "html" in headers.get("content-type", "").lower() or body[:64].lstrip()[:1] == b"<"


def page_words(body: bytes) -> str:
    """Return what an HTML page says: its title, else its text."""
    page = body[: 16 * MESSAGE_LENGTH].decode("utf-8", "replace")
    title = re.search(r"<title[^>]*>([^<]*)", page, re.IGNORECASE)
    return clean(title[1] if title else re.sub(r"<[^>]*>", " ", page))[:_PAGE_WORDS]


def first_words(value: Any, depth: int = 6) -> str | None:  # noqa: ANN401
    """Return the first words for people in an error, under one of the names that servers use, however deep."""
    if isinstance(value, str):
        return value.strip() or None
    if not depth or not isinstance(value, dict | list):
        return None
    if isinstance(value, list):
        parts: Any = value
    else:
        parts = [value[name] for name in _WORDED if name in value]
    return next((words for part in parts if (words := first_words(part, depth - 1))), None)


def object_of(value: Any) -> Mapping[str, Any]:  # noqa: ANN401  (any JSON)
    """Return a JSON object as it is, and an empty one for anything else."""
    return value if isinstance(value, dict) else _NOTHING


def list_of(value: Any) -> list[Any]:  # noqa: ANN401  (any JSON)
    """Return a JSON list as it is, and an empty one for anything else."""
    return value if isinstance(value, list) else []


def objects_of(value: Any) -> list[dict[str, Any]]:  # noqa: ANN401  (any JSON)
    """Return the objects of a JSON list; anything else in it, or in place of it, is passed over."""
    return [one for one in list_of(value) if isinstance(one, dict)]


def text_of(value: Any) -> str | None:  # noqa: ANN401  (any JSON)
    """Return a JSON text as it is, and None for anything else."""
    return value if isinstance(value, str) else None


def usd_of(value: object, low: int = 0, high: int = 1_000_000) -> Pico | None:
    """Return a server's number of dollars, or its digits, in picodollars; None for anything not within the bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        usd = Decimal(str(value))
        return from_usd(usd) if low <= usd <= high else None
    except InvalidOperation:  # a text, or NaN
        return None
