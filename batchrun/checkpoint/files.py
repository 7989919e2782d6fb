"""The checkpoint's files: where they may lie, whose they are, who has locked them, how much room they have."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from batchrun.checkpoint import schema
from batchrun.checkpoint.connection import failing
from batchrun.errors import BusyError, StorageError, UserError

SQLITE_ENDINGS = ("-wal", "-shm", "-journal")
"""SQLite's files next to a database, as endings of its name."""

RESERVE = 4 * 2**20
"""Bytes kept free for the last commits on a full disk."""

_RANDOM = 2**18
"""Bytes of it that are drawn; no file system that compresses sees that they repeat at this distance."""

LOW_SPACE = 8 * 2**20
"""Bytes; with less free a run starts no new request."""

_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID = slice(68, 72)
_NETWORK = (
    "nfs nfs4 cifs smb smb2 smb3 smbfs afs afpfs ncpfs ceph lustre gpfs beegfs glusterfs orangefs pvfs2 davfs "
    "fuse.sshfs fuse.glusterfs fuse.ceph fuse.s3fs fuse.rclone fuse.davfs2 fuse.gcsfuse"
)
CREATE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR
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
        raise failing(path, error.strerror or str(error)) from error


def prepare_folder(path: Path) -> None:
    """Make the checkpoint's folder, for its owner alone; refuse network file systems and links (UserError)."""
    with reported(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_place(path)


def check_place(path: Path) -> None:
    """Refuse a place for a checkpoint on a network file system or behind a link (UserError); nothing is made."""
    refuse_network(path)
    for name in ("", *SQLITE_ENDINGS, ".new", ".lock", ".reserve"):
        place = companion(path, name)
        if place.is_symlink():
            raise UserError(f"{place} is a symbolic link, which is not followed: set checkpoint: to the file itself")


def companion(path: Path, ending: str) -> Path:
    """Return the file next to the checkpoint that has its name with an ending."""
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
    """Return the kind of file system under an absolute folder, from the kernel's table of mounts ("" where unknown)."""
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


def is_ours(path: Path) -> bool:
    """Check by the header whether a file is a checkpoint, or was one before it was damaged."""
    magic, application = header(path)
    return application if magic else (application or path.stat().st_size == 0)


def header(path: Path) -> tuple[bool, bool]:
    """Return whether a file begins as a SQLite database does, and whether it has our application id."""
    with path.open("rb") as file:
        start = file.read(_APPLICATION_ID.stop)
    return start.startswith(_MAGIC), start[_APPLICATION_ID] == schema.APPLICATION_ID.to_bytes(4, "big")


def make_reserve(path: Path) -> Path:
    """Take disk space that can be given up when the disk is full; StorageError when it is not there now."""
    reserve = companion(path, ".reserve")
    reserve.unlink(missing_ok=True)
    try:
        descriptor = os.open(reserve, CREATE, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123  (Path has no way to take a descriptor)
            # Random bytes: a file system that compresses would store zeros in no space.
            file.write(os.urandom(_RANDOM) * (RESERVE // _RANDOM))
    except OSError as error:
        with contextlib.suppress(OSError):
            reserve.unlink(missing_ok=True)
        needs = f"{RESERVE >> 20} MB must be free next to {path}"
        raise StorageError(f"{error.strerror}: {needs}; free some, then run the same command again") from error
    return reserve


def identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of what lies at a path, None where nothing does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def free_bytes(folder: Path) -> int | None:
    """Return the bytes that are free for this user under a folder; None where nobody says."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def low_space(path: Path) -> StorageError | None:
    """Return the error for a disk that is nearly full; None while there is room."""
    free = free_bytes(path.parent)
    if free is None or free >= LOW_SPACE:
        return None
    return StorageError(
        f"only {free / 2**20:.1f} MB are free under {path}, and {LOW_SPACE >> 20} MB must be free: free some, then run "
        "the same command again"
    )


@dataclass(frozen=True, slots=True)
class Holder:
    """Who runs a job: pid and host, and since when (Unix time); None where the lock file does not say."""

    pid: int | None = None
    host: str | None = None
    since: float | None = None

    def __str__(self) -> str:
        if self.pid is None or self.since is None:
            return "pid unknown"
        return f"pid {self.pid} on {self.host}, since {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(self.since))}"


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of the checkpoint at `path`, or raise BusyError, naming pid, host and start of its holder.

    The kernel releases it however the process ends. Whoever writes to the checkpoint holds it.
    """
    prepare_folder(path)
    file = companion(path, ".lock")
    owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}).encode()

    def sign(descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner, 0)

    # A soft lock would outlive a killed process; one in memory (singleton) would let two runs of one process in.
    held = FileLock(file, mode=0o600, fallback_to_soft=False, is_singleton=False, thread_local=False, on_acquired=sign)
    with reported(path):
        try:
            # `running` looks at the lock by taking it for a moment: one look must not turn a run away.
            held.acquire(timeout=0.2, poll_interval=0.02)
        except Timeout:
            raise BusyError(f"this job is already running ({_holder(file)}): wait for it, or stop it") from None
        except NotImplementedError as error:
            raise StorageError(f"{path} lies where files can't be locked: set checkpoint: to a local path") from error
    try:
        yield
    finally:
        held.release()


def running(path: Path) -> Holder | None:
    """Return who holds the lock of a checkpoint; None while no run does."""
    file = companion(path, ".lock")
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        # A shared lock is refused only while a run holds its exclusive one.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _holder(file)
    finally:
        os.close(descriptor)
    return None


def _holder(file: Path) -> Holder:
    try:
        said = json.loads(file.read_bytes())
        return Holder(int(said["pid"]), str(said["host"]), float(said["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Holder()
