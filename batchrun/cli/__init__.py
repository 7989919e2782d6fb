"""The command line: one file per command, imported when the command is used.

main.py       `cli`: the commands by name, and the help
arguments.py  the argument JOB, its flags, and the loading of its file
drafting.py   the job file that `init` writes, from job.yaml.j2
pipes.py      rows through stdin, answers through stdout
several.py    runs one job or several: folders, order, one exit code
termination.py  SIGTERM and SIGHUP outside the sending
run.py, retry.py, check.py, preview.py, status.py, show.py, export.py, prune.py, init.py, schema.py, simulate.py,
report.py, eval.py, compare.py, correct.py  one command each: `command`
"""

from batchrun.cli.main import cli

__all__ = ["cli"]
