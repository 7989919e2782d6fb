"""Money in whole jobs: a day's cap over kills, what a server reports, what nobody knows, what is simulated."""

import itertools
import json
import os
import pty
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import forking
import pytest
from command_line import Command, command  # noqa: F401  (a fixture)
from crash.harness import CrashJob, ended, write_job
from crash.ledger import Ledger, serving
from job_running import run
from job_running import write_job as write
from plain_server import completion, plain_server
from simulator_server import running

from batchrun.errors import ConfirmError
from batchrun.job import RunOptions

PICO = 10**12
EACH = 200_000_000
"""Picodollars that the ledger's server charges for a request."""


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with serving(Ledger()) as server:
        yield server


def kill_in_flight(job: CrashJob, ledger: Ledger, in_flight: int, events: int) -> None:
    """Run a job and SIGKILL it when that many requests are in flight, or after some arrivals and replies."""
    process, left = job.start(), [events]

    def event() -> None:
        left[0] -= 1
        if ledger.in_flight >= in_flight or left[0] == 0:
            ledger.on_event = None
            os.kill(process.pid, signal.SIGKILL)

    ledger.on_event = event
    assert ended(process).code == -signal.SIGKILL
    ledger.settle()


def books(job: CrashJob) -> tuple[int, int]:
    """Return the picodollars in `spending`, and how many answers are committed."""
    with closing(sqlite3.connect(job.checkpoint)) as connection:
        sql = "SELECT (SELECT coalesce(sum(cost), 0) FROM spending), (SELECT count(*) FROM answers)"
        spent, answers = connection.execute(sql).fetchone()
        return int(spent), int(answers)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_days_cap_holds_over_kills(tmp_path: Path, ledger: Ledger, kills: int) -> None:
    """After SIGKILLs with up to 50 requests in flight the server billed at most the cap, and nine tenths of it."""
    texts, cap = [f"text {number}" for number in range(400 * kills)], 0.06 * kills
    job = write_job(tmp_path, ledger.url, texts, limits={"concurrency": 50, "max_cost_usd": {"day": cap}})
    for _ in range(kills):
        kill_in_flight(job, ledger, 50, 200)
        spent, answers = books(job)
        assert spent == answers * EACH
    last = job.run()
    assert last.code == 4, last.said
    spent, answers = books(job)
    assert spent == answers * EACH
    billed = ledger.requests * EACH / PICO
    assert 0.9 * cap <= billed <= cap
    assert job.run().code == 4
    assert ledger.requests * EACH / PICO == billed


def test_a_fresh_start_does_not_forget_a_dead_runs_lease(tmp_path: Path, ledger: Ledger) -> None:
    """What a killed run may have spent counts against the day's cap in the next checkpoint as well."""
    job = write_job(
        tmp_path, ledger.url, [f"text {number}" for number in range(60)],
        limits={"concurrency": 8, "max_cost_usd": {"day": 0.01}},
    )  # fmt: skip
    kill_in_flight(job, ledger, 1, 10)
    assert ledger.requests == 1
    end = job.run("--fresh")
    assert end.code == 4, end.said
    assert 45 <= ledger.requests <= 50


REPLY = '{"label": "good", "score": 1}'


def test_a_reported_cost_counts_where_no_price_is_known(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """What a server says that it charged is in every sum, though the job has no price."""

    def answer(_: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, body = completion(REPLY, prompt_tokens=10, completion_tokens=5)
        body["usage"]["cost"] = 0.001
        return status, body

    with plain_server(answer) as url:
        path = write(tmp_path, url, rows=20)
        assert Decimal(run(path).summary.cost_usd) == Decimal("0.02")
    assert "$0.0200 this output" in command("status", str(path)).out


def test_bills_above_the_estimate_leave_the_cap_its_room(tmp_path: Path) -> None:
    """A server counts many times the tokens that a body has: ten requests in flight do not raise that ten times."""
    numbers = itertools.count()

    def answer(_: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        # The first request goes alone, and shows nothing.
        return completion("yes", prompt_tokens=8_000 if next(numbers) else 8, completion_tokens=1)

    price = {"price": {"prompt": 1, "completion": 2}, "params": {"max_tokens": 10}}
    with plain_server(answer) as url:
        limits = {"max_cost_usd": 1, "concurrency": 10}
        ran = run(write(tmp_path, url, rows=60, model=price, answer=None, limits=limits))
    assert (ran.summary.exit_code, ran.summary.ok) == (0, 60), ran.summary.reason
    assert Decimal(ran.summary.cost_usd) == 59 * Decimal("0.008002") + Decimal("0.000010")


def test_a_cost_that_nobody_knows_is_not_zero(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """Where neither price nor report exists, run, status, report and JSON say unknown, never $0."""
    with plain_server(lambda _: completion(REPLY, prompt_tokens=10, completion_tokens=5)) as url:
        path = write(tmp_path, url, rows=3, model={"api_key_env": None})
        said = command(str(path), "--json")
    assert "cost unknown" in said.err
    assert json.loads(said.out)["cost_kind"] == "unknown"
    shown = command("status", str(path)).out
    assert "money: cost unknown" in shown
    assert command("report", str(path)).code == 0
    page = (tmp_path / "out.report.html").read_text()
    assert "cost unknown" in page
    assert "$0" not in said.err + shown + page


def test_simulated_money_is_called_simulated(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """Preview, run, status and report of a simulated job say that nothing is charged."""
    path = str(write(tmp_path, "simulator", rows=3, model={"api_key_env": None}))
    assert "(simulated: nothing is charged)" in command("preview", path).out
    assert "(simulated: nothing was charged)" in command(path).err
    assert "money (simulated: nothing was charged): $" in command("status", path).out
    assert json.loads(command("status", path, "--json").out)["cost_kind"] == "simulated"
    assert command("report", path).code == 0
    assert " simulated</b>for these answers" in (tmp_path / "out.report.html").read_text()


def test_money_of_a_trial_on_the_simulator_is_not_charged_later(tmp_path: Path, command: Command) -> None:  # noqa: F811
    """After `endpoint: simulator` was edited to a paid one, no sum, cap or question counts simulated money."""
    parts: dict[str, Any] = {"rows": [f"t{row}" for row in range(101)], "limits": {"max_cost_usd": {"day": 1}}}
    path = str(write(tmp_path, "simulator", model={"api_key_env": None, "params": {"max_tokens": 50}}, **parts))
    assert command(path).code == 0
    with plain_server(lambda _: completion(REPLY, prompt_tokens=10, completion_tokens=5)) as url:
        price = {"prompt": 1, "completion": 2}
        paid = {"api_key_env": None, "name": "m", "price": price, "params": {"max_tokens": 50}}
        write(tmp_path, url, model=paid, **parts)
        asked = command(path).err
        assert "the model changed: 101 answered rows would be asked again; add --yes" in asked
        assert command(path, "--yes").code == 0
    facts = json.loads(command("status", path, "--json").out)
    assert facts["cost_total_usd"] == facts["cost_today_usd"] == facts["cost_last_run_usd"] == 101 * 20e-6
    assert [run["cost_kind"] for run in facts["runs"]] == ["charged", "simulated"]
    assert "$0.0020, exit 0" in (shown := command("status", path).out)
    assert " simulated, exit 0" in shown


DEAR = {"name": "m", "price": {"prompt": 30_000, "completion": 150_000}, "params": {"max_tokens": 200}}


def test_a_first_run_that_costs_much_wants_a_cap_or_yes(tmp_path: Path) -> None:
    """Above 10 USD without a cap nothing is sent; a cap or --yes lets it through, and so does a small part first."""
    with plain_server(lambda _: completion(REPLY, prompt_tokens=10, completion_tokens=5)) as url:
        path = write(tmp_path, url, rows=20, model=DEAR)
        for _ in range(2):
            with pytest.raises(
                ConfirmError, match=r"would likely cost \$\d+\.\d\d, and .*: set limits.max_cost_usd, or add --yes"
            ):
                run(path)
        assert run(path, RunOptions(limit=1)).summary.requests == 1
        assert run(path).summary.ok == 20
        assert run(path, RunOptions(fresh=True, yes=True)).summary.ok == 20
        assert run(path, RunOptions(fresh=True, max_cost=Decimal(10_000))).summary.ok == 20


def test_a_fresh_start_that_is_refused_forgets_nothing(tmp_path: Path) -> None:
    """The old checkpoint is the job's again where --fresh ended before it asked: the next run pays for nothing."""
    with plain_server(lambda _: completion(REPLY, prompt_tokens=10, completion_tokens=5)) as url:
        path = write(tmp_path, url, rows=20, model=DEAR)
        assert run(path, RunOptions(yes=True)).summary.ok == 20
        with pytest.raises(ConfirmError, match="would likely cost"):
            run(path, RunOptions(fresh=True))
        assert [file.name for file in (tmp_path / ".batchrun").glob("*.sqlite")] == ["job.sqlite"]
        assert run(path).summary.requests == 0


def test_a_trial_on_the_simulator_is_not_the_first_run(tmp_path: Path) -> None:
    """A run that would cost more than 10 USD wants a cap or --yes, though the job was tried on the simulator before."""
    assert run(write(tmp_path, "simulator", rows=20, model={"api_key_env": None}), RunOptions(limit=1)).summary.ok
    with plain_server(lambda _: completion(REPLY, prompt_tokens=10, completion_tokens=5)) as url:
        path = write(tmp_path, url, rows=20, model={**DEAR, "api_key_env": None})
        with pytest.raises(ConfirmError, match="would likely cost"):
            run(path)


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 2)])
def test_on_a_terminal_a_dear_first_run_asks(tmp_path: Path, answer: str, code: int) -> None:
    """A person is asked, and only a yes sends something."""
    with plain_server(lambda _: completion(REPLY, prompt_tokens=10, completion_tokens=5)) as url:
        path = write(tmp_path, url, rows=20, model={**DEAR, "api_key_env": None})
        ours, theirs = pty.openpty()
        os.write(ours, f"{answer}\n".encode())
        done = forking.run(str(path), cwd=tmp_path, env=os.environ, terminal=theirs)
        os.close(theirs)
        said = os.read(ours, 65_536).decode()
        os.close(ours)
    assert done.returncode == code
    assert "Run it now? [y/N]" in said
    assert (tmp_path / "out.parquet").exists() == (answer == "y")


def test_a_price_in_the_list_is_looked_at_too(tmp_path: Path) -> None:
    """With OpenRouter's list of prices a cheap first run is not held up."""
    with running() as simulator:
        assert run(write(tmp_path, simulator.url, rows=5)).summary.ok == 5
