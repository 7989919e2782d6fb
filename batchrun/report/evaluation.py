"""How many answers are right: accuracy with its interval, scores of labels, confusions, the cost of a right answer."""

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, NamedTuple

from batchrun.api import cost_kind
from batchrun.checkpoint import Checkpoint
from batchrun.errors import UserError
from batchrun.money import PER_USD, CostKind, Pico, cost
from batchrun.prepare import Prepared
from batchrun.records import Status, kind_of
from batchrun.report.answered import AnsweredRow, answered_rows
from batchrun.report.calibration import Reservoir, Scored
from batchrun.report.gold import Gold, GoldOptions, Rule, answer_named, gold_of
from batchrun.report.statistics import LabelScores, label_scores, wilson
from batchrun.runner import Corrections

MOST_CLASSES, MOST_PAIRS = 200, 40_000
"""More different gold values, or pairs of gold and answer, are not labels but texts."""

SHOWN_ROWS = 3


@dataclass(frozen=True, slots=True)
class Share:
    """A share of questions with its 95 % interval (Wilson)."""

    right: int
    total: int

    @property
    def value(self) -> float | None:
        """The share from 0 to 1; None of nothing."""
        return self.right / self.total if self.total else None

    def of(self, noun: str) -> str:
        """Return the counts, the share and its interval for people; `noun` is in the plural."""
        low, high = map(percent, wilson(self.right, self.total))
        return f"{self.counts(noun)}, 95 % interval {low} to {high}"

    def counts(self, noun: str) -> str:
        """Return the counts and the share for people, without the interval."""
        return f"{self.right:,} of {self.total:,} {noun}: {percent(self.value)}"

    def facts(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        low, high = wilson(self.right, self.total)
        return {"value": self.value, "low": low, "high": high, "right": self.right, "n": self.total}


@dataclass(frozen=True, slots=True)
class Confusion:
    """A gold label for which another one was answered (None: no answer), and the first rows, numbered from 1."""

    gold: str
    answer: str | None
    questions: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How the answers of a job compare with gold. All counts are of distinct questions.

    `accuracy` counts failed questions as wrong, `answered` leaves them out. `pending` have gold and no answer yet;
    `contradictory` have rows with different gold, of which the most frequent counts. `other_case` wrong answers would
    be right if case did not count. `reviewed`: gold are corrections, of rows that were picked. `scored` holds the
    probability of each answer that has one. Money is in USD: the mean of all settled questions; None where unknown.
    """

    gold: Gold
    accuracy: Share
    answered: Share
    pending: int
    contradictory: int
    other_case: int
    labels: list[LabelScores]
    confusions: list[Confusion]
    cost_per_question_usd: float | None
    cost_kind: CostKind
    scored: list[Scored]
    reviewed: bool = False

    @property
    def cost_per_right_usd(self) -> float | None:
        """USD for each right answer."""
        if self.cost_per_question_usd is None or not self.accuracy.value:
            return None
        return self.cost_per_question_usd / self.accuracy.value

    @property
    def macro_f1(self) -> float | None:
        """The mean F1 of the labels that gold has."""
        scores = [one.f1 or 0.0 for one in self.labels if one.support]
        return sum(scores) / len(scores) if scores else None


def evaluate(
    prepared: Prepared, checkpoint: Checkpoint, options: GoldOptions, *, any_wording: bool = False
) -> Evaluation:
    """Compare a job's answers with gold; `any_wording` as for `answered_rows`.

    Raises UserError where no settled row has gold, and as `gold_of` does.
    """
    gold = gold_of(prepared, options)
    walk = _Questions(gold, checkpoint.repeated())
    for row in answered_rows(prepared, checkpoint, (gold.source,), any_wording=any_wording):
        walk.take(row, gold.of(row.cells[0], row.position))
    return walk.evaluation(cost_kind(prepared.job))


def evaluate_reviewed(prepared: Prepared, checkpoint: Checkpoint, name: str) -> Evaluation:
    """Compare the model's answers with what a person corrected or confirmed. Raises UserError if that is nothing."""
    corrections = Corrections(prepared.job)
    answer = answer_named(tuple(prepared.form.columns), name, "")
    rule = Rule(kind_of(prepared.form.columns[answer]), ignore_case=False, tolerance=Decimal(0))
    gold = Gold(answer, corrections.path.name, rule, "")
    columns = corrections.columns(prepared.rows.columns)
    walk = _Questions(gold, checkpoint.repeated())
    for row in answered_rows(prepared, checkpoint, columns):
        found = corrections.find(dict(zip(columns, row.cells, strict=True)))
        walk.take(row, gold.of(found and found.answer.get(gold.answer), row.position))
    # Probabilities of the least sure answers say nothing about a threshold for all.
    return replace(walk.evaluation(cost_kind(prepared.job)), reviewed=True, scored=[])


@dataclass(slots=True)
class Bill:
    """What the settled questions of a job cost together; picodollars."""

    cost: int = 0
    settled: int = 0

    def take(self, row: AnsweredRow) -> None:
        """Add a row: its question counts once."""
        self.cost += row.cost
        self.settled += row.first and row.status in {Status.OK, Status.FAILED}

    def per_question(self, kind: CostKind) -> float | None:
        """Return the mean in picodollars; None where nobody reports costs, and of nothing."""
        if not self.settled or (kind == CostKind.UNKNOWN and not self.cost):
            return None
        return self.cost / self.settled


class _Judged(NamedTuple):
    """A question with gold: its answer, the position of its first row, and the probability of the answer."""

    gold: str
    answer: str | None
    position: int
    probability: float | None


class _Repeated(NamedTuple):
    """A question that stands in several rows, and how many of them have which gold."""

    first: _Judged
    golds: Counter[str]


class _Questions:
    """Takes rows; equal rows are one question, whose gold is the most frequent of its rows.

    Only the questions that stand in several rows are held in memory: see `Checkpoint.repeated`.
    """

    def __init__(self, gold: Gold, repeated: Collection[int]) -> None:
        self._gold, self._bill, self._ids = gold, Bill(), repeated
        self._repeated: dict[int, _Repeated] = {}
        self._pending: set[int | None] = set()
        self._total = self._right = self._answered = self._open = self._other_case = 0
        self._golds: set[str] = set()
        self._pairs: Counter[tuple[str, str | None]] = Counter()
        self._rows: dict[tuple[str, str | None], list[int]] = defaultdict(list)
        self._scored = Reservoir()

    def take(self, row: AnsweredRow, gold: str | None) -> None:
        """Take one row and its gold; without gold it counts only for the cost."""
        self._bill.take(row)
        if row.status == Status.SKIPPED or gold is None:
            return
        # Most questions stand in one row: only the others are held, so that ten million rows need no memory.
        is_repeated = row.question in self._ids
        if row.status == Status.PENDING:
            if is_repeated:
                self._pending.add(row.question)
            else:
                self._open += 1
            return
        if row.question is not None and is_repeated and row.question in self._repeated:
            self._repeated[row.question].golds[gold] += 1
            return
        self._answered += row.status == Status.OK
        judged = _Judged(gold, answer_of(row, self._gold), row.position, row.probabilities.get(self._gold.answer))
        if row.question is not None and is_repeated:
            self._repeated[row.question] = _Repeated(judged, Counter([gold]))
        else:
            self._count(judged)

    def _count(self, one: _Judged) -> None:
        """Count a question whose gold is known."""
        is_right = self._gold.rule.equal(one.gold, one.answer)
        self._total += 1
        self._right += is_right
        if one.probability is not None:
            self._scored.add((one.probability, is_right))
        if not is_right and one.answer is not None:
            self._other_case += one.gold.casefold() == one.answer.casefold()
        if len(self._golds) > MOST_CLASSES or len(self._pairs) > MOST_PAIRS:
            return  # texts, not labels: nobody looks at their counts
        pair = one.gold, one.answer
        self._golds.add(one.gold)
        self._pairs[pair] += 1
        if not is_right:
            self._rows[pair] = sorted([*self._rows[pair], one.position + 1])[:SHOWN_ROWS]

    def evaluation(self, kind: CostKind) -> Evaluation:
        """Return the evaluation."""
        for first, golds in self._repeated.values():
            self._count(first._replace(gold=golds.most_common(1)[0][0]))
        if not self._total:
            where = f'no answered row has a value in "{self._gold.column}"'
            if self._gold.joined is not None:
                where += f', joined by "{self._gold.source}"'
            raise UserError(f"--gold: {where}, so that nothing can be compared")
        classes, pairs = len(self._golds), len(self._pairs)
        is_few = classes <= MOST_CLASSES and pairs <= MOST_PAIRS and 2 * classes <= self._total
        if not (self._gold.rule.is_label() and is_few):  # texts or numbers, which nobody looks at one by one
            self._pairs.clear()
            self._rows.clear()
        return Evaluation(
            self._gold,
            Share(self._right, self._total),
            Share(self._right, self._answered),
            self._open + len(self._pending),
            sum(len(one.golds) > 1 for one in self._repeated.values()),
            self._other_case,
            label_scores(self._pairs),
            self._confusions(),
            usd(self._bill.per_question(kind)),
            kind,
            self._scored.scored,
        )

    def _confusions(self) -> list[Confusion]:
        found = [Confusion(*pair, self._pairs[pair], tuple(rows)) for pair, rows in self._rows.items()]
        return sorted(found, key=lambda one: (-one.questions, one.gold, one.answer or ""))


def answer_of(row: AnsweredRow, gold: Gold) -> str | None:
    """Return a row's answer in the normal form of gold's rule; None where it has none."""
    value = row.answer.get(gold.answer)
    return None if value is None else gold.rule.normal(value)


def money(amount: float, kind: CostKind) -> str:
    """Return a mean amount (picodollars) for people."""
    return cost(Pico(round(amount)), kind)


def usd(amount: float | None, times: int = 1) -> float | None:
    """Return picodollars as USD for JSON."""
    return None if amount is None else amount * times / PER_USD


def percent(share: float | None) -> str:
    """Return a share for people; a dash where there is none."""
    return "-" if share is None else f"{share:.1%}".replace("%", " %")
