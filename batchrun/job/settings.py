"""Settings from outside of the job file: the variables of the process and of .env files, and the flags of a run.

A flag wins over the file, and a variable of the process over .env; below here nobody asks where a value came from.
"""

import os
import re
import shlex
import shutil
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Literal

from dotenv import dotenv_values

from batchrun.errors import UserError
from batchrun.terminal import running_program, writes_log

PROCESS = "the environment"

_ASKED = re.compile(r"(prompt|answer|input|dedupe|model\.(name|fallbacks|params|identity))(?![^.])")
_NOT_ASKED = re.compile(
    r"answer\.repairs|model\.params\.(max_tokens|max_completion_tokens|provider|user|metadata)(\..*)?"
)
"""Keys of --set that change what rows ask, and those among them that do not."""

PipeFormat = Literal["csv", "tsv", "jsonl"]
"""What goes through a pipe."""


class Environment(Mapping[str, str]):
    """Variables by name; can't be changed, and shows no value in its repr."""

    def __init__(self, sources: Mapping[str, Mapping[str, str]]) -> None:
        """Merge sources by their names for people; an earlier one wins."""
        self._values = dict(ChainMap(*map(dict, sources.values())))
        self._origins = dict(ChainMap(*(dict.fromkeys(names, origin) for origin, names in sources.items())))

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Environment({len(self)} variables)"

    def origin(self, name: str) -> str:
        """Return where a variable came from: `the environment` or a .env file's path; KeyError for an unknown one."""
        return self._origins[name]


def read_environment(folder: Path, cwd: Path, process: Mapping[str, str]) -> Environment:
    """Read .env in the job file's folder and in the working directory; the process's own variables win over both.

    Raises UserError where a .env file can't be read.
    """
    files = (folder / ".env", cwd / ".env")
    return Environment({PROCESS: process} | {str(file): _variables(file) for file in files if file.is_file()})


def _variables(file: Path) -> dict[str, str]:
    """Read a .env file as it is written: a $ in a key stays a $."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}") from None
    # With interpolation the key `sk-a${b}` would be read as `sk-a`.
    values = dotenv_values(stream=StringIO(text), interpolate=False)
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The flags of a run; None where one is not given.

    `settings` are `KEY=VALUE` of --set, `input` is a path as the caller's folder sees it, `retry` are error types,
    empty for all. `spent` are the USD of `max_cost` that earlier jobs of the same command may have spent.
    An input or an output `-` is a standard stream: a file in the folder `pipes` stands for it, in the `format`.
    """

    limit: int | None = None
    max_cost: Decimal | None = None
    spent: Decimal = Decimal(0)
    concurrency: int | None = None
    sample: int | None = None
    settings: tuple[str, ...] = ()
    endpoint: str | None = None
    model: str | None = None
    input: str | None = None
    variant: str | None = None
    api_key_env: str | None = None
    engine: Literal["local", "ray", "batch"] | None = None
    wait: str | None = None
    output: Path | None = None
    fresh: bool = False
    yes: bool = False
    retry: frozenset[str] | None = None
    format: PipeFormat | None = None
    pipes: Path | None = None

    @property
    def reads_stdin(self) -> bool:
        """Whether the rows come through standard input."""
        return self.input == "-"

    @property
    def writes_stdout(self) -> bool:
        """Whether the output goes to standard output."""
        return self.output == Path("-")

    @property
    def is_partial(self) -> bool:
        """Whether only some of the open questions are to be asked."""
        return self.limit is not None or self.sample is not None

    @property
    def wording(self) -> str | None:
        """The first of the settings that changes what rows ask, None where none does.

        With another model or endpoint, which have a checkpoint of their own, the mode belongs to these: a chat model
        can't be asked as a decision model.
        """
        keys = [setting.partition("=")[0] for setting in self.settings]
        if self.model is not None or self.endpoint is not None:
            keys = [key for key in keys if key != "answer.mode"]
        return next((key for key in keys if _ASKED.match(key) and not _NOT_ASKED.fullmatch(key)), None)


def command_line(job: str, options: RunOptions, verb: str = "", *, more: Sequence[str] = ()) -> str:
    """Return the command that runs a job file, and `more` of them, again with these flags, quoted for a shell.

    --fresh, --yes and what `retry` reopened have had their effect: repeating them would pay again. Where --yes let a
    setting change the questions, the command needs it each time. In a log, which does not say the working directory,
    its paths are absolute.
    """
    flags = {
        "--endpoint": options.endpoint,
        "--model": options.model,
        "--input": options.input and _from_anywhere(options.input),
        "--variant": options.variant,
        "--api-key-env": options.api_key_env,
        "--engine": options.engine,
        "--wait": options.wait,
        "--concurrency": options.concurrency,
        "--max-cost": options.max_cost,
        "--limit": options.limit,
        "--sample": options.sample,
        "--output": options.output and _from_anywhere(str(options.output)),
        "--format": options.format,
    }
    jobs = map(_from_anywhere, (job, *more))
    words = [_program(), *verb.split(), *(f"./{one}" if one.startswith("-") else one for one in jobs)]
    for setting in options.settings:
        words += ["--set", setting]
    for flag, value in flags.items():
        if value is not None:
            words += [flag, str(value)]
    # `--set prompt.user=… --yes`: without it the offered command would end with a question.
    if options.yes and options.wording is not None and options.variant is None:
        words.append("--yes")
    return shlex.join(words)


def _program() -> str:
    """Return the word that starts this program in a shell: its path where PATH leads to none or to another one."""
    program, found = running_program(), shutil.which("batchrun")
    # cron runs /srv/venv/bin/batchrun. `python -m batchrun` has no file of its own that a shell could start.
    if program is None or program.suffix or (found and Path(found).resolve() == program.resolve()):
        return "batchrun"
    return str(program)


def _from_anywhere(path: str) -> str:
    """Return a path of the command line, absolute in a log; `-` is a standard stream."""
    return path if path == "-" or not writes_log() else os.path.abspath(path)  # noqa: PTH100  (resolves `..` alone)
