"""Local image files: their digests and their `data:` URLs."""

import base64
import functools
import hashlib
import os
import stat
from pathlib import Path

from batchrun.prompt.render import MAX_IMAGE_BYTES, RowProblem

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
_NON_BLOCKING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # a pipe in place of a file must not hang the run


class ImageFiles:
    """Reads image files; relative paths are relative to `folder`. Digests are remembered until a file changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digest = functools.lru_cache(maxsize=10_000)(self._read_digest)

    def digest(self, path: str) -> str | RowProblem:
        """Return the SHA-256 of an image file as hex, or why it can't be sent."""
        try:
            found = (self._folder / path).stat()
        except (OSError, ValueError) as error:
            return _unreadable(path, error)
        return self._digest(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))

    def _read_digest(self, path: str, _version: tuple[int, ...]) -> str | RowProblem:
        data = self._read(path)
        return data if isinstance(data, RowProblem) else hashlib.sha256(data).hexdigest()

    def data_url(self, path: str) -> str | RowProblem:
        """Return an image file as a `data:` URL, or why it can't be sent."""
        data = self._read(path)
        if isinstance(data, RowProblem):
            return data
        return f"data:{_media_type(data)};base64,{base64.b64encode(data).decode()}"

    def _read(self, path: str) -> bytes | RowProblem:
        try:
            with open(os.open(self._folder / path, _NON_BLOCKING), "rb") as file:  # noqa: PTH123  (a descriptor)
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return RowProblem("image_error", f"{path} is not a file")
                data = file.read(MAX_IMAGE_BYTES + 1)
        except (OSError, ValueError) as error:
            return _unreadable(path, error)
        if len(data) > MAX_IMAGE_BYTES:
            return RowProblem("image_error", f"{path} is larger than {MAX_IMAGE_BYTES >> 20} MB")
        if _media_type(data) is None:
            return RowProblem("image_error", f"{path} is not a PNG, JPEG, GIF or WebP image")
        return data


def _media_type(data: bytes) -> str | None:
    """Return an image's type by its first bytes; names lie."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((name for magic, name in _MAGIC if data.startswith(magic)), None)


def _unreadable(path: str, error: OSError | ValueError) -> RowProblem:
    why = error.strerror if isinstance(error, OSError) and error.strerror else "no such path"
    return RowProblem("image_error", f"{path} can't be read: {why}")
