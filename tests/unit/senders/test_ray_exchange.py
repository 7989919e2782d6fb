"""The exchanges between driver and actor, in one process: what is lost is neither sent twice nor forgotten."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_server import End, Script, Seen, answer, wire

from batchrun import senders
from batchrun.errors import UserError
from batchrun.job import Environment, Loaded, RayOptions, RunOptions, examine, merged
from batchrun.records import Fault, Reply, Secret, Target
from batchrun.senders.ray_actor import BATCH, Delivery, RemoteSender

T = TypeVar("T")
KEY = "sk-or-v1-canary-0123456789abcdef"


def delivery(url: str, **fields: Any) -> Delivery:  # noqa: ANN401  (any field of Delivery)
    target = Target(url, timeout=5.0, connect_timeout=2.0)
    plain = Delivery("reqwest", target, {"authorization": KEY}, window=0.0, poll=5.0, lease=60.0)
    return replace(plain, **fields)


def echo(seen: Seen) -> Script:
    return (answer(seen.body),)


def asks(first: int, number: int) -> list[tuple[int, bytes]]:
    return [(each, b"%d" % each) for each in range(first, first + number)]


async def taken(actor: RemoteSender, number: int, first: int = 1) -> dict[int, bytes]:
    """Take until so many replies are there, each exchange under the next number."""
    replies: dict[int, bytes] = {}
    while len(replies) < number:
        replies |= {each: reply.body for each, reply in await actor.take(first)}
        first += 1
    return replies


def test_a_repeated_number_is_the_same_exchange() -> None:
    """A batch that comes twice is sent once, and a batch of replies that was lost is given again, until the next."""

    async def scene() -> None:
        async with wire({"/": echo}) as server:
            actor = RemoteSender()
            await actor.open(delivery(server.url()))
            for _ in range(3):
                await actor.put(1, asks(0, 3))
            await asyncio.sleep(0)
            first, again = await asyncio.gather(actor.take(1), actor.take(1))
            late = await actor.take(1)
            assert first == again == late
            rest = await taken(actor, 3 - len(first), 2) if len(first) < 3 else {}
            assert {each for each, _ in first} | set(rest) == {0, 1, 2}
            assert await actor.take(1) == [] or not rest
            assert len(server.seen) == 3
            await actor.close()

    asyncio.run(scene())


def test_replies_come_as_they_finish() -> None:
    """A slow request holds up no other of its batch, and no batch of replies is larger than allowed."""

    def script(seen: Seen) -> Script:
        return (End.HANG,) if seen.body == b"7" else (answer(seen.body),)

    async def scene() -> None:
        async with wire({"/": script}) as server:
            actor = RemoteSender()
            await actor.open(delivery(server.url()))
            await actor.put(1, asks(0, BATCH))
            await actor.put(2, asks(BATCH, 50))
            sizes: list[int] = []
            replies: dict[int, Reply] = {}
            number = 0
            while len(replies) < BATCH + 49:
                number += 1
                batch = await actor.take(number)
                sizes.append(len(batch))
                replies |= dict(batch)
            assert 7 not in replies
            assert max(sizes) <= BATCH
            await actor.close()

    asyncio.run(scene())


def test_an_actor_without_an_owner_ends() -> None:
    """An actor that nobody calls any more ends by itself, and not before."""

    async def scene() -> None:
        ended = asyncio.Event()
        async with wire({"/": (End.HANG,)}) as server:
            actor = RemoteSender(ended.set)
            await actor.open(delivery(server.url(), lease=0.3, poll=0.1))
            for number in range(1, 7):
                assert await actor.take(number) == []
            assert not ended.is_set()
            async with asyncio.timeout(10):
                await ended.wait()
            await actor.close()

    asyncio.run(scene())


def test_no_key_in_what_may_be_printed() -> None:
    """What is handed to an actor shows no key in a log, and a key on its own can't be handed over."""
    assert KEY not in repr(delivery("http://127.0.0.1:9/"))
    with pytest.raises(TypeError):
        Secret(KEY).__reduce__()


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ray is missing, engine: ray is a mistake that names the extra; local needs nothing."""
    monkeypatch.setattr(senders, "find_spec", lambda _: None)
    senders.check_installed(None)
    with pytest.raises(UserError, match=r"pip install 'batchrun\[ray\]'"):
        senders.check_installed(RayOptions())


# The driver's side, where Ray is installed

needs_ray = pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed: make ray runs these")


class Method:
    """A method of an actor in this process, as Ray gives it: calls fail before or after they are done."""

    def __init__(self, method: Callable[..., Awaitable[Any]], faults: list[str]) -> None:
        self._method, self._faults = method, faults

    def remote(self, *arguments: Any) -> Coroutine[Any, Any, Any]:  # noqa: ANN401  (any method)
        return self._call(*arguments)

    async def _call(self, *arguments: Any) -> Any:  # noqa: ANN401  (any method)
        from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError  # noqa: PLC0415  (may miss)

        fault = self._faults.pop() if self._faults else ""
        if fault == "died":
            raise ActorDiedError
        if fault == "lost call":
            raise ActorUnavailableError("not reached", None)
        given = await self._method(*arguments)
        if fault == "lost answer":
            raise ObjectLostError("00", None, "")
        return given


class Actor:
    """An actor in this process."""

    def __init__(self, sender: RemoteSender, faults: list[str]) -> None:
        self.open = Method(sender.open, [])
        self.put = Method(sender.put, faults)
        self.take = Method(sender.take, faults)


def timing(**fields: float) -> Any:  # noqa: ANN401  (a Timing, whose module needs Ray)
    from batchrun.senders.ray_remote import Timing  # noqa: PLC0415

    return Timing(**{"window": 0.0, "grace": 0.5, "poll": 0.05, "call": 5.0, **fields})


async def drive(
    actor: Actor,
    told: Delivery,
    times: Any,  # noqa: ANN401  (a Timing)
    number: int,
) -> tuple[list[Reply | None], str | None]:
    """Hand requests to an actor; give their replies, and why the actor was lost if it was."""
    from batchrun.senders.ray_remote import Ask, GoneError, Remote  # noqa: PLC0415

    loop = asyncio.get_running_loop()
    remote = Remote(actor, times, lambda: None)
    await remote.open(told)
    handed = [Ask(each, b"%d" % each, loop.create_future()) for each in range(number)]
    serving = asyncio.create_task(remote.serve())
    for ask in handed:
        remote.hand(ask)
        if ask.number % 3 == 0:
            await asyncio.sleep(0)
    replies = asyncio.gather(*(ask.reply for ask in handed))
    both: list[asyncio.Future[Any]] = [serving, replies]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED, timeout=30)
    problem = None
    if serving.done():
        problem = str(serving.exception())
        assert isinstance(serving.exception(), GoneError)
        remote.settle(Reply(fault=Fault.RESET, sent=True))
    serving.cancel()
    replies.cancel()
    await asyncio.gather(serving, replies, return_exceptions=True)
    return [ask.reply.result() if ask.reply.done() and not ask.reply.cancelled() else None for ask in handed], problem


@needs_ray
@settings(max_examples=40, derandomize=True)
@given(faults=st.lists(st.sampled_from(["", "", "lost call", "lost answer"]), max_size=8), number=st.integers(1, 12))
def test_a_lost_exchange_costs_no_second_send(faults: list[str], number: int) -> None:
    """Whatever calls and answers are lost, each request is sent once and gets its own reply."""

    async def scene() -> None:
        async with wire({"/": echo}) as server:
            sender = RemoteSender()
            told = delivery(server.url(), poll=0.05)
            replies, problem = await drive(Actor(sender, list(faults)), told, timing(grace=5.0), number)
            assert problem is None
            assert [reply and reply.body for reply in replies] == [b"%d" % each for each in range(number)]
            assert sorted(seen.body for seen in server.seen) == sorted(b"%d" % each for each in range(number))
            await sender.close()

    asyncio.run(scene())


@needs_ray
@settings(max_examples=20, derandomize=True)
@given(before=st.lists(st.sampled_from(["", "lost call"]), max_size=4), number=st.integers(1, 12))
def test_a_dead_actor_leaves_requests_in_doubt(before: list[str], number: int) -> None:
    """When an actor dies, what it was handed either has its reply or ends as a reset that may be billed."""

    async def scene() -> None:
        async with wire({"/": echo}) as server:
            sender = RemoteSender()
            replies, _ = await drive(
                Actor(sender, ["died", *before]), delivery(server.url(), poll=0.05), timing(), number
            )
            assert all(reply is None or reply.status == 200 or (reply.fault, reply.sent) == (Fault.RESET, True)
                       for reply in replies)  # fmt: skip
            assert sum(seen.body == b"0" for seen in server.seen) <= 1
            await sender.close()

    asyncio.run(scene())


@needs_ray
def test_an_unreachable_actor_is_given_up_after_the_grace() -> None:
    """An actor that can't be reached is lost when the grace is over."""

    async def scene() -> str | None:
        async with wire({"/": (End.HANG,)}) as server:
            sender = RemoteSender()
            _, problem = await drive(Actor(sender, ["lost call"] * 500), delivery(server.url()), timing(grace=0.2), 2)
            await sender.close()
            return problem

    assert "not reachable" in (asyncio.run(scene()) or "")


@needs_ray
def test_the_watchdog_ends_a_request_without_a_reply() -> None:
    """A request that its actor forgot ends as a timeout that may be billed, and others go on."""

    class Forgetful(RemoteSender):
        async def put(self, number: int, asks: list[tuple[int, bytes]]) -> None:
            await super().put(number, [ask for ask in asks if ask[0] != 1])

    async def scene() -> None:
        async with wire({"/": echo}) as server:
            sender = Forgetful()
            told = delivery(server.url(), poll=0.05, target=Target(server.url(), timeout=0.2, connect_timeout=0.1))
            replies, _ = await drive(Actor(sender, []), told, timing(grace=0.1, call=0.3), 3)
            assert [reply and (reply.fault, reply.sent) for reply in replies] == [
                (None, True),
                (Fault.TIMEOUT, True),
                (None, True),
            ]
            await sender.close()

    asyncio.run(scene())


def test_local_runs_import_no_ray() -> None:
    """Whatever a run from this process imports, Ray is not among it."""
    code = "import sys, batchrun.runner.run, batchrun.senders.reqwest; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The job file and the flag


def examined(engine: object, endpoint: str = "openrouter") -> Loaded:
    """Read a job with this engine."""
    job = {
        "input": {"path": "rows.csv"},
        "prompt": {"user": "x"},
        "model": {"endpoint": endpoint, "name": "m"},
        "output": {"path": "out.csv"},
        "engine": engine,
    }
    return examine(json.dumps(job), Path("/jobs/job.yaml"), Environment({}))


@pytest.mark.parametrize(
    ("engine", "endpoint", "says"),
    [
        ({"ray": {"address": "ray://head:10001"}}, "openrouter", "HOST:PORT"),
        ({"ray": {"address": "locale"}}, "openrouter", 'did you mean "local"'),
        ({"ray": {"address": "10.0.0.5:6379"}}, "simulator", "only reachable from this machine"),
        ({"ray": {"address": "10.0.0.5:6379"}}, "openrouter", None),
        ({"ray": {"address": "[fe80::1]:6379"}}, "openrouter", None),
        ({"ray": {"address": "local"}}, "simulator", None),
        ("ray", "simulator", None),
    ],
)
def test_addresses(engine: object, endpoint: str, says: str | None) -> None:
    """An address that Ray can't have, or from which the server can't be reached, is told before anything starts."""
    found = [mistake.message for mistake in examined(engine, endpoint).mistakes]
    assert len(found) == (says is not None)
    assert says is None or says in found[0]


@pytest.mark.parametrize(
    ("engine", "flag", "then"),
    [
        ("local", None, None),
        ("local", "ray", RayOptions()),
        ("ray", "local", None),
        ({"ray": {"senders": 3}}, "ray", RayOptions(senders=3)),
        ({"ray": {"senders": 3}}, None, RayOptions(senders=3)),
        ({"ray": {"senders": 3}}, "local", None),
    ],
)
def test_the_flag_chooses_the_engine(
    engine: object, flag: Literal["local", "ray"] | None, then: RayOptions | None
) -> None:
    """--engine wins over the file, whose options for Ray stay."""
    assert merged(examined(engine).job, RunOptions(engine=flag)).ray == then
