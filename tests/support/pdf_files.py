"""PDFs for tests: made as those of sample_data, and such that can't be read."""

import base64
import io
import runpy
from pathlib import Path
from typing import Any

import pypdf

_MAKER = Path(__file__).resolve().parents[2] / "sample_data" / "make_invoices.py"
_MADE = runpy.run_path(str(_MAKER))


def pdf(*lines: str) -> bytes:
    """Return a PDF of one page with these lines."""
    made: bytes = _MADE["pdf"](lines)
    return made


def invoice(number: int) -> bytes:
    """Return an invoice with its number and a total of a hundredth of it."""
    return pdf("INVOICE", f"Number: {number}", f"Total: {number / 100}")


def pages(number: int) -> bytes:
    """Return a PDF of that many pages."""
    writer = pypdf.PdfWriter()
    for _ in range(number):
        writer.append(io.BytesIO(invoice(number)))
    written = io.BytesIO()
    writer.write(written)
    return written.getvalue()


def encrypted(data: bytes) -> bytes:
    """Return a PDF that opens with a password alone."""
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(data))
    writer.encrypt("secret", algorithm="RC4-128")
    written = io.BytesIO()
    writer.write(written)
    return written.getvalue()


def read_parts(body: dict[str, Any]) -> str:
    """Return all text that a request shows a model: of its text parts, and of its PDFs, decoded by pypdf."""
    texts: list[str] = []
    for message in body["messages"]:
        content = message["content"]
        texts += [content] if isinstance(content, str) else map(_text_of, content)
    return "\n".join(texts)


def _text_of(part: dict[str, Any]) -> str:
    return part["text"] if part["type"] == "text" else _decoded(part["file"]["file_data"])


def _decoded(file_data: str) -> str:
    data = base64.b64decode(file_data.removeprefix("data:application/pdf;base64,"), validate=True)
    return "\n".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(data)).pages)
