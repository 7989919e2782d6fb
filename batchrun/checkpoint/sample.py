"""The questions of a sample, in a temporary table."""

from collections.abc import Iterable, Sequence

from batchrun.checkpoint.connection import Connection

_AT_ONCE = 500
"""Positions in one query."""


def choose(connection: Connection, positions: Iterable[Sequence[int]], count: int) -> None:
    """Fill the temporary table `chosen` with the first `count` distinct questions at these positions, in blocks."""
    chosen: dict[int, int] = {}
    for block in positions:
        questions: dict[int, int] = {}
        for start in range(0, len(block), _AT_ONCE):
            some = block[start : start + _AT_ONCE]
            sql = f"SELECT position, question_id FROM rows WHERE position IN ({', '.join('?' * len(some))})"  # noqa: S608  (marks only)
            questions.update(connection.rows(f"{sql} AND question_id IS NOT NULL", some))
        for position in block:
            if position in questions and len(chosen) < count:
                chosen.setdefault(questions[position], position)
        if len(chosen) == count:
            break
    connection.run("CREATE TEMP TABLE chosen(position INTEGER PRIMARY KEY, question_id INTEGER, first INTEGER)")
    rows = [(position, question, 1) for question, position in chosen.items()]
    connection.insert("temp.chosen(position, question_id, first)", rows)
