"""The simulator keeps OpenRouter's contract, fails in every way that it says, and its books are exact."""

import asyncio
import gzip
import json
import re
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from decimal import Decimal
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator_server import Running, running

from openrouter import Config, cases, catalogue, chat, generate
from openrouter.account import Account, Hold
from openrouter.altering import ALTER
from openrouter.app import CHAT
from openrouter.completion import usd
from openrouter.config import parse_faults, parse_latency
from openrouter.wire import WIRE

SCHEMA = {
    "type": "object",
    "properties": {
        "sentiment": {"type": "string", "enum": ["positive", "negative"]},
        "score": {"type": "integer"},
        "reason": {"type": ["string", "null"]},
    },
    "required": ["sentiment", "score", "reason"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
KEY = {"authorization": "Bearer sim-key"}
TESTS = Path(__file__).resolve().parents[1]
BY_KIND = {
    "refusals": [case.name for case in cases.TABLE.values() if case.error is not None],
    "wires": [case.name for case in cases.TABLE.values() if case.wire],
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with running() as sim:
        yield sim


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(headers=KEY, timeout=10, trust_env=False) as opened:
        yield opened


@pytest.fixture
def sim(shared: Running) -> Running:
    shared.reset()
    return shared


def body(model: str = "sim/good", text: str = "Review: fine", **more: Any) -> dict[str, Any]:  # noqa: ANN401  (fields)
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 200, **more}


def ask(
    client: httpx.Client,
    sim: Running,
    model: str = "sim/good",
    text: str = "Review: fine",
    **more: Any,  # noqa: ANN401  (fields)
) -> httpx.Response:
    return client.post(f"{sim.url}/chat/completions", json=body(model, text, **more))


def content(reply: httpx.Response) -> str:
    return str(reply.json()["choices"][0]["message"]["content"])


def spoken(sim: Running, model: str, **more: Any) -> bytes:  # noqa: ANN401  (fields)
    """Return all bytes that the server sends to one request until it closes."""
    payload = json.dumps(body(model, **more)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\ncontent-length: {len(payload)}"
    with socket.create_connection(("127.0.0.1", int(sim.url.split(":")[2].split("/")[0])), timeout=10) as line:
        line.sendall(head.encode() + b"\r\nconnection: close\r\n\r\n" + payload)
        received = b""
        while len(received) < 1 << 20 and (piece := line.recv(65_536)):
            received += piece
    return received


def wait_until_idle(sim: Running) -> None:
    """Ask until the server has noticed that its clients are gone."""
    for _ in range(10_000):
        if httpx.get(f"{sim.url[:-7]}/_sim/counters", trust_env=False).json()["in_flight"] == 0:
            return
    raise AssertionError("requests stay in flight after their clients are gone")


# The table of cases


def test_every_case_is_complete() -> None:
    """Each function that alters or sends belongs to a case, and each case names functions that exist."""
    assert {case.alter for case in cases.TABLE.values() if case.alter} == set(ALTER)
    assert {case.wire for case in cases.TABLE.values() if case.wire} == set(WIRE)
    assert set(cases.names()) == set(cases.TABLE)


@pytest.mark.parametrize("name", BY_KIND["refusals"])
def test_a_refusal_has_its_status_and_costs_nothing(sim: Running, client: httpx.Client, name: str) -> None:
    """A refusal comes with its status, the API's envelope and a generation id, all filled in; nothing is billed."""
    reply = ask(client, sim, f"sim/{name}")
    case = cases.TABLE[name]
    assert reply.status_code == case.status
    assert reply.headers["x-generation-id"].startswith("gen-")
    assert not re.search(r"\$[A-Z]", reply.text + str(reply.headers))
    if reply.headers["content-type"] == "application/json" and case.error:
        error = reply.json()["error"]
        assert isinstance(error, str) or {"code", "message"} <= error.keys()
    assert (sim.counters.billed_pico, sim.counters.endings) == (0, {name: 1})


ALTERED: dict[str, Any] = {
    "good": lambda choice: jsonschema_rs.is_valid(SCHEMA, json.loads(choice["message"]["content"])),
    "200-error-choice": lambda choice: choice["error"]["code"] == 502 and choice["message"]["content"],
    "200-error-finish": lambda choice: choice["finish_reason"] == "error" and "error" not in choice,
    "200-empty": lambda choice: choice["message"]["content"] is None and choice["finish_reason"] is None,
    "200-empty-string": lambda choice: choice["message"]["content"] == "" and choice["finish_reason"] == "stop",
    "200-reasoning": lambda choice: choice["message"]["reasoning"] and choice["finish_reason"] == "length",
    "200-parts": lambda choice: json.loads(choice["message"]["content"][0]["text"]),
    "200-null-usage": lambda choice: json.loads(choice["message"]["content"]),
    "byok": lambda choice: json.loads(choice["message"]["content"]),
    "unknown-fields": lambda choice: choice["finish_reason"] == "simulated_finish",
    "fenced": lambda choice: choice["message"]["content"].startswith("```json\n{"),
    "prose": lambda choice: choice["message"]["content"].startswith("Here is") and "{" in choice["message"]["content"],
    "not-json": lambda choice: "{" not in choice["message"]["content"],
    "cut-json": lambda choice: choice["finish_reason"] == "stop" and choice["message"]["content"][-1] != "}",
    "truncated": lambda choice: choice["finish_reason"] == "length" and choice["message"]["content"][-1] != "}",
    "content-filter": lambda choice: choice["finish_reason"] == "content_filter",
    "refusal": lambda choice: choice["message"]["refusal"] and choice["message"]["content"] is None,
    "hostile-text": lambda choice: "\\u001b" in choice["message"]["content"],
} | dict.fromkeys(
    ("wrong-enum", "wrong-type", "extra-key", "missing-key", "null"),
    lambda choice: not jsonschema_rs.is_valid(SCHEMA, json.loads(choice["message"]["content"])),
)


@pytest.mark.parametrize("name", [case.name for case in cases.TABLE.values() if case.error is None and not case.wire])
def test_an_altered_answer_is_what_its_row_says(sim: Running, client: httpx.Client, name: str) -> None:
    """A generation that goes wrong shows exactly the flaw of its case."""
    reply = ask(client, sim, f"sim/{name}", text="what now? json", response_format=FORMAT).json()
    if name in {"200-no-choices", "200-choices-missing"}:
        assert reply.get("choices", "missing") == ("missing" if name.endswith("missing") else [])
    else:
        assert ALTERED[name](reply["choices"][0])
    free = name.startswith(("200-error", "200-no-", "200-choices")) or name == "200-empty"
    assert sim.counters.billed == (0 if free else 1)


def _answer_of(raw: bytes) -> bytes:
    return raw.partition(b"\r\n\r\n")[2]


SPOKEN: dict[str, Any] = {
    "200-cut-json": lambda raw: _answer_of(raw).startswith(b'{"id"') and not _answer_of(raw).endswith(b"}"),
    "200-empty-body": lambda raw: b"content-length: 0" in raw and _answer_of(raw) == b"",
    "200-whitespace": lambda raw: _answer_of(raw) and not _answer_of(raw).strip(),
    "200-html": lambda raw: b"text/html" in raw and _answer_of(raw).startswith(b"<!DOCTYPE"),
    "leading-whitespace": lambda raw: _answer_of(raw)[:1] == b"\n" and json.loads(_answer_of(raw)),
    "lone-surrogate": lambda raw: b'"\\ud83d' in raw,
    "not-utf8": lambda raw: b"\xff\xfe" in raw,
    "deep-json": lambda raw: _answer_of(raw) == b"[" * 100_000 + b"]" * 100_000,
    "gzip": lambda raw: json.loads(gzip.decompress(_answer_of(raw))),
    "bad-gzip": lambda raw: b"content-encoding: gzip" in raw and json.loads(_answer_of(raw)),
    "gzip-bomb": lambda raw: len(raw) < 1 << 19 and zlib.decompress(_answer_of(raw), 31).lstrip().startswith(b'{"id"'),
    "endless-body": lambda raw: len(raw) >= 1 << 20,
    "endless-headers": lambda raw: len(raw) >= 1 << 20 and b"\r\n\r\n" not in raw,
    "garbage": lambda raw: raw and not raw.startswith(b"HTTP"),
    "wrong-length": lambda raw: int(raw.split(b"content-length: ")[1].split()[0]) < len(_answer_of(raw)),
    "connection-close": lambda raw: b"connection: close" in raw and json.loads(_answer_of(raw)),
    "slow-first-byte": lambda raw: json.loads(_answer_of(raw)),
    "drip": lambda raw: json.loads(_answer_of(raw)),
    "drop": lambda raw: raw == b"",
    "drop-mid-body": lambda raw: int(raw.split(b"content-length: ")[1].split()[0]) > len(_answer_of(raw)) > 0,
}


@pytest.mark.parametrize("name", sorted(set(BY_KIND["wires"]) - {"hang", "reset"}))
@pytest.mark.parametrize("stream", [False, True])
def test_a_wire_case_sends_these_bytes(sim: Running, name: str, stream: bool) -> None:  # noqa: FBT001  (a parameter)
    """What a hostile or broken server sends is really on the wire; what was generated and lost is billed."""
    sim.change(slow=0.01)
    raw = spoken(sim, f"sim/{name}", stream=stream)
    if not stream:
        assert SPOKEN[name](raw)
    wait_until_idle(sim)
    assert sim.counters.billed == cases.TABLE[name].billed
    assert sim.account.running == sim.account.held == 0


def test_a_reset_is_a_reset(sim: Running) -> None:
    """The case reset ends the connection with RST, not with an orderly close, and what it lost is billed."""
    with pytest.raises(ConnectionResetError):
        spoken(sim, "sim/reset")
    assert sim.counters.billed == 1


@pytest.mark.parametrize("name", ["hang", "drip", "slow-first-byte"])
def test_a_client_that_gives_up_is_billed_and_forgotten(sim: Running, client: httpx.Client, name: str) -> None:
    """A slow answer was generated: hanging up neither saves its cost nor leaves the request in flight."""
    sim.change(slow=60)
    with pytest.raises(httpx.ReadTimeout):
        client.post(f"{sim.url}/chat/completions", json=body(f"sim/{name}"), timeout=0.05)
    wait_until_idle(sim)
    assert (sim.counters.billed, sim.account.held) == (1, 0)


# Answers


@given(st.integers(), st.text(min_size=1), st.sampled_from(["sim/good", "openai/gpt-4o", "sim/429:1"]))
def test_an_answer_depends_on_seed_and_messages_alone(seed: int, text: str, model: str) -> None:
    """Model, attempt and max_tokens leave an answer as it is; other messages change it."""
    config = Config(seed=seed % 2**64)
    first = Account(config), json.dumps(body("sim/good", text, max_tokens=500)).encode()
    other = Account(config), json.dumps(body(model, text, max_tokens=600)).encode()
    different = Account(config), json.dumps(body("sim/good", text + "!")).encode()
    texts = [
        json.loads(_last(account, raw))["choices"][0]["message"]["content"]
        for account, raw in (first, other, different)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("Simulated answer")


def _last(account: Account, raw: bytes) -> bytes:
    """Ask the same until it is answered with 200."""
    headers = {b"authorization": b"Bearer k"}
    for _ in range(5):
        reply = asyncio.run(chat.answer(account, headers, raw))
        if reply.status == 200:
            return reply.body
    raise AssertionError(reply)


def schemas(leaves: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.text("abcxyz ", min_size=1, max_size=4)
    objects = st.dictionaries(names, leaves, max_size=4).map(
        lambda found: {"type": "object", "properties": found, "required": list(found), "additionalProperties": False}
    )
    arrays = st.builds(
        lambda items, least: {"type": "array", "items": items, "minItems": least}, leaves, st.integers(0, 3)
    )
    return st.one_of(objects, arrays, st.lists(leaves, min_size=1, max_size=3).map(lambda found: {"anyOf": found}))


numbers = st.integers(-1000, 1000)
LEAVES = st.one_of(
    st.sampled_from([{"type": "string"}, {"type": "boolean"}, {"type": ["integer", "null"]}, {"const": "x"}, {}]),
    st.sampled_from(["date", "date-time", "time", "email", "uri", "uuid", "ipv4"]).map(
        lambda name: {"type": "string", "format": name}
    ),
    st.lists(st.one_of(st.text(), st.integers(), st.none()), min_size=1).map(lambda values: {"enum": values}),
    st.builds(
        lambda kind, low, size, step: {"type": kind, "minimum": low, "maximum": low + size + step, "multipleOf": step},
        st.sampled_from(["integer", "number"]), numbers, st.integers(0, 50), st.integers(1, 7),
    ),
    st.builds(lambda low, size: {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + size + 1},
              numbers, st.integers(0, 50)),
    st.builds(lambda least, size: {"type": "string", "minLength": least, "maxLength": least + size},
              st.integers(0, 200), st.integers(0, 10)),
    st.sampled_from([r"^[A-Z]{3}-\d{4}$", r"^(yes|no)$", r"^\w+@x\.org$", r"^a?b*c+[^x]?$", r"^[^\d\sa-w]+\s.$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
)  # fmt: skip


@given(st.recursive(LEAVES, schemas, max_leaves=8), st.binary(min_size=16, max_size=16))
def test_structured_answers_are_valid(schema: dict[str, Any], key: bytes) -> None:
    """Whatever schema is asked for, the good answer is valid against it."""
    value = generate.valid(schema, generate.Draw(key))
    assert jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(value), value


@given(st.binary(min_size=16, max_size=16))
def test_references_are_followed_and_end(key: bytes) -> None:
    """Definitions, also recursive ones, give finite valid answers."""
    node = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["name", "next"],
    }
    schema = {"$defs": {"node": node}, "allOf": [{"$ref": "#/$defs/node"}, {"properties": {"more": {"enum": [1]}}}]}
    assert jsonschema_rs.is_valid(schema, generate.valid(schema, generate.Draw(key)))


def test_a_long_answer_is_cut_at_max_tokens(sim: Running, client: httpx.Client) -> None:
    """No reply uses more than max_tokens: a longer text is cut and says so."""
    reply = ask(client, sim, max_tokens=3).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 3
    assert len(content(ask(client, sim, max_tokens=3)).encode()) <= 12


def test_the_reply_says_that_it_is_simulated(sim: Running, client: httpx.Client) -> None:
    """A real model's name is accepted, and neither the reply's model nor its provider can be mistaken for it."""
    reply = ask(client, sim, "openai/gpt-4o-mini").json()
    assert (reply["model"], reply["provider"]) == ("sim/openai/gpt-4o-mini", "Simulator")


def test_a_model_without_structured_output_answers_with_text(sim: Running, client: httpx.Client) -> None:
    """Where no endpoint supports response_format it is ignored, or refused with require_parameters."""
    model = "meta-llama/llama-3.2-1b-instruct"
    assert content(ask(client, sim, model, response_format=FORMAT)).startswith("Simulated answer")
    strict = ask(client, sim, model, response_format=FORMAT, provider={"require_parameters": True})
    assert strict.status_code == 404


def test_the_healing_plugin_mends_fences_and_prose(sim: Running, client: httpx.Client) -> None:
    """With response-healing a fenced answer comes as bare JSON."""
    healed = ask(client, sim, "sim/fenced", response_format=FORMAT, plugins=[{"id": "response-healing"}])
    assert jsonschema_rs.is_valid(SCHEMA, json.loads(content(healed)))


@pytest.mark.parametrize("name", ["good", "200-error-choice", "refusal"])
def test_a_stream_brings_the_same_answer(sim: Running, client: httpx.Client, name: str) -> None:
    """The pieces of a stream make up the plain reply; usage comes once, in the last chunk before [DONE]."""
    plain = ask(client, sim, f"sim/{name}").json()
    lines = [
        line for line in ask(client, sim, f"sim/{name}", stream=True).text.split("\n\n") if line.startswith("data: ")
    ]
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    deltas = [choice for chunk in chunks for choice in chunk["choices"]]
    assert lines[-1] == "data: [DONE]"
    assert "".join(choice["delta"]["content"] for choice in deltas) == (plain["choices"][0]["message"]["content"] or "")
    assert deltas[-1]["finish_reason"] == plain["choices"][0]["finish_reason"]
    assert [chunk["usage"] for chunk in chunks if "usage" in chunk] == [plain["usage"]]
    assert ("error" in chunks[-2]) == (name == "200-error-choice")


# Money


@given(st.integers(0, 10**15 - 1))
def test_a_cost_is_exact_as_a_json_number(amount: int) -> None:
    """The number that JSON carries is the exact decimal of the picodollars."""
    assert Decimal(json.dumps(usd(amount))) * 10**12 == amount


def test_the_ledger_is_the_sum_of_the_replies(client: httpx.Client) -> None:
    """What the replies say they cost is what the books hold, to the picodollar, with faults and own keys among them."""
    faults = {"429": 0.1, "200-error-choice": 0.1, "byok": 0.2, "truncated": 0.1, "200-empty": 0.1}
    with running(faults=faults, seed=3) as sim:
        named = Decimal(0)
        for number in range(100):
            model = "perplexity/sonar" if number % 3 else "sim/good"
            reply = ask(client, sim, model, f"row {number}")
            used = json.loads(reply.text, parse_float=Decimal).get("usage") or {}
            named += used.get("cost") or 0
            named += used["cost_details"]["upstream_inference_cost"] if used.get("is_byok") else 0
        assert sim.counters.billed_usd == named > 0
        assert sum(sim.counters.endings.values()) == sim.counters.requests == 100
        assert len(sim.counters.endings) == 6


def test_the_models_list_holds_the_price_that_is_billed(sim: Running, client: httpx.Client) -> None:
    """GET /models needs no key and gives decimal strings per token; a reply costs just that."""
    listed = {model["id"]: model["pricing"] for model in httpx.get(f"{sim.url}/models").json()["data"]}
    reply = json.loads(ask(client, sim, "perplexity/sonar").text, parse_float=Decimal)["usage"]
    price = {name: Decimal(value) for name, value in listed["perplexity/sonar"].items()}
    cost = (
        price["prompt"] * reply["prompt_tokens"] + price["completion"] * reply["completion_tokens"] + price["request"]
    )
    assert cost == reply["cost"]
    assert {f"sim/{name}" for name in cases.names()} <= listed.keys()
    assert listed["openrouter/auto"]["prompt"] == "-1"


def test_prices_can_be_set(client: httpx.Client) -> None:
    """A configured price is listed and billed."""
    with running(prices={"my/model": ("0.5", "0.25")}) as sim:
        usage = ask(client, sim, "my/model").json()["usage"]
        assert usage["cost"] == 0.5 * usage["prompt_tokens"] + 0.25 * usage["completion_tokens"]
        assert "my/model" in {model["id"] for model in client.get(f"{sim.url}/models").json()["data"]}


def test_a_cached_reply_is_free(sim: Running, client: httpx.Client) -> None:
    """The response cache answers the same body once more: a new id, no usage, no bill; another key misses it."""

    def cached(**headers: str) -> httpx.Response:
        return client.post(
            f"{sim.url}/chat/completions", json=body(), headers={"x-openrouter-cache": "true", **headers}
        )

    first, second = cached(), cached()
    other, cleared = cached(authorization="Bearer other"), cached(**{"x-openrouter-cache-clear": "true"})
    marks = [reply.headers["x-openrouter-cache-status"] for reply in (first, second, other, cleared)]
    assert marks == ["MISS", "HIT", "MISS", "MISS"]
    assert second.headers["x-openrouter-cache-source-id"] == first.json()["id"] != second.json()["id"]
    assert content(first) == content(second)
    assert (second.json()["usage"]["total_tokens"], second.json()["usage"]["cost"]) == (0, 0)
    assert sim.counters.billed == 3


def test_credit_runs_out(client: httpx.Client) -> None:
    """A request that the credit can't hold is refused with what it could afford; an empty account says so."""
    with running(credit=Decimal("0.0001")) as sim:
        refused = ask(client, sim, max_tokens=8000)
        assert refused.status_code == 402
        assert re.search(r"up to 8000 tokens, but can only afford 166\.", refused.json()["error"]["message"])
        assert ask(client, sim, max_tokens=100).status_code == 200
        sim.change(credit="0.000001")
        assert "Insufficient credits" in ask(client, sim, max_tokens=1).text
        key = client.get(f"{sim.url}/key").json()["data"]
        assert key["limit_remaining"] < 0 < key["usage"]


# Limits


def test_in_flight_holds_fill_the_credit() -> None:
    """What is in flight counts at its worst case until it ends; then there is room again."""
    account = Account(Config(credit=Decimal(1)))
    hold = Hold(6 * 10**11)
    assert account.admit(hold, 0) is None
    assert account.admit(hold, 0) == "402-in-flight"
    account.release(hold)
    assert account.admit(hold, 0) is None
    assert Account(Config(in_flight_budget=Decimal("0.5"))).admit(hold, 0) == "402-weight"


@given(st.lists(st.floats(0, 300), min_size=1, max_size=60), st.integers(1, 5))
def test_no_minute_holds_more_than_its_requests(times: list[float], limit: int) -> None:
    """Within any window that the limit opens, no more than the limit get through."""
    account = Account(Config(requests_per_minute=limit))
    let_in: dict[float, int] = {}
    for now in sorted(times):
        if account.admit(Hold(0), now) is None:
            let_in[account.minute.ends] = let_in.get(account.minute.ends, 0) + 1
        else:
            assert let_in[account.minute.ends] == limit
            assert now < account.minute.ends
    assert max(let_in.values()) <= limit


def test_the_day_quota_ends_at_midnight() -> None:
    """A used-up day stays used up until 00:00 UTC, and the refusal names that instant in milliseconds."""
    account = Account(Config(day_quota=2))
    noon = 20_000 * 86_400 + 43_200
    answers = [account.admit(Hold(0), noon + at) for at in (0, 1, 2, 43_199, 43_200)]
    assert answers == [None, None, "429-daily", "429-daily", None]
    assert account.values("m", Hold(0), noon)["$DAY_MS"] == str((20_001 * 86_400) * 1000)


def test_limits_refuse_on_the_wire(client: httpx.Client) -> None:
    """Requests beyond the minute's get 429 with the reset in header and metadata; the key's page shows the day's."""
    with running(requests_per_minute=2, day_quota=3) as sim:
        replies = [ask(client, sim, text=str(number)) for number in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        named = replies[2].json()["error"]["metadata"]["headers"]["X-RateLimit-Reset"]
        assert named == replies[2].headers["x-ratelimit-reset"]
        assert int(named) == pytest.approx(sim.account.minute.ends * 1000, abs=1)
        assert client.get(f"{sim.url}/key").json()["data"]["free_model_daily_requests"]["remaining"] == 1
        assert sim.counters.endings == {"good": 2, "limit:429-per-minute": 1}


def test_the_hidden_limit_counts_what_is_generating() -> None:
    """Of many requests at once just the hidden limit get through, and the peak is in the books."""

    async def burst(url: str) -> list[int]:
        async with httpx.AsyncClient(headers=KEY, trust_env=False, timeout=10) as client:
            sent = (client.post(f"{url}/chat/completions", json=body(text=str(number))) for number in range(12))
            return [reply.status_code for reply in await asyncio.gather(*sent)]

    with running(hidden_concurrency=5, latency=0.5) as sim:
        assert sorted(asyncio.run(burst(sim.url))) == [200] * 5 + [429] * 7
        assert 5 < sim.counters.peak <= 12


def test_the_schedule_changes_settings() -> None:
    """Changes come into force at their times after the first request, and a reset starts over."""
    account = Account(Config(schedule=((5, {"hidden_concurrency": 3}), (9, {"faults": {"503": 1}}))))
    seen = []
    for now in (100, 104.9, 105, 110):
        account.advance(now)
        seen.append((account.config.hidden_concurrency, dict(account.config.faults)))
    assert seen == [(None, {}), (None, {}), (3, {}), (3, {"503": 1.0})]
    account.reset()
    account.advance(200)
    assert account.config.hidden_concurrency is None


# Faults


def test_a_flaky_model_recovers_and_a_sticky_one_does_not(sim: Running, client: httpx.Client) -> None:
    """`:2` fails the first two attempts of each distinct question, `:always` all."""
    flaky = [ask(client, sim, "sim/503:2", text).status_code for text in ("a", "a", "b", "a", "b", "b")]
    assert flaky == [503, 503, 503, 200, 503, 200]
    assert [ask(client, sim, "sim/503:always").status_code for _ in range(3)] == [503] * 3
    assert (sim.counters.asked_again, sim.counters.bought_again) == (6, 0)


@given(st.integers(0, 2**32), st.integers(0, 5))
def test_faults_are_a_function_of_seed_body_and_attempt(seed: int, attempt: int) -> None:
    """The same seed meets the same faults in any order; a sticky fault hits all attempts of a question."""
    config = Config(seed=seed, faults={"502": 0.3, "429": 0.2, "503:always": 0.3})
    digests = [number.to_bytes(16) for number in range(30)]
    drawn = {digest: chat._fault(config, digest, attempt).name for digest in digests}
    assert drawn == {digest: chat._fault(config, digest, attempt).name for digest in reversed(digests)}
    sticky = Config(seed=seed, faults={"503:always": 0.5})
    assert all(chat._fault(sticky, each, 0) is chat._fault(sticky, each, attempt) for each in digests)


def test_faults_come_at_their_rates() -> None:
    """Over many questions each fault is met about as often as asked for, and `:1` never twice."""
    config = Config(seed=1, faults={"429": 0.2, "502:1": 0.1})
    digests = [number.to_bytes(16) for number in range(5_000)]
    first = [chat._fault(config, digest, 0).name for digest in digests]
    assert 0.18 < first.count("429") / 5_000 < 0.22
    assert 0.07 < first.count("502") / 5_000 < 0.12
    assert "502" not in {chat._fault(config, digest, 1).name for digest in digests}


def test_fallback_models_are_tried_in_order(sim: Running, client: httpx.Client) -> None:
    """The first model that serves answers and is named and billed; if none does, the last one's error comes."""
    served = ask(client, sim, "sim/503", models=["sim/429", "openai/gpt-4o"])
    assert (served.status_code, served.json()["model"]) == (200, "sim/openai/gpt-4o")
    assert ask(client, sim, "sim/503", models=["sim/429"]).status_code == 429
    assert ask(client, sim, "sim/good", models=["sim/nonsense"]).status_code == 400


# Requests


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": None}, 'specify "prompt" or "messages"'),
    "empty messages": ({"messages": []}, "Input required"),
    "unknown role": ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
    "image for the system": ({"messages": [{"role": "system", "content": [{"type": "image_url"}]}]}, "content"),
    "four models": ({"models": ["a/b"] * 4}, "'models' array must have 3 items or fewer"),
    "unknown provider key": ({"provider": {"fastest": True}}, "Unrecognized key(s) in object: 'fastest'"),
    "unknown case": ({"model": "sim/nonsense"}, "sim/nonsense is not a valid model ID"),
    "no model's name": ({"model": "gpt 4"}, "gpt 4 is not a valid model ID"),
    "hot": ({"temperature": 2.1}, "temperature"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "too many tokens": ({"max_tokens": 127_999}, "maximum context length is 128000 tokens"),
    "half a token": ({"max_tokens": 1.5}, "max_tokens"),
    "five stops": ({"stop": list("abcde")}, "stop"),
    "unknown format": ({"response_format": {"type": "yaml"}}, "response_format"),
    "nameless schema": ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "name"),
    "json unsaid": ({"response_format": {"type": "json_object"}}, "Provider returned error"),
    "two reasonings": ({"reasoning": {"effort": "low", "max_tokens": 5}}, "reasoning"),
    "long session": ({"session_id": "x" * 257}, "session_id"),
    "much metadata": ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_requests_are_refused(sim: Running, client: httpx.Client, name: str) -> None:
    """What the API does not take is a 400 that says why, and costs nothing."""
    changes, words = INVALID[name]
    reply = client.post(f"{sim.url}/chat/completions", json={**body(), **changes})
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]
    assert (sim.counters.billed, sim.counters.endings) == (0, {"invalid": 1})


def test_strict_schemas_must_be_closed(sim: Running, client: httpx.Client) -> None:
    """In strict mode every property must be required and no others allowed, at every depth."""
    inner = {"type": "object", "properties": {"b": {"type": "string"}}, "required": [], "additionalProperties": False}
    outer = {"type": "object", "properties": {"a": inner}, "required": ["a"], "additionalProperties": False}
    wrapped = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": outer}}
    raw = ask(client, sim, response_format=wrapped).json()["error"]["metadata"]["raw"]
    assert "Missing 'b'" in json.loads(raw)["error"]["message"]


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
FIELDS = sorted({*body(), "models", "provider", "response_format", "reasoning", "plugins", "metadata", "stop", "stream",
                 "temperature", "prompt", "service_tier", "reasoning_effort"})  # fmt: skip
wrapped_schemas = json_values.map(
    lambda value: {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"items": value, "$ref": "#"}},
        }
    }
)


@given(st.one_of(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4), wrapped_schemas))
def test_no_request_breaks_the_simulator(changes: dict[str, Any]) -> None:
    """Any JSON in any field brings a reply: 200, 400 or 404."""
    reply = asyncio.run(
        chat.answer(Account(Config()), {b"authorization": b"Bearer k"}, json.dumps(body() | changes).encode())
    )
    assert reply.status in {200, 400, 404}


@given(st.binary())
def test_no_bytes_break_the_simulator(raw: bytes) -> None:
    """A body that is not a JSON object is a 400."""
    assert asyncio.run(chat.answer(Account(Config()), {b"authorization": b"Bearer k"}, raw)).status == 400


def test_keys_are_checked_everywhere(sim: Running, client: httpx.Client) -> None:
    """Without a key, with a wrong one, or with another than the required one each endpoint answers 401."""
    urls = [f"{sim.url}/key", f"{sim.url}/credits", f"{sim.url}/generation?id=x"]
    assert "Missing Authentication header" in httpx.post(f"{sim.url}/chat/completions", json=body()).text
    for headers in ({"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
        assert {httpx.get(url, headers=headers).status_code for url in urls} == {401}
        assert client.post(f"{sim.url}/chat/completions", json=body(), headers=headers).status_code == 401
    sim.change(require_key="only-this")
    assert client.get(urls[0]).status_code == 401
    assert client.get(urls[0], headers={"authorization": "Bearer only-this"}).json()["data"]["limit"] is None
    assert sim.counters.billed == 0


def test_other_endpoints(sim: Running, client: httpx.Client) -> None:
    """A generation can be looked up; credits need a management key; unknown paths are 404; the old key path works."""
    made = ask(client, sim)
    found = client.get(f"{sim.url}/generation", params={"id": made.headers["x-generation-id"]}).json()["data"]
    assert found["total_cost"] == made.json()["usage"]["cost"]
    assert client.get(f"{sim.url}/generation?id=gen-none").status_code == 404
    assert client.get(f"{sim.url}/credits").status_code == 403
    management = {"authorization": "Bearer management"}
    assert client.get(f"{sim.url}/credits", headers=management).json()["data"]["total_usage"] == found["total_cost"]
    assert client.get(f"{sim.url}/auth/key").status_code == 200
    assert client.get(f"{sim.url}/nothing").json()["error"]["code"] == 404


def test_embeddings_are_vectors_of_their_input(sim: Running, client: httpx.Client) -> None:
    """Equal inputs have equal vectors of the asked size, as numbers or base64, and are billed."""
    asked = {"model": "openai/text-embedding-3-small", "input": ["a", "b", "a"], "dimensions": 4}
    reply = client.post(f"{sim.url}/embeddings", json=asked).json()
    vectors = [each["embedding"] for each in reply["data"]]
    assert vectors[0] == vectors[2] != vectors[1]
    assert {len(vector) for vector in vectors} == {4}
    packed = client.post(f"{sim.url}/embeddings", json={**asked, "encoding_format": "base64"}).json()
    assert len(packed["data"][0]["embedding"]) == 24
    assert usd(sim.counters.billed_pico) == pytest.approx(2 * reply["usage"]["cost"])
    assert client.post(f"{sim.url}/embeddings", json={}).status_code == 400


# The books from outside, and the process


def test_the_books_can_be_read_and_reset_over_http(sim: Running, client: httpx.Client) -> None:
    """Other processes read the counters, start over, and change settings; a wrong setting is named."""
    base = sim.url.removesuffix("/api/v1")
    ask(client, sim)
    ask(client, sim)
    books = client.get(f"{base}/_sim/counters").json()
    assert (books["requests"], books["distinct"], books["asked_again"], books["bought_again"]) == (2, 1, 1, 1)
    assert books["billed_pico"] == sim.counters.billed_pico
    changed = {"faults": {"502": 1.0}, "keep_requests": 1, "latency": [0, 0.001], "credit": "5"}
    assert client.post(f"{base}/_sim/config", json=changed).status_code == 200
    assert ask(client, sim).status_code == 502
    recorded = client.get(f"{base}/_sim/counters").json()["recorded"]
    assert [json.loads(each["body"])["model"] for each in recorded] == ["sim/good"]
    assert (recorded[0]["headers"]["authorization"], recorded[0]["ending"]) == ("***", "502")
    mistakes: list[Any] = [{"fautls": {}}, {"faults": {"nope": 1}}, {"latency": "x"}, {"day_quota": "many"}, []]
    for wrong in mistakes:
        assert client.post(f"{base}/_sim/config", json=wrong).status_code == 400
    client.post(f"{base}/_sim/reset")
    assert client.get(f"{base}/_sim/counters").json()["requests"] == 0
    assert ask(client, sim).status_code == 200


def test_the_process_names_its_address_and_ends_with_its_parent() -> None:
    """`python -m openrouter` prints one line of JSON once it accepts, and ends with its stdin."""
    command = [
        sys.executable,
        "-m",
        "openrouter",
        "--until-stdin-closes",
        "--faults",
        "429=1",
        "--seed",
        "7",
    ]
    with subprocess.Popen(
        command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        ready = json.loads(process.stdout.readline())
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/api/v1", ready["url"])
        reply = httpx.post(f"{ready['url']}/chat/completions", json=body(), headers=KEY, trust_env=False)
        assert reply.status_code == 429
        process.stdin.close()
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()
        assert process.stdout.read() + process.stderr.read() == b""


def test_a_wrong_option_is_one_clear_line() -> None:
    """A fault that does not exist ends the command with exit 2 and its name."""
    command = [sys.executable, "-m", "openrouter", "--faults", "42=0.1"]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert 'no case "42"' in done.stderr


def test_options_are_read() -> None:
    """Latencies and rates are read from text; what can't be is refused."""
    assert parse_latency("0.5") == 0.5
    assert parse_latency("0.2..0.8") == (0.2, 0.8)
    assert parse_faults(["429=0.02", "503:2=.01"]) == {"429": 0.02, "503:2": 0.01}
    for wrong in (["429"], ["nope=0.1"], ["503:x=0.1"], ["429=a"]):
        with pytest.raises(ValueError, match=r"fault|case"):
            parse_faults(wrong)
    for settings in ({"faults": {"429": 0.6, "502": 0.6}}, {"latency": (1.0, 0.5)}, {"faults": {"429": -1}}):
        with pytest.raises(ValueError, match=r"rate|latency"):
            Config(**settings)


def test_waits_are_named_in_every_form(client: httpx.Client) -> None:
    """The configured wait stands in seconds, milliseconds and as a date, where the case says so."""
    with running(retry_after=2.5) as sim:
        assert ask(client, sim, "sim/503").headers["retry-after"] == "2.5"
        assert ask(client, sim, "sim/429-retry-after-ms").headers["retry-after-ms"] == "2500"
        assert ask(client, sim, "sim/429-availability").json()["error"]["availability"]["retry_after"] == 2.5
        dated = ask(client, sim, "sim/429-retry-after-date").headers
        assert (
            0
            <= (parsedate_to_datetime(dated["retry-after"]) - parsedate_to_datetime(dated["date"])).total_seconds()
            <= 4
        )


def test_the_catalogue_gives_every_listed_model(sim: Running, client: httpx.Client) -> None:
    """Each listed model that is not a fault answers."""
    listed = [slug for slug in catalogue.LISTED if not slug.startswith("sim/")]
    assert {ask(client, sim, slug).status_code for slug in listed} == {200}
