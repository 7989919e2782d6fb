"""The checkpoint's files: where they may lie, who may read them, and whose they are."""

import contextlib
import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from batchrun.checkpoint import schema
from batchrun.checkpoint.connection import Connection, damaged, guarded
from batchrun.errors import CheckpointError, StorageError, UserError

BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database, as endings of its name."""

CHECKED_WHOLE = 2**30
"""Bytes; a larger file is not checked after a crash (`status --verify` does it)."""

RESERVE = 4 * 2**20
"""Bytes kept free for the last commits on a full disk."""

_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID = slice(68, 72)
_NETWORK = (
    "nfs nfs4 cifs smb smb2 smb3 smbfs afs afpfs ncpfs ceph lustre gpfs beegfs glusterfs orangefs pvfs2 davfs "
    "fuse.sshfs fuse.glusterfs fuse.ceph fuse.s3fs fuse.rclone fuse.davfs2 fuse.gcsfuse"
)
_CREATE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_WRONG_PLACE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn errors of the file system into lines: UserError for a place that can't be used, else StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno in _WRONG_PLACE:
            line = f"the checkpoint can't be kept at {path} ({error.strerror}): set checkpoint: to a path you may write"
            raise UserError(line) from error
        raise StorageError(
            f"the disk fails or is full under the checkpoint {path} ({error.strerror}): mend that, then run the same "
            "command again"
        ) from error


def prepare_folder(path: Path) -> None:
    """Make the checkpoint's folder, for its owner alone; refuse network file systems and links (UserError)."""
    with reported(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_place(path)


def check_place(path: Path) -> None:
    """Refuse a place for a checkpoint on a network file system or behind a link (UserError); nothing is made."""
    refuse_network(path)
    for name in ("", *BESIDE, ".new", ".lock", ".reserve"):
        place = beside(path, name)
        if place.is_symlink():
            raise UserError(f"{place} is a symbolic link, which is not followed: set checkpoint: to the file itself")


def beside(path: Path, ending: str) -> Path:
    """Give the file that lies beside the checkpoint under its name with an ending."""
    return path.with_name(path.name + ending)


def refuse_network(path: Path) -> None:
    """Refuse a place on a network file system, where SQLite's locks can't be trusted (UserError)."""
    mounts = Path("/proc/self/mountinfo")
    if not mounts.exists():
        return
    kind = file_system(path.parent.resolve(), mounts.read_text(encoding="utf-8", errors="surrogateescape"))
    if kind in _NETWORK.split():
        raise UserError(f"{path} lies on a network file system ({kind}): set checkpoint: to a local path")


def file_system(folder: Path, mountinfo: str) -> str:
    """Give the kind of file system under an absolute folder, from the kernel's table of mounts ("" where unknown)."""
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) > 4 and right:  # noqa: PLR2004  (the mount point is the fifth field)
            mount = Path(_unescaped(fields[4]))
            depth = len(mount.parts)
            if depth >= best and folder.is_relative_to(mount):
                best, kind = depth, right.split(" ")[0]
    return kind


def _unescaped(text: str) -> str:
    for code in ("040", "011", "012", "134"):
        text = text.replace("\\" + code, chr(int(code, 8)))
    return text


def create(path: Path, fill: Callable[[Connection], None]) -> None:
    """Make a new checkpoint, complete before it gets its name; it replaces what has the name."""
    new = beside(path, ".new")
    with reported(path):
        for ending in ("", *BESIDE):
            beside(new, ending).unlink(missing_ok=True)
        os.close(os.open(new, _CREATE, 0o600))
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


def sync_folder(path: Path) -> None:
    """Make a new name durable."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def is_ours(path: Path) -> bool:
    """Tell by the header whether a file is a checkpoint, or was one before it was damaged."""
    magic, application = _header(path)
    return application if magic else (application or path.stat().st_size == 0)


def _header(path: Path) -> tuple[bool, bool]:
    with path.open("rb") as file:
        start = file.read(_APPLICATION_ID.stop)
    return start.startswith(_MAGIC), start[_APPLICATION_ID] == schema.APPLICATION_ID.to_bytes(4, "big")


def open_file(path: Path, *, read_only: bool) -> Connection:
    """Open an existing checkpoint; refuse what is foreign, newer or damaged, and migrate what is older."""
    with reported(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is no file: set checkpoint: to another path")
        if not is_ours(path):
            raise CheckpointError(f"{path} is not a checkpoint of batchrun: set checkpoint: to another path")
        if not all(_header(path)):
            raise damaged(path, "its first bytes are not those of a database")
    connection = Connection(path, read_only=read_only)
    try:
        _check_version(connection, read_only=read_only)
        if not read_only:
            _check_after_crash(connection)
    except BaseException:
        with contextlib.suppress(StorageError):
            connection.close()
        raise
    return connection


def _check_version(connection: Connection, *, read_only: bool) -> None:
    path = connection.path
    version = connection.value("PRAGMA user_version")
    if version > schema.VERSION:
        raise CheckpointError(
            f"{path} was written by a newer batchrun (its version is {version}, this one knows {schema.VERSION}): "
            "upgrade batchrun, or set checkpoint: to another path"
        )
    if version < schema.VERSION:
        steps = range(version, schema.VERSION)
        if not all(step in schema.MIGRATIONS for step in steps):
            raise damaged(path, f"there is no version {version}")
        if read_only:
            raise CheckpointError(f"{path} was written by an older batchrun: `batchrun run JOB` brings it up to date")
        _migrate(connection, version)


def _migrate(connection: Connection, version: int) -> None:
    path = connection.path
    copy = path.with_name(f"{path.stem}.v{version}{path.suffix}")
    with reported(path):
        copy.unlink(missing_ok=True)
        os.close(os.open(copy, _CREATE, 0o600))
    with guarded(path), contextlib.closing(sqlite3.connect(copy)) as target:
        connection.db.conn.backup(target)
    with connection.transaction():
        for step in range(version, schema.VERSION):
            for statement in schema.MIGRATIONS[step]:
                connection.run(statement)
        connection.run(f"PRAGMA user_version = {schema.VERSION}")


def _check_after_crash(connection: Connection) -> None:
    building = connection.value("SELECT 1 FROM sqlite_schema WHERE name = 'rows_next'")
    unended = connection.value("SELECT ended_at IS NULL FROM runs ORDER BY id DESC LIMIT 1")
    if (building or unended) and connection.path.stat().st_size < CHECKED_WHOLE:
        found = connection.value("PRAGMA quick_check(1)")
        if found != "ok":
            raise damaged(connection.path, found)
    if building:
        with connection.transaction():
            connection.run("DROP TABLE rows_next")
            connection.run("DELETE FROM plans WHERE NOT current")


def set_aside(path: Path, now: float) -> Path:
    """Give a checkpoint and its log another name beside the own one, which stays taken where links exist."""
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
        log = beside(path, "-wal")
        if log.exists():
            log.rename(beside(aside, "-wal"))
        beside(path, "-shm").unlink(missing_ok=True)
        return aside
    raise StorageError(f"{path} has been put aside too often in this second")


def make_reserve(path: Path) -> Path:
    """Take disk space that can be given up when the disk is full; StorageError when it is not there now."""
    reserve = beside(path, ".reserve")
    reserve.unlink(missing_ok=True)
    try:
        descriptor = os.open(reserve, _CREATE, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123  (Path has no way to take a descriptor)
            file.write(os.urandom(RESERVE))
    except OSError as error:
        with contextlib.suppress(OSError):
            reserve.unlink(missing_ok=True)
        needs = f"{RESERVE >> 20} MB must be free beside {path}"
        raise StorageError(f"{error.strerror}: {needs}; free some, then run the same command again") from error
    return reserve
