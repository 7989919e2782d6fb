"""budget: nothing is spent beyond a cap."""

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchrun.job import Input, Job, Message, Model, Output, Part, Prompt
from batchrun.money import Pico, Price, from_usd
from batchrun.prepare.bounds import bound, unbounded
from batchrun.runner.budget import Budget

amounts = st.integers(0, 10**15)


class Spending(RuleBasedStateMachine):
    """Sends, settles, timeouts and stops in any order."""

    @initialize(run=st.none() | amounts, day=st.none() | amounts, today=amounts)
    def start(self, run: Pico | None, day: Pico | None, today: Pico) -> None:
        self.budget = Budget(run, day, today)
        self.run, self.day, self.today = run, day, today
        self.in_flight: list[Pico] = []
        self.spent = self.kept = 0

    @rule(amount=amounts)
    def send(self, amount: Pico) -> None:
        before = self.budget.reserved
        if self.budget.reserve(amount):
            self.in_flight.append(amount)
        else:
            assert self.budget.reserved == before
            rest_of_day = None if self.day is None else max(0, self.day - self.today)
            cap = min(limit for limit in (self.run, rest_of_day) if limit is not None)
            assert cap - self.budget.spent - before < amount

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        reserved = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        spent = Pico(data.draw(st.integers(0, reserved)))
        keep = data.draw(st.booleans())
        self.budget.settle(reserved, spent, keep=keep)
        self.spent += spent
        self.kept += reserved - spent if keep else 0

    @invariant()
    def holds(self) -> None:
        total = self.budget.spent + self.budget.reserved
        assert self.budget.spent == self.spent
        assert self.budget.reserved == self.kept + sum(self.in_flight)
        assert self.run is None or total <= self.run
        assert self.day is None or total <= max(0, self.day - self.today)


TestSpending = Spending.TestCase
TestSpending.__doc__ = "Any interleaving of sends, settles and timeouts keeps spent + reserved within both caps."


def test_a_request_is_admitted_again_when_another_gave_back() -> None:
    """What a request did not cost of its worst case is free for the next one."""
    budget = Budget(Pico(10))
    assert budget.reserve(Pico(8))
    assert not budget.reserve(Pico(3))
    budget.settle(Pico(8), Pico(2))
    assert not budget.reserve(Pico(9))
    assert budget.reserve(Pico(8))


def test_what_may_have_been_billed_stays_reserved() -> None:
    """After a timeout its worst case is never given to another request."""
    budget = Budget(Pico(10))
    assert budget.reserve(Pico(6))
    budget.settle(Pico(6), Pico(0), keep=True)
    assert not budget.reserve(Pico(5))
    assert (budget.spent, budget.reserved) == (0, 6)


CHEAP, DEAR = Price(Pico(1), Pico(2)), Price(Pico(10), Pico(1), Pico(7))


def test_the_worst_case_takes_the_dearest_model() -> None:
    """Bytes count as tokens, each message as 16 more, and the dearest of the prices holds for the whole request."""
    assert bound([CHEAP, DEAR], messages=2, max_tokens=50)(100) == 10 * 132 + 50 + 7
    assert bound([CHEAP, DEAR], messages=0, max_tokens=1000)(0) == 2000


@given(st.text(max_size=50), st.integers(0, 500), st.integers(0, 9))
def test_no_real_cost_exceeds_the_worst_case(text: str, completion: int, messages: int) -> None:
    """A request with at most a token per byte and at most max_tokens costs at most its worst case."""
    size = len(text.encode())
    most = bound([CHEAP, DEAR], messages=messages, max_tokens=500)(size)
    assert all(price.cost(size + 16 * messages, completion) <= most for price in (CHEAP, DEAR))


class Purse:
    """Commits each lease at once, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.leased = 0

    def lease(self, amount: Pico) -> None:
        self.leased = max(self.leased, amount)


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=60), st.integers(0, 600))
def test_little_of_a_days_cap_is_at_risk(requests: list[tuple[int, bool]], lost: int) -> None:
    """Whatever is sent and settled, what is leased beyond what was spent is 3 % of the cap, and less after kills."""
    cap, purse = 10_000, Purse()
    budget = Budget(None, Pico(cap), Pico(lost), lost_today=Pico(lost), lender=purse)
    risk, flying = max(70, (600 - lost) // 2), list[int]()
    for amount, settles in requests:
        if budget.wait(Pico(amount)) == math.inf:
            assert sum(flying) + amount > risk
        else:
            assert budget.wait(Pico(amount)) == 0
            assert budget.reserve(Pico(amount))
            flying.append(amount)
        assert sum(flying) <= purse.leased - budget.spent <= max(risk, *flying)
        if settles:
            budget.settle(Pico(worst := flying.pop()), Pico(worst // 2))


def job(prompt: Prompt | None = None, name: str = "m", **params: Any) -> Job:  # noqa: ANN401
    """Return a job with these parameters."""
    model = Model("openrouter", name, params=params)
    return Job(Input("x.csv"), prompt or Prompt(user="{{ x }}"), model, Output("y.csv"), file=Path("/j.yaml"))


def test_a_plain_job_is_bounded() -> None:
    """Text, functions, healing and cheaper tiers have a worst case by bytes."""
    plugins = [{"id": "response-healing"}, {"id": "context-compression", "enabled": False}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert unbounded(job(plugins=plugins, tools=tools, service_tier="flex", modalities=["text"])) == ()


@pytest.mark.parametrize(
    ("odd", "named"),
    [
        (job(plugins=[{"id": "web"}]), "params.plugins"),
        (job(plugins=["file-parser"]), "params.plugins"),
        (job(tools=[{"type": "openrouter:web_search"}]), "params.tools"),
        (job(web_search_options={}), "params.web_search_options"),
        (job(prediction={"type": "content"}), "params.prediction"),
        (job(modalities=["image", "text"]), "params.modalities"),
        (job(service_tier="priority"), "params.service_tier"),
        (job(name="m:online"), "the model variant m:online"),
        (
            job(Prompt(messages=(Message("user", (Part(text="a"), Part(image="{{ p }}"))),))),
            "an image in the prompt",
        ),
    ],
)
def test_what_has_no_bound_is_named(odd: Job, named: str) -> None:
    """Images, plugins and dearer tiers need model.max_request_usd under a cap."""
    assert unbounded(odd) == (named,)


def test_money_from_a_job_file_is_exact() -> None:
    """A cap of 0.1 dollars admits ten requests of a cent, not nine and not eleven."""
    budget = Budget(from_usd(Decimal("0.1")))
    assert sum(budget.reserve(from_usd(0.01)) for _ in range(20)) == 10
