"""The command line: its commands, imported when they are used, and its help."""

import importlib
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from click_default_group import DefaultGroup

from batchrun._version import __version__
from batchrun.errors import did_you_mean

COMMANDS = {
    "run": "Run or resume a job (the default: `batchrun JOB`).",
    "retry": "Re-ask rows that failed permanently, then continue like `run`.",
    "check": "Check everything that can be checked without calling the model.",
    "preview": "Show the exact requests, their number and likely cost.",
    "status": "Show where a job stands: rows, errors, money, runs.",
    "show": "Show inputs and answers as a table in the terminal.",
    "eval": "Compare answers with gold: accuracy, labels, confusions.",
    "compare": "Compare two jobs on the same rows, also with gold.",
    "correct": "Take corrected and confirmed answers from an edited file.",
    "export": "Write the answers so far to the output, even during a run.",
    "report": "Write one HTML page: answers, errors, money, a table of rows.",
    "init": "Write a commented job file for an input file.",
    "prune": "Delete old answers that no row needs any more.",
    "simulate": "Serve an OpenRouter simulator on loopback, for trials.",
    "schema": "Print the job file's JSON Schema, for editors.",
}


class Commands(DefaultGroup):  # type: ignore[misc]  # click-default-group has no type information
    """Finds commands by name without importing them, so that help is quick."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import the file of one command; an unknown word is a job for `run`."""
        if name not in COMMANDS:
            context.arg0 = name  # type: ignore[attr-defined]  # click-default-group's way to hand the word on
            name = self.default_cmd_name
        # One command's file alone: `batchrun --help` must not wait half a second for Polars.
        command: click.Command = importlib.import_module(f"batchrun.cli.{name}").command
        return command

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:  # noqa: ANN401  (click's own type)
        """Refuse a mistyped command; a word with a dot or a slash is a job file."""
        # `batchrun reprot j.yaml` is a mistyped command, `batchrun reports.yaml` a job, `batchrun reports` a folder.
        word = args[0] if args else ""
        near = did_you_mean(word, COMMANDS)
        if near and word not in COMMANDS and "." not in word and "/" not in word and not Path(word).is_dir():
            raise click.UsageError(f'no such command "{word}"{near}')
        return super().resolve_command(context, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer commands, and job files for the command that may be left out."""
        items: list[CompletionItem] = [
            CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)
        ]
        run = self.get_command(ctx, self.default_cmd_name)
        if run is None or incomplete.startswith("-"):
            return [*items, *click.Command.shell_complete(self, ctx, incomplete)]
        argument = next(param for param in run.params if isinstance(param, click.Argument))
        return [*items, *argument.shell_complete(ctx, incomplete)]

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing any of them."""
        # click's own way would import each command for its help.
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=Commands,
    default="run",
    default_if_no_args=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""Begin with `batchrun init FILE`, look with `batchrun preview JOB`, then run `batchrun JOB`.

\b
Exit codes:
  0         done
  1         some rows failed
  2         usage or configuration error
  3         stopped by the API
  4         stopped by a limit of the job
  5         disk, checkpoint or helper process failed
  6         waiting for a provider's batch; the same command collects it
  70        internal error
  75        this job is already running
  130, 143  interrupted

After 3, 4, 5, 6, 130 and 143 the same command resumes the job. Where the last lines name something
to correct (a key, a limit, a full disk), correct it first.""",
)
@click.version_option(__version__, prog_name="batchrun")
def cli() -> None:
    """Ask a language model one question per row of a file, and write the answers back as new columns.

    `batchrun JOB.yaml` sends only new and changed rows: answers are saved in a checkpoint as they arrive. The same
    command resumes an interrupted run, and does nothing when every row is answered.
    """
