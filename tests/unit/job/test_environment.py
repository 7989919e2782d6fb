"""The environment: who wins, where a variable came from, and that values stay hidden."""

from pathlib import Path

import pytest

from batchrun.errors import UserError
from batchrun.job import Environment, read_environment


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    job, cwd = tmp_path / "jobs", tmp_path / "cwd"
    job.mkdir()
    cwd.mkdir()
    return job, cwd


def test_process_wins_over_job_folder_over_cwd(folders: tuple[Path, Path]) -> None:
    """The process's variable wins over .env beside the job, which wins over .env in the cwd; each names its origin."""
    job, cwd = folders
    (job / ".env").write_text("A=job\nB=job\n")
    (cwd / ".env").write_text("A=cwd\nB=cwd\nC=cwd\n")
    environment = read_environment(job, cwd, {"A": "process"})
    assert dict(environment) == {"A": "process", "B": "job", "C": "cwd"}
    origins = [environment.origin(name) for name in "ABC"]
    assert origins == ["the environment", str(job / ".env"), str(cwd / ".env")]


def test_values_are_as_written(folders: tuple[Path, Path]) -> None:
    """A dollar, an equals sign, a BOM and quotes in .env do what a user expects, and a name without value is unset."""
    job, cwd = folders
    (job / ".env").write_text("\ufeffKEY=a$b${HOME}=c\nexport QUOTED='x # y'  # comment\nBARE\n", encoding="utf-8")
    assert dict(read_environment(job, cwd, {"HOME": "/h"})) == {
        "HOME": "/h",
        "KEY": "a$b${HOME}=c",
        "QUOTED": "x # y",
    }


def test_a_folder_called_env_is_ignored(folders: tuple[Path, Path]) -> None:
    """A virtual environment that is called .env is not a file of variables."""
    job, cwd = folders
    (job / ".env").mkdir()
    assert dict(read_environment(job, cwd, {"A": "1"})) == {"A": "1"}


def test_bytes_that_are_not_utf8_are_reported_without_showing_them(folders: tuple[Path, Path]) -> None:
    """A .env in another encoding ends with its name and what to do, never with what it holds."""
    job, cwd = folders
    (job / ".env").write_bytes(b"KEY=canary\xff\n")
    with pytest.raises(UserError) as caught:
        read_environment(job, cwd, {})
    assert str(caught.value) == f"{job / '.env'} is not UTF-8: save it as UTF-8"
    assert caught.value.__suppress_context__


def test_no_repr_shows_a_value() -> None:
    """Neither the environment nor its views print a value."""
    environment = Environment({"the environment": {"KEY": "canary-7"}})
    shown = f"{environment} {environment!r} {environment.items()!r} {environment.values()!r} {environment.keys()!r}"
    assert "canary" not in shown
    assert environment["KEY"] == "canary-7"


def test_it_can_not_be_changed() -> None:
    """No item can be set: an environment is what was read."""
    environment = Environment({"the environment": {"KEY": "1"}})
    with pytest.raises(TypeError):
        environment["KEY"] = "2"  # type: ignore[index]
