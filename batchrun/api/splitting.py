"""More questions about one state than a server takes in a request: asked in parts, answered as if by one reply."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import orjson

from batchrun.api.endpoints import Endpoint
from batchrun.api.judge import judge
from batchrun.api.wording import read_json
from batchrun.records import Reply, Request, Send, Usage


def in_parts(send: Send, endpoint: Endpoint, questions: int) -> Send:
    """Return a Send for requests with that many questions: `send` itself where the server takes them at once."""
    if questions <= endpoint.most_questions:
        return send
    return _Parts(send, endpoint.most_questions).send


class _Parts:
    """Sends the parts of a request one after the other.

    A part that fails is the reply, with the usage of the parts before it. Their answers are kept, so that another
    attempt of the same question begins with the part that failed.
    """

    def __init__(self, send: Send, most: int) -> None:
        self._send, self._most = send, most
        self._answers: dict[bytes, list[Any]] = {}

    async def send(self, request: Request) -> Reply:
        """Send one request with all its questions."""
        body, key = orjson.loads(request.body), blake2b(request.body).digest()
        answers = self._answers.pop(key, [])
        earlier: Usage | None = None
        seconds, reply = 0.0, Reply()
        for questions in list(_groups(body["questions"], self._most))[len(answers) :]:
            reply = await self._send(request._replace(body=orjson.dumps({**body, "questions": questions})))
            seconds += reply.seconds
            reply = reply._replace(earlier=earlier, seconds=seconds)
            verdict = judge(reply, _as_it_is, now=0.0)
            if verdict.ending != "ok":
                self._answers[key] = answers
                return reply
            answers.append(read_json(reply.body)[0]["answers"])
            earlier = verdict.usage
        whole = {**read_json(reply.body)[0], "answers": _joined(answers)}
        return reply._replace(body=orjson.dumps(whole))


def _groups(questions: Any, most: int) -> Iterator[Any]:  # noqa: ANN401  (JSON)
    """Yield the questions, a map or a list, in groups of at most `most`."""
    for start in range(0, len(questions), most):
        if isinstance(questions, dict):
            yield dict(list(questions.items())[start : start + most])
        else:
            yield questions[start : start + most]


def _joined(answers: list[Any]) -> Any:  # noqa: ANN401  (JSON)
    if isinstance(answers[0], dict):
        return {name: answer for part in answers for name, answer in part.items()}
    return [answer for part in answers for answer in part]


def _as_it_is(text: str, *, finished: bool) -> str:
    del finished
    return text
