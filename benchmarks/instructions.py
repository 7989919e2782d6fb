"""Instructions that a row takes, counted by valgrind: the same on a busy machine, so a percent is a percent.

    python benchmarks/instructions.py [CHECKOUT …]

Each checkout (this one by default) runs with its own .venv. Two whole jobs are counted, and their difference is divided
by the rows that one has more, so that start-up is left out. Time is about 30 times slower meanwhile: commits hold fewer
answers than they would, which is 2 to 4 % of the whole.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from job import CLIENT_CPU, STUB_CPU, write_job, write_rows
from stub import KEY, stub

FEW, MANY = 1_000, 4_000
"""Rows of the two jobs."""

IN_FLIGHT = 256
_VALGRIND = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")


def instructions(checkout: Path, job: Path) -> int:
    """Return how many instructions a job takes from start to end."""
    python = checkout / ".venv/bin/python"
    command = ["taskset", "-c", str(CLIENT_CPU), *_VALGRIND, str(python), "-m", "batchrun", str(job), "--quiet"]
    environment = {**os.environ, "BENCHMARK_KEY": KEY, "PYTHONPATH": str(checkout), "PYTHONHASHSEED": "0"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    counted = re.search(r"I +refs: +([\d,]+)", ended.stderr)
    if counted is None:
        sys.exit(ended.stderr)
    return int(counted[1].replace(",", ""))


def per_row(checkout: Path, folder: Path, url: str) -> int:
    """Return how many instructions one row more takes."""
    counts = []
    for rows in (FEW, MANY):
        inside = folder / f"{rows}"
        inside.mkdir(parents=True)
        write_rows(inside / "rows.csv", rows)
        counts.append(instructions(checkout, write_job(inside, inside / "rows.csv", url, IN_FLIGHT)))
    return (counts[1] - counts[0]) // (MANY - FEW)


def main() -> None:
    """Print the instructions of each checkout, and their ratio to the first."""
    checkouts = [Path(path).resolve() for path in sys.argv[1:]] or [Path(__file__).resolve().parents[1]]
    first = None
    with tempfile.TemporaryDirectory() as folder, stub(STUB_CPU) as server:
        for number, checkout in enumerate(checkouts):
            count = per_row(checkout, Path(folder) / f"{number}", server.url(0))
            first = first or count
            print(f"{checkout}: {count:,} instructions a row, {count / first:.3f} of the first", flush=True)


if __name__ == "__main__":
    main()
