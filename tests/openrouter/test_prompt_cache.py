"""The fault server's prompt caches keep the providers' rules: minimum, marks, life, parallel writes, sticky routing."""

from typing import Any

from openrouter.prompt_cache import PromptCache, Served

CLAUDE, GPT = "anthropic/claude-sonnet-4.5", "openai/gpt-4.1"
LONG, SHORT = "x" * 4 * 1_024, "x" * 4 * 1_023


def body(system: str, row: int, *, mark: bool = True, session: str | None = None) -> dict[str, Any]:
    """Return a request whose system message ends with a mark."""
    part = {"type": "text", "text": system} | ({"cache_control": {"type": "ephemeral"}} if mark else {})
    messages = [{"role": "system", "content": [part]}, {"role": "user", "content": f"row {row}"}]
    return {"messages": messages} | ({"session_id": session} if session else {})


def asked(cache: PromptCache, request: dict[str, Any], now: float = 0.0, model: str = CLAUDE) -> Served:
    """Look, and let the response begin at once."""
    served = cache.look(request, model, now, life=300.0, providers=1)
    cache.begun(served, now)
    return served


def test_only_a_marked_prefix_of_the_minimum_is_cached() -> None:
    """One token less, or no mark, and nothing is written; a mark at the end of the row is written and never read."""
    cache = PromptCache()
    for request in (body(SHORT, 1), body(LONG, 1, mark=False)):
        assert [(one.read, one.written) for one in (asked(cache, request), asked(cache, request))] == [(0, 0)] * 2
    rows = [body(LONG, row, mark=False) | {"cache_control": {"type": "ephemeral"}} for row in (1, 2)]
    assert [(one.read, one.written) for one in (asked(cache, row) for row in rows)] == [(0, 1_026)] * 2
    assert [(one.read, one.written) for one in (asked(cache, body(LONG, 1)), asked(cache, body(LONG, 2)))] == [
        (0, 1_024),
        (1_024, 0),
    ]


def test_each_of_several_first_requests_pays_and_each_use_renews() -> None:
    """What is written can be read once its response begins; five minutes after the last use it is gone."""
    cache = PromptCache()
    together = [cache.look(body(LONG, row), CLAUDE, 0.0, life=300.0, providers=1) for row in range(3)]
    assert [one.written for one in together] == [1_024] * 3
    cache.begun(together[0], 0.0)
    assert [asked(cache, body(LONG, 9), now).read for now in (299.0, 598.0, 899.0)] == [1_024, 1_024, 0]


def test_whole_blocks_are_cached_without_a_mark() -> None:
    """A model that caches by itself reads multiples of 128 tokens from 1,024 on, and writing costs nothing."""
    cache, text = PromptCache(), "y" * 4 * 1_200
    first, second = (asked(cache, body(text, row, mark=False), model=GPT) for row in (1, 2))
    assert (first.read, first.written, second.read, second.written) == (0, 0, 1_152, 0)


def test_a_session_sticks_from_the_first_success_and_a_conversation_after_a_hit() -> None:
    """Without a session each row is a conversation of its own, at the next provider; ten idle minutes end a session."""
    cache = PromptCache()

    def provider(row: int, session: str | None, now: float = 0.0) -> int:
        served = cache.look(body(LONG, row, session=session), CLAUDE, now, life=300.0, providers=3)
        cache.begun(served, now)
        return served.provider

    assert [provider(row, None) for row in range(3)] == [0, 1, 2]
    first = provider(3, "s")
    assert {provider(row, "s", 599.0) for row in range(4, 9)} == {first}
    assert [provider(9, "s", 1_199.0), provider(10, "s", 1_199.0)] == [(first + 1) % 3] * 2
    cache = PromptCache()
    assert [provider(0, None) for _ in range(6)] == [0, 1, 2, 0, 0, 0]
