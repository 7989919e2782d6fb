"""What an outage of 12 s in mid-run costs, form by form: requests, lost rows and seconds, against a loopback server.

python benchmarks/outage_costs.py [FORM …]
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

ROWS, BEGIN, LENGTH, LATENCY = 196, 1.0, 12.0, 0.2
GOOD = b'{"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}'
FORMS: dict[str, tuple[int, bytes] | None] = {
    **{str(status): (status, b'{"error": {"message": "failed"}}') for status in (500, 502, 503, 504, 520, 529)},
    "HTML": (502, b"<html>Bad gateway</html>"),
    "broken JSON": (200, b'{"choices": [{"mess'),
    "error inside a 200": (200, b'{"error": {"code": 500, "message": "failed"}}'),
    "reset": None,
    "refused": None,
}


class Server:
    """Answers chat completions, and is down for a while."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.begins = float("inf")
        self.first = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def is_down(self) -> bool:
        """Whether the outage has begun and not ended."""
        return self.begins <= time.monotonic() < self.begins + LENGTH

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                await reader.readexactly(length)
                self.begins = min(self.begins, time.monotonic() + BEGIN)
                self.first.set()
                await asyncio.sleep(LATENCY)
                status, body = 200, GOOD
                if self.is_down:
                    if (reply := FORMS[self.form]) is None:
                        writer.transport.abort()
                        return
                    status, body = reply
                kind = b"text/html" if body.startswith(b"<") else b"application/json"
                lines = b"HTTP/1.1 %d X\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (status, kind, len(body))
                writer.write(lines + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def hang_up(self) -> None:
        """Break all connections."""
        for writer in self._writers:
            writer.transport.abort()


async def measure(form: str) -> str:
    """Run a job through one outage; return a line of the table."""
    server = Server(form)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.csv").write_text("text\n" + "".join(f"row {number}\n" for number in range(ROWS)))
        job = {
            "input": "rows.csv",
            "prompt": {"user": "{{ text }}"},
            "model": {"endpoint": f"http://127.0.0.1:{port}/v1", "name": "m"},
            "limits": {"concurrency": 8},
            "output": "out.csv",
        }
        (folder / "job.yaml").write_text(json.dumps(job))
        command = (sys.executable, "-m", "batchrun", "job.yaml", "--json")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=pipe, stderr=pipe)
        running = asyncio.create_task(process.communicate())
        if form == "refused":
            await server.first.wait()
            await asyncio.sleep(BEGIN)
            listener.close()
            server.hang_up()
            await asyncio.sleep(LENGTH)
            listener = await asyncio.start_server(server.serve, "127.0.0.1", port)
        out, _ = await running
        ended = time.monotonic()
    listener.close()
    summary = json.loads(out)
    wasted = summary["requests"] - summary["ok"]
    after = ended - server.begins - LENGTH
    return f"| {form} | {wasted} | {summary['failed'] + summary['pending']} | {after:.0f} s |"


async def main() -> None:
    """Print the table."""
    print(f"| form | requests for nothing | rows lost of {ROWS} | until done, after its end |\n|---|---|---|---|")
    for form in sys.argv[1:] or FORMS:
        print(await measure(form), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
