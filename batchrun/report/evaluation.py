"""How many answers are right: accuracy with its interval, scores of labels, confusions, the cost of a right answer."""

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from batchrun.errors import UserError
from batchrun.prepare import Corrections
from batchrun.records import Status, kind_of
from batchrun.report.answered import AnsweredRow, OpenJob, text_of
from batchrun.report.calibration import Reservoir, Scored
from batchrun.report.figures import JobFigures, Share, usd
from batchrun.report.gold import Gold, GoldOptions, Rule, answer_named, gold_of, most_frequent
from batchrun.report.statistics import LabelScores, label_scores
from batchrun.terminal import plural

MOST_CLASSES, MOST_PAIRS = 200, 40_000
"""More different gold values, or pairs of gold and answer, are not labels but texts."""

SHOWN_ROWS = 3

NULL = "null"
"""How a null that a person confirmed or wrote is compared; gold of a file has none."""


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
    `contradictory` have rows with different gold, of which the most frequent counts; `ties` are those of them without a
    most frequent one, which are not counted. `other_case` wrong answers would be right if case did not count.
    `reviewed`: gold are corrections, of rows that were picked. `scored` holds the probability of each answer that has
    one. `unmatched` values of a gold file belong to no row of the input. `unrendered` rows with gold failed before they
    became a question; they are not counted while other rows are pending. `job` are the figures of all its settled
    questions, also without gold.
    """

    gold: Gold
    accuracy: Share
    answered: Share
    pending: int
    contradictory: int
    other_case: int
    labels: list[LabelScores]
    confusions: list[Confusion]
    job: JobFigures
    scored: list[Scored]
    reviewed: bool = False
    unmatched: int = 0
    ties: int = 0
    unrendered: int = 0

    @property
    def cost_per_question_usd(self) -> float | None:
        """The mean in USD; None where nobody reports costs."""
        return usd(self.job.cost_per_question)

    @property
    def cost_per_right_usd(self) -> float | None:
        """USD for each right answer; None where there is none, or nobody reports costs."""
        return usd(self.job.cost_per_right(self.accuracy))

    @property
    def macro_f1(self) -> float | None:
        """The mean F1 of the labels that gold has."""
        scores = [one.f1 or 0.0 for one in self.labels if one.support]
        return sum(scores) / len(scores) if scores else None


def evaluate(job: OpenJob, options: GoldOptions) -> Evaluation:
    """Compare a job's answers with gold. Raises UserError where no settled row has gold, and as `gold_of` does."""
    gold = gold_of(job.prepared, options)
    walk = _Questions(job, gold)
    unmatched = set(gold.joined or ())
    for row in job.rows((gold.source,)):
        unmatched.discard(text_of(row.cells[gold.source]).strip())
        walk.take(row, gold.of(row))
    return replace(walk.evaluation(), unmatched=len(unmatched))


def evaluate_reviewed(job: OpenJob, name: str) -> Evaluation:
    """Compare the model's answers with what a person corrected or confirmed. Raises UserError if that is nothing."""
    corrections = Corrections(job.prepared.job)
    answer = answer_named(job.answers, name, "", "--reviewed")
    gold = Gold(answer, corrections.path.name, Rule(kind_of(job.prepared.form.columns[answer])), "")
    walk = _Questions(job, gold)
    for row in job.rows(corrections.columns(job.prepared.rows.columns)):
        found = corrections.find(row.cells)
        reviewed = None
        if found is not None and answer in found.answer:  # a column that was added since has no value of a person
            reviewed = _reviewed(gold, found.answer[answer])
        walk.take(row, reviewed)
    # Probabilities of the least sure answers say nothing about a threshold for all.
    return replace(walk.evaluation(), reviewed=True, scored=[])


def _reviewed(gold: Gold, value: Any) -> str:  # noqa: ANN401  (any JSON value)
    """Return the text by which an answer of a person, or of the model to a reviewed row, is compared."""
    text = gold.rule.answer(value)
    return NULL if text is None else text


class _Judged(NamedTuple):
    """A question with gold: its answer, the position of its first row, and the probability of the answer."""

    gold: str
    answer: str | None
    position: int
    probability: float | None
    is_ok: bool


class _Repeated(NamedTuple):
    """A question that stands in several rows, and how many of them have which gold."""

    first: _Judged
    golds: Counter[str]


class _Questions:
    """Takes rows; equal rows are one question, whose gold is the most frequent of its rows; without one it is left out.

    Only the questions that stand in several rows are held in memory: see `OpenJob.repeated`.
    """

    def __init__(self, job: OpenJob, gold: Gold) -> None:
        self._gold, self._figures, self._ids = gold, JobFigures.of(job), job.repeated()
        self._is_partial = job.checkpoint.counts().pending > 0
        self._repeated: dict[int | None, _Repeated] = {}
        self._pending: set[int | None] = set()
        self._total = self._right = self._answered = self._open = self._other_case = self._ties = self._unrendered = 0
        self._golds: set[str] = set()
        self._pairs: Counter[tuple[str, str | None]] = Counter()
        self._rows: dict[tuple[str, str | None], list[int]] = defaultdict(list)
        self._scored = Reservoir()

    def take(self, row: AnsweredRow, gold: str | None) -> None:
        """Take one row and its gold; without gold it counts only for the cost."""
        self._figures.take(row)
        if row.status == Status.SKIPPED or gold is None:
            return
        # A sample has asked some of the rows, and these failed in the whole input: together they would be no sample.
        if row.question is None and self._is_partial and row.status == Status.FAILED:
            self._unrendered += 1
            return
        # Most questions stand in one row: only the others are held, so that ten million rows need no memory.
        is_repeated = row.question in self._ids
        if row.status == Status.PENDING:
            if is_repeated:
                self._pending.add(row.question)
            else:
                self._open += 1
            return
        if (known := self._repeated.get(row.question)) is not None:
            known.golds[gold] += 1
            return
        is_ok = row.status == Status.OK
        answer = self._gold.rule.answer(row.answer.get(self._gold.answer))
        if is_ok and not self._gold.source:
            answer = _reviewed(self._gold, row.answer.get(self._gold.answer))
        judged = _Judged(gold, answer, row.position, row.probabilities.get(self._gold.answer), is_ok)
        if is_repeated:
            self._repeated[row.question] = _Repeated(judged, Counter([gold]))
        else:
            self._count(judged)

    def _count(self, one: _Judged) -> None:
        """Count a question whose gold is known."""
        is_right = self._gold.rule.equal(one.gold, one.answer)
        self._total += 1
        self._answered += one.is_ok
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
            # Questions that stand in several rows are counted last, so their rows come out of order.
            self._rows[pair] = sorted([*self._rows[pair], one.position + 1])[:SHOWN_ROWS]

    def evaluation(self) -> Evaluation:
        """Return the evaluation."""
        for first, golds in self._repeated.values():
            gold = most_frequent(golds)
            if gold is None:
                self._ties += 1
            else:
                self._count(first._replace(gold=gold))
        if not self._total and self._ties:
            flag = "--gold" if self._gold.source else "--reviewed"
            raise UserError(
                f"{flag}: {plural(self._ties, 'question')} with gold, and equal rows have different values equally "
                "often, so that nothing can be compared: correct the gold of these rows"
            )
        if not self._total:
            if not self._gold.source:
                raise UserError(
                    "--reviewed: no answered row was reviewed: write rows to a file with `batchrun show JOB --review "
                    "-o FILE`, edit it, then run `batchrun correct JOB FILE`"
                )
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
            self._figures,
            self._scored.scored,
            ties=self._ties,
            unrendered=self._unrendered,
        )

    def _confusions(self) -> list[Confusion]:
        found = [Confusion(*pair, self._pairs[pair], tuple(rows)) for pair, rows in self._rows.items()]
        return sorted(found, key=lambda one: (-one.questions, one.gold, one.answer or ""))
