"""What the tests of the checkpoint share: a checkpoint with a plan, and outcomes."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from batchrun.checkpoint import Checkpoint, Origin
from batchrun.money import Pico
from batchrun.records import Outcome, Status

NOON = 1_763_812_800.0
"""2025-11-22 12:00:00 UTC."""


def key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def plan(
    checkpoint: Checkpoint, texts: Sequence[str | None], problems: Mapping[int, tuple[str, str]] | None = None
) -> None:
    """Make a plan current whose rows ask for these texts (None: not asked)."""
    builder = checkpoint.new_plan(Origin("print", "words", "[]", ""), NOON)
    builder.add(0, [None if text is None else key(text) for text in texts], problems or {})
    builder.make_current("{}")


def ok(question: int, answer: str = "fine", *, cost: int = 0, **more: Any) -> Outcome:  # noqa: ANN401  (fields)
    more = {"finished_at": NOON, **more}
    return Outcome(question, Status.OK, answer=answer, cost=Pico(cost), **more)


def failed(question: int, error_type: str, *, cost: int = 0, **more: Any) -> Outcome:  # noqa: ANN401  (fields)
    more = {"finished_at": NOON, "raw": "half", "error_message": "it broke", **more}
    return Outcome(question, Status.FAILED, error_type=error_type, cost=Pico(cost), **more)


def begin(checkpoint: Checkpoint) -> int:
    return checkpoint.begin_run(now=NOON, host="here", pid=1, version="0", job_text="prompt: {}")


def keep(path: Path, outcomes: Iterable[Outcome]) -> int:
    """Commit outcomes as one run that ends; give its id."""
    with Checkpoint.open(path) as checkpoint:
        run = begin(checkpoint)
        checkpoint.writer.start(run)
        for outcome in outcomes:
            checkpoint.writer.put(outcome)
        checkpoint.writer.close()
        assert checkpoint.writer.failure is None
        checkpoint.end_run(run, now=NOON + 60, exit_code=0, reason="done")
        return run


def made(path: Path, texts: Sequence[str | None], outcomes: Iterable[Outcome] = ()) -> Path:
    """Make a checkpoint with a plan and outcomes, closed."""
    with closing(Checkpoint.open(path)) as checkpoint:
        plan(checkpoint, texts)
    keep(path, outcomes)
    return path
