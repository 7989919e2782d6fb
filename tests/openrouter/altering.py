"""What a generation brings, and the ways in which it goes wrong before it is written as a reply."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

REFUSAL = "I'm a simulator, and I can't help with that."
_HOSTILE = "=cmd|' /C calc'!A0 \x1b]0;owned\x07\x1b[2J<script>alert('simulated')</script>\u202egnp.\x00\r\n{{ 7*7 }}"


@dataclass(slots=True)
class Draft:
    """One generation: `value` is the object that the schema asked for (None where text was asked).

    `tokens` is set where it does not follow from the content. `choice`, `message` and `reply` hold fields to be added;
    a value of `reply` that is ABSENT takes the field away.
    """

    content: Any
    value: dict[str, Any] | None
    schema: Mapping[str, Any] | None
    max_tokens: int | None
    finish: str | None = "stop"
    tokens: int | None = None
    usage: bool = True
    byok: bool = False
    message: dict[str, Any] = field(default_factory=dict)
    choice: dict[str, Any] = field(default_factory=dict)
    reply: dict[str, Any] = field(default_factory=dict)

    @property
    def billed(self) -> bool:
        """Whether the generation is charged: not when it ended in an error, nor when it brought and said nothing."""
        return self.finish != "error" and (self.tokens != 0 or bool(self.finish))

    def write(self, value: Any) -> None:  # noqa: ANN401  (JSON)
        """Put JSON as the content."""
        self.content = orjson.dumps(value).decode()

    def cut(self, tokens: int) -> None:
        """Keep only that many tokens of a text."""
        self.content = self.content.encode()[: 4 * tokens].decode(errors="ignore")


ABSENT = object()


def _error_choice(draft: Draft) -> None:
    draft.cut(2)
    draft.finish, draft.usage = "error", False
    draft.choice["error"] = {
        "code": 502,
        "message": "Provider disconnected mid-stream",
        "metadata": {"error_type": "provider_unavailable"},
    }


def _error_finish(draft: Draft) -> None:
    draft.cut(2)
    draft.finish, draft.usage = "error", False


def _no_choices(draft: Draft) -> None:
    draft.finish, draft.tokens = None, 0
    draft.reply["choices"] = []


def _choices_missing(draft: Draft) -> None:
    _no_choices(draft)
    draft.reply["choices"] = ABSENT


def _empty(draft: Draft) -> None:
    draft.content, draft.finish, draft.tokens = None, None, 0


def _empty_string(draft: Draft) -> None:
    draft.content, draft.tokens = "", 0


def _reasoning(draft: Draft) -> None:
    draft.content, draft.finish, draft.tokens = "", "length", draft.max_tokens or 64
    draft.message["reasoning"] = "Simulated reasoning that never comes to an end"


def _parts(draft: Draft) -> None:
    draft.content = [{"type": "text", "text": draft.content}]


def _null_usage(draft: Draft) -> None:
    draft.usage = False


def _byok(draft: Draft) -> None:
    draft.byok = True


def _unknown_fields(draft: Draft) -> None:
    draft.finish = "simulated_finish"
    draft.message["simulated_field"] = {"of": ["no", "documentation"]}
    draft.reply["simulated_field"] = 1


def _fenced(draft: Draft) -> None:
    draft.content = f"```json\n{draft.content}\n```"


def _prose(draft: Draft) -> None:
    draft.content = f"Here is the simulated answer you asked for:\n\n{draft.content}\n\nI hope this helps!"


def _not_json(draft: Draft) -> None:
    draft.content = "This simulated answer is prose, though JSON was asked for."


def _cut_json(draft: Draft) -> None:
    draft.cut(len(draft.content.encode()) // 8)


def _properties(draft: Draft) -> Mapping[str, Any]:
    properties: Mapping[str, Any] = (draft.schema or {}).get("properties", {})
    return properties


def _accepts(schema: Any, kind: str) -> bool:  # noqa: ANN401  (JSON)
    return "type" not in schema or kind in ([schema["type"]] if isinstance(schema["type"], str) else schema["type"])


def _wrong_enum(draft: Draft) -> None:
    enums = [name for name, each in _properties(draft).items() if "enum" in each]
    if not enums:
        _wrong_type(draft)
    elif draft.value is not None:
        draft.write({**draft.value, enums[0]: "simulated and not allowed"})


def _wrong_type(draft: Draft) -> None:
    name, each = next(iter(_properties(draft).items()), ("answer", {}))
    wrong: Any = {"simulated": True} if _accepts(each, "array") else ["simulated"]
    draft.write({**(draft.value or {}), name: wrong})


def _extra_key(draft: Draft) -> None:
    draft.write({**(draft.value or {}), "simulated_extra": 1})


def _missing_key(draft: Draft) -> None:
    draft.write(dict(list((draft.value or {}).items())[1:]))


def _null(draft: Draft) -> None:
    strict = [name for name, each in _properties(draft).items() if not _accepts(each, "null") or "enum" in each]
    draft.write({**(draft.value or {}), strict[0]: None} if strict else None)


def _truncated(draft: Draft) -> None:
    draft.cut(len(draft.content.encode()) // 8)
    draft.finish, draft.tokens = "length", draft.max_tokens


def _content_filter(draft: Draft) -> None:
    draft.cut(2)
    draft.finish = "content_filter"


def _refusal(draft: Draft) -> None:
    draft.content, draft.message["refusal"], draft.tokens = None, REFUSAL, len(REFUSAL) // 4


def _hostile_text(draft: Draft) -> None:
    if draft.value is None:
        draft.content = _HOSTILE
    else:
        plain = {name for name, each in _properties(draft).items() if "type" in each and _accepts(each, "string")}
        free = {
            name for name in plain if not {"enum", "format", "pattern", "maxLength"} & set(_properties(draft)[name])
        }
        draft.write({name: _HOSTILE if name in free else value for name, value in draft.value.items()})


ALTER: dict[str, Callable[[Draft], None]] = {
    "error-choice": _error_choice,
    "error-finish": _error_finish,
    "no-choices": _no_choices,
    "choices-missing": _choices_missing,
    "empty": _empty,
    "empty-string": _empty_string,
    "reasoning": _reasoning,
    "parts": _parts,
    "null-usage": _null_usage,
    "byok": _byok,
    "unknown-fields": _unknown_fields,
    "fenced": _fenced,
    "prose": _prose,
    "not-json": _not_json,
    "cut-json": _cut_json,
    "wrong-enum": _wrong_enum,
    "wrong-type": _wrong_type,
    "extra-key": _extra_key,
    "missing-key": _missing_key,
    "null": _null,
    "truncated": _truncated,
    "content-filter": _content_filter,
    "refusal": _refusal,
    "hostile-text": _hostile_text,
}
HEALED = frozenset({"fenced", "prose"})
"""What the response-healing plugin mends."""
