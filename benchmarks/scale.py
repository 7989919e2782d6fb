"""How cost grows with the rows: plan, resume, no-op, touched input, export. `python benchmarks/scale.py --help`.

The answers of all rows but the last hundredth are put into the checkpoint by the package's own planner and writer;
every step after that is a real command, measured from outside. A child's peak of memory begins with what its parent
holds, so that this process must stay small.
"""

import argparse
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from job import STUB_CPU, Timed, timed, write_job, write_rows
from stub import Stub, stub

HERE = Path(__file__).parent
RESULTS = HERE / "scale.json"
TO_PARQUET = "import sys, polars; polars.scan_csv(sys.argv[1]).sink_parquet(sys.argv[2])"


def command(*arguments: str) -> Timed:
    """Run the command line on one core; exits where it fails."""
    done = timed([sys.executable, "-m", "batchrun", *arguments])
    if done.exit_code:
        sys.exit(done.stderr)
    return done


def first_request(checkpoint: Path, started: float) -> float:
    """Return the seconds from the start of the newest run to its first request."""
    with closing(sqlite3.connect(checkpoint)) as connection:
        found = connection.execute(
            "SELECT min(finished_at - seconds) FROM answers WHERE run_id = (SELECT max(id) FROM runs)"
        ).fetchone()
    return float(found[0]) - started


def touch(path: Path) -> None:
    """Change a file's time, not its contents; it stays old enough to be trusted."""
    then = path.stat().st_mtime - 10
    os.utime(path, (then, then))


@contextmanager
def inputs(folder: Path, rows: int, suffix: str) -> Iterator[Path]:
    """Write the input, and remove it afterwards."""
    path = folder / "rows.csv"
    write_rows(path, rows)
    if suffix == ".parquet":
        parquet = folder / "rows.parquet"
        timed([sys.executable, "-c", TO_PARQUET, str(path), str(parquet)])
        path.unlink()
        path = parquet
    time.sleep(2)  # a younger file is not trusted
    try:
        yield path
    finally:
        path.unlink()


def measure(rows: int, suffix: str, server: Stub) -> dict[str, float | str]:
    """Measure every step for that many rows."""
    with tempfile.TemporaryDirectory(prefix="batchrun-scale-") as name, inputs(Path(name), rows, suffix) as path:
        folder = Path(name)
        job = write_job(folder, path, server.url(0), 256)
        checkpoint = folder / ".batchrun" / "job.sqlite"
        built = timed([sys.executable, str(HERE / "answered.py"), str(job), str(rows)])
        if built.exit_code:
            sys.exit(built.stderr)
        started = time.time()
        resumed = command(str(job), "--quiet")
        first = first_request(checkpoint, started)
        again = sorted((command(str(job), "--quiet") for _ in range(3)), key=lambda one: one.wall)
        exported = command("export", str(job), "-o", str(folder / "other.parquet"))
        touch(path)
        touched = command(str(job), "--quiet")
        size = checkpoint.stat().st_size / 1e6
    steps = {"resume": resumed, "no_op": again[1], "export": exported, "touched": touched}
    found: dict[str, float | str] = {"rows": rows, "input": suffix, "checkpoint_mb": size}
    found |= {"plan_us": float(built.stdout), "first_request_s": first}
    for step, one in steps.items():
        found |= {f"{step}_s": one.wall, f"{step}_cpu_s": one.cpu, f"{step}_mb": one.rss}
    return found


def main() -> None:
    """Measure each number of rows, and keep the figures for the plot."""
    parser = argparse.ArgumentParser(description="Measure how the cost of each step grows with the rows.")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--suffix", nargs="+", default=[".csv", ".parquet"])
    options = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    with stub(STUB_CPU) as server:
        for rows in options.rows:
            for suffix in options.suffix:
                found = measure(rows, suffix, server)
                print(
                    *(f"{name} {value if isinstance(value, str) else round(value, 2)}" for name, value in found.items())
                )
                same = {"rows": rows, "input": suffix}.items()
                kept = [one for one in kept if not same <= one.items()] + [found]
    kept.sort(key=lambda one: (one["input"], one["rows"]))
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
