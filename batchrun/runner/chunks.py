"""Open questions -> chunks that fit into one of a provider's batches, and under the caps."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from batchrun.api import Prices
from batchrun.job import BatchOptions
from batchrun.money import ZERO, Pico
from batchrun.prompt import RowProblem
from batchrun.runner.budget import unknown, worst_case
from batchrun.runner.prepare import Prepared
from batchrun.runner.work import Work

_TOO_LONG = "the prompt may exceed the model's context, and a batch may shorten it: ask this row live"


@dataclass(slots=True)
class Chunk:
    """The questions of one batch with their bodies; `reserved` is what they cost at most, in picodollars.

    `unsent` are rows for which no request can be made, `for_live` questions that no batch takes; `over_cap` is the
    worst case of the question that no longer fitted under a cap.
    """

    works: list[Work] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    reserved: Pico = ZERO
    unsent: list[tuple[Work, RowProblem]] = field(default_factory=list)
    for_live: list[int] = field(default_factory=list)
    over_cap: Pico | None = None


class Chunks:
    """Makes chunks. `prices` are those of batches; `context` is the model's in tokens, None where it does not count."""

    def __init__(self, prepared: Prepared, prices: Prices, options: BatchOptions, context: int | None) -> None:
        self._renderer, self._max_tokens = prepared.renderer, prepared.max_tokens or 0
        self._worst = worst_case(prepared, prices) or unknown
        self._options, self._context = options, context

    def take(self, questions: Iterator[Work], *, room: float, max_bytes: int) -> Chunk:
        """Take the questions of one batch of at most `max_bytes`; `room` is what the caps admit, in picodollars."""
        chunk, size = Chunk(), 0
        while len(chunk.works) < self._options.size and size < max_bytes and (work := next(questions, None)):
            body = self._renderer.body(work.values)
            if not isinstance(body, RowProblem) and self._may_be_too_long(body):
                if self._options.then == "live":
                    chunk.for_live.append(work.question)
                    continue
                body = RowProblem("context_length", _TOO_LONG)
            if isinstance(body, RowProblem):
                chunk.unsent.append((work, body))
                continue
            worst = self._worst(len(body))
            if chunk.reserved + worst > room:
                chunk.over_cap = worst
                break
            chunk.works.append(work)
            chunk.bodies.append(body)
            chunk.reserved = Pico(chunk.reserved + worst)
            size += len(body)
        return chunk

    def _may_be_too_long(self, body: bytes) -> bool:
        """Check whether a prompt might exceed the model's context: a batch would then lose its middle in silence.

        A live request turns that compression off. No tokenizer makes more tokens than UTF-8 bytes.
        """
        return self._context is not None and len(body) + self._max_tokens > self._context
