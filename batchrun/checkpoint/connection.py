"""One guarded connection to the checkpoint: SQLite's errors leave it as lines for people."""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from batchrun.errors import CheckpointError, StorageError

Row = tuple[Any, ...]

MOST_VALUES = 1_000
"""Values in one statement."""

_BUSY_SECONDS = 30.0
_PRAGMAS = (
    "PRAGMA cache_size = -16000",
    "PRAGMA cell_size_check = ON",
    "PRAGMA trusted_schema = OFF",
)
# A plan rewrites the same pages from batch to batch: rare checkpoints save most of that; 16,000 pages are 64 MB.
_WRITE_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA wal_autocheckpoint = 16000",
    "PRAGMA journal_size_limit = 67108864",
)
_NO_SPACE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_PRIMARY = 0xFF  # SQLite's extended codes keep the primary one in the low byte


class Connection:
    """A connection to one checkpoint file; each method raises StorageError or CheckpointError.

    It may be used from any thread, by one at a time. A file that is missing is never created here.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        mode = "ro" if read_only else "rw"
        with guarded(path):
            connection = sqlite3.connect(
                f"file:{quote(os.fsencode(path))}?mode={mode}",
                uri=True,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                for pragma in _PRAGMAS if read_only else _PRAGMAS + _WRITE_PRAGMAS:
                    connection.execute(pragma)
            except (sqlite3.Error, UnicodeDecodeError):
                connection.close()
                raise
        self._conn = connection

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return all rows of a query."""
        with guarded(self.path):
            return self._conn.execute(sql, values).fetchall()

    def rows_in(self, sql: str, keys: Sequence[Any], values: Sequence[Any] = ()) -> list[Row]:
        """Return all rows of a query in which `{}` stands for the keys; `values` come before them.

        Any number of keys: they go into queries of at most MOST_VALUES.
        """
        found: list[Row] = []
        for start in range(0, len(keys), MOST_VALUES):
            some = keys[start : start + MOST_VALUES]
            found += self.rows(sql.format(", ".join("?" * len(some))), (*values, *some))
        return found

    def value(self, sql: str, values: Sequence[Any] = ()) -> Any:  # noqa: ANN401  (any SQL value)
        """Return the first column of the first row, or None."""
        found = self.rows(sql, values)
        return found[0][0] if found else None

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Run one statement; return the number of rows that it changed."""
        with guarded(self.path):
            return self._conn.execute(sql, values).rowcount

    def many(self, sql: str, values: Iterable[Sequence[Any]]) -> None:
        """Run one statement for each of the values."""
        with guarded(self.path):
            self._conn.executemany(sql, values)

    def insert(self, into: str, rows: Sequence[Sequence[Any]], conflict: str = "") -> None:
        """Insert rows of one width: `into` is "table(columns)", `conflict` the clause after the values.

        Many go in one statement: between two of them Python's lock is released, and getting it back takes time.
        """
        if not rows:
            return
        size = MOST_VALUES // len(rows[0])
        marks = f"({', '.join('?' * len(rows[0]))})"
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            values = ", ".join([marks] * len(block))
            self.run(f"INSERT INTO {into} VALUES {values} {conflict}", list(chain.from_iterable(block)))  # noqa: S608  (marks only)

    def insert_row(self, table: str, row: dict[str, Any]) -> int:
        """Insert one row, by column, and return its id."""
        marks = ", ".join("?" * len(row))
        self.run(f"INSERT INTO {table}({', '.join(row)}) VALUES ({marks})", list(row.values()))  # noqa: S608  (our own names)
        return int(self.value("SELECT last_insert_rowid()"))

    def update_row(self, table: str, number: int, row: dict[str, Any]) -> None:
        """Change columns of the row with this id, which is the table's INTEGER PRIMARY KEY."""
        changes = ", ".join(f"{column} = ?" for column in row)
        self.run(f"UPDATE {table} SET {changes} WHERE rowid = ?", [*row.values(), number])  # noqa: S608  (our own names)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything inside as one transaction; on an exception nothing is changed."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        # SQLite may have rolled back by itself, or fail again: the first error is the one to report.
        try:
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
        except sqlite3.Error:
            return

    def vacuum(self) -> None:
        """Return free pages to the disk."""
        from sqlite_utils import Database  # noqa: PLC0415  (it loads pandas where that is installed: 3 s of a start)

        with guarded(self.path):
            Database(self._conn, execute_plugins=False).vacuum()

    def copy_to(self, path: Path) -> None:
        """Copy the whole database into an empty file."""
        with guarded(path), closing(sqlite3.connect(path)) as target:
            self._conn.backup(target)

    def close(self) -> None:
        """Close. The last connection to close merges the log into the file."""
        with guarded(self.path):
            self._conn.close()


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into lines that say what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, path) from error
    except UnicodeDecodeError as error:  # SQLite's message about a damaged schema quotes its bytes
        raise damaged(path, "a text in it is not UTF-8") from error


def damaged(path: Path, what: str) -> CheckpointError:
    """Return the error for a checkpoint whose contents are damaged."""
    return CheckpointError(
        f"the checkpoint {path} is damaged ({' '.join(what.split())}): put a copy of it back, or start over with "
        "--fresh, which keeps the damaged file under another name"
    )


def failing(path: Path, what: str) -> StorageError:
    """Return the error for a disk that can't be read or written; the file itself may be fine."""
    return StorageError(
        f"the disk under {path} fails ({' '.join(what.split())}): check it, then run the same command again"
    )


def explain(error: sqlite3.Error, path: Path) -> StorageError:
    """Return the error for one of SQLite: `--fresh` is advised only where the file itself is damaged."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    if code in _NO_SPACE:
        return StorageError(f"no space left for {path}: free some, then run the same command again")
    if not code and isinstance(error, sqlite3.OperationalError):
        # "Could not decode to UTF-8 column …" comes from Python and quotes the cell, which may be long and private.
        return damaged(path, "a text in it is not UTF-8")
    match code & _PRIMARY:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StorageError(f"another program keeps {path} locked: close it, then run the same command again")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return StorageError(f"{path} can't be written ({error}): look at its folder's permissions")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_ERROR:  # ERROR: a table is missing
            return damaged(path, str(error))
        case _:
            return failing(path, str(error))
