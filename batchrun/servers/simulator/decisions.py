"""POST /systemone and /api/alpha/decisions: an answer with probabilities for each typed question about a state."""

from collections.abc import Mapping
from typing import Any

import orjson

from batchrun.servers.simulator.account import Account, ApiError, Config, find_model
from batchrun.servers.simulator.models import DECISIONS, count_tokens, to_usd

_TEMPLATE_TOKENS = 100
"""What the hidden template adds for each question."""
_BUILD = "20261015"


async def reply(account: Account, body: bytes) -> dict[str, Any]:
    """Return the answers to one request. Raises ApiError."""
    try:
        request = orjson.loads(body)
        state, questions = request.get("state"), request.get("questions")
    except (ValueError, AttributeError):
        raise ApiError(400, "The body must be a JSON object") from None
    model = find_model(request.get("model"), DECISIONS)
    if state is None:
        raise ApiError(400, '"state" must be provided')
    if not isinstance(questions, dict) or not questions:
        raise ApiError(400, '"questions" must be a non-empty object')
    for name, question in questions.items():
        _check(name, question)
    tokens = count_tokens(body.decode()) + _TEMPLATE_TOKENS * len(questions)
    if tokens > model.context:
        raise ApiError(400, f"This endpoint's maximum context length is {model.context} tokens.")
    cost = model.cost(tokens, 0)

    def write() -> tuple[dict[str, Any], int]:
        written = {
            "id": f"gen-dec-{account.generations:08x}",
            "model": f"sim/{model.slug.removeprefix('sim/')}-{_BUILD}",
            "provider": "Simulator",
            "answers": {name: _answer(account.config, state, question) for name, question in questions.items()},
            "usage": {"input_tokens": tokens, "output_tokens": 0, "cost": to_usd(cost)},
        }
        return written, cost

    return await account.generate(body, cost, write)


def _check(name: str, question: Any) -> None:  # noqa: ANN401  (JSON)
    match question:
        case {"type": "noul"}:
            return
        case {"type": "choice", "criteria": dict() as options} if 2 <= len(options) <= 255:  # noqa: PLR2004  (limits)
            return
        case {"type": "score", "criteria": list() as levels} if 2 <= len(levels) <= 10:  # noqa: PLR2004  (limits)
            return
        case {"type": "choice"}:
            raise ApiError(400, f'questions.{name}: "criteria" must be an object of 2 to 255 options')
        case {"type": "score"}:
            raise ApiError(400, f'questions.{name}: "criteria" must be an array of 2 to 10 levels')
    raise ApiError(400, f'questions.{name}: "type" must be one of: choice, score, noul')


def _answer(config: Config, state: Any, question: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401  (JSON)
    """Return an answer that depends on the seed, the state and the question alone."""
    key = orjson.dumps([state, question])
    if question["type"] == "noul":
        return {"type": "noul", "noul": round(config.draw(key), 4)}
    criteria = question["criteria"]
    names = list(criteria)
    if question["type"] == "score":
        names = [str(level) for level in range(len(criteria))]
    # To a power, so that one option stands out as it does with a real model.
    weights = [config.draw(key, name.encode()) ** 8 + 1e-9 for name in names]
    probabilities = {name: round(weight / sum(weights), 4) for name, weight in zip(names, weights, strict=True)}
    best = max(names, key=probabilities.__getitem__)
    if question["type"] == "choice":
        confidence = (probabilities[best] - 1 / len(names)) / (1 - 1 / len(names))
        return {"type": "choice", "choice": best, "probabilities": probabilities, "confidence": round(confidence, 4)}
    score = sum(int(level) * probability for level, probability in probabilities.items())
    legend = dict(zip(names, question["criteria"], strict=True))
    return {"type": "score", "score": round(score, 4), "legend": legend, "probabilities": probabilities}
