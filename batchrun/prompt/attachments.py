"""Local image files: their digests and their `data:` URLs."""

import base64
import functools
import hashlib
import os
import stat
from pathlib import Path

from batchrun.prompt.templates import PromptError

MAX_IMAGE_BYTES = 20 * 2**20
"""The largest image, in bytes of its file."""

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

    def digest(self, path: str) -> str:
        """Return the SHA-256 of an image file as hex. Raises PromptError (image_error) where it can't be sent."""
        try:
            now = (self._folder / path).stat()
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None
        return self._digest(path, (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns))

    def _read_digest(self, path: str, _version: tuple[int, ...]) -> str:
        return hashlib.sha256(self._read(path)[0]).hexdigest()

    def data_url(self, path: str) -> str:
        """Return an image file as a `data:` URL. Raises PromptError (image_error) where it can't be sent."""
        data, media_type = self._read(path)
        return f"data:{media_type};base64,{base64.b64encode(data).decode()}"

    def _read(self, path: str) -> tuple[bytes, str]:
        """Return an image file's bytes and its media type."""
        try:
            with open(os.open(self._folder / path, _NON_BLOCKING), "rb") as file:  # noqa: PTH123  (a descriptor)
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise PromptError(f"{path} is not a file", "image_error")
                data = file.read(MAX_IMAGE_BYTES + 1)
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None
        if len(data) > MAX_IMAGE_BYTES:
            raise PromptError(f"{path} is larger than {MAX_IMAGE_BYTES >> 20} MB", "image_error")
        media_type = _media_type(data)
        if media_type is None:
            raise PromptError(f"{path} is not a PNG, JPEG, GIF or WebP image", "image_error")
        return data, media_type


def _media_type(data: bytes) -> str | None:
    """Return an image's type by its first bytes; names lie."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((name for magic, name in _MAGIC if data.startswith(magic)), None)


def _unreadable(path: str, error: OSError | ValueError) -> PromptError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else "no such path"
    return PromptError(f"{path} can't be read: {why}", "image_error")
