"""When a server wants to be asked again: its hints in all their forms, as seconds or Unix times."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

_DAY = 86_400.0
_UNIT_SECONDS = {"ms": 0.001, "mil": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": _DAY}
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,15})?) ?(ms|mil|[smhd])")
# LiteLLM: "Try again in 60 seconds"; OpenAI: "try again in 6m0s"; Azure: "retry after 26 seconds"; GitHub: "wait 31
# seconds".
_SAID = re.compile(
    r"\b(?:try again|retry|wait)(?: your request)?(?: in| after| for)? "
    r"((?:\d{1,9}(?:\.\d{1,15})? ?"
    r"(?:ms|milliseconds?|seconds?|secs?|s|minutes?|mins?|m|hours?|h|days?|d)(?![a-z])[ ,]*(?:and )?)+)"
)


def wait_of(headers: Mapping[str, str], inner: Mapping[str, str], now: float, *, resets: bool) -> float | None:
    """Return the seconds that a server asks to wait, from the first header that says so.

    `headers` and `inner` (those that a gateway puts into its body) have lower-case names; `now` is Unix time; `resets`
    means that X-RateLimit-Reset counts, which many servers send with every reply.
    """
    if (ms := seconds_of(headers.get("retry-after-ms"))) is not None:
        return ms / 1000
    for given in (headers, inner):
        if (seconds := _delay_or_date(given.get("retry-after"), now)) is not None:
            return seconds
    if not resets or (reset := reset_of(headers, inner, now)) is None:
        return None
    return max(0.0, reset - now)


def reset_of(headers: Mapping[str, str], inner: Mapping[str, str], now: float) -> float | None:
    """Return the Unix time at which a rate limit resets; its magnitude shows the unit."""
    value = seconds_of(inner.get("x-ratelimit-reset"))
    if value is None:
        value = seconds_of(headers.get("x-ratelimit-reset"))
    if value is None:
        return None
    if value > 1e11:  # noqa: PLR2004  (milliseconds since 1970)
        return value / 1000
    return value if value > 1e9 else now + value  # noqa: PLR2004  (seconds since 1970, else from now)


def wait_said(text: str) -> float | None:
    """Return the seconds that lower-case English text asks to wait, as "try again in 1m2.5s"; None: it does not."""
    said = _SAID.search(text)
    if said is None:
        return None
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _PART.findall(said[1]))


def midnight_after(now: float) -> float:
    """Return the Unix time of the next 00:00 UTC."""
    return now - now % _DAY + _DAY


def time_of(text: Any) -> float | None:  # noqa: ANN401  (any JSON)
    """Return the Unix time that an ISO 8601 text names; UTC where it names no zone."""
    if not isinstance(text, str):
        return None
    try:
        return _unix(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None


def seconds_of(value: Any) -> float | None:  # noqa: ANN401
    """Return a number, or its digits, as seconds that are finite and not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return max(0.0, number) if abs(number) < float("inf") else None


def _delay_or_date(value: Any, now: float) -> float | None:  # noqa: ANN401
    seconds = seconds_of(value)
    if seconds is not None or not isinstance(value, str):
        return seconds
    try:
        return max(0.0, _unix(parsedate_to_datetime(value)) - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _unix(when: datetime) -> float:
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
