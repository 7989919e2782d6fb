"""Runs a job: plan, ask, keep, write. The only place that holds requests going down and outcomes coming back."""

import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from itertools import islice

from batchrun._version import __version__
from batchrun.api import ASKED_AGAIN, UNSENT, Endpoint, KeyProblem, cost_kind, fetch_key, prices_for
from batchrun.checkpoint import (
    LIVE_AFTER_BATCH,
    NOT_OUT,
    Checkpoint,
    Counts,
    PlanInfo,
    lock,
    start_fresh,
    undo_fresh,
    utc_day,
)
from batchrun.errors import ConfirmError, ExitCode, InputError, StorageError, UserError
from batchrun.forecast import likely_cost
from batchrun.job import Job
from batchrun.money import PER_USD, ZERO, CostKind, Pico, show, to_usd
from batchrun.prepare import (
    INPUT_CHANGED,
    Invocation,
    Prepared,
    ReviewedRow,
    add_corrections,
    flags_text,
    known_files,
    positions,
    prepare_job,
    refuse_output_of_another,
    reviewed_rows,
    serving,
    with_answers_of_people,
)
from batchrun.records import Summary
from batchrun.runner import outputs
from batchrun.runner.asking import Asking, ask, open_work, take_up
from batchrun.runner.batches import run_batches
from batchrun.runner.budget import Budget, budget_of
from batchrun.runner.following import Next
from batchrun.runner.log import event, run_ended
from batchrun.runner.open_batches import refuse_to_forget
from batchrun.runner.planning import Planning
from batchrun.runner.progress import Goal, Ui
from batchrun.runner.stop import Valve, exit_code_of
from batchrun.runner.warnings import (
    warn_of_little_space,
    warn_of_missing_probabilities,
    warn_of_several_builds,
)
from batchrun.runner.work import REAL_TIME, Tally, Time
from batchrun.senders import check_installed
from batchrun.table import Written, check_writable, partial_path
from batchrun.terminal import plural

UNWRITTEN = {ExitCode.USER, ExitCode.STORAGE, ExitCode.BUG}
"""After these ends nothing is written: the input is another one, or the disk is not to be trusted."""

MAYBE_OPEN = ASKED_AGAIN - UNSENT | {"truncated"}
"""Failures that a run may ask again; what can't even be sent waits for another row, prompt or image."""

UNCONFIRMED_USD = 10
"""A first run without a cap that will likely cost more needs --yes."""

LIKE_THESE = 200
"""Open questions from which the likely cost of all follows."""

NAMED_ROWS = 4
"""Failed rows that are named for each error."""

LARGE_ROWS = 200_000
"""The end of a run over more rows does not touch them all: their answers are not counted by value, and after --limit or
--sample the partial output has no pending rows."""


def run_job(invocation: Invocation, ui: Ui, clock: Time = REAL_TIME) -> Summary:
    """Run or resume a job; what ends it before the first request is raised as BatchrunError."""
    job, options = invocation.job, invocation.options
    if options.wording is not None and options.variant is None and not options.yes:
        raise UserError(
            f"--set {options.wording} changes the question: add --variant NAME for an output and a checkpoint of its "
            "own, or --yes to change those of the job"
        )
    check_installed(job.ray)
    with ExitStack() as stack:
        stack.enter_context(lock(job.checkpoint_path))
        # Its plan knows the layout of the input's files, so that 10 million unchanged rows are not read to prepare.
        checkpoint = None
        if job.checkpoint_path.exists() and not options.fresh:
            checkpoint = stack.enter_context(Checkpoint.open(job.checkpoint_path))
        known = known_files(checkpoint.current_plan()) if checkpoint else {}
        prepared = stack.enter_context(prepare_job(invocation, known))
        check_writable(job.output_path, prepared.rows.paths)
        refuse_output_of_another(job, invocation.shown, invocation.environment, checkpoint)
        if options.fresh and not options.yes:
            refuse_to_forget(job.checkpoint_path)
        # Only now that the job has no mistake: one in it must not move the checkpoint aside.
        old = start_fresh(job.checkpoint_path, time.time()) if options.fresh else None
        if old is not None:
            ui.say(f"the old checkpoint is now {old}")
        checkpoint = checkpoint or stack.enter_context(Checkpoint.open(job.checkpoint_path))
        model, endpoint = prepared.endpoint.model, job.model.endpoint
        event("run_started", job=job.name, model=model, endpoint=endpoint, version=__version__, pid=os.getpid())
        try:
            summary = _Run(prepared, checkpoint, invocation, ui, clock).run()
        except UserError:
            # Such as a cost that needs --yes. The next run, without --fresh, would pay for all answers again.
            asked = checkpoint.has_asked(prepared.endpoint.namespace) or checkpoint.batches.open()
            if old is not None and not asked:
                checkpoint.close()
                if undo_fresh(job.checkpoint_path, old):
                    ui.say("nothing was asked: the old checkpoint has its name back")
            raise
        run_ended(summary)
        return summary


class _Run:
    """One run of one job, with everything open."""

    def __init__(self, prepared: Prepared, checkpoint: Checkpoint, invocation: Invocation, ui: Ui, clock: Time) -> None:
        self._prepared, self._checkpoint = prepared, checkpoint
        self._options, self._shown = invocation.options, invocation.shown
        self._ui, self._time = ui, clock
        self._job: Job = prepared.job
        self._planning = Planning(prepared, checkpoint, invocation, ui)
        self._limit = sys.maxsize if self._options.limit is None else self._options.limit
        self._valve = Valve()
        self._started = clock.clock()
        self._tally = Tally()
        self._run_id: int | None = None
        self._asked = 0
        self._budget = Budget()
        self._written: Written | None = None

    def run(self) -> Summary:
        """Plan, ask the open questions, write the output, and return how it ended."""
        plan = self._planning.plan()
        event("plan_made", plan=plan.number, rows=plan.rows)
        if not plan.rows:  # an export that failed in the night left its header alone
            self._ui.warn("the input has no rows, so the output has none")
        # The second run of a night job: nothing is counted, asked or written.
        if (counts := self._nothing_new(plan)) is not None:
            event("nothing_new")
            self._written = Written(self._job.output_path, counts.rows, changed=False)
            return self._summary(counts)
        warn_of_missing_probabilities(self._prepared, self._ui)
        start = self._first_open(plan)
        if (sample := self._options.sample) is not None:
            self._checkpoint.choose(positions(plan.rows, sample), sample)
        count = self._count_open(start, NOT_OUT)
        # A plan that was reused adopted nothing: a variant may have answered these rows since.
        if count and self._planning.adopted is None:
            self._planning.adopt()
            count = self._count_open(start, NOT_OUT)
        self._asked = min(count, self._limit)
        outputs.check_sheet(self._prepared, plan.rows)
        # From here on the run is on record, and so is its end.
        self._begin()
        try:
            if self._asked or self._is_collecting():
                warn_of_little_space(self._prepared, self._asked, self._ui)
                self._ask(plan, start)
                if self._tally.ok:
                    warn_of_several_builds(self._prepared, self._checkpoint, self._ui)
            counts = self._counts()
            # The pool counted questions; several rows may share one that failed.
            self._valve.limit_failures(counts.failed, self._job.limits.accepted_failures(counts.rows))
            self._write(counts)
        except BaseException as problem:
            self._end(exit_code_of(problem), str(problem) or type(problem).__name__, None, plan)
            raise
        summary = self._summary(counts)
        self._end(summary.exit_code, summary.reason, counts, plan)
        if self._valve.closed and not summary.exit_code:  # the end of the run could not be noted
            return self._summary(counts)
        return summary

    # -- plan

    def _nothing_new(self, plan: PlanInfo) -> Counts | None:
        """Return the last run's counts if it finished this very plan and its output still stands."""
        last = self._checkpoint.last_run()
        if last is None or last.plan != plan.number or last.counts is None or not last.output:
            return None
        if self._is_collecting():
            return None
        counts = self._checkpoint.counts()
        if counts.pending or MAYBE_OPEN.intersection(counts.errors or ()):
            return None
        if last.output != outputs.state(self._prepared, plan.number):
            return None
        return counts

    def _first_open(self, plan: PlanInfo) -> int:
        """Return the position below which nothing is open; truncated rows below it are open when max_tokens grew."""
        if self._checkpoint.has_truncated(self._prepared.open_rule):
            return 0
        return plan.low_water

    # -- ask

    def _ask(self, plan: PlanInfo, start: int) -> None:
        """Ask the questions that are open from position `start` on, unless something already known forbids it."""
        failed = self._checkpoint.count_failed(self._prepared.open_rule)
        accepted = self._job.limits.accepted_failures(plan.rows)
        self._valve.limit_failures(failed.rows, accepted)
        if self._valve.closed:
            return
        with serving(self._prepared.endpoint) as endpoint:
            if endpoint.openrouter and not self._key_is_good(endpoint):
                return
            prices = prices_for(self._job, endpoint, self._prepared.cache_dir, time.time())
            self._prepared.check_inputs(prices.listed)
            asking = Asking(
                self._prepared,
                self._checkpoint,
                self._run_id or 0,
                endpoint,
                prices,
                start,
                limit=self._limit,
                max_failed=accepted,
                started=self._started,
                time=self._time,
            )
            if self._job.batch is not None:
                asking = self._use_batches(plan, asking)
                if not self._asked:
                    return
                failed = self._checkpoint.count_failed(self._prepared.open_rule)  # with those of the batches
            self._confirm_cost(asking)
            today = utc_day(time.time())
            self._budget = budget_of(self._prepared, prices, self._checkpoint, today, asking.run_id, self._ui.warn)
            may_fail = None if accepted is None else accepted - failed.rows
            asking = replace(asking, questions=self._asked, max_failed=may_fail, budget=self._budget)
            event("asking_started", questions=self._asked, concurrency=self._job.limits.ceiling)
            self._ui.start(self._goal(plan.questions, failed.questions))
            try:
                tally = ask(asking, self._valve, self._ui)
                tally.add(self._tally)
                self._tally = tally
            finally:
                self._ui.end()

    def _is_collecting(self) -> bool:
        """Check whether there is something to do though no question is open."""
        return self._job.batch is not None and bool(self._checkpoint.batches.open())

    def _count_open(self, start: int, where: str) -> int:
        return self._checkpoint.count_open(self._prepared.open_rule, start=start, where=where)

    def _use_batches(self, plan: PlanInfo, asking: Asking) -> Asking:
        """Submit the open questions in batches, wait and collect; return how to ask the rest live."""
        open_now = self._count_open(asking.start, "TRUE")
        self._ui.start(Goal(plan.questions, plan.questions - open_now, cost_kind=cost_kind(self._job)))
        try:
            self._tally = run_batches(asking, self._valve, self._ui)
        finally:
            self._ui.end()
        live = replace(asking, where=LIVE_AFTER_BATCH)
        self._asked = 0
        if not self._valve.closed:
            take_up(live)
            self._asked = self._count_open(live.start, live.where)
        return live

    def _confirm_cost(self, asking: Asking) -> None:
        """Refuse a first run that nothing caps and that would likely cost much, unless --yes says so (ConfirmError)."""
        is_capped = self._job.limits.max_cost_usd is not None
        if is_capped or self._options.yes or cost_kind(self._job) == CostKind.SIMULATED:
            return
        # A trial on the simulator or on a local model shows nobody what a paid one costs.
        if self._checkpoint.has_asked(asking.endpoint.namespace):
            return
        first = [work.values for work in islice(open_work(asking, self._valve), LIKE_THESE)]
        likely = likely_cost(self._prepared, asking.prices, first, self._asked)
        if likely is not None and likely > UNCONFIRMED_USD * PER_USD:
            raise ConfirmError(
                f"this run would likely cost {show(likely)}, and nothing caps it: set limits.max_cost_usd, or add --yes"
            )

    def _goal(self, questions: int, failed: int) -> Goal:
        """Return what the progress counts to: the whole plan, or with a limit what this run asks."""
        per_minute = self._job.limits.requests_per_minute
        if self._options.is_partial:
            return Goal(self._asked, per_minute=per_minute, cost_kind=cost_kind(self._job))
        return Goal(questions, questions - self._asked - failed, failed, per_minute, cost_kind(self._job))

    def _key_is_good(self, endpoint: Endpoint) -> bool:
        """Ask for the key's state first, so that a wrong key costs no request to the model."""
        answer = fetch_key(endpoint)
        if not isinstance(answer, KeyProblem):
            return True
        if answer.refused:
            self._valve.close(ExitCode.STOPPED_BY_API, answer.message, ending="unauthorized")
            return False
        self._ui.warn(f"the key can't be checked beforehand: {answer.message}")
        return True

    # -- write

    def _write(self, counts: Counts) -> None:
        """Replace the output if the run finished, else write a partial one next to it."""
        if self._valve.exit_code in UNWRITTEN or self._valve.urgent:
            return
        finished, path = self._finished(counts), self._job.output_path
        if not finished:
            path = partial_path(path)
        try:
            some = self._options.is_partial and not finished and counts.rows > LARGE_ROWS
            self._written = outputs.write(self._prepared, self._checkpoint, path, settled=some, warn=self._ui.warn)
            event("output_written", path=str(path), finished=finished, changed=self._written.changed)
            if finished:
                outputs.remove_partial(self._job)
        except (StorageError, InputError) as problem:
            # The answers are kept, with or without an output: the run ends with its summary.
            changed = isinstance(problem, InputError) and self._prepared.input_changed()
            reason = INPUT_CHANGED if changed else str(problem)
            self._ui.warn(reason)
            self._valve.close(problem.exit_code, reason)

    def _finished(self, counts: Counts) -> bool:
        """Check whether every row is settled; a batch of an earlier prompt may still be out."""
        return not counts.pending and (not self._valve.closed or self._valve.exit_code == ExitCode.WAITING)

    # -- begin and end

    def _begin(self) -> None:
        self._run_id = self._checkpoint.begin_run(
            now=time.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            job_text=self._job.text,
            flags=flags_text(self._job, self._options),
            endpoint=self._prepared.endpoint.namespace,
        )

    def _end(self, exit_code: int, reason: str, counts: Counts | None, plan: PlanInfo) -> None:
        if self._run_id is None:
            return
        output = None
        if counts is not None and self._finished(counts):
            output = outputs.state(self._prepared, plan.number)
        try:
            self._checkpoint.end_run(
                self._run_id,
                now=time.time(),
                exit_code=exit_code,
                reason=reason,
                counts=counts,
                resume_at=self._valve.resume_at,
                output=output,
                answered_at=self._tally.answered_at,
                lease=Pico(self._budget.spent + self._budget.reserved),
            )
            if (saved := self._checkpoint.rescue()) is not None:
                self._ui.warn(f"the checkpoint was written again, with all answers of this run: {saved}")
        except StorageError as problem:
            # What happened before is what people should read; the next run finds this one not ended.
            self._ui.warn(f"the run's end can't be noted: {problem}")
            self._valve.close(problem.exit_code, str(problem))

    def _summary(self, counts: Counts) -> Summary:
        exit_code, reason = self._exit(counts)
        after = Next(self._shown, self._options, self._job, self._valve.ending)
        commands = tuple(after.commands(exit_code, counts))
        failed_rows = self._failed_rows(counts)
        spent = self._checkpoint.spent
        cost, cached, unsettled = ZERO, 0, 0
        if self._run_id is not None and (run := self._checkpoint.last_run()) is not None:
            cost, cached = run.cost, run.cached
            # Lost replies and open batches may be billed on top.
            unsettled = self._budget.reserved + self._checkpoint.batches.reserved(run_id=run.id)
        written = self._written
        return Summary(
            job=self._job.name,
            exit_code=exit_code,
            reason=reason,
            rows=counts.rows,
            ok=counts.ok,
            failed=counts.failed,
            pending=counts.pending,
            skipped=counts.skipped,
            asked=self._tally.ok + self._tally.failed,
            requests=self._tally.requests,
            seconds=round(self._time.clock() - self._started, 3),
            cost_usd=to_usd(cost),
            cost_today_usd=to_usd(spent(day=utc_day(time.time()))),
            cost_total_usd=to_usd(spent()),
            cost_output_usd=to_usd(counts.cost),
            cost_at_most_usd=to_usd(cost + unsettled),
            possibly_billed=self._tally.possibly_billed,
            cached=cached,
            adopted=self._planning.adopted or 0,
            by_person=counts.by_person,
            errors=dict(counts.errors or {}),
            output=str(written.path) if written else None,
            output_changed=written is not None and written.changed,
            checkpoint=str(self._checkpoint.path),
            resume_at=self._valve.resume_at,
            next=next((command for command, _ in commands), None),
            commands=(*commands, *after.show(failed_rows), *(after.report() if self._tally.ok else ())),
            advice=after.advice(),
            answers=self._label_counts(counts),
            failed_rows=failed_rows,
            error_messages=self._messages(failed_rows),
            cost_kind=cost_kind(self._job),
            _read=outputs.reader(self._prepared, written),
        )

    def _messages(self, failed_rows: Mapping[str, Sequence[int]]) -> dict[str, str]:
        """Return what the first row of each error_type says, given rows from 1."""
        firsts = {name: rows[0] - 1 for name, rows in failed_rows.items() if rows}
        found = {name: self._checkpoint.outcomes(row, 1, ("error_message",)) for name, row in firsts.items()}
        return {name: row[0][0] for name, row in found.items() if row and row[0][0]}

    @cached_property
    def _by_person(self) -> list[ReviewedRow]:
        """The failed rows that a person answered, at the end of the run."""
        try:
            return list(reviewed_rows(self._prepared, self._checkpoint, failed=True))
        except InputError:  # it changed during the run, and writing the output reports that
            return []

    def _counts(self) -> Counts:
        """Count the rows at the end of the run."""
        counts = self._checkpoint.counts()
        return with_answers_of_people(counts, self._by_person) if counts.failed else counts

    def _failed_rows(self, counts: Counts) -> dict[str, tuple[int, ...]]:
        """Return the first rows (from 1) of each error."""
        # The checkpoint does not know which of them a person answered.
        answered = {row.position for row in self._by_person} if counts.errors and counts.by_person else set()
        found = {}
        for name in counts.errors or ():
            rows = self._checkpoint.failed_rows(name, NAMED_ROWS + len(answered))
            found[name] = tuple(row + 1 for row in rows if row not in answered)[:NAMED_ROWS]
        return found

    def _exit(self, counts: Counts) -> tuple[int, str]:
        """Return the run's exit code and its reason."""
        if self._valve.closed:
            return self._valve.exit_code, self._valve.reason
        if counts.pending and counts.pending == self._checkpoint.batches.out_rows():
            return ExitCode.WAITING, f"{plural(counts.pending, 'row')} in batches that are not collected yet"
        # With limits.attempts: 1 a question that met a rate limit is left to the next run.
        if left := self._tally.left or (0 if self._options.is_partial else counts.pending):
            return ExitCode.STOPPED_BY_API, f"the API refused {plural(left, 'question')} for now"
        if counts.failed > (self._job.limits.accepted_failures(counts.rows) or 0):
            return ExitCode.SOME_FAILED, f"{plural(counts.failed, 'row')} failed"
        return ExitCode.DONE, "done"

    def _label_counts(self, counts: Counts) -> dict[str, dict[str, int]]:
        """Count the values of the answer columns that have fixed values, where this run asked something."""
        if not self._tally.ok or counts.rows > LARGE_ROWS:
            return {}
        fixed = [
            name
            for name, schema in self._prepared.form.columns.items()
            if "enum" in schema or schema.get("type") == "boolean"
        ]
        counted = {name: Counter(self._checkpoint.answer_counts(name)) for name in fixed}
        try:
            add_corrections(counted, reviewed_rows(self._prepared, self._checkpoint, failed=False))
        except InputError:  # it changed during the run, and the reason of the run's end says that
            return {}
        return {name: dict(sorted(values.items(), key=_by_number)) for name, values in counted.items()}


def _by_number(counted: tuple[str, int]) -> tuple[int, str]:
    """Return a key that sorts the most frequent label first."""
    label, number = counted
    return -number, label
