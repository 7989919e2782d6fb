"""Jobs for Python programs and notebooks: paths, dicts and frames in, the records of `--json` out.

jobs.py     what `batchrun.run` and its neighbours do: a job, its rows and its flags, as a command has them
frames.py   frames of Polars, pandas and Arrow as an input file
threads.py  a thread for a run inside an event loop, and Ctrl-C for it

`import batchrun` leaves this room out until one of its functions is named.
"""

from batchrun.python.jobs import check, evaluate, load_job, preview, run

__all__ = ["check", "evaluate", "load_job", "preview", "run"]
