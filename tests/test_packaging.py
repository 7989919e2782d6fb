"""What is published is what the README says: names, links, install lines, its blocks in a new environment."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import batchrun

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = [text for kind, text in BLOCKS if kind == "sh"]

PACKAGED = [
    "batchrun",
    "jobs",
    "sample_data",
    "pyproject.toml",
    "requirements.lock",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
]


def test_links_of_the_readme_work_on_a_package_page() -> None:
    """Each link to a file of the repository exists here, and is a link to the repository's address there."""
    page = README
    for rule in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        page = re.sub(rule["pattern"], rule["replacement"], page)
    source = PROJECT["urls"]["Source"]
    here = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert here
    assert [link for link in here if not (ROOT / link).exists()] == []
    there = re.findall(r"\]\(([^)#]+)", page)
    assert len(there) == len(re.findall(r"\]\(([^)#]+)", README))
    assert [link for link in there if not link.startswith(f"{source}/")] == []


def test_install_lines_name_this_distribution() -> None:
    """No message and no page asks pip for the plain name, which is another package's."""
    assert PROJECT["name"] == "batchrun-llm"
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "batchrun").rglob("*.py")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if "pip install" in line]
    assert lines
    assert [line for line in lines if re.search(r"install [^`]*\bbatchrun(?!-llm|_llm)\b(\[|'| |$)", line)] == []


def test_the_package_and_its_metadata_have_the_same_version() -> None:
    """`batchrun.__version__` is the version that pyproject.toml publishes."""
    assert batchrun.__version__ == PROJECT["version"]


def test_continuous_integration_calls_the_same_command() -> None:
    """The workflow runs .ci/run and nothing else of its own."""
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r"run: (.*)", text) == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_container_gets_all_files_that_its_build_copies() -> None:
    """Each file that the Dockerfile copies is there and not ignored; its pins are those of the lock."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY ((?!--).*) \S+$", text, re.MULTILINE) for word in line.split()]
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied
    assert [name for name in copied if f"!{name.removeprefix('./')}" not in allowed or not (ROOT / name).exists()] == []
    pins = subprocess.run(
        ["bash", "-c", re.search(r"RUN (grep .*?) > pins", text)[1].replace("\\\\", "\\")],  # type: ignore[index]
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    locked = re.findall(
        r"^[A-Za-z0-9._-]+==\S+", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert pins == locked


@pytest.mark.slow
@pytest.mark.timeout(1500)  # pip installs 200 MB
def test_the_blocks_of_the_readme_run_in_a_new_environment(tmp_path: Path) -> None:
    """Its install lines, its commands on a job, its OpenRouter lines (on the simulator) and its Python, as written."""
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(".batchrun"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    sample = (ROOT / "sample_data" / "reviews.csv").read_text(encoding="utf-8").splitlines(keepends=True)[:9]
    (tmp_path / "sample_data" / "reviews.csv").write_text("".join(sample))
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    environment |= {
        "PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-e", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, script + done.stdout + done.stderr
        return done.stdout

    install = next(text for text in SHELL if "pip install ." in text)
    run(install)
    assert run("batchrun --version").startswith(f"batchrun, version {PROJECT['version']}")
    commands = next(text for text in SHELL if "batchrun init" in text).splitlines()
    for line in commands:
        run(line)
    openrouter = next(text for text in SHELL if "OPENROUTER_API_KEY" in text)
    run(re.sub(r"(batchrun \S+\.yaml)", r"\1 --endpoint simulator", openrouter))
    for kind, text in BLOCKS:
        if kind == "python":
            (tmp_path / "script.py").write_text(text + "print(labelled.height)")
            assert int(run("python script.py")) > 0
