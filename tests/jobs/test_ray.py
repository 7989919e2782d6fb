"""Whole jobs and the contract of a Send on a real Ray: actors, nodes and drivers that end at any moment.

One test runs always; `make ray` runs all, with RAY_SUITE=full.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: make ray installs it and runs these")

import ray
import test_senders
from job_running import KEY, fast, run, write_job
from ray.cluster_utils import Cluster
from simulator_server import Running, running
from test_senders import ASK, until
from wire_server import End, Script, Seen, answer, wire

from batchrun.errors import SenderError
from batchrun.job import RayOptions, RunOptions
from batchrun.records import Fault, Reply, Request, Secret, Target
from batchrun.runner.work import REAL_TIME
from batchrun.senders import Events, open_sender
from batchrun.senders import ray as on_ray

full = pytest.mark.skipif(os.environ.get("RAY_SUITE") != "full", reason="runs with make ray")
pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("ray")]

STORE = 80 * 2**20
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


def local(senders: int = 2, **options: Any) -> dict[str, Any]:  # noqa: ANN401  (RayOptions)
    """Return the engine with its own Ray on this machine."""
    return {"ray": {"address": "local", "senders": senders, **options}}


def actors() -> list[int]:
    """Return the process ids of all our actors on this machine."""
    found = subprocess.run(["pgrep", "-f", "^ray::RemoteSender"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def eventually(condition: Callable[[], bool], seconds: float = 150) -> None:
    """Wait for a condition of another process."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


class Driver:
    """A run as a process of its own."""

    def __init__(self, job: Path, *flags: str) -> None:
        environment = {**os.environ, "KEY": KEY, "XDG_CACHE_HOME": str(job.parent)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "batchrun", str(job), "--json", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def ended(self) -> tuple[int, dict[str, Any], str]:
        """Wait for the end; return the exit code, the summary and stderr."""
        out, err = self.process.communicate(timeout=180)
        return self.process.returncode, json.loads(out) if out else {}, err


SAME = {"details": ["status", "error_code", "error_type", "error_message"]}
"""Details that do not show how often a question was asked."""


# One whole job, always


def test_a_job_whose_actor_is_killed(tmp_path: Path) -> None:
    """With one of two actors killed in mid-run the output is the same as a local run's, and little is asked again."""
    with running(latency=0.05) as server:
        (tmp_path / "local").mkdir()
        here = run(write_job(tmp_path / "local", server.url, rows=400, output=SAME), clock=REAL_TIME)
        server.reset()
        server.change(latency=0.05)
        job = write_job(tmp_path, server.url, rows=400, engine=local(), limits={"concurrency": 20}, output=SAME)
        driver = Driver(job)
        eventually(lambda: server.counters.requests > 60)
        victim, *others = actors()
        inherited = Path(f"/proc/{victim}/environ").read_bytes()
        os.kill(victim, signal.SIGKILL)
        code, summary, err = driver.ended()
    assert (code, summary["ok"]) == (0, 400), err
    assert len(others) == 1
    assert KEY.encode() not in inherited
    assert KEY not in err
    assert "a sender on Ray is gone" in err
    assert server.counters.asked_again <= 20
    assert summary["possibly_billed"] <= 20
    assert summary["failed"] == 0
    assert here.output is not None
    assert Path(summary["output"]).read_bytes() == (tmp_path / "local" / "out.parquet").read_bytes()
    eventually(lambda: not actors(), 20)


# The contract of a Send


@pytest.fixture(scope="module")
def connected() -> Iterator[None]:
    """Connect this process to a Ray of its own for several tests."""
    ray.init(
        address="local", num_cpus=2, object_store_memory=STORE, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the contract's tests send through an actor."""
    request.getfixturevalue("connected")
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def opened(to: Target, kind: str) -> Any:  # noqa: ANN401  (open_sender's)
        return open_sender(to, kind, ray=RayOptions(address="local", senders=1))

    monkeypatch.setattr(test_senders, "open_sender", opened)
    return "reqwest"


for _name, _test in list(vars(test_senders).items()):
    if _name.startswith("test_") and _name != "test_unknown_kind":
        globals()[_name] = full(_test)


# Jobs


@full
@pytest.mark.parametrize("order", [("local", "ray"), ("ray", "local")])
def test_a_job_continues_with_the_other_engine(tmp_path: Path, order: tuple[str, str]) -> None:
    """A job begun with one engine continues with the other: nothing is asked twice, the output is the same."""
    engines = {"local": "local", "ray": local(1)}
    with running() as server:
        (tmp_path / "whole").mkdir()
        run(write_job(tmp_path / "whole", server.url, rows=200), clock=REAL_TIME)
        server.reset()
        begun = run(
            write_job(tmp_path, server.url, rows=200, engine=engines[order[0]]), RunOptions(limit=80), clock=REAL_TIME
        )
        done = run(write_job(tmp_path, server.url, rows=200, engine=engines[order[1]]), clock=REAL_TIME)
        assert (begun.summary.ok, done.summary.ok, done.summary.exit_code) == (80, 200, 0)
        assert server.counters.asked_again == 0
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole" / "out.parquet").read_bytes()


@full
def test_no_work_starts_no_ray(tmp_path: Path) -> None:
    """A finished job that runs again on Ray asks nothing and starts nothing."""
    with running() as server:
        run(write_job(tmp_path, server.url), clock=REAL_TIME)
        again = run(write_job(tmp_path, server.url, engine={"ray": {"address": "127.0.0.1:1"}}), clock=REAL_TIME)
        assert (again.summary.exit_code, again.summary.requests) == (0, 0)


@full
def test_an_address_where_no_ray_is(tmp_path: Path) -> None:
    """A cluster that is not there ends the run at once with exit 5, and the same command resumes."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with running() as server:
        job = write_job(tmp_path, server.url, engine={"ray": {"address": f"127.0.0.1:{port}"}})
        code, _, err = Driver(job).ended()
        assert code == 5
        assert "no Ray listens" in err
        assert server.counters.requests == 0


@full
def test_a_global_rate_holds_over_two_actors(tmp_path: Path) -> None:
    """Two actors together never send more in any second than the job allows, as the server counts it."""
    with running(keep_requests=1_000) as server:
        limits = {"requests_per_minute": 1_200, "concurrency": 50}
        done = run(write_job(tmp_path, server.url, rows=160, engine=local(), limits=limits), clock=REAL_TIME)
        assert done.summary.ok == 160
        at = sorted(recorded.at for recorded in server.counters.recorded if recorded.path.endswith("completions"))
        busiest = max(bisect_right(at, start + 1.0) - index for index, start in enumerate(at))
    # 20 a second; batches and a busy machine move a request by some hundredths of a second. Rates of each actor's own
    # would bring 40.
    assert busiest <= 25
    assert at[-1] - at[0] >= 159 / 20 - 0.5


@full
def test_a_stop_code_stops_all_actors(tmp_path: Path) -> None:
    """When the credit ends, no actor starts anything new: only what was in flight is still sent."""
    with running(latency=0.1, schedule=((1.0, {"faults": {"402-insufficient": 1.0}}),)) as server:
        job = write_job(tmp_path, server.url, rows=2_000, engine=local(), limits={"concurrency": 20})
        done = run(job, clock=REAL_TIME)
        assert (done.summary.exit_code, done.summary.failed) == (3, 0)
        assert sum(number for status, number in server.counters.statuses.items() if status == 402) <= 41


@full
def test_ctrl_c_lets_what_is_in_flight_finish(tmp_path: Path) -> None:
    """Ctrl-C, which a terminal sends to all processes of the run, leaves the actors to finish what is paid for."""
    with running(latency=0.5) as server:
        job = write_job(tmp_path, server.url, rows=500, engine=local(), limits={"concurrency": 20})
        driver = Driver(job)
        eventually(lambda: server.counters.requests > 40)
        os.killpg(driver.process.pid, signal.SIGINT)
        code, summary, err = driver.ended()
        assert code == 130, err
        assert summary["possibly_billed"] == 0
        assert summary["ok"] == server.counters.billed


@full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_ray_starts(tmp_path: Path, number: signal.Signals) -> None:
    """A signal while Ray still starts ends the run in order, without a request."""
    with running() as server:
        driver = Driver(write_job(tmp_path, server.url, rows=500, engine=local()))
        eventually(lambda: "gcs_server" in children_of(driver.process.pid))
        os.kill(driver.process.pid, number)
        code, summary, err = driver.ended()
        assert code == 128 + number, err
        assert summary["pending"] >= 480


def children_of(pid: int) -> str:
    command = ["ps", "-ww", "--ppid", str(pid), "-o", "args="]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@full
def test_driver_killed(tmp_path: Path) -> None:
    """After the driver's SIGKILL nothing is paid any more; the next run pays again for what was in flight."""
    with running(latency=0.2) as server:
        job = write_job(tmp_path, server.url, rows=600, engine=local(), limits={"concurrency": 20})
        driver = Driver(job)
        eventually(lambda: server.counters.requests > 100)
        driver.process.kill()
        driver.process.communicate()
        settled(server)
        code, summary, err = Driver(job).ended()
        assert (code, summary["ok"]) == (0, 600), err
        assert server.counters.bought_again <= 60


def settled(server: Running) -> None:
    """Assert that within 20 seconds every actor is gone, and that nothing is asked any more."""
    eventually(lambda: not actors(), 20)
    asked = server.counters.requests
    time.sleep(2)
    assert server.counters.requests == asked


# Clusters of two raylets


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Run two raylets on this machine; the head offers no CPU, as on a real cluster."""
    raylets: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE})
    raylets.add_node(num_cpus=1, object_store_memory=STORE)
    raylets.add_node(num_cpus=1, object_store_memory=STORE)
    raylets.wait_for_nodes()
    yield raylets
    raylets.shutdown()


@full
def test_a_node_is_lost(tmp_path: Path, cluster: Cluster) -> None:
    """A node that vanishes in mid-run costs at most what it had in flight."""
    with running(latency=0.05) as server:
        engine = {"ray": {"address": cluster.address}}
        job = write_job(tmp_path, server.url, rows=1_500, engine=engine, limits={"concurrency": 20})
        driver = Driver(job)
        eventually(lambda: server.counters.requests > 100)
        assert len(actors()) == 2
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        code, summary, err = driver.ended()
    assert (code, summary["ok"]) == (0, 1_500), err
    assert server.counters.asked_again <= 20


@full
def test_driver_of_a_cluster_killed(tmp_path: Path, cluster: Cluster) -> None:
    """The actors of a killed driver end though the cluster lives on."""
    with running(latency=0.2) as server:
        engine = {"ray": {"address": cluster.address}}
        driver = Driver(write_job(tmp_path, server.url, rows=600, engine=engine, limits={"concurrency": 20}))
        eventually(lambda: server.counters.requests > 50)
        driver.process.kill()
        driver.process.communicate()
        settled(server)


@full
def test_all_nodes_are_lost(tmp_path: Path, cluster: Any) -> None:  # noqa: ANN401  (Cluster has no types)
    """Without any sender for a minute the run ends with exit 5; on another Ray the same command continues."""
    with running(latency=0.05) as server:
        engine = {"ray": {"address": cluster.address, "senders": 1}}
        job = write_job(tmp_path, server.url, rows=2_000, engine=engine, limits={"concurrency": 20})
        driver = Driver(job)
        eventually(lambda: server.counters.requests > 100)
        for node in cluster.worker_nodes.copy():
            cluster.remove_node(node, allow_graceful=False)
        code, summary, err = driver.ended()
        assert code == 5, err
        assert "no sender runs on Ray" in summary["reason"]
        assert summary["ok"] + summary["pending"] == 2_000
        assert summary["ok"] > 50
        again = run(write_job(tmp_path, server.url, rows=2_000), clock=REAL_TIME)
    assert again.summary.ok == 2_000
    assert server.counters.asked_again <= 20


# Single faults


def target(url: str, **fields: Any) -> Target:  # noqa: ANN401  (any field of Target)
    return Target(url, **{"key": Secret(KEY), "timeout": 20.0, "connect_timeout": 2.0, **fields})


async def sent(url: str, number: int, warned: list[str], meanwhile: Callable[[], Any]) -> list[Reply]:
    """Send this many requests through one actor while something happens to it."""
    opening = open_sender(
        target(url), ray=RayOptions(address="local", senders=1), events=Events(warned.append, warned.append)
    )
    async with opening as send:
        tasks = [asyncio.ensure_future(send(Request(b"%d" % each))) for each in range(number)]
        await meanwhile()
        return await asyncio.gather(*tasks)


@full
def test_an_actor_that_hangs_for_a_while(connected: None) -> None:  # noqa: ARG001
    """An actor that does not answer for some seconds and then continues costs no second request and no reply."""
    warned: list[str] = []

    def slow(seen: Seen) -> Script:
        return (1.0, answer(seen.body))

    async def scene() -> tuple[list[Reply], list[bytes]]:
        async with wire({"/": slow}) as server:

            async def pause() -> None:
                await until(lambda: len(server.seen) == 30)
                (pid,) = actors()
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(3)
                os.kill(pid, signal.SIGCONT)

            replies = await sent(server.url(), 30, warned, pause)
            return replies, [seen.body for seen in server.seen]

    replies, seen = asyncio.run(scene())
    assert [reply.body for reply in replies] == [b"%d" % each for each in range(30)]
    assert len(seen) == 30
    assert warned == []


@full
def test_an_actor_that_hangs_for_ever(connected: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """An actor that never answers is given up after the timeout of its requests and some time beyond."""
    monkeypatch.setattr(on_ray, "_GRACE", -18.0)  # 2 s in all
    warned: list[str] = []

    async def scene() -> list[Reply]:
        async with wire({"/": (End.HANG,)}) as server:

            async def stop() -> None:
                await until(lambda: len(server.seen) == 3)
                (pid,) = actors()
                os.kill(pid, signal.SIGSTOP)

            return await sent(server.url(), 3, warned, stop)

    replies = asyncio.run(scene())
    assert {(reply.fault, reply.sent) for reply in replies} == {(Fault.RESET, True)}
    assert "it does not answer" in warned[0]
    eventually(lambda: not actors(), 20)


@full
def test_an_actor_killed_is_replaced(connected: None) -> None:  # noqa: ARG001
    """What a killed actor had in flight ends as a reset that may be billed; another actor takes over."""
    warned: list[str] = []
    scripts: dict[str, Script] = {"/": (End.HANG,)}

    async def scene() -> tuple[list[Reply], Reply]:
        async with wire(scripts) as server:
            opening = open_sender(
                target(server.url()), ray=RayOptions(address="local", senders=1), events=Events(warned.append)
            )
            async with opening as send:
                tasks = [asyncio.ensure_future(send(ASK)) for _ in range(30)]
                await until(lambda: len(server.seen) == 30)
                scripts["/"] = (answer(b"{}"),)
                (pid,) = actors()
                os.kill(pid, signal.SIGKILL)
                return await asyncio.gather(*tasks), await send(ASK)

    replies, after = asyncio.run(scene())
    assert {(reply.fault, reply.sent, reply.before_reply) for reply in replies} == {(Fault.RESET, True, True)}
    assert after.status == 200
    assert len(warned) == 1
    assert "30 requests" in warned[0]


@full
def test_slow_requests_delay_no_quick_ones(connected: None) -> None:  # noqa: ARG001
    """A reply comes back when it is there, whatever else was sent in the same call."""

    def by_body(seen: Seen) -> Script:
        return (End.HANG,) if seen.body == b"0" else (answer(seen.body),)

    async def scene() -> None:
        async with wire({"/": by_body}) as server:
            opening = open_sender(target(server.url()), ray=RayOptions(address="local", senders=1))
            async with opening as send:
                slow, *quick = [asyncio.ensure_future(send(Request(b"%d" % each))) for each in range(20)]
                await asyncio.gather(*quick)
                assert not slow.done()
                slow.cancel()

    asyncio.run(scene())


@full
def test_no_room_for_an_actor(connected: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """Actors that find no room are a SenderError that says so."""
    monkeypatch.setattr(on_ray, "_CREATE", 2.0)
    monkeypatch.setattr(on_ray, "_NO_SENDER_AT_START", 5.0)
    options = RayOptions(address="local", senders=1, resources={"no_such_thing": 1})

    async def scene() -> None:
        async with open_sender(target("http://127.0.0.1:9/"), ray=options):
            pass

    with pytest.raises(SenderError, match="room"):
        asyncio.run(scene())


@full
def test_the_key_is_in_no_file_of_ray(tmp_path: Path) -> None:
    """After a run no log of Ray holds the key."""
    began = time.time()
    with running() as server:
        assert run(write_job(tmp_path, server.url, engine=local(1)), clock=fast()).summary.exit_code == 0
    files = [path for path in Path("/tmp/ray").rglob("*") if path.is_file() and path.stat().st_mtime > began]  # noqa: S108
    assert files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
