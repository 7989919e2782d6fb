"""Times one whole job: plan, render, send, judge, checkpoint, output. `python benchmarks/job.py --help`."""

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stub import KEY, stub

CLIENT_CPU, STUB_CPU = 0, 1
WORDS = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et"
SYSTEM = "You label product reviews. Answer with one word, positive or negative, and a short reason."
ROW_BYTES = 450


@dataclass(frozen=True, slots=True)
class Timed:
    """What one process took: wall and CPU seconds, its peak of resident memory in MB, and what it printed."""

    wall: float
    cpu: float
    rss: float
    exit_code: int
    stdout: str
    stderr: str


def timed(command: Sequence[str], *, cpu: int | None = CLIENT_CPU, env: Mapping[str, str] | None = None) -> Timed:
    """Run a command, on one CPU unless `cpu` is None, and measure it."""
    command = command if cpu is None else ["taskset", "-c", str(cpu), *command]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdout=out, stderr=err, env={**os.environ, "BENCHMARK_KEY": KEY, **(env or {})}
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        cpu_seconds = usage.ru_utime + usage.ru_stime
        return Timed(wall, cpu_seconds, usage.ru_maxrss / 1000, process.returncode, out.read(), err.read())


def text_of(row: int) -> str:
    """Return a row's text: about 450 bytes, another one for each row."""
    start = row * 7 % len(WORDS)
    return f"{row} {(WORDS[start:] + ' ' + WORDS * 5)[: ROW_BYTES - len(str(row)) - 1]}"


def write_rows(path: Path, rows: int) -> None:
    """Write a CSV file of that many rows."""
    with path.open("w") as file:
        file.write("id,text\n")
        for start in range(0, rows, 10_000):
            file.writelines(f'{row},"{text_of(row)}"\n' for row in range(start, min(rows, start + 10_000)))
    old = time.time() - 60  # a file that is younger than two seconds is not trusted
    os.utime(path, (old, old))


def write_job(folder: Path, rows: Path, url: str, in_flight: int | str, *, ca_file: Path | None = None) -> Path:
    """Write the job file that all measurements use; `ca_file` is the authority of an https URL."""
    path = folder / "job.yaml"
    job = {
        "input": {"path": str(rows)},
        "prompt": {"system": SYSTEM, "user": "Review: {{ text }}"},
        "model": {
            "endpoint": url,
            "name": "openai/gpt-4o-mini",
            "params": {"temperature": 0, "max_tokens": 200},
            "api_key_env": "BENCHMARK_KEY",
            **({} if ca_file is None else {"ca_file": str(ca_file)}),
        },
        "limits": {"concurrency": in_flight},
        "output": {"path": "out.parquet"},
    }
    path.write_text(json.dumps(job))
    return path


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a job: rows per second of the sending (first request to last reply), CPU µs a row, MB."""

    rate: float
    wall: float
    cpu_us: float
    rss: float


def measure(
    rows: Path, count: int, url: str, in_flight: int, *, sender: str | None = None, ca_file: Path | None = None
) -> Measured:
    """Run a job in a folder of its own and measure it from outside, all in: start-up, plan, output."""
    with tempfile.TemporaryDirectory(prefix="batchrun-job-") as name:
        job = write_job(Path(name), rows, url, in_flight, ca_file=ca_file)
        command = [sys.executable, "-m", "batchrun", str(job), "--json", "--quiet"]
        done = timed(command, env={"BATCHRUN_HTTP": sender} if sender else None)
        if done.exit_code:
            sys.exit(done.stderr)
        summary = json.loads(done.stdout)
        if summary["ok"] != count:
            sys.exit(f"{summary['ok']} of {count} rows are ok")
        sending = _sending(Path(name) / ".batchrun" / "job.sqlite")
    return Measured(count / sending, done.wall, done.cpu / count * 1e6, done.rss)


def _sending(checkpoint: Path) -> float:
    """Return the seconds from the first request to the last reply."""
    connection = sqlite3.connect(checkpoint)
    try:
        first, last = connection.execute("SELECT min(finished_at - seconds), max(finished_at) FROM answers").fetchone()
    finally:
        connection.close()
    return float(last - first)


def main() -> None:
    """Measure one setting several times; print each round and the medians."""
    parser = argparse.ArgumentParser(description="Time whole jobs against the stub, on one core.")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--latency", type=int, default=0, help="milliseconds: 0, 200 or 500")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sender", help="reqwest (without it) or httpx")
    parser.add_argument("--tls", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchrun-rows-") as folder, stub(STUB_CPU) as server:
        rows = Path(folder) / "rows.csv"
        write_rows(rows, options.rows)
        found = []
        for _ in range(options.rounds):
            url = server.url(options.latency, tls=options.tls)
            ca_file = server.ca_file if options.tls else None
            one = measure(rows, options.rows, url, options.in_flight, sender=options.sender, ca_file=ca_file)
            print(f"{one.rate:8.0f} rows/s  {one.cpu_us:6.1f} µs CPU a row  {one.rss:5.0f} MB  {one.wall:6.2f} s")
            found.append(one)
        cpu = statistics.median(one.cpu_us for one in found)
        print(f"median: {statistics.median(one.rate for one in found):.0f} rows/s, {cpu:.1f} µs CPU a row")


if __name__ == "__main__":
    main()
