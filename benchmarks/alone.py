"""The sender alone: the same request again and again, replies thrown away. Run by bench.py.

`alone.py URL IN_FLIGHT REQUESTS CA_FILE` prints, as JSON, the microseconds of CPU that a request took, and how
many of them in the event loop's thread, where all the rest of a job has to find its time.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop
from bench import body

from batchrun.net import read_certificates
from batchrun.records import Request, Send, Target
from batchrun.senders import open_sender


async def _worker(send: Send, request: Request, numbers: Iterator[int]) -> None:
    for _ in numbers:
        reply = await send(request)
        if reply.status != 200:
            sys.exit(f"status {reply.status}: {reply.detail}")


async def _alone(target: Target, requests: int) -> dict[str, float]:
    request, numbers = Request(body()), iter(range(requests))
    async with open_sender(target) as send:
        cpu, loop = time.process_time(), time.thread_time()
        await asyncio.gather(*(_worker(send, request, numbers) for _ in range(target.concurrency)))
        cpu, loop = time.process_time() - cpu, time.thread_time() - loop
    return {"us": cpu / requests * 1e6, "loop_us": loop / requests * 1e6}


def main() -> None:
    """Send, and print the figures."""
    url, in_flight, requests, ca_file = sys.argv[1:]
    certificates = read_certificates(Path(ca_file)) if ca_file else ()
    target = Target(f"{url}/chat/completions", certificates=certificates, concurrency=int(in_flight))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(_alone(target, int(requests)))))


if __name__ == "__main__":
    main()
