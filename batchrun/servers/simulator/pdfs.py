"""PDFs in a request: the text of simple ones, and the values on their lines "Name: value"."""

import base64
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_STREAM = re.compile(rb"stream\r?\n(.*?)\r?\nendstream", re.DOTALL)
_SHOWN = re.compile(rb"\(((?:[^()\\]|\\.)*)\)\s*Tj")
_LINE = re.compile(r"^([A-Za-z][A-Za-z ]*): *(.+?) *$", re.MULTILINE)


def text_of(file: Mapping[str, Any]) -> str:
    """Return the text of a PDF in a content part; empty for a URL, which nobody fetches.

    Raises ValueError for data that is not a PDF. Only texts that stand in the page's stream as they are can be read.
    """
    written = str(file["file_data"])
    if not written.startswith("data:"):
        return ""
    data = base64.b64decode(written.partition(";base64,")[2], validate=True)
    if b"%PDF-" not in data[:1024]:
        raise ValueError("not a PDF")
    lines: list[bytes] = []
    for stream in _STREAM.findall(data):
        content = stream
        with suppress(zlib.error):
            content = zlib.decompress(stream)
        lines += _SHOWN.findall(content)
    return re.sub(rb"\\(.)", rb"\1", b"\n".join(lines)).decode("latin-1")


def fill(value: Any, schema: Mapping[str, Any], text: str) -> Any:  # noqa: ANN401  (JSON)
    """Return an answer in which the values that a text holds replace those that were made up."""
    if not isinstance(value, dict):
        return value
    found = {name.lower().replace(" ", "_"): written for name, written in _LINE.findall(text)}
    return {name: _fitting(found.get(name), schema["properties"][name], made) for name, made in value.items()}


def _fitting(written: str | None, schema: Mapping[str, Any], made: Any) -> Any:  # noqa: ANN401  (JSON)
    """Return a written value as a property of the schema, or the made one where it does not fit."""
    if written is None:
        return made
    if "enum" in schema:
        return written if written in schema["enum"] else made
    options = [schema, *schema.get("anyOf", ())]
    kinds = {kind for one in options for kind in _kinds(one.get("type"))}
    with suppress(ValueError):
        if "integer" in kinds:
            return int(written)
        if "number" in kinds:
            return float(written)
    return written if "string" in kinds else made


def _kinds(kind: str | list[str] | None) -> list[str]:
    return [kind] if isinstance(kind, str) else kind or []
