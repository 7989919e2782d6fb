"""Which questions go into one batch: as many as its size, its bytes and the caps admit."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from batchrun.api import LINE_BYTES, MAX_BYTES
from batchrun.job import BatchOptions
from batchrun.money import ZERO, Pico
from batchrun.prepare import worst_case
from batchrun.prompt import RowProblem
from batchrun.runner.asking import Asking
from batchrun.runner.work import Work

PARTS = 10
"""The questions of a batch that failed as a whole go into that many smaller ones, of that many questions at least."""

_TOO_LONG = "the prompt may exceed the model's context, and a batch may shorten it: ask this row live"


@dataclass(slots=True)
class Chunk:
    """The questions of one batch with their bodies; `reserved` is what they cost at most, in picodollars.

    `size` are the bytes of the submission. `unsent` are rows for which no request can be made, `for_live` questions
    that no batch takes; `over_cap` is the worst case of the question that no longer fitted under a cap.
    """

    works: list[Work] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    reserved: Pico = ZERO
    size: int = 0
    unsent: list[tuple[Work, RowProblem]] = field(default_factory=list)
    for_live: list[int] = field(default_factory=list)
    over_cap: Pico | None = None


class Packing:
    """Fills batches. `max_bytes` bounds the next one; it is lowered where the provider takes less."""

    def __init__(self, asking: Asking, options: BatchOptions) -> None:
        self.max_bytes = MAX_BYTES
        self._prepared, self._options = asking.prepared, options
        self._worst = worst_case(asking.prepared, asking.prices)
        self._size, self._largest_failed = options.size, 0
        listed = asking.prices.batch
        # What the model's context holds, in tokens; elsewhere than at OpenRouter nothing is shortened in silence.
        self._context = listed.context if listed is not None and asking.endpoint.openrouter else None

    def failed_whole(self, questions: int) -> None:
        """Make the next batches smaller after one of that many questions failed as a whole.

        One wrong request fails all of them, and would again: the others shall not have to be asked live.
        """
        self._largest_failed = max(self._largest_failed, questions)
        self._size = min(self._options.size, max(PARTS, self._largest_failed // PARTS))

    def fill(self, questions: Iterator[Work], room: float) -> Chunk:
        """Take questions until they fill a batch, or cost `room` picodollars at most."""
        chunk = Chunk()
        while len(chunk.works) < self._size and chunk.size < self.max_bytes:
            if (work := next(questions, None)) is None:
                break
            body = self._prepared.renderer.body(work.values)
            if not isinstance(body, RowProblem) and self._may_be_too_long(body):
                if self._options.then == "live":
                    chunk.for_live.append(work.question)
                    continue
                body = RowProblem("context_length", _TOO_LONG)
            if isinstance(body, RowProblem):
                chunk.unsent.append((work, body))
                continue
            worst = self._worst(len(body), work.values) if self._worst else ZERO
            if chunk.reserved + worst > room:
                chunk.over_cap = worst
                break
            chunk.works.append(work)
            chunk.bodies.append(body)
            chunk.reserved = Pico(chunk.reserved + worst)
            chunk.size += len(body) + LINE_BYTES
        return chunk

    def _may_be_too_long(self, body: bytes) -> bool:
        """Check whether a prompt might exceed the model's context: a batch would then lose its middle in silence.

        A live request turns that compression off. No tokenizer makes more tokens than UTF-8 bytes.
        """
        return self._context is not None and len(body) + (self._prepared.max_tokens or 0) > self._context
