"""Compares the engines: this process against Ray actors on this machine. `python benchmarks/engines.py --help`."""

import argparse
import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop
from job import STUB_CPU, _sending, timed, write_job, write_rows
from stub import stub

from batchrun.job import RayOptions
from batchrun.records import Request, Send, Target
from batchrun.senders import open_sender

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 450}]}).encode()


async def _worker(send: Send, numbers: Iterator[int]) -> None:
    for _ in numbers:
        reply = await send(Request(BODY))
        if reply.status != 200:
            sys.exit(f"status {reply.status}: {reply.detail}")


async def _sent(url: str, senders: int, rows: int, in_flight: int) -> tuple[float, float]:
    """Send that many requests; return rows per second, and this process's CPU microseconds a row."""
    options = RayOptions(address="local", senders=senders) if senders else None
    async with open_sender(Target(url, concurrency=in_flight), ray=options) as send:
        await asyncio.gather(*(_worker(send, iter(range(20))) for _ in range(in_flight)))
        numbers = iter(range(rows))
        wall, cpu = time.monotonic(), time.process_time()
        await asyncio.gather(*(_worker(send, numbers) for _ in range(in_flight)))
        return rows / (time.monotonic() - wall), (time.process_time() - cpu) / rows * 1e6


def _job(rows: Path, count: int, url: str, senders: int, in_flight: int) -> tuple[float, float]:
    """Run a whole job; give rows per second of its sending, and its wall time in seconds, all in."""
    with tempfile.TemporaryDirectory(prefix="batchrun-job-") as name:
        path = write_job(Path(name), rows, url, in_flight)
        job: dict[str, Any] = json.loads(path.read_text())
        job["engine"] = {"ray": {"address": "local", "senders": senders}} if senders else "local"
        path.write_text(json.dumps(job))
        done = timed([sys.executable, "-m", "batchrun", str(path), "--json", "--quiet"], cpu=None)
        if done.exit_code or json.loads(done.stdout)["ok"] != count:
            sys.exit(done.stderr)
        return count / _sending(Path(name) / ".batchrun" / "job.sqlite"), done.wall


def main() -> None:
    """Print one line for each engine: local, one actor, two actors."""
    parser = argparse.ArgumentParser(description="Time senders and whole jobs against the stub, all cores shared.")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--in-flight", type=int, default=512)
    parser.add_argument("--latency", type=int, default=200, help="milliseconds: 0, 200 or 500")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory(prefix="batchrun-rows-") as folder, stub(STUB_CPU) as server:
        rows = Path(folder) / "rows.csv"
        write_rows(rows, options.rows)
        base = server.url(options.latency)
        for senders in (0, 1, 2):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                url = f"{base}/chat/completions"
                rate, cpu = runner.run(_sent(url, senders, options.rows, options.in_flight))
            of_job, wall = _job(rows, options.rows, base, senders, options.in_flight)
            engine = f"ray, {senders} senders" if senders else "local"
            print(
                f"{engine:16} send: {rate:7.0f} rows/s {cpu:6.1f} µs CPU of this process a row  "
                f"job: {of_job:7.0f} rows/s {wall:6.1f} s wall"
            )


if __name__ == "__main__":
    main()
