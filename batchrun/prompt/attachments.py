"""Local images and PDFs: their digests, their `data:` URLs, and the text of a PDF."""

import base64
import functools
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchrun.prompt.templates import PromptError

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
_PDF, _PDF_BEGINS_WITHIN = b"%PDF-", 1024
_MAX_URL_EXTRA = 100  # the characters of a data: URL before its data
_PDF_URL = "data:application/pdf;base64,"
_NON_BLOCKING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # a pipe in place of a file must not hang the run


@dataclass(frozen=True, slots=True)
class Kind:
    """What a part of a message may attach.

    `error_type` is the name in the table of codes of a file that can't be sent, `max_bytes` the largest file;
    `media_type` returns the type of a file by its bytes, None where it is not `wanted`.
    """

    noun: str
    wanted: str
    error_type: str
    max_bytes: int
    media_type: Callable[[bytes], str | None]

    def error(self, message: str) -> PromptError:
        """Return the error of a row whose attachment can't be sent."""
        return PromptError(message, self.error_type)

    def is_url(self, written: str) -> bool:
        """Check whether an attachment is a URL rather than the path of a file. Raises PromptError for neither."""
        if not written:
            raise self.error(f"the {self.noun}'s path is empty")
        longest = self.max_bytes * 4 // 3 + _MAX_URL_EXTRA
        if len(written) > longest:
            raise self.error(f"the {self.noun} has {len(written):,} characters; the most is {longest:,}")
        return written[:8].lower().startswith(("http://", "https://", "data:"))


def _image_type(data: bytes) -> str | None:
    """Return an image's type by its first bytes; names lie."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((name for magic, name in _MAGIC if data.startswith(magic)), None)


def _pdf_type(data: bytes) -> str | None:
    # Mail gateways and web servers put a few lines before the header; every reader looks past them.
    return "application/pdf" if _PDF in data[:_PDF_BEGINS_WITHIN] else None


IMAGE = Kind("image", "a PNG, JPEG, GIF or WebP image", "image_error", 20 * 2**20, _image_type)
PDF = Kind("PDF", "a PDF", "file_error", 32 * 2**20, _pdf_type)


class LocalFiles:
    """Reads attached files; relative paths are relative to `folder`. Digests are remembered until a file changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digest = functools.lru_cache(maxsize=10_000)(self._read_digest)
        # A preview asks for the text of one row several times, one after the other.
        self._text = functools.lru_cache(maxsize=4)(self._read_text)
        self._pages = functools.lru_cache(maxsize=10_000)(self._read_pages)

    def digest(self, path: str, kind: Kind) -> str:
        """Return the SHA-256 of a file as hex. Raises PromptError where it can't be sent."""
        return self._digest(path, kind, self._version(path, kind))

    def data_url(self, path: str, kind: Kind) -> str:
        """Return a file as a `data:` URL. Raises PromptError where it can't be sent."""
        data, media_type = self._read(path, kind)
        return f"data:{media_type};base64,{base64.b64encode(data).decode()}"

    def text(self, written: str) -> str:
        """Return the text of a PDF, by path or `data:` URL. Raises PromptError where it has none that can be read."""
        if PDF.is_url(written):
            return _text_of(pdf_of(written), "the PDF")
        return self._text(written, self._version(written, PDF))

    def pages(self, written: str) -> int:
        """Return the number of pages of a PDF; 0 where nobody knows: a URL, a file that pypdf can't read.

        Raises PromptError where the file can't be sent.
        """
        if PDF.is_url(written):
            return 0
        return self._pages(written, self._version(written, PDF))

    def _version(self, path: str, kind: Kind) -> tuple[int, ...]:
        try:
            now = (self._folder / path).stat()
        except (OSError, ValueError) as error:
            raise _unreadable(path, kind, error) from None
        # ctime as well: `cp -p` over a file keeps its size and mtime.
        return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns

    def _read_digest(self, path: str, kind: Kind, _version: tuple[int, ...]) -> str:
        return hashlib.sha256(self._read(path, kind)[0]).hexdigest()

    def _read_text(self, path: str, _version: tuple[int, ...]) -> str:
        return _text_of(self._read(path, PDF)[0], path)

    def _read_pages(self, path: str, _version: tuple[int, ...]) -> int:
        from batchrun.prompt.pdf import count_pages  # noqa: PLC0415  (pypdf belongs to an extra)

        return count_pages(self._read(path, PDF)[0])

    def _read(self, path: str, kind: Kind) -> tuple[bytes, str]:
        """Return a file's bytes and its media type."""
        try:
            # One byte more than is taken shows that a file is too large, also one that grows while it is read.
            with open(os.open(self._folder / path, _NON_BLOCKING), "rb") as file:  # noqa: PTH123  (a descriptor)
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise kind.error(f"{path} is not a file")
                data = file.read(kind.max_bytes + 1)
        except (OSError, ValueError) as error:
            raise _unreadable(path, kind, error) from None
        if len(data) > kind.max_bytes:
            raise kind.error(f"{path} is larger than {kind.max_bytes >> 20} MB")
        media_type = kind.media_type(data)
        if media_type is None:
            raise kind.error(f"{path} is not {kind.wanted}")
        return data, media_type


def pdf_of(url: str) -> bytes:
    """Return the PDF in a `data:` URL. Raises PromptError for any other URL: nothing is downloaded."""
    if not url.lower().startswith("data:"):
        message = "only the server can fetch a URL: download the file and write its path, or remove text: extracted"
        raise PDF.error(message)
    try:
        data = base64.b64decode(url.removeprefix(_PDF_URL), validate=True)
    except ValueError:
        raise PDF.error(f"the data: URL is not base64, or does not begin with {_PDF_URL}") from None
    if _pdf_type(data) is None:
        raise PDF.error("the data: URL does not hold a PDF")
    return data


def _text_of(data: bytes, name: str) -> str:
    from batchrun.prompt.pdf import extract_text  # noqa: PLC0415  (pypdf belongs to an extra)

    return extract_text(data, name)


def _unreadable(path: str, kind: Kind, error: OSError | ValueError) -> PromptError:
    why = getattr(error, "strerror", None) or "no such path"
    return kind.error(f"{path} can't be read: {why}")
