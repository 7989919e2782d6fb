"""Shares with their intervals, and the figures of one job: what its questions cost, and how long they took."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from batchrun.api import cost_kind
from batchrun.money import PER_USD, CostKind, Pico, cost
from batchrun.records import Status
from batchrun.report.answered import AnsweredRow, OpenJob
from batchrun.report.bars import rounded
from batchrun.report.statistics import wilson

MEDIAN, SLOW = 0.5, 0.95


@dataclass(frozen=True, slots=True)
class Share:
    """A share of questions with its 95 % interval (Wilson)."""

    right: int
    total: int

    @property
    def value(self) -> float | None:
        """The share from 0 to 1; None of nothing."""
        return self.right / self.total if self.total else None

    @property
    def interval(self) -> str:
        """The interval for people."""
        return " to ".join(map(percent, wilson(self.right, self.total)))

    def of(self, noun: str, *, interval: bool = True) -> str:
        """Return the counts, the share and its interval for people; `noun` is in the plural."""
        counts = f"{self.right:,} of {self.total:,} {noun}: {percent(self.value)}"
        return f"{counts}, 95 % interval {self.interval}" if interval else counts

    def facts(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        low, high = wilson(self.right, self.total)
        return {"value": self.value, "low": low, "high": high, "right": self.right, "n": self.total}


@dataclass(slots=True)
class JobFigures:
    """What is known of one job by itself, over its settled questions.

    `cost` is in picodollars; `seconds` counts how often which latency came, rounded. `unrendered` rows failed before
    they became a question. While others are `pending` they are not counted: a sample has asked few of the other rows,
    and these are all of the input.
    """

    name: str
    cost_kind: CostKind
    cost: int = 0
    settled: int = 0
    failed: int = 0
    unrendered: int = 0
    pending: bool = False
    seconds: Counter[float] = field(default_factory=Counter)

    @classmethod
    def of(cls, job: OpenJob) -> Self:
        """Return figures of a job, still without its rows."""
        return cls(job.name, cost_kind(job.prepared.job))

    @property
    def _all_failed(self) -> int:
        return self.failed if self.pending else self.failed + self.unrendered

    def take(self, row: AnsweredRow) -> None:
        """Add a row: its question counts once."""
        # Equal rows share one question: its latency and its failure count on the first of them, as its cost does.
        if row.first and row.is_settled:
            self.cost += row.cost
            self.settled += 1
            self.failed += row.status == Status.FAILED
            if row.seconds is not None and row.status == Status.OK:
                self.seconds[rounded(row.seconds)] += 1
        elif row.question is None:
            # It failed before it became a question, such as a row without a cell that the prompt needs.
            self.unrendered += row.status == Status.FAILED
        self.pending = self.pending or row.status == Status.PENDING

    @property
    def cost_per_question(self) -> float | None:
        """The mean in picodollars; None where nobody reports costs, and of nothing."""
        if not self.settled or (self.cost_kind == CostKind.UNKNOWN and not self.cost):
            return None
        return self.cost / self.settled

    def cost_per_right(self, accuracy: Share | None) -> float | None:
        """Return the picodollars for each right answer; None where there is none, or no gold."""
        if self.cost_per_question is None or accuracy is None or not accuracy.value:
            return None
        return self.cost_per_question / accuracy.value

    def money(self, amount: float | None) -> str:
        """Return a mean cost (picodollars) for people; None where it is not known."""
        return cost(Pico(round(amount or 0)), self.cost_kind)

    @property
    def cost_per_1000(self) -> str:
        """What 1,000 questions cost on average, for people."""
        return self.money((self.cost_per_question or 0) * 1_000)

    def latency(self, share: float) -> float | None:
        """Return the seconds within which this share of the answers came."""
        # Nearest rank: a latency that was seen, no mean of two.
        wanted = math.ceil(share * self.seconds.total())
        for number in sorted(self.seconds):
            wanted -= self.seconds[number]
            if wanted <= 0:
                return number
        return None

    @property
    def cells(self) -> list[str]:
        """What a table shows of the job: cost of 1,000 questions, median latency, that of 95 %, failed questions."""
        latencies = self.latency(MEDIAN), self.latency(SLOW)
        shown = ["-" if seconds is None else f"{seconds:.2f} s" for seconds in latencies]
        # Of how many they failed: one of two jobs may have asked only a sample.
        failed = f"{self._all_failed:,} of {self.settled + self._all_failed - self.failed:,}"
        return [self.cost_per_1000, *shown, failed]

    def cost_facts(self, accuracy: Share | None) -> dict[str, Any]:
        """Return what the questions cost for JSON, in USD."""
        return {
            "cost_per_1000_usd": usd(self.cost_per_question, 1_000),
            "cost_per_right_usd": usd(self.cost_per_right(accuracy)),
            "cost_kind": self.cost_kind,
        }

    def facts(self, accuracy: Share | None) -> dict[str, Any]:
        """Return all figures for JSON."""
        return {
            "job": self.name,
            "accuracy": accuracy and accuracy.facts(),
            "failed": self._all_failed,
            **self.cost_facts(accuracy),
            "latency_median_s": self.latency(MEDIAN),
            "latency_p95_s": self.latency(SLOW),
        }


def usd(amount: float | None, times: int = 1) -> float | None:
    """Return picodollars as USD for JSON."""
    return None if amount is None else amount * times / PER_USD


def percent(share: float | None) -> str:
    """Return a share for people; a dash where there is none."""
    return "-" if share is None else f"{share:.1%}".replace("%", " %")
