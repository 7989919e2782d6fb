"""A server that answers at once, or after a fixed time: nginx with the echo module, else the simulator."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trustme

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

DECISION = {
    "model": "jev-1.13.0",
    "answers": {
        "topic": {
            "type": "choice",
            "choice": "praise",
            "probabilities": {"praise": 0.81, "complaint": 0.12, "unknown": 0.07},
            "confidence": 0.72,
        },
        "urgency": {
            "type": "score",
            "score": 0.42,
            "legend": {"0": "low", "1": "normal", "2": "high", "3": "unknown"},
            "probabilities": {"0": 0.66, "1": 0.26, "2": 0.05, "3": 0.03},
            "confidence": 0.5,
        },
        "money": {"type": "noul", "noul": 0.07},
    },
    "usage": {"input_tokens": 477, "output_tokens": 0},
}
"""What the path /v1/systemone answers, to the questions of bench.py."""

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
    listen 127.0.0.1:{tls_port} ssl backlog=8192;
    ssl_certificate {folder}/server.pem;
    ssl_certificate_key {folder}/server.pem;
{locations}
  }}
}}
"""

KEY = "sk-or-v1-benchmark"


@dataclass(frozen=True, slots=True)
class Stub:
    """A running stub; `name` says what it is. `ca_file` holds the authority of its TLS addresses, where it has them."""

    name: str
    addresses: Mapping[int, str]
    tls: str | None = None
    ca_file: Path | None = None

    def url(self, latency: int, *, tls: bool = False) -> str:
        """Return the base URL whose replies take that many milliseconds."""
        return f"{self.tls}/{latency}" if tls else self.addresses[latency]


@contextmanager
def stub(cpu: int) -> Iterator[Stub]:
    """Serve on one CPU for as long as the block: nginx; the simulator, which is far slower, where it is missing."""
    with tempfile.TemporaryDirectory(prefix="batchrun-stub-") as name, ExitStack() as stack:
        if shutil.which("nginx") is not None and ECHO_MODULE.exists():
            yield stack.enter_context(_nginx(cpu, Path(name)))
            return
        print("the simulator answers in place of nginx with its echo module, and will be what limits the rates:")
        print("apt-get install nginx-light libnginx-mod-http-echo")
        urls = {latency: stack.enter_context(_simulator(cpu, latency)) for latency in LATENCIES}
        yield Stub("the simulator", urls)


@contextmanager
def _nginx(cpu: int, folder: Path) -> Iterator[Stub]:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    port, tls_port = _free_port(), _free_port()
    file = folder / "nginx.conf"
    file.write_text(_configuration(folder, port, tls_port, cpu))
    server = subprocess.Popen(["nginx", "-c", str(file), "-p", str(folder), "-e", f"{folder}/error.log"])
    try:
        _wait_for(port)
        urls = {latency: f"http://127.0.0.1:{port}/{latency}" for latency in LATENCIES}
        yield Stub(_version(), urls, f"https://127.0.0.1:{tls_port}", folder / "ca.pem")
    finally:
        server.terminate()
        server.wait()


@contextmanager
def _simulator(cpu: int, latency: int) -> Iterator[str]:
    simulator = ["-m", "batchrun.servers.simulator", "--latency", str(latency / 1000), "--until-stdin-closes"]
    command = ["taskset", "-c", str(cpu), sys.executable, *simulator]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        if server.stdout is None or server.stdin is None:
            raise RuntimeError("the simulator has no pipes")
        yield json.loads(server.stdout.readline())["url"]
        server.stdin.close()


def _configuration(folder: Path, port: int, tls_port: int, cpu: int) -> str:
    answers = {"chat/completions": ANSWER, "v1/systemone": DECISION}
    locations = "\n".join(
        f"    location /{latency}/{path} {{ {_sleep(latency)}echo '{json.dumps(answer)}'; }}"
        for latency in LATENCIES
        for path, answer in answers.items()
    )
    affinity = "".join("1" if number == cpu else "0" for number in reversed(range(os.cpu_count() or 1)))
    module = f"load_module {ECHO_MODULE};"
    return CONFIGURATION.format(
        module=module, affinity=affinity, folder=folder, port=port, tls_port=tls_port, locations=locations
    )


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
    """Return the requests per second that wrk, a load generator in C, gets from an address: the ceiling of the wire."""
    if shutil.which("wrk") is None:
        sys.exit("the ceiling is measured by wrk: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        headers = 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        headers += f'wrk.headers["Authorization"] = "Bearer {KEY}"\n'
        script.write_text(f"{headers}wrk.body = [==[{body.decode()}]==]\n")
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", str(script), url]
        text = pinned(command, cpu)
    if "Non-2xx" in text:
        sys.exit(f"wrk gets errors: {text}")
    return float(next(line.split(":")[1] for line in text.splitlines() if line.startswith("Requests/sec")))


def pinned(command: Sequence[str], cpu: int) -> str:
    """Run a command on one CPU; give what it prints."""
    done = subprocess.run(["taskset", "-c", str(cpu), *command], capture_output=True, text=True, check=True)
    return done.stdout
