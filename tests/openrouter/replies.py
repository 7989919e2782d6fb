"""Replies that are not answers: refusals in the API's envelope; and the headers that every reply carries."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson

from openrouter.account import Account, Hold, clock
from openrouter.cases import TABLE
from openrouter.wire import Reply

JSON = b"application/json"
NOTHING = Hold(0)


def generation_id(account: Account, now: float) -> str:
    """Return the next generation's id."""
    count = account.counters.requests.to_bytes(8) + account.config.seed.to_bytes(16, signed=True)
    return f"gen-{int(now)}-{blake2b(count, digest_size=10).hexdigest()}"


def head(account: Account, generation: str = "") -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers of a JSON reply."""
    generation = generation or generation_id(account, clock())
    return (b"content-type", JSON), (b"x-generation-id", generation.encode())


def problem(account: Account, status: int, error: Mapping[str, Any]) -> Reply:
    """Return the refusal of an invalid request."""
    return Reply(status, head(account), orjson.dumps({"error": error}), "invalid")


def refusal(account: Account, name: str, ending: str = "", model: str = "", hold: Hold = NOTHING) -> Reply:
    """Return the refusal that a case of the table describes."""
    case = TABLE[name]
    values = account.values(orjson.dumps(model).decode()[1:-1], hold, clock())

    def filled(text: str) -> bytes:
        for key, value in values.items():
            text = text.replace(key, value)
        return text.encode()

    headers = dict(head(account)) | {key.encode(): filled(value) for key, value in case.headers.items()}
    body = case.error if isinstance(case.error, str) else orjson.dumps(case.error).decode()
    return Reply(case.status, tuple(headers.items()), filled(body), ending or name)
