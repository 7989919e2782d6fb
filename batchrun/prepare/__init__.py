"""What is known before a request: the job with its flags, all its mistakes at once, its plan, its worst case.

loading.py   a job file with its flags, as an invocation.py; trials.py: those that a trial was run with
prepared.py  a job that can be asked; mistakes.py: all mistakes in one go; columns.py: those of the output
plan.py      which row asks which question; sample.py: the order of --sample
bounds.py    what a request can cost at most
chain.py     several jobs in order; expected.py: their outputs before they exist
children.py  our servers as processes; ownership.py: whose output a file is
corrections.py  answers that people corrected; reviewed.py: the rows that have them
"""

from batchrun.prepare.bounds import Worst, batch_prices, page_fee, refuse_unbounded, unbounded, worst_case
from batchrun.prepare.chain import chain, worst
from batchrun.prepare.children import most_in_flight, serving
from batchrun.prepare.columns import NEEDS_REVIEW
from batchrun.prepare.corrections import Correction, Corrections, corrected, row_key
from batchrun.prepare.expected import Expected, check_readers
from batchrun.prepare.invocation import Invocation
from batchrun.prepare.loading import load_dict, load_file
from batchrun.prepare.mistakes import brace_advice
from batchrun.prepare.ownership import named_output, refuse_output_of_another
from batchrun.prepare.plan import (
    Keys,
    fill,
    filter_text,
    has_same_files,
    input_changed,
    known_files,
    origin,
    read_otherwise,
)
from batchrun.prepare.prepared import INPUT_CHANGED, Prepared, body_extras, prepare_job
from batchrun.prepare.reviewed import ReviewedRow, add_corrections, reviewed_rows, with_answers_of_people
from batchrun.prepare.sample import MIXED, mix, positions
from batchrun.prepare.trials import flags_text

__all__ = [
    "INPUT_CHANGED",
    "MIXED",
    "NEEDS_REVIEW",
    "Correction",
    "Corrections",
    "Expected",
    "Invocation",
    "Keys",
    "Prepared",
    "ReviewedRow",
    "Worst",
    "add_corrections",
    "batch_prices",
    "body_extras",
    "brace_advice",
    "chain",
    "check_readers",
    "corrected",
    "fill",
    "filter_text",
    "flags_text",
    "has_same_files",
    "input_changed",
    "known_files",
    "load_dict",
    "load_file",
    "mix",
    "most_in_flight",
    "named_output",
    "origin",
    "page_fee",
    "positions",
    "prepare_job",
    "read_otherwise",
    "refuse_output_of_another",
    "refuse_unbounded",
    "reviewed_rows",
    "row_key",
    "serving",
    "unbounded",
    "with_answers_of_people",
    "worst",
    "worst_case",
]
