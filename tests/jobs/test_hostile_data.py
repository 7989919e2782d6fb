"""Rows from strangers, answers from a model, servers from anywhere: through whole jobs, nothing gets in or hangs."""

import csv
import gzip
import json
import os
import pty
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import forking
import polars as pl
import pytest
import trustme
from job_running import run, write_job
from simulator_server import Running, running
from wire_server import End, Script, answer, chunked
from wire_thread import Everywhere, served

from batchrun.api import endpoints
from batchrun.errors import UserError
from batchrun.records import Secret
from batchrun.senders import KINDS

MB = 2**20
UNSEEN = re.compile("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
ROWS = [
    "{{ 7 * 7 }}{% for x in y %}{{ ''.__class__.__mro__ }}{% endfor %}{# comment #}",
    '=HYPERLINK("http://x")',
    "\x1b]0;owned\x07\x1b[2J\x9b31m",
    "\u202egnp.exe\u2066\u200b\ufeff",
    "nul\x00 and \x7f",
    "a\r\nb\rc\u2028d",
    "${KEY} $$ %s {0}",
]
PLAIN: dict[str, Any] = {
    "model": "sim/good",
    "answer": None,
    "output": {"path": "out.parquet", "details": ["status", "error_type"]},
}


@pytest.fixture(scope="module")
def sim() -> Iterator[Running]:
    with running(keep_requests=1_000, slow=0.05) as server:
        yield server


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# Rows


def test_a_cell_is_text_whatever_it_holds(sim: Running, tmp_path: Path) -> None:
    """Template syntax, variables, control and bidi characters of a cell are sent, and written, letter by letter."""
    sim.reset()
    ran = run(write_job(tmp_path, sim.url, rows=ROWS, **PLAIN))
    sent = {json.loads(request.body)["messages"][-1]["content"] for request in sim.counters.recorded if request.body}
    assert sent == {f"Label: {row}" for row in ROWS}
    assert ran.column("text") == ROWS
    assert ran.count("status") == {"ok": len(ROWS)}


def test_a_template_in_an_answer_stays_text_in_a_repair(tmp_path: Path) -> None:
    """What a model wrote goes back to it as it is when it is asked to correct it."""
    bodies: list[bytes] = []

    def bad(seen: Any) -> Script:  # noqa: ANN401  (Seen)
        bodies.append(seen.body)
        message = {"content": ROWS[0] + ROWS[2] + ROWS[6]}
        return (answer(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()),)

    with served(Everywhere(bad)) as server:
        ran = run(write_job(tmp_path, server.url("/v1"), rows=1))
    assert ran.column("error_type") == ["schema_mismatch"]
    assert json.loads(bodies[1])["messages"][-2] == {"role": "assistant", "content": ROWS[0] + ROWS[2] + ROWS[6]}


def test_cells_of_ten_megabytes_pass_and_prompts_have_a_bound(sim: Running, tmp_path: Path) -> None:
    """A huge cell beside the question arrives in the output exactly; in the question it fails its row alone, unsent."""
    huge = "x{{y}}\n" * (10 * MB // 7)
    rows = pl.DataFrame({"text": ["short", huge], "beside": [huge, "short"]})
    rows.write_parquet(tmp_path / "both.parquet")
    sim.reset()
    ran = run(write_job(tmp_path, sim.url, input={"path": "both.parquet"}, **PLAIN))
    assert ran.column("status") == ["ok", "failed"]
    assert ran.column("error_type") == [None, "request_too_large"]
    assert ran.output is not None
    assert ran.output.select("text", "beside").equals(rows)
    assert sim.counters.requests == 1


@pytest.mark.parametrize("escape", [False, True])
def test_formulas_are_exact_or_escaped(sim: Running, tmp_path: Path, *, escape: bool) -> None:
    """Formula cells of rows and answers are exact by default; with escape_formulas no cell begins as a formula."""
    output = {"path": "out.csv", "csv": {"escape_formulas": escape}}
    columns = {"label": "string"}
    job = write_job(
        tmp_path, sim.url, rows=["=1+1", "@a", "+b", "-1", "fine"], model="sim/hostile-text",
        answer={"columns": columns}, output=output,
    )  # fmt: skip
    summary = run_csv(job)
    assert summary["ok"] == 5
    with (tmp_path / "out.csv").open(newline="") as file:
        cells = [cell for row in list(csv.reader(file))[1:] for cell in row]
    formulas = [cell for cell in cells if cell[:1] in {"=", "+", "-", "@"}]
    assert len(formulas) == (0 if escape else 4 + 5)
    assert sum(cell.startswith("'") for cell in cells) == (4 + 5 if escape else 0)


def run_csv(job: Path) -> dict[str, Any]:
    """Run a job whose output is CSV, as a process."""
    environment = {**os.environ, "KEY": "sk-x", "XDG_CACHE_HOME": str(job.parent)}
    ended = forking.run(str(job), "--json", cwd=job.parent, env=environment)
    assert ended.returncode in {0, 1}, ended.stderr
    return dict(json.loads(ended.stdout))


# Answers


def on_a_terminal(folder: Path, *arguments: str) -> str:
    """Run the command on a terminal of its own and give all that came out of it."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "KEY": "sk-x", "XDG_CACHE_HOME": str(folder), "TERM": "xterm", "COLUMNS": "200"}
    environment["NO_COLOR"] = "1"  # our own colours are not bytes of the data
    with ThreadPoolExecutor() as thread:
        shown = thread.submit(_read, ours)
        forking.run(*arguments, cwd=folder, env=environment, terminal=theirs)
        os.close(theirs)
        text = shown.result(10)
    os.close(ours)
    return text.decode()


def _read(descriptor: int) -> bytes:
    text = b""
    while True:
        try:
            chunk = os.read(descriptor, 65_536)
        except OSError:  # the other end is closed
            return text
        if not chunk:
            return text
        text += chunk


HOSTILE_ERROR = answer(
    json.dumps({"error": {"code": 400, "message": "".join(ROWS), "metadata": {"provider_name": ROWS[2]}}}).encode(),
    status="400 No",
    headers=["content-type: application/json"],
)
HOSTILE_STATUS = answer(b"", status="400 \x1b[2J")
HOSTILE_STOP = answer(
    json.dumps({"error": {"code": 401, "message": "".join(ROWS)}}).encode(), status="401 No", headers=[]
)


SHOWING: dict[str, list[list[str]]] = {
    "answers": [["preview", "-n", "9"], ["run"], ["status"], ["report"]],
    "refused rows": [["preview", "-n", "9"], ["run"], ["status"], ["report"]],
    "a hostile status": [["run"]],
    "refused key": [["check"], ["run"], ["status"]],
    "job": [["preview"], ["check"], ["run"]],
}
"""The commands that show the rows, the server's words, or the job, of each case."""


@pytest.mark.parametrize("case", SHOWING)
def test_no_byte_from_data_reaches_a_terminal_raw(sim: Running, tmp_path: Path, case: str) -> None:
    """Whatever rows, column names, answers and servers hold, run, preview, status, check and report show no escape."""
    replies = {"refused key": HOSTILE_STOP, "a hostile status": HOSTILE_STATUS}
    with served(Everywhere((replies.get(case, HOSTILE_ERROR),))) as server:
        url = sim.url if case in {"answers", "job"} else server.url("/v1")
        columns = {"text": ROWS, "\x1b[2Jname\u202e": ROWS}
        pl.DataFrame(columns).write_parquet(tmp_path / "in.parquet")
        sections: dict[str, Any] = {"input": {"path": "in.parquet"}, "model": "sim/hostile-text"}
        sections |= {"limits": {"patience": "1s"}}  # with a server whose replies are broken
        if case == "job":
            sections |= {"prompt": {"user": "{{ txt\x1b }} {{ text.\u202e }} {{ naem }}"}}
        job = write_job(tmp_path, url, answer={"columns": {"label": "string"}}, **sections)
        shown = [on_a_terminal(tmp_path, name, str(job), *flags) for name, *flags in SHOWING[case]]
    assert all(shown)
    assert ("\\x1b" in "".join(shown)) == (case != "a hostile status")
    found = [match for text in shown for match in UNSEEN.findall(text.replace("\r\n", "\n"))]
    assert found == []


def test_a_report_holds_no_markup_of_rows_or_answers(sim: Running, tmp_path: Path) -> None:
    """Rows and answers that hold markup are text in the report's HTML."""
    rows = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", "<!--"]
    job = write_job(tmp_path, sim.url, rows=rows, model="sim/hostile-text", answer={"columns": {"label": "string"}})
    run(job)
    on_a_terminal(tmp_path, "report", str(job), "-o", str(tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "alert(" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page


# Servers

GOOD = json.dumps({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}).encode()
DRIP: Script = (0.2, b" ") * 50
SERVERS: dict[str, tuple[Script, set[str]]] = {
    "hang": ((End.HANG,), {"timeout"}),
    "drip of headers": ((b"HTTP/1.1 200 OK\r\n", repeat(b"x-a: b\r\n", 3), b"x-a: b", *DRIP), {"timeout"}),
    "drip of a body": ((b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n", *DRIP), {"timeout"}),
    "endless headers": ((b"HTTP/1.1 200 OK\r\n", repeat(b"x-a: " + b"b" * 1000 + b"\r\n")), {"invalid_response"}),
    "endless line": ((b"HTTP/1.1 200 ", repeat(b"O" * 10_000)), {"invalid_response"}),
    "endless body": ((b"HTTP/1.1 200 OK\r\n\r\n", repeat(b" " * 65_536)), {"response_too_large"}),
    "endless chunks": (
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", chunked(repeat(b" " * 65_536))),
        {"response_too_large"},
    ),
    "huge content-length": (
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\nx", End.CLOSE),
        {"reset", "invalid_response"},
    ),
    "short content-length": (
        (b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n" + GOOD, End.CLOSE),
        {"invalid_response"},
    ),
    "two content-lengths": (
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n" + GOOD, End.CLOSE),
        {"invalid_response"},
    ),
    "garbage": ((b"\x00\xff\x16\x03garbage\r\n\r\n" * 10, End.CLOSE), {"invalid_response"}),
    "reset": ((End.RESET,), {"reset"}),
    "closed": ((End.CLOSE,), {"reset"}),
}


def bounded(url: str, **model: Any) -> dict[str, Any]:  # noqa: ANN401  (JSON)
    """Return the sections of a job whose attempts end soon and take little."""
    sections = {"endpoint": url, "name": "m", "max_response_mb": 1, **model}
    return {"model": sections, "answer": None, "limits": {"timeout": 0.7, "attempts": 1, "grace": 1000, "breaker": 0}}


def job_for(folder: Path, url: str, rows: int = 2, **model: Any) -> Path:  # noqa: ANN401  (JSON)
    """Write such a job."""
    path = write_job(folder, url, rows=rows, **{name: each for name, each in bounded(url).items() if name != "model"})
    sections = json.loads(path.read_text())
    sections["model"] |= bounded(url, **model)["model"]
    path.write_text(json.dumps(sections))
    return path


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SERVERS)
def test_a_hostile_server_costs_its_rows_alone(tmp_path: Path, name: str, kind: str) -> None:
    """Each attack ends within the attempt's timeout as one code on every row, and the job ends in good order."""
    script, codes = SERVERS[name]
    with served(Everywhere(lambda _: script)) as server:
        ran = run(job_for(tmp_path, server.url("/v1")), sender=kind)
    assert ran.summary.exit_code == 1, ran.summary.reason
    assert set(ran.column("error_type")) <= codes
    assert set(ran.column("status")) == {"failed"}


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:unclosed resource <TCPTransport:ResourceWarning")  # uvloop's, of a failed handshake
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["untrusted", "plain", "handshake hangs", "no such host", "nobody there"])
def test_an_endpoint_that_can_not_be_reached_is_one_code(
    tmp_path: Path, kind: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken TLS, DNS and connections end each row with one code, as never sent and so never billed."""
    monkeypatch.delenv("SSL_CERT_FILE")  # the certificates of this system, as in daily use
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    greeting: Script = (End.HANG,) if case == "handshake hangs" else ()
    with served(Everywhere((answer(GOOD),)), tls=context if case == "untrusted" else None, greeting=greeting) as server:
        url = {"no such host": "https://batchrun.invalid/v1", "nobody there": "https://127.0.0.1:1/v1"}.get(
            case, f"https://127.0.0.1:{server.port}/v1"
        )
        job = job_for(tmp_path, url)
        sections = json.loads(job.read_text())
        # A busy machine may need the tenth of it that lies between a failed connect and a silent server.
        sections["limits"]["timeout"] = 3
        job.write_text(json.dumps(sections))
        ran = run(job, sender=kind)
    assert ran.summary.exit_code in {1, 3}
    assert len(ran.count("error_type").keys() - {None}) == 1  # a row that was never tried has none
    assert ran.summary.possibly_billed == 0
    assert not server.seen


def test_a_machine_without_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container without CA certificates a job runs all the same, and checks TLS by a list that came along."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with served(Everywhere((answer(GOOD),))) as plain, served(Everywhere((answer(GOOD),)), tls=context) as untrusted:
        ran = run(job_for(tmp_path, f"http://127.0.0.1:{plain.port}/v1"))
        refused = run(job_for(tmp_path, f"https://127.0.0.1:{untrusted.port}/v1"))
    assert ran.summary.exit_code == 0
    assert "tls" in refused.count("error_type")
    assert not untrusted.seen


PROXIES: dict[str, Script] = {
    "answers in the server's place": (answer(GOOD),),
    "says yes and then talks": (b"HTTP/1.1 200 OK\r\n\r\n", answer(GOOD)),
    "refuses": (answer(b"no", status="407 Proxy Authentication Required"),),
    "redirects": (answer(b"", status="302 Found", headers=["location: http://127.0.0.1:1/"]),),
    "hangs": (End.HANG,),
    "garbage": (b"\xff\x00garbage\r\n\r\n", End.CLOSE),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_that_lies_learns_nothing(
    tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that answers by itself, refuses, redirects or hangs gets neither key nor row, and answers nothing."""
    with served(Everywhere(PROXIES[name])) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        ran = run(job_for(tmp_path, "https://api.invalid/v1"), sender=kind)
    assert ran.summary.ok == 0
    assert ran.summary.exit_code in {1, 3}
    assert {seen.method for seen in proxy.seen} == {"CONNECT"}
    assert not [seen for seen in proxy.seen if "authorization" in seen.headers or seen.body]


def test_memory_stays_flat_under_attack(sim: Running, tmp_path: Path) -> None:
    """Bombs, endless bodies and headers, 40 at once, take less than 64 MB more than good answers do."""
    peaks = {}
    # A server that sends nothing but headers is down, and its rows stay pending; a large reply is its row's fault.
    codes = {"good": 0, "gzip-bomb": 1, "endless-body": 1, "endless-headers": 3}
    for case, code in codes.items():
        folder = tmp_path / case
        folder.mkdir()
        job = write_job(
            folder, sim.url, rows=200, model=f"sim/{case}", answer=None,
            limits={"timeout": 20, "attempts": 1, "concurrency": 40, "breaker": 0, "patience": "3s"},
        )  # fmt: skip
        sections = json.loads(job.read_text())
        sections["model"]["max_response_mb"] = 1
        job.write_text(json.dumps(sections))
        peaks[case] = peak_of(job, code)
    assert max(peaks.values()) < peaks["good"] + 64 * MB, peaks


def peak_of(job: Path, code: int) -> int:
    """Run a job as a process to this exit code, and return the most memory that it took, in bytes."""
    environment = {**os.environ, "KEY": "sk-x", "XDG_CACHE_HOME": str(job.parent)}
    process = subprocess.Popen(
        [sys.executable, "-m", "batchrun", str(job), "--quiet"], env=environment, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == code
    return int(usage.ru_maxrss) * 1024


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name", ["hang", "drip of headers", "drip of a body", "endless headers", "endless body", "garbage"]
)
def test_pages_are_given_up_in_time(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The key's state and the prices come in time or not at all, whatever the server does, in a line that says so."""
    monkeypatch.setattr(endpoints, "FETCH_SECONDS", 0.6)
    monkeypatch.setattr(endpoints, "FETCH_BYTES", MB)
    with served(Everywhere(lambda _: SERVERS[name][0])) as server:
        base = server.url("/api/v1")
        endpoint = endpoints.Endpoint("url", base, base, "m", openrouter=True, key=Secret("sk-canary"))
        page = endpoints.fetch(endpoint, "models")
        sent = server.sent
    assert page.problem.startswith(f"GET {base}/models")
    assert not page.data
    assert "drip" not in name or sent < 80, "the whole drip was waited for"


def test_a_page_that_is_compressed_is_unpacked_up_to_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb in the place of the price list is given up once it is too large."""
    monkeypatch.setattr(endpoints, "FETCH_BYTES", MB)
    bomb = gzip.compress(bytes(64 * MB))
    with served(Everywhere((answer(bomb, headers=["content-encoding: gzip"]),))) as server:
        base = server.url("/api/v1")
        page = endpoints.fetch(endpoints.Endpoint("url", base, base, "m", openrouter=True), "models")
    assert page.problem.endswith("the reply has more than 1 MB")


def test_an_unknown_proxy_is_a_problem_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is not http is refused by name."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(UserError, match="NO_PROXY"):
        endpoints.fetch(endpoints.Endpoint("url", "https://x.invalid/v1", "x", "m", openrouter=True), "models")
