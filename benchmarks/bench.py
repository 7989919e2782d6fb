"""batchrun, the ceiling of the wire and other tools: same rows, same body, same server, same run. `make bench`.

Writes the tables into README.md. The server has one CPU, whatever is measured has the other.
"""

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from job import CLIENT_CPU, STUB_CPU, SYSTEM, Measured, Timed, measure, text_of, timed, write_job, write_rows
from stub import KEY, Stub, stub, wrk

HERE = Path(__file__).parent
README = HERE / "README.md"
BEGIN, END = "<!-- tables -->\n", "<!-- end of tables -->\n"
VENVS = HERE.parent / "build" / "peers"
PEERS = {
    "openai": ["openai"],
    "litellm": ["litellm"],
    "langchain-openai": ["langchain-openai"],
    "lm-deluge": ["lm-deluge"],
    "async-batch-llm": ["async-batch-llm[openai]"],
    "bespokelabs-curator": ["bespokelabs-curator"],
    "ondine": ["ondine"],
    "batchllm-ai": ["batchllm-ai"],
}
DECIDER = "jev-table"
DECISION_ROWS, DECISION_IN_FLIGHT = 10_000, 50
CRITERIA = {"praise": "The text is content", "complaint": "Something is wrong", "unknown": "Neither"}
LEVELS = ["low", "normal", "high", "unknown"]
ASKED = {"topic": "What is it about?", "urgency": "How urgent is it?", "money": "Does it mention money?"}
PEER_ROWS, PEER_IN_FLIGHT, PEER_LATENCY = 5_000, 256, 200
JOBS = (
    # scheme, latency in ms, in flight, rows
    ("http", 0, 256, 200_000),
    ("http", 500, 1_000, 20_000),
    ("http", 500, 2_000, 40_000),
    ("http", 500, 5_000, 100_000),
    ("https", 0, 256, 200_000),
    ("https", 500, 1_000, 20_000),
)
ALONE = (
    ("http", 0, 256, 100_000),
    ("http", 500, 5_000, 50_000),
    ("https", 0, 256, 50_000),
    ("https", 500, 1_000, 20_000),
)
WRK_SECONDS = 10
Table = list[Sequence[str]]


def body() -> bytes:
    """Return a request as batchrun sends it."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Review: {text_of(12345)}"}]
    request = {"model": "openai/gpt-4o-mini", "messages": messages, "temperature": 0, "max_tokens": 200}
    return json.dumps(request, separators=(",", ":")).encode()


def median(values: Sequence[Measured], of: Callable[[Measured], float]) -> float:
    """Return the median of one figure."""
    return statistics.median(map(of, values))


def inputs(folder: Path, rows: int) -> Path:
    """Return an input of that many rows, written once."""
    path = folder / f"rows-{rows}.csv"
    if not path.exists():
        write_rows(path, rows)
    return path


def whole_jobs(folder: Path, server: Stub, rounds: int) -> Table:
    """Compare whole jobs with the rate of wrk in the same rounds."""
    head = ("address, latency, in flight", "wrk", "rows/s", "of wrk", "CPU µs a row", "peak MB", "whole job s")
    table: Table = [head]
    for scheme, latency, in_flight, rows in JOBS:
        tls = scheme == "https"
        if tls and server.tls is None:
            continue
        url, ca_file = server.url(latency, tls=tls), server.ca_file if tls else None
        ceilings: list[float] = []
        found: list[Measured] = []
        for _ in range(rounds):
            ceilings.append(wrk(f"{url}/chat/completions", in_flight, cpu=CLIENT_CPU, seconds=WRK_SECONDS, body=body()))
            found.append(measure(inputs(folder, rows), rows, url, in_flight, ca_file=ca_file))
        ratio = statistics.median(one.rate / most for one, most in zip(found, ceilings, strict=True))
        table.append(
            (
                f"{scheme}, {latency} ms, {in_flight:,}",
                f"{statistics.median(ceilings):,.0f}",
                f"{median(found, lambda one: one.rate):,.0f}",
                f"{ratio:.0%}",
                f"{median(found, lambda one: one.cpu_us):.0f}",
                f"{median(found, lambda one: one.rss):.0f}",
                f"{median(found, lambda one: one.wall):.1f}",
            )
        )
        print(table[-1], flush=True)
    return table


def sender(server: Stub, rounds: int) -> Table:
    """Time the sender alone, replies thrown away: what no job can go below."""
    table: Table = [("address, latency, in flight", "CPU µs a request")]
    for scheme, latency, in_flight, requests in ALONE:
        tls = scheme == "https"
        if tls and server.tls is None:
            continue
        arguments = [server.url(latency, tls=tls), str(in_flight), str(requests), str(server.ca_file or "")]
        found = [_alone(arguments) for _ in range(rounds)]
        us, loop_us = (statistics.median(one[part] for one in found) for part in ("us", "loop_us"))
        table.append((f"{scheme}, {latency} ms, {in_flight:,}", f"{us:.0f} ({loop_us:.0f})"))
        print(table[-1], flush=True)
    return table


def _alone(arguments: list[str]) -> dict[str, float]:
    done = timed([sys.executable, str(HERE / "alone.py"), *arguments])
    if done.exit_code:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout))


def installed(name: str) -> Path | None:
    """Return the Python of a peer's own environment, made where it is missing; None where it can't be installed."""
    python = VENVS / name / "bin" / "python"
    if python.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", str(VENVS / name)], check=True)
    done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEERS.get(name, [name])], check=False)
    if done.returncode:
        print(f"{name} can't be installed: left out")
        return None
    return python


def peers(folder: Path, server: Stub, rounds: int) -> Table:
    """Compare with other tools; they write one line of JSON a row, without a checkpoint."""
    programs = {"batchrun": _batchrun(folder), **dict(_programs(folder))}
    most = PEER_IN_FLIGHT / PEER_LATENCY * 1000
    table: Table = [("tool", "rows/s", "of ideal", "CPU µs a row", "peak MB", "one-row job s")]
    rows, one_row = inputs(folder, PEER_ROWS), inputs(folder, 1)
    found: dict[str, list[tuple[Timed, Timed]]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = timed(program(one_row, server.url(0)))
            done = timed(program(rows, server.url(PEER_LATENCY)))
            if done.exit_code or start.exit_code:
                print(f"{name} fails:\n{(done.stderr or start.stderr)[-1000:]}")
            else:
                found[name].append((done, start))
    for name, several in found.items():
        if not several:
            continue
        wall = statistics.median(done.wall for done, _ in several)
        cpu = statistics.median(done.cpu for done, _ in several) / PEER_ROWS * 1e6
        memory = statistics.median(done.rss for done, _ in several)
        start_up = statistics.median(start.wall for _, start in several)
        rate = PEER_ROWS / wall
        row = (_version(name), f"{rate:,.0f}", f"{rate / most:.0%}", f"{cpu:,.0f}", f"{memory:.0f}", f"{start_up:.2f}")
        table.append(row)
        print(row, flush=True)
    return table


def decisions(folder: Path, server: Stub, rounds: int) -> Table:
    """Compare with another tool for decision models: the same rows and questions, answers and probabilities as CSV."""
    columns: dict[str, object] = {
        "topic": {"values": CRITERIA, "description": ASKED["topic"]},
        "urgency": {"values": LEVELS, "ordered": True, "description": ASKED["urgency"]},
        "money": {"type": "boolean", "description": ASKED["money"]},
    }
    job = {
        "input": str(inputs(folder, DECISION_ROWS)),
        "prompt": {"state": {"text": "{{ text }}"}},
        "model": {"endpoint": f"{server.url(0)}/v1", "name": "jev-latest", "price": {"prompt": 0.042, "completion": 0}},
        "answer": {"mode": "decision", "columns": columns},
        "limits": {"concurrency": DECISION_IN_FLIGHT},
        "output": {"path": "out.csv", "review_below": 0.6},
    }
    questions = {
        "topic": {"type": "choice", "instructions": ASKED["topic"], "options": CRITERIA},
        "urgency": {"type": "score", "instructions": ASKED["urgency"], "levels": LEVELS},
        "money": {"type": "noul", "instructions": ASKED["money"]},
    }
    pack = {"spec": 0, "id": "bench", "version": "0.1.0", "license": "CC0-1.0", "tested": None, "description": "x",
            "state": {"fields": ["text"], "description": "text"}, "questions": questions, "thresholds": {}}  # fmt: skip
    (folder / "pack.yaml").write_text(json.dumps(pack))
    found: dict[str, list[Timed]] = {"batchrun": [], DECIDER: []}
    for number in range(rounds):
        fresh = folder / f"decisions-{number}"
        fresh.mkdir()
        (fresh / "job.yaml").write_text(json.dumps(job))
        commands = {"batchrun": [sys.executable, "-m", "batchrun", str(fresh / "job.yaml"), "--quiet"]}
        if (python := installed(DECIDER)) is not None:
            arguments = [
                job["input"],
                "--spec",
                folder / "pack.yaml",
                "--base-url",
                server.url(0),
                "--out",
                fresh / "x.csv",
            ]
            flags = ["--concurrency", DECISION_IN_FLIGHT, "--no-cache", "--yes"]
            commands[DECIDER] = [str(python.with_name(DECIDER)), *map(str, [*arguments, *flags])]
        for name, command in commands.items():
            done = timed(command, env={"TYPESAFE_API_KEY": KEY})
            found[name].append(done)
            if done.exit_code:
                print(f"{name} fails:\n{done.stderr[-1000:]}")
    table: Table = [("tool", "rows/s", "CPU µs a row", "peak MB")]
    for name, several in found.items():
        if several:
            wall, cpu, memory = (
                statistics.median(getattr(one, what) for one in several) for what in ("wall", "cpu", "rss")
            )
            table.append(
                (_version(name), f"{DECISION_ROWS / wall:,.0f}", f"{cpu / DECISION_ROWS * 1e6:,.0f}", f"{memory:.0f}")
            )
            print(table[-1], flush=True)
    return table


def _batchrun(folder: Path) -> Callable[[Path, str], list[str]]:
    def program(rows: Path, url: str) -> list[str]:
        fresh = tempfile.mkdtemp(dir=folder)
        job = write_job(Path(fresh), rows, url, PEER_IN_FLIGHT)
        return [sys.executable, "-m", "batchrun", str(job), "--quiet"]

    return program


def _programs(folder: Path) -> Iterator[tuple[str, Callable[[Path, str], list[str]]]]:
    for name in PEERS:
        if (python := installed(name)) is not None:

            def program(rows: Path, url: str, python: Path = python, name: str = name) -> list[str]:
                out = str(folder / "peer.jsonl")
                return [str(python), str(HERE / "peers.py"), name, str(rows), url, str(PEER_IN_FLIGHT), out]

            yield name, program


def _version(name: str) -> str:
    own = name == "batchrun"
    python, distribution = (sys.executable, "batchrun-llm") if own else (str(VENVS / name / "bin" / "python"), name)
    code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    done = subprocess.run([python, "-c", code, distribution], capture_output=True, text=True, check=True)
    return f"{name} {done.stdout.strip()}"


def start_up(folder: Path, server: Stub) -> Table:
    """Time what a person waits for: the help, and a job of one row. Bytecode is compiled; no CPU is pinned."""
    program = _batchrun(folder)
    table: Table = [("command", "wall s", "CPU s")]
    commands: dict[str, Callable[[], list[str]]] = {
        "batchrun --help": lambda: [sys.executable, "-m", "batchrun", "--help"],
        "a job of one row": lambda: program(inputs(folder, 1), server.url(0)),
    }
    for name, command in commands.items():
        found = [timed(command(), cpu=None) for _ in range(9)]
        wall, cpu = (statistics.median(getattr(one, what) for one in found) for what in ("wall", "cpu"))
        table.append((name, f"{wall:.2f}", f"{cpu:.2f}"))
        print(table[-1], flush=True)
    return table


def markdown(table: Table) -> str:
    """Return a table as Markdown."""
    head, *rest = table
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rest]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written(tables: Sequence[tuple[str, Table]], server: Stub, rounds: int) -> str:
    """Return what stands in README.md: the tables, and under what they were measured."""
    machine = f"{os.cpu_count()} CPUs ({platform.machine()}, {platform.system()} {platform.release().split('-')[0]})"
    load = f"load {os.getloadavg()[2]:.1f} from outside included"
    today = dt.datetime.now(tz=dt.UTC).date()
    under = f"{today}, `make bench`, Python {platform.python_version()}, {server.name}, {machine}, {load}, "
    under += f"medians of {rounds} rounds."
    parts = [f"\n{title}\n\n{markdown(table)}" for title, table in tables]
    return f"{under}\n{''.join(parts)}\n"


def main() -> None:
    """Measure everything and write the tables."""
    parser = argparse.ArgumentParser(description="Compare batchrun with the wire's ceiling and with other tools.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--only", choices=["jobs", "sender", "peers", "decisions", "start-up"], help="print one table, write none"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchrun-bench-") as name, stub(STUB_CPU) as server:
        folder = Path(name)
        tables: list[tuple[str, Table]] = []
        if options.only in {None, "start-up"}:
            tables.append(("Start-up, bytecode compiled.", start_up(folder, server)))
        if options.only in {None, "jobs"}:
            title = "Whole jobs on one core. Rows/s is from the first request to the last reply, all else is all in."
            tables.append((title, whole_jobs(folder, server, options.rounds)))
        if options.only in {None, "sender"}:
            tables.append(
                ("The sender alone on one core; in brackets the event loop's thread.", sender(server, options.rounds))
            )
        if options.only in {None, "peers"}:
            title = f"{PEER_ROWS:,} rows, {PEER_LATENCY} ms, {PEER_IN_FLIGHT} in flight, one core; rows/s is all in."
            tables.append((title, peers(folder, server, options.rounds)))
        if options.only in {None, "decisions"}:
            title = (
                f"{DECISION_ROWS:,} rows, three questions each, 0 ms, {DECISION_IN_FLIGHT} in flight, one core; all in."
            )
            tables.append((title, decisions(folder, server, options.rounds)))
        if options.only is None:
            text = README.read_text()
            before, _, rest = text.partition(BEGIN)
            after = rest.partition(END)[2]
            README.write_text(f"{before}{BEGIN}\n{written(tables, server, options.rounds)}\n{END}{after}")


if __name__ == "__main__":
    main()
