"""The argument JOB and the loading of its file, shared by the commands; heavy rooms are imported when called."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import fields, is_dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from batchrun.cli import termination
from batchrun.errors import StorageError, UserError, nearest
from batchrun.money import positive_usd
from batchrun.terminal import coloured, encodable, lines

if TYPE_CHECKING:
    from batchrun.job import RunOptions
    from batchrun.prepare import Invocation
    from batchrun.report import OpenJob, Table

Flags = Callable[[Callable[..., None]], Callable[..., None]]
"""A decorator that adds options to a command."""

SUFFIXES = (".yaml", ".yml")
# `batchrun reviews.csv` is what a newcomer types first: it is answered with `batchrun init`.
_DATA = {".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow", ".xlsx", ".json", ".gz", ".zst", ".sqlite"}


class JobPath(click.ParamType[Path]):
    """A job file, or also a folder of them; the shell completes YAML files."""

    name = "job"

    def __init__(self, *, folders: bool = False) -> None:
        self._folders = folders

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ANN401, ARG002  (click's signature)
        """Return the path; UserError for a missing file, with the nearest name in its folder."""
        path = Path(value)
        # `batchrun "$JOB"` without the variable would run every job of the working directory.
        if not str(value):
            raise UserError("the name of the job file is empty")
        if path.is_dir():
            if self._folders:
                return path
            raise UserError(f"{path} is a directory; name a job file in it, such as {path}/x.yaml")
        # A broken link exists: reading it reports the reason.
        if not os.path.lexists(path):
            hint = "`batchrun init FILE` writes one for an input"
            jobs = {file.stem: file for file in path.parent.glob("*") if file.suffix in SUFFIXES}
            # `batchrun init` writes to the folder jobs where there is one.
            if os.path.lexists(inner := path.parent / "jobs" / path.name):
                hint = f"did you mean {inner}?"
            elif near := nearest(path.stem, jobs):
                hint = f"did you mean {jobs[near]}?"
            raise UserError(f"no such job file: {path}; {hint}")
        if path.suffix.lower() in _DATA:
            raise UserError(
                f"{path} is not a job file; `{shlex.join(['batchrun', 'init', str(path)])}` writes one for it"
            )
        return path

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002  (click's signature)
        """Return job files, also those one folder down."""
        folder, slash, start = incomplete.rpartition("/")
        found = [entry for entry in Path((folder + slash) or ".").glob("*") if entry.name.startswith(start)]
        files = [entry for entry in found if entry.suffix in SUFFIXES]
        for entry in found:
            if entry.is_dir() and not entry.name.startswith("."):
                files += (inner for inner in entry.glob("*") if inner.suffix in SUFFIXES)
        return [CompletionItem(str(file)) for file in sorted(files)]


class Money(click.ParamType[Decimal]):
    """An amount in USD, exact."""

    name = "usd"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:  # noqa: ANN401  (click's signature)
        """Return the amount, which is positive."""
        try:
            return positive_usd(value)
        except ValueError as problem:
            self.fail(str(problem), param, ctx)


def flags(*options: Flags) -> Flags:
    """Return one decorator for several, in the order in which the help shows them."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


job_argument = click.argument("job", type=JobPath(), metavar="JOB")
jobs_argument = click.argument("jobs", type=JobPath(folders=True), metavar="JOB...", nargs=-1, required=True)
debug_option = click.option("--debug", is_flag=True, help="Show tracebacks.")


def load(path: Path, options: "RunOptions", *, reads: bool = False, quiet: bool = False) -> "Invocation":
    """Read a job file and its environment, and return the flags with those of the trial that they name.

    `reads`: for a command that sends nothing; `quiet`: without notices. Raises JobFileError with all mistakes.
    """
    from batchrun.prepare import load_file

    # Opening an input may take minutes; a SIGTERM in them must still remove temporary files.
    termination.raise_on_termination()
    # cron would mail a line about a trial's flags each night.
    say = (lambda _: None) if quiet else print_err
    return load_file(path, os.environ, Path.cwd(), options, reads=reads, say=say)


job_options = flags(
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set a key of the job file, such as limits.timeout=9.",
    ),
    click.option("--endpoint", metavar="E", help="Another endpoint, with a checkpoint and an output of its own."),
    click.option("--model", metavar="NAME", help="Another model, with a checkpoint and an output of its own."),
    click.option(
        "--input", metavar="FILE", help="Another input, with a checkpoint and an output of its own; - for stdin."
    ),
    click.option("--variant", metavar="NAME", help="A checkpoint and an output of this name, for trials with --set."),
    click.option("--api-key-env", metavar="V", help="The environment variable with the key."),
    debug_option,
)
"""The flags that change a job, so that each command sees the job that a run with the same flags asks."""


sample_option = click.option(
    "--sample", type=click.IntRange(min=1), metavar="N", help="Ask N questions spread over the whole input."
)
format_option = click.option(
    "--format",
    type=click.Choice(["csv", "tsv", "jsonl"]),
    help="The format of - (stdin and stdout); detected when absent.",
)


def run_options(*, debug: bool = False, **flags: Any) -> "RunOptions":  # noqa: ANN401, ARG001  (debug: __main__ reads it)
    """Return the flags of `job_options`, and of a run, as they were given."""
    from batchrun.job import RunOptions

    return RunOptions(**flags)


run_flags = flags(
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        metavar="N",
        help="Ask at most N questions in this run.",
    ),
    sample_option,
    click.option("--max-cost", type=Money(), metavar="USD", help="Hard cap on what this run may spend."),
    click.option("--concurrency", type=click.IntRange(1, 20_000), metavar="N", help="At most N requests in flight."),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray", "batch"]),
        help="Send from this process, from Ray actors, or in the provider's batches at half price.",
    ),
    click.option("--wait", metavar="TIME", help="With --engine batch: wait at most TIME for batches (0, 90s, 2h)."),
    click.option(
        "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the output to FILE; - for stdout."
    ),
    format_option,
    click.option("--fresh", is_flag=True, help="Start over with a new checkpoint; the old one is kept."),
    click.option(
        "--yes", is_flag=True, help="Confirm beforehand that many answered rows are re-asked, or much is paid."
    ),
    click.option("--quiet", is_flag=True, help="Print only problems."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout at the end."),
    click.option(
        "--log",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Append JSON lines to FILE.",
    ),
    job_options,
)
"""The flags of a run."""


def print_out(text: str) -> None:
    """Write a result to stdout. A reader who has enough (`| head`) changes no exit code.

    Raises StorageError where the disk behind it is full.
    """
    try:
        _write(text, sys.stdout)
    except BrokenPipeError:
        pass
    except OSError as problem:
        raise StorageError(f"standard output can't be written: {problem.strerror}") from None


def print_json(value: object) -> None:
    """Write a dict or a dataclass to stdout as one JSON object; amounts of money are numbers."""
    import orjson

    try:
        # orjson refuses a Decimal; as a float 0.000023 stays a number that jq can add up.
        text = orjson.dumps(value, default=float).decode()
        text.encode(sys.stdout.encoding or "utf-8")
    except (TypeError, UnicodeEncodeError):
        # A path in a folder whose name is not UTF-8, or a terminal in Latin-1: JSON has escapes of its own.
        text = json.dumps(value, default=_plain)
    print_out(text)


def _plain(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    if is_dataclass(value):  # without private fields, as orjson
        return {field.name: getattr(value, field.name) for field in fields(value) if not field.name.startswith("_")}
    return float(value)


def print_err(text: str) -> None:
    """Write lines to stderr with control characters escaped; a closed terminal changes no exit code."""
    with suppress(OSError):
        _write(lines(text), sys.stderr)


def _write(text: str, stream: IO[str]) -> None:
    """Write text with a line end. Raises OSError; nothing more is written to the stream then."""
    # A terminal in ASCII or Latin-1 shows letters that it does not have as escapes, as Python's stderr does.
    encoding: str = getattr(stream, "encoding", None) or "utf-8"
    text = coloured(encodable(text, encoding), stream)
    try:
        click.echo(text, file=stream)
    except OSError:
        # Not even from the buffer when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise


def print_parts(parts: "Iterable[str | Table]") -> None:
    """Write sentences and tables to stdout, as wide as the terminal."""
    from batchrun.report import rendered

    width, encoding = shutil.get_terminal_size().columns, sys.stdout.encoding or "utf-8"
    print_out("\n".join(rendered(parts, width, encoding)).rstrip())


def to_read(path: Path, **flags: Any) -> "Invocation":  # noqa: ANN401  (those of job_options)
    """Load a job for a command that sends nothing."""
    return load(path, run_options(**flags), reads=True)


def opened(path: Path, **flags: Any) -> "AbstractContextManager[OpenJob]":  # noqa: ANN401  (those of job_options)
    """Open a job's input and its checkpoint for reading, also during a run."""
    from batchrun.report import open_job

    return open_job(to_read(path, **flags))
