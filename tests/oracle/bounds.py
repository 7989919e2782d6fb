"""What a run may do where server or cap decide: each looser outcome with the promise that allows it.

Under a server that is well the model is exact. The promises about outages leave open who is probed, how often, and
where a run that gives up stops.
"""

from collections import Counter
from dataclasses import dataclass

from oracle import model
from oracle.model import OK, PENDING, End, Question
from oracle.server import Weather, kind_of

FEW = 10
"""Fewer open questions that fail by the server's fault prove no outage: they fail, and the next run asks them again."""

SERVERS_FAULTS = tuple(
    End("failed", error, code)
    for error, code in (
        ("server_error", 500), ("server_error", 502), ("overloaded", 503), ("reset", None), ("invalid_response", None),
    )
)  # fmt: skip
BATCH_TRIES = 2
"""Batches that a question goes into before it is asked live."""

STOPPED = 130
"""The exit code after Ctrl-C."""

PROBES = 60
"""So often may one question be a probe: 900 seconds of patience, a second apart at first, then up to 30."""

LOST_LIKE_OTHERS = 12
"""A row whose replies are always lost is asked so much more often where the server loses those of good rows, too."""


@dataclass(frozen=True)
class Run:
    """What one run asks, how that stood before, the weather, and how often the server received each question.

    `out` are the questions that were in batches before it, `batching`: it submits some itself. `stopped`: by a kill,
    the cap or an edit, or it does not wait. `loose_limit`: it has a limit that leaves open which questions it asks.
    """

    job: model.Job
    wanted: list[Question]
    before: dict[Question, End]
    weather: Weather
    received: Counter[str]
    out: Counter[str]
    batching: bool
    stopped: bool = False
    loose_limit: bool = False

    @property
    def has_answers(self) -> bool:
        """Whether the server answers one of the questions for certain."""
        good = any(model.ends(question[0], self.job)[0] == OK for question in self.wanted)
        fails_first = self.weather.kind in {"half", "lossy"} and self.job.attempts == 1
        return good and not fails_first and self.weather.kind not in {"outage", "dead"}

    @property
    def proven(self) -> bool:
        """Whether the run has an answer for certain: it shows that the server works.

        The answers of batches do not show it for the rows that are asked live after them.
        """
        return self.has_answers and not self.stopped and not self.batching

    def may_end(self, question: Question) -> list[End]:
        """Return how a question that is asked may stand after the run; the likeliest first."""
        end, _, most = model.ends(question[0], self.job)
        kind, weather, found = kind_of(question[0]), self.weather.kind, [end]
        if self.stopped or weather in {"outage", "dead"} or (not self.proven and end != OK):
            found += [PENDING, self.before.get(question, PENDING)]  # not asked, or nobody knows whose fault it was
        if not self.proven and end.error == "bad_request":
            found.append(End("failed", "unexplained", 400))
        if kind == "lost":
            found.append(End("failed", "reset"))
        # What a cap does not admit is never asked, so that it proves nothing about the server either. After batches the
        # few questions are asked live that one answer did not settle.
        asked = sum(bool(self.received[text]) for text, _ in set(self.wanted))
        few = asked < FEW or (self.batching and most > 1)
        if weather in {"outage", "dead", "half"} and ((kind and end != OK) or few):
            found += SERVERS_FAULTS
        # A second lost reply may be one too many; equal questions share the server's odd replies.
        if weather == "lossy" and (most > 1 or kind or not self.job.dedupe or self.job.attempts == 1):
            found += [End("failed", "reset"), End("failed", "invalid_response")]
        if weather == "half" and (
            self.job.attempts == 1 or (self.job.attempts < 5 and (most > 1 or not self.job.dedupe))
        ):
            found.append(End("failed", "server_error", 500))
        return found

    def check_requests(self, counts: Counter[str]) -> None:
        """Check that nothing but open questions was asked, each as often as its ending allows."""
        fewest, most = Counter[str](), Counter[str]()
        weather = self.weather.kind
        for one in self.wanted:
            question = one[0]
            _, least, top = model.ends(question, self.job)
            if len(counts) < FEW and self.before.get(one, PENDING).status == "failed":
                least = min(least, 1)  # it failed before, and may fail with the few that hold up this run
            fewest[question] += 0 if weather == "stale" else least  # some attempts never reach the server
            most[question] += top if weather == "calm" else 2 * top + self.job.attempts + 2
            most[question] += 0 if self.proven else PROBES
            most[question] += BATCH_TRIES if self.batching else 0
            if weather == "lossy" and kind_of(question) == "lost":
                most[question] += LOST_LIKE_OTHERS
        for question, count in counts.items():
            assert question in most, f"asked though not open: {question!r:.100}"
            assert count <= most[question], f"asked {count} times, at most {most[question]}: {question!r:.100}"
        if self.proven:
            for question, least in (fewest - self.out).items():
                assert counts[question] >= least, f"asked {counts[question]} times, not {least}: {question!r:.100}"

    def check_exit(
        self, code: int, ends: list[End], memory: model.Memory, limit: int | None, out: Counter[str]
    ) -> None:
        """Check the exit code against the ends of the rows; `out` are the questions that are in batches now."""
        if code == STOPPED:
            return
        standing = Counter(end.status for end in ends)
        pending = any(memory.ends.get(question, PENDING) == PENDING for question in self.wanted)
        unasked = any(memory.ends.get(question) == self.before.get(question, PENDING) for question in self.wanted)
        if code == 6 or (out and code != 4):
            right = {6} if out else set[int]()
        elif code == 4:
            right = {4} if standing["pending"] or unasked else set[int]()  # or a failed row could not be asked again
        elif pending and limit is not None and self.loose_limit:  # what is collected comes on top of the limit
            assert len(self.received.keys() - self.out.keys()) <= limit, f"more than {limit} questions are asked"
            right = {3, 1 if standing["failed"] else 0}
        elif pending:
            right = {3}
        elif code == 3:
            right = {3} if unasked and not self.proven else {1}
        elif standing["pending"] and limit is None:
            right = {3}
        else:
            right = {1 if standing["failed"] else 0}
        assert code in right, f"exit {code}, expected {right}, rows {dict(standing)}"
