"""The providers' prompt caches: which provider serves a request, and which of its tokens a cache has already.

Rules: a prefix below the minimum is not cached, without a word. What is written can be read as soon as the response to
its writer begins, so parallel first requests each pay the write. Each use makes an entry live longer. A conversation
stays with its provider: by its session_id from its first success on, else by the hash of its first system and first
other message, and only after a hit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

STICKY_SECONDS = 600.0
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Rules:
    """How a family of models caches: from how many tokens, in which steps, and whether only what a mark ends."""

    minimum: int
    step: int = 1
    marked: bool = False


RULES = {"anthropic": Rules(1024, marked=True), "openai": Rules(1024, step=128)}
"""By the first part of a model's name."""


class Boundary(NamedTuple):
    """A place in a prompt up to which it is cached."""

    digest: bytes
    tokens: int


@dataclass(frozen=True, slots=True)
class Served:
    """Who serves a request, and how many tokens of its prompt are read from that provider's cache and written to it."""

    provider: int = 0
    read: int = 0
    written: int = 0
    boundaries: tuple[Boundary, ...] = ()
    conversation: bytes = b""
    sticks: bool = False


NOT_CACHED = Served()


@dataclass(slots=True)
class PromptCache:
    """What the providers' caches hold: the time (Unix) of each entry's last use, by provider and prefix."""

    used: dict[tuple[int, bytes], float] = field(default_factory=dict)
    sticky: dict[bytes, tuple[int, float]] = field(default_factory=dict)
    requests: int = 0

    def look(self, body: Mapping[str, Any], slug: str, now: float, *, life: float, providers: int) -> Served:
        """Return how a request is served that arrives now; `life` is in seconds."""
        rules = RULES[slug.partition("/")[0]]
        session = body.get("session_id")
        conversation = _digest(slug, session or _opening(body))
        provider, since = self.sticky.get(conversation, (-1, -STICKY_SECONDS))
        if now - since >= STICKY_SECONDS:
            provider = self.requests % providers
            self.requests += 1
        found = _marked(body, slug) if rules.marked else _blocks(body, slug, rules)
        boundaries = tuple(one for one in found if one.tokens >= rules.minimum)
        fresh = [one.tokens for one in boundaries if now - self.used.get((provider, one.digest), -life) < life]
        read = max(fresh, default=0)
        written = max((one.tokens for one in boundaries), default=0) - read if rules.marked else 0
        return Served(provider, read, written, boundaries, conversation, sticks=bool(session) or read > 0)

    def begun(self, served: Served, now: float) -> None:
        """Keep what a response that begins now makes readable."""
        for one in served.boundaries:
            self.used[served.provider, one.digest] = now
        if served.sticks:
            self.sticky[served.conversation] = (served.provider, now)

    def clear(self) -> None:
        """Forget all."""
        self.used.clear()
        self.sticky.clear()


def _digest(*words: Any) -> bytes:  # noqa: ANN401  (JSON)
    return blake2b(orjson.dumps(words), digest_size=16).digest()


def _opening(body: Mapping[str, Any]) -> list[Any]:
    """Return the first system and the first other message, without marks."""
    messages = list(_parts(body))
    system = [part for role, part, _ in messages if role in {"system", "developer"}]
    other = [part for role, part, _ in messages if role not in {"system", "developer"}]
    return [system[:1], other[:1]]


def _parts(body: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Yield each part of the messages with its role: what it says, and whether a mark ends the prefix here."""
    messages = body.get("messages") or ()
    for message in messages:
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
        for part in parts:
            said = part["text"] if part["type"] == "text" else {**part, "cache_control": None}
            yield message["role"], said, bool(part.get("cache_control"))


def _marked(body: Mapping[str, Any], slug: str) -> Iterator[Boundary]:
    """Yield what marks end; one at the root of the body stands for one on the last part."""
    digest, length = blake2b(slug.encode(), digest_size=16), 0
    parts = list(_parts(body))
    for number, (role, said, mark) in enumerate(parts, 1):
        digest.update(orjson.dumps([role, said]))
        length += -(-len(said.encode()) // _BYTES_PER_TOKEN) if isinstance(said, str) else 0
        if mark or (number == len(parts) and body.get("cache_control")):
            yield Boundary(digest.copy().digest(), length)


def _blocks(body: Mapping[str, Any], slug: str, rules: Rules) -> Iterator[Boundary]:
    """Yield the whole blocks of a prompt from the minimum on."""
    text = b"".join(said.encode() if isinstance(said, str) else orjson.dumps(said) for _, said, _ in _parts(body))
    digest, at = blake2b(slug.encode(), digest_size=16), 0
    for tokens in range(rules.minimum, len(text) // _BYTES_PER_TOKEN + 1, rules.step):
        digest.update(text[at : (at := tokens * _BYTES_PER_TOKEN)])
        yield Boundary(digest.copy().digest(), tokens)
