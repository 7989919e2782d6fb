"""Rows through standard input and answers through standard output: `--input -` and `--output -`."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from batchrun.cli import termination
from batchrun.cli.arguments import print_err
from batchrun.errors import StorageError

if TYPE_CHECKING:
    from batchrun.job import PipeFormat, RunOptions

_STDIN, _STDOUT = 0, 1
_BLOCK = 1 << 20


@contextmanager
def piped(options: "RunOptions") -> "Iterator[RunOptions]":
    """Read all of standard input into a private folder where `--input -` asks for it; return the flags with the folder.

    The folder is removed in the end. Raises StorageError where the disk is full.
    """
    from batchrun.table import PIPES

    if not (options.reads_stdin or options.writes_stdout):
        yield options
        return
    termination.raise_on_termination()
    with tempfile.TemporaryDirectory(prefix=PIPES) as folder:
        options = replace(options, pipes=Path(folder))
        if options.reads_stdin:
            options = replace(options, format=_spooled(Path(folder), options.format))
        yield options


def _spooled(folder: Path, kind: "PipeFormat | None") -> "PipeFormat":
    """Write standard input to a file; return its format: JSON Lines where it begins with a brace, else CSV."""
    if os.isatty(_STDIN):
        print_err("reading rows from the terminal; Ctrl-D ends them")
    with open(_STDIN, "rb", closefd=False) as stdin:
        start = stdin.read(_BLOCK)
        if kind is None:
            # Programs on Windows put a byte order mark first.
            kind = "jsonl" if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") else "csv"
        try:
            with (folder / f"stdin.{kind}").open("wb") as file:
                file.write(start)
                shutil.copyfileobj(stdin, file, _BLOCK)
        except OSError as problem:
            raise StorageError(f"standard input can't be kept in {folder}: {problem.strerror}") from None
    return kind


def write_stdout(path: Path) -> None:
    """Write a file to standard output. A reader who has enough (`| head`) changes no exit code.

    Raises StorageError where the disk behind it is full.
    """
    sys.stdout.flush()
    try:
        with path.open("rb") as file, open(_STDOUT, "wb", closefd=False) as stdout:
            shutil.copyfileobj(file, stdout, _BLOCK)
    except BrokenPipeError:
        # The interpreter flushes stdout at its end, and would report the closed pipe once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
    except OSError as problem:
        raise StorageError(f"standard output can't be written: {problem.strerror}") from None
