"""The columns of the output: kept ones of the input, the answer's, the details."""

from collections.abc import Iterator

import polars as pl

from batchrun.job import Job
from batchrun.prompt import AnswerForm
from batchrun.table import DETAIL_TYPES, dtype_of

NEEDS_REVIEW = "needs_review"
"""The column that output.review_below adds."""


def kept_columns(job: Job, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns of the input that the output keeps."""
    match job.output.keep:
        case "all":
            return columns
        case "none":
            return ()
        case names:
            return tuple(names)


def answer_types(job: Job, form: AnswerForm) -> dict[str, pl.DataType]:
    """Return the types of the columns that an answer fills; a decision model's have probabilities as well."""
    types: dict[str, pl.DataType] = {}
    labels = {one.name: [label for label, _ in one.options] or ["true", "false"] for one in form.questions}
    for name, schema in form.columns.items():
        types[name] = dtype_of(schema)
        if name in labels:
            types[f"{name}_prob"] = pl.Float64()
        if name in labels and "probabilities" in job.output.details:
            types[f"{name}_probs"] = pl.Struct(dict.fromkeys(labels[name], pl.Float64()))
    return types


def new_columns(job: Job, form: AnswerForm | None) -> Iterator[tuple[str, pl.DataType]]:
    """Yield the output's new columns in order: the answer's, needs_review, the details."""
    prefix = job.output.prefix
    if form is not None:
        yield from ((prefix + name, dtype) for name, dtype in answer_types(job, form).items())
    if job.output.review_below is not None:
        yield prefix + NEEDS_REVIEW, pl.Boolean()
    yield from ((prefix + name, DETAIL_TYPES[name]) for name in job.output.details if name in DETAIL_TYPES)
