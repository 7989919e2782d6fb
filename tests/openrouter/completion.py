"""A generation as the API writes it: usage with its exact cost, the completion object, the chunks of a stream."""

from dataclasses import dataclass
from typing import Any

import orjson

from openrouter.altering import ABSENT, Draft
from openrouter.catalogue import PER_USD, Price
from openrouter.prompt_cache import NOT_CACHED, Served

_FEE = 20
"""With the user's own key the fee is a twentieth of the list price."""
_CHUNK = 24


def tokens(text: str) -> int:
    """Count the tokens of a text as this simulator does: four bytes are one."""
    return -(-len(text.encode()) // 4)


@dataclass(frozen=True, slots=True)
class Bill:
    """What a generation used and costs, in picodollars; `fee` is the API's charge where the upstream is paid apart."""

    prompt_tokens: int
    completion_tokens: int
    prompt: int
    completion: int
    fee: int | None = None
    read: int = 0
    written: int = 0

    @classmethod
    def of(cls, draft: Draft, prompt_tokens: int, price: Price, served: Served = NOT_CACHED) -> "Bill":
        """Count a draft's tokens, cut it at max_tokens where it is longer, and price it."""
        most, used = draft.max_tokens, draft.tokens
        if used is None:
            content = draft.content
            used = tokens(content if isinstance(content, str) else orjson.dumps(content).decode())
            if most is not None and used > most and isinstance(content, str):
                draft.cut(most)
                draft.finish = "length" if draft.finish == "stop" else draft.finish
        used = used if most is None else min(used, most)
        prompt = price.of_prompt(prompt_tokens, served.read, served.written)
        completion = price.completion * used
        fee = (prompt + completion) // _FEE if draft.byok else None
        return cls(prompt_tokens, used, prompt, completion, fee, served.read, served.written)

    @property
    def total(self) -> int:
        """All that is paid: to the API, and with an own key to the upstream."""
        return self.prompt + self.completion + (self.fee or 0)


def usd(amount: int) -> float:
    """Return picodollars as the JSON number whose decimal text is exact (below a thousand dollars)."""
    return amount / PER_USD


def usage(draft: Draft, bill: Bill) -> dict[str, Any]:
    """Return the reply's `usage`."""
    if not draft.usage:
        return {"prompt_tokens": None, "completion_tokens": None, "total_tokens": 0, "cost": None}
    upstream = bill.prompt + bill.completion if draft.billed else 0
    counts = {"cached_tokens": bill.read, "cache_write_tokens": bill.written, "audio_tokens": 0, "video_tokens": 0}
    return {
        "prompt_tokens": bill.prompt_tokens,
        "completion_tokens": bill.completion_tokens,
        "total_tokens": bill.prompt_tokens + bill.completion_tokens,
        "cost": usd(upstream if bill.fee is None else bill.fee),
        "is_byok": draft.byok,
        "prompt_tokens_details": counts,
        "cost_details": {
            "upstream_inference_cost": usd(upstream),
            "upstream_inference_prompt_cost": usd(bill.prompt if draft.billed else 0),
            "upstream_inference_completions_cost": usd(bill.completion if draft.billed else 0),
        },
        "completion_tokens_details": {
            "reasoning_tokens": bill.completion_tokens if "reasoning" in draft.message else 0,
            "image_tokens": 0,
            "audio_tokens": 0,
        },
    }


def written(draft: Draft, bill: Bill, generation: str, slug: str, created: int) -> dict[str, Any]:
    """Return the completion object. Its model says that it is simulated."""
    message = {"role": "assistant", "content": draft.content, "refusal": None, "reasoning": None, **draft.message}
    choice = {
        "index": 0,
        "logprobs": None,
        "finish_reason": draft.finish,
        "native_finish_reason": draft.finish,
        "message": message,
        **draft.choice,
    }
    completion: dict[str, Any] = {
        "id": generation,
        "object": "chat.completion",
        "created": created,
        "model": slug if slug.startswith("sim/") else f"sim/{slug}",
        "provider": "Simulator",
        "system_fingerprint": "fp_simulator",
        "choices": [choice],
        "usage": usage(draft, bill),
    }
    if draft.reply:
        completion |= draft.reply
        return {key: value for key, value in completion.items() if value is not ABSENT}
    return completion


def pieces(completion: dict[str, Any]) -> tuple[bytes, ...]:
    """Return the events of a stream that brings this completion."""
    base = {key: value for key, value in completion.items() if key not in {"choices", "usage"}}
    base["object"] = "chat.completion.chunk"
    out = [b": OPENROUTER PROCESSING\n\n"]

    def event(choices: list[Any], **more: Any) -> None:  # noqa: ANN401  (JSON)
        out.append(b"data: " + orjson.dumps({**base, "choices": choices, **more}) + b"\n\n")

    for choice in completion.get("choices", ()):
        content = choice["message"]["content"]
        texts = [content[at : at + _CHUNK] for at in range(0, len(content), _CHUNK)] if isinstance(content, str) else []
        for text in texts:
            event([{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}])
        extra = {key: value for key, value in choice["message"].items() if key != "content" and value is not None}
        more = {"error": choice["error"]} if "error" in choice else {}
        event([{"index": 0, "delta": {"content": "", **extra}, "finish_reason": choice["finish_reason"]}], **more)
    event([], usage=completion["usage"])
    out.append(b"data: [DONE]\n\n")
    return tuple(out)
