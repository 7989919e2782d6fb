"""Makes, opens, checks, puts aside and rescues the file of a checkpoint."""

import contextlib
import errno
import glob
import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path

from batchrun.checkpoint import schema
from batchrun.checkpoint.connection import Connection, damaged, failing
from batchrun.checkpoint.files import (
    CREATE,
    SQLITE_ENDINGS,
    companion,
    header,
    identity,
    is_ours,
    reported,
)
from batchrun.disk import sync_folder
from batchrun.errors import CheckpointError, StorageError, UserError

CHECKED_WHOLE = 2**30
"""Bytes; a larger file is not checked after a crash (`status --verify` does it)."""

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def create(path: Path, fill: Callable[[Connection], None] = lambda _: None) -> None:
    """Make a new checkpoint, complete before it gets its name; it replaces what has the name.

    `fill` adds to its tables. Raises StorageError or UserError.
    """
    log = companion(path, "-wal")
    if log.exists() and not path.exists():
        # SQLite would replay it into the new file.
        raise CheckpointError(f"{log} is there but {path} is not: put the file back, or move the log away")
    new = _empty(path)
    with reported(path):
        connection = Connection(new)
        try:
            with connection.transaction():
                for statement in schema.TABLES:
                    connection.run(statement)
                connection.run(f"PRAGMA application_id = {schema.APPLICATION_ID}")
                connection.run(f"PRAGMA user_version = {schema.VERSION}")
                fill(connection)
            # Closing would merge the log as well, but say nothing where the disk is full, and the name is for one file.
            connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
        new.replace(path)
        sync_folder(path)


def _empty(path: Path) -> Path:
    """Make the empty file that will become a checkpoint: for its owner alone from its first byte."""
    new = companion(path, ".new")
    with reported(path):
        for ending in ("", *SQLITE_ENDINGS):
            companion(new, ending).unlink(missing_ok=True)
        os.close(os.open(new, CREATE, 0o600))
    return new


def open_file(path: Path, *, read_only: bool) -> Connection:
    """Open an existing checkpoint; refuse one that is foreign, damaged or of another version."""
    with reported(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is not a file: set checkpoint: to another path")
        if not is_ours(path):
            raise CheckpointError(f"{path} is not a checkpoint of batchrun: set checkpoint: to another path")
        if not all(header(path)):
            raise damaged(path, "its first bytes are not those of a database")
        if not read_only:
            _undo_half_fresh(path)
    connection = Connection(path, read_only=read_only)
    try:
        _check_version(connection)
        if not read_only:
            _check_after_crash(connection)
    except BaseException:
        with contextlib.suppress(StorageError):
            connection.close()
        raise
    return connection


def _check_version(connection: Connection) -> None:
    version = connection.value("PRAGMA user_version")
    if version != schema.VERSION:
        raise CheckpointError(
            f"{connection.path} has version {version} of the tables, and this batchrun knows {schema.VERSION}: use "
            "the batchrun that wrote it, or set checkpoint: to another path"
        )


def _check_after_crash(connection: Connection) -> None:
    building = connection.value("SELECT 1 FROM sqlite_schema WHERE name = 'rows_next'")
    unended = connection.value("SELECT ended_at IS NULL FROM runs ORDER BY id DESC LIMIT 1")
    if (building or unended) and connection.path.stat().st_size < CHECKED_WHOLE:
        found = connection.value("PRAGMA quick_check(1)")
        if found != "ok":
            raise _fault(connection.path, found)
    if building:
        with connection.transaction():
            connection.run("DROP TABLE rows_next")
            connection.run("DELETE FROM plans WHERE NOT current")


def _fault(path: Path, found: str) -> StorageError:
    """Return the error for what a check found.

    "unable to get the page. error code=8458" is a disk that can't be read (its last byte is 10, SQLITE_IOERR), not a
    page that is wrong.
    """
    code = re.search(r"error code=(\d+)", found)
    if code is not None and int(code[1]) & 0xFF == sqlite3.SQLITE_IOERR:
        return failing(path, found)
    return damaged(path, found)


def put_aside(path: Path, now: float) -> Path:
    """Move a checkpoint and its log aside and return their new name; `now` is Unix time.

    The file is linked first, so that its own name stays taken until a new checkpoint replaces it. A kill between the
    two steps is undone by the next start, see `_undo_half_fresh`.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    for count in range(1, 1000):
        number = "" if count == 1 else f"-{count}"
        aside = path.with_name(f"{path.stem}.{stamp}{number}{path.suffix}")
        try:
            os.link(path, aside, follow_symlinks=False)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in _NO_LINKS or aside.exists():
                raise
            path.rename(aside)
        log = companion(path, "-wal")
        if log.exists():
            log.rename(companion(aside, "-wal"))
        companion(path, "-shm").unlink(missing_ok=True)
        return aside
    raise StorageError(f"{path} was moved aside too often in this second")


def _undo_half_fresh(path: Path) -> None:
    """Return a checkpoint its log back that a killed `--fresh` had moved aside before the new file took the name.

    Both names are then links to one file, and opened without the log it would lack its last commits.
    """
    if path.stat().st_nlink == 1:
        return
    for aside in path.parent.glob(f"{glob.escape(path.stem)}.*-*{glob.escape(path.suffix)}"):
        if identity(aside) == identity(path):
            log = companion(aside, "-wal")
            if log.exists() and not companion(path, "-wal").exists():
                log.rename(companion(path, "-wal"))
            aside.unlink()


def rescue(connection: Connection, path: Path) -> Path:
    """Write a checkpoint again whose file was deleted or replaced while it was open; return where it is now.

    It gets its own name back, or another one where something else has taken the name.
    """
    with reported(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = path
        for count in range(1, 1000):
            if not target.exists():
                break
            target = path.with_name(f"{path.stem}.rescued-{count}{path.suffix}")
        new = _empty(target)
        connection.copy_to(new)
        for ending in SQLITE_ENDINGS:
            companion(target, ending).unlink(missing_ok=True)
        new.replace(target)
        sync_folder(target)
    return target
