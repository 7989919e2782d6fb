"""A job for tests of the report: a server on loopback whose answers are hostile, wrong and slow as its rows say."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl

HOSTILE = (
    "</script><script>window.hit = 1</script>",
    '<img src="http://example.invalid/x.png" onerror="window.hit = 1">',
    "\u202egnp.exe and a \u0007bell \u001b[31mred",
    "{{ 7 * 7 }} \"quoted\" & 'more' ]]> <!-- <style>body{display:none}</style>",
    "שלום עולם, مرحبا",
)
PRICE = {"prompt": 0.15, "completion": 0.6}


class _Model(BaseHTTPRequestHandler):
    """Answers with the label that follows from the row's number, and with a hostile reason."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer one chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        number = int(text.split()[1])
        time.sleep(0.002 * (number % 7))
        if "moderated" in text:
            self._send(403, {"error": {"code": 403, "message": f"flagged: {HOSTILE[0]}", "metadata": {"reasons": []}}})
            return
        label = ("good", "bad", "mixed")[(number + (number % 11 == 0)) % 3]
        answer = json.dumps({"label": label, "score": number * number % 50, "reason": HOSTILE[number % len(HOSTILE)]})
        content = "no object" if "unfit" in text else answer
        self._send(
            200,
            {
                "model": "test/model",
                "choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 40 + number % 9, "completion_tokens": 20},
            },
        )

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def serving() -> Iterator[str]:
    """Serve the model; give the endpoint's URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_job(folder: Path, url: str, rows: int = 90) -> Path:
    """Write job.yaml and rows.parquet: every 15th row is moderated, every 20th gets an answer that does not fit."""
    texts = [
        f"row {number} {HOSTILE[number % len(HOSTILE)]}"
        + (" moderated" if number % 15 == 7 else " unfit" if number % 20 == 9 else "")
        for number in range(rows)
    ]
    gold = [("good", "bad", "mixed")[number % 3] if number % 9 else None for number in range(rows)]
    pl.DataFrame({"text": texts, "gold": gold}).write_parquet(folder / "rows.parquet")
    job = {
        "input": {"path": "rows.parquet", "where": "text not like 'row 3 %'"},
        "prompt": {"system": "You label.", "user": "{{ text }}"},
        "model": {"endpoint": url, "name": "test/model", "price": PRICE, "params": {"max_tokens": 100}},
        "answer": {
            "columns": {"label": ["good", "bad", "mixed"], "score": "integer", "reason": "string?"},
            "repairs": 0,
        },
        "limits": {"concurrency": 4},
        "output": {"path": "out.parquet"},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))
    return path
