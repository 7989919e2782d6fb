"""A run: the one loop from the questions to the answers, and what surrounds it.

run.py        one run: plan, ask, keep, write; planning.py: its plan; outputs.py: rows joined with their outcomes
pool.py       one attempt: take, send, settle; work.py: one question in work; queueing.py: whose turn it is
limits.py     all that a request must pass: number in flight, waits, rates, bytes; budget.py: caps; alone.py: goes alone
retry.py      asked again, and when; blame.py: the row, the server or the account; outage.py: a server that is down
ends.py       how a question ends without an answer, and the breaker's stop
asking.py     joins sender, limits, pool and checkpoint; stop.py: signals
batches.py    the provider's batches; packing.py: their questions; collecting.py: their answers; open_batches.py: those
              that are out; calls.py: what need not be waited for
progress.py   the bar; closing.py and following.py: the run's last lines; warnings.py, log.py
"""

from batchrun.runner import outputs
from batchrun.runner.closing import advice, closing_lines
from batchrun.runner.following import RESUMABLE
from batchrun.runner.log import failed, logged
from batchrun.runner.planning import error_types
from batchrun.runner.progress import NotebookBar, Ui, chosen
from batchrun.runner.run import run_job
from batchrun.runner.stop import INTERRUPTS, Interrupts

__all__ = [
    "INTERRUPTS",
    "RESUMABLE",
    "Interrupts",
    "NotebookBar",
    "Ui",
    "advice",
    "chosen",
    "closing_lines",
    "error_types",
    "failed",
    "logged",
    "outputs",
    "run_job",
]
