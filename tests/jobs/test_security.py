"""Keys and files over whole jobs: no secret is anywhere it need not be, and what batchrun creates is its owner's alone.

Two canaries are watched: the key, and a header whose value comes from a variable.
"""

import io
import json
import logging
import os
import re
import sqlite3
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import click
import forking
import orjson
import polars as pl
import pytest
from job_running import fast, write_job
from openrouter import cases
from packaging.requirements import Requirement
from simulator_server import Running, running
from wire_server import Script, Seen, answer
from wire_thread import Everywhere, served

import batchrun.table.write
from batchrun.__main__ import _guarded
from batchrun.api import Mask
from batchrun.cli.main import COMMANDS, Commands, cli
from batchrun.errors import BatchrunError
from batchrun.job import Answer, Environment, OutputCsv, RunOptions, load
from batchrun.prepare.invocation import Invocation
from batchrun.prepare.loading import LARGEST, load_file
from batchrun.prompt.answers import AnswerForm
from batchrun.records import Reply, Secret, Summary, Target
from batchrun.runner.closing import closing_lines
from batchrun.runner.log import logged
from batchrun.runner.progress import Goal, Plain
from batchrun.runner.run import run_job
from batchrun.runner.work import Tally
from batchrun.senders import KINDS

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-or-v1-canary/4711+key"
HEADER = "header-canary-0815"
CANARIES = (KEY, json.dumps(KEY)[1:-1].replace("/", "\\/"), HEADER)
MINE = "X-Tenant"
LOCAL_URL = re.compile(r"http://127\.0\.0\.1:\d+")


@pytest.fixture(scope="module")
def sim() -> Iterator[Running]:
    with running(slow=0.05, retry_after=0.01) as server:
        yield server


class Watching(Plain):
    """Prints as a run does into a file would, and looks at what lies there during the run."""

    def __init__(self, folder: Path, looks: Iterable[Any] = ()) -> None:
        super().__init__(io.StringIO())
        self._folder = folder
        self._looks = looks
        self.reader: sqlite3.Connection | None = None

    @property
    def text(self) -> str:
        """All that was printed."""
        assert isinstance(self._stream, io.StringIO)
        return self._stream.getvalue()

    def start(self, goal: Goal) -> None:
        """Hold the write-ahead log open, so that it still lies there after the run."""
        super().start(goal)
        path = next(self._folder.glob("**/*.sqlite"))
        self.reader = sqlite3.connect(path)
        self.reader.execute("BEGIN")
        self.reader.execute("SELECT count(*) FROM runs").fetchone()
        for look in self._looks:
            look()

    def update(self, tally: Tally, gate: float = 0.0) -> None:
        """Look again; the last time is when all outcomes are in, just before the writer closes."""
        super().update(tally, gate)
        for look in self._looks:
            look()


@dataclass(frozen=True)
class Left:
    """What one run left in words: everything that was printed, logged or returned; `wal`: bytes of write-ahead log."""

    summary: Summary | None
    wal: int = 0
    words: dict[str, str] = field(default_factory=dict)


def go(job: Path, *, sender: str = "reqwest", endpoint: str | None = None, looks: Iterable[Any] = ()) -> Left:
    """Run a job as the command line does, with the canaries in its environment."""
    environment = Environment(
        {
            "test": {"KEY": KEY, "HEADER": HEADER, "OPENROUTER_API_KEY": KEY, "BATCHRUN_HTTP": sender}
            | {"XDG_CACHE_HOME": str(job.parent / "cache")}
        }
    )
    ui = Watching(job.parent, looks)
    options = RunOptions(endpoint=endpoint)
    summary, problem = None, ""
    try:
        with logged(job.parent / "run.log"):
            loaded = load(job.read_text(), job, environment)
            summary = run_job(Invocation(loaded, environment, options), ui, fast())
    except BatchrunError as error:
        problem = f"{error!r} {error.__cause__!r}"
    assert summary or problem
    wal = 0
    words = {"stderr": ui.text, "error": problem, "environment": repr(environment)}
    if summary:
        with closing(ui.reader or sqlite3.connect(":memory:")):
            words["--json"] = orjson.dumps(summary, default=str).decode()
            words["closing"] = "\n".join(closing_lines(summary, Path.cwd()))
            words["found"] = "\n".join(found_in(job.parent))
            wal = sum(path.stat().st_size for path in job.parent.glob(".batchrun/*-wal"))
    return Left(summary, wal, words)


def found_in(folder: Path) -> list[str]:
    """Return each file that holds a canary, and open tables whose bytes are packed."""
    found = [str(path) for path in folder.rglob("*") if path.is_file() and holds(path.read_bytes())]
    tables = (path for path in folder.rglob("*.parquet") if holds(pl.read_parquet(path).write_ndjson().encode()))
    return [f"{name} holds {CANARIES[0]}" for name in [*found, *map(str, tables)]]


def holds(data: bytes) -> bool:
    return any(canary.encode() in data for canary in CANARIES)


def leaks(left: Left, more: str = "") -> list[str]:
    """Name the places where a canary is."""
    places = {**left.words, "more": more}
    return [place for place, words in places.items() if holds(words.encode())]


def secret_job(folder: Path, url: str, **sections: Any) -> Path:  # noqa: ANN401  (JSON)
    """Write a job that sends both canaries, keeps every detail, and gives up soon."""
    model = {"headers": {MINE: "${HEADER}"}, "max_response_mb": 1, **sections.pop("more", {})}
    limits = {"timeout": 0.6, "attempts": 1, "grace": 1000, "concurrency": 10}
    output = {"path": "out.jsonl"}
    job = write_job(folder, url, rows=2, **{"limits": limits, "output": output, **sections})
    sections = json.loads(job.read_text())
    sections["model"] |= model
    job.write_text(json.dumps(sections))
    return job


# The key


@pytest.mark.parametrize(("case", "kind"), cases.with_senders(KINDS))
def test_no_fault_brings_a_secret_into_anything_that_is_left(
    sim: Running,
    tmp_path: Path,
    case: str,
    kind: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """After each fault of the simulator both canaries are in no file (the write-ahead log included), line or log."""
    caplog.set_level(logging.DEBUG)
    left = go(secret_job(tmp_path, sim.url, model=f"sim/{case}"), sender=kind)
    assert left.summary is not None
    assert left.wal > 0
    assert leaks(left, caplog.text + "".join(capfd.readouterr())) == []


ECHO = f'Incorrect key "{KEY}" of {HEADER}, {KEY.replace("/", "%2F").replace("+", "%2B")}'
ECHOES: dict[str, Any] = {
    "error": {"error": {"message": ECHO, "code": 400}},
    "packed error": {
        "error": {
            "message": "Provider returned error",
            "code": 400,
            "metadata": {"provider_name": ECHO, "raw": json.dumps({"error": {"message": ECHO}})},
        }
    },
    "refusal": {
        "id": KEY,
        "choices": [{"message": {"refusal": KEY, "content": None}, "finish_reason": "stop"}],
    },
    "answer": {"id": KEY, "model": KEY, "choices": [{"message": {"content": KEY}, "finish_reason": "stop"}]},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slashes", [False, True])
@pytest.mark.parametrize(("name", "status"), [*((name, 200) for name in ECHOES), ("error", 400), ("packed error", 401)])
def test_no_echo_brings_a_secret_into_anything_that_is_left(
    tmp_path: Path,
    kind: str,
    name: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    *,
    slashes: bool,
) -> None:
    """What quotes key and header in an error, in JSON within JSON, a header or an answer is masked, in all commands."""
    body = json.dumps(ECHOES[name])
    body = body.replace("/", "\\/") if slashes else body
    reply = answer(body.encode(), status=f"{status} X", headers=[f"x-generation-id: {KEY}", "content-type: text/json"])
    with served(Everywhere((reply,))) as server:
        left = go(secret_job(tmp_path, server.url("/v1"), answer=None), sender=kind)
    assert any(KEY in seen.headers["authorization"] for seen in server.seen)
    assert all(seen.headers[MINE.lower()] == HEADER for seen in server.seen)
    assert leaks(left) == []
    assert "***" in (next(tmp_path.glob("out*.jsonl"))).read_text()
    for variable, value in {"KEY": KEY, "HEADER": HEADER, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(variable, value)
    # Signals belong to the test runner.
    monkeypatch.setattr("batchrun.cli.termination.raise_on_termination", lambda: None)
    words = [["report"], ["export"], ["status"], ["status", "--json"], ["preview", "--row", "1"], ["check"]]
    for command, *flags in words:
        try:
            code = _guarded([command, str(tmp_path / "job.yaml"), *flags])
        except SystemExit as ended:
            code = int(ended.code or 0)
        assert code == (2 if command == "check" else 0)  # the server is gone by now
    assert (tmp_path / "out.report.html").stat().st_size > 0
    assert found_in(tmp_path) == []
    assert not holds("".join(capfd.readouterr()).encode())


def test_words_that_are_not_secret_are_left_alone() -> None:
    """Placeholders for a key and public headers never change an answer."""
    mask = Mask(Secret("EMPTY"), {"X-Title": "wonderful", "X-A": "short"})
    reply = Reply(200, body=b'{"error":null,"a":"EMPTY wonderful short"}')
    assert mask(reply) is reply


def test_a_target_shows_no_secret() -> None:
    """Neither key nor headers are in the repr of what a sender is given."""
    assert not holds(repr(Target("https://x/", {MINE: HEADER}, Secret(KEY))).encode())


@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
@pytest.mark.parametrize("kind", KINDS)
def test_redirects_are_not_followed(tmp_path: Path, kind: str, status: str) -> None:
    """A server that points elsewhere, for questions, prices and the key's state, does not send us there."""
    with served(Everywhere((answer(b"{}"),))) as other:
        there = answer(b"", status=f"{status} Elsewhere", headers=[f"location: {other.url('/v1/chat/completions')}"])
        with served(Everywhere((there,))) as server:
            left = go(secret_job(tmp_path, server.url("/api/v1")), sender=kind)
    assert {seen.target for seen in server.seen} >= {"/api/v1/key", "/api/v1/chat/completions"}
    assert other.connections == 0
    assert left.summary is not None
    assert left.summary.exit_code == 3
    assert leaks(left) == []


def test_another_endpoint_gets_neither_key_nor_headers(tmp_path: Path) -> None:
    """`--endpoint` names a server for which the file's key and headers, all that may be secret, were not meant."""
    with served(Everywhere((answer(b"{}"),))) as named, served(Everywhere((answer(b"{}"),))) as other:
        go(secret_job(tmp_path, named.url("/v1")), endpoint=other.url("/v1"))
    assert named.connections == 0
    assert other.seen
    assert not any(holds(repr(seen).encode()) for seen in other.seen)


def test_a_key_in_dotenv_goes_nowhere_by_itself(tmp_path: Path) -> None:
    """OPENROUTER_API_KEY, in the environment or in .env, is not sent to a URL whose job names no key."""
    with served(Everywhere((answer(b"{}"),))) as server:
        job = secret_job(
            tmp_path, server.url("/v1"), model={"endpoint": server.url("/v1"), "name": "m"}, more={"headers": {}}
        )
        sections = json.loads(job.read_text())
        del sections["model"]["api_key_env"]
        job.write_text(json.dumps(sections))
        (tmp_path / ".env").write_text(f"OPENROUTER_API_KEY={KEY}\n")
        invocation = load_file(job, {"XDG_CACHE_HOME": str(tmp_path)}, tmp_path, RunOptions())
        assert invocation.environment["OPENROUTER_API_KEY"] == KEY
        run_job(invocation, Plain(io.StringIO()), fast())
    assert server.seen
    assert not any("authorization" in seen.headers or holds(repr(seen).encode()) for seen in server.seen)


def test_fallbacks_go_to_the_endpoint_that_the_job_names(tmp_path: Path) -> None:
    """Fallback models are names in the body: no request goes anywhere else for them."""
    seen_models = []

    def note(seen: Seen) -> Script:
        if seen.body:
            seen_models.append(json.loads(seen.body)["models"])
        return (answer(b"{}"),)

    with served(Everywhere(note)) as server:
        job = secret_job(tmp_path, "openrouter", more={"fallbacks": ["https://other.invalid/v1", "b"]})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("batchrun.api.endpoints.OPENROUTER_URL", server.url("/api/v1"))
            go(job)
    assert seen_models
    assert all(models[-2:] == ["https://other.invalid/v1", "b"] for models in seen_models)


def test_a_schema_fetches_nothing() -> None:
    """A reference to another server in answer.schema is a mistake in words, not a request."""
    with served(Everywhere((answer(b'{"type":"string"}'),))) as server:
        schema = {"type": "object", "properties": {"a": {"$ref": server.url("/schema.json")}}}
        found = AnswerForm.compile(Answer(schema=schema))
    assert isinstance(found, list)
    assert server.connections == 0


# Processes


def children() -> list[Path]:
    """Return the processes that this one has started, by their folders in /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == os.getpid():
            found.append(folder)
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_no_child_knows_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that batchrun starts has the key neither among its arguments nor in its environment."""
    monkeypatch.setenv("KEY", KEY)
    monkeypatch.setenv("OPENROUTER_API_KEY", KEY)
    monkeypatch.setenv("HEADER", HEADER)
    seen: list[bytes] = []

    def look() -> None:
        seen.extend((folder / name).read_bytes() for folder in children() for name in ("cmdline", "environ"))

    left = go(secret_job(tmp_path, "simulator"), looks=[look])
    assert left.summary is not None
    assert left.summary.ok == 2
    assert any(b"batchrun.servers.simulator" in text for text in seen)
    assert not any(holds(text) for text in seen)


def test_no_argument_takes_a_key(tmp_path: Path) -> None:
    """Arguments stand in the list of processes: none is for a key, and one put there by mistake is not repeated."""
    group = cli
    assert isinstance(group, Commands)
    context = click.Context(group)
    for name in COMMANDS:
        found = group.get_command(context, name)
        assert found is not None
        options = [option for param in found.params for option in param.opts]
        assert not [
            option for option in options if re.search("key|token|secret|password", option.replace("api-key-env", ""))
        ]
    job = secret_job(tmp_path, "simulator")
    environment = {**os.environ, "HEADER": HEADER}
    ended = forking.run(str(job), "--api-key-env", "sk-or-v1-4711", cwd=tmp_path, env=environment)
    assert ended.returncode == 2
    assert "never the key itself" in ended.stderr
    assert "4711" not in ended.stderr + ended.stdout


@pytest.mark.parametrize("flags", [(), ("--debug",), ("--json",)])
def test_a_refused_key_is_in_no_line_of_the_command(sim: Running, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """The real process, refused by the server, prints neither canary on stdout or stderr, also with --debug."""
    job = secret_job(tmp_path, sim.url)
    environment = {**os.environ, "KEY": KEY + "wrong", "HEADER": HEADER, "XDG_CACHE_HOME": str(tmp_path)}
    ended = forking.run(str(job), "--log", str(tmp_path / "log"), *flags, cwd=tmp_path, env=environment)
    assert ended.returncode == 3
    assert not holds((ended.stdout + ended.stderr).encode())
    assert found_in(tmp_path) == []


# Files


def modes(folder: Path) -> dict[str, int]:
    """Return the permissions of all that lies in a folder."""
    return {str(path.relative_to(folder)): path.lstat().st_mode & 0o777 for path in folder.rglob("*")}


def test_what_batchrun_creates_for_itself_is_its_owners_alone(
    tmp_path: Path, sim: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a umask of 0 every file of ours is 0600 and every folder 0700 during the run; outputs follow it."""
    work, temporary = tmp_path / "work", tmp_path / "tmp"
    work.mkdir()
    temporary.mkdir()
    job = secret_job(work, sim.url, input={"path": "rows.csv", "csv": {"encoding": "latin-1"}})
    (work / "rows.csv").write_bytes(b"text\nf\xfcr\n")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr("batchrun.api.prices.is_loopback", lambda _url: False)
    during: dict[str, int] = {}
    real = batchrun.table.write._write

    def look() -> None:
        during.update(modes(tmp_path))

    def write(frames: Any, file: IO[bytes], suffix: str, csv: OutputCsv) -> int:  # noqa: ANN401  (private)
        look()
        return real(frames, file, suffix, csv)

    monkeypatch.setattr("batchrun.table.write._write", write)
    mask = os.umask(0)
    try:
        left = go(job, looks=[look])
    finally:
        os.umask(mask)
    assert left.summary is not None
    assert left.summary.exit_code == 0
    during |= modes(tmp_path)
    given = {"work", "tmp", "work/job.yaml", "work/rows.csv", "work/rows.parquet"}
    users = {"work/out.jsonl", "work/run.log", "work/cache"}
    ours = {name: mode for name, mode in during.items() if name not in given | users}
    assert {Path(name).suffix for name in ours} >= {
        ".sqlite",
        ".sqlite-wal",
        ".sqlite-shm",
        ".lock",
        ".reserve",
        ".json",
    }
    assert any(name.startswith("work/.out.jsonl.") for name in ours)  # the output before it has its name
    assert set(ours.values()) == {0o600, 0o700}
    assert all(mode == (0o700 if (tmp_path / name).is_dir() else mode) for name, mode in ours.items())
    assert during["work/out.jsonl"] == 0o666


def test_links_that_somebody_planted_are_not_followed(
    tmp_path: Path, sim: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link in the place of an output, a partial output or the price list is replaced; what it points to stays."""
    monkeypatch.setattr("batchrun.api.prices.is_loopback", lambda _url: False)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    port = sim.url.removeprefix("http://").removesuffix("/api/v1").replace(":", "-")
    cache = tmp_path / "cache" / "batchrun"
    cache.mkdir(parents=True)
    for link in ("out.jsonl", "out.partial.jsonl", f"cache/batchrun/models-{port}.json"):
        (tmp_path / link).symlink_to(victim)
    for model in ("sim/402-credits", "sim/good"):
        go(secret_job(tmp_path, sim.url, model=model))
    assert victim.read_text() == "precious"
    assert (tmp_path / "out.jsonl").read_text().count("ok") == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]


def test_a_job_file_without_end_is_not_read(tmp_path: Path) -> None:
    """A file of 100 MB and a device without end are refused after a few megabytes, in a line that says why."""
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(100 * 2**20)
    for path in (large, Path("/dev/zero")):
        with pytest.raises(BatchrunError, match=rf"too large for a job file \({LARGEST >> 20} MB\)"):
            load_file(path, {}, tmp_path, RunOptions())


# What comes from others


def test_every_dependency_has_bounds_and_hashes() -> None:
    """Each requirement is bounded below and above (certificates: below), and locked within them, with its hashes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = project["dependencies"] + [text for extra in project["optional-dependencies"].values() for text in extra]
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock, re.MULTILINE))
    for requirement in map(Requirement, texts):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name == "batchrun-llm":
            continue
        kinds = {bound.operator for bound in requirement.specifier}
        assert kinds >= ({">="} if name == "certifi" else {">=", "<"}), requirement
        assert requirement.specifier.contains(locked[name]), requirement
    assert len(re.findall(r"^[a-z0-9-]+==.*(?: \\\n    --hash=sha256:[0-9a-f]{64})+", lock, re.MULTILINE)) == len(
        locked
    )


def test_every_dependency_has_its_licence() -> None:
    """The page of licences lists all that is locked (`make licences`), and no licence that spreads to its users."""
    page = (ROOT / "docs" / "explanation" / "licences.md").read_text(encoding="utf-8")
    listed = {
        name: (version, licence)
        for name, version, licence in re.findall(r"^\| (\S+) \| (\S+) \| ([^|]+) \|", page, re.MULTILINE)
    }
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock, re.MULTILINE))
    assert {name: version for name, (version, _) in listed.items() if name != "package"} == locked
    assert not [name for name, (_, licence) in listed.items() if re.search("(?<!L)GPL", licence)]


# The page about all this


def test_the_page_names_tests_that_exist() -> None:
    """Each test that docs/explanation/security.md names as its witness is there, and no threat is without one."""
    page = (ROOT / "docs" / "explanation" / "security.md").read_text(encoding="utf-8")
    table = page.partition("## Threats, defences, tests")[2]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 30
    for threat, _defence, witnesses in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", witnesses)
        assert named, f"nothing shows the defence against: {threat}"
        for path, name in named:
            source = (ROOT / path).read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{path} has no {name}"
