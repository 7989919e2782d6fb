"""The environment of a job: the process's variables and those of .env files, each with where it came from."""

from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from types import MappingProxyType

from dotenv import dotenv_values

from batchrun.errors import UserError

PROCESS = "the environment"


class Environment(Mapping[str, str]):
    """Variables by name; can't be changed, and shows no value in its repr."""

    __slots__ = ("_origins", "_values", "sources")

    def __init__(self, sources: Mapping[str, Mapping[str, str]]) -> None:
        """Merge sources, given by their names for people; an earlier one wins."""
        values: dict[str, str] = {}
        origins: dict[str, str] = {}
        for origin, variables in sources.items():
            for name, value in variables.items():
                if name not in values:
                    values[name], origins[name] = value, origin
        self.sources = tuple(sources)
        self._values = MappingProxyType(values)
        self._origins = MappingProxyType(origins)

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Environment({len(self)} variables)"

    def origin(self, name: str) -> str:
        """Tell where a variable came from: `the environment` or a .env file's path; KeyError where there is none."""
        return self._origins[name]


def read_environment(folder: Path, cwd: Path, process: Mapping[str, str]) -> Environment:
    """Read .env beside the job file and in the working directory; the process's own variables win over both.

    Raises UserError where a .env file can't be read.
    """
    sources = {PROCESS: process}
    for file in (folder / ".env", cwd / ".env"):
        if file.is_file() and not any(Path(known).samefile(file) for known in sources if known != PROCESS):
            sources[str(file)] = _variables(file)
    return Environment(sources)


def _variables(file: Path) -> dict[str, str]:
    """Read a .env file as it is written: a $ in a key stays a $."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}") from None
    values = dotenv_values(stream=StringIO(text), interpolate=False)
    return {name: value for name, value in values.items() if value is not None}
