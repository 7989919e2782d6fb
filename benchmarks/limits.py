"""The adaptive limit in real runs: against hidden limits of the simulator, beside fixed settings that know them.

Throughput and refusals are counted once settled: after the first seconds, and before the tail.
"""

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job import timed, write_job, write_rows

TESTS = Path(__file__).resolve().parents[1] / "tests"
TAIL = 5.0  # seconds at the end that do not count
SERVE = """
import json, sys
sys.path.insert(0, sys.argv[2])
from openrouter import Config, serve
serve(Config().changed(json.loads(sys.argv[1])), until_stdin_closes=True)
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A simulator, rows, fixed settings to compare with, and the seconds after which a run has settled."""

    name: str
    simulator: Mapping[str, Any]
    rows: int
    fixed: tuple[Mapping[str, Any], ...]
    settled: float = 25.0


CASES = (
    Case("20 at once", {"latency": 0.3, "hidden_concurrency": 20}, 5_000, ({"concurrency": 20},)),
    Case("200 at once", {"latency": 0.6, "hidden_concurrency": 200}, 35_000, ({"concurrency": 200},), settled=60),
    Case(
        "3,000 a minute",
        {"latency": 0.3, "requests_per_minute": 3_000},
        15_000,
        ({"concurrency": 64, "requests_per_minute": 2_990},),
        settled=120,
    ),
    Case(
        "100 at once, from 40 s on only 30",
        {"latency": 0.5, "hidden_concurrency": 100, "schedule": [[40, {"hidden_concurrency": 30}]]},
        12_000,
        ({"concurrency": 30},),
        settled=70,
    ),
    Case(
        "30 at once, from 40 s on 100",
        {"latency": 0.5, "hidden_concurrency": 30, "schedule": [[40, {"hidden_concurrency": 100}]]},
        15_000,
        ({"concurrency": 100},),
        settled=70,
    ),
)


@contextmanager
def simulator(config: Mapping[str, Any]) -> Iterator[str]:
    """Serve a simulator in a process of its own; gives its address."""
    command = [sys.executable, "-c", SERVE, json.dumps(config), str(TESTS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        if server.stdout is None or server.stdin is None:
            raise RuntimeError("the simulator has no pipes")
        yield json.loads(server.stdout.readline())["url"]
        server.stdin.close()


def run(case: Case, limits: Mapping[str, Any]) -> tuple[float, float]:
    """Run a job against a fresh simulator; give answers per second and the share of refused requests, settled."""
    with tempfile.TemporaryDirectory(prefix="batchrun-limits-") as name, simulator(case.simulator) as url:
        folder = Path(name)
        write_rows(folder / "rows.csv", case.rows)
        path = write_job(folder, folder / "rows.csv", url, "auto")
        job = json.loads(path.read_text())
        path.write_text(json.dumps({**job, "limits": dict(limits)}))
        command = [sys.executable, "-m", "batchrun", str(path), "--quiet"]
        done = timed(command, cpu=None)
        if done.exit_code:
            sys.exit(done.stderr)
        with closing(sqlite3.connect(folder / ".batchrun" / "job.sqlite")) as connection:
            begin, end = connection.execute("SELECT min(finished_at), max(finished_at) FROM answers").fetchone()
            span = (begin + case.settled, end - TAIL)
            count = "SELECT count(*) FROM {} WHERE {} BETWEEN ? AND ?"
            answers = connection.execute(count.format("answers", "finished_at"), span).fetchone()[0]
            refused = connection.execute(count.format("failures", "at"), span).fetchone()[0]
    return answers / (span[1] - span[0]), refused / (answers + refused)


def main() -> None:
    """Print the adaptive limit and the fixed settings for each case."""
    parser = argparse.ArgumentParser(description="Compare the adaptive limit with fixed settings, in real runs.")
    parser.add_argument("--only", type=int, nargs="*", help="cases by number, from 0")
    options = parser.parse_args()
    print(
        "| hidden limit | setting | answers/s, settled | of best fixed | refused, settled |\n|---|---|---:|---:|---:|"
    )
    for number, case in enumerate(CASES):
        if options.only and number not in options.only:
            continue
        fixed = [(json.dumps(dict(one)), *run(case, one)) for one in case.fixed]
        best = max(rate for _, rate, _ in fixed)
        for setting, rate, refused in [*fixed, ("auto", *run(case, {"concurrency": "auto"}))]:
            print(f"| {case.name} | {setting} | {rate:.1f} | {rate / best:.1%} | {refused:.2%} |", flush=True)


if __name__ == "__main__":
    main()
