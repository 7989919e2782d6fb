"""queueing: whose turn it is."""

from hypothesis import given
from hypothesis import strategies as st

from batchrun.api import TABLE, Action
from batchrun.records import Outcome, Status, Verdict
from batchrun.runner.queueing import NEVER, Queue
from batchrun.runner.retry import Decision
from batchrun.runner.work import Refusal, Work


def untried(_: int) -> bool:
    return False


def work(number: int) -> Work:
    return Work(number, number * 10, ())


def refused(work: Work) -> Refusal:
    outcome = Outcome(work.question, Status.FAILED, 0.0)
    return Refusal(work, outcome, Verdict("no_credit"), TABLE["no_credit"], Decision(Action.STOP))


def queue(count: int = 3) -> Queue:
    return Queue(work(number) for number in range(1, count + 1))


def numbers(waiting: Queue, now: float) -> list[int]:
    """Take all that there is to take now."""
    found = []
    while (taken := waiting.take(now, untried)) is not None:
        found.append(taken.question)
    return found


def test_new_questions_come_in_order() -> None:
    """A source is given from its beginning to its end, and then nothing is left."""
    waiting = queue()
    assert not waiting.is_empty()
    assert numbers(waiting, 0) == [1, 2, 3]
    assert waiting.is_empty()
    assert waiting.next_at == NEVER


def test_a_look_ahead_loses_no_question() -> None:
    """To ask whether anything is left takes nothing away, however often."""
    waiting = queue(2)
    assert [waiting.is_empty() for _ in range(3)] == [False] * 3
    assert waiting.position == 10
    assert numbers(waiting, 0) == [1, 2]


def test_a_due_retry_goes_before_new_questions() -> None:
    """Retries come in the order in which they are due, none too early."""
    waiting = queue(3)
    first, second = waiting.take(0, untried), waiting.take(0, untried)
    assert first
    assert second
    waiting.retry(first, due=9)
    waiting.retry(second, due=5)
    assert waiting.waiting == 2
    assert numbers(waiting, 4) == [3]
    assert waiting.next_at == 5
    assert numbers(waiting, 5) == [2]
    assert numbers(waiting, 9) == [1]


def test_what_was_put_back_is_first_the_next_time() -> None:
    """A question without its permits goes before due retries and new questions."""
    waiting = queue(3)
    first, second = waiting.take(0, untried), waiting.take(0, untried)
    assert first
    assert second
    waiting.retry(first, due=0)
    waiting.put_back(second)
    assert numbers(waiting, 0) == [2, 1, 3]


def test_held_questions_have_no_turn_until_they_are_released() -> None:
    """They count as waiting; those whose requests were sent by then come back."""
    waiting = queue(4)
    first, second = waiting.take(0, untried), waiting.take(0, untried)
    assert first
    assert second
    first.sent_at, second.sent_at = 1.0, 2.0
    waiting.held += [refused(first), refused(second)]
    assert (waiting.waiting, waiting.position) == (2, 10)
    assert numbers(waiting, 9) == [3, 4]
    assert waiting.is_empty()
    assert [held.work for held in waiting.release(1.0)] == [first]
    assert [held.work for held in waiting.release()] == [second]
    assert not waiting.held


@given(st.lists(st.sampled_from(["take", "retry", "put back", "settle", "look"]), max_size=60))
def test_no_question_is_lost_or_doubled(steps: list[str]) -> None:
    """Whatever is done in whatever order: each question is in one place, and the position is below all that wait."""
    waiting, out, done = queue(8), list[Work](), set[int]()
    for now, step in enumerate(steps):
        waits = {work.question for work in waiting.remaining}
        if step == "look":
            waiting.is_empty()
        elif step == "take":
            out += [work for work in [waiting.take(now, untried)] if work is not None]
        elif out and step == "retry":
            waiting.retry(out.pop(0), now + 2)
        elif out and step == "put back" and not waits:
            waiting.put_back(out.pop(0))
        elif out and step == "settle":
            done.add(out.pop(0).question)
        assert all(waiting.position <= work.position for work in waiting.remaining)
    everywhere = numbers(waiting, 10_000) + [work.question for work in out] + list(done)
    assert sorted(everywhere) == list(range(1, 9))
