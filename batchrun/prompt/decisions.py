"""Decision models: the job's columns -> typed questions; the answers to them -> one typed object with probabilities."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from batchrun.prompt.schema import Schema, SchemaMistake
from batchrun.records import Decision, Mismatch, kind_of

MAX_OPTIONS, MAX_LEVELS = 255, 10
_DIGITS = 6  # of a probability; servers send two to four
_NUMBERS = (float, int)  # not bool

Options = Sequence[tuple[str, str | None]]
"""Labels with their meanings, in order."""


def questions_of(columns: Mapping[str, Any], schema: Schema) -> tuple[tuple[Decision, ...], list[SchemaMistake]]:
    """Return one question for each column of `answer.columns`, which `schema` is made of, and the mistakes."""
    questions, mistakes = [], list[SchemaMistake]()
    for name, column in schema["properties"].items():
        form = _mapping(columns[name])
        # `team` and a column `team_prob` would need the column team_prob twice.
        clash = next((f"{name}_{end}" for end in ("prob", "probs") if f"{name}_{end}" in columns), None)
        problem = _problem(column, ordered=form.get("ordered") is True)
        if clash is not None:
            problem = f'the probabilities of "{name}" are called {clash}: rename that column'
        if problem is not None:
            mistakes.append((("answer", "columns", name), problem))
            continue
        text = form.get("description") or name
        if column["type"] == "boolean":
            questions.append(Decision(name, "boolean", text))
            continue
        meanings = _mapping(form.get("values"))
        options = tuple((label, meanings.get(label)) for label in column["enum"])
        questions.append(Decision(name, "scale" if form.get("ordered") else "choice", text, options))
    return tuple(questions), mistakes


def _mapping(written: Any) -> Mapping[str, Any]:  # noqa: ANN401  (any JSON)
    """Return the long form of a column or of its values, empty where another form is written."""
    return written if isinstance(written, Mapping) else {}


def _problem(column: Schema, *, ordered: bool) -> str | None:
    """Return why a decision model can't answer a column, None where it can."""
    if "null" in column["type"]:
        return "a decision model always answers: remove the null, or add a label such as none"
    kind: str = kind_of(column)
    if kind not in ("boolean", "enum"):
        if "enum" in column:
            kind += "; labels are texts: write {values: [1, 2]}"
        return f"a decision model answers boolean or one of values, not {kind}"
    number, most, noun = len(column.get("enum", "10")), MAX_OPTIONS, "values"
    if ordered:
        most, noun = MAX_LEVELS, "ordered values"
    if not 2 <= number <= most:  # noqa: PLR2004  (a choice)
        return f"a decision model takes 2 to {most} {noun}, not {number}"
    return None


def parse_decisions(text: str, questions: tuple[Decision, ...]) -> str | Mismatch:
    """Return the answers to all questions as one JSON object: NAME, NAME_prob and NAME_probs for each.

    `text` is JSON of api/decisions.py: the answers by name, or in the order of the questions.
    """
    given = orjson.loads(text)
    if isinstance(given, list):
        given = {question.name: one for question, one in zip(questions, given, strict=False)}
    answer: dict[str, Any] = {}
    for question in questions:
        decided = _decided(question, given.get(question.name))
        if decided is None:
            return Mismatch(f'"{question.name}" has no answer that fits its question')
        label, probabilities = decided
        answer[question.name] = label
        if question.kind == "boolean":
            answer[question.name] = label == "true"
        answer[f"{question.name}_prob"] = probabilities and probabilities[label]
        answer[f"{question.name}_probs"] = probabilities
    return orjson.dumps(answer).decode()


_Decided = tuple[str, dict[str, float] | None]
"""A label, and the probability of each label; these add up to 1."""


def _decided(question: Decision, found: Any) -> _Decided | None:  # noqa: ANN401  (any JSON)
    """Return the label that an answer gives to its question, None where it does not fit."""
    if not isinstance(found, dict):
        return None
    match question.kind:
        case "boolean":
            return _yes_or_no(found.get("probability"))
        case "choice":
            return _choice(question.options, found.get("chosen"), found.get("probabilities"))
        case "scale":
            return _level(question.options, found.get("score"), found.get("probabilities"))


def _yes_or_no(yes: Any) -> _Decided | None:  # noqa: ANN401  (any JSON)
    if type(yes) not in _NUMBERS or not 0 <= yes <= 1:
        return None
    both = {"true": round(yes, _DIGITS), "false": round(1 - yes, _DIGITS)}
    return ("true" if yes >= 0.5 else "false"), both  # noqa: PLR2004


def _choice(options: Options, chosen: Any, given: Any) -> _Decided | None:  # noqa: ANN401  (any JSON)
    if not any(chosen == label for label, _ in options):
        return None
    if not isinstance(given, dict):
        return chosen, None
    # Keys that were not offered ("É" as two characters, "none" for "None") mean that labels are missing, not at 0.
    if sum(label in given for label, _ in options) != len(given):
        return chosen, None
    return chosen, _normal(options, [given.get(label, 0) for label, _ in options])


def _level(options: Options, score: Any, given: Any) -> _Decided | None:  # noqa: ANN401  (any JSON)
    normal = _normal(options, given)
    if normal is not None:
        return max(normal, key=normal.__getitem__), normal  # the lower one of equals
    if type(score) not in _NUMBERS or not 0 <= score <= len(options) - 1:
        return None
    return options[round(score)][0], None


def _normal(options: Options, values: Any) -> dict[str, float] | None:  # noqa: ANN401  (any JSON)
    """Return probabilities that add up to 1 (servers round them to two places); None where there are none."""
    if not isinstance(values, list) or len(values) != len(options):
        return None
    total = 0.0
    for value in values:
        if type(value) not in _NUMBERS or not 0 <= value <= 1:
            return None
        total += value
    if not total:
        return None
    return {label: round(value / total, _DIGITS) for (label, _), value in zip(options, values, strict=True)}
