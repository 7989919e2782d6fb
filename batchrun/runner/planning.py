"""The plan of a run: the one that stands or a new one, with what others have answered already."""

import time
from collections.abc import Collection, Iterable
from itertools import chain

from batchrun.api import TABLE, UNSENT, cost_kind
from batchrun.checkpoint import Checkpoint, PlanInfo
from batchrun.errors import ConfirmError, UserError
from batchrun.job import command_line
from batchrun.money import cost
from batchrun.prepare import Invocation, Prepared, fill, origin, reviewed_rows, with_answers_of_people
from batchrun.prompt import changed_words
from batchrun.runner.progress import Ui
from batchrun.terminal import plural

UNCONFIRMED_ROWS = 100
"""Answered rows that an edited prompt may ask again; more need --yes."""

IN_BATCH = "in_batch"
"""What `retry --only` calls questions that are out in a batch."""


def error_types(names: Iterable[str], *, flag: str) -> frozenset[str]:
    """Return the error types that a retry names; UserError, naming the flag, for one that does not exist."""
    types = frozenset(names)
    if unknown := sorted(types - set(TABLE) - {IN_BATCH}):
        raise UserError(f"{flag}: there is no error type {', '.join(unknown)}; `batchrun status JOB` shows them")
    return types


class Planning:
    """Makes the plan of one run; `adopted` counts the answers that came from other checkpoints, None before a look."""

    def __init__(self, prepared: Prepared, checkpoint: Checkpoint, invocation: Invocation, ui: Ui) -> None:
        self._prepared, self._checkpoint, self._ui = prepared, checkpoint, ui
        self._options, self._shown = invocation.options, invocation.shown
        self.adopted: int | None = None

    def plan(self) -> PlanInfo:
        """Return the plan, with failed questions open again where `retry` asks for it."""
        plan = self._plan()
        # What a person answered is not asked again. Most jobs have no corrections, and pay nothing for this.
        answered = reviewed_rows(self._prepared, self._checkpoint, failed=True)
        if (first := next(answered, None)) is not None:
            self._checkpoint.leave_out((row.position, row.question) for row in chain([first], answered))
        return self._reopened(plan)

    def _plan(self) -> PlanInfo:
        """Return the plan that stands, or make a new one current."""
        prepared, checkpoint, now = self._prepared, self._checkpoint, time.time()
        current = checkpoint.current_plan()
        made_from = origin(prepared, now)
        if current is not None and made_from.fingerprint and current.fingerprint == made_from.fingerprint:
            if current.baseline and not self._options.is_partial:
                self._confirm(current, current.rows, current.baseline, checkpoint.counts().ok)
                checkpoint.confirm_plan()
            return current
        builder = checkpoint.new_plan(made_from, now)
        try:
            fill(builder, prepared, self._ui.plan)
        finally:
            self._ui.end()
        self.adopt()
        if current is None:
            return builder.make_current(prepared.rows.layout.text())
        before, after = builder.answered()
        # Only the wording is compared: a new month's file with the old prompt is asked without a confirmation.
        if current.wording == prepared.renderer.wording:
            before = 0
        # A sample of the new prompt makes its plan current; the next whole run must still ask for --yes.
        baseline = max(current.baseline, before)
        try:
            self._confirm(current, builder.rows, baseline, after)
        except ConfirmError:
            builder.discard()
            raise
        if not self._options.is_partial or baseline - after <= UNCONFIRMED_ROWS:
            baseline = 0
        return builder.make_current(prepared.rows.layout.text(), baseline)

    def adopt(self) -> None:
        """Copy what the job's variants, or an equal job under another name, have paid for already."""
        prepared = self._prepared
        if self._options.fresh:
            return
        adopted = self._checkpoint.adopt(prepared.renderer.wording, prepared.open_rule)
        self.adopted = sum(adopted.values())
        for path, number in adopted.items():
            self._ui.say(
                f"{plural(number, 'answer')} copied from {path.name}, where the same question was asked, at no cost"
            )

    def _confirm(self, current: PlanInfo, rows: int, before: int, after: int) -> None:
        """Refuse to pay for many answered rows again without --yes (ConfirmError).

        `before` of the rows were answered before the job's words changed, and `after` are now. A run with a limit or of
        a sample asks its few rows; the next whole run then is the one to be confirmed.
        """
        options = self._options
        again = max(0, min(before, rows) - after)
        bounds = [bound for bound in (options.limit, options.sample) if bound is not None]
        if options.yes or min([again, *bounds]) <= UNCONFIRMED_ROWS:
            return
        what = changed_words(current.wording, self._prepared.renderer.wording)
        raise ConfirmError(
            f"the {what} changed: {again:,} answered rows would be asked again{self._about(what, again)}; "
            "add --yes to do that, or try a few rows with --sample 20 (changing it back "
            "costs nothing)"
        )

    def _about(self, what: str, again: int) -> str:
        """Return `, for about $0.02` by what the answers cost; empty where that says nothing about new ones."""
        counts = self._checkpoint.counts()
        likely = counts.cost * again // max(1, counts.ok)
        # After `endpoint: simulator` or `local` the answers of a paid model are not free.
        if not likely or "model" in what:
            return ""
        return f", for about {cost(likely, cost_kind(self._prepared.job))}"

    def _nothing_to_retry(self, types: Collection[str]) -> str:
        """Return why `retry` found no failed question, and the command that the user probably meant."""
        command = command_line(self._shown, self._options)
        answered = list(reviewed_rows(self._prepared, self._checkpoint, failed=True))
        counts = with_answers_of_people(self._checkpoint.counts(), answered)
        self._checkpoint.note_counts(counts)  # no run follows that would count them, and the plan may be a new one
        reasons = [f"no row failed with {', '.join(sorted(types))}"] if types else []
        kinds = sorted(counts.errors or ())
        if counts.failed:
            reasons.append(f"{plural(counts.failed, 'row')} failed with {', '.join(kinds)}")
            if UNSENT.issuperset(kinds):
                reasons[-1] += f" before anything was sent: correct the prompt or these rows, then run `{command}`"
        elif counts.pending:
            reasons.append("no row failed")
        # After the advice to correct something, the same command once more would be another advice.
        if counts.pending and not (counts.failed and UNSENT.issuperset(kinds)):
            reasons.append(f"`{command}` asks the open rows")
        return "; ".join(reasons) or "every row is answered"

    def _reopened(self, plan: PlanInfo) -> PlanInfo:
        """Return the plan after `retry` has opened its failed questions again, which lowers its low-water mark."""
        if self._options.retry is None:
            return plan
        if IN_BATCH in self._options.retry:
            given_up = self._checkpoint.batches.give_up(time.time())
            if given_up:
                self._ui.say(f"{plural(given_up, 'question')} out in batches will be asked again; both may be billed")
            if self._options.retry == {IN_BATCH}:
                if not given_up:
                    raise UserError("nothing to retry: no question is out in a batch")
                return plan
        reopened = self._checkpoint.reopen_failed(self._options.retry)
        if not reopened:
            raise UserError(f"nothing to retry: {self._nothing_to_retry(self._options.retry)}")
        self._ui.say(f"asking {plural(reopened, 'failed question')} again")
        return self._checkpoint.current_plan() or plan
