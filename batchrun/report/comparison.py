"""Two jobs on the same rows: where their answers differ, who is right there, and what each costs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from batchrun.errors import UserError
from batchrun.records import Status, kind_of
from batchrun.report.answered import AnsweredRow, OpenJob, text_of
from batchrun.report.figures import JobFigures, Share
from batchrun.report.gold import Gold, GoldOptions, Rule, gold_of, most_frequent, require_column
from batchrun.report.statistics import labels_needed, mcnemar

MOST_LABELS = 200
"""A column with more different answers than this holds texts, not labels."""

Pair = tuple[str | None, str | None]
"""Both jobs' answers in one column, as they are compared; None where there is none."""

Key = tuple[int | None, int | None]
"""Both jobs' questions to one row."""


@dataclass(slots=True)
class ColumnComparison:
    """How the answers in one column compare, over distinct pairs of questions that both jobs answered."""

    name: str
    rule: Rule
    equal: int = 0
    total: int = 0
    labels: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))

    def answer(self, row: AnsweredRow) -> str | None:
        """Return a row's answer in this column, as it is compared; None where it has none."""
        return self.rule.answer(row.answer.get(self.name))

    def count(self, pair: Pair) -> None:
        """Count both jobs' answers to a pair of questions."""
        self.total += 1
        self.equal += self.rule.equal(*pair)
        for counter, value in zip(self.labels, pair, strict=True):
            # Beyond that they are texts, which nobody counts.
            if len(counter) <= MOST_LABELS:
                counter["null" if value is None else value] += 1

    @property
    def shift(self) -> list[tuple[str, int, int]]:
        """Each label with how often either job gave it, most changed first; nothing for texts and numbers."""
        first, second = self.labels
        names = {*first, *second}
        # Where hardly any value comes twice they are texts, and a table of them says nothing.
        if not self.rule.is_label() or len(names) > MOST_LABELS or 2 * len(names) > self.total:
            return []
        rows = ((name, first[name], second[name]) for name in names)
        return sorted(rows, key=lambda row: (-abs(row[1] - row[2]), -row[1], row[0]))


@dataclass(slots=True)
class GoldComparison:
    """Who is right, over distinct pairs of questions with gold that both jobs settled; a failed one is wrong.

    `breaks` only the first job has right, `fixes` only the second. Of `contradictory` gold in equal rows the most
    frequent counts, as in `eval`; `ties` are those without one, which are not counted. A row of which a job could not
    make a question is not counted while other rows of that job are pending.
    """

    gold: Gold
    both: int = 0
    breaks: int = 0
    fixes: int = 0
    neither: int = 0
    contradictory: int = 0
    ties: int = 0
    _repeated: dict[Key, tuple[Pair, Counter[str]]] = field(default_factory=dict)
    _unrendered: Counter[tuple[tuple[bool, bool], tuple[bool, bool]]] = field(default_factory=Counter)

    def take(self, right: str, pair: Pair, key: Key, *, is_repeated: bool) -> None:
        """Take the gold of a row; `finish` counts what depends on other rows."""
        if None in key:
            first, second = key
            self._unrendered[(first is None, second is None), self._rights(right, pair)] += 1
        elif is_repeated:
            _, golds = self._repeated.setdefault(key, (pair, Counter()))
            golds[right] += 1
        else:
            self._count(self._rights(right, pair))

    def finish(self, jobs: tuple[JobFigures, JobFigures]) -> None:
        """Count equal rows, whose gold is known when all rows were taken, and those without a question."""
        for (missing, rights), number in self._unrendered.items():
            if not any(lacks and job.pending for lacks, job in zip(missing, jobs, strict=True)):
                self._count(rights, number)
        for pair, golds in self._repeated.values():
            self.contradictory += len(golds) > 1
            right = most_frequent(golds)
            if right is None:
                self.ties += 1
            else:
                self._count(self._rights(right, pair))

    def _rights(self, right: str, pair: Pair) -> tuple[bool, bool]:
        """Return which job's answer is right."""
        return self.gold.rule.equal(right, pair[0]), self.gold.rule.equal(right, pair[1])

    def _count(self, rights: tuple[bool, bool], number: int = 1) -> None:
        match rights:
            case True, True:
                self.both += number
            case True, False:
                self.breaks += number
            case False, True:
                self.fixes += number
            case _:
                self.neither += number

    @property
    def total(self) -> int:
        """All pairs with gold."""
        return self.both + self.breaks + self.fixes + self.neither

    @property
    def accuracies(self) -> tuple[Share, Share]:
        """How many answers of each job are right."""
        return Share(self.both + self.breaks, self.total), Share(self.both + self.fixes, self.total)

    @property
    def p_value(self) -> float:
        """McNemar's exact test."""
        return mcnemar(self.breaks, self.fixes)

    @property
    def more_labels(self) -> int | None:
        """How many more labelled questions would likely settle it; 0 if it is, None where no difference was seen."""
        if self.p_value < 0.05:  # noqa: PLR2004  (the usual level)
            return 0
        needed = labels_needed(self.breaks, self.fixes, self.total)
        if needed is None:
            return None
        # The formula is an approximation: it may name fewer labels than there are though the exact test says no.
        return max(needed - self.total, 1)


class ChangedRow(NamedTuple):
    """A row whose answers differ: its number in the first input, from 1, and both jobs' answers (None: none)."""

    number: int
    first: Mapping[str, Any]
    second: Mapping[str, Any]
    gold: str | None


@dataclass(slots=True)
class Comparison:
    """What was found. `rows` were settled by both jobs, `unpaired` by one alone or are missing in the other input.

    Each pair of questions counts once. `repeated` are the questions of each job that stand in several rows; `keep_rows`
    keeps the rows that differ, in memory.
    """

    jobs: tuple[JobFigures, JobFigures]
    columns: list[ColumnComparison]
    left_out: tuple[str, ...]
    gold: GoldComparison | None
    repeated: tuple[frozenset[int], frozenset[int]]
    keep_rows: bool
    rows: int = 0
    differ: int = 0
    unpaired: int = 0
    changed: list[ChangedRow] = field(default_factory=list)
    _seen: set[Key] = field(default_factory=set)

    def take(self, one: AnsweredRow | None, other: AnsweredRow | None) -> None:
        """Take a row of either job; None: the other input does not have it."""
        for figures, row in zip(self.jobs, (one, other), strict=True):
            if row is not None:
                figures.take(row)
        settled = [row for row in (one, other) if row is not None and row.is_settled]
        if one is None or other is None or len(settled) < 2:  # noqa: PLR2004  (both)
            self.unpaired += bool(settled)
            return
        self.rows += 1
        pairs, differs = compared(self.columns, one, other)
        gold = None
        if self.gold is not None:
            gold = self.gold.gold.of(one)
        self.differ += differs
        if differs and self.keep_rows:
            self.changed.append(ChangedRow(one.position + 1, one.answer, other.answer, gold))
        self._count((one.question, other.question), pairs, gold, are_ok=one.status == other.status == Status.OK)

    def _count(self, key: Key, pairs: list[Pair], gold: str | None, *, are_ok: bool) -> None:
        """Count a pair of questions once."""
        # Only a pair of questions that both stand in several rows can come again.
        is_repeated = all(question in ids for question, ids in zip(key, self.repeated, strict=True))
        if self.gold is not None and gold is not None:
            self.gold.take(gold, pairs[0], key, is_repeated=is_repeated)
        if key in self._seen:
            return
        if is_repeated:
            self._seen.add(key)
        if are_ok:
            for column, pair in zip(self.columns, pairs, strict=True):
                column.count(pair)


def compare(
    first: OpenJob, second: OpenJob, *, gold: GoldOptions | None, on: str | None, keep_rows: bool = False
) -> Comparison:
    """Compare two jobs row by row: by position where they read the same files, else by the column `on`.

    `keep_rows` keeps the rows that differ, in memory. Raises UserError where rows can't be paired, or no answer column
    is common to both.
    """
    found_gold = by_gold = None
    if gold is not None:
        found_gold = gold_of(first.prepared, gold)
        by_gold = GoldComparison(found_gold)
    columns, left_out = compared_columns(first, second, found_gold)
    names = tuple(dict.fromkeys(name for name in (on, found_gold and found_gold.source) if name))
    found = Comparison(
        (JobFigures.of(first), JobFigures.of(second)),
        columns,
        left_out,
        by_gold,
        (first.repeated(), second.repeated()),
        keep_rows,
    )
    if on is not None:
        pairs = _joined(first, second, names, on)
    elif first.prepared.rows.has_rows_of(second.prepared.rows):
        pairs = zip(first.rows(names), second.rows(), strict=True)
    else:
        raise UserError(
            "the two jobs read different files, or other rows of them (input.csv, input.sheet): name the column that "
            "identifies a row: --on COLUMN"
        )
    for pair in pairs:
        found.take(*pair)
    if by_gold is not None:
        by_gold.finish(found.jobs)
    if not found.rows:
        raise UserError("no row is settled in both jobs, so that nothing can be compared")
    return found


def compared_columns(
    first: OpenJob, second: OpenJob, gold: Gold | None
) -> tuple[list[ColumnComparison], tuple[str, ...]]:
    """Return the answer columns to compare: that of gold, else all common ones; texts where there are no others."""
    common = [name for name in first.answers if name in second.answers]
    if gold is not None and gold.answer not in common:
        raise UserError(f'--gold: the second job has no answer column "{gold.answer}"')
    if not common:
        raise UserError("the two jobs have no answer column in common")
    if gold is not None:
        return [ColumnComparison(gold.answer, gold.rule)], ()
    kinds = {name: kind_of(first.prepared.form.columns[name]) for name in common}
    # A reason in free text differs in every row, and would make every row one that differs.
    chosen = [name for name in common if kinds[name] != "text"] or common
    left_out = tuple(name for name in common if name not in chosen)
    return [ColumnComparison(name, Rule(kinds[name])) for name in chosen], left_out


def compared(columns: Sequence[ColumnComparison], one: AnsweredRow, other: AnsweredRow) -> tuple[list[Pair], bool]:
    """Return both rows' answers in each column, and whether any of them differ."""
    pairs = [(column.answer(one), column.answer(other)) for column in columns]
    return pairs, any(not column.rule.equal(*pair) for column, pair in zip(columns, pairs, strict=True))


def _joined(
    first: OpenJob, second: OpenJob, names: Sequence[str], on: str
) -> Iterator[tuple[AnsweredRow | None, AnsweredRow | None]]:
    """Yield rows paired by a column; the second job's rows are held in memory."""
    for job in (first, second):
        require_column(job.prepared.rows, on, "--on")
    # The two files may have their rows in any order, so one side has to be held.
    others = dict(_keyed(second, (on,), on))
    for key, row in _keyed(first, names, on):
        yield row, others.pop(key, None)
    yield from ((None, row) for row in others.values())


def _keyed(job: OpenJob, names: Sequence[str], on: str) -> Iterator[tuple[str, AnsweredRow]]:
    """Yield rows with their texts in a column. Raises UserError where one comes twice: nobody could say which row."""
    seen = set()
    for row in job.rows(names):
        key = text_of(row.cells[on])
        if key in seen:
            raise UserError(f'--on: "{key}" stands in several rows of "{on}" in the input of {job.name}')
        seen.add(key)
        yield key, row
