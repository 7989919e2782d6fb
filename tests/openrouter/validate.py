"""Which requests the API refuses before any generation, and in which words."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from openrouter.catalogue import Model

Problem = tuple[int, dict[str, Any]]
"""HTTP status and the error object."""

_ROLES = frozenset({"system", "user", "assistant", "developer", "tool"})
_TEXT = frozenset({"text"})
_PARTS = frozenset({"text", "image_url", "input_audio", "video_url", "file"})
_PROVIDER = {
    "order", "only", "ignore", "allow_fallbacks", "require_parameters", "data_collection", "zdr",
    "enforce_distillable_text", "quantizations", "sort", "preferred_min_throughput", "preferred_max_latency",
    "max_price", "options",
}  # fmt: skip
_ROUTING = {
    "model", "models", "route", "provider", "messages", "prompt", "metadata", "user", "session_id", "stream",
    "stream_options", "plugins", "usage", "transforms", "service_tier", "cache_control", "prompt_cache_key",
    "prompt_cache_options", "debug", "trace", "modalities",
}  # fmt: skip
_FORMATS = frozenset({"text", "json_object", "json_schema", "grammar", "python"})
_EFFORTS = frozenset({"max", "xhigh", "high", "medium", "low", "minimal", "none"})
_TIERS = frozenset({"auto", "default", "flex", "priority", "fast", "scale"})
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (1, float("inf")),
    "max_completion_tokens": (1, float("inf")),
    "temperature": (0, 2),
    "top_p": (5e-324, 1),
    "top_k": (0, float("inf")),
    "min_p": (0, 1),
    "top_a": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "repetition_penalty": (5e-324, 2),
    "top_logprobs": (0, 20),
    "seed": (-(2**63), 2**63),
}
_WHOLE = frozenset({"max_tokens", "max_completion_tokens", "top_k", "top_logprobs", "seed"})


def _is_one(value: Any, allowed: frozenset[str]) -> bool:  # noqa: ANN401  (JSON)
    return isinstance(value, str) and value in allowed


def bad(message: str, error_type: str = "invalid_request") -> Problem:
    """Return a 400 in the API's words."""
    return 400, {"code": 400, "message": message, "metadata": {"error_type": error_type}}


def request_problem(body: Mapping[str, Any]) -> Problem | None:
    """Find what is wrong with a chat request, apart from its models."""
    for check in _CHECKS:
        problem = check(body)
        if problem is not None:
            return problem
    return None


def _messages(body: Mapping[str, Any]) -> Problem | None:
    messages = body.get("messages")
    if messages is None and isinstance(body.get("prompt"), str):
        return None
    if not isinstance(messages, list) or not messages:
        return bad('Input required: specify "prompt" or "messages"')
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not _is_one(message.get("role"), _ROLES):
            return bad(f"messages.{number}.role: Invalid option", "invalid_prompt")
        content = message.get("content")
        if isinstance(content, list):
            allowed = _TEXT if message["role"] in {"system", "developer"} else _PARTS
            if not all(_is_part(part, allowed) for part in content):
                return bad(f"messages.{number}.content: Invalid input", "invalid_prompt")
        elif not isinstance(content, str) and not (content is None and message["role"] == "assistant"):
            return bad(f"messages.{number}.content: Invalid input", "invalid_prompt")
    return None


def _is_part(part: Any, allowed: frozenset[str]) -> bool:  # noqa: ANN401  (JSON)
    if not isinstance(part, dict) or not _is_one(part.get("type"), allowed):
        return False
    return isinstance(part.get("text"), str) if part["type"] == "text" else True


def _ranges(body: Mapping[str, Any]) -> Problem | None:
    for name in _RANGES.keys() & body.keys():
        value, (low, high) = body[name], _RANGES[name]
        if value is None:
            continue
        whole = isinstance(value, int) or name not in _WHOLE
        if isinstance(value, bool) or not isinstance(value, int | float) or not whole or not low <= value <= high:
            return bad(f"{name}: Invalid input")
    stop = body.get("stop")
    if isinstance(stop, list) and len(stop) > 4:
        return bad("stop: Array must contain at most 4 element(s)")
    return None


def _routing(body: Mapping[str, Any]) -> Problem | None:
    models, provider = body.get("models"), body.get("provider")
    if models is not None and not isinstance(models, list):
        return bad("models: Expected array")
    if models and len(models) > 3:
        return bad("'models' array must have 3 items or fewer")
    if provider is not None:
        unknown = sorted(set(provider) - _PROVIDER) if isinstance(provider, dict) else ["provider"]
        if unknown:
            return bad("Unrecognized key(s) in object: " + ", ".join(f"'{key}'" for key in unknown))
    return None


def _extras(body: Mapping[str, Any]) -> Problem | None:
    metadata, session = body.get("metadata"), body.get("session_id")
    if metadata is not None and not _valid_metadata(metadata):
        return bad("metadata: at most 16 pairs, keys up to 64 and values up to 512 characters")
    if body.get("service_tier") is not None and not _is_one(body["service_tier"], _TIERS):
        return bad("service_tier: Invalid option")
    if isinstance(session, str) and len(session) > 256:
        return bad("session_id: String must contain at most 256 character(s)")
    return _plugins(body) or _reasoning(body)


def _plugins(body: Mapping[str, Any]) -> Problem | None:
    plugins = body.get("plugins") or []
    if isinstance(plugins, list) and all(isinstance(plugin, dict) for plugin in plugins):
        return None
    return bad("plugins: Invalid input")


def _reasoning(body: Mapping[str, Any]) -> Problem | None:
    reasoning, effort = body.get("reasoning"), body.get("reasoning_effort")
    chosen = reasoning.get("effort") if isinstance(reasoning, dict) else None
    if any(each is not None and not _is_one(each, _EFFORTS) for each in (effort, chosen)):
        return bad("reasoning.effort: Invalid option")
    if isinstance(reasoning, dict) and chosen and reasoning.get("max_tokens"):
        return bad('Only one of "reasoning.effort" and "reasoning.max_tokens" can be specified')
    if chosen and effort and chosen != effort:
        return bad('"reasoning_effort" conflicts with "reasoning.effort"')
    return None


def _valid_metadata(metadata: Any) -> bool:  # noqa: ANN401  (JSON)
    return (
        isinstance(metadata, dict)
        and len(metadata) <= 16
        and all(len(key) <= 64 and isinstance(value, str) and len(value) <= 512 for key, value in metadata.items())
    )


def _response_format(body: Mapping[str, Any]) -> Problem | None:
    asked = body.get("response_format")
    if asked is None:
        return None
    if not isinstance(asked, dict) or not _is_one(asked.get("type"), _FORMATS):
        return bad("response_format.type: Invalid option")
    if asked["type"] == "json_object" and "json" not in str(body.get("messages")).lower():
        return _relayed(
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'."
        )
    return _json_schema(asked.get("json_schema")) if asked["type"] == "json_schema" else None


def _json_schema(wrapped: Any) -> Problem | None:  # noqa: ANN401  (JSON)
    if not isinstance(wrapped, dict) or not _NAME.fullmatch(str(wrapped.get("name", ""))):
        return bad("response_format.json_schema.name: Invalid input")
    if not isinstance(wrapped.get("schema"), dict):
        return bad("response_format.json_schema.schema: Invalid input")
    try:
        fault = _not_strict(wrapped["schema"], "()") if wrapped.get("strict") else None
    except (TypeError, AttributeError, RecursionError):
        fault = "it is no JSON Schema."
    return _relayed(f"Invalid schema for response_format '{wrapped['name']}': {fault}") if fault else None


def unusable_schema() -> Problem:
    """Return the refusal of a schema that no value can be made for."""
    return _relayed("Invalid schema for response_format: it is no JSON Schema.")


def _not_strict(schema: Any, place: str) -> str | None:  # noqa: ANN401  (JSON)
    """Find where a schema breaks the rules of strict mode: every property required, no others allowed."""
    if not isinstance(schema, dict):
        return None
    properties = schema.get("properties")
    if isinstance(properties, dict):
        if schema.get("additionalProperties") is not False:
            return f"In context={place}, 'additionalProperties' is required to be supplied and to be false."
        missing = sorted(set(properties) - set(schema.get("required", ())))
        if missing:
            return (
                f"In context={place}, 'required' is required to be supplied and to be an array including every key in "
                f"properties. Missing '{missing[0]}'."
            )
    inner = [*(properties or {}).items(), ("items", schema.get("items")), *schema.get("$defs", {}).items()]
    inner += [(str(at), each) for at, each in enumerate(schema.get("anyOf", ()))]
    return next((fault for name, each in inner if (fault := _not_strict(each, f"('{name}')"))), None)


def _relayed(message: str) -> Problem:
    raw = orjson.dumps({"error": {"message": message, "type": "invalid_request_error"}}).decode()
    metadata = {"raw": raw, "provider_name": "Simulated Provider"}
    return 400, {"code": 400, "message": "Provider returned error", "metadata": metadata}


_CHECKS: tuple[Callable[[Mapping[str, Any]], Problem | None], ...] = (
    _messages,
    _ranges,
    _routing,
    _extras,
    _response_format,
)


def routing_problem(body: Mapping[str, Any], model: Model, tokens: int) -> Problem | None:
    """Find why a model can't serve a request of that many tokens (prompt and max_tokens)."""
    if tokens > model.context:
        message = (
            f"This endpoint's maximum context length is {model.context} tokens. However, you requested about {tokens} "
            "tokens. Please reduce the length of either one."
        )
        return bad(message, "context_length_exceeded")
    provider = body.get("provider")
    if provider and provider.get("require_parameters"):
        asked = {key for key in body.keys() - _ROUTING if body[key] is not None}
        if (body.get("response_format") or {}).get("type") == "json_schema":
            asked.add("structured_outputs")
        if asked - set(model.supported):
            return 404, {"code": 404, "message": "No endpoints found that can handle the requested parameters."}
    return None
