"""Commands that only look: what they count must be what the model counts."""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oracle.model import OK, PENDING, SKIPPED, UNRENDERED, End, Job, Memory, Question, Table, answer_to, output, text
from oracle.server import Ledger
from oracle.zygote import Ended

Planned = Sequence[Question | End]
Command = Callable[..., Ended]

GOLD = "gold.csv"
NOBODY = "nobody"
"""An id in the file of gold that no row has."""


@dataclass(frozen=True)
class Looked:
    """What the model knows at the time of a look: the plan of the job as it is now, and how its questions stand."""

    job: Job
    table: Table
    planned: Planned
    memory: Memory
    out: Counter[str] = field(default_factory=Counter)
    """The questions that are in batches."""

    def end(self, one: Question | End) -> End:
        """Return how the model left a row."""
        return one if isinstance(one, End) else self.memory.ends.get(one, PENDING)

    @property
    def standing(self) -> list[End]:
        """How each row stands; a failed one that a person answered is answered."""
        pairs = zip(self.table.rows, self.planned, strict=True)
        return [self.memory.standing(self.job, row, one) for row, one in pairs]


def check_preview(run: Command, name: str, now: Looked) -> None:
    """Hold the counts of `preview` to what the next run asks."""
    found = _json(run("preview", name, "-n", "0", "--json"))
    _same("preview", found, rows=len(now.planned), skipped=list(now.planned).count(SKIPPED))
    is_open: list[Question] = []
    counts = Counter[str]()
    for one, end in zip(now.planned, now.standing, strict=True):
        if not isinstance(one, End) and one[0] in now.out and now.memory.is_open(one):
            counts["in_batch"] += 1
        elif not isinstance(one, End) and now.memory.is_open(one) and end != OK:
            is_open.append(one)
        else:
            counts["unasked" if end == UNRENDERED else end.status] += 1
    if found["exact"]:
        _same("preview", found, answered=counts["ok"], failed=counts["failed"])
        left = found["open"] + found["in_batch"], len(is_open) + counts["in_batch"]
        assert left[0] == left[1], f"preview: {left[0]} rows are open or out, expected {left[1]}"
        if now.job.dedupe:  # else nobody can say which of equal rows is out
            _same("preview", found, questions=len(set(is_open)), in_batch=counts["in_batch"])
        unasked = sum(one["rows"] for one in found["unasked"])
        assert unasked == counts["unasked"], f"preview: {unasked} rows can't be asked, expected {counts['unasked']}"


def check_status(run: Command, name: str, now: Looked) -> None:
    """Hold the counts of `status` to the rows of the last run."""
    found = _json(run("status", name, "--json", "--verify"))
    ends = now.standing
    standing = Counter(end.status for end in ends)
    by_person = sum(now.end(one) != end for one, end in zip(now.planned, ends, strict=True))
    _same("status", found, rows=len(ends), **{word: standing[word] for word in ("ok", "failed", "pending", "skipped")})
    _same("status", found, questions=len({one for one in now.planned if not isinstance(one, End)}))
    _same("status", found, errors=dict(Counter(end.error for end in ends if end.error and end.status == "failed")))
    _same("status", found, by_person=by_person, running=None, input_changed=False, wrong=[])


OTHERS = (
    ("check", "NAME"), ("show", "NAME"), ("show", "NAME", "--failed"), ("show", "NAME", "--row", "1"),
    ("report", "NAME", "-o", "page.html"), ("compare", "NAME", "--before"), ("preview", "NAME", "--sample", "2"),
    ("export", "NAME", "-o", "snapshot.csv"),
)  # fmt: skip
"""Commands that must end well, or with a reason, in any state of a job."""


def check_another(run: Command, name: str, number: int) -> None:
    """Let one of OTHERS look: it shows what it can, or says in a line why not."""
    words = [name if word == "NAME" else word for word in OTHERS[number % len(OTHERS)]]
    ended = run(*words)
    assert ended.code in {0, 2}, f"{' '.join(words)} ended with {ended.code}: {ended.err}"
    assert ended.code == 0 or ended.err.strip(), f"{' '.join(words)} ended with 2 and no reason"


def check_summary(ended: Ended, now: Looked, ledger: Ledger) -> None:
    """Hold what `--json` prints to the rows as they stand, and to what the server billed in this run."""
    found, ends = json.loads(ended.out), now.standing
    standing = Counter(end.status for end in ends)
    _same("--json", found, exit_code=ended.code, rows=len(ends))
    _same("--json", found, **{word: standing[word] for word in ("ok", "failed", "pending", "skipped")})
    failed: dict[str, list[int]] = defaultdict(list)
    for row, end in enumerate(ends, 1):
        if end.status == "failed":
            failed[end.error or ""].append(row)
    _same("--json", found, errors={name: len(rows) for name, rows in failed.items()})
    _same("--json", found, failed_rows={name: rows[:4] for name, rows in failed.items()})
    billed = sum(pico for _, pico in ledger.answered) + sum(pico for _, pico, _ in ledger.fetched)
    assert round(float(found["cost_usd"]) * 1e12) == billed, f"--json: {found['cost_usd']} USD, billed {billed}"
    assert found["possibly_billed"] >= len(ledger.lost), f"--json: {len(ledger.lost)} replies were lost"
    expected = output(now.job, now.table, now.planned, now.memory)
    for name, values in found["answers"].items():
        cells = [row[now.job.prefix + name] for row in expected.rows]
        counts = Counter(text(cell) for cell in cells if cell is not None)
        assert values == dict(counts), f"--json: {name} is {values}, expected {dict(counts)}"


def check_evaluation(run: Command, name: str, now: Looked, folder: Path, ids: Sequence[str]) -> None:
    """Hold the counts of `eval` to a count by hand, against gold of another file of which a part is wrong."""
    column = "answer" if now.job.columns is None else next(iter(now.job.columns))
    golds = {number: gold for one, number in zip(now.planned, ids, strict=True) if (gold := _gold(now, one, number))}
    with (folder / GOLD).open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([("id", "right"), *golds.items(), (NOBODY, "x")])
    ended = run("eval", name, "--gold", f"{column}=right", "--gold-file", GOLD, "--on", "id", "--json")
    expected = _evaluation(now, [golds.get(number) for number in ids])
    if expected.pop("n"):
        found = _json(ended)
        _same("eval", found, unmatched=1, **{one: expected[one] for one in expected if one != "right"})
        _same("eval", found["accuracy"], right=expected["right"])
    else:
        assert ended.code == 2, f"eval of nothing ended with {ended.code}: {ended.err}"


def _gold(now: Looked, one: Question | End, number: str) -> str | None:
    """Return the gold of the row with this id: of four rows one has none, and one a wrong one."""
    kind = int(number) % 4
    if kind == 0:
        return None
    if isinstance(one, End):
        return "x"
    return _answer(now.job, one) if kind > 1 else "wrong"


def _answer(job: Job, question: Question) -> str:
    """Return the good answer in the first column."""
    return str(next(iter(answer_to(question, job).values())))


def _evaluation(now: Looked, golds: Sequence[str | None]) -> dict[str, int]:
    """Count by hand: equal rows are one question, with the gold that most of them have."""
    counts = Counter[str]()
    is_partial = any(now.end(one) == PENDING for one in now.planned)
    of_question = defaultdict[Question, Counter[str]](Counter)
    for one, gold in zip(now.planned, golds, strict=True):
        if gold is None or one == SKIPPED:
            continue
        if not isinstance(one, End):
            of_question[one][gold] += 1
        elif is_partial:
            counts["unrendered"] += 1
        else:
            counts.update(("n", "failed"))
    for question, found in of_question.items():
        end = now.end(question)
        if end == PENDING:
            counts["pending"] += 1
            continue
        counts["contradictory"] += len(found) > 1
        (gold, number), *others = found.most_common()
        if others and others[0][1] == number:
            counts["ties"] += 1
            continue
        counts["n"] += 1
        counts["failed"] += end != OK
        counts["right"] += end == OK and gold == _answer(now.job, question)
    words = ("n", "right", "failed", "pending", "contradictory", "ties", "unrendered")
    return {word: counts[word] for word in words}


def _json(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, f"a look ended with exit {ended.code}: {ended.err}"
    found = json.loads(ended.out)
    assert isinstance(found, dict)
    return found


def _same(what: str, found: dict[str, Any], **expected: Any) -> None:  # noqa: ANN401  (any JSON)
    """Compare some fields; raises AssertionError with the first difference."""
    for name, value in expected.items():
        assert found[name] == value, f"{what}: {name} is {found[name]!r:.200}, expected {value!r:.200}"
