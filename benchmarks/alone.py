"""The client library alone: the same requests by pyreqwest, replies thrown away. `alone.py URL IN_FLIGHT REQUESTS`.

Prints the microseconds of CPU that one took: what no job that sends with it can go below. Run by bench.py.
"""

import asyncio
import sys
import time
from collections.abc import Iterator

import uvloop
from bench import body
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.http import Url


async def _worker(client: Client, url: Url, request: bytes, numbers: Iterator[int]) -> None:
    for _ in numbers:
        async with client.post(url).body_bytes(request).build_streamed() as response:
            await response.bytes()


async def _alone(url: Url, in_flight: int, requests: int) -> float:
    request, numbers = body(), iter(range(requests))
    async with ClientBuilder().no_proxy().default_headers({"content-type": "application/json"}).build() as client:
        before = time.process_time()
        await asyncio.gather(*(_worker(client, url, request, numbers) for _ in range(in_flight)))
        return (time.process_time() - before) / requests * 1e6


def main() -> None:
    """Send, and print the figure."""
    url, in_flight, requests = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(_alone(Url(f"{url}/chat/completions"), int(in_flight), int(requests))))


if __name__ == "__main__":
    main()
