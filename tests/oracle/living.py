"""Lives a life: runs the real command line step by step and holds each step to the model."""

import contextlib
import datetime as dt
import json
import random
import re
import shlex
import shutil
import signal
import sqlite3
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from oracle import model
from oracle.bounds import STOPPED, Run
from oracle.cells import Number
from oracle.compare import check_output
from oracle.desk import Batching
from oracle.files import WRONG_COLUMNS, Row
from oracle.lives import ANSWERS, CONDITIONS, DETAILS, JSON, RUNS, Life, Step
from oracle.looks import Looked, check_another, check_evaluation, check_preview, check_status, check_summary
from oracle.model import OK, PENDING, End, Memory, Question
from oracle.people import review
from oracle.server import Ledger, Server, Weather
from oracle.zygote import Ended, Started, Zygote, fast_folder

STICKY = ("--output", "--max-cost", "--concurrency")
"""Flags that the command offered at the end must keep: without them it is another job."""

BOUNDS = ("--limit", "--sample")
"""Flags that bound how many questions a run asks."""

MORE_CODES = {"edited": {2}, "wait": {6}, "stop": {6, STOPPED}}
"""Exit codes that a step may have, beside those of any run."""

CONFIRMED = 100
"""Answered rows above which an edit of the prompt needs --yes."""


def _today() -> dt.date:
    return dt.datetime.now(dt.UTC).date()


@dataclass
class Living:
    """A life that runs: its folder, the rows as they are now, and what the model knows."""

    life: Life
    folder: Path
    server: Server
    zygote: Zygote
    rows: list[Row]
    where: int
    word: str = "A"
    memory: Memory = field(default_factory=Memory)
    fresh_rows: int = 1_000
    billed: Counter[int] = field(default_factory=Counter)
    paid: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    killed: bool = False
    days: int = 0
    began: dt.date = field(default_factory=_today)
    bills: Counter[str] = field(default_factory=Counter)
    fetched: Counter[str] = field(default_factory=Counter)
    elsewhere: set[str] = field(default_factory=set)
    """Questions that a batch answered when they were no longer in the plan."""
    flags: list[str] = field(default_factory=list)
    is_known: bool = True
    """Whether the memory holds all that the checkpoint does: a run that was killed early may have kept more."""
    is_planned: bool = False
    """Whether the last run planned the job and the input as they are now."""
    variant: str = ""
    """What a trial's files have in their names: .v; empty for the job."""
    other: "Living | None" = None
    """The job's trial, or the trial's job: what one has an answer to, the other does not ask."""

    # -- the job

    def job(self) -> model.Job:
        """Return the job as the model sees it."""
        life, combination = self.life, self.life.combination
        text, whole, _ = life.names
        twin = CONDITIONS[self.where][1]

        def where(row: Row) -> bool | None:
            number = row[whole]
            return twin(row[text], number.exact if isinstance(number, Number) else number)

        return model.Job(
            life.prompt(self.word),
            where if self.where else None,
            life.kept(),
            DETAILS[combination["details"]],
            life.prefix,
            ANSWERS[combination["answer"]],
            dedupe=combination["dedupe"],
            attempts=life.attempts,
            repairs=life.repairs,
            asked_columns=life.asked_columns,
        )

    def write(self) -> None:
        """Write job and input as they are now."""
        self.is_planned = False
        self.write_job()
        self.life.write(self.folder, self.rows)

    def write_job(self) -> None:
        """Write the job file."""
        (self.folder / self.life.job_name).write_text(
            json.dumps(self.life.job(self.server.url, self.word, self.where), indent=1, ensure_ascii=False)
        )

    def table(self) -> model.Table:
        """Read the input with the naive readers."""
        names = [name for name, _ in self.life.files([])]
        declared = self.life.job("", "", 0)["input"].get("csv", {}).get("columns", {})
        return model.read([self.folder / name for name in names], declared)

    def output_path(self, flags: list[str]) -> Path:
        """Return where a finished run writes."""
        if "--output" in flags:
            return self.folder / flags[flags.index("--output") + 1]
        return self.folder / f"out{self.variant}.{self.life.combination['output']}"

    def is_unsure(self) -> bool:
        """Check whether a question is back that a batch answered, or did not, while it was not in the plan."""
        asked = {one[0] for one in model.plan(self.job(), self.table()) if not isinstance(one, End)}
        return bool(asked & self.elsewhere)

    # -- steps

    def step(self, step: Step) -> None:
        """Do one step and check it."""
        if step.what in {"look", "correct"}:
            self._look(step)
        elif step.what == "export":
            self._export(["export", self.life.job_name, "-o", "snapshot.jsonl"])
        elif step.what == "trial":
            self._try(step)
        elif step.what in RUNS:
            self._run_and_follow(step)
        else:
            self._edit(step)
            self.write()

    def _run_and_follow(self, step: Step) -> None:
        """Run the job, and then the command that it offers."""
        flags, self.flags = self.flags, []
        self.days += step.days
        if step.what == "wait" and self.life.batching is not None:
            flags += ["--engine", "batch", "--wait", "0"]
        if step.what in {"limit", "sample"} and "--limit" not in flags:
            flags += [f"--{step.what}", str(step.number + 1)]
        if len(self.rows) > CONFIRMED and step.what != "retry":
            flags.append("--yes")  # after an edit of the prompt
        words = (["retry"] if step.what == "retry" else []) + [self.life.job_name, *flags]
        ended = self.run(words, step)
        if step.number % 2 and any(flag in words for flag in BOUNDS):  # before the next run asks what is open
            self._look(Step("look", number=step.number))
        if step.what in {"run", "limit", "sample", "retry"} and step.weather.kind in {"calm", "half", "dead"}:
            self._follow(ended, words)

    def _try(self, step: Step) -> None:
        """Run a trial with another first word of the prompt, or the same; the job's own files stay as they are."""
        if self.life.batching is not None or self.life.day_cap or not self.is_known:
            return
        if self.other is None:
            self.other = Living(
                self.life, self.folder, self.server, self.zygote, self.rows, 0, variant=".v", other=self
            )
        trial = self.other
        trial.where, trial.word, trial.is_planned = self.where, "ABC"[step.number % 3], False
        trial.days, trial.memory.people = self.days, self.memory.people
        own = [self.output_path([]), self.folder / ".batchrun" / f"{Path(self.life.job_name).stem}.sqlite"]
        before = [path.read_bytes() if path.exists() else None for path in own]
        words = [self.life.job_name, "--variant", "v", "--set", f"prompt.user={self.life.prompt(trial.word)}"]
        trial.run([*words, *(["--yes"] if len(self.rows) > CONFIRMED else [])], Step("run"))
        assert before == [path.read_bytes() if path.exists() else None for path in own], (
            "a trial changed its job's files"
        )

    def _open(self, words: list[str], job: model.Job, table: model.Table, planned: list[Question | End]) -> bool:
        """Note what a plan changes in how questions stand; return False for a `retry` that finds nothing."""
        if not self.is_planned:  # a new plan takes what a trial has
            self._adopt(planned)
        self.memory.leave_out(job, table, planned)
        if words[0] == "retry":
            only = words[words.index("--only") + 1].split(",") if "--only" in words else None
            if not self._reopen(planned, only):
                return False
        if self.is_planned and any(not isinstance(one, End) and self.memory.is_open(one) for one in planned):
            self._adopt(planned)
        return True

    def _adopt(self, planned: list[Question | End]) -> None:
        if self.other is not None:
            self.memory.adopt(self.other.memory, planned)

    def _edit(self, step: Step) -> None:
        rows, number = self.rows, step.number
        if step.what in {"append", "edit"}:
            self.fresh_rows += 1
            new = self.life.cells(step.row, self.fresh_rows)
            if step.what == "append" or not rows:
                rows.append(new)
            else:
                rows[number % len(rows)] = {**new, "id": rows[number % len(rows)]["id"]}
        elif step.what == "shuffle":
            random.Random(number).shuffle(rows)  # noqa: S311  (a seed, not a secret)
        elif step.what == "delete" and len(rows) > self._fewest():
            del rows[number % len(rows)]
        elif step.what == "repeat" and rows:
            rows.append(rows[number % len(rows)])
        elif step.what == "prompt":
            self.word = "AB"[number % 2]
        elif step.what == "where":
            self.where = number % len(CONDITIONS)

    def _fewest(self) -> int:
        return 4 if self.life.format in JSON else 0

    def _look(self, step: Step) -> None:
        """Hold what the commands say that send nothing to the model; take a person's corrections."""
        if not self.is_known:
            return
        job, table = self.job(), self.table()
        now = Looked(job, table, model.plan(job, table), self.memory, self.server.desk.out() + self.fetched)
        self.memory.leave_out(job, table, now.planned)
        ledger = self.server.begin(Weather(), job.columns, self.life.seed)

        def run(*words: str) -> Ended:
            return self.zygote.run(list(words), self.folder, self.life.sizes, self.days)

        if step.what == "look":
            check_preview(run, self.life.job_name, now)
            check_another(run, self.life.job_name, step.number)
        if self.is_planned and step.what == "look":
            check_status(run, self.life.job_name, now)
            check_evaluation(run, self.life.job_name, now, self.folder, [row["id"] for row in table.rows])
        elif self.is_planned:
            review(run, self.life.job_name, now, self.folder, step.number)
            self.is_planned = False
        self.server.settle()
        assert not ledger.received, f"a command that only looks asked {ledger.received[0]!r:.100}"

    def _follow(self, ended: Ended, words: list[str]) -> None:
        """Paste and run the command that the last line offers."""
        lines = ended.err.strip().splitlines()
        offered = re.findall(r"`batchrun ([^`]*)`", lines[-1]) if lines else []
        if not offered:
            return
        pasted = shlex.split(offered[-1])
        for flag in STICKY:
            if flag in words:
                at = words.index(flag)
                assert words[at : at + 2] == pasted[(pasted.index(flag) if flag in pasted else -9) :][:2], (
                    f"the last line drops {flag}: {lines[-1]}"
                )
        assert self.life.job_name in pasted, f"the last line names no job file: {lines[-1]}"
        self.run(pasted, Step("retry" if pasted[0] == "retry" else "run"))

    def refused(self) -> None:
        """Check that a mistake is found before anything is asked."""
        if not self.life.combination["dedupe"] and self.life.mistake == "no column":
            return  # asking for many answers to one question is allowed
        ledger = self.server.begin(Weather(), None, 0)
        ended = self.zygote.run([self.life.job_name], self.folder, self.life.sizes)
        assert ended.code == 2, f"a mistake ({self.life.mistake}) ended with exit {ended.code}: {ended.err}"
        assert not ledger.received, f"a mistake ({self.life.mistake}) let {len(ledger.received)} questions be asked"
        where = {"no column": self.life.job_name, "unfit cell": "part"} | {
            mistake: column for mistake, (column, *_) in WRONG_COLUMNS.items()
        }
        assert where[self.life.mistake] in ended.err, (
            f"a mistake ({self.life.mistake}) is told without its place: {ended.err}"
        )

    # -- one run

    def run(self, words: list[str], step: Step) -> Ended:
        """Run the command line and check all that it did."""
        job, table = self.job(), self.table()
        known, planned = dict(self.memory.ends), model.plan(job, table)
        limit = next((int(words[words.index(flag) + 1]) for flag in BOUNDS if flag in words), None)
        if not self._open(words, job, table, planned):
            return self._nothing_to_retry(words, step, known)
        out = self.server.desk.out() + self.fetched
        loose = "--sample" in words or (limit is not None and self._asks_in_any_order(job, out))
        wanted = model.wanted(self.memory, planned, None if loose else limit)
        self.server.desk.day = self.days
        ledger = self.server.begin(step.weather, job.columns, self.life.seed)
        before = path.read_bytes() if (path := self.output_path(words)).exists() else None
        started = self.zygote.start(words, self.folder, self.life.sizes, self.days)
        happened = self._watch(step, started)
        ended = started.wait()
        self.server.settle()
        self.is_known = self.is_planned = True
        what = self._happened(step, ledger) if happened.is_set() else "run"
        capped = bool(self.life.day_cap) or ("--max-cost" in words and self.life.cap != "5")
        allowed = {-9, 0, 1, 3} | MORE_CODES.get(what, set()) | MORE_CODES.get(step.what, set())
        self._check_ended(ended, allowed | ({4} if capped else set()))
        self._check_money(words, ended, ledger)
        assert ledger.systems <= {"You answer."} or job.columns is not None, ledger.systems
        refused = step.what == "wait" and self.server.desk.refused and not ledger.received
        stopped = what in {"kill", "stop", "edited"} or ended.code in {4, 6} or loose or refused
        run = Run(
            job,
            wanted,
            dict(self.memory.ends),
            step.weather,
            ledger.counts(),
            out,
            batching=self.life.batching is not None,
            stopped=stopped,
            loose_limit=loose,
        )
        run.check_requests(ledger.counts())
        if what == "kill" and not ledger.received:
            self.killed, self.memory.ends = True, known  # nobody knows how far it came
        elif what == "kill":
            self._after_kill(planned, ledger, run)
        elif what == "edited":
            if self.life.unlike(step):
                del self.rows[-1]
                self.write()
            # The answers of batches do not show that the server works for what is asked live after them.
            unproven = not run.has_answers or (run.batching and not ledger.answered)
            assert ended.code == 2 or (ended.code == 3 and unproven) or (ended.code == 4 and capped), (
                f"exit {ended.code}: {ended.err}"
            )
            assert "changed" in ended.err or capped, ended.err
            assert ended.code != 2 or "stopped: the input changed" in ended.err, ended.err
            self._observe(planned, run)
            assert (path.read_bytes() if path.exists() else None) == before, "an output of a changed input was written"
        else:
            self._observe(planned, run)
            now = Looked(job, table, planned, self.memory)
            run.check_exit(ended.code, now.standing, self.memory, limit, self.server.desk.out())
            self._check_output(ended, path, before, now)
        self._remember_fetched(ledger, planned, killed=what == "kill")
        if what != "kill" and ledger.has_answers:
            self.memory.tried.update(one for one in wanted if ledger.counts()[one[0]])
        self._check_books(ledger, exact=what != "kill")
        return ended

    def _asks_in_any_order(self, job: model.Job, out: Counter[str]) -> bool:
        """Check whether a limited run may ask others than the first open questions.

        What is out is collected beside them, and what batches left unanswered is asked live once no new question is
        left. Where each row is a question of its own, nobody knows which of equal ones was tried before.
        """
        after_batches = self.life.batching is not None and bool(self.memory.ends)
        return bool(out) or after_batches or (bool(self.memory.tried) and not job.dedupe)

    def _remember_fetched(self, ledger: Ledger, planned: list[Question | End], *, killed: bool) -> None:
        """Note what batches brought: nobody knows whether a killed run has committed what it fetched."""
        fetched = Counter(question for question, *_ in ledger.fetched)
        self.fetched = self.fetched + fetched if killed else Counter()
        self.elsewhere |= fetched.keys() - {one[0] for one in planned if not isinstance(one, End)}

    def _check_ended(self, ended: Ended, codes: set[int]) -> None:
        """Check that a run ended in one of these ways, and broke no rule of batches."""
        assert "Traceback" not in ended.err, ended.err
        assert ended.code in codes, f"exit {ended.code}: {ended.err}"
        assert not self.server.desk.problems, self.server.desk.problems[0]

    def _check_money(self, words: list[str], ended: Ended, ledger: Ledger) -> None:
        """Check that what the server bills for this run, and for its day, is within the caps; and what is told."""
        if ledger.has_answers and ended.code in {0, 1} and "--json" not in words:
            assert ("$" in ended.err) == self.life.knows_costs, f"a cost that nobody knows is told: {ended.err}"
        paid = sum(pico for _, pico in [*ledger.answered, *ledger.lost]) + ledger.submitted
        self.paid[self.days] += paid
        for cap, sum_ in (("--max-cost" in words and self.life.cap, paid), (self.life.day_cap, self.paid[self.days])):
            assert not cap or sum_ <= float(cap) * 1e12, f"the cap is {cap} USD, the server billed {sum_}"

    def _watch(self, step: Step, started: Started) -> threading.Event:
        """Let something happen at the step's event, in the server's thread, which holds its replies meanwhile."""
        happened, seen = threading.Event(), Counter[str]()

        def on_event(what: str) -> None:
            seen[what] += 1
            if what != step.event or seen[what] != step.at + 1:
                return
            happened.set()
            if step.what in {"kill", "stop"}:
                started.kill(signal.SIGKILL if step.what == "kill" else signal.SIGINT)
            elif step.what == "edited":
                self.rows.append(self.life.cells((0, 1, 0), 999) | self.life.unlike(step))
                self.write()
            elif step.what == "rewritten":
                self.word = "AB"[self.word == "A"]
                self.write_job()
            elif step.what == "exported":
                self._problem(lambda: self._export(["export", self.life.job_name, "-o", "snapshot.jsonl"], during=True))
            elif step.what == "second":
                self._problem(self._second)

        self._problems: list[BaseException] = []
        if step.what in {"kill", "stop", "edited", "exported", "second", "rewritten"}:
            self.server.on_event = on_event
        return happened

    def _happened(self, step: Step, ledger: Ledger) -> str:
        """Raise the problem of what happened during a run, if there is one; note what is still known."""
        if self._problems:
            raise self._problems[0]
        if step.what == "kill":
            self.is_known = bool(ledger.received)
            self.is_planned = self.is_known and not self.memory.people  # nobody counted them at its end
        if step.what in {"edited", "rewritten"}:
            self.is_planned = False
        return step.what

    def _problem(self, check: Callable[[], None]) -> None:
        try:
            check()
        except BaseException as problem:  # noqa: BLE001  (raised again in the test's thread)
            self._problems.append(problem)

    def _second(self) -> None:
        ended = self.zygote.run([self.life.job_name], self.folder, self.life.sizes, self.days)
        assert ended.code == 75, f"a second start ended with {ended.code}: {ended.err}"

    def _reopen(self, planned: list[Question | End], only: list[str] | None) -> bool:
        """Open what failed, of these types; return whether anything did."""
        ends = self.memory.ends
        failed = {one for one in planned if not isinstance(one, End) and ends.get(one, PENDING).status == "failed"}
        failed = {one for one in failed - self.memory.left_out if only is None or ends[one].error in only}
        self.memory.ends |= dict.fromkeys(failed, PENDING)
        return bool(failed)

    def _nothing_to_retry(self, words: list[str], step: Step, known: dict[Question, End]) -> Ended:
        """Check that `retry` asks nothing where nothing failed."""
        ledger = self.server.begin(step.weather, self.job().columns, self.life.seed)
        ended = self.zygote.run(words, self.folder, self.life.sizes, self.days)
        assert ended.code == 2, f"nothing failed, but `retry` ended with {ended.code}: {ended.err}"
        if "only run with --variant v" in ended.err:
            self.memory.ends = known  # it is refused before it takes what the trial has
        else:
            assert "nothing to retry" in ended.err, ended.err
        assert not ledger.received, f"`retry` asked {ledger.received[0]!r:.100} though nothing failed"
        return ended

    # -- checks

    def _results(self) -> list[tuple[str, str | None, int | None]]:
        """Return each row's status, error type and code from the checkpoint's public view."""
        with contextlib.closing(self._checkpoint()) as db:
            return db.execute("SELECT status, error_type, error_code FROM results ORDER BY position").fetchall()

    def _checkpoint(self) -> sqlite3.Connection:
        path = self.folder / ".batchrun" / f"{Path(self.life.job_name).stem}{self.variant}.sqlite"
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    def _observe(self, planned: list[Question | End], run: Run) -> None:
        """Hold each row's standing to what is allowed, and remember it."""
        results = self._results()
        assert len(results) == len(planned), f"{len(results)} rows in the checkpoint, {len(planned)} in the input"
        asked, found = set(run.wanted), dict[Question, End]()
        for number, (one, (status, error, code)) in enumerate(zip(planned, results, strict=True)):
            end = PENDING if status == "pending" else End(status, error, code)
            if isinstance(one, End):
                assert end == one, f"row {number} is {end}, expected {one}"
                continue
            assert found.setdefault(one, end) == end, f"row {number} is {end}, an equal row {found[one]}"
            allowed = run.may_end(one) if one in asked else [self.memory.ends.get(one, PENDING)]
            assert end in allowed, f"row {number} is {end}, expected {allowed[0]}: {one[0]!r:.100}"
        self.memory.ends.update(found)

    def _check_output(self, ended: Ended, path: Path, before: bytes | None, now: Looked) -> None:
        """Hold output and summary to the model: the finished one, or the partial one beside an untouched one."""
        if ended.out:
            check_summary(ended, now, self.server.ledger)
        expected = model.output(now.job, now.table, now.planned, self.memory)
        is_old = (path.read_bytes() if path.exists() else None) == before
        if ended.code == STOPPED and is_old:
            return  # Ctrl-C may come before the partial output is written
        if PENDING in now.standing or ended.code in {3, 4}:
            assert is_old, "an unfinished run replaced the output"
            path = path.with_name(f"{path.stem}.partial{path.suffix}")
            if not path.exists():
                return
        assert path.exists(), f"no output {path.name}: {ended.err}"
        check_output(path, expected)

    def _export(self, words: list[str], *, during: bool = False) -> None:
        """Export now, and hold what is there to the model; during a run some rows may be further than the model."""
        path = self.folder / "snapshot.jsonl"
        path.unlink(missing_ok=True)
        ended = self.zygote.run(words, self.folder, self.life.sizes, self.days)
        assert "Traceback" not in ended.err, ended.err
        assert ended.code in {0, 2}, f"export ended with {ended.code}: {ended.err}"
        if ended.code or during:
            return
        job, table = self.job(), self.table()
        check_output(path, model.output(job, table, model.plan(job, table), self.memory))

    def _after_kill(self, planned: list[Question | End], ledger: Ledger, run: Run) -> None:
        """Check that what was committed is an answer that the server gave, and remember what is still open."""
        self.killed = True
        results = self._results()
        assert len(results) == len(planned)
        # A batch's results that a run before this one fetched, and was killed before it kept them, are fetched again.
        answered = Counter(question for question, *_ in [*ledger.answered, *ledger.fetched]) + self.fetched
        asked = set(run.wanted)
        for number, (one, (status, error, code)) in enumerate(zip(planned, results, strict=True)):
            if isinstance(one, End):
                continue
            end = PENDING if status == "pending" else End(status, error, code)
            if one not in asked:
                assert end == self.memory.ends.get(one, PENDING), f"row {number} lost its answer in a kill"
            elif end == OK:
                assert answered[one[0]], f"row {number} has an answer that the server did not give"
            self.memory.ends[one] = end

    def _check_books(self, ledger: Ledger, *, exact: bool) -> None:
        """Rows, spending and the server's bill agree; what was lost on the way is possibly billed, or was killed."""
        for question, pico in ledger.answered:
            self.bills[question] += pico
            self.billed[self.days] += pico
        for question, pico, day in ledger.fetched:
            self.bills[question] += pico
            self.billed[day] += pico
        self.lost += len(ledger.lost)
        try:
            with contextlib.closing(self._checkpoint()) as db:
                rows, possibly = db.execute(
                    "SELECT coalesce(sum(cost), 0), coalesce(sum(possibly_billed), 0) FROM answers"
                ).fetchone()
                spent = dict(db.execute("SELECT day, sum(cost) FROM spending GROUP BY day HAVING sum(cost) > 0"))
        except sqlite3.OperationalError:
            assert not exact, "there is no checkpoint"
            return
        total = sum(spent.values())
        assert rows == total, f"the rows cost {rows}, spending says {total}"
        assert total <= self.billed.total(), f"spending says {total}, the server billed {self.billed.total()}"
        if exact and not self.killed:
            days = {str(self.began + dt.timedelta(days=day)): pico for day, pico in self.billed.items() if pico}
            assert spent == days or _today() > self.began, f"spending says {spent}, the server billed {days}"
            assert possibly >= self.lost, f"{possibly} requests are possibly billed, {self.lost} replies were lost"


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="life-", dir=fast_folder()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def live(life: Life, server: Server, zygote: Zygote) -> None:
    """Live a life; raises AssertionError where the product is not as the model says."""
    with _folder() as folder:
        rows = life.first_rows()
        flag = life.combination["flag"]
        values = {
            "--limit": "2",
            "--concurrency": "3",
            "--output": f"other.{life.combination['output']}",
            "--max-cost": life.cap,
        }
        flags = [flag, *([values[flag]] if flag in values else [])] if flag else []
        server.billed_openly, server.costs = life.billed_openly, life.knows_costs
        server.new_desk(life.batching or Batching(1, 1, ""), dedupe=life.combination["dedupe"])
        living = Living(life, folder, server, zygote, rows, life.combination["where"], flags=flags)
        living.write()
        if life.mistaken:
            living.refused()
            return
        for number, step in enumerate(life.steps, 1):
            if living.elsewhere and living.is_unsure():
                return
            try:
                living.step(step)
            except (AssertionError, LookupError, ValueError) as problem:
                # Half a character in a row must not keep the words from the report.
                words = f"step {number} ({step}): {problem}".encode("utf-8", "backslashreplace").decode()
                raise AssertionError(words) from problem
