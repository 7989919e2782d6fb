"""Warnings of a run, which continues."""

from batchrun.checkpoint import Checkpoint, free_bytes
from batchrun.prepare import Prepared
from batchrun.runner.progress import Ui

ANSWER_BYTES = 1_000
"""What an answer takes on the disk, roughly."""

SHOWN_BUILDS = 3


def warn_of_missing_probabilities(prepared: Prepared, ui: Ui) -> None:
    """Warn that a chat model's answers come without the probabilities that the output is to show."""
    output = prepared.job.output
    if prepared.form.questions:
        return
    if output.review_below is not None:
        ui.warn("a chat model gives no probabilities: needs_review is empty (answer.mode: decision has them)")
    elif "probabilities" in output.details:
        ui.warn("a chat model gives no probabilities: the output has none (answer.mode: decision has them)")


def warn_of_several_builds(prepared: Prepared, checkpoint: Checkpoint, ui: Ui) -> None:
    """Warn where a decision model's answers come from several builds: a threshold fits one of them."""
    if prepared.form.questions and len(builds := checkpoint.answering_models(SHOWN_BUILDS)) > 1:
        ui.warn(f"the stored answers are of different builds ({', '.join(builds)}): their probabilities don't compare")


def warn_of_little_space(prepared: Prepared, questions: int, ui: Ui) -> None:
    """Warn where the checkpoint or the output may need more room for the answers than its disk has."""
    # The output repeats the input's columns; a full disk would be found out after the answers are paid.
    needs = {prepared.job.checkpoint_path: 0, prepared.job.output_path: sum(file.size for file in prepared.rows.files)}
    for path, more in needs.items():
        needed, free = more + questions * ANSWER_BYTES, free_bytes(path.parent)
        if free is not None and free < needed:
            ui.warn(f"{path} may need {needed >> 20:,} MB, and its disk has {free >> 20:,} MB free")
