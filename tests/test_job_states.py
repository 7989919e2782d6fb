"""A job's whole life, by chance, against a model of what must have been paid: not one request more, not one less."""

import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
from crash.harness import CrashJob, ended, write_job
from crash.kills import Killer
from crash.ledger import Ledger, reply_to, serving
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from job_running import run

from batchrun.errors import BusyError
from batchrun.job import RunOptions
from batchrun.records import Summary
from batchrun.runner import plan

MOST_KILLS = 1
"""In one life; each costs a second."""


class Life(RuleBasedStateMachine):
    """A job whose rows, wording, server and processes change; `paid` is the model: all questions with an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="life-"))
        self.ledger = Ledger(latency=(0.0, 0.002), refuse=lambda _: 500 if self.fails else 0)
        self._serving = serving(self.ledger)
        self._serving.__enter__()
        self.young = plan.YOUNG
        self.texts: list[str] = []
        self.notes = 0
        self.prompt, self.max_tokens, self.provider = "A", 100, "one"
        self.fails, self.kills, self.fresh_texts = False, 0, 0
        self.paid: set[str] = set()

    def teardown(self) -> None:
        """Stop the server."""
        plan.YOUNG = self.young
        self._serving.__exit__(None, None, None)
        shutil.rmtree(self.folder)

    @initialize(rows=st.integers(1, 40), trusts=st.booleans())
    def begin(self, rows: int, *, trusts: bool) -> None:
        """Begin with some rows; a plan is reused whatever the age of its input, or never."""
        plan.YOUNG = float("-inf") if trusts else float("inf")
        self.append(rows)

    def questions(self) -> list[str]:
        """Give the rows' questions, in order."""
        return [f"{self.prompt}: {text}" for text in self.texts]

    def open(self) -> list[str]:
        """Give what must be asked, in order."""
        return [question for question in dict.fromkeys(self.questions()) if question not in self.paid]

    def written(self) -> CrashJob:
        """Write job and input as they are now."""
        params: dict[str, Any] = {"max_tokens": self.max_tokens, "provider": {"order": [self.provider]}}
        job = write_job(
            self.folder,
            self.ledger.url,
            self.texts,
            prompt={"user": self.prompt + ": {{ text }}"},
            model={"params": params},
            limits={"attempts": 1, "concurrency": 8},
        )
        (self.folder / "rows.csv").write_text(
            "id,text,note\n" + "".join(f"{n},{text},{self.notes}\n" for n, text in enumerate(self.texts))
        )
        return CrashJob(job.folder, tuple(self.questions()), settled=("ok",))  # failures here pass by themselves

    def go(self, limit: int | None = None) -> Summary:
        """Run, and hold what the server received to the model."""
        job, before, wanted = self.written(), Counter(self.ledger.received), self.open()[:limit]
        summary = run(job.path, RunOptions(yes=True, limit=limit)).summary
        assert self.ledger.received - before == Counter(wanted)
        assert summary.requests == len(wanted)
        if not self.fails:
            self.paid |= set(wanted)
        counts = Counter("ok" if question in self.paid else "open" for question in self.questions())
        assert (summary.ok, summary.failed + summary.pending) == (counts["ok"], counts["open"])
        self.check_output(summary)
        return summary

    def check_output(self, summary: Summary) -> None:
        """Each row has its own answer, or none."""
        assert summary.output is not None
        output = pl.read_csv(summary.output, infer_schema=False)
        assert output["text"].to_list() == self.texts
        for question, answer in zip(self.questions(), output["answer"].to_list(), strict=True):
            assert (answer is not None) == (question in self.paid)
            assert answer is None or answer.encode() in reply_to(question, 0)

    @rule()
    def run_all(self) -> None:
        """Run to the end; a run right after it sends nothing, unless the server fails."""
        self.go()

    @rule(limit=st.integers(1, 10))
    def run_some(self, limit: int) -> None:
        """Ask only so many: the first ones in the input's order."""
        self.go(limit)

    @precondition(lambda self: self.kills < MOST_KILLS and self.open() and not self.fails)
    @rule(after=st.integers(1, 30))
    def kill(self, after: int) -> None:
        """Kill a run in flight: what is committed is paid, and no question was asked twice."""
        self.kills += 1
        job, before, wanted = self.written(), Counter(self.ledger.received), self.open()
        process = job.start("--yes")
        killer = Killer(job, self.ledger, process.pid, "SIGKILL", after)
        ended(process)
        self.ledger.on_event = None
        self.ledger.settle()
        assert killer.failure is None
        asked = self.ledger.received - before
        assert asked <= Counter(wanted)
        committed = job.committed()
        assert killer.committed - self.paid <= committed
        self.paid |= committed & set(asked)

    @precondition(lambda self: self.open())
    @rule()
    def run_two(self) -> None:
        """Start a second run while the first one sends: it leaves at once, and the first is as always."""
        said: list[str] = []

        def second() -> None:
            self.ledger.on_event = None
            try:
                run(self.folder / "job.yaml")
            except BusyError as busy:
                said.append(str(busy))

        self.ledger.on_event = second
        self.go()
        assert "this job is already running" in said[0]

    @rule(count=st.integers(1, 15))
    def append(self, count: int) -> None:
        """Append rows that no one has seen."""
        self.texts += [f"text {self.fresh_texts + number}" for number in range(count)]
        self.fresh_texts += count

    @rule(seed=st.integers(0, 9))
    def shuffle(self, seed: int) -> None:
        """Shuffle the rows."""
        random.Random(seed).shuffle(self.texts)  # noqa: S311  (a seed, not a secret)

    @precondition(lambda self: len(self.texts) > 1)
    @rule(place=st.integers(0, 99))
    def delete(self, place: int) -> None:
        """Delete a row."""
        del self.texts[place % len(self.texts)]

    @rule(place=st.integers(0, 99))
    def duplicate(self, place: int) -> None:
        """Repeat a row."""
        self.texts.insert(place % 7, self.texts[place % len(self.texts)])

    @rule(place=st.integers(0, 99))
    def edit_used(self, place: int) -> None:
        """Edit a cell that the prompt uses."""
        self.fresh_texts += 1
        self.texts[place % len(self.texts)] = f"text {self.fresh_texts - 1}"

    @rule()
    def edit_unused(self) -> None:
        """Edit a column that the prompt does not use."""
        self.notes += 1

    @rule(wording=st.sampled_from("AB"))
    def edit_prompt(self, wording: str) -> None:
        """Edit the prompt, or put it back."""
        self.prompt = wording

    @rule()
    def raise_max_tokens(self) -> None:
        """Allow longer answers."""
        self.max_tokens += 100

    @rule(provider=st.sampled_from(["one", "two"]))
    def change_provider(self, provider: str) -> None:
        """Prefer another provider."""
        self.provider = provider

    @rule(fails=st.booleans())
    def fail_the_server(self, *, fails: bool) -> None:
        """Let the server fail from now on, or be well again."""
        self.fails = fails


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=10, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
