"""All SQL: questions, answers and their cost. One SQLite file per job.

queries.py     `Checkpoint`: opens the file; which questions are open; notes how runs begin and end
reader.py      its reading half: how rows stand, money, runs
records.py     the records that these methods return
adopt.py       answers that other checkpoints in the folder have paid for
sample.py      the questions of a sample
plan.py        which row asks which question: a new plan is built while the current one stays
batches.py     provider batches: which questions are out, and the commit of their answers
writer.py      the thread that commits outcomes, leases and low-water marks while a run asks
fresh.py       starts over, with the old checkpoint kept under another name
store.py       makes, opens, checks, puts aside and rescues the file
files.py       where files may lie, the lock, the room on the disk
connection.py  SQLite with errors for people
schema.py      the tables, which are public
"""

from batchrun.checkpoint.adopt import is_put_aside
from batchrun.checkpoint.batches import Batch, Batches, BatchState
from batchrun.checkpoint.files import check_place, free_bytes, lock, running
from batchrun.checkpoint.fresh import start_fresh, undo_fresh
from batchrun.checkpoint.plan import Origin, PlanBuilder, PlanInfo
from batchrun.checkpoint.queries import Checkpoint
from batchrun.checkpoint.reader import OUTCOME_COLUMNS
from batchrun.checkpoint.records import Counts, Failed, OpenRule, RunInfo, Settled
from batchrun.checkpoint.schema import BATCH_TRIES, FOR_BATCH, LIVE_AFTER_BATCH, NOT_OUT
from batchrun.checkpoint.writer import utc_day

__all__ = [
    "BATCH_TRIES",
    "FOR_BATCH",
    "LIVE_AFTER_BATCH",
    "NOT_OUT",
    "OUTCOME_COLUMNS",
    "Batch",
    "BatchState",
    "Batches",
    "Checkpoint",
    "Counts",
    "Failed",
    "OpenRule",
    "Origin",
    "PlanBuilder",
    "PlanInfo",
    "RunInfo",
    "Settled",
    "check_place",
    "free_bytes",
    "is_put_aside",
    "lock",
    "running",
    "start_fresh",
    "undo_fresh",
    "utc_day",
]
