"""What a person would do after a run: advice, and commands that can be pasted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from batchrun.api import ASKED_AGAIN, TABLE, UNSENT
from batchrun.checkpoint import Counts
from batchrun.errors import ExitCode
from batchrun.job import Job, RunOptions, command_line
from batchrun.net import ENDPOINTS, parse_endpoint, path_advice
from batchrun.runner.work import CAP_TOO_LOW
from batchrun.terminal import plural

RESUMABLE = {
    ExitCode.STOPPED_BY_API,
    ExitCode.STOPPED_BY_LIMIT,
    ExitCode.STORAGE,
    ExitCode.WAITING,
    ExitCode.SIGINT,
    ExitCode.SIGTERM,
}


MAX_FAILED = "max_failed"
"""What ends a run that limits.max_failed stops."""

LIMITS = {
    MAX_FAILED: "correct what makes them fail, or raise limits.max_failed",
    CAP_TOO_LOW: "raise limits.max_cost_usd (or --max-cost), or lower model.params.max_tokens",
}
"""What to do about a limit of the job that stopped the run, by its ending."""

LOW_DAY = "raise limits.max_cost_usd.day, or lower model.params.max_tokens"
"""What to do where the cap of the day is too low for a question: --max-cost sets that of the run."""

WORTH_READING = frozenset({"schema_mismatch", "interrupted", "broken_text"})
"""Failures of which the model's text says more than the message."""


@dataclass(frozen=True, slots=True)
class Next:
    """What follows a run: the job as the user named it, the run's flags, and the ending that stopped it, if one did."""

    shown: str
    options: RunOptions
    job: Job
    ending: str | None

    def commands(self, exit_code: int, counts: Counts) -> Iterator[tuple[str, str]]:
        """Yield what a person would run next, as commands that can be pasted, each with what it does."""
        options = self.options
        if exit_code == ExitCode.WAITING:
            if self.job.batch is None:  # a run that asks live leaves batches alone
                options = replace(options, engine="batch")
            more = f", and submits at most {options.limit:,} more" if options.limit else ""
            yield command_line(self.shown, options), f"collects what the provider has answered{more}"
        elif self.ending == CAP_TOO_LOW and not self.options.spent:
            return  # the same command would ask nothing again
        elif self.ending == MAX_FAILED and counts.failed:
            yield from self._after_failures(counts)
        elif exit_code in RESUMABLE or (counts.pending and exit_code != ExitCode.USER):
            if not counts.pending:
                yield command_line(self.shown, options), "writes the output: all rows are answered"
                return
            if exit_code in {ExitCode.DONE, ExitCode.SOME_FAILED}:  # the limit has had its effect
                options = replace(options, limit=None, sample=None)
            yield command_line(self.shown, options), self._continues(counts, options)
        elif exit_code != ExitCode.USER:
            yield from self._retries(counts)

    def _after_failures(self, counts: Counts) -> Iterator[tuple[str, str]]:
        """Yield what gets on after limits.max_failed; nothing where only the advice does."""
        # The same command would stop at once: the failed rows count against the limit until they are reopened. Rows
        # that could not even be sent are not reopened: `retry` would stop at them, too.
        unsent = sum(number for name, number in (counts.errors or {}).items() if name in UNSENT)
        if unsent == counts.failed or unsent > (self.job.limits.accepted_failures(counts.rows) or 0):
            yield command_line(self.shown, self.options), "continues, once the prompt or these rows are corrected"
        elif counts.pending:
            others = plural(counts.pending, "row")
            yield command_line(self.shown, self.options, "retry"), f"asks failed rows again and the other {others}"
        else:
            yield from self._retries(counts)

    @staticmethod
    def _continues(counts: Counts, options: RunOptions) -> str:
        """Return what the command does that continues a run with some rows pending."""
        if options.limit is not None and options.limit < counts.pending:
            return f"asks up to {plural(options.limit, 'question')}"
        if options.sample is not None:
            return "asks the rest of the sample"
        return f"asks the {'other ' if counts.ok else ''}{plural(counts.pending, 'row')}"

    def show(self, failed_rows: Mapping[str, Sequence[int]]) -> tuple[tuple[str, str], ...]:
        """Return the command that shows the text of a failed row, given rows from 1 by error_type; none without one."""
        rows = [row for name, found in failed_rows.items() if name in WORTH_READING for row in found[:1]]
        if self.options.reads_stdin or not rows:
            return ()
        return ((f"{self._looking('show')} --row {min(rows)}", "what the model wrote"),)

    def report(self) -> tuple[tuple[str, str], ...]:
        """Return the command that shows the answers; none where the rows came through a pipe."""
        if self.options.reads_stdin:
            return ()
        return ((self._looking("report"), "a page to look through"),)

    def _looking(self, verb: str) -> str:
        """Return a command that sends nothing, with the flags that make the job what it is."""
        options = replace(
            self.options,
            limit=None,
            sample=None,
            max_cost=None,
            concurrency=None,
            engine=None,
            wait=None,
            output=None,
            format=None,
            yes=False,
        )
        return command_line(self.shown, options, verb)

    def _retries(self, counts: Counts) -> Iterator[tuple[str, str]]:
        """Yield the command that asks failed rows again, where asking may help."""
        kinds = set(counts.errors or ())
        # `retry` without --only would pay again for rows that fail the same way each time, such as a refusal.
        helped = {name for name in kinds if TABLE[name].retry}
        if helped:
            command = "retry"
            if kinds - helped - ASKED_AGAIN:
                command += f" --only {','.join(sorted(helped))}"
            yield command_line(self.shown, self.options, command), "asks failed rows again"
        elif kinds & (ASKED_AGAIN - UNSENT):
            yield command_line(self.shown, self.options), "asks failed rows again"

    def advice(self) -> str | None:
        """Return what to do about the ending that stopped the run, None where none did."""
        cap = self.job.limits.cap
        if self.ending == CAP_TOO_LOW and cap.day is not None and (cap.run is None or cap.day < cap.run):
            return LOW_DAY
        if self.ending not in TABLE:
            return LIMITS.get(self.ending or "")
        if self.ending == "unauthorized" and self.job.model.key_variable is None:
            if self.options.endpoint is not None:
                return "no key is sent to another endpoint: name the key's variable with --api-key-env"
            return "the job names no key: write its variable's name into model.api_key_env"
        is_decision = self.job.answer is not None and self.job.answer.mode == "decision"
        if self.ending == "not_found" and self.job.model.endpoint not in ENDPOINTS and not is_decision:
            return path_advice(parse_endpoint(self.job.model.endpoint, allow_plain_http=True))
        return TABLE[self.ending].do
