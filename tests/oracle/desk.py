"""The fake server's batches: files and batches as in OpenAI's API, with one fault drawn for each life.

A line is answered as a live request is, but for half the price. It is billed when the provider works on it, and booked
in the ledger when its results are first fetched; the day is that of the submission.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

FAULTS = {
    "": "none",
    "lost": "the reply to the first submission breaks off; the batch is made",
    "refused": "the first submission is refused with 429",
    "expired": "the first batch expires with every second line unanswered",
    "failed": "the first batch fails as a whole",
    "gone": "the first batch is deleted once it is made",
}
Reply = tuple[int, bytes]


@dataclass(frozen=True)
class Batching:
    """How a life's questions go in batches: at most so many in one, done after that many looks, and the fault."""

    size: int
    looks: int
    fault: str


@dataclass
class Line:
    """One question of a batch: what it brings (None: no line), and what it is billed, in picodollars."""

    custom_id: str
    question: str
    reply: Reply | None
    pico: int


@dataclass
class Batch:
    """A submitted batch; `out` until its results are fetched."""

    id: str
    file: str
    metadata: dict[str, Any]
    lines: list[Line]
    day: int
    looks: int
    fault: str
    out: bool = True

    def shown(self) -> dict[str, Any]:
        """Return the batch as the API shows it."""
        files: dict[str, Any] = {}
        status = "in_progress"
        if self.looks <= 0 or self.fault == "failed":
            status = {"expired": "expired", "failed": "failed"}.get(self.fault, "completed")
            files = {"output_file_id": f"out-{self.id}", "error_file_id": f"err-{self.id}"}
        if self.fault == "failed":
            files = {"errors": {"data": [{"code": "internal", "message": "the batch failed"}]}}
        counts = {"total": len(self.lines), "completed": 0, "failed": 0}
        return {"id": self.id, "status": status, "metadata": self.metadata, "created_at": 10**11,
                "input_file_id": self.file, "request_counts": counts, **files}  # fmt: skip


@dataclass
class Desk:
    """Takes files and batches.

    `answer` brings a question's reply (None: no line) and its bill. `received` is called with each body and its bill,
    `fetched` with each line and the day of its submission when its results are first read. `problems` are broken rules.
    """

    answer: Callable[[str], tuple[Reply | None, int]]
    received: Callable[[dict[str, Any], int], None]
    fetched: Callable[[Line, int], None]
    batching: Batching = field(default_factory=lambda: Batching(1_000, 1, ""))
    day: int = 0
    dedupe: bool = True
    """Whether no two questions of the job are equal, so that none may be in two batches."""
    files: dict[str, bytes] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    submissions: int = 0

    @property
    def refused(self) -> bool:
        """Whether the first submission, and so far the only one, was refused."""
        return self.submissions == 1 and self.batching.fault == "refused"

    def out(self) -> Counter[str]:
        """Return the questions that are in batches whose results nobody has fetched."""
        return Counter(line.question for batch in self.batches if batch.out for line in batch.lines)

    def handle(self, method: str, path: str, body: bytes) -> Reply | None:
        """Answer a call; None: the connection breaks off."""
        what, _, rest = path.partition("?")[0].removeprefix("/v1/").partition("/")
        name = rest.partition("/")[0]
        if what == "files" and method == "POST":
            name = f"file-{len(self.files)}"
            self.files[name] = body.partition(b"application/jsonl\r\n\r\n")[2].rpartition(b"\r\n--")[0]
            return _json(200, {"id": name, "object": "file"})
        if what == "files" and method == "GET":
            return 200, self._results(name)
        if method == "DELETE":
            return _json(200, {"id": name, "deleted": True})
        if method == "POST":
            return self._submit(json.loads(body))
        if not name:
            return _json(200, {"object": "list", "data": [one.shown() for one in self.batches[::-1]]})
        return self._show(next(batch for batch in self.batches if batch.id == name))

    def _submit(self, asked: dict[str, Any]) -> Reply | None:
        self.submissions += 1
        fault = self.batching.fault if self.submissions == 1 else ""
        if fault == "refused":
            return _json(429, {"error": {"message": "too many batches", "code": 429}})
        file, out = asked["input_file_id"], self.out()
        requests = [json.loads(raw) for raw in self.files[file].split(b"\n")]
        lines = []
        for number, request in enumerate(requests):
            question = _question(request["body"])
            reply, pico = self.answer(question)
            if fault in {"failed", "gone"} or (fault == "expired" and number % 2):
                reply, pico = None, 0
            lines.append(Line(request["custom_id"], question, reply, pico))
            if self.dedupe and out[question]:
                self.problems.append(f"in two batches at once: {question!r:.100}")
        batch = Batch(
            f"batch-{len(self.batches)}", file, asked["metadata"], lines, self.day, self.batching.looks, fault
        )
        self.batches.append(batch)
        # The batch is made whether or not its sender still lives.
        for request, line in zip(requests, lines, strict=True):
            self.received(request["body"], line.pico)
        return None if fault == "lost" else _json(200, batch.shown())

    def _show(self, batch: Batch) -> Reply:
        batch.looks -= 1
        if batch.fault in {"failed", "gone"}:
            batch.out = False
        if batch.fault == "gone":
            return _json(410, {"error": {"message": "the batch was deleted", "code": 410}})
        return _json(200, batch.shown())

    def _results(self, name: str) -> bytes:
        """Return the lines of an output file, or of an error file, in no order; the first look bills them."""
        batch = next(one for one in self.batches if one.id == name[4:])
        if batch.out:
            batch.out = False
            for line in batch.lines:
                self.fetched(line, batch.day)
        good = name.startswith("out-")
        found = [line for line in batch.lines if line.reply is not None and (line.reply[0] == 200) == good]
        return b"\n".join(_line(line) for line in found[::-1])


def _question(body: dict[str, Any]) -> str:
    return str(next(message["content"] for message in body["messages"] if message["role"] == "user"))


def _line(line: Line) -> bytes:
    assert line.reply is not None
    status, raw = line.reply
    head = json.dumps({"custom_id": line.custom_id, "error": None}).encode()[:-1]
    return b'%s, "response": {"status_code": %d, "body": %s}}' % (head, status, re.sub(rb"\s", b" ", raw))


def _json(status: int, reply: dict[str, Any]) -> Reply:
    return status, json.dumps(reply).encode()
