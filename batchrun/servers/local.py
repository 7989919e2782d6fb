"""llama.cpp's or sparrow-decider's server as a process of its own: `python -m batchrun.servers.local`.

Prints one line of JSON, `{"ready": true, "url": "http://127.0.0.1:PORT/v1"}`, once it answers; all else it says goes
to stderr. With `--until-stdin-closes` it ends with the process that holds the other end of its stdin, however that
one ends. Imports nothing of batchrun.
"""

import argparse
import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m batchrun.servers.local", description="Serve a GGUF on loopback.")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="a .gguf or a .sparrow file")
    parser.add_argument("--parallel", type=int, default=4, help="requests answered at the same time")
    parser.add_argument("--ctx", type=int, default=4096, help="tokens that each of them may hold, prompt and answer")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when stdin is closed")
    return parser.parse_args(arguments)


def threads() -> int:
    """Return half the processors: llama.cpp's threads wait for each other busily; one that shares its core stalls all.

    Measured on two busy cores: one thread answers 20 short reviews in 20 s, two in 35 s.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(1, usable // 2)


def start(model: Path, parallel: int, ctx: int) -> Any:  # noqa: ANN401  (xllamacpp has no types)
    """Load the model and serve it on a free loopback port; return the server, which lives as long as its object."""
    import xllamacpp  # noqa: PLC0415  (`main` reports its absence in one line)

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {model.stem}
    params.hostnames = ["127.0.0.1"]
    # 0 chooses a free port. The parent reads the address from stdout.
    params.port = 0
    params.n_parallel = parallel
    # llama.cpp divides its context among the slots.
    params.n_ctx = parallel * ctx
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads()
    params.cache_ram_mib = 0  # rows share only the start of their prompts, which the slots keep anyway
    params.ui = False
    params.endpoint_slots = False  # would show what other requests ask
    params.verbosity = 1
    return xllamacpp.Server(params)


def start_decider(model: Path) -> str:
    """Load sparrow-decider's model and serve it on a free loopback port; return the address once it answers."""
    # Its matrices are small: threads would gain nothing, and starting them takes 0.1 s of numpy's import.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from sparrow_decider.cli import main as serve  # noqa: PLC0415  (an extra)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = ["--model", str(model), "serve", "--port", port]
    thread = threading.Thread(target=serve, args=(arguments,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    while not healthy(url) and thread.is_alive():
        time.sleep(0.01)
    return url


def fail(message: str) -> NoReturn:
    """Write in one line why there is no server, and end."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
    os._exit(1)


def end_with_stdin() -> None:
    """Wait until stdin is closed, then end at once, also while a model is being loaded."""
    while os.read(0, 4096):
        pass
    # Not sys.exit: a model that is being loaded would keep the process for seconds.
    os._exit(0)


def healthy(url: str) -> bool:
    """Check whether the server at an http address answers GET /health; no proxy is asked."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


def main() -> None:
    """Serve until SIGTERM or, if asked for, until stdin closes."""
    options = parse()
    stdout = os.dup(1)
    os.dup2(2, 1)  # llama.cpp writes to both; ours must hold one line alone
    if options.until_stdin_closes:
        threading.Thread(target=end_with_stdin, daemon=True).start()
    model: Path = options.model
    if model.suffix == ".sparrow":
        url = start_decider(model)
    else:
        try:
            server = start(model, options.parallel, options.ctx)
        except Exception as problem:  # noqa: BLE001  (xllamacpp raises bare types; each is reported in one line)
            fail(f"llama.cpp can't serve {model}: {problem}")
        url = server.listening_address
    if not healthy(url):
        fail(f"nothing answers at {url}, where {model} should be served")
    os.write(stdout, json.dumps({"ready": True, "url": f"{url}/v1"}).encode() + b"\n")
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
