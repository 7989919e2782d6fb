"""SIGKILL of a run at the instants of a batch's life: nothing is submitted twice, nothing is lost."""

import json
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import forking
import pytest
from openrouter.batches import LIVE_COST, MODEL, Provider, serving

from crash.harness import environment

INSTANTS = [
    f"{when} {what}"
    for what in (
        "Batches.begin", "Api.submit", "Batches.submitted", "Api.show", "Api.lines", "Batches.collect", "Api.clean_up",
    )
    for when in ("before", "after")
]  # fmt: skip
ROWS = 25

RUN = """
import os, signal, sys
from batchrun.api import batches as api
from batchrun.checkpoint import Batches
from batchrun.runner import batches as lane
lane.FIRST_POLL, lane.LOOK_AGAIN = 0.05, 0.2
instant, nth, path, *flags = sys.argv[1:]

def killing(owner, name, when):
    method, count = getattr(owner, name), 0
    def wrapped(*args, **kwargs):
        nonlocal count
        count += 1
        if count == int(nth) and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        found = method(*args, **kwargs)
        found = iter(list(found)) if name == "lines" else found
        if count == int(nth) and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    setattr(owner, name, wrapped)

if instant:
    when, _, what = instant.partition(" ")
    owner, _, name = what.partition(".")
    for one in (Batches,) if owner == "Batches" else (api._OpenRouter, api._OpenAi):
        killing(one, name, when)
sys.argv = ["batchrun", path, *flags]
from batchrun.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Provider]:
    with serving(Provider()) as provider:
        yield provider


def write_job(folder: Path, url: str, *, openai: bool, cap: float | None = None) -> Path:
    (folder / "rows.csv").write_text("text\n" + "".join(f"text {number}\n" for number in range(ROWS)))
    model = {"endpoint": f"{url}{'' if openai else '/api'}/v1", "name": MODEL, "params": {"max_tokens": 100}}
    if openai:
        batch = {"prompt": 1.5, "completion": 4.5}
        model |= {"batch_api": "openai", "price": {"prompt": 3, "completion": 9, "batch": batch}}
    job = {"input": "rows.csv", "prompt": "{{ text }}", "model": model, "output": "out.csv"}
    path = folder / "job.yaml"
    limits = {} if cap is None else {"limits": {"max_cost_usd": {"day": cap}}}
    path.write_text(json.dumps({**job, **limits, "engine": {"batch": {"size": 10}}}))
    return path


def run(path: Path, instant: str = "", nth: int = 1) -> "subprocess.CompletedProcess[str]":
    variables = {**environment(), "XDG_CACHE_HOME": str(path.parent)}
    return forking.run(instant, str(nth), str(path), "--json", program=RUN, cwd=path.parent, env=variables)


def kill_and_run_again(folder: Path, provider: Provider, instant: str, nth: int, *, openai: bool) -> None:
    provider.forget()
    path = write_job(folder, provider.url, openai=openai)
    killed = run(path, instant, nth)
    assert killed.returncode == -9, killed.stderr
    again = run(path)
    assert again.returncode == 0, again.stderr
    assert len(provider.submitted) == ROWS, "lost"
    assert set(provider.submitted.values()) == {1}, "submitted twice"
    assert not provider.live
    summary = json.loads(again.stdout)
    assert Decimal(str(summary["cost_total_usd"])) * 10**12 == ROWS * LIVE_COST // 2 == provider.billed
    assert summary["ok"] == ROWS


@pytest.mark.parametrize("instant", INSTANTS)
def test_a_killed_run_of_batches_is_resumed(tmp_path: Path, server: Provider, instant: str) -> None:
    """After SIGKILL at each instant the next run ends with each question submitted once, none lost, exact books."""
    kill_and_run_again(tmp_path, server, instant, 2, openai=INSTANTS.index(instant) % 4 < 2)


@pytest.mark.parametrize("instant", ["after Batches.begin", "after Api.submit", "before Batches.collect"])
def test_the_days_cap_holds_over_a_killed_run(tmp_path: Path, server: Provider, instant: str) -> None:
    """What a killed run had reserved, submitted or not collected counts: the bill never passes the cap of the day."""
    server.forget()
    cap = 20 * LIVE_COST // 2
    path = write_job(tmp_path, server.url, openai=False, cap=cap / 10**12)
    assert run(path, instant, 1).returncode == -9
    again = run(path)
    assert again.returncode == 4, again.stderr
    assert set(server.submitted.values()) == {1}
    assert cap // 2 < server.billed <= cap


@pytest.mark.slow
@pytest.mark.parametrize("openai", [False, True])
@pytest.mark.parametrize("instant", INSTANTS)
def test_many_killed_runs_of_batches(tmp_path: Path, server: Provider, instant: str, openai: bool) -> None:  # noqa: FBT001
    """The same at the first, second and third batch, several times, in both dialects."""
    for number, nth in enumerate((1, 2, 3, 1, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        kill_and_run_again(folder, server, instant, nth, openai=openai)
