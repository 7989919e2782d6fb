"""The provider's prompt cache through whole jobs: what it costs, what it saves, and that no question depends on it."""

import itertools
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from job_running import run, write_job
from openrouter.catalogue import LISTED
from plain_server import completion, plain_server
from simulator_server import Running, running

from batchrun.api import family_of
from batchrun.checkpoint import Checkpoint
from batchrun.errors import ExitCode, JobFileError
from batchrun.job import Environment, RunOptions, load
from batchrun.prepare.invocation import Invocation
from batchrun.prepare.prepared import prepare_job
from batchrun.report import OpenJob, write_report
from batchrun.runner.progress import Ui


class Heard(Ui):
    """Keeps what a run warns of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        """Keep it."""
        self.warnings.append(message)


ANSWER = '{"label": "good", "score": 1}'
TOKENS = ["cached_tokens", "cache_write_tokens", "service_tier", "cost_usd"]
CACHE_PRICE = {"prompt": 1, "completion": 2, "cache_read": 0.1, "cache_write": 1.25}


def test_what_the_cache_served_is_a_detail_and_costs_its_own_price(tmp_path: Path) -> None:
    """Where the server reports no cost, tokens that were read or written count at the prices that the job names."""
    first = itertools.count()

    def answer(_: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        counts = {"cached_tokens": 900} if next(first) else {"cached_tokens": 0, "cache_write_tokens": 900}
        status, reply = completion(ANSWER, prompt_tokens=1000, completion_tokens=10, prompt_tokens_details=counts)
        return status, reply | {"service_tier": "default"}

    with plain_server(answer) as url:
        ran = run(write_job(tmp_path, url, model={"price": CACHE_PRICE}, output={"details": TOKENS}))
    costs = [0.001245, 0.00021, 0.00021]
    assert sorted(ran.column("cost_usd"), reverse=True) == costs
    assert sorted(ran.column("cached_tokens")) == [0, 900, 900]
    assert sorted(ran.column("cache_write_tokens"), key=bool) == [None, None, 900]
    assert ran.column("service_tier") == ["default"] * 3
    assert Decimal(ran.summary.cost_usd) == Decimal("0.001665")


@pytest.mark.parametrize(("cache_write", "written"), [("0.5", False), ("8", True)])
def test_the_worst_case_always_uses_the_dearer_of_prompt_and_cache_write_price(
    tmp_path: Path, cache_write: str, *, written: bool
) -> None:
    """A cap holds where a token of each byte is charged, and the provider writes all of them to its cache or none."""

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        size = len(json.dumps(body, separators=(",", ":")))
        counts = {"cached_tokens": 0, "cache_write_tokens": size if written else 0}
        return completion(ANSWER, prompt_tokens=size, completion_tokens=10, prompt_tokens_details=counts)

    with plain_server(answer) as url:
        model = {"price": {"prompt": 1, "completion": 1, "cache_write": cache_write}, "params": {"max_tokens": 10}}
        path = write_job(tmp_path, url, rows=100, model=model, limits={"concurrency": 1})
        cap = Decimal("0.02") if written else Decimal("0.01")
        ran = run(path, RunOptions(max_cost=cap), ui=(heard := Heard()))
    assert ran.summary.exit_code == ExitCode.STOPPED_BY_LIMIT
    assert cap * 3 / 5 < Decimal(ran.summary.cost_usd) <= cap
    assert heard.warnings == []  # of a request that cost more than its worst case


CLAUDE, GPT = "anthropic/claude-sonnet-4.5", "openai/gpt-4.1"
SYSTEM = "You label reviews by these rules. " + "A late parcel is bad, a nice colour is good. " * 260
"""About 3,000 tokens."""


def cached_job(
    folder: Path,
    server: Running,
    rows: int,
    name: str,
    prompt: dict[str, Any] | None = None,
    checkpoint: str | None = None,
    **model: Any,  # noqa: ANN401  (JSON)
) -> Path:
    """Write a job with a long system message; `model` is what else it says of its model."""
    return write_job(
        folder,
        server.url,
        rows=rows,
        model={"name": name, "params": {"max_tokens": 100}, **model},
        prompt=prompt or {"system": SYSTEM, "user": "Label: {{ text }}"},
        limits={"timeout": 60},
        output={"details": [*TOKENS, "provider"]},
        checkpoint=checkpoint,
    )


def list_price(server: Running, model: str) -> Decimal:
    """Return what all that the server answered would have cost without any cache, in USD."""
    listed, counters = LISTED[model], server.counters
    return Decimal(listed.prompt) * counters.prompt_tokens + Decimal(listed.completion) * counters.completion_tokens


@pytest.mark.parametrize(("model", "most"), [(CLAUDE, Decimal("0.30")), (GPT, Decimal("0.45"))])
def test_two_thousand_rows_pay_for_a_long_system_message_once(tmp_path: Path, model: str, most: Decimal) -> None:
    """Of what the job costs without a cache it costs less than the share; all rows are served by one provider."""
    with running(latency=0.02) as server:
        ran = run(cached_job(tmp_path, server, 2_000, model), RunOptions(yes=True))
        billed, counters = server.counters.billed_usd, server.counters
        assert billed <= most * list_price(server, model)
        assert counters.cached_tokens >= 1_999 * 2_800
        assert counters.cache_write_tokens in ({0} if model == GPT else range(2_900, 3_000))
    assert ran.summary.ok == 2_000
    assert Decimal(ran.summary.cost_usd) == billed
    assert len(set(ran.column("provider"))) == 1
    assert sum(ran.column("cached_tokens")) == counters.cached_tokens


def test_switching_the_cache_on_or_off_asks_no_row_again(tmp_path: Path) -> None:
    """What is sent for the cache is not part of a question: the same answers stand, whichever way it is switched."""
    with running() as server:
        path = cached_job(tmp_path, server, 5, CLAUDE)
        assert run(path).summary.requests == 5
        for switched in (False, True):
            cached_job(tmp_path, server, 5, CLAUDE, prompt_cache=switched)
            assert (run(path).summary.requests, run(path).summary.ok) == (0, 5)
        cached_job(tmp_path, server, 5, CLAUDE, params={"cache_control": {"type": "ephemeral", "ttl": "1h"}})
        assert run(path).summary.requests == 0
        assert server.counters.requests == 5


def test_the_report_sums_what_the_cache_served(tmp_path: Path) -> None:
    """The page names the tokens that were read and written; without any it says nothing of a cache."""
    with running() as server:
        path = cached_job(tmp_path, server, 4, CLAUDE)
        run(path)
        assert re.search(r"prompt cache</dt><dd>8,802 tokens read, 2,934 written<", report(path))
        run(cached_job(tmp_path, server, 2, GPT, prompt={"user": "Label: {{ text }}"}, checkpoint="other.sqlite"))
        assert "prompt cache" not in report(path)


def report(path: Path) -> str:
    """Return the report's page."""
    environment = Environment({"test": {"KEY": "sk-or-v1-test"}})
    loaded = load(path.read_text(encoding="utf-8"), path, environment)
    page = path.with_suffix(".html")
    with (
        prepare_job(Invocation(loaded, environment, RunOptions())) as p,
        Checkpoint.open(p.job.checkpoint_path, read_only=True) as checkpoint,
    ):
        write_report(OpenJob("job", p, checkpoint), page)
    return page.read_text(encoding="utf-8")


def test_without_the_cache_nothing_is_sent_for_it(tmp_path: Path) -> None:
    """`model.prompt_cache: false` sends the messages as they are written, pays the list price, and ties no row down."""
    with running(keep_requests=9) as server:
        ran = run(cached_job(tmp_path, server, 9, CLAUDE, prompt_cache=False))
        bodies = [json.loads(request.body) for request in server.counters.recorded]
        assert server.counters.billed_usd == list_price(server, CLAUDE)
    assert ran.summary.ok == 9
    assert {body["messages"][0]["content"] for body in bodies} == {SYSTEM}
    assert not any("session_id" in body for body in bodies)
    assert len(set(ran.column("provider"))) == 3


def test_the_same_session_and_one_mark_are_sent_on_each_day(tmp_path: Path) -> None:
    """All requests of a job name one session, in a later run as well; the system message ends with the only mark."""
    with running(keep_requests=9) as server:
        for rows in (3, 6):
            run(cached_job(tmp_path, server, rows, CLAUDE))
        bodies = [json.loads(request.body) for request in server.counters.recorded]
    assert len(bodies) == 6
    assert len({body["session_id"] for body in bodies}) == 1
    for body in bodies:
        (part,) = body["messages"][0]["content"]
        assert part == {"type": "text", "text": SYSTEM, "cache_control": {"type": "ephemeral"}}
        assert body["messages"][1]["content"].startswith("Label: text")
        assert json.dumps(body).count("cache_control") == 1


def test_a_cold_cache_is_written_by_one_request_alone(tmp_path: Path) -> None:
    """Many could start together, but in each run one goes alone until it is answered; the others read what it wrote."""
    with running(latency=0.05, faults={"503:1": 0.3}) as server:
        ran = run(cached_job(tmp_path, server, 40, CLAUDE))
        assert (ran.summary.ok, ran.summary.requests > 40) == (40, True)
        assert server.counters.cache_write_tokens < 2 * 2_900
        server.account.prompt_cache.clear()
        assert run(cached_job(tmp_path, server, 80, CLAUDE)).summary.ok == 80
        assert server.counters.cache_write_tokens < 3 * 2_900


def test_a_cache_control_of_the_job_is_the_mark(tmp_path: Path) -> None:
    """It ends the constant beginning, wherever the job is asked and however short it is, and never a row."""
    mark = {"type": "ephemeral", "ttl": "1h"}
    bodies: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        bodies.append(body)
        return completion(ANSWER)

    examples = [
        {"role": "system", "content": "You label."},
        {"role": "user", "content": [{"text": "Label: nice"}, {"text": "  "}, {"image": "data:image/png;base64,x"}]},
        {"role": "assistant", "content": [{"text": "A {{ text }}"}]},
        {"role": "user", "content": "Label: {{ text }}"},
    ]
    with plain_server(answer) as url:
        model = {"params": {"cache_control": mark}}
        run(write_job(tmp_path, url, rows=1, model=model, prompt={"user": None, "messages": examples}))
    (body,) = bodies
    assert "cache_control" not in body
    assert json.dumps(body).count("cache_control") == 1
    assert body["messages"][1]["content"][0] == {"type": "text", "text": "Label: nice", "cache_control": mark}


def test_a_cache_control_without_anything_constant_is_a_mistake(tmp_path: Path) -> None:
    """A prompt that begins with its row has nothing to cache, and a mark contradicts a cache that is switched off."""
    model: dict[str, Any] = {"params": {"cache_control": {"type": "ephemeral"}}}
    path = write_job(tmp_path, "http://127.0.0.1:9/v1", model=model)
    with pytest.raises(JobFileError, match=r"no constant beginning to cache: write it as prompt\.system"):
        run(path)
    model["prompt_cache"] = False
    write_job(tmp_path, "http://127.0.0.1:9/v1", model=model, prompt={"system": "Label."})
    with pytest.raises(JobFileError, match=r"prompt_cache is off, against model\.params\.cache_control"):
        run(path)


@pytest.mark.parametrize(
    ("model", "minimum"),
    [
        ("anthropic/claude-opus-5", 512),
        ("anthropic/claude-sonnet-5", 1024),
        ("anthropic/claude-sonnet-4.6", 2048),
        ("anthropic/claude-opus-4.8", 1024),
        ("anthropic/claude-haiku-4.5", 4096),
    ],
)
def test_each_family_caches_from_its_own_length_on(model: str, minimum: int) -> None:
    """A shorter beginning is not called cached, and no saving is promised for it."""
    family = family_of(model)
    assert family is not None
    assert family.minimum == minimum


@pytest.mark.parametrize(
    ("endpoint", "model", "field", "marked"),
    [
        ("openrouter", CLAUDE, "session_id", True),
        ("openrouter", "anthropic/claude-sonnet-4.5:floor", "session_id", True),
        ("openrouter", "qwen/qwen3-max", "session_id", True),
        ("openrouter", "openai/gpt-5.6", "session_id", True),
        ("openrouter", GPT, "session_id", False),
        ("openrouter", "google/gemini-2.5-flash", "session_id", False),
        ("openrouter", "deepseek/deepseek-v4", "session_id", False),
        ("openrouter", "anthropic/claude-haiku-4.5", "session_id", True),
        ("openrouter", "meta-llama/llama-3.3-70b-instruct", None, False),
        ("openrouter", "qwen/qwen3-32b", None, False),
        ("https://api.openai.com/v1", "gpt-4.1", "prompt_cache_key", False),
        ("https://eu.api.openai.com/v1", "gpt-5.6", "prompt_cache_key", False),
        ("https://api.mistral.ai/v1", "mistral-large", "prompt_cache_key", False),
        ("https://api.openai.com.example/v1", "gpt-4.1", None, False),
        ("https://api.anthropic.com/v1", "claude-sonnet-4.5", None, False),
        ("http://127.0.0.1:8000/v1", CLAUDE, None, False),
        ("simulator", "sim/good", None, False),
    ],
)
def test_only_what_a_server_knows_is_sent_for_the_cache(
    tmp_path: Path, endpoint: str, model: str, field: str | None, *, marked: bool
) -> None:
    """A session goes to OpenRouter, a key to two other APIs, a mark to families that need one, to others nothing."""
    prompt = {"system": SYSTEM, "user": "Label: {{ text }}"}
    body = first_body(write_job(tmp_path, endpoint, model=model, prompt=prompt))
    sent = body.keys() & {"session_id", "prompt_cache_key", "prompt_cache_options", "cache_control"}
    assert sent == ({field} if field else set())
    assert ("cache_control" in json.dumps(body)) is marked
    assert field is None or len(body[field]) <= 64


def first_body(path: Path) -> dict[str, Any]:
    """Return the body of a job's first row."""
    environment = Environment({"test": {"KEY": "sk-or-v1-test"}})
    loaded = load(path.read_text(encoding="utf-8"), path, environment)
    with prepare_job(Invocation(loaded, environment, RunOptions())) as p:
        rows = next(p.rows.batches(p.renderer.columns)).rows
        body = p.renderer.body(rows[0])
    assert isinstance(body, bytes)
    found: dict[str, Any] = json.loads(body)
    return found


def test_a_short_beginning_ties_no_row_to_a_provider(tmp_path: Path) -> None:
    """Below the family's minimum nothing is cached, so nothing is sent."""
    job: dict[str, Any] = {"model": CLAUDE, "prompt": {"system": "You label.", "user": "Label: {{ text }}"}}
    body = first_body(write_job(tmp_path, "openrouter", **job))
    assert body["messages"][0] == {"role": "system", "content": "You label."}
    assert "session_id" not in body


def test_a_session_of_the_job_wins(tmp_path: Path) -> None:
    """What the job's params say is sent in place of what batchrun would add."""
    model = {"name": CLAUDE, "params": {"session_id": "mine"}}
    job: dict[str, Any] = {"model": model, "prompt": {"system": SYSTEM, "user": "Label: {{ text }}"}}
    assert first_body(write_job(tmp_path, "openrouter", **job))["session_id"] == "mine"


def test_a_batch_is_the_same_with_the_cache_and_without(tmp_path: Path) -> None:
    """Lines of a batch run at once and in any order: each might pay for writing, so no byte is sent for the cache."""
    job: dict[str, Any] = {"engine": "batch", "prompt": {"system": SYSTEM, "user": "Label: {{ text }}"}}
    on = first_body(write_job(tmp_path, "openrouter", model=CLAUDE, **job))
    off = first_body(write_job(tmp_path, "openrouter", model={"name": CLAUDE, "prompt_cache": False}, **job))
    mark = {"type": "ephemeral", "ttl": "1h"}
    own = {"name": CLAUDE, "params": {"cache_control": mark}}
    chosen = first_body(write_job(tmp_path, "openrouter", model=own, **job))
    assert on == off
    assert on["messages"][0]["content"] == SYSTEM
    assert chosen["messages"][0]["content"] == [{"type": "text", "text": SYSTEM, "cache_control": mark}]
    assert "session_id" not in chosen


def test_a_cap_counts_writes_that_nobody_prices(tmp_path: Path) -> None:
    """Where a mark is sent and nobody says what writing costs, the worst case takes 1.25 times the prompt's price."""
    reasons = []
    for name, cache_control in (("plain", None), ("marked", {"type": "ephemeral"})):
        folder = tmp_path / name
        folder.mkdir()
        params = {"max_tokens": 1} | ({"cache_control": cache_control} if cache_control else {})
        model = {"price": {"prompt": 1, "completion": 0}, "params": params}
        path = write_job(folder, "http://127.0.0.1:9/v1", model=model, prompt={"system": SYSTEM})
        reasons.append(run(path, RunOptions(max_cost=Decimal("0.01"))).summary.reason)
    plain, marked = (Decimal(reason.split("may cost $")[1].split(",")[0]) for reason in reasons)
    assert marked / plain == pytest.approx(Decimal("1.25"), rel=Decimal("0.01"))


def test_the_flex_tier_is_booked_as_it_was_served(tmp_path: Path) -> None:
    """The detail names the tier that served, and the cost is that tier's; a cap counts the full price."""
    with running() as server:
        params = {"max_tokens": 100, "service_tier": "flex"}
        flex = run(cached_job(tmp_path, server, 5, "openai/gpt-5-mini", params=params, prompt_cache=False))
        half = server.counters.billed_usd
        other = run(cached_job(tmp_path, server, 5, CLAUDE, params=params, checkpoint="other.sqlite"))
    assert flex.column("service_tier") == ["flex"] * 5
    assert other.column("service_tier") == ["default"] * 5
    assert Decimal(flex.summary.cost_usd) == half > 0
