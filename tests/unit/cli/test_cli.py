"""The command line as a whole: help, suggestions, one line for each mistake, completion."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import JOB, Command, command, job, openrouter, simulator
from simulator_server import Running

import batchrun
from batchrun.cli.main import COMMANDS
from batchrun.runner import RESUMABLE

__all__ = ["command", "job", "openrouter", "simulator"]

GOLDEN = Path(__file__).parents[2] / "golden"
HEAVY = (
    "polars", "pydantic", "httpx", "jinja2", "pandas", "numpy", "sqlite3", "orjson", "tqdm", "pyreqwest", "uvloop",
    "ruamel", "jsonschema_rs", "asyncio",
)  # fmt: skip
PUBLIC = {
    "BatchrunError", "BusyError", "Check", "CheckpointError", "ConfirmError", "Evaluation", "ExitCode", "Finding",
    "InputError", "Job", "JobFileError", "Mistake", "Preview", "SenderError", "StorageError", "Summary", "UserError",
    "check", "evaluate", "load_job", "preview", "run",
}  # fmt: skip


def loaded_by(code: str) -> set[str]:
    """Return which heavy libraries a fresh interpreter has loaded after some code."""
    script = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(HEAVY) & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_is_there_and_teaches(command: Command, arguments: list[str]) -> None:
    """Each command explains itself and each of its options, on stdout, with exit 0."""
    ended = command(*arguments)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Usage: batchrun")
    flags = ended.out.partition("\nOptions:\n")[2].splitlines()
    options = [line for line in flags if line.startswith("  -") and "  " not in line.strip()]
    assert not options, "an option without an explanation"


def test_the_help_names_every_code_that_resumes(command: Command) -> None:
    """The help, and the page that repeats it, list all exit codes after which the same command resumes."""
    codes = sorted(RESUMABLE)
    listed = f"{', '.join(map(str, codes[:-1]))} and {codes[-1]}"
    assert f"After {listed} the same command resumes" in command("--help").out
    page = Path(__file__).parents[3] / "docs" / "how-to" / "scale.md"
    assert f" {listed} the job can be" in page.read_text(encoding="utf-8")


def test_help_loads_no_heavy_library() -> None:
    """Help of every command comes without polars and its like."""
    calls = [["--help"], *([name, "--help"] for name in COMMANDS)]
    code = f"from batchrun.__main__ import _guarded\nfor arguments in {calls!r}: assert _guarded(arguments) == 0"
    assert loaded_by(code) == set()


def test_the_package_is_cheap_to_import() -> None:
    """`import batchrun`, and naming its errors and records, load no heavy library."""
    heavy = {"Evaluation", "check", "evaluate", "load_job", "preview", "run"}
    code = f"import batchrun\nfor name in set(batchrun.__all__) - {heavy!r}: getattr(batchrun, name)"
    assert loaded_by(code) == set()


def test_what_is_public_is_listed() -> None:
    """The public names are these, and each is there."""
    assert set(batchrun.__all__) == PUBLIC
    assert {name for name in PUBLIC if not hasattr(batchrun, name)} == set()
    with pytest.raises(AttributeError):
        batchrun.nothing  # type: ignore[attr-defined]  # noqa: B018  (naming it is the test)


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["stauts", "job.yaml"], 'no such command "stauts", did you mean "status"?'),
        (["chek", "job.yaml"], 'no such command "chek", did you mean "check"?'),
        (["jop.yaml"], "no such job file: jop.yaml; did you mean job.yaml?"),
        (["check", "other/x.yaml"], "no such job file: other/x.yaml; `batchrun init FILE` writes one for an input"),
        (["status", "."], ". is a directory; name a job file in it, such as ./x.yaml"),
        (["rows.csv"], "rows.csv is not a job file; `batchrun init rows.csv` writes one for it"),
        (["check", "binary.yaml"], "binary.yaml: byte 1 is not UTF-8; save the job file as UTF-8"),
        (["check", "loop.yaml"], "loop.yaml: "),
        (["check", "job.yaml", "--api-key-env", "NO_SUCH"], "the key's variable NO_SUCH is not set; looked in"),
        (["run", "job.yaml", "--limit", "0"], "'--limit'"),
        (["run", "job.yaml", "--max-cost", "much"], "'much' is not an amount in USD"),
        (["check"], "Missing argument 'JOB...' (see `batchrun check --help`)"),
        (["check", "job.yaml", "--schma"], "'--schema'"),
        (["retry", "job.yaml", "--only", "429"], "there is no error type 429"),
        (["status", "job.yaml"], "there is no checkpoint at"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_2(command: Command, tmp_path: Path, arguments: list[str], shown: str) -> None:
    """Whatever is wrong with a command: one line on stderr that says what, no traceback, exit 2."""
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\0\1")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    ended = command(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert shown in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("debug", [True, False])
def test_a_traceback_is_shown_with_debug_alone(
    command: Command, job: Path, monkeypatch: pytest.MonkeyPatch, *, debug: bool
) -> None:
    """A bug of ours is one line and exit 70; --debug adds the traceback."""

    def broken(*_: object, **_flags: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("batchrun.prepare.load_file", broken)
    ended = command("check", str(job), *(["--debug"] if debug else []))
    assert ended.code == 70
    assert ("Traceback" in ended.err) is debug
    assert "ZeroDivisionError: a bug" in ended.err


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("", {"run", "check", "job.yaml", "jobs/other.yml"}),
        ("j", {"job.yaml", "jobs/other.yml"}),
        ("check ", {"job.yaml", "jobs/other.yml"}),
        ("check jobs/", {"jobs/other.yml"}),
        ("check job.yaml --sch", {"--schema"}),
        ("job.yaml --max", {"--max-cost"}),
    ],
)
def test_the_shell_completes_commands_job_files_and_flags(
    command: Command, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, offered: set[str]
) -> None:
    """Completion offers commands, job files (one folder down as well) and flags, and no other file."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "other.yml").touch()
    monkeypatch.setenv("_BATCHRUN_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"batchrun {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(f"{words}x".split())))
    found = {line.partition(",")[2] for line in command().out.splitlines()}
    assert offered <= found
    assert not {"rows.csv", str(job)} & found


GOLDEN_CASES = {
    "check_openrouter": (JOB, ["check", "job.yaml"]),
    "check_mistakes": (
        JOB.replace("{{ text }}", "{{ txt }}").replace("[good, bad]", "strng").replace("rows.csv", "${NO_SUCH}"),
        ["check", "job.yaml"],
    ),
    "check_template": (JOB.replace("{{ text }}", "{{ txt | uper }}"), ["check", "job.yaml"]),
    "preview_openrouter": (JOB, ["preview", "job.yaml", "-n", "2"]),
    "preview_row": (JOB, ["preview", "job.yaml", "--row", "4"]),
    "init": (JOB, ["init", "rows.csv", "-o", "new.yaml"]),
}


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_messages_are_the_golden_ones(
    command: Command, job: Path, openrouter: Running, tmp_path: Path, name: str
) -> None:
    """What people read is what was agreed on; BATCHRUN_GOLDEN=write writes it again."""
    text, arguments = GOLDEN_CASES[name]
    job.write_text(text)
    ended = command(*arguments)
    shown = f"exit {ended.code}\n{ended.out}{ended.err}".replace(str(tmp_path), "FOLDER").replace(openrouter.url, "URL")
    file = GOLDEN / f"cli_{name}.txt"
    if os.environ.get("BATCHRUN_GOLDEN") == "write":
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text(encoding="utf-8")


def test_the_golden_draft(command: Command, job: Path) -> None:
    """The job that init writes is the agreed one."""
    command("init", "rows.csv", "-o", "new.yaml")
    shown = (job.parent / "new.yaml").read_text(encoding="utf-8")
    file = GOLDEN / "cli_draft.txt"
    if os.environ.get("BATCHRUN_GOLDEN") == "write":
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text(encoding="utf-8")
