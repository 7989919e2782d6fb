"""What one reply means: the only place that reads an HTTP reply.

Every status, body and header gives exactly one verdict whose `ending` is a name in the table of codes; nothing raises.
Machine-readable words of an API decide first, its status next, its English text only within a status.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast

import orjson

from batchrun.api import decisions
from batchrun.api.codes import TABLE
from batchrun.api.dialects import FINISHES, FORMS, HIGHEST_CODE, LOWEST_CODE
from batchrun.api.events import whole
from batchrun.api.masking import Mask
from batchrun.api.refusals import ApiError, ending_of, read_error, resume_at
from batchrun.api.waits import reset_of, wait_of, wait_said
from batchrun.api.wording import (
    clean,
    first_words,
    is_page,
    list_of,
    object_of,
    objects_of,
    page_words,
    read_json,
    text_of,
    usd_of,
)
from batchrun.money import PER_USD, ZERO, Pico
from batchrun.net import PROXY_LOGIN
from batchrun.records import Fault, Mismatch, Parse, Reply, Usage, Verdict

_LARGEST_COUNT = 2**53
_SHOWN = 200  # bytes of a reply that is not JSON, or says nothing in words
_EMPTY = ("", "{}", "[]", "null", '""')
_BROKEN, _BROKEN_BYTES = "\ufffd", "\ufffd".encode()

_CALLED = ("tool_calls", "tool_use")
"""Finish reasons of a model that calls a tool. The text before the call is not the answer."""

_READ_FROM_CACHE = ("cache_read_input_tokens", "prompt_cache_hit_tokens", "cached_tokens")
"""Other names than OpenAI's for what a prompt cache served: LiteLLM's (and Anthropic's), DeepSeek's, Kimi's."""

_SUCCESS = 200  # a plain number: HTTPStatus costs the hot path a microsecond

Json = Mapping[str, Any]
_NOTHING: Json = {}


def judge(reply: Reply, parse: Parse, *, now: float, prompt: bytes = b"", mask: Mask | None = None) -> Verdict:
    """Judge one reply. `parse` reads what the model wrote; `now` is Unix time; `prompt` is the request's body.

    The verdict holds no secret that `mask` knows.
    """
    if mask is not None:
        reply = mask(reply)
    verdict = _judge(reply, parse, now, prompt)
    return verdict if reply.earlier is None else verdict._replace(usage=_sum(reply.earlier, verdict.usage))


def _judge(reply: Reply, parse: Parse, now: float, prompt: bytes) -> Verdict:
    if reply.fault is not None:
        return Verdict(_fault(reply), clean(reply.detail))
    data, damaged = read_json(reply.body)
    if data is None:
        data, damaged = whole(reply.body)
    if isinstance(data, list) and data and isinstance(data[0], dict):
        data = data[0]  # Gemini wraps its errors in a list
    if not _SUCCESS <= reply.status < LOWEST_CODE:
        return _refusal(read_error(reply, data), reply, now)
    if type(data) is not dict:
        return _unreadable(reply, data)
    if _is_error(data):
        return _refusal(read_error(reply, data), reply, now, data)
    if "answers" in data:
        return _decisions(data, reply, parse)
    # A prompt that contains U+FFFD may be answered with it; bytes that were broken on the way are never an answer.
    return _completion(data, reply, parse, now, b"" if damaged else prompt)


def _is_error(data: Json) -> bool:
    """Check whether a success carries an error: marked as one, or words where the choices should be."""
    error = data.get("error")
    if isinstance(error, dict):
        error = any(error.values())  # {"code": null, "message": ""} with an answer is not an error
    return (
        bool(error)
        or data.get("object") == "error"
        or (not data.get("choices") and "answers" not in data and first_words(data) is not None)
    )


# -- a reply that answers


def _completion(data: Json, reply: Reply, parse: Parse, now: float, prompt: bytes) -> Verdict:
    choices = data.get("choices")
    if not choices:
        return _without_choices(data, reply)
    choice = choices[0] if isinstance(choices, list) else None
    if type(choice) is not dict:
        return _invalid("the reply's choices can't be read", reply)
    if choice.get("error"):
        return _broken_off(choice, data, reply, now)
    message, text = _wrote(choice)
    ending, why = _finish(choice.get("finish_reason"))
    if ending == "ok" and not text.strip():
        text = _misplaced(message, parse) or text
    if message.get("refusal") and ending in ("ok", "refused"):
        ending, text = "refused", text or _join(message["refusal"])
        why = clean(text) or TABLE[ending].means
    answer = None
    if ending in ("ok", "interrupted", "truncated"):
        parsed = parse(text, finished=ending == "ok")
        if isinstance(parsed, Mismatch):
            ending, why = _without_answer(ending, why, parsed, text, message, data.get("usage"))
        elif _BROKEN in parsed and _BROKEN_BYTES not in prompt:
            ending, why = "broken_text", "the answer contains the broken character U+FFFD"
        else:  # complete, also where the tokens ended right after it
            ending, why, answer = "ok", "", parsed
    finish = text_of(choice.get("finish_reason"))
    return _verdict(ending, why, data, reply, text=text or None, finish=finish, answer=answer, wrote=message)


def _without_choices(data: Json, reply: Reply) -> Verdict:
    """Judge a success that brings nothing, or an answer in the form of another API: then the address is wrong."""
    for form, name, address in FORMS:
        if form <= data.keys():
            why = f"it is {name}, and its OpenAI-compatible address is {address}"
            return _verdict("wrong_api", why, data, reply)
    return _verdict("empty_response", "the reply contains no choices", data, reply)


def _decisions(data: Json, reply: Reply, parse: Parse) -> Verdict:
    """Judge a decision model's answers."""
    answers = data["answers"]
    if not answers or not isinstance(answers, dict | list):
        return _verdict("empty_response", "the reply contains no answers", data, reply)
    text = orjson.dumps(decisions.neutral(answers)).decode()
    if decisions.refused(answers):
        return _verdict("refused", TABLE["refused"].means, data, reply, text=text)
    parsed = parse(text, finished=True)
    if isinstance(parsed, Mismatch):
        return _verdict("schema_mismatch", parsed.message, data, reply, text=text)
    return _verdict("ok", "", data, reply, text=text, answer=parsed)


def _finish(reason: Any) -> tuple[str, str]:  # noqa: ANN401  (any JSON)
    """Return the ending of a finish_reason, and why. A server that sends none leaves nothing to doubt."""
    if reason == "stop" or reason is None or reason == "":
        return "ok", ""
    # Gemini's words come as SAFETY, FinishReason.SAFETY, FINISH_REASON_SAFETY or "content_filter: SAFETY".
    word = str(reason).lower().partition(":")[0].rpartition(".")[2].removeprefix("finish_reason_")
    ending = FINISHES.get(word)
    if ending is None:
        return "interrupted", f'the model stopped with finish_reason "{clean(str(reason))[:80]}", which is unknown'
    return ending, "" if ending == "ok" else TABLE[ending].means


def _without_answer(
    ending: str,
    why: str,
    mismatch: Mismatch,
    text: str,
    message: Json,
    usage: Any,  # noqa: ANN401  (any JSON)
) -> tuple[str, str]:
    """Return the ending of a generation without a usable answer: cut off, unfit, only reasoning, or nothing at all."""
    if not mismatch.empty:
        if ending == "ok":
            return "schema_mismatch", mismatch.message
        return ending, why
    thoughts = text.strip() or any(
        message.get(name) for name in ("reasoning", "reasoning_content", "reasoning_details")
    )
    if ending == "truncated":
        if thoughts:
            why = "max_tokens was used up by reasoning, before any answer"
        return ending, why
    tokens = _usage(usage, {}).completion_tokens
    if not thoughts and not tokens:
        return "empty_response", "the model answered nothing"
    why = "the model wrote no answer"
    if thoughts:
        why = "the model wrote only reasoning and no answer"
    if tokens:
        why += f" ({tokens:,} tokens are billed)"
    return "no_answer", why


def _broken_off(choice: Json, data: Json, reply: Reply, now: float) -> Verdict:
    """Judge an error inside a choice: the generation had begun, so its text is kept."""
    error = read_error(reply, choice)
    return _refusal(error, reply, now, data, text=_wrote(choice)[1] or None, begun=True)


def _wrote(choice: Json) -> tuple[Json, str]:
    """Return a choice's message, and the text of it; a call of a tool is a text, too."""
    message = choice.get("message")
    if type(message) is not dict:
        message = {"content": choice.get("text")}
    text = _join(message.get("content"))
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls and (not text or choice.get("finish_reason") in _CALLED):
        text = orjson.dumps(calls).decode()  # a text before it is "Let me look that up."
    return message, text


def _misplaced(message: Json, parse: Parse) -> str:
    """Return an answer that stands alone in the place of the thoughts; empty where there is none.

    vLLM puts all that a model writes there if it has a reasoning parser and the model does not think. Text without a
    schema may be a thought or an answer: nobody knows.
    """
    thoughts = text_of(message.get("reasoning") or message.get("reasoning_content"))
    if not thoughts or isinstance(parse(thoughts, finished=False), Mismatch):
        return ""
    return thoughts


def _join(content: Any) -> str:  # noqa: ANN401  (any JSON)
    """Return the text of a message's content: a string, or the texts of its parts."""
    if isinstance(content, str):
        return content
    texts = (object_of(part).get("text", part) for part in list_of(content) if not _is_thought(part))
    return "".join(text for text in texts if isinstance(text, str))


def _is_thought(part: Any) -> bool:  # noqa: ANN401  (any JSON)
    """Check whether a part of a message is a thought, as Mistral, Anthropic and Gemini mark them."""
    return isinstance(part, dict) and (bool(part.get("thought")) or part.get("type") in ("thinking", "reasoning"))


def _verdict(
    ending: str,
    message: str,
    data: Json,
    reply: Reply,
    *,
    text: str | None = None,
    finish: str | None = None,
    answer: str | None = None,
    wrote: Json = _NOTHING,
) -> Verdict:
    annotations = wrote.get("annotations")
    return Verdict(
        ending,
        message,
        None,
        reply.status,
        text,
        _usage(data.get("usage"), reply.headers),
        finish,
        text_of(data.get("model")),
        text_of(data.get("provider")),
        text_of(data.get("id")) or reply.headers.get("x-generation-id"),
        answer,
        text_of(data.get("service_tier")),
        text_of(wrote.get("reasoning") or wrote.get("reasoning_content")),
        _citations(annotations) if annotations else None,
    )


def _citations(annotations: Any) -> str | None:  # noqa: ANN401  (any JSON)
    """Return the web pages that annotations name, as JSON; None where they name none."""
    found = []
    for annotation in objects_of(annotations):
        if annotation.get("type") == "url_citation":
            page = object_of(annotation.get("url_citation", annotation))
            if isinstance(page.get("url"), str):
                cited: dict[str, Any] = {name: text_of(page.get(name)) for name in ("url", "title", "content")}
                found.append(cited | {name: _count(page.get(name)) for name in ("start_index", "end_index")})
    if not found:
        return None
    return orjson.dumps(found).decode()


def _invalid(why: str, reply: Reply) -> Verdict:
    return Verdict("invalid_response", why, None, reply.status, generation_id=reply.headers.get("x-generation-id"))


def _unreadable(reply: Reply, data: Any) -> Verdict:  # noqa: ANN401  (any JSON)
    """Judge a success that is not a JSON object: a page of the edge or of another server, or an answer cut off."""
    if data is not None:
        return _invalid("the reply is not a JSON object", reply)
    if is_page(reply.headers, reply.body):
        words = page_words(reply.body)
        return Verdict("edge_blocked", f"a web page in place of JSON: {words}", None, reply.status)
    if not reply.body.strip():
        return _invalid("the reply is empty", reply)
    if reply.body.lstrip().startswith((b"data:", b"event:")):
        return _invalid("the reply is a stream of events that was cut off or can't be read", reply)
    words = clean(reply.body[:_SHOWN].decode("utf-8", "replace"))
    if words.startswith(("{", "[")) or _BROKEN in words:
        return _invalid("the reply is not JSON, or was cut off", reply)
    return _invalid(f"the reply is not JSON: {words}", reply)


def _usage(usage: Any, headers: Mapping[str, str]) -> Usage:  # noqa: ANN401
    usage = object_of(usage)
    cached = "x-openrouter-cache-status" in headers and headers["x-openrouter-cache-status"].upper() == "HIT"
    if not usage and not cached:
        return Usage()
    cost = ZERO if cached else read_cost(usage)
    # Decision models count as OpenAI's newer APIs do.
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if prompt is None and completion is None:
        prompt, completion = usage.get("input_tokens"), usage.get("output_tokens")
    details = usage.get("prompt_tokens_details")
    if type(details) is not dict:
        details = _NOTHING
    prompt, completion = _count(prompt), _written(usage, _count(prompt), _count(completion))
    if not prompt and not completion and cost is None:
        prompt = completion = None  # no prompt has 0 tokens: OpenVINO's server counts nothing and writes zeros
    read = details.get("cached_tokens")
    if read is None:
        read = next((usage[name] for name in _READ_FROM_CACHE if name in usage), None)
    written = details.get("cache_write_tokens", usage.get("cache_creation_input_tokens"))
    return Usage(prompt, completion, cost, cached, _count(read), _count(written))


def _written(usage: Json, prompt: int | None, completion: int | None) -> int | None:
    """Return how many tokens the model wrote, with the thoughts that xAI and Gemini count in the total alone.

    They are billed as the others. Anthropic counts the tokens of its prompt cache apart from the prompt's.
    """
    total = _count(usage.get("total_tokens"))
    if total is None or prompt is None or total == prompt + (completion or 0):
        return completion
    apart = sum(_count(usage.get(name)) or 0 for name in ("cache_read_input_tokens", "cache_creation_input_tokens"))
    return max(completion or 0, total - prompt - apart)


def _sum(one: Usage, other: Usage) -> Usage:
    """Add what two requests of one attempt used; a count that only one of them has is that one's."""

    def plus(first: int | None, second: int | None) -> int | None:
        return second if first is None else first + (second or 0)

    return Usage(
        plus(one.prompt_tokens, other.prompt_tokens),
        plus(one.completion_tokens, other.completion_tokens),
        cast("Pico | None", plus(one.cost, other.cost)),
        cached_tokens=plus(one.cached_tokens, other.cached_tokens),
        cache_write_tokens=plus(one.cache_write_tokens, other.cache_write_tokens),
    )


def _count(number: Any) -> int | None:  # noqa: ANN401
    if type(number) is int and 0 <= number < _LARGEST_COUNT:
        return number
    if type(number) is float and number.is_integer():
        return _count(int(number))  # servers in JavaScript or Python may write 58.0
    return None


def read_cost(usage: Json) -> Pico | None:
    """Return what the server says it charged; with the user's own provider key, what the provider charges as well."""
    cost = _amount(usage.get("cost"))
    if cost is not None and usage.get("is_byok") is True and isinstance(details := usage.get("cost_details"), dict):
        return Pico(cost + (_amount(details.get("upstream_inference_cost")) or ZERO))
    return cost


def _amount(usd: Any) -> Pico | None:  # noqa: ANN401
    if type(usd) is float:
        # The shortest digits that print as this float are usually whole picodollars: then there is nothing to round.
        scaled = round(usd * PER_USD) if 0 <= usd < 1 else 0
        if scaled and scaled / PER_USD == usd:
            return Pico(scaled)
    return usd_of(usd)


# -- a reply that refuses


def _refusal(
    error: ApiError, reply: Reply, now: float, data: Json = _NOTHING, *, text: str | None = None, begun: bool = False
) -> Verdict:
    """Judge an error: by the HTTP status, or by the code inside a 200."""
    code = error.code if reply.status < LOWEST_CODE else reply.status
    ending = ending_of(code, error, waits="retry-after" in reply.headers)
    if begun and (code is None or code >= HTTPStatus.INTERNAL_SERVER_ERROR):
        ending = "server_error"
    known = code
    if code is None or not LOWEST_CODE <= code <= HIGHEST_CODE:
        known = TABLE[ending].code
    inner = {name.lower(): value for name, value in object_of(error.meta.get("headers")).items()}
    wait = error.delay
    if wait is None:
        wait = wait_of(reply.headers, inner, now, resets=code == HTTPStatus.TOO_MANY_REQUESTS)
    if wait is None and TABLE[ending].slows:
        wait = wait_said(f"{error.said} {error.upstream}")
    message = error.message or _means(ending, reply)
    if code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        message = PROXY_LOGIN
    return Verdict(
        ending,
        message,
        known,
        reply.status,
        text or error.written,
        _usage(data.get("usage"), reply.headers),
        "error" if begun else None,
        provider=error.provider,
        generation_id=text_of(data.get("id")) or reply.headers.get("x-generation-id"),
        wait=wait,
        resume_at=resume_at(ending, error, reset_of(reply.headers, inner, now), wait, now),
    )


def _means(ending: str, reply: Reply) -> str:
    """Return what an ending means, with the address of a redirect, or with a body that holds no words for people."""
    means = TABLE[ending].means
    if ending == "redirected" and (address := reply.headers.get("location")):
        return f"{means}: to {clean(address)}"
    shown = clean(reply.body[:_SHOWN].decode("utf-8", "replace"))
    if reply.status < LOWEST_CODE or shown in _EMPTY or is_page(reply.headers, reply.body):
        return means
    return f"{means}: {shown}"


def _fault(reply: Reply) -> str:
    """Return the ending of an attempt without an HTTP reply; an unsent request can't be billed."""
    match reply.fault:
        case Fault.TOO_LARGE:
            return "response_too_large"
        case Fault.TLS if not reply.sent:
            return "tls"
        case _ if not reply.sent:
            return "connection"
        case Fault.TIMEOUT:
            return "timeout"
        case Fault.PROTOCOL:
            return "invalid_response"
        case _:
            return "reset"
