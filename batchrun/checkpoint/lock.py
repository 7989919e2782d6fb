"""One run of a job at a time: a kernel lock beside the checkpoint that names its holder."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from batchrun.checkpoint.files import beside, prepare_folder, reported
from batchrun.errors import BusyError, StorageError


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of the checkpoint at `path`, or raise BusyError at once, naming pid, host and start of its holder.

    The kernel releases it however the process ends. Whoever writes to the checkpoint holds it.
    """
    prepare_folder(path)
    file = beside(path, ".lock")
    holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}).encode()

    def sign(descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder, 0)

    # A soft lock would outlive a killed process; one in memory (singleton) would let two runs of one process in.
    held = FileLock(file, mode=0o600, fallback_to_soft=False, is_singleton=False, thread_local=False, on_acquired=sign)
    with reported(path):
        try:
            held.acquire(timeout=0)
        except Timeout:
            raise BusyError(_busy(file)) from None
        except NotImplementedError as error:
            raise StorageError(f"{path} lies where files can't be locked: set checkpoint: to a local path") from error
    try:
        yield
    finally:
        held.release()


def _busy(file: Path) -> str:
    try:
        holder = json.loads(file.read_bytes())
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder["since"]))
        who = f"pid {int(holder['pid'])} on {holder['host']}, since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        who = f"it holds {file}"
    return f"another run of this job is going on ({who}): wait for it, or stop it"
