"""The questions of a sample, in a temporary table."""

from collections.abc import Iterable, Sequence

from batchrun.checkpoint.connection import Connection


def choose(connection: Connection, positions: Iterable[Sequence[int]], count: int) -> None:
    """Fill the temporary table `chosen` with the first `count` distinct questions at these positions, in blocks."""
    chosen: dict[int, int] = {}
    for block in positions:
        sql = "SELECT position, question_id FROM rows WHERE question_id IS NOT NULL AND position IN ({})"
        questions: dict[int, int] = dict(connection.rows_in(sql, block))
        for position in block:
            if position in questions and len(chosen) < count:
                chosen.setdefault(questions[position], position)
        # The positions may be those of ten million rows.
        if len(chosen) == count:
            break
    connection.run("CREATE TEMP TABLE chosen(position INTEGER PRIMARY KEY, question_id INTEGER, first INTEGER)")
    rows = [(position, question, 1) for question, position in chosen.items()]
    connection.insert("temp.chosen(position, question_id, first)", rows)
