"""Runs a job: plan, ask, keep, write. The only place that holds requests going down and outcomes coming back."""

import os
import socket
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from batchrun._version import __version__
from batchrun.api import ASKED_AGAIN, TABLE, UNSENT, Endpoint, KeyProblem, Prices, cost_kind, fetch_key, prices_for
from batchrun.checkpoint import (
    LIVE_AFTER_BATCH,
    NOT_OUT,
    Checkpoint,
    Counts,
    PlanBuilder,
    PlanInfo,
    free_bytes,
    lock,
    start_fresh,
    utc_day,
)
from batchrun.errors import BatchrunError, ConfirmError, ExitCode, InputError, StorageError, UserError
from batchrun.job import Environment, Job, Loaded, RunOptions, command_line, merged
from batchrun.money import PER_USD, CostKind, Pico, show, to_usd
from batchrun.records import Summary
from batchrun.runner import outputs
from batchrun.runner.asking import Asking, ask, serving
from batchrun.runner.batches import Submitting, refuse_to_forget, run_batches
from batchrun.runner.budget import Budget, budget_of
from batchrun.runner.forecast import likely_cost
from batchrun.runner.log import event
from batchrun.runner.plan import fill, fingerprint, known_files, stamps_text
from batchrun.runner.prepare import INPUT_CHANGED, Prepared, prepared
from batchrun.runner.progress import Goal, Ui
from batchrun.runner.sample import positions
from batchrun.runner.stop import Terminated, Valve
from batchrun.runner.work import REAL_TIME, Tally, Time
from batchrun.senders import check_installed
from batchrun.table import Written, check_writable, partial_path
from batchrun.terminal import plural

RESUMABLE = {
    ExitCode.STOPPED_BY_API,
    ExitCode.STOPPED_BY_LIMIT,
    ExitCode.STORAGE,
    ExitCode.WAITING,
    ExitCode.SIGINT,
    ExitCode.SIGTERM,
}
UNWRITTEN = {ExitCode.USER, ExitCode.STORAGE, ExitCode.BUG}
"""After these ends nothing is written: the input is another one, or the disk is not to be trusted."""

MAYBE_OPEN = ASKED_AGAIN - UNSENT | {"truncated"}
"""Failures that a run may ask again; what can't even be sent waits for another row, prompt or image."""

LOOK_USD = 10
"""A first run without a cap that will likely cost more needs --yes."""

ANSWER_BYTES = 1_000
"""What an answer takes on the disk, roughly."""

_SHOWN = 3
"""Builds of a model named in a warning."""

IN_BATCH = "in_batch"
"""What `retry --only` calls questions that are out in a batch."""

SURPRISE = 100
"""So many answered rows are asked again without a question; more need --yes."""


def run_job(loaded: Loaded, options: RunOptions, environment: Environment, ui: Ui, clock: Time = REAL_TIME) -> Summary:
    """Run or resume a job; what ends it before the first request is raised as BatchrunError."""
    job = merged(loaded.job, options)
    if options.wording is not None and options.variant is None and not options.yes:
        raise UserError(
            f"--set {options.wording} changes what is asked: add --variant NAME for an output and a checkpoint of its "
            "own, or --yes to change those of the job"
        )
    check_installed(job.ray)
    with ExitStack() as stack:
        stack.enter_context(lock(job.checkpoint_path))
        checkpoint = None
        if job.checkpoint_path.exists() and not options.fresh and not loaded.mistakes:
            checkpoint = stack.enter_context(Checkpoint.open(job.checkpoint_path))
        known = known_files(checkpoint.current_plan()) if checkpoint else {}
        p = stack.enter_context(prepared(loaded, job, environment, known))
        check_writable(job.output_path, [Path(file.path) for file in p.rows.files])
        if options.fresh and not options.yes:
            refuse_to_forget(job.checkpoint_path)
        if options.fresh and (old := start_fresh(job.checkpoint_path, time.time())):
            ui.say(f"the old checkpoint is now {old}")
        checkpoint = checkpoint or stack.enter_context(Checkpoint.open(job.checkpoint_path))
        model, endpoint = p.endpoint.model, job.model.endpoint
        event("run_started", job=job.name, model=model, endpoint=endpoint, version=__version__, pid=os.getpid())
        summary = _Run(p, checkpoint, options, ui, loaded.shown, clock).run()
        event("run_ended", **{name: value for name, value in asdict(summary).items() if name not in _WORDED})
        return summary


_WORDED = {"reason", "next"}
"""Fields of a summary that may quote a server or a row."""


class _Run:
    """One run of one job, with everything open."""

    def __init__(
        self, p: Prepared, checkpoint: Checkpoint, options: RunOptions, ui: Ui, shown: str, clock: Time
    ) -> None:
        self._time = clock
        self._p, self._checkpoint, self._options, self._ui, self._shown = p, checkpoint, options, ui, shown
        self._job: Job = p.job
        self._valve = Valve()
        self._started = clock.clock()
        self._tally = Tally()
        self._run_id: int | None = None
        self._asked = 0
        self._budget = Budget()
        self._written: Written | None = None

    def run(self) -> Summary:
        """Plan, ask what is open, write, and say how it ended."""
        plan = self._reopened(self._plan())
        event("plan_made", plan=plan.number, rows=plan.rows)
        if (counts := self._nothing_new(plan)) is not None:
            event("nothing_new")
            self._written = Written(self._job.output_path, counts.rows, changed=False)
            return self._summary(counts)
        self._look_at_probabilities()
        start = self._start(plan)
        if (sample := self._options.sample) is not None:
            self._checkpoint.choose(positions(plan.rows, sample), sample)
        count = self._count_open(start, NOT_OUT)
        self._asked = count if self._options.limit is None else min(count, self._options.limit)
        self._begin()
        try:
            if self._asked or self._is_collecting():
                self._look_at_space()
                self._ask(plan, start)
                self._look_at_builds()
            counts = self._checkpoint.counts()
            self._look_at_failures(counts)
            self._write(counts)
        except BaseException as problem:
            self._end(_exit_code_of(problem), str(problem) or type(problem).__name__, None, plan)
            raise
        summary = self._summary(counts)
        self._end(summary.exit_code, summary.reason, counts, plan)
        return summary if summary.exit_code or not self._valve.closed else self._summary(counts)

    # -- plan

    def _plan(self) -> PlanInfo:
        """Return the plan that stands, or make a new one current."""
        p, checkpoint, now = self._p, self._checkpoint, time.time()
        current = checkpoint.current_plan()
        mark = fingerprint(self._job, p.renderer, p.rows.files, now=now)
        if current is not None and mark and current.fingerprint == mark:
            return current
        stamps = stamps_text(p.rows.files)
        builder = checkpoint.new_plan(fingerprint=mark, wording=p.renderer.wording, stamps=stamps, now=now)
        fill(builder, p.rows, p.renderer, p.kept, dedupe=self._job.dedupe)
        if current is not None and current.wording != p.renderer.wording and not self._options.yes:
            self._confirm(builder)
        return builder.make_current(p.rows.layout.text())

    def _confirm(self, builder: PlanBuilder) -> None:
        """Refuse to pay for many answered rows again without being told so."""
        again = builder.asked_again()
        if again <= SURPRISE:
            return
        counts = self._checkpoint.counts()
        builder.discard()
        likely = counts.cost * again // max(1, counts.ok)
        raise ConfirmError(
            f"the job's own wording changed: {again:,} answered rows would be asked again, for about {show(likely)}; "
            "add --yes to do that (the old answers are kept, so that changing it back costs nothing)"
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
        reopened = self._checkpoint.reopen_failed(self._options.retry or None)
        if not reopened:
            kinds = f" with {', '.join(sorted(self._options.retry))}" if self._options.retry else ""
            command = command_line(self._shown, self._options)
            raise UserError(f"no row failed{kinds}, so there is nothing to retry; `{command}` asks what is open")
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
        return counts if last.output == outputs.state(self._p, plan.number) else None

    def _start(self, plan: PlanInfo) -> int:
        """Return the position below which nothing is open; truncated rows below it are open when max_tokens grew."""
        return 0 if self._checkpoint.has_truncated(max_tokens=self._p.max_tokens) else plan.low_water

    # -- ask

    def _failures_left(self, standing: int, plan: PlanInfo) -> int | None:
        """Return how many more questions may fail; the rows that failed for good count against limits.max_failed."""
        accepted = self._job.limits.accepted_failures(plan.rows)
        if accepted is None:
            return None
        if standing > accepted:
            reason = f"{plural(standing, 'row')} failed, more than limits.max_failed accepts"
            self._valve.close(ExitCode.STOPPED_BY_LIMIT, reason, ending="max_failed")
        return max(0, accepted - standing)

    def _ask(self, plan: PlanInfo, start: int) -> None:
        """Ask what is open from position `start` on, unless something already known forbids it."""
        failed = self._checkpoint.count_failed(again=ASKED_AGAIN, max_tokens=self._p.max_tokens)
        failures_left = self._failures_left(failed.rows, plan)
        if self._valve.closed:
            return
        with serving(self._p.endpoint) as endpoint:
            if endpoint.openrouter and not self._key_is_good(endpoint):
                return
            prices = prices_for(self._job, endpoint, self._p.cache_dir, time.time())
            where = NOT_OUT
            if self._job.batch is not None:
                where = LIVE_AFTER_BATCH
                self._asked = self._use_batches(plan, start, endpoint, prices)
                if not self._asked:
                    return
            self._confirm_cost(prices, start)
            self._budget = budget_of(self._p, prices, self._checkpoint, utc_day(time.time()), self._run_id)
            asking = Asking(
                self._p,
                self._checkpoint,
                self._run_id or 0,
                endpoint,
                again=ASKED_AGAIN,
                where=where,
                moves_low_water=where == NOT_OUT and not self._checkpoint.batches.out(),
                start=start,
                most=self._options.limit,
                questions=self._asked,
                max_failed=failures_left,
                prices=prices,
                budget=self._budget,
                sender=self._p.sender,
                started=self._started,
                time=self._time,
            )
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
        return self._checkpoint.count_open(start=start, again=ASKED_AGAIN, max_tokens=self._p.max_tokens, where=where)

    def _use_batches(self, plan: PlanInfo, start: int, endpoint: Endpoint, prices: Prices) -> int:
        """Submit what is open in batches, wait and collect; return how many questions are left to ask live."""
        submitting = Submitting(
            self._p,
            self._checkpoint,
            endpoint,
            prices,
            run_id=self._run_id or 0,
            start=start,
            limit=self._options.limit,
            max_failed=self._job.limits.accepted_failures(plan.rows),
            started=self._started,
            time=self._time,
        )
        self._ui.start(
            Goal(plan.questions, plan.questions - self._count_open(start, "TRUE"), 0, None, cost_kind(self._job))
        )
        try:
            self._tally = run_batches(submitting, self._valve, self._ui)
        finally:
            self._ui.end()
        return 0 if self._valve.closed else self._count_open(start, LIVE_AFTER_BATCH)

    def _confirm_cost(self, prices: Prices, start: int) -> None:
        """Refuse a first run that nothing caps and that would likely cost much, unless --yes says so (ConfirmError)."""
        cap, kind = self._job.limits.cap, cost_kind(self._job)
        capped = cap.run is not None or cap.day is not None
        if capped or self._options.yes or kind == CostKind.SIMULATED:
            return
        if any(run.requests for run in self._checkpoint.runs(limit=1_000)):
            return
        likely = likely_cost(self._p, self._checkpoint, prices, start=start, questions=self._asked)
        if likely is not None and likely > LOOK_USD * PER_USD:
            raise ConfirmError(
                f"this run would likely cost {show(likely)}, and nothing caps it: set max_cost_usd or add --yes"
            )

    def _look_at_probabilities(self) -> None:
        """Warn that a chat model's answers come without the probabilities that the output is to show."""
        output = self._job.output
        if not self._p.form.questions and (output.review_below is not None or "probabilities" in output.details):
            self._ui.warn("a chat model gives no probabilities: needs_review is empty (answer.mode: decision has them)")

    def _look_at_builds(self) -> None:
        """Warn where a decision model's answers come from several builds: a threshold fits one of them."""
        if self._p.form.questions and self._tally.ok and len(builds := self._checkpoint.answering_models(_SHOWN)) > 1:
            names = ", ".join(builds)
            self._ui.warn(f"the stored answers are of different builds ({names}): their probabilities don't compare")

    def _look_at_space(self) -> None:
        """Warn where the checkpoint or the output may need more room than its disk has."""
        rows = sum(file.size for file in self._p.rows.files)
        needs = {self._job.checkpoint_path: 0, self._job.output_path: rows}
        for path, more in needs.items():
            needed, free = more + self._asked * ANSWER_BYTES, free_bytes(path.parent)
            if free is not None and free < needed:
                self._ui.warn(f"{path} may need {needed >> 20:,} MB, and its disk has {free >> 20:,} MB free")

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

    def _look_at_failures(self, counts: Counts) -> None:
        """Count the failed rows once more: several rows may share a question that failed."""
        accepted = self._job.limits.accepted_failures(counts.rows)
        if accepted is not None and counts.failed > accepted:
            reason = f"{plural(counts.failed, 'row')} failed, more than limits.max_failed accepts"
            self._valve.close(ExitCode.STOPPED_BY_LIMIT, reason, ending="max_failed")

    # -- write

    def _write(self, counts: Counts) -> None:
        """Replace the output if the run finished, else write what is known beside it."""
        if self._valve.exit_code in UNWRITTEN or self._valve.urgent:
            return
        finished = self._finished(counts)
        path = self._job.output_path if finished else partial_path(self._job.output_path)
        try:
            self._written = outputs.write(self._p, self._checkpoint, path)
            event("output_written", path=str(path), finished=finished, changed=self._written.changed)
            if finished:
                outputs.remove_partial(self._job)
        except (StorageError, InputError) as problem:
            # The answers are kept whatever becomes of the output: the run ends with its summary.
            changed = isinstance(problem, InputError) and self._p.input_changed()
            reason = INPUT_CHANGED if changed else str(problem)
            self._ui.warn(reason)
            self._valve.close(problem.exit_code, reason)

    def _finished(self, counts: Counts) -> bool:
        return not counts.pending and not self._valve.closed

    # -- the books

    def _begin(self) -> None:
        self._run_id = self._checkpoint.begin_run(
            now=time.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            job_text=self._job.text,
            endpoint=self._p.endpoint.namespace,
        )

    def _end(self, exit_code: int, reason: str, counts: Counts | None, plan: PlanInfo) -> None:
        if self._run_id is None:
            return
        finished = counts is not None and self._finished(counts)
        try:
            self._checkpoint.end_run(
                self._run_id,
                now=time.time(),
                exit_code=exit_code,
                reason=reason,
                counts=counts,
                resume_at=self._valve.resume_at,
                output=outputs.state(self._p, plan.number) if finished else None,
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
        exit_code, reason = self._verdict(counts)
        spent = self._checkpoint.spent
        run = self._checkpoint.last_run() if self._run_id is not None else None
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
            cost_usd=str(to_usd(run.cost if run else 0)),
            cost_today_usd=str(to_usd(spent(day=utc_day(time.time())))),
            cost_total_usd=str(to_usd(spent())),
            cost_output_usd=str(to_usd(counts.cost)),
            possibly_billed=self._tally.possibly_billed,
            cached=run.cached if run else 0,
            errors=dict(counts.errors or {}),
            output=str(self._written.path) if self._written else None,
            output_changed=self._written is not None and self._written.changed,
            checkpoint=str(self._checkpoint.path),
            resume_at=self._valve.resume_at,
            next=self._next(exit_code, counts),
            cost_kind=cost_kind(self._job),
        )

    def _verdict(self, counts: Counts) -> tuple[int, str]:
        if self._valve.closed:
            return self._valve.exit_code, self._valve.reason
        if counts.pending and counts.pending == self._checkpoint.batches.out_rows():
            return ExitCode.WAITING, f"{plural(counts.pending, 'row')} in batches that are not collected yet"
        if counts.pending and not self._options.is_partial:
            return ExitCode.SOME_FAILED, f"{plural(counts.pending, 'row')} pending"
        if counts.failed > (self._job.limits.accepted_failures(counts.rows) or 0):
            return ExitCode.SOME_FAILED, f"{plural(counts.failed, 'row')} failed"
        return ExitCode.DONE, "done"

    def _next(self, exit_code: int, counts: Counts) -> str | None:
        """Return what a person would do next, with a command that can be pasted."""
        command = command_line(self._shown, self._options)
        if exit_code in RESUMABLE or (counts.pending and exit_code != ExitCode.USER):
            advice = f"{self._advice()}; " if self._valve.ending in TABLE else ""
            if not counts.pending:
                return f"{advice}`{command}` writes the output (all rows are answered)"
            verb = "collects" if exit_code == ExitCode.WAITING else "resumes with"
            return f"{advice}`{command}` {verb} {plural(counts.pending, 'row')}"
        kinds = set(counts.errors or ())
        if helped := {name for name in kinds if TABLE[name].retry}:
            only = f" --only {','.join(sorted(helped))}" if kinds - helped - ASKED_AGAIN else ""
            return f"`{command_line(self._shown, self._options, 'retry' + only)}` asks failed rows again"
        if kinds & (ASKED_AGAIN - UNSENT):
            return f"`{command}` asks failed rows again"
        return None

    def _advice(self) -> str:
        """Return what to do about the ending that stopped the run."""
        if self._valve.ending == "unauthorized" and self._job.model.key_variable is None:
            return "the job names no key: write its variable's name into model.api_key_env"
        return TABLE[self._valve.ending or ""].do


def _exit_code_of(problem: BaseException) -> int:
    if isinstance(problem, BatchrunError):
        return problem.exit_code
    if isinstance(problem, KeyboardInterrupt):
        return ExitCode.SIGTERM if isinstance(problem, Terminated) else ExitCode.SIGINT
    return ExitCode.BUG
