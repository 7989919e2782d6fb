"""Several jobs in one command: which one comes first, and what a renamed output means for the jobs that read it."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from batchrun.errors import ExitCode, UserError
from batchrun.job import Environment, Job, Loaded, RunOptions, merged

WORST_FIRST = (
    ExitCode.SIGINT,
    ExitCode.SIGTERM,
    ExitCode.BUG,
    ExitCode.STORAGE,
    ExitCode.USER,
    ExitCode.STOPPED_BY_API,
    ExitCode.STOPPED_BY_LIMIT,
    ExitCode.BUSY,
    ExitCode.WAITING,
    ExitCode.SOME_FAILED,
    ExitCode.DONE,
)
"""Exit codes, worst first: several jobs end with the worst of theirs."""


@dataclass(frozen=True, slots=True)
class Link:
    """A job of a command with the flags that hold for it; `reads` are the jobs whose output is its input."""

    loaded: Loaded
    environment: Environment
    options: RunOptions
    reads: tuple["Link", ...] = ()

    @property
    def shown(self) -> str:
        """The job file as the user named it."""
        return self.loaded.shown

    @property
    def job(self) -> Job:
        """The job with its flags applied."""
        return merged(self.loaded.job, self.options)


def worst(codes: Sequence[int]) -> int:
    """Return the exit code of a command whose jobs ended with these."""
    return min(codes, key=WORST_FIRST.index, default=ExitCode.DONE)


Found = tuple[Loaded, Environment, RunOptions]
"""A job of a command with the flags that hold for it."""


def chain(found: Sequence[Found], options: RunOptions) -> list[Link]:
    """Return the jobs in the order in which they run: as given, but a job after those whose output it reads.

    `options` are the flags as they were given. Raises UserError for jobs that read each other's output in a circle,
    that write the same file, and for flags that are for one job alone.
    """
    if len(found) == 1:
        return [Link(*found[0])]
    for flag, value in (("--input", options.input), ("--output", options.output)):
        if value is not None:
            raise UserError(f"{flag} is for one job, and {len(found)} were named")
    links: dict[int, Link] = {}
    sources = [_sources(loaded.job, [other.job for other, *_ in found]) for loaded, *_ in found]
    while len(links) < len(found):
        ready = next((n for n in range(len(found)) if n not in links and sources[n] <= links.keys()), None)
        if ready is None:
            raise UserError(_circle(found, sources, links))
        links[ready] = _linked(*found[ready], [links[number] for number in sorted(sources[ready])])
    ordered = list(links.values())
    _refuse_shared_files(ordered)
    return ordered


def _sources(job: Job, jobs: Sequence[Job]) -> set[int]:
    """Return the numbers of the jobs whose output is an input of this one."""
    return {number for number, other in enumerate(jobs) if any(_is_read(job, other.output_path))}


def _is_read(job: Job, output: Path) -> Iterator[bool]:
    for pattern in job.input.patterns:
        path = _real(job.folder / Path(pattern).expanduser())
        if path == _real(output):
            yield True
        elif glob.has_magic(pattern):
            yield matches(_real(output), path)


def _real(path: Path) -> str:
    # Two names of one file, through a link or .., are one output.
    return os.path.realpath(path)


def matches(path: str, pattern: str) -> bool:
    """Check whether a glob means a file, which need not exist; only `**` crosses folders."""
    # PurePath.match reads ** as *, and fnmatch lets * cross folders.
    return fnmatchcase(path, pattern) if "**" in pattern else PurePath(path).match(pattern)


def _circle(found: Sequence[Found], sources: Sequence[set[int]], done: dict[int, Link]) -> str:
    number = next(number for number in range(len(found)) if number not in done)
    seen: list[int] = []
    while number not in seen:
        seen.append(number)
        number = min(sources[number] - done.keys())
    names = [found[one][0].shown for one in [*seen[seen.index(number) :], number]]
    return f"these jobs read each other's output in a circle, so none can be the first: {' reads '.join(names)}"


def _linked(loaded: Loaded, environment: Environment, options: RunOptions, reads: Sequence[Link]) -> Link:
    """Return a job that reads these; where a flag renamed their outputs, it reads the renamed ones."""
    job = loaded.job
    renamed = {_real(link.loaded.job.output_path): link.job.output_path for link in reads}
    renamed = {old: new for old, new in renamed.items() if old != _real(new)}
    patterns = [_real(job.folder / Path(pattern).expanduser()) for pattern in job.input.patterns]
    # Which of a glob's files to leave out can't be said, and the old output might lie among them.
    if missed := sorted(renamed.keys() - set(patterns)):
        raise UserError(
            f"the flags of this command rename {missed[0]}, which {loaded.shown} reads through a glob: name it in "
            "input.path, or run the jobs one by one"
        )
    if len(patterns) == 1 and renamed:
        options = replace(options, input=os.path.relpath(renamed[patterns[0]]))
    elif renamed:
        paths = tuple(str(renamed.get(path, path)) for path in patterns)
        loaded = replace(loaded, job=replace(job, input=replace(job.input, path=paths)))
    return Link(loaded, environment, options, tuple(reads))


def _refuse_shared_files(links: Sequence[Link]) -> None:
    seen: dict[str, Link] = {}
    for link in links:
        for name, path in (("output", link.job.output_path), ("checkpoint", link.job.checkpoint_path)):
            other = seen.setdefault(_real(path), link)
            if other is not link:
                raise UserError(f"{other.shown} and {link.shown} have the same {name} {path}: give each its own")
