"""Provider batches in two dialects: OpenRouter's inline /batches, and the files + batches of OpenAI and its likes.

A submission is never repeated blindly: neither API takes an idempotency key, so a reply that was lost leaves a doubt,
and the provider's list is searched (`find`). Facts: OpenRouter's SDK 1.3.84, openai-python 3.57.0.
"""

import json
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode

import orjson

from batchrun.api.dialects import WORD_CODES, WORDS
from batchrun.api.endpoints import Endpoint, call
from batchrun.api.judge import judge, read_cost
from batchrun.api.prices import BATCH_VARIANT
from batchrun.api.waits import seconds_of, time_of
from batchrun.api.wording import clean, list_of, object_of, objects_of, read_json
from batchrun.job import Model
from batchrun.money import Pico
from batchrun.records import Mismatch, Reply, Verdict

MAX_BYTES = 190 * 10**6
"""Bytes of one submission; OpenRouter, OpenAI and Groq take 200 MB, and the last prompt may have 8."""

LINE_BYTES = 128
"""What a submission has around the body of one request."""

_PATH = "/v1/chat/completions"
_CHAT_SECONDS, _TRANSFER_SECONDS = 60.0, 900.0
_FILE_CHECKS, _FILE_SECONDS = 60, 5.0
_MOST_RESULTS = 2**30
_PAGE = 1_000
_LISTED = 100
_BEFORE = 60.0
"""Seconds by which a provider's clock may be behind ours."""

GONE = "gone"
"""The status here of a batch that the provider does not know any more."""

GIVE_UP = "; if that does not change, `batchrun retry JOB --only in_batch` asks its questions again"
"""The end of a message about results that are not there."""

_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_NO_PAGE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.GONE})
_WRONG_NAME = frozenset({"invalid_model", "bad_request", "not_found", "no_endpoint"})
_TAG = "batchrun"
"""The key of OpenAI's metadata that holds a batch's tag."""


Ask = Callable[..., Reply]
"""`endpoints.call` with the endpoint and the job's headers."""


class Line(NamedTuple):
    """One answer of a batch; `reply` is what a request of its own would have brought."""

    custom_id: str
    reply: Reply


@dataclass(frozen=True, slots=True)
class Shown:
    """What a provider shows of a batch. `cost` (picodollars) is the whole batch's, None where it names none.

    `code` is the provider's word for why a batch failed. `withheld`: it is finished, and its results wait for credit.
    `wait`: seconds after which the provider wants to be asked again.
    """

    id: str
    status: str
    total: int = 0
    completed: int = 0
    failed: int = 0
    cost: Pico | None = None
    problem: str = ""
    code: str = ""
    withheld: bool = False
    wait: float | None = None
    files: tuple[str, ...] = ()

    @property
    def is_gone(self) -> bool:
        """Whether the provider no longer knows the batch; it may have billed it all the same."""
        return self.status == GONE

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in _ENDED and not self.withheld


@dataclass(frozen=True, slots=True)
class Submitted:
    """The provider has the batch: under this id, and with this name of the model.

    `wait`: seconds after which the provider wants to be asked for it.
    """

    id: str
    model: str
    file_id: str | None = None
    wait: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The provider does not have the batch, and `verdict` says why."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Doubt:
    """The reply to a submission was lost: the provider may have the batch. `wait`: seconds that it asked for.

    `file_id` is the file of its requests, where they are in one.
    """

    message: str
    wait: float | None = None
    file_id: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What may be a batch whose reply was lost, newest first; `wait`: seconds until the list may be read again."""

    batches: tuple[Submitted, ...]
    wait: float | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """The provider does not know the batch. `certain`: it did, and deleted it (410); a 404 may pass."""

    message: str
    certain: bool = False


class UnavailableError(Exception):
    """The provider can't be asked just now; `verdict` says why, and how many seconds to wait."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict


class BatchApi(Protocol):
    """What the batch lane needs of a provider. Each call may take minutes, and blocks."""

    def submit(self, requests: Sequence[tuple[str, bytes]], *, model: str, tag: str) -> Submitted | Refused | Doubt:
        """Submit requests, each with its custom_id; the body names the model."""

    def show(self, id_: str) -> Shown | Gone:
        """Ask how a batch stands. Raises UnavailableError."""

    def find(self, *, model: str, tag: str, requests: int, since: float, file_id: str | None) -> Found:
        """Search the list for a batch whose reply was lost. Raises UnavailableError."""

    def lines(self, shown: Shown) -> Iterator[Line]:
        """Yield the answers of a batch that ended; one that can't be decoded is left out. Raises UnavailableError."""

    def clean_up(self, shown: Shown, file_id: str | None) -> None:
        """Delete the batch with its files, as far as the provider permits it."""


def batch_names(model: str) -> tuple[str, str]:
    """Return the names under which a provider may take a model in a batch."""
    base = model.removesuffix(BATCH_VARIANT)
    return base, base + BATCH_VARIANT


def batch_api(endpoint: Endpoint, model: Model) -> BatchApi:
    """Return the dialect of an endpoint, with the job's own headers and choice of providers."""
    ask = partial(call, endpoint, headers=model.headers, seconds=_CHAT_SECONDS, max_bytes=_MOST_RESULTS)
    if endpoint.openrouter and model.batch_api is None:
        return _OpenRouter(ask, model.params.get("provider"))
    return _OpenAi(ask)


def _verdict(reply: Reply) -> Verdict:
    """Judge a reply that is not the expected one."""
    return judge(reply, _no_answer, now=datetime.now(UTC).timestamp())


def _no_answer(text: str, *, finished: bool) -> str | Mismatch:
    del text, finished
    return Mismatch("a batch is not an answer", empty=True)


def _object(reply: Reply) -> dict[str, Any] | None:
    """Return the JSON object of a success, else None."""
    if reply.fault is not None or not HTTPStatus.OK <= reply.status < HTTPStatus.MULTIPLE_CHOICES:
        return None
    data, _ = read_json(reply.body)
    return data if isinstance(data, dict) else None


def _fetched(reply: Reply) -> dict[str, Any]:
    data = _object(reply)
    if data is None:
        raise UnavailableError(_verdict(reply))
    return data


def _pages(ask: Ask, **query: object) -> Iterator[tuple[list[dict[str, Any]], float | None]]:
    """Yield the pages of the list of batches, each with the seconds after which the provider wants to be asked again.

    Raises UnavailableError.
    """
    while True:
        reply = ask("GET", f"batches?{urlencode({'limit': _LISTED, **query})}")
        page = _fetched(reply)
        listed = objects_of(page.get("data"))
        yield listed, _wait(reply)
        # A server may leave out last_id, which is the id of the last entry.
        before, after = query.get("after"), page.get("last_id") or (listed and listed[-1].get("id"))
        # One that ignores `after` shows the same page for ever.
        if not page.get("has_more") or not after or after == before:
            return
        query["after"] = after


def _wait(reply: Reply) -> float | None:
    return seconds_of(reply.headers.get("retry-after"))


def _is_lost(reply: Reply) -> bool:
    """Check whether a batch may have been made though the reply does not say so."""
    if reply.fault is not None:
        return reply.sent
    return reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR or reply.status < HTTPStatus.MULTIPLE_CHOICES


def _submission(reply: Reply, model: str, file_id: str | None = None) -> Submitted | Refused | Doubt:
    data = _object(reply)
    if data is not None and isinstance(data.get("id"), str):
        return Submitted(data["id"], model, file_id, _wait(reply))
    verdict = _verdict(reply)
    if _is_lost(reply):
        return Doubt(verdict.message, verdict.wait, file_id)
    return Refused(verdict)


def _shown(data: Mapping[str, Any], wait: float | None = None) -> Shown:
    counts = object_of(data.get("request_counts"))
    message, code = _problem(data)
    files = (data.get("output_file_id"), data.get("error_file_id"))
    return Shown(
        str(data.get("id") or ""),
        str(data.get("status") or "").lower(),  # some write COMPLETED
        total=_count(counts.get("total")),
        completed=_count(counts.get("completed")),
        failed=_count(counts.get("failed")),
        cost=read_cost(object_of(data.get("usage"))),
        problem=clean(message),
        code=code,
        wait=wait,
        files=tuple(file for file in files if isinstance(file, str) and file),
    )


def _shown_or_gone(reply: Reply) -> Shown | Gone:
    if reply.fault is None and reply.status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        return Gone(_verdict(reply).message, certain=reply.status == HTTPStatus.GONE)
    return _shown(_fetched(reply), _wait(reply))


def _count(number: object) -> int:
    return number if isinstance(number, int) else 0


def _problem(data: Mapping[str, Any]) -> tuple[str, str]:
    """Return a batch's message and its code: OpenRouter's `error`, or the first of OpenAI's `errors`."""
    listed = list_of(object_of(data.get("errors")).get("data"))
    error = object_of(next(iter(listed), data.get("error")))
    return str(error.get("message") or ""), str(error.get("code") or "")


def _line(data: Any) -> Line | None:  # noqa: ANN401  (any JSON)
    """Return a line of results as a reply; None where it names no request."""
    if not isinstance(data, dict) or not isinstance(data.get("custom_id"), str):
        return None
    response = data.get("response")
    if isinstance(response, dict):
        # A status of 0 on a batch that is completed was reported; it means that the request was not made.
        status = _count(response.get("status_code")) or HTTPStatus.INTERNAL_SERVER_ERROR.value
        # Not by orjson, which writes no integer of more than 64 bits; what no column needs must not cost an answer.
        return Line(data["custom_id"], Reply(status, body=json.dumps(response.get("body")).encode()))
    error = object_of(data.get("error")) or {"message": "the line holds neither a response nor an error"}
    words = [str(error.get(name)) for name in ("error_type", "code", "type") if error.get(name)]
    status = next((WORD_CODES[word] for word in words if word in WORD_CODES), HTTPStatus.INTERNAL_SERVER_ERROR.value)
    named = next((word for word in words if word in WORDS), None)
    if named is not None and status >= HTTPStatus.INTERNAL_SERVER_ERROR:  # above 499 no word counts
        status = HTTPStatus.BAD_REQUEST.value
    message = ": ".join([*words[:1], str(error.get("message") or "no message")])
    body = {"error": {"code": status, "message": message, "type": named or next(iter(words), None)}}
    return Line(data["custom_id"], Reply(status, body=orjson.dumps(body)))


class _OpenRouter:
    """OpenRouter: the requests stand in the submission, the results are pages."""

    def __init__(self, ask: Ask, provider: Any) -> None:  # noqa: ANN401  (a parameter of the API)
        self._ask = ask
        self._head: dict[str, Any] = {"endpoint": _PATH}
        if kept := {name: one for name, one in object_of(provider).items() if name in {"only", "allow_fallbacks"}}:
            self._head["provider"] = kept

    def submit(self, requests: Sequence[tuple[str, bytes]], *, model: str, tag: str) -> Submitted | Refused | Doubt:
        """Submit; the other name of the model (with or without :batch) is tried where this one is refused."""
        del tag  # the custom_ids carry it
        done = self._post(requests, model)
        if isinstance(done, Refused) and done.verdict.ending in _WRONG_NAME:
            other = model.removesuffix(BATCH_VARIANT) if model.endswith(BATCH_VARIANT) else model + BATCH_VARIANT
            second = self._post(requests, other)
            if not isinstance(second, Refused):
                return second
        return done

    def _post(self, requests: Sequence[tuple[str, bytes]], model: str) -> Submitted | Refused | Doubt:
        # The body is parsed as a stream: every other key must stand before `requests`.
        head = orjson.dumps({**self._head, "model": model})[:-1]
        lines = b",".join(
            b'{"custom_id":%s,"body":%s}' % (orjson.dumps(name), _line_body(body)) for name, body in requests
        )
        body = b'%s,"requests":[%s]}' % (head, lines)
        return _submission(self._ask("POST", "batches", body=body, seconds=_TRANSFER_SECONDS), model)

    def show(self, id_: str) -> Shown | Gone:
        """Ask how a batch stands."""
        reply = self._ask("GET", f"batches/{quote(id_)}", seconds=_TRANSFER_SECONDS)
        if reply.status == HTTPStatus.PAYMENT_REQUIRED:
            return Shown(id_, "completed", problem=_verdict(reply).message, withheld=True)
        return _shown_or_gone(reply)

    def find(self, *, model: str, tag: str, requests: int, since: float, file_id: str | None) -> Found:
        """List batches of the same model and size; which job's they are is seen by their results alone."""
        del tag, file_id
        base = model.removesuffix(BATCH_VARIANT)
        after = datetime.fromtimestamp(since - _BEFORE, UTC).isoformat()
        found: list[Submitted] = []
        wait = None
        for listed, asked_wait in _pages(self._ask, created_after=after):
            wait = asked_wait
            for data in listed:
                name, shown = str(data.get("model") or ""), _shown(data)
                # The total is 0 while a batch is validated.
                if name.removesuffix(BATCH_VARIANT) == base and shown.id and shown.total in {0, requests}:
                    found.append(Submitted(shown.id, name))
        return Found(tuple(found), wait)

    def lines(self, shown: Shown) -> Iterator[Line]:
        """Yield the results page by page; an older API has them inside of the batch."""
        query: dict[str, Any] = {"limit": _PAGE}
        while True:
            path = f"batches/{quote(shown.id)}/results?{urlencode(query)}"
            reply = self._ask("GET", path, seconds=_TRANSFER_SECONDS)
            if reply.status in _NO_PAGE and "cursor" not in query:
                page = _fetched(self._ask("GET", f"batches/{quote(shown.id)}", seconds=_TRANSFER_SECONDS))
                page = {"data": page.get("results")}
            else:
                page = _fetched(reply)
            yield from filter(None, map(_line, page.get("data") or ()))
            before, after = query.get("cursor"), page.get("next_cursor")
            if not page.get("has_more") or not after or after == before:
                return
            query["cursor"] = after

    def clean_up(self, shown: Shown, file_id: str | None) -> None:
        """Delete the batch with its results; the record of the costs stays."""
        del file_id
        self._ask("DELETE", f"batches/{quote(shown.id)}")


class _OpenAi:
    """OpenAI, Groq, DeepInfra, Azure, LiteLLM: requests and results are files of JSON lines."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def submit(self, requests: Sequence[tuple[str, bytes]], *, model: str, tag: str) -> Submitted | Refused | Doubt:
        """Upload the requests, then make a batch of the file; a lost upload leaves no doubt, since nothing runs yet."""
        lines = b"\n".join(
            b'{"custom_id":%s,"method":"POST","url":"%s","body":%s}'
            % (orjson.dumps(name), _PATH.encode(), _line_body(body, model=model))
            for name, body in requests
        )
        content_type, body = _form({"purpose": "batch"}, f"batchrun-{tag}.jsonl", lines)
        uploaded = self._ask("POST", "files", body=body, content_type=content_type, seconds=_TRANSFER_SECONDS)
        data = _object(uploaded)
        if data is None or not isinstance(data.get("id"), str):
            return Refused(_verdict(uploaded))
        file_id = data["id"]
        self._wait_for(file_id, data.get("status"))
        job = {
            "input_file_id": file_id,
            "endpoint": _PATH,
            "completion_window": "24h",
            "metadata": {_TAG: tag},
        }
        return _submission(self._ask("POST", "batches", body=orjson.dumps(job)), model, file_id)

    def _wait_for(self, file_id: str, status: object) -> None:
        """Wait until a file is processed: Azure refuses a batch of one that is not."""
        for _ in range(_FILE_CHECKS):
            if str(status) not in {"pending", "running"}:
                return
            time.sleep(_FILE_SECONDS)
            status = (_object(self._ask("GET", f"files/{quote(file_id)}")) or {}).get("status")

    def show(self, id_: str) -> Shown | Gone:
        """Ask how a batch stands."""
        return _shown_or_gone(self._ask("GET", f"batches/{quote(id_)}"))

    def find(self, *, model: str, tag: str, requests: int, since: float, file_id: str | None) -> Found:
        """Find the batch that carries the tag or reads the file; the list has no filter and is newest first."""
        del requests
        wait = None
        for listed, asked_wait in _pages(self._ask):
            wait = asked_wait
            for data in listed:
                # Some servers drop the metadata; the file is not known after a kill.
                is_file = file_id is not None and data.get("input_file_id") == file_id
                if is_file or object_of(data.get("metadata")).get(_TAG) == tag:
                    return Found((Submitted(str(data["id"]), model, data.get("input_file_id")),))
            created = listed[-1].get("created_at") if listed else None
            # OpenAI's is a Unix time, Novita's a text; one that can't be read ends no search.
            at = seconds_of(created) or time_of(created)
            if at is not None and at < since - _BEFORE:
                break
        return Found((), wait)

    def lines(self, shown: Shown) -> Iterator[Line]:
        """Yield the lines of the output file, then of the error file."""
        for number, file in enumerate(shown.files):
            with tempfile.TemporaryFile() as content:
                reply = self._ask("GET", f"files/{quote(file)}/content", seconds=_TRANSFER_SECONDS, into=content)
                if reply.status in _NO_PAGE and number:
                    continue  # the errors must not hold back the answers, which are read already
                if reply.status in _NO_PAGE:
                    message = f"its results can't be read ({reply.status} {_verdict(reply).message}){GIVE_UP}"
                    raise UnavailableError(Verdict("server_error", message))
                if reply.fault is not None or reply.status != HTTPStatus.OK:
                    raise UnavailableError(_verdict(reply))
                content.seek(0)
                yield from filter(None, (_line(read_json(raw)[0]) for raw in content))

    def clean_up(self, shown: Shown, file_id: str | None) -> None:
        """Delete the files; those of a provider that keeps them end after 30 days."""
        for file in filter(None, (*shown.files, file_id)):
            self._ask("DELETE", f"files/{quote(file)}")


_NOT_IN_A_LINE = ("model", "models", "plugins", "provider", "stream")


def _line_body(body: bytes, **model: str) -> bytes:
    """Return the body of a line, with a model unless the batch names it."""
    data = {name: value for name, value in orjson.loads(body).items() if name not in _NOT_IN_A_LINE}
    return orjson.dumps({**model, **data})


def _form(fields: Mapping[str, str], name: str, content: bytes) -> tuple[str, bytes]:
    """Return the content type and the body of a form with one file (multipart/form-data)."""
    boundary = secrets.token_hex(16)
    part = f"--{boundary}\r\nContent-Disposition: form-data; name="
    parts = [f'{part}"{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()]
    parts.append(f'{part}"file"; filename="{name}"\r\nContent-Type: application/jsonl\r\n\r\n')
    body = "".join(parts).encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return f"multipart/form-data; boundary={boundary}", body
