"""A run: the one loop from the rows to the answers, and what surrounds it.

run.py        one run: plan, ask, keep, write; prepare.py: all mistakes before it, at once; loading.py: the job file
plan.py       which row asks which question; sample.py: --sample; outputs.py: rows joined with their outcomes
pool.py       one attempt: take, send, settle; work.py: one question in work; queueing.py: whose turn it is
limits.py     all that a request must pass: number in flight, waits, rates, bytes; budget.py: caps; alone.py: goes alone
retry.py      asked again, and when; blame.py, outage.py, breaker.py: is it the row, the server or the account
asking.py     joins sender, limits, pool and checkpoint; children.py: our servers as processes; stop.py: signals
batches.py    the provider's batches; chunks.py: questions for one batch; collecting.py: its answers
forecast.py   what a run would need; previewing.py, checking.py and before.py: preview and check
progress.py   the bar; closing.py and following.py: the run's last lines; warnings.py, log.py
chain.py      several jobs in order; expected.py: their outputs before they exist; trials.py: the flags of a trial
corrections.py  answers that people corrected
"""

from batchrun.runner import before, outputs
from batchrun.runner.chain import Link, chain, worst
from batchrun.runner.checking import Checking
from batchrun.runner.closing import advice, closing_lines
from batchrun.runner.corrections import Correction, Corrections, row_key
from batchrun.runner.expected import Expected, check_readers
from batchrun.runner.following import RESUMABLE
from batchrun.runner.forecast import shown
from batchrun.runner.loading import load_dict, load_file
from batchrun.runner.log import logged
from batchrun.runner.plan import input_changed
from batchrun.runner.prepare import INPUT_CHANGED, Prepared, prepare_job
from batchrun.runner.previewing import Looked, look
from batchrun.runner.progress import NotebookBar, Ui, chosen
from batchrun.runner.run import IN_BATCH, run_job
from batchrun.runner.stop import INTERRUPTS, Interrupts

__all__ = [
    "INPUT_CHANGED",
    "INTERRUPTS",
    "IN_BATCH",
    "RESUMABLE",
    "Checking",
    "Correction",
    "Corrections",
    "Expected",
    "Interrupts",
    "Link",
    "Looked",
    "NotebookBar",
    "Prepared",
    "Ui",
    "advice",
    "before",
    "chain",
    "check_readers",
    "chosen",
    "closing_lines",
    "input_changed",
    "load_dict",
    "load_file",
    "logged",
    "look",
    "outputs",
    "prepare_job",
    "row_key",
    "run_job",
    "shown",
    "worst",
]
