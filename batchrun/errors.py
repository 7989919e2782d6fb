"""Problems that end a run, each with its exit code.

Exceptions are for people: their text is the one line that is printed. A failing row is never an exception
(it is a value, see records.py).

    BatchrunError            70  a bug of ours when raised bare
    ├── UserError             2  the command, the job file, the key or the input is wrong
    │   ├── JobFileError      2  mistakes in a job file, all together
    │   ├── InputError        2  an input file that can't be read as rows
    │   └── ConfirmError      2  the run would cost much, or pay again for answered rows; --yes is needed
    ├── StorageError          5  the disk or the output
    │   └── CheckpointError   5  a checkpoint that is damaged, foreign, or newer than this program
    ├── SenderError           5  a child process or the senders are gone
    └── BusyError            75  this job is already running
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

_LONGEST_WORD = 60
_LISTED = 10  # names in a message


class ExitCode:
    """What the process returns to cron and scripts: docs/reference/commands.md lists them."""

    DONE: ClassVar[int] = 0
    SOME_FAILED: ClassVar[int] = 1
    USER: ClassVar[int] = 2
    STOPPED_BY_API: ClassVar[int] = 3
    STOPPED_BY_LIMIT: ClassVar[int] = 4
    STORAGE: ClassVar[int] = 5
    WAITING: ClassVar[int] = 6
    BUG: ClassVar[int] = 70
    BUSY: ClassVar[int] = 75
    SIGINT: ClassVar[int] = 130
    SIGTERM: ClassVar[int] = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP outside the sending; like Ctrl-C, with its own exit code."""


class BatchrunError(Exception):
    """The root of all problems that end a run."""

    exit_code: ClassVar[int] = ExitCode.BUG

    @property
    def line(self) -> str:
        """The text that is printed."""
        return f"error: {self}"


class UserError(BatchrunError):
    """The command, the job file, the key or the input is wrong; nothing was sent.

    `quotes_data`: the text may quote a row or a server, which the log for machines never does.
    """

    exit_code = ExitCode.USER

    def __init__(self, message: str, *, quotes_data: bool = False) -> None:
        super().__init__(message)
        self.quotes_data = quotes_data


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One mistake in a job file: where (1-based line and column, 0 where unknown) and what.

    `flag` is the flag of the command that set this part of the job, in place of the file.
    """

    line: int
    column: int
    message: str
    flag: str = ""

    def at(self, path: str) -> str:
        """Return the line that is printed, `jobs/x.yaml:12:3: …` or `--set input.path=x.csv: …`."""
        if self.flag:
            return f"{self.flag}: {self.message}"
        if self.line:
            path = f"{path}:{self.line}:{self.column}"
        return f"{path}: {self.message}"


class JobFileError(UserError):
    """Mistakes in a job file, all together."""

    def __init__(self, path: str, mistakes: tuple[Mistake, ...], *, quotes_data: bool = False) -> None:
        self.path = path
        self.mistakes = tuple(sorted(mistakes))
        super().__init__("\n".join(mistake.at(path) for mistake in self.mistakes), quotes_data=quotes_data)

    def __reduce__(self) -> tuple[object, ...]:
        """Return how another process makes it again: a pool of processes waits for ever for what it can't read."""
        return type(self), (self.path, self.mistakes), self.__dict__

    @property
    def line(self) -> str:
        """The mistakes, each of which begins with its place, so that editors find it."""
        return str(self)


class InputError(UserError):
    """An input file that can't be read as rows; the text names file, line and the option to set."""

    def __init__(self, message: str) -> None:
        super().__init__(message, quotes_data=True)


class ConfirmError(UserError):
    """The run would cost much without a cap, or ask many answered rows again; --yes is needed."""


class StorageError(BatchrunError):
    """The disk is full or failing, or the output can't be written."""

    exit_code = ExitCode.STORAGE


class CheckpointError(StorageError):
    """A checkpoint that is damaged, not ours, or written by a newer batchrun."""


@contextmanager
def places_reported() -> Iterator[None]:
    """Turn a file that this user may not read, and a working directory that was removed, into a UserError."""
    try:
        yield
    except PermissionError as problem:
        if problem.filename is None:
            raise
        # cron ran the job as another user, and its checkpoint's folder is for that user alone.
        raise UserError(
            f"{problem.filename}: {problem.strerror}: run as the user who owns it, or change its permissions"
        ) from problem
    except FileNotFoundError as problem:
        if problem.filename is not None:  # os.getcwd names none
            raise
        raise UserError("the working directory was removed: change to another one") from problem


class SenderError(BatchrunError):
    """A server of ours (local model, simulator) or the senders are gone."""

    exit_code = ExitCode.STORAGE


class BusyError(BatchrunError):
    """Another run of this job is running."""

    exit_code = ExitCode.BUSY


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant, in any case; None where no word is near."""
    by_folded = {name.casefold(): name for name in known}
    # The search takes a time that grows with the square of the length; nobody misspells a word of 60 characters.
    # difflib's own bound of 0.6: below it names are only random neighbours.
    near = difflib.get_close_matches(word[:_LONGEST_WORD].casefold(), by_folded, n=1)
    return by_folded[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `, did you mean "x"?` for the known word that was probably meant, else an empty text."""
    if meant := nearest(word, known):
        return f', did you mean "{meant}"?'
    return ""


def known_names(name: str, known: Sequence[str]) -> str:
    """Return `did_you_mean` of a name that a file does not have, else the first of those that it has."""
    listed = ", ".join(known[:_LISTED])
    if len(known) > _LISTED:
        listed += ", …"
    return did_you_mean(name, known) or f"; it has {listed}"
