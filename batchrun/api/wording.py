"""Foreign words made fit for people: from servers, providers and libraries."""

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

MESSAGE_LENGTH = 2_000
_PAGE_WORDS = 200

_KEYS = re.compile(r"(?i:bearer)\s+[^\s\"',;]+|\b(?:sk|gsk|xai|hf|nvapi|pplx)[-_][\w*.-]{4,}|\bAIza[\w-]{10,}")
_CONTROLS = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+")


def clean(text: str) -> str:
    """Make foreign words fit for people: one line, no control characters, no keys, at most 2,000 characters."""
    line = _CONTROLS.sub(" ", text[: 8 * MESSAGE_LENGTH]).strip()
    masked = _KEYS.sub("***", line)
    return masked if len(masked) <= MESSAGE_LENGTH else masked[: MESSAGE_LENGTH - 1] + "…"


def mended(body: bytes) -> Any:  # noqa: ANN401  (any JSON)
    """Read JSON with half characters or bytes that are no UTF-8: marks stand in their place. None where it is no JSON.

    A server that cuts an answer inside an emoji writes such a half.
    """
    try:
        value = json.loads(body.decode("utf-8-sig", "replace"))
        return orjson.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def is_page(headers: Mapping[str, str], body: bytes) -> bool:
    """Tell whether a body is HTML, as an edge or a wrong address answers; header names are lower case."""
    return "html" in headers.get("content-type", "").lower() or body[:64].lstrip()[:1] == b"<"


def page_words(body: bytes) -> str:
    """Give what an HTML page says: its title, else its text."""
    page = body[: 16 * MESSAGE_LENGTH].decode("utf-8", "replace")
    title = re.search(r"<title[^>]*>([^<]*)", page, re.IGNORECASE)
    return clean(title[1] if title else re.sub(r"<[^>]*>", " ", page))[:_PAGE_WORDS]


def first_words(value: Any, depth: int = 6) -> str | None:  # noqa: ANN401
    """Give the first words for people in an error: message, error, detail, details or msg, however deep."""
    if isinstance(value, str):
        return value.strip() or None
    if not depth or not isinstance(value, dict | list):
        return None
    if isinstance(value, list):
        parts: Any = value
    else:
        parts = [value[name] for name in ("message", "error", "detail", "details", "msg") if name in value]
    return next((words for part in parts if (words := first_words(part, depth - 1))), None)
