"""The beginning of a prompt that is the same for each row: what a provider's prompt cache can hold."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

from batchrun.prompt.templates import Fields, Template


class _Leaf(Protocol):
    @property
    def template(self) -> Template | Fields: ...


@dataclass(frozen=True, slots=True)
class Beginning:
    """What all requests of a job begin with.

    `messages` are those that no row changes, `parts` those of the next message. `characters` is what their texts hold;
    `loose` is what the text after them begins with before it uses a column, which only some providers cache. `digest`
    stands for the whole. `last_text` is where the last constant text is: its message, and its part of a list.
    """

    messages: int
    parts: int
    characters: int
    loose: int
    digest: str
    last_text: tuple[int, int] | None


def beginning_of(messages: Sequence[Mapping[str, Any]], leaves: Callable[[Any], Iterable[_Leaf]]) -> Beginning:
    """Return the beginning of compiled messages; `leaves` are what a row fills in a part of them."""
    digest = blake2b(digest_size=16)
    characters = 0
    last_text: tuple[int, int] | None = None
    for number, message in enumerate(messages):
        for at, part in enumerate(_parts(message)):
            sources = [leaf.template.source for leaf in leaves(part)]
            is_text = part["type"] == "text"
            if any(leaf.template.constant is None for leaf in leaves(part)):
                literal = ""
                if is_text:
                    literal = re.split(r"\{[{%#]", sources[0])[0]
                digest.update(literal.encode("utf-8", "replace"))
                return Beginning(number, at, characters, len(literal), digest.hexdigest(), last_text)
            text = ""
            if is_text and not sources:
                text = part["text"]
            characters += len(text)
            if is_text and (text.strip() or sources):
                last_text = (number, at)
            digest.update(json.dumps([message["role"], part["type"], sources or text]).encode())
    return Beginning(len(messages), 0, characters, 0, digest.hexdigest(), last_text)


def marked(
    messages: Sequence[Mapping[str, Any]], beginning: Beginning, mark: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Return messages with a `cache_control` mark on the last text of their beginning, if it has one."""
    if beginning.last_text is None:
        return list(messages)
    number, at = beginning.last_text
    parts = list(_parts(messages[number]))
    parts[at] = {**parts[at], "cache_control": mark}
    return [*messages[:number], {**messages[number], "content": parts}, *messages[number + 1 :]]


def _parts(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]
