"""Text for a terminal."""

import io
import json
import sys

import pytest

from batchrun.cli.arguments import print_json, print_out
from batchrun.terminal import plural, wrapped


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "row", "1 row"),
        (0, "row", "0 rows"),
        (1_200, "distinct question", "1,200 distinct questions"),
        (2, "reply", "2 replies"),
        (2, "day", "2 days"),
        (2, "batch", "2 batches"),
    ],
)
def test_a_count_agrees_with_its_noun(number: int, noun: str, text: str) -> None:
    """One of a thing is singular; any other number has thousands separated and the noun's plural."""
    assert plural(number, noun) == text


@pytest.mark.parametrize(("encoding", "text"), [("ascii", "\\xe9 \\u0142"), ("latin-1", "é \\u0142"), ("utf-8", "é ł")])
def test_a_terminal_without_a_letter_shows_its_escape(
    monkeypatch: pytest.MonkeyPatch, encoding: str, text: str
) -> None:
    """ASCII and Latin-1 terminals get an escape in place of a letter that they do not have; nothing fails."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    print_out("é ł")
    stream.seek(0)
    assert stream.read() == f"{text}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_stays_json_on_any_terminal(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    r"""A letter that the terminal does not have is written as JSON's escape; \xe9 would be none."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    print_json({"label": "é ł"})
    stream.seek(0)
    assert json.load(stream) == {"label": "é ł"}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_long_lines_break_between_words_and_commands_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a narrow terminal no word is cut; a command that is there to be pasted stays in one line, and so do pipes."""
    monkeypatch.setenv("COLUMNS", "40")
    text = "  1 truncated: the answer was cut off at max_tokens\n  next    batchrun folder/reviews.yaml   asks the rest"
    assert wrapped(text, _Terminal()).split("\n") == [
        "  1 truncated: the answer was cut off",
        "    at max_tokens",
        "  next    batchrun folder/reviews.yaml   asks the rest",
    ]
    assert wrapped(text, io.StringIO()) == text
