"""A job as one command has it."""

from dataclasses import dataclass

from batchrun.job import Environment, Job, Loaded, RunOptions, merged


@dataclass(frozen=True, slots=True)
class Invocation:
    """A job with the environment and the flags that hold for it.

    `reads` are the jobs of the same command whose output is its input.
    """

    loaded: Loaded
    environment: Environment
    options: RunOptions
    reads: tuple["Invocation", ...] = ()

    @property
    def shown(self) -> str:
        """The job file as the user named it."""
        return self.loaded.shown

    @property
    def job(self) -> Job:
        """The job with its flags applied."""
        return merged(self.loaded.job, self.options)
