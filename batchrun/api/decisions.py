"""Decision models on the wire: the neutral questions -> a request in one of two forms, and any answers -> neutral ones.

TypeSafe, OpenRouter, llama.cpp and others take a map of questions at `/systemone`; OpenAI takes a list at `/decisions`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from batchrun.api.endpoints import Endpoint
from batchrun.api.wording import list_of, object_of, objects_of
from batchrun.records import Decision

Form = Callable[[Any, Sequence[Decision]], dict[str, Any]]
"""Makes a request's fields of a state and questions. Their texts may be any JSON.

A state is a text, texts by name or, with images, a list of parts as in a chat message.
"""


def form_for(endpoint: Endpoint) -> Form:
    """Return the form that an endpoint takes."""
    return _as_list if endpoint.takes_list else _as_map


def _as_map(state: Any, questions: Sequence[Decision]) -> dict[str, Any]:  # noqa: ANN401  (JSON)
    if isinstance(state, list):
        # Images are parts as in a chat, texts plain: servers read an object without an image as JSON.
        state = [part["text"] if part["type"] == "text" else part for part in state]
    return {"state": state, "questions": {question.name: _in_map(question) for question in questions}}


def _in_map(question: Decision) -> dict[str, Any]:
    match question.kind:
        case "boolean":
            return {"type": "noul", "instructions": question.instructions}
        case "choice":
            return {"type": "choice", "instructions": question.instructions, "criteria": dict(question.options)}
        case "scale":
            levels = [label if meaning is None else f"{label}: {meaning}" for label, meaning in question.options]
            return {"type": "score", "instructions": question.instructions, "criteria": levels}


def _as_list(state: Any, questions: Sequence[Decision]) -> dict[str, Any]:  # noqa: ANN401  (JSON)
    if isinstance(state, list):
        state = [{"role": "user", "content": [_part_of_input(part) for part in state]}]
    elif isinstance(state, Mapping):
        state = [{"role": "user", "content": [{"type": "input_json", "data": state}]}]
    return {"input": state, "questions": [_in_list(question) for question in questions]}


def _part_of_input(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    return {"type": "input_image", "image_url": part["image_url"]["url"]}


def _in_list(question: Decision) -> dict[str, Any]:
    asked = {"name": question.name, "instructions": question.instructions}
    match question.kind:
        case "boolean":
            return {"type": "predicate", **asked}
        case "choice":
            return {"type": "choice", **asked, "choices": _options("value", question)}
        case "scale":
            return {"type": "score", **asked, "levels": _options("label", question)}


def _options(name: str, question: Decision) -> list[dict[str, str]]:
    return [
        {name: label} if meaning is None else {name: label, "description": meaning}
        for label, meaning in question.options
    ]


def neutral(answers: Any) -> Any:  # noqa: ANN401  (any JSON)
    """Return a reply's answers, by name or in order, each in its neutral form; an unknown answer stays as it is.

    Neutral are {probability} of yes, {chosen, probabilities by label}, {score, probabilities in order}.
    """
    if isinstance(answers, dict):
        return {name: _neutral(one) for name, one in answers.items()}
    return [_neutral(one) for one in list_of(answers)]


def _neutral(answer: Any) -> Any:  # noqa: ANN401  (any JSON)
    if type(answer) is not dict:
        return answer
    given = answer.get("probabilities")
    if isinstance(given, list):
        given = {str(one.get("value")): one.get("probability") for one in objects_of(given)}
    given = object_of(given)
    if "choice" in answer:
        return {"chosen": answer["choice"], "probabilities": given}
    if "score" in answer:
        levels = [given.get(str(level)) for level in range(len(given))]
        return {"score": answer["score"], "probabilities": levels}
    if "noul" in answer or answer.get("type") == "predicate":
        return {"probability": answer.get("noul", answer.get("probability"))}
    return answer


def refused(answers: Any) -> bool:  # noqa: ANN401  (any JSON)
    """Check whether the model declined one of the questions, as OpenAI's may."""
    if isinstance(answers, dict):
        answers = list(answers.values())
    return any(isinstance(one, dict) and one.get("type") == "refusal" for one in answers)
