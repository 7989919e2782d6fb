"""POST /chat/completions: made-up text, or JSON that is valid against the schema in the request."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from batchrun.servers.simulator import pdfs, values
from batchrun.servers.simulator.account import Account, ApiError, Config, find_model
from batchrun.servers.simulator.models import IMAGE_TOKENS, TEXT, Model, count_tokens, to_usd

_DEFAULT_MAX_TOKENS = 4_096


@dataclass(frozen=True, slots=True)
class Request:
    """A valid request. `schema` is None where plain text was asked for; `documents` is the text of its PDFs."""

    model: Model
    messages: list[Any]
    schema: Any
    prompt_tokens: int
    max_tokens: int | None
    documents: str = ""


async def reply(account: Account, body: bytes) -> dict[str, Any]:
    """Return the completion for one request. Raises ApiError."""
    request = parse(body)
    worst = request.model.cost(request.prompt_tokens, request.max_tokens or _DEFAULT_MAX_TOKENS)

    def write() -> tuple[dict[str, Any], int]:
        written, cost = complete(account.config, request, f"gen-{int(time.time())}-{account.generations:08x}")
        written["usage"]["cost"] = to_usd(cost)
        return written, cost

    return await account.generate(body, worst, write)


def parse(raw: bytes) -> Request:
    """Return a request that was checked. Raises ApiError."""
    try:
        body = orjson.loads(raw)
        messages = body["messages"]
        documents = "\n".join(_documents(messages))
        prompt_tokens = sum(_count(message["content"]) for message in messages) + count_tokens(documents)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ApiError(400, "messages: Invalid input") from None
    if body.get("stream"):
        raise ApiError(400, "The simulator does not stream: leave out stream")
    name = body.get("model") or next(iter(body.get("models") or ()), None)
    model = find_model(name, TEXT)
    max_tokens = body.get("max_completion_tokens") or body.get("max_tokens")
    if max_tokens is not None and not (isinstance(max_tokens, int) and max_tokens > 0):
        raise ApiError(400, "max_tokens: Invalid input")
    if prompt_tokens + (max_tokens or 0) > model.context:
        raise ApiError(400, f"This endpoint's maximum context length is {model.context} tokens.")
    return Request(model, messages, _schema(body.get("response_format")), prompt_tokens, max_tokens, documents)


def _count(content: str | list[Mapping[str, Any]]) -> int:
    if isinstance(content, str):
        return count_tokens(content)
    others = sum(part["type"] not in {"text", "file"} for part in content)
    return sum(count_tokens(part["text"]) for part in content if part["type"] == "text") + others * IMAGE_TOKENS


def _documents(messages: list[Any]) -> Iterator[str]:
    """Yield the texts of the PDFs in messages. Raises ValueError for data that is not a PDF."""
    for message in messages:
        parts = message["content"] if isinstance(message["content"], list) else ()
        yield from (pdfs.text_of(part["file"]) for part in parts if part["type"] == "file")


def _schema(response_format: Any) -> Any:  # noqa: ANN401  (JSON)
    """Return the JSON Schema that a response_format asks for; None for text."""
    match response_format:
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            return schema
        case {"type": "json_object"}:
            return {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
        case None | {"type": "text"}:
            return None
    raise ApiError(400, "response_format: Invalid input")


def complete(config: Config, request: Request, id_: str) -> tuple[dict[str, Any], int]:
    """Return a completion and its cost in picodollars. Raises ApiError.

    Its text is a function of the seed, the messages and the schema.
    """
    draw = values.Draw(config.digest(orjson.dumps([request.messages, request.schema])))
    if request.schema is None:
        content = values.text(draw)
    else:
        try:
            made = pdfs.fill(values.instance(request.schema, draw), request.schema, request.documents)
            content = orjson.dumps(made).decode()
        except values.SchemaError as error:
            raise ApiError(400, f"Invalid schema for response_format: {error}") from None
    used, finish = count_tokens(content), "stop"
    if request.max_tokens is not None and used > request.max_tokens:
        used, finish = request.max_tokens, "length"
        # A cut inside a letter of several bytes loses the letter.
        content = content.encode()[: 4 * used].decode(errors="ignore")
    completion = {
        "id": id_,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": f"sim/{request.model.slug.removeprefix('sim/')}",
        "provider": "Simulator",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "native_finish_reason": finish,
                "message": {"role": "assistant", "content": content, "error": None, "reasoning": None},
            }
        ],
        "usage": {
            "prompt_tokens": request.prompt_tokens,
            "completion_tokens": used,
            "total_tokens": request.prompt_tokens + used,
        },
    }
    return completion, request.model.cost(request.prompt_tokens, used)
