"""The provider's prompt cache through whole jobs: what it costs, what it saves, and that no question depends on it."""

import itertools
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from job_running import run, write_job
from plain_server import completion, plain_server

from batchrun.errors import ExitCode
from batchrun.job import RunOptions
from batchrun.runner.progress import Quiet


class Heard(Quiet):
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
