"""The flags of a trial, kept in its checkpoint, so that other commands see the job that it asked by its name alone."""

import glob
import json
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from batchrun.checkpoint import Checkpoint, is_put_aside
from batchrun.errors import StorageError, UserError
from batchrun.job import Job, RunOptions, merged


def flags_text(job: Job, options: RunOptions) -> str:
    """Return what a run notes of its flags; the input's path is relative to the job file, as those in it are."""
    path = options.input
    if path is not None:
        path = None if options.reads_stdin else os.path.relpath(path, job.folder)
    # In ASCII: a file's name may not be UTF-8.
    return json.dumps({"set": options.settings, "endpoint": options.endpoint, "model": options.model, "input": path})


def with_kept_flags(
    job: Job, options: RunOptions, *, reads: bool, say: Callable[[str], None] = lambda _: None
) -> RunOptions:
    """Return the flags of a command with those of the trial that they name; the job's own checkpoint keeps none.

    A setting that the command names wins over the kept one of that key, which is said in a line. `reads`: the trial
    must be there already; --variant or --model alone then finds one that had other flags as well. Raises UserError
    where that could be several.
    """
    # `merged` refuses --input - where no pipe is; its trial has the name that the other flags make.
    path = merged(job, replace(options, input=None) if options.reads_stdin else options).checkpoint_path
    if options.fresh:
        return options
    if reads and not path.exists():
        return _found(job, options)
    if path == job.checkpoint_path:
        return options
    if not path.exists():
        # `--variant a --model m`, then `--variant a` alone: nothing of the first one is used, which nobody expects.
        if options.variant is not None and (trials := _trials(job, options)):
            say(f"{path.stem} is a new trial: --variant {options.variant} was run with {' and with '.join(trials)}")
        return options
    kept = _kept(job, path)
    named = {_key(setting): setting for setting in options.settings}
    others = [setting for setting in kept.settings if named.get(_key(setting), setting) != setting]
    added = tuple(setting for setting in kept.settings if _key(setting) not in named)
    if others:
        now = [named[_key(setting)] for setting in others]
        say(f"{path.stem} was last run with {_words(others)}, and now has {_words(now)}")
    if added and not reads:
        say(f"{path.stem}: with {_words(added)}, as in its last run")
    return replace(options, settings=added + options.settings)


def _found(job: Job, options: RunOptions) -> RunOptions:
    """Return the flags of the one trial that had these and others as well; without any trial, those given."""
    flags = _typed(options.endpoint, options.model, options.input, options.variant)
    found = _trials(job, options) if flags else {}
    if len(found) > 1:
        raise UserError(f"{flags} was run with {' and with '.join(found)}: name one of them as well")
    if not found and (others := _all_trials(job)):
        runs = f"with {', with '.join(others)}"
        if not flags:
            raise UserError(f"this job was only run {runs}: add these flags, or run it without flags first")
        if job.checkpoint_path.exists():
            runs = f"without flags, {runs}"
        raise UserError(f"this job was not run with {flags} yet; it was run {runs}")
    return next(iter(found.values()), options)


def _all_trials(job: Job) -> list[str]:
    """Return the flags of each trial of the job, as they are typed."""
    found = []
    for path, kept in _checkpoints(job):
        trial = replace(kept, settings=())
        stem = merged(job, trial).checkpoint_path.stem
        if path.stem.startswith(f"{stem}."):
            trial = replace(trial, variant=path.stem.removeprefix(f"{stem}."))
        # `a.b.sqlite` is a trial of a.yaml or the checkpoint of a.b.yaml. Only the job file distinguishes them.
        is_job = trial.variant is not None and (job.folder / f"{path.stem}.yaml").exists()
        if not is_job and merged(job, trial).checkpoint_path == path:
            file = kept.input and os.path.relpath(kept.input)
            found.append(_typed(kept.endpoint, kept.model, file, trial.variant))
    return found


def _trials(job: Job, options: RunOptions) -> dict[str, RunOptions]:
    """Return the flags of the trials that had these and others as well, by the others as they are typed."""
    found: dict[str, RunOptions] = {}
    # `eval JOB --model NAME` of a trial that had --input as well: its checkpoint has both in its name.
    for path, kept in _checkpoints(job):
        trial = replace(
            options,
            endpoint=options.endpoint or kept.endpoint,
            model=options.model or kept.model,
            input=options.input or kept.input,
        )
        if merged(job, trial).checkpoint_path == path:
            settings = {_key(setting): setting for setting in (*kept.settings, *options.settings)}
            words = _typed(kept.endpoint, kept.model, kept.input)
            found[words] = replace(trial, settings=tuple(settings.values()))
    return found


def _checkpoints(job: Job) -> Iterator[tuple[Path, RunOptions]]:
    """Yield the checkpoints whose names begin like the job's, with the flags of their last runs."""
    own = job.checkpoint_path
    for path in sorted(own.parent.glob(f"{glob.escape(own.stem)}.*{glob.escape(own.suffix)}")):
        if is_put_aside(path):
            continue
        try:
            yield path, _kept(job, path)
        except StorageError:  # not a checkpoint, or a damaged one
            continue


def _kept(job: Job, path: Path) -> RunOptions:
    """Return the flags of a trial's last run; the input is an absolute path."""
    with Checkpoint.open(path, read_only=True) as checkpoint:
        flags = json.loads(checkpoint.flags() or "{}")
    file = flags.get("input")
    return RunOptions(
        settings=tuple(flags.get("set", ())),
        endpoint=flags.get("endpoint"),
        model=flags.get("model"),
        input=file and str(job.resolve(file)),
    )


def _typed(endpoint: str | None, model: str | None, file: str | None = None, variant: str | None = None) -> str:
    """Return flags as they are typed."""
    flags = {"--variant": variant, "--endpoint": endpoint, "--model": model, "--input": file}
    return shlex.join(word for flag, value in flags.items() if value for word in (flag, value))


def _key(setting: str) -> str:
    return setting.partition("=")[0]


def _words(settings: Sequence[str]) -> str:
    return " ".join(f"--set {shlex.quote(setting)}" for setting in settings)
