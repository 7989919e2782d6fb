"""Money through whole jobs: never beyond a cap, equal to the server's own ledger to the picodollar, every sum named."""

import json
import re
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from job_running import Ran, fast, run, write_job
from plain_server import completion, plain_server
from simulator_server import Running, running

from batchrun.cli.main import cli
from batchrun.errors import ExitCode, UserError
from batchrun.job import RunOptions
from batchrun.runner.closing import closing_lines
from batchrun.runner.progress import Ui
from batchrun.runner.work import Tally

MINI = "openai/gpt-4o-mini"
PER_USD = Decimal(10**12)
REVIEWS = [f"Review {number}: {'it came late and broke soon, but the colour is nice. ' * 3}" for number in range(1000)]


def job(folder: Path, simulator: Running, rows: int | list[str] = REVIEWS, **sections: Any) -> Path:  # noqa: ANN401
    """Write a job with moderate max_tokens and short answers."""
    model = {"name": MINI, "params": {"max_tokens": 100}, **sections.pop("model", {})}
    return write_job(folder, simulator.url, rows=rows, model=model, **sections)


def capped(path: Path, usd: Decimal | str) -> Ran:
    """Run with a cap for this run."""
    return run(path, RunOptions(max_cost=Decimal(usd)))


def spent(ran: Ran) -> Decimal:
    """Return what the run says that it spent."""
    return Decimal(ran.summary.cost_usd)


# The cap


def test_a_cap_for_400_of_1000_rows(tmp_path: Path) -> None:
    """It ends the run with exit 4, over 95 % used and never exceeded; the amount that it names finishes the rest."""
    with running() as simulator:
        path = job(tmp_path, simulator)
        cap = Decimal("0.0044")
        first = capped(path, cap)
        billed = simulator.counters.billed_usd
        assert first.summary.exit_code == ExitCode.STOPPED_BY_LIMIT
        assert 380 <= first.summary.ok <= 420
        assert first.summary.ok + first.summary.pending == 1000
        assert cap * 95 / 100 < billed <= cap
        assert spent(first) == billed
        named = re.search(r"the other (\d+) questions need about \$([0-9.]+)", first.summary.reason)
        assert named is not None, first.summary.reason
        assert int(named[1]) == first.summary.pending
        assert first.summary.output == str(tmp_path / "out.partial.parquet")
        second = capped(path, named[2])
        assert (second.summary.exit_code, second.summary.ok) == (ExitCode.DONE, 1000)
        assert spent(second) == simulator.counters.billed_usd - billed
        assert Decimal(second.summary.cost_total_usd) == simulator.counters.billed_usd
        assert simulator.counters.requests == 1000


def test_a_smaller_question_is_asked_where_a_large_one_does_not_fit(tmp_path: Path) -> None:
    """The cap stops a run only when it admits no question that waits: the long text alone stays pending."""
    rows = [*REVIEWS[:20], "very long " * 20_000, *REVIEWS[20:40]]
    with running() as simulator:
        ran = capped(job(tmp_path, simulator, rows), "0.02")
        assert (ran.summary.exit_code, ran.summary.ok, ran.summary.pending) == (ExitCode.STOPPED_BY_LIMIT, 40, 1)
        assert ran.column("status")[20] == "pending"
        assert capped(tmp_path / "job.yaml", "0.1").summary.exit_code == ExitCode.DONE


def test_nothing_is_asked_where_the_cap_admits_nothing(tmp_path: Path) -> None:
    """A cap below the first question's worst case costs no request, and what is needed is named."""
    with running() as simulator:
        ran = capped(job(tmp_path, simulator, 5), "0.00001")
        assert (ran.summary.exit_code, ran.summary.requests) == (ExitCode.STOPPED_BY_LIMIT, 0)
        assert ran.summary.reason.endswith("one question may cost $0.00014, all 5 about $0.00067")
        assert simulator.counters.requests == 0


LOST = ("200-cut-json", "drop-mid-body", "200-null-usage", "reset")


def test_what_may_have_been_billed_stays_reserved(tmp_path: Path) -> None:
    """With every fifth reply lost or without a cost, the bill that nobody reports stays below the cap as well."""
    with running(faults=dict.fromkeys(LOST, 0.05)) as simulator:
        path = job(tmp_path, simulator)
        ran = capped(path, cap := Decimal("0.01"))
        counters = simulator.counters
        lost = sum(counters.endings[name] for name in LOST)
        assert ran.summary.exit_code == ExitCode.STOPPED_BY_LIMIT
        assert spent(ran) < counters.billed_usd <= cap
        assert ran.summary.possibly_billed == lost > 10
        with sqlite3.connect(tmp_path / ".batchrun" / "job.sqlite") as books:
            assert books.execute("SELECT sum(possibly_billed) FROM answers").fetchone() == (lost,)
        assert any(
            f"{lost} more requests may have been billed" in line for line in closing_lines(ran.summary, tmp_path)
        )


@pytest.mark.parametrize("status", [504, 524])
def test_a_gateway_that_did_not_wait_may_be_billed(status: int, tmp_path: Path) -> None:
    """The model behind it continues to write, so the worst case of each such request stays reserved under a cap."""
    asked: list[str] = []

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked.append(body["messages"][-1]["content"])
        slow = asked[-1] == "Label: slow"
        good = completion('{"label": "good", "score": 1}', prompt_tokens=10, completion_tokens=5)
        return (status, {"error": {"message": "Gateway Time-out"}}) if slow else good

    model = {"name": "m", "price": {"prompt": 1, "completion": 10}, "params": {"max_tokens": 100}}
    with plain_server(answer) as url:
        rows = ["slow", *(f"t{row}" for row in range(20))]
        ran = run(write_job(tmp_path, url, rows=rows, model=model, limits={"max_cost_usd": 1}), clock=fast())
    assert (ran.summary.ok, ran.summary.possibly_billed) == (20, asked.count("Label: slow"))
    assert ran.summary.cost_at_most_usd >= ran.summary.cost_usd + asked.count("Label: slow") * Decimal("0.001")


def test_thoughts_that_only_the_total_counts_are_paid(tmp_path: Path) -> None:
    """Such as those of xAI and Gemini; this is what xAI charged for such a reply."""
    used = {
        "prompt_tokens": 10120,
        "completion_tokens": 1499,
        "total_tokens": 14428,
        "prompt_tokens_details": {"cached_tokens": 128},
        "completion_tokens_details": {"reasoning_tokens": 2809},
    }
    model = {"name": "m", "price": {"prompt": 1.25, "completion": 2.5, "cache_read": 0.2}}
    with plain_server(lambda _: completion('{"label": "good", "score": 1}', **used)) as url:
        ran = run(write_job(tmp_path, url, rows=1, model=model))
    assert spent(ran) == Decimal("0.0232856")


def test_a_server_that_counts_no_tokens_does_not_lift_a_cap(tmp_path: Path) -> None:
    """Usage of zeros says nothing: each answer keeps its worst case reserved, and may have been billed."""
    good = '{"label": "good", "score": 1}'
    model = {"name": "m", "price": {"prompt": 1, "completion": 10}, "params": {"max_tokens": 100}}
    with plain_server(lambda _: completion(good, prompt_tokens=0, completion_tokens=0, total_tokens=0)) as url:
        ran = run(write_job(tmp_path, url, rows=100, model=model, limits={"max_cost_usd": 0.02}))
    assert ran.summary.exit_code == ExitCode.STOPPED_BY_LIMIT
    assert 0 < ran.summary.ok < 20
    assert ran.summary.possibly_billed == ran.summary.ok


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "openrouter/auto"}, 'the price of "openrouter/auto" is unknown'),
        ({"name": "some/model"}, 'the price of "some/model" is unknown'),
        ({"name": MINI, "fallbacks": ["some/model"]}, 'the price of "some/model" is unknown'),
        ({"name": MINI, "params": {"max_tokens": None}}, "nothing bounds the answers: set model.params.max_tokens"),
        ({"name": MINI, "params": {"plugins": [{"id": "web"}]}}, "not bounded (params.plugins)"),
    ],
)
def test_a_cap_that_can_not_be_kept_is_refused(model: dict[str, Any], words: str, tmp_path: Path) -> None:
    """An unknown price or an unbounded cost ends with exit 2 before any request; without a cap the job runs."""
    with running() as simulator:
        path = job(tmp_path, simulator, 2, model=model, limits={"max_cost_usd": 1})
        with pytest.raises(UserError, match=re.escape(words)) as problem:
            run(path)
        assert problem.value.exit_code == ExitCode.USER
        assert simulator.counters.requests == 0
        free = job(tmp_path, simulator, 2, model={**model, "max_request_usd": 0.01}, limits={"max_cost_usd": 1})
        assert run(free).summary.ok == 2


# The day


def test_a_cap_for_the_day_over_three_runs(tmp_path: Path) -> None:
    """Runs share the day's cap, --fresh as well; what was spent stays counted when the checkpoint is new."""
    with running() as simulator:
        limits = {"max_cost_usd": {"run": 0.003, "day": 0.007}}
        path = job(tmp_path, simulator, limits=limits)
        runs = [run(path), run(path, RunOptions(fresh=True)), run(path)]
        bills = [spent(ran) for ran in runs]
        assert [ran.summary.exit_code for ran in runs] == [ExitCode.STOPPED_BY_LIMIT] * 3
        assert all(bill <= Decimal("0.003") for bill in bills)
        assert bills[2] < bills[1], "the day has little left"
        day = simulator.counters.billed_usd
        assert Decimal("0.0066") < day <= Decimal("0.007")
        assert Decimal(runs[2].summary.cost_today_usd) == sum(bills) == day
        last = run(path, RunOptions(fresh=True))
        assert (last.summary.requests, last.summary.cost_today_usd) == (0, day)
        assert simulator.counters.billed_usd == day


# The ledger


FAULTS = {
    "429": 0.02, "429-retry-after": 0.01, "502": 0.02, "503": 0.02, "500": 0.01, "408": 0.01, "529": 0.01,
    "520-html": 0.01, "402-in-flight": 0.01, "403-moderated": 0.01, "200-error-524": 0.01, "200-error-429": 0.01,
    "200-error-choice": 0.01, "200-error-finish": 0.01, "200-no-choices": 0.01, "200-empty": 0.01,
    "200-empty-string": 0.01, "truncated": 0.02, "200-reasoning": 0.01, "content-filter": 0.01, "refusal": 0.01,
    "wrong-type": 0.05, "cut-json": 0.02, "not-json": 0.02, "fenced": 0.02, "byok": 0.05,
}  # fmt: skip


@pytest.mark.parametrize("rows", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_ledger_of_rows_with_faults(tmp_path: Path, rows: int) -> None:
    """Failed attempts, repairs, truncations and own keys included, every sum equals the server's bill exactly."""
    with running(faults=FAULTS, retry_after=0.01) as simulator:
        path = job(tmp_path, simulator, rows, limits={"concurrency": 40, "timeout": 30})
        ran = run(path)
        billed, requests = simulator.counters.billed_usd, simulator.counters.requests
        endings = simulator.counters.endings
    summary = ran.summary
    assert summary.ok + summary.failed == rows
    assert summary.ok > 0.9 * rows
    assert all(endings[name] > 2 for name in FAULTS)
    assert (summary.requests, summary.possibly_billed) == (requests, 0)
    sums = [summary.cost_usd, summary.cost_today_usd, summary.cost_total_usd, summary.cost_output_usd]
    assert [Decimal(amount) for amount in sums] == [billed] * 4
    # A float holds each row's amount to the picodollar; only their sum must not be made of floats.
    assert sum(round(usd * 10**12) for usd in ran.column("cost_usd")) / PER_USD == billed
    assert sum(ran.column("attempts")) == requests
    facts = json.loads(
        CliRunner().invoke(cli, ["status", str(path), "--json", "--verify"], catch_exceptions=False).stdout
    )
    names = ("cost_output_usd", "cost_last_run_usd", "cost_today_usd", "cost_total_usd")
    assert [Decimal(str(facts[name])) for name in names] == [billed] * 4
    assert (facts["wrong"], facts["runs"][0]["requests"]) == ([], requests)


def test_every_sum_says_which_it_is(tmp_path: Path) -> None:
    """After a retry and an edited prompt the sums differ, and each is named: this output, last run, today, all runs."""
    with running(faults={"truncated:1": 0.5}) as simulator:
        path = job(tmp_path, simulator, 20)
        bills = [spent(run(path)), spent(run(path, RunOptions(retry=frozenset())))]
        path = job(tmp_path, simulator, 20, prompt={"user": "Judge: {{ text }}"})
        last = run(path).summary
        bills.append(Decimal(last.cost_usd))
        total = simulator.counters.billed_usd
    assert all(bills)
    assert sum(bills) == total == Decimal(last.cost_total_usd) == Decimal(last.cost_today_usd)
    assert Decimal(last.cost_output_usd) == bills[2] < total
    shown = CliRunner().invoke(cli, ["status", str(path)], catch_exceptions=False).stdout
    assert re.search(r"money: \$\S+ this output, \$\S+ the last run, \$\S+ today \(UTC\), \$\S+ all runs", shown)


def test_own_provider_keys_cost_upstream_and_fee(tmp_path: Path) -> None:
    """With BYOK the books hold what the provider charges and OpenRouter's fee, and the cap holds for both."""
    with running() as simulator:
        ran = capped(job(tmp_path, simulator, model={"name": "sim/byok"}), "0.004")
        assert ran.summary.exit_code == ExitCode.STOPPED_BY_LIMIT
        assert Decimal("0.0036") < spent(ran) == simulator.counters.billed_usd <= Decimal("0.004")


def test_answers_from_the_cache_cost_nothing_and_are_shown(tmp_path: Path) -> None:
    """What OpenRouter's cache answers counts 0 in every sum, and is reported as such."""
    with running() as simulator:
        path = job(tmp_path, simulator, 30, model={"cache": True}, limits={"max_cost_usd": 1})
        paid = run(path).summary
        free = run(path, RunOptions(fresh=True)).summary
        assert simulator.counters.endings == {"good": 30, "cache-hit": 30}
        assert Decimal(paid.cost_usd) == Decimal(free.cost_today_usd) == simulator.counters.billed_usd
    assert (paid.cached, free.cached, free.ok, free.cost_usd) == (0, 30, 30, Decimal(0))
    assert any("30 answers from OpenRouter's cache at no cost" in line for line in closing_lines(free, tmp_path))
    shown = CliRunner().invoke(cli, ["status", str(path)], catch_exceptions=False).stdout
    assert "30 requests, $0, 30 from OpenRouter's cache at no cost" in shown


def test_a_cache_needs_shared_answers(tmp_path: Path) -> None:
    """`dedupe: false` wants an answer of its own for each row, which a cache would not give: it is refused."""
    with running() as simulator, pytest.raises(UserError, match=r"model\.cache would give equal rows one answer"):
        run(job(tmp_path, simulator, 2, model={"cache": True}, dedupe=False))


# Credit in flight


class Limits(Ui):
    """Notes the limits of requests in flight that a run had."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def update(self, tally: Tally, *_: object) -> None:
        self.seen.append(tally.limit)


def test_credit_held_in_flight_lowers_concurrency(tmp_path: Path) -> None:
    """Where an account's credit allows two requests at once, the run comes down to two; no row fails."""
    with running(in_flight_budget=Decimal("0.00015"), retry_after=0.02, latency=0.01) as simulator:
        path = job(tmp_path, simulator, 150, limits={"concurrency": "auto"})
        ran = run(path, ui=(ui := Limits()), clock=fast(20))
        refused = simulator.counters.endings["limit:402-in-flight"]
    assert (ran.summary.exit_code, ran.summary.ok) == (ExitCode.DONE, 150)
    assert ran.summary.requests == 150 + refused
    assert 0 < refused < 75
    assert ui.seen[-1] <= 8, "without refusals it is 128"


def test_credit_held_in_flight_charges_no_attempt(tmp_path: Path) -> None:
    """A question may be refused for credit in flight more often than limits.attempts."""
    with running(faults={"402-in-flight:5": 0.2}, retry_after=0.02) as simulator:
        ran = run(job(tmp_path, simulator, 30, limits={"attempts": 2}))
    assert ran.summary.ok == 30
    assert ran.count("attempts").keys() == {1, 6}


@pytest.mark.parametrize(
    ("params", "sent"),
    [
        ({}, {"max_tokens": 2048}),
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": 70}, {"max_completion_tokens": 70}),
        ({"max_completion_tokens": None, "max_tokens": 7}, {"max_completion_tokens": None, "max_tokens": 7}),
        ({"max_tokens": None}, {"max_tokens": None}),
    ],
)
def test_a_bound_on_tokens_is_sent(params: dict[str, Any], sent: dict[str, Any], tmp_path: Path) -> None:
    """OpenRouter holds credit for max_tokens: what the job says of it, null as well, else ours."""
    with running(keep_requests=1) as simulator:
        run(write_job(tmp_path, simulator.url, rows=1, model={"params": params}))
        body = json.loads(simulator.counters.recorded[0].body)
    assert {name: value for name, value in body.items() if name.startswith("max_")} == sent


# Other endpoints


PRICE = {"price": {"prompt": 1, "completion": 10}, "params": {"max_tokens": 50}}


def test_the_price_in_the_job_counts_tokens(tmp_path: Path) -> None:
    """Without a reported cost, tokens times model.price are spent, for failed answers as well, within the cap."""
    replies = iter(range(10**6))

    def answer(_: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        good = next(replies) % 2
        return completion('{"label": "good", "score": 1}' if good else "no", prompt_tokens=100, completion_tokens=9)

    with plain_server(answer) as url:
        path = write_job(tmp_path, url, rows=100, model=PRICE, answer={"repairs": 0}, limits={"concurrency": 1})
        ran = capped(path, "0.01")
        each = Decimal("0.00019")
        asked = next(replies)
    assert ran.summary.exit_code == ExitCode.STOPPED_BY_LIMIT
    assert ran.summary.ok + ran.summary.failed == asked
    assert ran.summary.failed in range(asked // 2, asked // 2 + 2)
    assert spent(ran) == asked * each
    assert Decimal("0.009") < spent(ran) <= Decimal("0.01")


def test_answers_without_a_count_keep_their_reservation(tmp_path: Path) -> None:
    """A server that counts no tokens has spent who knows what: the worst case of each answer stays reserved."""
    with plain_server(lambda _: completion('{"label": "good", "score": 1}')) as url:
        ran = capped(write_job(tmp_path, url, rows=100, model=PRICE), "0.02")
    assert ran.summary.exit_code == ExitCode.STOPPED_BY_LIMIT
    assert 0 < ran.summary.ok == ran.summary.possibly_billed < 30
    assert ran.summary.cost_usd == 0


def test_a_cost_that_nobody_knows_is_empty(tmp_path: Path) -> None:
    """An answer without a count of tokens was billed, so its cost is not 0; neither is that of a row equal to it."""
    known, unknown = {"prompt_tokens": 1000, "completion_tokens": 5}, {"prompt_tokens": 1000}

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompt = body["messages"][0]["content"]
        return completion('{"label": "good", "score": 1}', **(known if prompt.endswith("known") else unknown))

    with plain_server(answer) as url:
        ran = run(write_job(tmp_path, url, rows=["known", "no", "known", "no"], model=PRICE))
    assert ran.column("cost_usd") == [pytest.approx(0.00105), None, 0, None]
    with closing(sqlite3.connect(tmp_path / ".batchrun" / "job.sqlite")) as db:
        shown = [cost for (cost,) in db.execute("SELECT cost_usd FROM results ORDER BY position")]
    assert shown == ran.column("cost_usd")
    assert (ran.summary.ok, ran.summary.possibly_billed) == (4, 1)


def test_a_cap_needs_a_bound_on_tokens(tmp_path: Path) -> None:
    """At other endpoints no max_tokens is added; a cap without one is refused before any request."""
    with plain_server(lambda _: (500, {})) as url:
        path = write_job(tmp_path, url, model={"price": PRICE["price"]}, limits={"max_cost_usd": 1})
        with pytest.raises(UserError, match=re.escape("set model.params.max_tokens")):
            run(path)


def test_a_run_of_unknown_cost_says_so_beside_earlier_known_costs(tmp_path: Path) -> None:
    """A price that was taken out of the job makes the next run's cost unknown, and not $0."""
    with plain_server(lambda _: completion("yes", prompt_tokens=10, completion_tokens=1)) as url:
        plain: dict[str, Any] = {"rows": ["a"], "answer": None, "model": {"api_key_env": None, "name": "m"}}
        priced = plain | {"model": plain["model"] | {"price": {"prompt": 1000, "completion": 1000}}}
        first = run(write_job(tmp_path, url, **priced)).summary
        second = run(write_job(tmp_path, url, **plain | {"rows": ["a", "b"]})).summary
        third = run(write_job(tmp_path, url, **plain | {"rows": ["a", "b"]})).summary
    assert first.cost_usd > 0
    assert re.search(r"cost unknown, \$[0-9.]+ in all runs", next(iter(closing_lines(second, tmp_path))))
    assert "unknown" not in next(iter(closing_lines(third, tmp_path))), "nothing was asked"
