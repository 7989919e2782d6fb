"""Plans a job and answers all its rows but the last hundredth, by the package's own planner and writer.

`python benchmarks/answered.py JOB ROWS` prints the microseconds of CPU that the plan took a row.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from stub import ANSWER

from batchrun.checkpoint import Checkpoint
from batchrun.job import RunOptions
from batchrun.money import Pico
from batchrun.prepare.loading import load_file
from batchrun.prepare.plan import fill, origin
from batchrun.prepare.prepared import prepare_job
from batchrun.records import Outcome, Status

OPEN = 100  # one row in that many is left open
TEXT = "positive, all told a fine thing to have around the house"


def build(job: Path, rows: int, answer: Callable[[int], str] = lambda _: TEXT) -> None:
    """Plan a job and answer all its rows but the last hundredth; `answer` gives the text for a question from 1."""
    invocation = load_file(job, os.environ, job.parent, RunOptions())
    with (
        prepare_job(invocation) as p,
        Checkpoint.open(invocation.job.checkpoint_path) as checkpoint,
    ):
        now = time.time()
        builder = checkpoint.new_plan(origin(p, now), now)
        before = time.process_time()
        fill(builder, p)
        builder.make_current(p.rows.layout.text())
        print((time.process_time() - before) / rows * 1e6)
        run = checkpoint.begin_run(now=now, host="", pid=0, version="", job_text="")
        writer = checkpoint.writer
        writer.start(run)
        answered = rows - max(1, rows // OPEN)
        for question in range(1, answered + 1):
            writer.put(_outcome(question, answer(question), now))
            if question % 1_000 == 0:
                writer.note_low_water(question)
                writer.flush()
        writer.close()
        checkpoint.end_run(run, now=now, exit_code=130, reason="interrupted")


def _outcome(question: int, answer: str, now: float) -> Outcome:
    return Outcome(
        question,
        Status.OK,
        now,
        answer=answer,
        http_status=200,
        prompt_tokens=150,
        completion_tokens=12,
        cost=Pico(29_700_000),
        model=str(ANSWER["model"]),
        provider=str(ANSWER["provider"]),
        finish_reason="stop",
        generation_id=str(ANSWER["id"]),
        seconds=0.5,
        max_tokens=200,
    )


if __name__ == "__main__":
    build(Path(sys.argv[1]), int(sys.argv[2]))
