"""Patterns in the answers that are worth a look: they may be right, and often are a mistake of the prompt."""

import re
from collections import Counter
from collections.abc import Iterator

import orjson

from batchrun.checkpoint import Checkpoint
from batchrun.report.answered import text_of

LOOKED_AT = 10_000
"""Questions, the first ones of the input, so that the look takes no time on a large job."""

FEWEST, ONE_LABEL = 20, 0.6
"""Answers that make a share worth saying, and the share of one label from which it is."""

_REFUSAL = re.compile(r"\W*(?:I.?m sorry|I am sorry|Sorry,|I can(?:.t|not) |I.?m unable|As an AI)", re.IGNORECASE)
_REFUSED = frozenset({"content_policy", "refused"})


def worth_a_look(checkpoint: Checkpoint, *, texts: bool = True) -> list[str]:
    """Return sentences on oddities in the answers. Without `texts` none of them holds a part of an answer."""
    found = checkpoint.first_settled(LOOKED_AT)
    answers = [one.answer for one in found if one.answer is not None]
    refused = sum(one.error_type in _REFUSED for one in found)
    refused += sum(bool(_REFUSAL.match(_text(one))) for one in answers)
    cut_off = sum(one.answer is not None and one.finish_reason == "length" for one in found)
    retried = sum(one.attempts > 1 for one in found)
    models = Counter(one.model for one in found if one.model and one.answer is not None)
    sentences = list(_labels(answers)) if texts else []
    if refused:
        sentences.append(f"{refused:,} of {len(found):,} questions were refused or answered by a refusal")
    if cut_off:
        sentences.append(f"{cut_off:,} of {len(answers):,} answers ended at the length limit (finish_reason length)")
    if len(models) > 1:
        named = ", ".join(f"{model} ({count:,})" for model, count in models.most_common(5))
        sentences.append(f"{len(models)} models or builds answered: {named}")
    if retried:
        sentences.append(f"{retried:,} of {len(found):,} questions took more than one attempt")
    return sentences


def _text(answer: str) -> str:
    """Return an answer, or the first text in it, where a refusal would begin."""
    # Text answers are kept as they are, structured ones as an object.
    if not answer.startswith("{"):
        return answer
    return answer.partition('":"')[2]


def _labels(answers: list[str]) -> Iterator[str]:
    """Yield the columns in which one label is most of the answers."""
    columns: dict[str, Counter[str]] = {}
    for answer in answers:
        try:
            values = orjson.loads(answer)
        except ValueError:
            values = answer
        if not isinstance(values, dict):
            values = {"answer": answer}
        for name, value in values.items():
            if isinstance(value, str | bool):
                columns.setdefault(name, Counter())[text_of(value)] += 1
    for name, counts in columns.items():
        label, count = counts.most_common(1)[0]
        if counts.total() >= FEWEST and count > ONE_LABEL * counts.total():
            yield f'"{name}" is "{label[:60]}" in {count / counts.total():.0%} of {counts.total():,} answers'
