"""A server that answers at once, or after a fixed time: nginx with the echo module, in a temporary folder."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

LATENCIES = (0, 200, 500)
"""Milliseconds; each has an address of its own."""

ECHO_MODULE = Path("/usr/share/nginx/modules/ngx_http_echo_module.so")

ANSWER = {
    "id": "gen-1779358422-Fq8Cn1vYd2oKpTbWzQ5x",
    "object": "chat.completion",
    "created": 1779358422,
    "model": "openai/gpt-4o-mini",
    "provider": "Azure",
    "system_fingerprint": "fp_efad92c60b",
    "choices": [
        {
            "index": 0,
            "logprobs": None,
            "finish_reason": "stop",
            "native_finish_reason": "stop",
            "message": {
                "role": "assistant",
                "content": "positive, all told a fine thing to have around the house",
                "refusal": None,
                "reasoning": None,
            },
        }
    ],
    "usage": {
        "prompt_tokens": 150,
        "completion_tokens": 12,
        "total_tokens": 162,
        "cost": 0.0000297,
        "is_byok": False,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "cost_details": {"upstream_inference_cost": None},
        "completion_tokens_details": {"reasoning_tokens": 0, "image_tokens": 0},
    },
}

CONFIGURATION = """
{module}
daemon off;
worker_processes 1;
worker_cpu_affinity {affinity};
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 12000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  keepalive_timeout 300;
  default_type application/json;
  server {{
    listen 127.0.0.1:{port} backlog=8192;
{locations}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Stub:
    """A running stub; `name` says what it is."""

    name: str
    port: int

    def url(self, latency: int) -> str:
        """Give the base URL whose replies take so many milliseconds."""
        return f"http://127.0.0.1:{self.port}/{latency}"


@contextmanager
def stub(cpu: int) -> Iterator[Stub]:
    """Serve on one CPU for as long as the block; exits with what to install where nginx is missing."""
    if shutil.which("nginx") is None or not ECHO_MODULE.exists():
        sys.exit("the stub is nginx with the echo module: apt-get install nginx-light libnginx-mod-http-echo")
    with tempfile.TemporaryDirectory(prefix="batchrun-stub-") as folder:
        port = _free_port()
        file = Path(folder) / "nginx.conf"
        file.write_text(_configuration(folder, port, cpu))
        server = subprocess.Popen(["nginx", "-c", str(file), "-p", folder, "-e", f"{folder}/error.log"])
        try:
            _wait_for(port)
            yield Stub(_version(), port)
        finally:
            server.terminate()
            server.wait()


def _configuration(folder: str, port: int, cpu: int) -> str:
    answer = json.dumps(ANSWER)
    locations = "\n".join(
        f"    location /{latency}/chat/completions {{ {_sleep(latency)}echo '{answer}'; }}" for latency in LATENCIES
    )
    affinity = "".join("1" if number == cpu else "0" for number in reversed(range(os.cpu_count() or 1)))
    module = f"load_module {ECHO_MODULE};"
    return CONFIGURATION.format(module=module, affinity=affinity, folder=folder, port=port, locations=locations)


def _sleep(latency: int) -> str:
    return f"echo_sleep {latency / 1000}; " if latency else ""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    sys.exit("the stub does not start")


def _version() -> str:
    found = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True)
    return found.stderr.strip().rpartition(" ")[2]


def wrk(url: str, connections: int, *, cpu: int, seconds: int, body: bytes) -> float:
    """Give the requests per second that wrk, a load generator in C, gets from an address: the ceiling of the wire."""
    if shutil.which("wrk") is None:
        sys.exit("the ceiling is measured by wrk: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        headers = 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        script.write_text(f"{headers}wrk.body = [==[{body.decode()}]==]\n")
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", str(script), url]
        text = pinned(command, cpu)
    return float(next(line.split(":")[1] for line in text.splitlines() if line.startswith("Requests/sec")))


def pinned(command: Sequence[str], cpu: int) -> str:
    """Run a command on one CPU; give what it prints."""
    done = subprocess.run(["taskset", "-c", str(cpu), *command], capture_output=True, text=True, check=True)
    return done.stdout
