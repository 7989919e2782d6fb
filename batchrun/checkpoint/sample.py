"""The questions of a sample, those that a limited run took up, and rows answered by people, in temporary tables."""

from collections.abc import Iterable, Sequence

from batchrun.checkpoint.connection import Connection

_COLUMNS = "(position INTEGER PRIMARY KEY, question_id INTEGER, first INTEGER)"


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
    connection.run(f"CREATE TEMP TABLE chosen{_COLUMNS}")
    _insert(connection, "chosen", ((position, question) for question, position in chosen.items()))


def count_taken(connection: Connection) -> int:
    """Count the questions in the temporary table `taken`; make the table where it is missing."""
    connection.run(f"CREATE TEMP TABLE IF NOT EXISTS taken{_COLUMNS}")
    return int(connection.value("SELECT count(*) FROM temp.taken"))


def take(connection: Connection, questions: Iterable[tuple[int, int]]) -> None:
    """Put more (position, question) into the temporary table `taken`."""
    _insert(connection, "taken", questions)


NOT_ANSWERED = "AND r.question_id NOT IN (SELECT question_id FROM temp.answered WHERE question_id IS NOT NULL)"
"""The condition for a row's question not to be in the table of `note_answered`."""


def note_answered(connection: Connection, rows: Iterable[tuple[int, int | None]]) -> None:
    """Fill the temporary table `answered` with (position, question); a question with other rows, too, becomes NULL."""
    connection.run("CREATE TEMP TABLE answered(position INTEGER PRIMARY KEY, question_id INTEGER)")
    connection.many("INSERT INTO temp.answered VALUES (?, ?)", rows)
    connection.run(
        "UPDATE temp.answered SET question_id = NULL WHERE question_id IN (SELECT question_id FROM rows "
        "WHERE question_id IN (SELECT question_id FROM temp.answered) "
        "AND position NOT IN (SELECT position FROM temp.answered))"
    )


def _insert(connection: Connection, table: str, questions: Iterable[tuple[int, int]]) -> None:
    rows = [(position, question, 1) for position, question in questions]
    connection.insert(f"temp.{table}(position, question_id, first)", rows)
