"""Command-line entry point: runs a command and turns every problem into one line and an exit code."""

import gc
import os
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

from batchrun.errors import BatchrunError, ExitCode, JobFileError, Terminated, places_reported
from batchrun.terminal import coloured, dated, lines

STDERR = 2
GC_THRESHOLD = 200_000
"""New objects, beyond those freed, after which the garbage collector looks for cycles. It walks all modules and all
requests in flight, for little: no row makes a cycle (docs/explanation/performance.md)."""


INSTEAD = {
    "--dry-run": "`batchrun preview JOB` shows the requests and sends nothing",
    "--verbose": "--log FILE writes every event as a JSON line",
    "-v": "--log FILE writes every event as a JSON line",
    "-V": "write --version",
    "-o": "a run writes the job's output.path, or --output FILE",
}
"""Flags of other programs, and what to write here."""


def main() -> NoReturn:
    """Run the command line; end the process with its exit code."""
    gc.set_threshold(GC_THRESHOLD)
    _open_standard_streams()
    code = _guarded(sys.argv[1:])
    gc.freeze()  # else the interpreter looks for cycles among all modules as it ends: a quarter of a short command
    sys.exit(code)


def _open_standard_streams() -> None:
    """Open what the caller closed (`2>&-`): else the next file would get its number, and be written to as stderr."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  (open until the end)


def _guarded(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    try:
        from batchrun.cli import cli  # noqa: PLC0415  (an interrupt while importing ends as cleanly as any other)

        with places_reported():
            return int(cli.main(arguments, prog_name="batchrun", standalone_mode=False) or 0)
    except BatchrunError as problem:
        if debug:
            traceback.print_exc()
        # An editor finds the place of a mistake at the beginning of its line.
        _say(problem.line if isinstance(problem, JobFileError) else dated(problem.line))
        return problem.exit_code
    except KeyboardInterrupt as interrupt:
        return _interrupted(interrupt)
    except Exception as problem:  # noqa: BLE001  (the last line of defence: a bug becomes one line)
        return _other(problem, debug=debug)


def _interrupted(interrupt: KeyboardInterrupt) -> int:
    _say(dated("interrupted; the same command resumes"))
    return ExitCode.SIGTERM if isinstance(interrupt, Terminated) else ExitCode.SIGINT


def _other(problem: Exception, *, debug: bool) -> int:
    import click  # noqa: PLC0415  (not needed on the good path)

    if isinstance(problem, click.exceptions.Abort):
        return _interrupted(KeyboardInterrupt())
    if isinstance(problem, click.exceptions.Exit):
        return problem.exit_code
    if isinstance(problem, click.exceptions.NoArgsIsHelpError):
        problem.show()
        return problem.exit_code
    if isinstance(problem, click.ClickException):
        if isinstance(problem, click.NoSuchOption) and problem.option_name in INSTEAD:
            _say(f"error: there is no {problem.option_name}: {INSTEAD[problem.option_name]}")
            return problem.exit_code
        message = problem.format_message().rstrip(".")
        if (context := getattr(problem, "ctx", None)) is not None:
            message += f" (see `{context.command_path} --help`)"
        _say(dated(f"error: {message}"))
        return problem.exit_code
    if debug:
        traceback.print_exc()
    what = f"{type(problem).__name__}: {problem}"
    _say(dated(f"internal error: {what}. Please report this with the output of --debug."))
    return ExitCode.BUG


def _say(line: str) -> None:
    with suppress(OSError):  # stderr is gone; the exit code remains
        sys.stderr.write(f"{coloured(lines(line), sys.stderr)}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    main()
