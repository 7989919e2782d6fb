"""The text of a PDF, by pypdf; imported only for jobs that ask for it."""

import io
import logging

import pypdf
from pypdf.errors import DependencyError, FileNotDecryptedError

from batchrun.prompt.attachments import PDF
from batchrun.prompt.templates import MAX_PROMPT_BYTES, PromptError

_SCANNED = "has no text (a scan?): remove text: extracted and set engine: mistral-ocr, which reads scans"

logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it logs each oddity of a file to stderr


def extract_text(data: bytes, name: str) -> str:
    """Return the text of a PDF, pages apart by an empty line; `name` is what messages call the file.

    Raises PromptError (file_error) where it is damaged, needs a password or has no text, and request_too_large where
    the text is longer than a prompt may be.
    """
    try:
        text = _pages(data, name)
    except PromptError:
        raise
    except (FileNotDecryptedError, DependencyError):
        raise PDF.error(f"{name} is encrypted: remove its password, for example with qpdf --decrypt") from None
    except Exception as error:  # noqa: BLE001  (a damaged file raises anything, from KeyError to RecursionError)
        raise PDF.error(f"{name} is a damaged PDF ({type(error).__name__}): save it again from a PDF reader") from None
    if not text:
        raise PDF.error(f"{name} {_SCANNED}")
    return text


def count_pages(data: bytes) -> int:
    """Return the number of pages of a PDF, 0 where it is damaged or needs a password."""
    try:
        return len(pypdf.PdfReader(io.BytesIO(data)).pages)
    except Exception:  # noqa: BLE001  (as above)
        return 0


def _pages(data: bytes, name: str) -> str:
    pages: list[str] = []
    size = 0
    for page in pypdf.PdfReader(io.BytesIO(data)).pages:
        # Fonts without a table of their letters give lone halves of characters, which no JSON can hold.
        text = page.extract_text().encode("utf-8", "replace").decode().strip()
        size += len(text)
        if size > MAX_PROMPT_BYTES:
            raise PromptError(f"the text of {name} has more than {MAX_PROMPT_BYTES:,} characters", "request_too_large")
        if text:
            pages.append(text)
    return "\n\n".join(pages)
