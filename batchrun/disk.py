"""Small files that are whole or not there, and names that survive a power cut."""

import os
import secrets
from functools import partial
from pathlib import Path

from batchrun.errors import StorageError


def write_whole(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file whole or not at all: whoever reads it meanwhile sees the old one or the new one.

    Missing folders are made; `mode` is that of a new file, less the umask. Raises StorageError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb", opener=partial(os.open, mode=mode)) as file:
                file.write(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as problem:
        raise StorageError(f"{path} can't be written: {problem.strerror}") from None


def sync_folder(path: Path) -> None:
    """Make a new name durable: that of a file in its folder. Raises OSError."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
