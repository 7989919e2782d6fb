"""What a batch that ended brings: what becomes of each question, and the batch's cost divided among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from batchrun.api import (
    GIVE_UP,
    TABLE,
    Action,
    BatchApi,
    Blame,
    Count,
    Ending,
    Mask,
    Shown,
    UnavailableError,
    judge,
)
from batchrun.checkpoint import BATCH_TRIES, Batch
from batchrun.money import ZERO, Pico, apportion
from batchrun.prompt import AnswerForm
from batchrun.records import Outcome, Reply, Status, Verdict
from batchrun.runner.work import Charge, Rules, Work
from batchrun.terminal import aside

_STOPS = frozenset({Action.STOP, Action.CONFIRM, Action.FAIL_IF_PROVEN})
_RUNS_OUT = frozenset({"no_credit", "key_limit", "daily_quota"})
"""Endings that may come to lines after others were answered, and to all after them."""


@dataclass(frozen=True, slots=True)
class Collected:
    """All that one batch brought. `unassigned` is money that belongs to no question; `stop` ends the run."""

    outcomes: Sequence[Outcome]
    unassigned: Pico
    stop: Verdict | None

    def count(self, status: Status) -> int:
        """Count the questions that stand so."""
        return sum(outcome.status is status for outcome in self.outcomes)

    @property
    def cost(self) -> Pico:
        """What the batch cost, in picodollars."""
        return Pico(sum(outcome.cost for outcome in self.outcomes) + self.unassigned)


class _Answered(NamedTuple):
    question: int
    tries: int
    verdict: Verdict


def read_lines(
    api: BatchApi, batch: Batch, shown: Shown, *, mask: Mask | None, now: float
) -> tuple[dict[bytes, Verdict], int]:
    """Judge each line of a batch like a live reply as it comes; return the verdicts by key, and how many are foreign.

    Raises UnavailableError.
    """
    mine: dict[bytes, Verdict] = {}
    others = 0
    parse = AnswerForm.of(batch.answer_schema).parse
    for line in api.lines(shown):
        tag, _, text = line.custom_id.partition("-")
        if tag != batch.tag:
            others += 1
            continue
        try:
            key = bytes.fromhex(text)
        except ValueError:
            continue
        mine.setdefault(key, judge(line.reply, parse, now=now, mask=mask))
    if shown.completed and not mine and not others:
        # They are paid for: asked again, they would be paid twice.
        raise UnavailableError(Verdict("server_error", f"it has {shown.completed:,} answers and shows none{GIVE_UP}"))
    return mine, others


def collected(
    shown: Shown,
    questions: Sequence[tuple[bytes, int, int]],
    verdicts: Mapping[bytes, Verdict],
    *,
    rules: Rules,
    fails: bool,
    proven: bool,
    now: float,
) -> Collected:
    """Return what becomes of a batch's questions, and what they cost.

    `verdicts` are those on its lines, by key;
    `questions` are its keys, ids, and how many earlier batches did not answer each; `fails`: what no batch answers
    fails, and is not asked live; `proven`: another batch of this run brought an answer. `now` is Unix time.
    """
    answered = []
    for key, question, tries in questions:
        answered.append(_Answered(question, tries, verdicts.get(key) or _without_line(shown)))
    # One answer shows that key and account are good, so that a refused line is the row's own fault.
    proven = proven or any(one.verdict.ending == "ok" for one in answered)
    charges, unassigned = _charges(answered, shown, rules)
    outcomes, stop = [], None
    for one, charge in zip(answered, charges, strict=True):
        ending = TABLE[one.verdict.ending]
        status = _status(ending, one.tries + 1, proven=proven, fails=fails)
        if _stops(ending, proven=proven or one.tries > 0) and status is Status.PENDING:
            stop = stop or one.verdict
        work = Work(one.question, 0, ())
        work.paid(charge)
        outcome = work.outcome(status, one.verdict, Reply(), at=now, rules=rules)
        # Nobody measured it. Without seconds a pending question does not count as one that failed among successes.
        outcomes.append(outcome._replace(seconds=None))
    return Collected(outcomes, unassigned, stop)


def _without_line(shown: Shown) -> Verdict:
    """Return the verdict on a question without a line of its own."""
    message = f"the batch is {shown.status} without an answer to this question{aside(shown.problem)}"
    return Verdict("server_error", message, code=TABLE["server_error"].code)


def _charges(answered: Sequence[_Answered], shown: Shown, rules: Rules) -> tuple[list[Charge], Pico]:
    """Return what each question costs, and what belongs to none.

    A provider that names one cost for the whole batch leaves the division to us: by what the tokens of each line would
    cost, where lines have tokens, else equally over the answers.
    """
    if shown.is_gone:
        return [Charge(None, maybe=True, keep=True)] * len(answered), ZERO
    # Elsewhere than at OpenRouter the job's own price counts: what the server reports need not be in USD.
    if shown.cost is None or (not rules.openrouter and rules.price is not None):
        return [rules.charge(one.verdict) for one in answered], ZERO
    weights = [_weight(one.verdict, rules) for one in answered]
    if not any(weights):
        weights = [int(one.verdict.ending == "ok") for one in answered]
    if not any(weights):
        return [Charge(ZERO, maybe=False, keep=False)] * len(answered), shown.cost
    return [Charge(part, maybe=False, keep=False) for part in apportion(shown.cost, weights)], ZERO


def _weight(verdict: Verdict, rules: Rules) -> int:
    """Return what a line would cost by its tokens; without a price, its tokens."""
    usage = verdict.usage
    if rules.price is not None:
        return rules.cost_by_tokens(usage) or 0
    return 0 if usage.prompt_tokens is None else usage.prompt_tokens + (usage.completion_tokens or 0)


def _stops(ending: Ending, *, proven: bool) -> bool:
    """Check whether a line stops the run.

    One that says "wrong key" among answers is the provider's slip, or the row's own: otherwise each run would submit
    that row again, and stop.
    """
    return ending.action in _STOPS and (not proven or ending.name in _RUNS_OUT)


def _status(ending: Ending, tries: int, *, proven: bool, fails: bool) -> Status:
    """Return how a question stands after that many batches; PENDING: it is submitted once more, or asked live."""
    if ending.action is Action.ACCEPT:
        return Status.OK
    if ending.action is Action.FAIL or (ending.action is Action.FAIL_IF_PROVEN and proven):
        return Status.FAILED
    if _stops(ending, proven=proven or tries > 1) or tries < BATCH_TRIES:
        return Status.PENDING
    by_row = ending.blames in {Blame.ROW, Blame.UNKNOWN} and ending.count is not Count.REPAIRS
    return Status.FAILED if by_row or fails else Status.PENDING
