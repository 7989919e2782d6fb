"""The plan: which row asks which question, and by which files and words it is known again."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace

from batchrun.checkpoint import Origin, PlanBuilder, PlanInfo
from batchrun.errors import InputError
from batchrun.job import Job
from batchrun.prepare.prepared import Prepared
from batchrun.prompt import RENDERER_VERSION, Renderer, RowProblem, nth_key
from batchrun.table import Batch, FileStamp, Rows, expand, stamp

YOUNG = 2.0
"""Seconds; a file changed so shortly before the plan may change again without a trace in its times."""


def origin(prepared: Prepared, now: float) -> Origin:
    """Return what a plan of a job is made from; `now` is Unix time."""
    stamps = stamps_text(prepared.rows.files)
    return Origin(_fingerprint(prepared, now), prepared.renderer.wording, stamps, filter_text(prepared.job))


def _fingerprint(prepared: Prepared, now: float) -> str:
    """Digest all that decides which row asks which question.

    Empty, so that no plan is reused, where a file is too young to be trusted or local files are part of questions.
    """
    job, stamps = prepared.job, prepared.rows.files
    attached = any(part.image or part.file for _, part in job.prompt.parts)
    # A file written twice within its clock's tick keeps its time: 1 s on some network disks, 2 s on FAT.
    if attached or any(now - max(stamp.mtime_ns, stamp.ctime_ns) / 1e9 < YOUNG for stamp in stamps):
        return ""
    parts = [
        RENDERER_VERSION,
        prepared.renderer.wording,
        prepared.renderer.columns,
        filter_text(job),
        repr((job.input.csv, job.input.sheet)),
        [astuple(stamp) for stamp in stamps],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def fill(builder: PlanBuilder, prepared: Prepared, show: Callable[[int], None] = lambda _: None) -> None:
    """Read the input once and record each row's question, or why it has none; `show` gets the number of rows so far.

    The columns that only the output needs are read now, too, before anything is paid. Raises InputError.
    """
    rows, renderer = prepared.rows, prepared.renderer
    if unread := [name for name in prepared.kept if name not in renderer.columns]:
        rows.prove(unread)
    keys_of = Keys(renderer, dedupe=prepared.job.dedupe)
    for batch in rows.batches(renderer.columns):
        builder.add(batch.position, *keys_of(batch))
        show(builder.rows)
    builder.flush()


def known_files(plan: PlanInfo | None) -> dict[tuple[FileStamp, ...], str]:
    """Return the layout of the files that a plan was made from, by their stamps; none where they were too young."""
    if plan is None or not plan.fingerprint:
        return {}
    return {tuple(FileStamp(*one) for one in json.loads(plan.stamps)): plan.layout}


def read_otherwise(plan: PlanInfo, rows: Rows) -> bool:
    """Check whether input.csv or input.sheet are other ones than those of a plan: a row then has another position."""
    options: str = json.loads(plan.layout)["options"]
    return options != rows.layout.options


def input_changed(plan: PlanInfo, job: Job) -> bool:
    """Check whether the job's input files are other ones than those that a plan was made from."""
    try:
        return not has_same_files(plan, stamp(expand(job.input, job.folder)))
    except InputError:
        return True


def has_same_files(plan: PlanInfo, stamps: Sequence[FileStamp]) -> bool:
    """Check whether a plan was made from these files, also where their folder was moved or is reached by a link."""
    before = [replace(FileStamp(*one), path="") for one in json.loads(plan.stamps)]
    return before == [replace(one, path="") for one in stamps]


def filter_text(job: Job) -> str:
    """Return which rows of the input ask a question, as the checkpoint keeps it: `input.where` and `dedupe`."""
    return json.dumps([job.input.where, job.dedupe])


def stamps_text(stamps: Sequence[FileStamp]) -> str:
    """Return the stamps of the input's files as the checkpoint keeps them."""
    # json, not orjson: a file's name may not be UTF-8
    return json.dumps([astuple(stamp) for stamp in stamps])


class Keys:
    """The keys of a batch; numbers equal rows where each gets an answer of its own."""

    def __init__(self, renderer: Renderer, *, dedupe: bool) -> None:
        self._renderer = renderer
        self._seen: dict[bytes, int] | None = None if dedupe else {}

    def __call__(self, batch: Batch) -> tuple[list[bytes | None], dict[int, tuple[str, str]]]:
        """Return each row's key (None: not asked), and by position why a row can't be asked."""
        keys: list[bytes | None] = []
        problems: dict[int, tuple[str, str]] = {}
        asked = batch.asked
        for index, values in enumerate(batch.rows):
            # A row that input.where leaves out is not rendered: a value that it lacks must not fail it.
            key = self._renderer.key(values) if asked is None or asked[index] else None
            if isinstance(key, RowProblem):
                problems[batch.position + index] = (key.error_type, key.message)
                key = None
            keys.append(self._numbered(key))
        return keys, problems

    def _numbered(self, key: bytes | None) -> bytes | None:
        if key is None or self._seen is None:
            return key
        number = self._seen.get(key, 0)
        self._seen[key] = number + 1
        return nth_key(key, number)
