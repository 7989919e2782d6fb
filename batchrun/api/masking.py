"""Masks a job's secrets in what comes back: servers repeat keys and headers, and libraries quote them."""

import html
import json
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlsplit

from batchrun.records import Reply, Secret

_SHORTEST_SECRET = 8  # shorter ones ("EMPTY", "x") are not secrets, and would be masked out of ordinary words
_PUBLIC_HEADERS = {"user-agent", "http-referer", "referer", "x-title", "x-openrouter-cache"}
_ERROR = b'"error"'
_MASK = b"***"
_SUCCESS = 200
_KEPT_HEADER = "x-generation-id"  # the one header whose text is kept with an answer


class Mask:
    """Returns replies without the secrets of one endpoint: its key, the job's headers, the proxy's password.

    A header's value may be an ordinary word, so an answer is searched for the key alone, and an error for all of them.
    """

    def __init__(self, key: Secret | None, headers: Mapping[str, str], proxy: str | None = None) -> None:
        self._key = _spellings([key.reveal()] if key else [])
        values = [value for name, value in headers.items() if name.lower() not in _PUBLIC_HEADERS]
        words = [word for value in values for word in value.split()]
        if password := urlsplit(proxy or "").password:
            words += [password, unquote(password)]
        self._others = _spellings(words)
        self._every = self._key + self._others

    def __call__(self, reply: Reply) -> Reply:
        """Return the reply with its secrets as `***`; the same object where it holds none."""
        body = _without(reply.body, self._key)
        if self._others and (reply.status != _SUCCESS or _ERROR in body):
            body = _without(body, self._others)
        if body is not reply.body:
            reply = reply._replace(body=body)
        if reply.detail:
            reply = reply._replace(detail=_without(reply.detail.encode("utf-8", "replace"), self._every).decode())
        if _KEPT_HEADER in reply.headers:
            kept = _without(reply.headers[_KEPT_HEADER].encode("utf-8", "replace"), self._every).decode()
            reply = reply._replace(headers={**reply.headers, _KEPT_HEADER: kept})
        return reply


def _spellings(secrets: list[str]) -> list[bytes]:
    """Return secrets as they may stand in a reply: plain, in JSON (also in JSON within JSON), in HTML, in a URL."""
    spelled = []
    for secret in secrets:
        if len(secret) < _SHORTEST_SECRET:
            continue
        once = json.dumps(secret)[1:-1]
        forms = (secret, once, json.dumps(once)[1:-1], once.replace("/", "\\/"), html.escape(secret), quote(secret, ""))
        spelled += [form.encode() for form in dict.fromkeys(forms)]
    return spelled


def _without(text: bytes, secrets: list[bytes]) -> bytes:
    """Return the text with the secrets masked; the same object where it holds none."""
    for secret in secrets:
        if text.find(secret) >= 0:  # `in` raises and drops a TypeError first (Python 3.11)
            text = text.replace(secret, _MASK)
    return text
