"""The contract of a Send, held by every sender against servers that behave, break and attack."""

import asyncio
import gzip
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trustme
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_server import End, Script, Seen, Step, Wire, answer, chunked, wire

from batchrun.errors import UserError
from batchrun.net import PROXY_LOGIN, proxy_for, read_certificates
from batchrun.records import Fault, Reply, Request, Secret, Send, Target
from batchrun.senders import KINDS, open_sender

T = TypeVar("T")
KEY = "sk-or-v1-canary-0123456789abcdef"
ASK = Request(b'{"model":"m","messages":[]}')
OK = answer(b'{"ok":true}')
MB = 2**20


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def target(url: str, **fields: Any) -> Target:  # noqa: ANN401  (any field of Target)
    return replace(Target(url, key=Secret(KEY), timeout=5.0, connect_timeout=2.0, proxy=proxy_for(url)), **fields)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return str(request.param)


async def once(kind: str, to: Target) -> Reply:
    async with open_sender(to, kind) as send:
        return await send(ASK)


async def play(kind: str, *script: Step, **fields: object) -> tuple[Reply, Wire]:
    """Send one request to a server that plays the script."""
    async with wire({"/": script}) as server:
        return await once(kind, target(server.url(), **fields)), server


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (most of what is awaited sets no event)
            await asyncio.sleep(0.005)


# What goes out and what comes back


def test_request_on_the_wire(kind: str) -> None:
    """A request is one POST of the body as it is, as JSON, with the job's headers and the key."""

    async def scene() -> Seen:
        async with wire({"/v1/chat?x=1": (OK,)}) as server:
            await once(kind, target(server.url("/v1/chat?x=1"), headers={"X-Title": "reviews"}))
            (seen,) = server.seen
            return seen

    seen = run(scene())
    assert (seen.method, seen.body) == ("POST", ASK.body)
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.headers["x-title"] == "reviews"
    assert seen.headers["content-length"] == str(len(ASK.body))


def test_no_key_no_authorization(kind: str) -> None:
    """Without a key nothing is sent in its place."""

    async def scene() -> Seen:
        async with wire({"/": (OK,)}) as server:
            await once(kind, target(server.url(), key=None))
            return server.seen[0]

    assert "authorization" not in run(scene()).headers


@pytest.mark.parametrize("status", ["200 OK", "302 Found", "400 Bad", "401 No", "429 Slow", "503 Busy", "529 Odd"])
def test_every_status_is_a_reply(kind: str, status: str) -> None:
    """Any HTTP status is a reply with its headers in lower case and its body, and a redirect is not followed."""
    given_headers = ["Location: /elsewhere", "Retry-After: 5", "X-Odd: \xff", "X-Generation-Id: \xff"]

    async def scene() -> tuple[Reply, Wire]:
        return await play(kind, answer(b"text", status=status, headers=given_headers))

    reply, server = run(scene())
    assert (reply.fault, reply.sent, reply.status, reply.body) == (None, True, int(status[:3]), b"text")
    assert (reply.headers["retry-after"], reply.headers["location"]) == ("5", "/elsewhere")
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "reply_bytes",
    [
        b"".join([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", *chunked([b"ab", b"c"])]),
        answer(gzip.compress(b"abc"), headers=["content-encoding: gzip"]),
        b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"abc"),
    ],
    ids=["chunked", "gzip", "continue"],
)
def test_every_framing_gives_the_body(kind: str, reply_bytes: bytes) -> None:
    """Chunked, compressed and announced replies give the same body."""
    reply, _ = run(play(kind, reply_bytes))
    assert (reply.status, reply.body, reply.fault) == (200, b"abc", None)


def test_body_until_close(kind: str) -> None:
    """A body that ends with the connection is taken."""
    reply, _ = run(play(kind, b"HTTP/1.1 200 OK\r\n\r\nabc", End.CLOSE))
    assert (reply.body, reply.fault) == (b"abc", None)


# Connections


def test_keep_alive() -> None:
    """Requests one after the other use one connection of reqwest's."""

    async def scene() -> int:
        async with wire({"/": (OK,)}) as server, open_sender(target(server.url())) as send:
            for _ in range(20):
                assert (await send(ASK)).status == 200
            return server.connections

    assert run(scene()) == 1


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
def test_connection_closed_while_idle(kind: str, end: End) -> None:
    """A server that drops idle connections costs no request."""

    async def scene() -> list[Reply]:
        async with wire({"/": (OK, end)}) as server, open_sender(target(server.url()), kind) as send:
            replies = []
            for _ in range(10):
                replies.append(await send(ASK))
                await until(lambda: server.open == 0)
                await asyncio.sleep(0.01)  # the close travels
            return replies

    assert [reply.status for reply in run(scene())] == [200] * 10


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
def test_broken_on_a_used_connection(kind: str, end: End) -> None:
    """A used connection that breaks after the next request was read is a reset that may be billed, sent once."""
    scripts: dict[str, Script | Callable[[Seen], Script]] = {"/": (OK,)}

    async def scene() -> tuple[Reply, Reply, Wire]:
        async with wire(scripts) as server, open_sender(target(server.url()), kind) as send:
            first = await send(ASK)
            scripts["/"] = (end,)
            return first, await send(ASK), server

    first, second, server = run(scene())
    assert (first.status, second.fault, second.sent) == (200, Fault.RESET, True)
    assert len(server.seen) == 2


def test_concurrency_is_the_callers(kind: str) -> None:
    """As many requests are in flight as were sent, and cancelling them leaves the sender usable."""

    async def scene() -> Reply:
        scripts: dict[str, Script] = {"/": (End.HANG,)}
        async with wire(scripts) as server, open_sender(target(server.url(), timeout=20.0), kind) as send:
            tasks = [asyncio.ensure_future(send(ASK)) for _ in range(300)]
            await until(lambda: len(server.seen) == 300)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            scripts["/"] = (OK,)
            return await send(ASK)

    assert run(scene()).status == 200


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
def test_connection_closed_at_once(kind: str, end: End) -> None:
    """A server that accepts and leaves, before or while the request is sent, is a broken connection, at once."""

    async def scene() -> list[Reply]:
        async with wire({}, greeting=(end,)) as server, open_sender(target(server.url(), timeout=60.0), kind) as send:
            return [await send(ASK) for _ in range(20)]

    for reply in run(scene()):
        assert reply.fault in {Fault.CONNECT, Fault.RESET}
        assert reply.seconds < 30


# Time


@pytest.mark.parametrize(
    "script",
    [
        (End.HANG,),
        (b"HTTP/1.1 200 OK\r\n", 7.0, b"\r\n"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n", *(b"x", 0.1) * 70),
        tuple((b"HTTP/1.1 102 Processing\r\n\r\n", 0.1) * 70)[:140],
    ],
    ids=["silent", "slow headers", "drip", "endless 102"],
)
def test_total_timeout(kind: str, script: Script) -> None:
    """One attempt ends after its timeout, wherever the server is slow, as sent."""
    reply, server = run(play(kind, *script, timeout=0.5, connect_timeout=0.4))
    assert (reply.fault, reply.sent, reply.status) == (Fault.TIMEOUT, True, 0)
    assert reply.seconds < 4
    assert server.sent < 60 * 26


def test_connect_timeout(kind: str) -> None:
    """A server that accepts and then never ends the TLS handshake is not a connection, and nothing was sent."""

    async def scene() -> Reply:
        async with wire({}, greeting=(End.HANG,)) as server:
            https = server.url().replace("http:", "https:")
            return await once(kind, target(https, timeout=20.0, connect_timeout=0.3))

    reply = run(scene())
    assert (reply.fault, reply.sent) == (Fault.CONNECT, False)
    assert reply.seconds < 10


def test_connect_timeout_above_the_total(kind: str) -> None:
    """A connect timeout that is not below the total is lowered, so that it still shows that nothing was sent."""

    async def scene() -> Reply:
        async with wire({}, greeting=(End.HANG,)) as server:
            https = server.url().replace("http:", "https:")
            return await once(kind, target(https, timeout=2.0, connect_timeout=10.0))

    reply = run(scene())
    assert (reply.fault, reply.sent) == (Fault.CONNECT, False)


# Hostile servers

HEAD = b"HTTP/1.1 200 OK\r\n"
BROKEN: dict[str, Script] = {
    "reset": (End.RESET,),
    "close": (End.CLOSE,),
    "reset in the body": (HEAD + b"content-length: 10\r\n\r\nabc", End.RESET),
    "cut head": (HEAD + b"content-le", End.CLOSE),
    "cut body": (HEAD + b"content-length: 10\r\n\r\nabc", End.CLOSE),
    "cut chunk": (HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n", End.CLOSE),
    "garbage": (b"\x00\x01garbage\r\n\r\n", End.HANG),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", End.CLOSE),
    "http/0.9": (b"hello", End.CLOSE),
    "bad status": (answer(b"x", status="xyz"),),
    "bad header": (HEAD + b"x y z\r\ncontent-length: 1\r\n\r\nx",),
    "two lengths": (HEAD + b"content-length: 3\r\ncontent-length: 5\r\n\r\nabcde",),
    "bad length": (HEAD + b"content-length: many\r\n\r\nabc",),
    "negative length": (HEAD + b"content-length: -1\r\n\r\nabc",),
    "bad chunk": (HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\nabc", End.HANG),
    "huge chunk size": (HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\nabc", End.HANG),
    "no gzip": (answer(b"not gzip", headers=["content-encoding: gzip"]),),
    "cut gzip": (answer(gzip.compress(b"x" * 9999)[:-9], headers=["content-encoding: gzip"]),),
    "endless headers": (HEAD, repeat(b"x-a: " + b"b" * 1000 + b"\r\n")),
    "endless header": (HEAD + b"x-a: ", repeat(b"b" * 1000)),
    "endless status": (repeat(b"HTTP/1.1 200 " + b"O" * 1000),),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_replies(kind: str, case: str) -> None:
    """A reply that is cut, false or endless ends as one fault that may be billed, soon, without the key in it."""
    reply, server = run(play(kind, *BROKEN[case]))
    assert reply.fault in {Fault.PROTOCOL, Fault.RESET}
    assert (reply.sent, reply.status, reply.body) == (True, 0, b"")
    assert reply.detail
    assert KEY not in repr(reply)
    assert server.url() not in reply.detail
    assert server.sent < 16 * MB


def test_fault_names(kind: str) -> None:
    """A broken connection and false bytes have names of their own."""
    assert run(play(kind, End.RESET))[0].fault is Fault.RESET
    assert run(play(kind, End.CLOSE))[0].fault is Fault.RESET
    assert run(play(kind, b"garbage\r\n\r\n", End.HANG))[0].fault is Fault.PROTOCOL


@settings(max_examples=60, derandomize=True)
@given(data=st.data())
def _holds(data: st.DataObject, runner: asyncio.Runner, scripts: dict[str, Script], send: Send) -> None:
    start = data.draw(
        st.sampled_from([b"", HEAD, HEAD + b"content-length: 4\r\n", HEAD + b"content-encoding: gzip\r\n\r\n"])
    )
    scripts["/"] = (start + data.draw(st.binary(max_size=200)), data.draw(st.sampled_from([End.CLOSE, End.RESET])))
    reply = runner.run(_one(send))
    assert reply.sent
    assert (reply.fault is None) == (reply.status != 0)


async def _one(send: Send) -> Reply:
    return await send(ASK)


def test_any_bytes_are_one_reply(kind: str) -> None:
    """Whatever bytes a server answers with, the attempt ends as a reply or a fault and never raises."""
    scripts: dict[str, Script] = {}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        serving = wire(scripts)
        server = runner.run(serving.__aenter__())
        sending = open_sender(target(server.url(), timeout=2.0), kind)
        send = runner.run(sending.__aenter__())
        _holds(runner=runner, scripts=scripts, send=send)
        runner.run(sending.__aexit__(None, None, None))
        runner.run(serving.__aexit__(None, None, None))


# The size of a reply


BOMB = gzip.compress(bytes(64 * MB))


@pytest.mark.parametrize(
    "script",
    [
        (HEAD + b"content-length: 67108864\r\n\r\n", repeat(bytes(65536))),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n", chunked(repeat(bytes(65536)))),
        (HEAD + b"\r\n", repeat(bytes(65536))),
        (answer(BOMB, headers=["content-encoding: gzip"]),),
        (HEAD + b"content-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n", b"".join(chunked([BOMB]))),
    ],
    ids=["length", "chunks", "endless", "gzip bomb", "gzip bomb in chunks"],
)
def test_reply_above_the_limit(kind: str, script: Script) -> None:
    """A reply is dropped once it is larger than the limit after decompression, in flat memory."""
    before = reset_peak()
    reply, server = run(play(kind, *script, max_response_bytes=MB))
    assert (reply.fault, reply.sent, reply.body) == (Fault.TOO_LARGE, True, b"")
    assert server.sent < 32 * MB
    assert peak() - before < 24 * MB


@pytest.mark.parametrize("compress", [False, True])
def test_reply_at_the_limit(kind: str, *, compress: bool) -> None:
    """A reply of exactly the limit is taken, one byte more is not."""
    headers = ["content-encoding: gzip"] if compress else []
    for size, fault in ((1000, None), (1001, Fault.TOO_LARGE)):
        body = gzip.compress(bytes(size)) if compress else bytes(size)
        reply, _ = run(play(kind, answer(body, headers=headers), max_response_bytes=1000))
        assert reply.fault is fault
        assert len(reply.body) == (0 if fault else size)


@pytest.mark.parametrize("proxied", [False, True])
def test_what_stands_behind_a_reply_is_not_a_reply(
    kind: str, monkeypatch: pytest.MonkeyPatch, *, proxied: bool
) -> None:
    """A server that sends two replies to one request can't answer the next question with the second."""
    two = answer(b'{"reply":1}') + answer(b'{"reply":"smuggled"}')

    async def scene() -> list[bytes]:
        target_url = "http://api.test/" if proxied else "/"
        async with wire({target_url: lambda seen: (two if seen.connection == 1 else OK,)}) as server:
            if proxied:
                monkeypatch.setenv("HTTP_PROXY", server.url(""))
            async with open_sender(target(target_url if proxied else server.url()), kind) as send:
                return [(await send(ASK)).body for _ in range(3)]

    assert run(scene()) == [b'{"reply":1}', b'{"ok":true}', b'{"ok":true}']


def test_flood_after_the_reply(kind: str) -> None:
    """A server that continues sending after its reply fills no memory, and the next request is asked again."""

    async def scene() -> tuple[Reply, Wire]:
        scripts: dict[str, Script] = {"/": (OK, repeat(bytes(65536)))}
        async with wire(scripts) as server, open_sender(target(server.url()), kind) as send:
            assert (await send(ASK)).status == 200
            for _ in range(2000):
                await asyncio.sleep(0)  # the flood has its turns
            scripts["/"] = (OK,)
            return await send(ASK), server

    before = reset_peak()
    reply, server = run(scene())
    assert (reply.status, reply.body) == (200, b'{"ok":true}')
    assert server.sent < 32 * MB
    assert peak() - before < 24 * MB


def reset_peak() -> int:
    """Set the peak of this process's memory to what it holds now, in bytes."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of memory can be reset on Linux alone")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak()


def peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


# Before anything is sent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


def server_tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def test_refused_and_unknown_hosts(kind: str) -> None:
    """A refused connection and an unknown host are distinguished, and nothing was sent."""
    refused = run(once(kind, target(f"http://127.0.0.1:{free_port()}/")))
    assert (refused.fault, refused.sent) == (Fault.CONNECT, False)
    unknown = run(once(kind, target("http://no-such-host.invalid/")))
    assert (unknown.fault, unknown.sent) == (Fault.DNS, False)


@pytest.mark.parametrize("greeting", [(End.RESET,), (End.CLOSE,)])
def test_broken_handshake(kind: str, greeting: Script) -> None:
    """A TLS handshake that breaks off is not a connection."""

    async def scene() -> Reply:
        async with wire({}, greeting=greeting) as server:
            return await once(kind, target(server.url().replace("http:", "https:")))

    reply = run(scene())
    assert (reply.fault, reply.sent) == (Fault.CONNECT, False)


def test_private_authority(kind: str, tmp_path: Path) -> None:
    """A server of a private authority is asked once `ca_file` names it, wherever it stands in the file."""
    ours = trustme.CA()
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(trustme.CA().cert_pem.bytes() + ours.cert_pem.bytes())

    async def scene(name: str, file: Path | None) -> tuple[Reply, Wire]:
        async with wire({"/": (OK,)}, tls=server_tls(ours, name)) as server:
            certificates = read_certificates(file) if file else ()
            return await once(kind, target(server.url(), certificates=certificates)), server

    trusted, _ = run(scene("127.0.0.1", bundle))
    assert (trusted.status, trusted.fault) == (200, None)
    for name, file in (("127.0.0.1", None), ("other.example", bundle)):
        refused, server = run(scene(name, file))
        assert (refused.fault, refused.sent, server.seen) == (Fault.TLS, False, [])


def test_tls_with_a_plain_server(kind: str) -> None:
    """What answers a TLS handshake with other bytes can't be trusted, and nothing was sent."""

    async def scene() -> Reply:
        async with wire({}, greeting=(b"HTTP/1.1 400 Bad Request\r\n\r\n", End.HANG)) as server:
            return await once(kind, target(server.url().replace("http:", "https:")))

    reply = run(scene())
    assert (reply.fault, reply.sent) == (Fault.TLS, False)
    assert reply.detail == "the server does not speak TLS at this address"


def test_a_server_with_the_certificate_of_an_authority() -> None:
    """What plain `openssl req -x509` makes is refused with what to do, since no `ca_file` helps."""
    ours = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with ours.private_key_pem.tempfile() as key, ours.cert_pem.tempfile() as certificate:
        context.load_cert_chain(certificate, key)

    async def scene() -> Reply:
        async with wire({"/": (OK,)}, tls=context) as server:
            return await once("reqwest", target(server.url(), certificates=(ours.cert_pem.bytes(),)))

    reply = run(scene())
    assert (reply.fault, reply.sent) == (Fault.TLS, False)
    assert reply.detail.endswith("make one with openssl's -addext basicConstraints=critical,CA:FALSE")


# Proxies


def test_proxy_of_the_environment(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY carries the requests with its own login, NO_PROXY excludes hosts and networks."""

    async def scene(url: str, no_proxy: str = "") -> tuple[Reply, Wire]:
        async with wire({"http://api.invalid/v1": (OK,), "http://10.255.0.1:9/": (OK,)}) as server:
            monkeypatch.setenv("HTTP_PROXY", server.url("").replace("//", "//user:p%40ss@"))
            monkeypatch.setenv("NO_PROXY", no_proxy)
            return await once(kind, target(url, timeout=1.0, connect_timeout=0.2)), server

    reply, server = run(scene("http://api.invalid/v1"))
    assert (reply.status, server.seen[0].headers["proxy-authorization"]) == (200, "Basic dXNlcjpwQHNz")
    assert run(scene("http://10.255.0.1:9/"))[0].status == 200
    assert run(scene("http://api.invalid/v1", "other.example,.invalid"))[1].seen == []
    assert run(scene("http://10.255.0.1:9/", "10.0.0.0/8"))[1].seen == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_for_loopback(kind: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on this machine is never asked through a proxy."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")

    async def scene() -> Reply:
        async with wire({"/": (OK,)}) as server:
            return await once(kind, target(server.url().replace("127.0.0.1", host)))

    assert run(scene()).status == 200


@pytest.mark.parametrize(
    "script",
    [
        (answer(b"no", status="407 Login"),),
        (answer(b"no", status="502 Bad"),),
        (End.RESET,),
        (End.HANG,),
        (b"garbage\r\n\r\n", End.HANG),
        (b"HTTP/1.1 200 OK\r\n\r\n", End.RESET),
    ],
    ids=["407", "502", "reset", "hang", "garbage", "reset in the tunnel"],
)
def test_proxy_that_fails(kind: str, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that opens no tunnel is not a connection: nothing was sent, and its password is in no message."""

    async def scene() -> tuple[Reply, Wire]:
        async with wire({"api.invalid:443": script}) as server:
            monkeypatch.setenv("HTTPS_PROXY", server.url("").replace("//", "//user:p4sswordcanary@"))
            return await once(kind, target("https://api.invalid/", timeout=2.0, connect_timeout=0.5)), server

    reply, server = run(scene())
    assert (reply.fault, reply.sent) == (Fault.CONNECT, False)
    assert server.seen[0].method == "CONNECT"
    assert "authorization" not in server.seen[0].headers
    assert "p4sswordcanary" not in repr(reply)


def test_a_proxy_that_wants_a_login_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words say what to write where, in place of "tunnel error"."""

    async def scene() -> Reply:
        async with wire({"api.invalid:443": (answer(b"no", status="407 Proxy Authentication Required"),)}) as server:
            monkeypatch.setenv("HTTPS_PROXY", server.url(""))
            return await once(kind, target("https://api.invalid/", timeout=2.0, connect_timeout=0.5))

    assert run(scene()).detail == PROXY_LOGIN


# No leaks, no secrets


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("faults", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_faults_leak_nothing(kind: str, faults: int) -> None:
    """After hundreds of faults and cancelled requests, 100 at once succeed, and nothing stays open."""
    kinds: list[Script] = [(End.RESET,), (End.CLOSE,), BROKEN["garbage"], BROKEN["cut body"], (b"H", End.HANG)]
    scripts: dict[str, Script | Callable[[Seen], Script]] = {"/": lambda seen: kinds[int(seen.body) % len(kinds)]}

    async def batch(send: Send, first: int) -> None:
        tasks = [asyncio.ensure_future(send(Request(b"%d" % number))) for number in range(first, first + 250)]
        await until(lambda: sum(task.done() for task in tasks) >= 200)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(not isinstance(result, Reply) or result.fault for result in results)

    async def scene() -> None:
        async with wire(scripts) as server:
            before = descriptors()
            async with open_sender(target(server.url(), timeout=2.0, connect_timeout=1.8), kind) as send:
                for first in range(0, faults, 250):
                    await batch(send, first)
                scripts["/"] = (OK,)
                replies = await asyncio.gather(*(send(ASK) for _ in range(100)))
                assert [reply.status for reply in replies] == [200] * 100
            await until(lambda: server.open == 0 and descriptors() <= before + 5)

    run(scene())


def test_unknown_kind() -> None:
    """A sender that does not exist is named with those that do."""
    with pytest.raises(UserError, match="reqwest, httpx"):
        run(once("curl", target("http://127.0.0.1:9/")))


# Servers that close without notice, processes that stop, what replies are made of


ENDS: dict[str, Script] = {
    "silently": (OK, End.CLOSE),
    "late": (OK, 0.002, End.CLOSE),
    "by reset": (OK, End.RESET),
    "with notice": (answer(b'{"ok":true}', headers=["connection: close"]), End.CLOSE),
}


@pytest.mark.parametrize("ends", ENDS)
def test_server_that_closes_after_each_reply(kind: str, ends: str) -> None:
    """Requests lost on a used connection are few, reported as such, and answered on a new connection."""
    in_flight = 20

    async def ask(send: Send) -> int:
        lost = 0
        for _ in range(8):
            reply = await send(ASK)
            if reply.before_reply:
                lost += 1
                reply = await send(Request(ASK.body, new_connection=True))
            assert (reply.status, reply.fault, reply.detail) == (200, None, "")
        return lost

    async def scene() -> int:
        async with wire({"/": ENDS[ends]}) as server, open_sender(target(server.url()), kind) as send:
            return sum(await asyncio.gather(*(ask(send) for _ in range(in_flight))))

    assert run(scene()) <= 2 * in_flight


def test_cut_body_is_a_started_reply(kind: str) -> None:
    """A reply that breaks after its head came was read by the server: it is not `before_reply`."""
    begun, _ = run(play(kind, *BROKEN["cut body"]))
    silent, _ = run(play(kind, End.CLOSE))
    assert (begun.before_reply, silent.before_reply) == (False, True)


STOPPED = """
import asyncio, sys
from batchrun.records import Request, Target
from batchrun.senders import open_sender

async def main():
    async with open_sender(Target(sys.argv[1], timeout=2.0, connect_timeout=1.9), sys.argv[2]) as send:
        replies = await asyncio.gather(*(send(Request(b"{}")) for _ in range(50)))
        print(sum(reply.status == 200 for reply in replies))

asyncio.run(main())
"""


def test_replies_that_waited_for_a_stopped_process(kind: str) -> None:
    """A process that is stopped for longer than the timeout reads the replies that came meanwhile."""

    async def scene() -> bytes:
        async with wire({"/": (1.2, OK)}) as server:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", STOPPED, server.url(), kind, stdout=asyncio.subprocess.PIPE
            )
            await until(lambda: len(server.seen) == 50)
            child.send_signal(signal.SIGSTOP)
            await asyncio.sleep(3)
            child.send_signal(signal.SIGCONT)
            return (await child.communicate())[0]

    assert run(scene()) == b"50\n"


def test_200_bombs_at_once_are_flat(kind: str) -> None:
    """200 gzip bombs of 64 MB at once take no more memory than their limits allow."""
    bomb = answer(BOMB, headers=["content-encoding: gzip"])

    async def scene() -> list[Reply]:
        async with wire({"/": (bomb,)}) as server:
            to = target(server.url(), max_response_bytes=2**17, timeout=20.0)
            async with open_sender(to, kind) as send:
                return list(await asyncio.gather(*(send(ASK) for _ in range(200))))

    before = reset_peak()
    assert {reply.fault for reply in run(scene())} == {Fault.TOO_LARGE}
    assert peak() - before < 200 * MB  # unpacked they are 12.8 GB


@pytest.mark.parametrize("charset", ["iso-8859-1", '"UTF-16"', "windows-1252", "utf-8", "no-such", "punycode"])
def test_charset_of_the_reply(kind: str, charset: str) -> None:
    """A body in another character set comes back in UTF-8; one that can't be read comes as it is."""
    codec = charset.strip('"') if charset not in {"no-such", "punycode"} else "utf-8"
    body = '{"text":"caf\u00e9"}'
    headers = [f"content-type: application/json; charset={charset}"]
    reply, _ = run(play(kind, answer(body.encode(codec), headers=headers)))
    assert reply.body.decode() == body
