"""Several jobs in one command: which one comes first, and what a renamed output means for the jobs that read it."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from batchrun.errors import ExitCode, UserError
from batchrun.job import Job, RunOptions, matches
from batchrun.prepare.invocation import Invocation

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


def worst(codes: Sequence[int]) -> int:
    """Return the exit code of a command whose jobs ended with these."""
    return min(codes, key=WORST_FIRST.index, default=ExitCode.DONE)


def chain(found: Sequence[Invocation], options: RunOptions) -> list[Invocation]:
    """Return the jobs in the order in which they run: as given, but a job after those whose output it reads.

    `options` are the flags as they were given. Raises UserError for jobs that read each other's output in a circle,
    that write the same file, and for flags that are for one job alone.
    """
    if len(found) == 1:
        return [*found]
    for flag, value in (("--input", options.input), ("--output", options.output)):
        if value is not None:
            raise UserError(f"{flag} is for one job, and {len(found)} were named")
    links: dict[int, Invocation] = {}
    sources = [_sources(one.loaded.job, [other.loaded.job for other in found]) for one in found]
    while len(links) < len(found):
        ready = next((n for n in range(len(found)) if n not in links and sources[n] <= links.keys()), None)
        if ready is None:
            raise UserError(_circle(found, sources, links))
        links[ready] = _linked(found[ready], [links[number] for number in sorted(sources[ready])])
    ordered = list(links.values())
    _refuse_shared_files(ordered)
    return ordered


def _sources(job: Job, jobs: Sequence[Job]) -> set[int]:
    """Return the numbers of the jobs whose output is an input of this one."""
    return {number for number, other in enumerate(jobs) if any(_is_read(job, other.output_path))}


def _is_read(job: Job, output: Path) -> Iterator[bool]:
    for pattern in job.input.patterns:
        path = _real(job.resolve(pattern))
        if path == _real(output):
            yield True
        elif glob.has_magic(pattern):
            yield matches(_real(output), path)


def _real(path: Path) -> str:
    # Two names of one file, through a link or .., are one output.
    return os.path.realpath(path)


def _circle(found: Sequence[Invocation], sources: Sequence[set[int]], done: dict[int, Invocation]) -> str:
    number = next(number for number in range(len(found)) if number not in done)
    seen: list[int] = []
    while number not in seen:
        seen.append(number)
        number = min(sources[number] - done.keys())
    names = [found[one].shown for one in [*seen[seen.index(number) :], number]]
    return f"these jobs read each other's output in a circle, so none can be the first: {' reads '.join(names)}"


def _linked(link: Invocation, reads: Sequence[Invocation]) -> Invocation:
    """Return a job that reads these; where a flag renamed their outputs, it reads the renamed ones."""
    loaded, options, job = link.loaded, link.options, link.loaded.job
    renamed = {_real(one.loaded.job.output_path): one.job.output_path for one in reads}
    renamed = {old: new for old, new in renamed.items() if old != _real(new)}
    patterns = [_real(job.resolve(pattern)) for pattern in job.input.patterns]
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
    return replace(link, loaded=loaded, options=options, reads=tuple(reads))


def _refuse_shared_files(links: Sequence[Invocation]) -> None:
    seen: dict[str, Invocation] = {}
    for link in links:
        for name, path in (("output", link.job.output_path), ("checkpoint", link.job.checkpoint_path)):
            other = seen.setdefault(_real(path), link)
            if other is not link:
                raise UserError(f"{other.shown} and {link.shown} have the same {name} {path}: give each its own")
