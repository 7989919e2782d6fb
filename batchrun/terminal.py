"""Text for a terminal: what a row or a model wrote can't move the cursor, change colours or reverse the line."""

import os
import re
import shutil
import sys
import textwrap
import time
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

# Controls, formats, private use, surrogates, and the separators of lines and paragraphs.
_UNSEEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    """Return text in one line with control, format and bidi characters written as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _UNSEEN:
        return character
    return character.encode("unicode_escape").decode("ascii")


def lines(text: str) -> str:
    """Return text whose lines stay lines, each of them printable."""
    return "\n".join(printable(line) for line in text.split("\n"))


def encodable(text: str, encoding: str) -> str:
    """Return text with the letters that an encoding does not have as escapes."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


_COLOURS = (
    (re.compile(r"^ok(?= )", re.MULTILINE), "32"),
    (re.compile(r"^warning\b", re.MULTILINE), "33"),
    (re.compile(r"^( *stopped|error|mistake)\b", re.MULTILINE), "31"),
    (re.compile(r"\b[1-9][\d,]* failed\b"), "31"),
)


def coloured(text: str, stream: IO[str]) -> str:
    """Return text with ok, failures and warnings in colour where the stream is a terminal and NO_COLOR is not set."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    for pattern, colour in _COLOURS:
        text = pattern.sub(lambda match, colour=colour: f"\x1b[{colour}m{match[0]}\x1b[0m", text)  # type: ignore[misc]
    return text


def wrapped(text: str, stream: IO[str]) -> str:
    """Return text with its long lines broken between words where the stream is a terminal; commands stay whole."""
    if not stream.isatty():
        return text
    width = max(shutil.get_terminal_size().columns - 1, _NARROWEST)
    return "\n".join(_filled(line, width) for line in text.split("\n"))


def _filled(line: str, width: int) -> str:
    if len(line) <= width or _COMMAND.search(line):  # a broken command can't be pasted
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


_NARROWEST = 20
_COMMAND = re.compile(r"batchrun'? ")


def short(text: str, width: int) -> str:
    """Return printable text of at most `width` characters."""
    shown = printable(text)
    return shown if len(shown) <= width else shown[: width - 1] + "…"


def aside(text: str) -> str:
    """Return a text in brackets, with a space before it; nothing for none."""
    return f" ({text})" if text else ""


def plural(number: int, noun: str) -> str:
    """Return a count with its noun: `1 row`, `2 rows`, `1,200 replies`. A phrase has its noun at its end."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{number:,} {noun[:-1]}ies"
    ending = "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{number:,} {noun}{ending}"


def duration(seconds: float) -> str:
    """Return a time span for people: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004  (seconds in a minute)
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:  # noqa: PLR2004  (minutes in an hour)
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def when(at: float) -> str:
    """Return a Unix time for people, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def running_program() -> Path | None:
    """Return the file of the command line that runs, None in a program that imports the package."""
    program = Path(sys.argv[0])
    is_ours = program.name == "batchrun" or program.parts[-2:] == ("batchrun", "__main__.py")
    return program.absolute() if is_ours and program.is_file() else None


def writes_log() -> bool:
    """Check whether what the command line prints goes to a file, a pipe or a mail, which does not name the folder."""
    return running_program() is not None and not sys.stderr.isatty()


def dated(text: str) -> str:
    """Return text that says in a log when it was written: cron's mails and files have no times of their own."""
    return f"{when(time.time())}  {text}" if writes_log() else text


def place(path: Path, cwd: Path) -> str:
    """Return a path as people in `cwd` would write it: relative where it is below; in a log as it is."""
    # cron starts in / or in a home folder: "written srv/jobs/out.csv" names no file.
    if cwd == Path(cwd.anchor) or writes_log() or not path.is_relative_to(cwd):
        return printable(str(path))
    return printable(str(path.relative_to(cwd)))
