"""Runs a job: plan, ask, keep, write. The only place that holds requests going down and outcomes coming back."""

import os
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from batchrun._version import __version__
from batchrun.api import ASKED_AGAIN, UNSENT, Endpoint, KeyProblem, Prices, cost_kind, fetch_key, prices_for
from batchrun.checkpoint import (
    LIVE_AFTER_BATCH,
    NOT_OUT,
    Checkpoint,
    Counts,
    PlanInfo,
    lock,
    start_fresh,
    utc_day,
)
from batchrun.errors import ConfirmError, ExitCode, InputError, StorageError, UserError
from batchrun.job import Environment, Job, Loaded, RunOptions, command_line, merged
from batchrun.money import PER_USD, ZERO, CostKind, Pico, show, to_usd
from batchrun.prompt import changed_words
from batchrun.records import Summary
from batchrun.runner import outputs
from batchrun.runner.asking import Asking, ask, serving
from batchrun.runner.batches import refuse_to_forget, run_batches
from batchrun.runner.budget import Budget, budget_of, unsettled
from batchrun.runner.following import Next
from batchrun.runner.forecast import likely_cost
from batchrun.runner.log import event, run_ended
from batchrun.runner.plan import fill, fingerprint, known_files, stamps_text
from batchrun.runner.prepare import INPUT_CHANGED, Prepared, prepare_job
from batchrun.runner.progress import Goal, Ui
from batchrun.runner.sample import positions
from batchrun.runner.stop import Valve, exit_code_of
from batchrun.runner.trials import flags_text
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

IN_BATCH = "in_batch"
"""What `retry --only` calls questions that are out in a batch."""

NAMED_ROWS = 4
"""Failed rows that are named for each error."""

LARGE_ROWS = 200_000
"""The end of a run over more rows does not touch them all: their answers are not counted by value, and after --limit or
--sample the partial output has no pending rows."""

UNCONFIRMED_ROWS = 100
"""Answered rows that an edited prompt may ask again; more need --yes."""


def run_job(loaded: Loaded, options: RunOptions, environment: Environment, ui: Ui, clock: Time = REAL_TIME) -> Summary:
    """Run or resume a job; what ends it before the first request is raised as BatchrunError."""
    job = merged(loaded.job, options)
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
        if job.checkpoint_path.exists() and not options.fresh and not loaded.mistakes:
            checkpoint = stack.enter_context(Checkpoint.open(job.checkpoint_path))
        known = known_files(checkpoint.current_plan()) if checkpoint else {}
        prepared = stack.enter_context(prepare_job(loaded, job, environment, known))
        check_writable(job.output_path, [Path(file.path) for file in prepared.rows.files])
        if options.fresh and not options.yes:
            refuse_to_forget(job.checkpoint_path)
        # Only now that the job has no mistake: one in it must not move the checkpoint aside.
        if options.fresh and (old := start_fresh(job.checkpoint_path, time.time())):
            ui.say(f"the old checkpoint is now {old}")
        checkpoint = checkpoint or stack.enter_context(Checkpoint.open(job.checkpoint_path))
        model, endpoint = prepared.endpoint.model, job.model.endpoint
        event("run_started", job=job.name, model=model, endpoint=endpoint, version=__version__, pid=os.getpid())
        summary = _Run(prepared, checkpoint, options, ui, loaded.shown, clock).run()
        run_ended(summary)
        return summary


class _Run:
    """One run of one job, with everything open."""

    def __init__(
        self, prepared: Prepared, checkpoint: Checkpoint, options: RunOptions, ui: Ui, shown: str, clock: Time
    ) -> None:
        self._prepared, self._checkpoint, self._options = prepared, checkpoint, options
        self._ui, self._shown, self._time = ui, shown, clock
        self._job: Job = prepared.job
        self._limit = sys.maxsize if options.limit is None else options.limit
        self._valve = Valve()
        self._started = clock.clock()
        self._tally = Tally()
        self._run_id: int | None = None
        self._asked = 0
        self._budget = Budget()
        self._written: Written | None = None
        self._adopted: int | None = None

    def run(self) -> Summary:
        """Plan, ask the open questions, write the output, and return how it ended."""
        plan = self._reopened(self._plan())
        event("plan_made", plan=plan.number, rows=plan.rows)
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
        if count and self._adopted is None:
            self._adopt()
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
            counts = self._checkpoint.counts()
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

    def _plan(self) -> PlanInfo:
        """Return the plan that stands, or make a new one current."""
        prepared, checkpoint, now = self._prepared, self._checkpoint, time.time()
        current = checkpoint.current_plan()
        mark = fingerprint(self._job, prepared.renderer, prepared.rows.files, now=now)
        if current is not None and mark and current.fingerprint == mark:
            if current.baseline and not self._options.is_partial:
                self._confirm(current, current.rows, current.baseline, checkpoint.counts().ok)
                checkpoint.confirm_plan()
            return current
        stamps = stamps_text(prepared.rows.files)
        builder = checkpoint.new_plan(fingerprint=mark, wording=prepared.renderer.wording, stamps=stamps, now=now)
        try:
            fill(builder, prepared.rows, prepared.renderer, prepared.kept, dedupe=self._job.dedupe, show=self._ui.plan)
        finally:
            self._ui.end()
        builder.flush()
        self._adopt()
        if current is None:
            return builder.make_current(prepared.rows.layout.text())
        before, after = builder.answered()
        # Only the wording is compared: a new month's file with the old prompt is asked without a confirmation.
        if current.wording == prepared.renderer.wording:
            before = 0
        baseline = max(current.baseline, before)
        try:
            self._confirm(current, builder.rows, baseline, after)
        except ConfirmError:
            builder.discard()
            raise
        if not self._options.is_partial or baseline - after <= UNCONFIRMED_ROWS:
            baseline = 0
        return builder.make_current(prepared.rows.layout.text(), baseline)

    def _adopt(self) -> None:
        """Copy what the job's variants, or an equal job under another name, have paid for already."""
        prepared = self._prepared
        if self._options.fresh:
            return
        adopted = self._checkpoint.adopt(prepared.renderer.wording, prepared.open_rule)
        self._adopted = sum(adopted.values())
        for path, number in adopted.items():
            self._ui.say(
                f"{plural(number, 'answer')} taken from {path.name}, where the same was asked: nothing is paid"
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
        counts = self._checkpoint.counts()
        likely = counts.cost * again // max(1, counts.ok)
        what = changed_words(current.wording, self._prepared.renderer.wording)
        raise ConfirmError(
            f"the {what} changed: {again:,} answered rows would be asked again, for about {show(likely)}; "
            "add --yes to do that, or try a few rows with --sample 20 (changing it back "
            "costs nothing)"
        )

    def _reopened(self, plan: PlanInfo) -> PlanInfo:
        """Return the plan after `retry` has opened its failed questions again, which lowers its low-water mark."""
        if self._options.retry is None:
            return plan
        if IN_BATCH in self._options.retry:
            given_up = self._checkpoint.batches.give_up(time.time())
            self._ui.say(f"{plural(given_up, 'question')} out in batches will be asked again; both may be billed")
            if self._options.retry == {IN_BATCH}:
                return plan
        reopened = self._checkpoint.reopen_failed(self._options.retry)
        if not reopened:
            failed = " with ".join(filter(None, ["no row failed", ", ".join(sorted(self._options.retry))]))
            command = command_line(self._shown, self._options)
            raise UserError(f"{failed}, so there is nothing to retry; `{command}` asks the open rows")
        self._ui.say(f"asking {plural(reopened, 'failed question')} again")
        return self._checkpoint.current_plan() or plan

    def _nothing_new(self, plan: PlanInfo) -> Counts | None:
        """Return the last run's counts if it finished this very plan and its output still stands."""
        last = self._checkpoint.last_run()
        if last is None or last.plan != plan.number or last.counts is None or not last.output:
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
                self._use_batches(plan, asking)
                if not self._asked:
                    return
                asking = replace(asking, where=LIVE_AFTER_BATCH)
            self._confirm_cost(prices, start)
            self._budget = budget_of(self._prepared, prices, self._checkpoint, utc_day(time.time()), self._run_id)
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

    def _use_batches(self, plan: PlanInfo, asking: Asking) -> None:
        """Submit the open questions in batches, wait and collect; `_asked` counts those that are left to ask live."""
        open_now = self._count_open(asking.start, "TRUE")
        self._ui.start(Goal(plan.questions, plan.questions - open_now, cost_kind=cost_kind(self._job)))
        try:
            self._tally = run_batches(asking, self._valve, self._ui)
        finally:
            self._ui.end()
        self._asked = 0
        if not self._valve.closed:
            self._asked = self._count_open(asking.start, LIVE_AFTER_BATCH)

    def _confirm_cost(self, prices: Prices, start: int) -> None:
        """Refuse a first run that nothing caps and that would likely cost much, unless --yes says so (ConfirmError)."""
        is_capped = self._job.limits.max_cost_usd is not None
        if is_capped or self._options.yes or cost_kind(self._job) == CostKind.SIMULATED:
            return
        if any(run.requests for run in self._checkpoint.runs(limit=1_000)):
            return
        likely = likely_cost(self._prepared, self._checkpoint, prices, start=start, questions=self._asked)
        if likely is not None and likely > UNCONFIRMED_USD * PER_USD:
            raise ConfirmError(
                f"this run would likely cost {show(likely)}, and nothing caps it: set max_cost_usd or add --yes"
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
        return not counts.pending and not self._valve.closed

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
        failed_rows = {
            name: tuple(row + 1 for row in self._checkpoint.failed_rows(name, NAMED_ROWS))
            for name in counts.errors or ()
        }
        spent = self._checkpoint.spent
        cost, cached = ZERO, 0
        if self._run_id is not None and (run := self._checkpoint.last_run()) is not None:
            cost, cached = run.cost, run.cached
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
            cost_at_most_usd=to_usd(cost + unsettled(self._budget, self._checkpoint, self._run_id)),
            possibly_billed=self._tally.possibly_billed,
            cached=cached,
            adopted=self._adopted or 0,
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
            cost_kind=cost_kind(self._job),
            _read=outputs.reader(self._prepared, written),
        )

    def _exit(self, counts: Counts) -> tuple[int, str]:
        """Return the run's exit code and its reason."""
        if self._valve.closed:
            return self._valve.exit_code, self._valve.reason
        if counts.pending and counts.pending == self._checkpoint.batches.out_rows():
            return ExitCode.WAITING, f"{plural(counts.pending, 'row')} in batches that are not collected yet"
        if counts.pending and not self._options.is_partial:
            return ExitCode.SOME_FAILED, f"{plural(counts.pending, 'row')} pending"
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
        return {name: self._checkpoint.answer_counts(name) for name in fixed}
