"""pool: many questions through one Send; what each may cost in requests, time and money."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from pooling import TYPED, WALL, Answering, Asked, Kept, answered, ask, lost, refused

from batchrun.errors import ExitCode, InputError
from batchrun.money import Pico
from batchrun.prompt import RowProblem
from batchrun.records import Fault, Reply, Status
from batchrun.runner.budget import Budget
from batchrun.runner.work import Work

EMPTY = answered("", cost=None)
USD = 10**12


def by(*replies: Reply, seconds: float = 1.0) -> Answering:
    """Answer each question with these replies in turn, the last one for ever, each after that many seconds."""

    async def answer(_: int, nth: int) -> Reply:
        await asyncio.sleep(seconds)
        return replies[min(nth, len(replies)) - 1]

    return answer


def only(question: int, *replies: Reply, seconds: float = 1.0) -> Answering:
    """Answer one question with these replies in turn, and all others well."""

    async def answer(number: int, nth: int) -> Reply:
        await asyncio.sleep(seconds)
        return replies[min(nth, len(replies)) - 1] if number == question else answered()

    return answer


# -- permits


def test_each_question_is_asked_once_and_no_more_at_a_time_than_allowed() -> None:
    """Good replies: one request a question, in order but for the control, the slots always full."""
    asked = ask(by(answered()), 25, concurrency=10)
    assert asked.order == [*range(1, 13), *range(14, 26), 13]
    assert asked.peak == 10
    assert asked.seconds == pytest.approx(3, abs=0.1)
    assert asked.statuses == ["ok"] * 25
    assert (asked.pool.tally.ok, asked.pool.tally.requests) == (25, 25)


def test_a_waiting_question_holds_no_slot() -> None:
    """With one slot, a question that waits a minute for its retry lets all others go first."""
    asked = ask(only(1, refused(500, wait=60), answered()), 5, concurrency=1)
    assert asked.order == [1, 2, 3, 4, 5, 1]
    assert asked.statuses == ["ok"] * 5
    assert asked.sent[-1][0] >= 61


def test_large_bodies_are_dropped_while_they_wait() -> None:
    """A body of 100 KB is made again for its retry; a small one is kept."""
    made: list[int] = []

    def body_of(number: int) -> bytes:
        made.append(number)
        return json.dumps({"number": number, "messages": [], "text": "x" * (100_000 if number == 1 else 10)}).encode()

    asked = ask(by(refused(500), answered()), 2, body_of=body_of)
    assert sorted(asked.order) == [1, 1, 2, 2]
    assert sorted(made) == [1, 1, 2]


def test_nothing_is_sent_while_the_keeper_is_far_behind() -> None:
    """While the keeper is full of uncommitted outcomes nothing new starts."""
    keep = Kept()

    async def answer(number: int, _: int) -> Reply:
        await asyncio.sleep(1)
        if number == 2:
            keep.is_full = True
        return answered()

    asked = ask(answer, 6, concurrency=2, keep=keep)
    assert asked.statuses == ["ok"] * 6
    assert [round(at) for at, _ in asked.sent] == [0, 0, 1, 61, 61, 62]


# -- the gate


def test_the_wait_of_a_server_closes_the_gate_for_all() -> None:
    """After a 429 with Retry-After nothing is sent but what is in flight, until the window is over; no row is lost."""

    async def answer(_: int, __: int) -> Reply:
        at = asyncio.get_running_loop().time() - 1000
        await asyncio.sleep(0.01)
        return refused(429, wait=5) if 1 <= at < 6 else answered()

    asked = ask(answer, 2_000, concurrency=10)
    closed = next(at for at, _ in asked.sent if at >= 1) + 0.01
    assert [at for at, _ in asked.sent if closed < at < closed + 5] == []
    assert asked.statuses == ["ok"] * 2_000
    assert len(asked.sent) <= 2_000 + 20


def test_rate_limits_cost_no_attempt() -> None:
    """A question that met twenty rate limits still has its attempts, and is answered."""
    asked = ask(only(1, *[refused(429)] * 20, refused(500), answered()), 1, attempts=2)
    assert asked.statuses == ["ok"]
    assert len(asked.sent) == 22


def test_fifteen_minutes_behind_the_gate_stop_the_run() -> None:
    """A server that says nothing but "not now" is given up, resumable; the wait grows meanwhile."""
    asked = ask(by(refused(429)), 50)
    assert asked.valve.exit_code == ExitCode.STOPPED_BY_API
    assert "15 min" in asked.valve.reason
    assert 900 < asked.seconds < 1000
    assert asked.statuses == ["pending"] * 50
    assert len(asked.sent) < 200


def test_a_success_renews_the_patience_with_the_gate() -> None:
    """As long as some questions are answered, another may be refused for an hour."""
    asked = ask(only(1, *[refused(429)] * 5, answered(), seconds=600), 10, concurrency=2)
    assert asked.seconds > 3000
    assert asked.statuses == ["ok"] * 10


def test_slow_requests_do_not_use_up_patience() -> None:
    """One refusal after replies that took 20 minutes stops nothing."""
    asked = ask(only(2, refused(429), answered(), seconds=1_200), 2, concurrency=1)
    assert asked.statuses == ["ok", "ok"]


def test_a_wait_that_the_server_asked_for_is_obeyed_within_the_hour() -> None:
    """Retry-After of 40 minutes is waited for, beyond the patience with untold waits; twice such a wait is not."""
    asked = ask(by(refused(429, wait=2_400), answered()), 2, concurrency=1)
    assert asked.statuses == ["ok", "ok"]
    asked = ask(by(refused(429, wait=2_400)), 2, concurrency=1)
    assert asked.valve.exit_code == ExitCode.STOPPED_BY_API
    assert asked.seconds < 2 * 3600


def test_a_wait_beyond_an_hour_stops_with_the_time_to_come_back() -> None:
    """Nobody waits for two hours: the run stops after one more request and says when to try again."""
    asked = ask(by(refused(429, wait=7_200)), 20, concurrency=2)
    assert (asked.valve.exit_code, len(asked.sent)) == (ExitCode.STOPPED_BY_API, 3)
    assert asked.valve.resume_at == pytest.approx(WALL + 7_200, abs=5)
    assert asked.statuses == ["pending"] * 20


def test_one_attempt_leaves_a_refused_row_pending() -> None:
    """With attempts: 1 a 429 is never asked again in this run, and nobody waits for the gate at its end."""
    asked = ask(only(3, refused(429, wait=1_800)), 3, attempts=1)
    assert asked.statuses == ["ok", "ok", "pending"]
    assert (len(asked.sent), asked.valve.closed) == (3, False)
    assert asked.seconds < 2


def test_an_in_flight_budget_lowers_concurrency() -> None:
    """402 for credit held in flight closes the gate, halves the limit and costs no attempt."""
    replies = refused(402, wait=3, limit_source="openrouter_in_flight_budget"), answered()
    asked = ask(by(*replies), 16, concurrency=16, attempts=1 + 1)
    assert asked.statuses == ["ok"] * 16
    assert asked.pool.tally.limit <= 8


# -- a wrong key


def test_a_wrong_key_costs_one_confirmation() -> None:
    """100 questions, 10 at once: 11 requests, and all stay pending."""
    asked = ask(by(refused(401, "User not found.")), 100)
    assert (len(asked.sent), asked.valve.exit_code) == (11, ExitCode.STOPPED_BY_API)
    assert asked.statuses == ["pending"] * 100
    assert asked.valve.ending == "unauthorized"


def test_a_hiccup_of_the_key_check_stops_nothing() -> None:
    """One 401 to each request in flight, then two 500s for three questions: no attempt is charged for the 401."""

    async def answer(number: int, nth: int) -> Reply:
        await asyncio.sleep(1)
        at = asyncio.get_running_loop().time() - 1000
        is_failing = number <= 3 and nth < 4  # the 401, then two of its three attempts
        return refused(401, "User not found.") if at < 1.5 else refused(500) if is_failing else answered()

    asked = ask(answer, 100, attempts=3)
    assert asked.statuses == ["ok"] * 100
    assert asked.sent[10][0] > 3
    assert asked.sent[11][0] > asked.sent[10][0]
    assert {round(at - asked.sent[11][0], 3) for at, _ in asked.sent[11:21]} == {0}


def test_each_hiccup_of_the_key_check_is_confirmed_again() -> None:
    """Who met a 401 twice has not failed: another question shows each time that the key is good."""

    async def answer(_: int, __: int) -> Reply:
        began = asyncio.get_running_loop().time() - 1000
        await asyncio.sleep(1)
        return refused(401, "User not found.") if began < 1 or 4.5 < began < 6 else answered()

    asked = ask(answer, 6, concurrency=3)
    assert asked.statuses == ["ok"] * 6
    assert max(asked.order.count(number) for number in range(1, 7)) == 3


def test_nothing_starts_beside_a_refusal_that_nobody_explains() -> None:
    """Between a 401 and the next success nothing else starts; then the row is asked again, and at last it fails."""

    async def answer(number: int, _: int) -> Reply:
        await asyncio.sleep(1 if number == 1 else 5)
        return refused(401, "User not found.") if number == 1 else answered()

    asked = ask(answer, 30)
    assert asked.order.count(1) == 3
    assert [at for at, _ in asked.sent if 1 <= at < 5] == []
    assert asked.statuses == ["failed", *["ok"] * 29]
    assert asked.keep.last[1].error_type == "refused_alone"


# -- counts


@pytest.mark.parametrize(("fault", "name"), [(Fault.TIMEOUT, "timeout"), (Fault.RESET, "reset")])
def test_what_may_be_billed_is_sent_twice_at_most(fault: Fault, name: str) -> None:
    """A lost reply is asked for once more; both are counted as possibly billed, and their worst case stays reserved."""
    budget = Budget(cap_run=Pico(100))
    asked = ask(by(lost(fault)), 1, budget=budget, worst_case=lambda _: Pico(10))
    outcome = asked.keep.last[1]
    assert (len(asked.sent), outcome.status, outcome.error_type) == (2, Status.FAILED, name)
    assert (outcome.attempts, outcome.possibly_billed, asked.pool.tally.possibly_billed) == (2, 2, 2)
    assert (budget.reserved, budget.spent) == (20, 0)


def test_what_was_not_sent_is_not_billed() -> None:
    """Without a connection all attempts are used, then the run stops: the row is not at fault."""
    asked = ask(by(lost(Fault.CONNECT, sent=False)), 3, concurrency=1, attempts=3)
    assert asked.pool.tally.possibly_billed == 0
    assert (asked.valve.exit_code, asked.valve.ending) == (ExitCode.STOPPED_BY_API, "connection")
    assert asked.statuses == ["pending"] * 3


def test_an_empty_answer_is_asked_three_times_more() -> None:
    """A cold model gets 4, 12 and 30 seconds."""
    asked = ask(by(EMPTY), 1, jitter=0.0)
    assert [round(at) for at, _ in asked.sent] == [0, 5, 18, 49]
    assert asked.keep.last[1].error_type == "empty_response"


@pytest.mark.parametrize("repairs", [0, 1, 3])
def test_repairs_are_counted(repairs: int) -> None:
    """An answer that never fits is asked `repairs` times more; what the model wrote is kept."""
    asked = ask(by(answered("no JSON", 0.5)), 4, form=TYPED, repairs=repairs)
    assert len(asked.sent) == 4 * (1 + repairs)
    outcome = asked.keep.last[1]
    assert (outcome.error_type, outcome.raw, outcome.attempts) == ("schema_mismatch", "no JSON", 1 + repairs)
    assert outcome.cost == (1 + repairs) * USD // 2


def test_a_repair_continues_the_conversation() -> None:
    """The model is shown what it wrote and what is wrong; a retry of the repair still has that."""
    asked = ask(by(answered("no JSON"), refused(500), answered('{"label": "good"}')), 1, form=TYPED)
    assert [len(body["messages"]) for body in asked.bodies] == [0, 2, 2]
    assert asked.bodies[1]["messages"][0] == {"role": "assistant", "content": "no JSON"}
    assert asked.keep.last[1].answer == '{"label":"good"}'


def test_a_truncated_answer_is_not_asked_again() -> None:
    """The same call would be cut at the same place: one request, the partial text kept, paid."""
    asked = ask(by(answered("half an ans", 0.25, finish_reason="length")), 1, max_tokens=5)
    outcome = asked.keep.last[1]
    assert (len(asked.sent), outcome.error_type, outcome.raw) == (1, "truncated", "half an ans")
    assert (outcome.max_tokens, outcome.cost) == (5, USD // 4)


def test_a_row_that_no_request_can_be_made_for_fails_without_one() -> None:
    """Its outcome says why; the others are asked."""
    problem = RowProblem("image_error", "there is no file")
    asked = ask(by(answered()), 3, body_of=lambda n: problem if n == 2 else json.dumps({"number": n}).encode())
    assert asked.order == [1, 3]
    assert asked.statuses == ["ok", "failed", "ok"]
    assert (asked.keep.last[2].error_message, asked.keep.last[2].attempts) == ("there is no file", 0)


def test_a_mistake_of_the_job_stops_until_an_answer_has_come() -> None:
    """Bad parameters: the second row refused so stops the run; after a success they fail one row, also the first."""
    bad = refused(400, "Invalid schema for response_format 'answer'")
    asked = ask(by(bad), 50, concurrency=1)
    assert (len(asked.sent), asked.valve.exit_code, asked.statuses) == (2, ExitCode.STOPPED_BY_API, ["pending"] * 50)
    for number in (1, 3):
        asked = ask(only(number, bad), 5, concurrency=1)
        assert asked.statuses == ["failed" if row == number else "ok" for row in range(1, 6)]


# -- the breaker


def test_the_breaker_takes_back_all_that_tripped_it() -> None:
    """Ten equal unexplained failures make requests go one at a time; fifteen more stop the run, all rows pending."""
    asked = ask(by(refused(400, "Bad Request")), 40, concurrency=4)
    assert asked.valve.exit_code == ExitCode.STOPPED_BY_API
    assert 25 <= len(asked.sent) <= 28
    assert asked.statuses == ["pending"] * 40
    assert (asked.pool.tally.failed, sum(asked.pool.tally.errors.values())) == (0, 0)
    assert sum(outcome.attempts for outcome in asked.keep.outcomes) == len(asked.sent)
    assert asked.pool.low_water == 0


def test_what_the_breaker_takes_back_is_paid_once() -> None:
    """Rows that become pending again keep their cost, and the books add up."""
    billed = Reply(200, body=b'{"error": {"code": 422, "message": "no"}, "usage": {"cost": 0.25}}')
    asked = ask(by(billed), 20, concurrency=1, breaker=3)
    assert asked.statuses == ["pending"] * 20
    assert [asked.keep.last[number].cost for number in (1, 2, 3)] == [USD // 4] * 3
    assert asked.pool.tally.cost == 18 * USD // 4


def test_a_success_resets_the_breaker() -> None:
    """Failures between successes are final, however many."""

    async def answer(number: int, _: int) -> Reply:
        await asyncio.sleep(1)
        return answered() if number % 5 == 0 else refused(422, "no")

    asked = ask(answer, 100, concurrency=1, breaker=5)
    assert not asked.valve.closed
    assert asked.statuses.count("failed") == 80


def test_only_equal_failures_trip_the_breaker() -> None:
    """Different unexplained failures are not one cause."""

    async def answer(number: int, _: int) -> Reply:
        return refused(422 if number % 2 else 418)

    asked = ask(answer, 20, concurrency=1, breaker=2)
    assert asked.statuses == ["failed"] * 20


def test_explained_failures_trip_no_breaker() -> None:
    """Rows that moderation flags are the rows' own."""
    asked = ask(by(refused(403, "flagged", reasons=["violence"])), 30)
    assert asked.statuses == ["failed"] * 30


def test_a_breaker_of_zero_never_trips() -> None:
    """11 rows that are always refused cost 11 requests."""
    asked = ask(by(refused(400, "Bad Request")), 11, breaker=0)
    assert (len(asked.sent), asked.statuses) == (11, ["failed"] * 11)


def test_no_low_water_passes_what_the_breaker_may_take_back() -> None:
    """A killed run would otherwise never ask those rows again."""

    async def answer(number: int, _: int) -> Reply:
        await asyncio.sleep(1)
        return answered() if number <= 5 else refused(422, "no")

    asked = ask(answer, 40, concurrency=1, breaker=10)
    assert max(asked.low_waters) == 5
    assert asked.statuses == ["ok"] * 5 + ["pending"] * 35


def test_no_low_water_passes_a_question_that_waits() -> None:
    """While the third question waits for its retry, all behind it count as unfinished."""
    asked = ask(only(3, refused(500, wait=30), answered()), 20, concurrency=1)
    assert max(asked.low_waters) == 2
    asked = ask(only(3, refused(500)), 20, concurrency=1, attempts=2)
    assert asked.statuses[2] == "failed"
    assert asked.pool.low_water == 2


# -- stopping


def test_a_stop_sends_nothing_more_and_loses_nothing() -> None:
    """When credit ends, what is in flight is answered and kept; a few more requests show it; the rest is pending."""

    async def answer(number: int, _: int) -> Reply:
        await asyncio.sleep(number)
        return answered() if 2 <= number <= 5 else refused(402, "Insufficient credits.")

    asked = ask(answer, 50, concurrency=5)
    assert (len(asked.sent), asked.valve.exit_code) == (12, ExitCode.STOPPED_BY_API)
    assert asked.statuses == ["pending", *["ok"] * 4, *["pending"] * 45]
    assert asked.valve.reason == "the account's credit is used up: Insufficient credits."


def test_failures_while_stopping_stay_pending() -> None:
    """What would be tried again, or repaired, waits for the next run with what it has cost."""
    replies = {1: refused(402), 2: refused(500), 3: answered("no JSON"), 4: EMPTY, 5: refused(429), 6: refused(403)}

    async def answer(number: int, _: int) -> Reply:
        await asyncio.sleep(number)
        return replies[number]

    asked = ask(answer, 20, concurrency=6, form=TYPED, deadline=0.5)
    assert len(asked.sent) == 6
    assert asked.statuses == ["pending"] * 5 + ["failed"] + ["pending"] * 14
    assert asked.keep.last[3].cost == USD // 1000
    assert asked.pool.low_water == 0


def test_the_grace_bounds_the_wait_for_what_is_in_flight() -> None:
    """A hanging request is given up after the grace: pending, and possibly billed."""

    async def answer(number: int, _: int) -> Reply:
        await asyncio.sleep(0.5 if number == 1 else 10_000)
        return refused(402)

    asked = ask(answer, 20, concurrency=3, grace=30, deadline=1)
    assert asked.seconds == pytest.approx(31, abs=0.1)
    assert asked.statuses == ["pending"] * 20
    assert (asked.pool.tally.possibly_billed, asked.pool.tally.requests) == (2, 3)
    assert [asked.keep.last[number].possibly_billed for number in (1, 2, 3)] == [0, 1, 1]


def test_a_second_signal_aborts() -> None:
    """Nobody waits then: what is in flight is recorded as pending and possibly billed, at once."""
    asked = ask(
        by(answered(), seconds=1_000),
        20,
        concurrency=3,
        at={5: lambda asked: asked.valve.close(ExitCode.SIGINT, "interrupted"), 6: lambda asked: asked.valve.abort()},
    )
    assert asked.seconds == pytest.approx(6, abs=0.01)
    assert [asked.keep.last[number].possibly_billed for number in (1, 2, 3)] == [1, 1, 1]
    assert len(asked.sent) == 3
    assert asked.in_flight == 0


def test_a_suspect_given_up_is_counted_once() -> None:
    """The confirming retry that hangs when the run ends is one possibly billed attempt."""

    async def answer(_: int, nth: int) -> Reply:
        await asyncio.sleep(1 if nth == 1 else 10_000)
        return refused(401)

    asked = ask(answer, 1, grace=5, at={10: lambda asked: asked.valve.close(ExitCode.SIGINT, "interrupted")})
    assert (asked.keep.last[1].attempts, asked.keep.last[1].possibly_billed) == (2, 1)


def test_a_bug_in_a_worker_loses_nothing() -> None:
    """What else is in flight is answered and kept; then the bug is raised; its question is pending."""

    async def answer(number: int, _: int) -> Reply:
        await asyncio.sleep(number)
        if number == 2:
            raise RuntimeError("a bug")
        return answered()

    asked = ask(answer, 50, concurrency=4)
    assert (repr(asked.crash), asked.valve.exit_code) == ("RuntimeError('a bug')", ExitCode.BUG)
    assert asked.statuses[:4] == ["ok", "pending", "ok", "ok"]
    assert asked.seconds < 10
    assert asked.pool.low_water == 0


@pytest.mark.parametrize("after", [2, 7])
def test_a_source_that_breaks_loses_nothing(after: int) -> None:
    """An input that can't be read further stops the run with its own exit code after what is in flight ended."""

    def source() -> Iterator[Work]:
        for number in range(1, after + 1):
            yield Work(number, number - 1, (number,))
        raise InputError("line 8 is ragged")

    asked = ask(by(answered()), 9, concurrency=4, source=source)
    assert isinstance(asked.crash, InputError)
    assert (asked.valve.exit_code, asked.valve.reason) == (ExitCode.USER, "line 8 is ragged")
    assert asked.statuses == ["ok"] * after + ["pending"] * (9 - after)


def test_the_deadline_stops_the_run() -> None:
    """At the deadline nothing more is sent, what is in flight is kept, and nothing is sent once it is past."""
    asked = ask(by(answered(), seconds=10), 100, concurrency=2, deadline=35)
    assert (asked.valve.exit_code, asked.valve.reason) == (ExitCode.STOPPED_BY_LIMIT, "limits.deadline is reached")
    assert len(asked.sent) == 8
    assert asked.seconds == pytest.approx(40, abs=0.1)
    assert asked.statuses == ["ok"] * 8 + ["pending"] * 92
    assert ask(by(answered()), 5, deadline=0).sent == []


def test_a_gate_that_opens_after_the_deadline_stops_the_run_now() -> None:
    """Nobody waits for what comes too late; the time to come back is named. One question's own wait stops nothing."""
    asked = ask(by(refused(429, wait=600)), 20, concurrency=2, deadline=300)
    assert (asked.valve.exit_code, len(asked.sent)) == (ExitCode.STOPPED_BY_LIMIT, 3)
    assert "limits.deadline" in asked.valve.reason
    assert asked.valve.resume_at == pytest.approx(WALL + 600, rel=1e-7)
    asked = ask(only(1, refused(500, wait=600)), 20, concurrency=2, deadline=300)
    assert asked.seconds == pytest.approx(300, abs=1)
    assert asked.statuses == ["pending"] + ["ok"] * 19
    asked = ask(only(8, refused(429)), 8, concurrency=2, deadline=4.2, jitter=0.9)
    assert asked.statuses == ["ok"] * 7 + ["pending"]
    assert asked.valve.reason == "limits.deadline is reached"


def test_too_many_failures_stop_the_run() -> None:
    """limits.max_failed accepts three; the fourth stops the run, and what is in flight is kept."""
    asked = ask(by(refused(403, "flagged", reasons=["violence"])), 50, concurrency=2, max_failed=3)
    assert (asked.valve.exit_code, asked.valve.ending) == (ExitCode.STOPPED_BY_LIMIT, "max_failed")
    assert 4 <= len(asked.sent) <= 5
    assert not ask(by(refused(403, "", reasons=["violence"])), 3, concurrency=2, max_failed=3).valve.closed


# -- money


def test_a_cap_that_admits_nothing_more_stops_the_run() -> None:
    """Worst cases are reserved before, settled after; when none fits and nothing is in flight, exit 4."""
    budget = Budget(cap_run=Pico(USD))
    asked = ask(by(answered(cost=0.15)), 50, budget=budget, worst_case=lambda _: Pico(USD // 4))
    assert (asked.valve.exit_code, asked.valve.ending) == (ExitCode.STOPPED_BY_LIMIT, "max_cost_usd")
    assert len(asked.sent) == 6
    assert budget.spent == 6 * 15 * USD // 100
    assert asked.statuses == ["ok"] * 6 + ["pending"] * 44
    assert asked.peak == 4


def test_what_a_reply_gives_back_starts_all_that_it_is_enough_for() -> None:
    """A large reservation that ends lets as many small ones go as fit, not one."""
    budget = Budget(cap_run=Pico(105))
    asked = ask(by(answered(cost=0.0)), 30, budget=budget, worst_case=lambda number: Pico(100 if number == 1 else 10))
    assert [round(at) for at, _ in asked.sent] == [0] + [1] * 10 + [2] * 10 + [3] * 9


def test_bills_above_the_estimate_raise_it_once_for_all_in_flight() -> None:
    """Each of a hundred replies costs half as much again: that is reserved from then on, not 1.5 ** 100 times."""
    said: list[str] = []
    budget = Budget(cap_run=Pico(USD), warn=said.append)
    asked = ask(by(answered(cost=0.0015)), 400, concurrency=100, budget=budget, worst_case=lambda _: Pico(USD // 1_000))
    assert (asked.valve.exit_code, asked.statuses) == (ExitCode.DONE, ["ok"] * 400)
    assert [line.partition("; ")[2].partition(" is reserved")[0] for line in said] == [
        "from here on 1.5 times the estimate"
    ]
    assert budget.amount(Pico(1_000)) == 1_500


def test_one_question_beyond_the_cap_stops_no_other() -> None:
    """What no cap admits stays pending; the others are asked, and then the run ends as stopped by the cap."""
    budget = Budget(cap_run=Pico(100))
    asked = ask(by(answered(cost=0.0)), 40, budget=budget, worst_case=lambda number: Pico(1_000 if number == 3 else 10))
    assert asked.statuses == ["ok"] * 2 + ["pending"] + ["ok"] * 37
    assert asked.valve.exit_code == ExitCode.STOPPED_BY_LIMIT
    assert asked.pool.low_water == 2


def test_a_cap_gives_up_after_a_thousand_questions_in_a_row() -> None:
    """A huge input is not read to its end for a question that might be small enough."""
    source = (Work(number, number - 1, (number,)) for number in range(1, 5_001))
    budget = Budget(cap_run=Pico(5))
    asked = ask(by(answered()), 5_000, budget=budget, worst_case=lambda _: Pico(10), source=lambda: source)
    assert (asked.sent, asked.valve.exit_code) == ([], ExitCode.STOPPED_BY_LIMIT)
    assert asked.pool.low_water == 0
    assert next(source).question == 1_001


@pytest.mark.parametrize("openrouter", [True, False])
def test_what_an_unpriced_answer_may_cost_stays_reserved(openrouter: bool) -> None:  # noqa: FBT001  (a parameter)
    """An answer whose cost nobody reports counts with its worst case: only so the cap holds."""
    budget = Budget(cap_run=Pico(100))
    asked = ask(by(answered(cost=None)), 50, budget=budget, worst_case=lambda _: Pico(30), openrouter=openrouter)
    assert (len(asked.sent), budget.reserved) == (3, 90)
    assert asked.pool.tally.possibly_billed == (3 if openrouter else 0)


def test_failed_attempts_are_paid_too() -> None:
    """A question's cost is that of all its attempts, and each failed one is on record with its own."""
    asked = ask(by(answered("no JSON", 0.25), answered('{"label": "bad"}', 0.5)), 1, form=TYPED)
    assert asked.keep.last[1].cost == 3 * USD // 4
    assert [attempt.cost for attempt in asked.keep.attempts] == [USD // 4]
    assert asked.pool.tally.cost == 3 * USD // 4


def test_a_connection_that_broke_before_the_reply_charges_no_attempt() -> None:
    """The question is asked again at once, once, on a new connection; the lost one stays counted as possibly billed."""
    asked = ask(by(lost(before_reply=True), answered(), seconds=0.1), 3, attempts=1)
    assert asked.statuses == ["ok"] * 3
    assert asked.pool.tally.possibly_billed == 3
    assert asked.seconds < 1


def test_after_the_life_of_the_prompt_cache_one_request_goes_alone_again() -> None:
    """Where a wait outlasted the cache, requests that start together would each pay for writing it."""

    async def answer(_: int, __: int) -> Reply:
        now = asyncio.get_running_loop().time() - 1000
        await asyncio.sleep(1)
        return refused(429, wait=400) if 2 <= now < 390 else answered()

    def together(asked: Asked) -> int:
        later = [at for at, _ in asked.sent if at > 400]
        return sum(at < later[0] + 1 for at in later)

    cached, other = ask(answer, 20, concurrency=5, cache_life=300.0), ask(answer, 20, concurrency=5)
    assert cached.statuses == other.statuses == ["ok"] * 20
    assert cached.sent[1][0] - cached.sent[0][0] == pytest.approx(1, abs=0.1)
    assert (together(cached), together(other)) == (1, 5)
