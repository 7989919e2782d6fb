"""Prices: OpenRouter's list in exact money, kept for a day, and the job's own words."""

import json
import stat
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator_server import running

from batchrun.api.endpoints import Endpoint
from batchrun.api.prices import KEPT_SECONDS, Prices, parse_models, prices_for
from batchrun.job import Input, Job, Model, Output, PriceOption, Prompt
from batchrun.money import Pico, Price

NOW = 1_800_000_000.0
MINI = Price(Pico(150_000), Pico(600_000))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the simulator for a server on another machine, whose list is kept."""
    monkeypatch.setattr("batchrun.api.prices.is_loopback", lambda _url: False)


def job(name: str = "openai/gpt-4o-mini", **model: Any) -> Job:  # noqa: ANN401  (any field of Model)
    return Job(Input("in.csv"), Prompt(user="x"), Model("openrouter", name=name, **model), Output("out.csv"))


def endpoint(url: str, name: str = "openai/gpt-4o-mini") -> Endpoint:
    return Endpoint("openrouter", url, "openrouter", name, openrouter=True)


def listed(**pricing: object) -> dict[str, Any]:
    return {"data": [{"id": "m", "pricing": {"prompt": "0.000001", "completion": "0.000002", **pricing}}]}


def worst(**pricing: object) -> Price | None:
    found = parse_models(listed(**pricing))["m"]
    return found.worst if found else None


def test_prices_of_model_and_fallbacks(tmp_path: Path) -> None:
    """Decimal strings per token become exact picodollars, request fee included; a router's -1 is unknown."""
    fallbacks = ("perplexity/sonar", "openrouter/auto")
    with running() as simulator:
        found = prices_for(job(fallbacks=fallbacks), endpoint(simulator.url), tmp_path, NOW)
    assert found.worst == {
        "openai/gpt-4o-mini": MINI,
        "perplexity/sonar": Price(Pico(10**6), Pico(10**6), Pico(5 * 10**9)),
    }
    assert found.likely == found.worst
    assert "openrouter/auto" in found.names
    assert found.fetched_at == NOW
    assert not found.problem


@pytest.mark.usefixtures("elsewhere")
def test_list_is_kept_for_a_day(tmp_path: Path) -> None:
    """Within a day the list is read from disk and no request is sent, also when the clock of its writer was wrong."""
    with running() as simulator:
        url = simulator.url
        first = prices_for(job(), endpoint(url), tmp_path, NOW)
    second = prices_for(job(), endpoint(url), tmp_path, NOW + KEPT_SECONDS - 1)  # nobody listens any more
    assert second == first
    assert second.fetched_at == NOW
    for later in (NOW + KEPT_SECONDS, NOW - 1):
        stale = prices_for(job(), endpoint(url), tmp_path, later)
        assert stale.worst == first.worst, "an old list is better than none"
        assert stale.fetched_at == NOW
        assert "refused" in stale.problem


@pytest.mark.usefixtures("elsewhere")
def test_kept_list_is_private_and_whole(tmp_path: Path) -> None:
    """The kept list is one file that only its owner reads, in a folder made for it."""
    with running() as simulator:
        prices_for(job(), endpoint(simulator.url), tmp_path / "new" / "batchrun", NOW)
    (file,) = (tmp_path / "new" / "batchrun").iterdir()
    assert file.name.startswith("models-127.0.0.1-")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"layout": 2}', '{"layout": 1, "url": "", "models": {}}'])
@pytest.mark.usefixtures("elsewhere")
def test_damaged_list_is_fetched_again(tmp_path: Path, damage: str) -> None:
    """A kept list that is cut off, foreign or of another layout is replaced, never trusted."""
    with running() as simulator:
        prices_for(job(), endpoint(simulator.url), tmp_path, NOW)
        (file,) = tmp_path.iterdir()
        file.write_text(damage, encoding="utf-8")
        assert prices_for(job(), endpoint(simulator.url), tmp_path, NOW + 1).fetched_at == NOW + 1
    assert json.loads(file.read_bytes())["fetched_at"] == NOW + 1


@pytest.mark.usefixtures("elsewhere")
def test_list_of_another_address_is_not_used(tmp_path: Path) -> None:
    """Two addresses on one host never share a list."""
    with running() as simulator:
        prices_for(job(), endpoint(simulator.url), tmp_path, NOW)
        other = endpoint(simulator.url.removesuffix("/v1"))
        assert not prices_for(job(), other, tmp_path, NOW + 1).worst


@pytest.mark.usefixtures("elsewhere")
def test_unwritable_folder_costs_only_a_fetch(tmp_path: Path) -> None:
    """Prices are known even where they can't be kept."""
    (tmp_path / "file").touch()
    with running() as simulator:
        assert prices_for(job(), endpoint(simulator.url), tmp_path / "file" / "x", NOW).worst == {
            "openai/gpt-4o-mini": MINI
        }


def test_prices_of_this_machine_are_not_kept(tmp_path: Path) -> None:
    """A list from loopback is asked for each time: its port may be another server's tomorrow."""
    with running() as simulator:
        found = prices_for(job(), endpoint(simulator.url), tmp_path, NOW)
    assert found.worst == {"openai/gpt-4o-mini": MINI}
    assert not list(tmp_path.iterdir())


def test_unreachable_list(tmp_path: Path) -> None:
    """Without a list the price is unknown and the reason is given; the job's own price stands in."""
    found = prices_for(job(), endpoint("http://127.0.0.1:9/api/v1"), tmp_path, NOW)
    assert not found.worst
    assert found.problem
    own = PriceOption(Decimal("0.15"), Decimal("0.6"))
    assert prices_for(job(price=own), endpoint("http://127.0.0.1:9/api/v1"), tmp_path, NOW).worst == {
        "openai/gpt-4o-mini": MINI
    }


def test_other_endpoints(tmp_path: Path) -> None:
    """A local model costs nothing; another server costs what the job says, and is unknown where it says nothing."""
    local = Endpoint("local", "http://127.0.0.1:9/v1", "local:m.gguf:4", "m")
    other = Endpoint("url", "http://127.0.0.1:9/v1", "x", "m")
    assert prices_for(job("m"), local, tmp_path, NOW).worst == {"m": Price(Pico(0), Pico(0))}
    assert prices_for(job("m"), other, tmp_path, NOW) == Prices()
    own = job("m", price=PriceOption(Decimal("0.0000001"), Decimal(3)))
    assert prices_for(own, other, tmp_path, NOW).worst == {"m": Price(Pico(1), Pico(3_000_000))}


@pytest.mark.parametrize(
    ("name", "known"),
    [("m:nitro", True), ("m:floor", True), ("m:exacto", True), ("m:online", False), ("m:free", False), ("n", False)],
)
def test_variants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, *, known: bool) -> None:
    """Variants that only choose a provider have the model's price; those that add or change something do not."""
    monkeypatch.setattr("batchrun.api.prices._list", lambda *_, **__: (parse_models(listed()), NOW, ""))
    found = prices_for(job(name), endpoint("https://x", name), tmp_path, NOW)
    assert (name in found.worst) is known


def test_dearest_override_counts_for_the_worst_case() -> None:
    """Prices that rise with the prompt or the hour bound the worst case; the likely cost takes the listed ones."""
    overrides = [{"min_prompt_tokens": 200_000, "prompt": "0.000004"}, {"utc_start": "01:00", "completion": "0.000001"}]
    assert worst(overrides=overrides) == Price(Pico(4_000_000), Pico(2_000_000))
    found = parse_models(listed(overrides=overrides))["m"]
    assert found is not None
    assert found.likely == Price(Pico(1_000_000), Pico(2_000_000))
    assert worst(internal_reasoning="0.000009") == Price(Pico(1_000_000), Pico(9_000_000))


def test_the_dearer_of_prompt_and_cache_write_is_the_worst_case() -> None:
    """A provider may write its prompt cache unasked; that may cost more than the prompt itself."""
    assert worst(input_cache_write="0.00000125", input_cache_write_1h="0.000002") == Price(
        Pico(2 * 10**6), Pico(2 * 10**6)
    )
    assert worst(input_cache_write="0.0000005") == Price(Pico(10**6), Pico(2 * 10**6))


@pytest.mark.parametrize("price", ["-1", "-0.000001", "NaN", "Infinity", "free", "", "1e999999999", [], {}, "2e3"])
def test_what_is_not_a_price_is_unknown(price: object) -> None:
    """A price that is negative, endless or no number makes the model's price unknown, never zero."""
    assert worst(prompt=price) is None
    assert worst(overrides=[{"completion": price}]) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda leaf: (
            st.lists(leaf)
            | st.dictionaries(
                st.sampled_from(["data", "id", "pricing", "prompt", "completion", "overrides", "canonical_slug"]), leaf
            )
        ),
    )
)
def test_any_list_is_read(data: object) -> None:
    """Whatever the API lists, reading it never fails, and no price is negative."""
    page: Mapping[str, Any] = {"data": [{"id": "m", "pricing": data}, data]}
    for found in parse_models(page).values():
        assert found is None or min(found.worst.prompt, found.worst.completion, found.worst.request) >= 0


@given(st.decimals(min_value=0, max_value=1, places=18))
def test_amounts_are_never_rounded_down(usd: Decimal) -> None:
    """A price finer than a picodollar is rounded up, so that a cap stays a cap."""
    found = worst(prompt=str(usd))
    assert found is not None
    assert 0 <= found.prompt - usd * 10**12 < 1
