"""Whole answers out of streams that nobody asked for.

Some gateways stream unless a request says `stream: false`, others ignore it, and Ollama's own API streams lines of
JSON. Such an answer is complete and paid for, so it is read and not asked for again.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from batchrun.api.wording import list_of, object_of, objects_of, read_json, text_of

_DATA = b"data:"
_FIRST = (_DATA, b"event:", b"id:", b"retry:", b":", b"{")
_DONE = re.compile(rb"data:\s*\[DONE\]$")


def whole(body: bytes) -> tuple[Any, bool]:
    """Return the completion that a stream of events contains, or the error in it, and whether characters were broken.

    A stream of another API gives its first event. None where the body is not a stream, was cut off, or calls a tool.
    """
    text = body.strip()
    if not text.startswith(_FIRST):
        return None, False
    done = _DONE.search(text)
    if done:
        text = text[: done.start()]  # some gateways put it right after a whole answer
    events, damaged = [], False
    for line in text.splitlines():
        payload = line.strip().removeprefix(_DATA).strip()
        if not payload.startswith(b"{"):
            continue  # `event: …`, `: a comment`, and the empty line after each event
        event, broken = read_json(payload)
        if not isinstance(event, dict):
            return None, False
        damaged = damaged or broken
        events.append(event)
    if not events:
        return None, False
    if (error := next((event for event in events if event.get("error")), None)) is not None:
        return error, damaged
    if not any(isinstance(event.get("choices"), list) for event in events):
        return events[0], damaged
    return _joined(events, is_done=done is not None), damaged


def _joined(events: list[dict[str, Any]], *, is_done: bool) -> dict[str, Any] | None:
    """Join the parts of one completion; its end shows by a finish_reason, or by `[DONE]`."""
    choices = [choice for event in events for choice in objects_of(event.get("choices")) if not choice.get("index")]
    finish = next((reason for choice in reversed(choices) if (reason := choice.get("finish_reason"))), None)
    deltas = [object_of(choice.get("delta")) for choice in choices]
    if (finish is None and not is_done) or any(delta.get("tool_calls") for delta in deltas):
        return None
    # Perplexity repeats in each event as `message` what came so far; one whole answer has no deltas.
    message = next((object_of(choice.get("message")) for choice in reversed(choices)), {})
    if any(deltas):
        message = {
            "content": [part for delta in deltas for part in _parts(delta.get("content"))],
            "reasoning": "".join(map(_thought, deltas)),
            "refusal": "".join(text_of(delta.get("refusal")) or "" for delta in deltas),
        }
    joined: dict[str, Any] = {}
    for event in events:
        joined |= {name: value for name, value in event.items() if value is not None}
    return {**joined, "choices": [{"message": message, "finish_reason": finish}]}


def _parts(content: Any) -> Iterator[Any]:  # noqa: ANN401  (any JSON)
    """Yield the parts of a delta's content: a text, or those of a list as Mistral writes it."""
    yield from [content] if isinstance(content, str) else list_of(content)


def _thought(delta: Mapping[str, Any]) -> str:
    """Return a delta's reasoning; vLLM writes it under both names."""
    return text_of(delta.get("reasoning")) or text_of(delta.get("reasoning_content")) or ""
