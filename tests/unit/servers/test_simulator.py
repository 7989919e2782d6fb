"""The package's simulator: good answers with exact costs, faults at their rates, limits, and its process."""

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import httpx
import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.servers.simulator import parse_config, values

COMMAND = [sys.executable, "-m", "batchrun.servers.simulator"]
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


@contextmanager
def serving(*options: str) -> Iterator[httpx.Client]:
    """Serve a simulator in a process of its own; give a client of its API."""
    command = [*COMMAND, *options, "--until-stdin-closes"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        url = json.loads(process.stdout.readline())["url"]
        with httpx.Client(base_url=url, headers={"authorization": "Bearer k"}, timeout=20, trust_env=False) as client:
            yield client
            process.stdin.close()
            assert process.wait(20) == 0
        assert process.stdout.read() + process.stderr.read() == b""


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving() as opened:
        yield opened


def ask(client: httpx.Client, text: str = "fine", **more: Any) -> httpx.Response:  # noqa: ANN401  (fields)
    asked = {"model": "sim/good", "messages": [{"role": "user", "content": text}], "max_tokens": 200, **more}
    return client.post("/chat/completions", json=asked)


def content(reply: httpx.Response) -> str:
    return str(reply.json()["choices"][0]["message"]["content"])


def test_an_answer_says_that_it_is_simulated(client: httpx.Client) -> None:
    """A real model's name is accepted; the reply's model, provider and text can't be mistaken for its own."""
    reply = ask(client, model="openai/gpt-4o-mini")
    assert (reply.json()["model"], reply.json()["provider"]) == ("sim/openai/gpt-4o-mini", "Simulator")
    assert content(reply).startswith("Simulated answer")


def test_an_answer_depends_on_messages_alone(client: httpx.Client) -> None:
    """Model and max_tokens leave an answer as it is; other messages change it."""
    first, again, other = ask(client), ask(client, model="a/b", max_tokens=300), ask(client, "bad")
    assert content(first) == content(again) != content(other)


def test_the_models_list_holds_the_price_that_is_billed(client: httpx.Client) -> None:
    """GET /models needs no key and gives decimal strings per token; a reply costs just that."""
    listed = {model["id"]: model["pricing"] for model in httpx.get(f"{client.base_url}models").json()["data"]}
    usage = json.loads(ask(client, model="openai/gpt-4o").text, parse_float=Decimal)["usage"]
    price = {name: Decimal(value) for name, value in listed["openai/gpt-4o"].items()}
    assert usage["cost"] == (
        price["prompt"] * usage["prompt_tokens"] + price["completion"] * usage["completion_tokens"]
    )


def test_the_key_shows_what_was_billed() -> None:
    """The usage that GET /key reports is the sum of the costs, and credit that is used up is a 402."""
    with serving("--credit", "0.0005") as client:
        cost = ask(client).json()["usage"]["cost"]
        data = client.get("/key").json()["data"]
        assert (data["usage"], data["limit"]) == (cost, 0.0005)
        assert Decimal(str(data["limit_remaining"])) == Decimal("0.0005") - Decimal(str(cost))
        assert ask(client, max_tokens=8000).status_code == 402


def test_a_long_answer_is_cut_at_max_tokens(client: httpx.Client) -> None:
    """No reply uses more than max_tokens: a longer text is cut and says so."""
    reply = ask(client, max_tokens=3)
    assert reply.json()["choices"][0]["finish_reason"] == "length"
    assert reply.json()["usage"]["completion_tokens"] == 3
    assert len(content(reply).encode()) <= 12


def test_a_structured_answer_is_valid(client: httpx.Client) -> None:
    """With response_format the content is JSON of the schema, or an object where only JSON was asked for."""
    assert jsonschema_rs.is_valid(SCHEMA, json.loads(content(ask(client, response_format=FORMAT))))
    assert isinstance(json.loads(content(ask(client, response_format={"type": "json_object"}))), dict)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"messages": None}, 400),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400),
        ({"model": "gpt 4"}, 400),
        ({"model": None}, 400),
        ({"max_tokens": 1.5}, 400),
        ({"max_tokens": 128_000}, 400),
        ({"stream": True}, 400),
        ({"response_format": {"type": "yaml"}}, 400),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/no"}}}}, 400),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}}, 400),
    ],
)
def test_an_invalid_request_is_refused(client: httpx.Client, changes: dict[str, Any], status: int) -> None:
    """What it can't serve is a 400 in the API's envelope."""
    reply = ask(client, **changes)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, status)


def test_keys_are_checked(client: httpx.Client) -> None:
    """Without a key, or with one that contains "wrong", requests get 401."""
    for key in ("", "Bearer", "Basic k", "Bearer wrong"):
        assert client.get("/key", headers={"authorization": key}).status_code == 401
    assert client.get("/nothing").status_code == 404


def test_faults_come_at_their_rates_and_repeat() -> None:
    """Each status comes about as often as asked for, and the same requests meet the same faults again."""
    met = []
    for _ in range(2):
        with serving("--faults", "429=0.3", "--faults", "503=0.2", "--seed", "7") as client:
            met.append([ask(client, str(number)).status_code for number in range(200)])
    assert met[0] == met[1]
    counts = Counter(met[0])
    assert 40 < counts[429] < 80
    assert 20 < counts[503] < 60
    assert counts[200] == 200 - counts[429] - counts[503]


def test_requests_per_minute() -> None:
    """Requests above the limit get 429 with the seconds to wait."""
    with serving("--rpm", "2") as client:
        replies = [ask(client, str(number)) for number in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert 0 < int(replies[2].headers["retry-after"]) <= 60


def test_a_large_request_of_curl_is_taken(client: httpx.Client) -> None:
    """A client that waits for `100 Continue` before it sends its body gets it."""
    assert ask(client, "x" * 400_000, model="openai/gpt-4.1-nano").status_code == 200
    body = json.dumps({"model": "a/b", "messages": [{"role": "user", "content": "x"}]})
    command = ["curl", "-s", "-H", "Expect: 100-continue", "-H", "Authorization: Bearer k", "-d", body]
    done = subprocess.run([*command, f"{client.base_url}chat/completions"], capture_output=True, check=True, timeout=20)
    assert json.loads(done.stdout)["model"] == "sim/a/b"


def test_it_ends_with_a_signal() -> None:
    """SIGINT and SIGTERM end it without a word, also with a request under way."""
    for ending in (signal.SIGINT, signal.SIGTERM):
        command = [*COMMAND, "--latency", "60"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stderr
            url = json.loads(process.stdout.readline())["url"]
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/api/v1", url)
            with httpx.Client(base_url=url, headers={"authorization": "Bearer k"}, trust_env=False) as client:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/chat/completions", json={"model": "a/b", "messages": []}, timeout=0.1)
                process.send_signal(ending)
                assert process.wait(20) in {0, 130}
            assert process.stderr.read() == b""


def test_options_are_checked() -> None:
    """Latencies and rates are read from text; what can't be is refused in one line, with exit 2."""
    config = parse_config(1, "0.2..0.8", ["429=0.02", "500=.01"], 5, None)
    assert (config.latency, config.faults) == ((0.2, 0.8), {429: 0.02, 500: 0.01})
    for latency, faults in (("x", []), ("0.8..0.2", []), ("0", ["429"]), ("0", ["200=1"]), ("0", ["429=.6", "500=.6"])):
        with pytest.raises(ValueError, match=r"latency|fault"):
            parse_config(0, latency, faults, None, None)
    done = subprocess.run([*COMMAND, "--faults", "42=0.1"], capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


# Values for a schema


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
    st.sampled_from(["date", "date-time", "time", "email", "uri", "uuid", "ipv4", "hostname"]).map(
        lambda name: {"type": "string", "format": name}
    ),
    st.lists(st.one_of(st.text(), st.integers(), st.none()), min_size=1).map(lambda found: {"enum": found}),
    st.builds(
        lambda kind, low, size, step: {"type": kind, "minimum": low, "maximum": low + size + step, "multipleOf": step},
        st.sampled_from(["integer", "number"]), numbers, st.integers(0, 50), st.integers(1, 7),
    ),
    st.builds(lambda low, size: {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + size + 1},
              numbers, st.integers(0, 50)),
    st.builds(lambda high: {"type": "integer", "exclusiveMaximum": high}, numbers),
    st.builds(lambda least, size: {"type": "string", "minLength": least, "maxLength": least + size},
              st.integers(0, 200), st.integers(0, 10)),
    st.sampled_from([r"^[A-Z]{3}-\d{4}$", r"^(yes|no)$", r"^\w+@x\.org$", r"^a?b*c+[^x]?$", r"^[^\d\sa-w]+\s.$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
)  # fmt: skip


@given(st.recursive(LEAVES, schemas, max_leaves=8), st.binary(min_size=16, max_size=16))
def test_values_are_valid(schema: dict[str, Any], key: bytes) -> None:
    """Every value is valid against the schema that it was written for."""
    value = values.instance(schema, values.Draw(key))
    assert jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(value), value


@given(st.binary(min_size=16, max_size=16))
def test_references_are_followed_and_end(key: bytes) -> None:
    """Definitions, also recursive ones, give finite valid values."""
    node = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["name", "next"],
    }
    more = {"properties": {"more": {"enum": [1]}}, "required": ["more"]}
    schema = {"$defs": {"node": node}, "allOf": [{"$ref": "#/$defs/node"}, more]}
    assert jsonschema_rs.is_valid(schema, values.instance(schema, values.Draw(key)))


# Decisions


QUESTIONS: dict[str, Any] = {
    "team": {"type": "choice", "instructions": "Which team?", "criteria": {"billing": None, "support": "Help"}},
    "bug": {"type": "noul", "instructions": "A bug?"},
    "urgency": {"type": "score", "instructions": "How urgent?", "criteria": ["low", "medium", "high"]},
}


def decide(client: httpx.Client, path: str = "/api/v1/systemone", **changes: Any) -> httpx.Response:  # noqa: ANN401
    body = {"model": "typesafe/jev-1.13", "state": "It is broken", "questions": QUESTIONS, **changes}
    return client.post(str(client.base_url.copy_with(path=path)), json=body)


def test_decisions_have_probabilities_and_an_exact_cost(client: httpx.Client) -> None:
    """Each question has an answer of its type whose probabilities add up; both paths give the same ones."""
    reply = decide(client).json()
    team, bug, urgency = (reply["answers"][name] for name in QUESTIONS)
    assert team["choice"] == max(team["probabilities"], key=team["probabilities"].get)
    assert set(team["probabilities"]) == {"billing", "support"}
    assert 0 <= bug["noul"] <= 1
    assert urgency["score"] == pytest.approx(sum(int(k) * p for k, p in urgency["probabilities"].items()), abs=1e-3)
    for answer in (team, urgency):
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert Decimal(str(reply["usage"]["cost"])) == Decimal("0.000000042") * reply["usage"]["input_tokens"]
    assert decide(client, "/api/alpha/decisions").json()["answers"] == reply["answers"]


def test_decision_models_are_listed_apart(client: httpx.Client) -> None:
    """The catalogue lists them on request; they are refused for chat, as chat models are for decisions."""
    plain, listed = ({m["id"] for m in client.get("/models", params=p).json()["data"]}
                     for p in ({}, {"output_modalities": "decisions"}))  # fmt: skip
    assert "typesafe/jev-1.13" in listed - plain
    refused = ask(client, model="typesafe/jev-1.13")
    assert refused.status_code == 400
    assert "is a decisions model and cannot be used with the chat/completions endpoint" in refused.text
    assert decide(client, model="openai/gpt-4o").status_code == 501


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": None}, '"state" must be provided'),
        ({"questions": {}}, '"questions" must be a non-empty object'),
        ({"questions": {"a": {"type": "box"}}}, "questions.a"),
        ({"questions": {"a": {"type": "score", "criteria": ["one"]}}}, "2 to 10 levels"),
        ({"questions": {"a": {"type": "choice", "criteria": {str(n): None for n in range(256)}}}}, "2 to 255 options"),
    ],
)
def test_invalid_decisions_are_refused(client: httpx.Client, changes: dict[str, Any], words: str) -> None:
    """A request that breaks the contract is a 400 that names the question."""
    reply = decide(client, **changes)
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]
