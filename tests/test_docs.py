"""The documentation is true: its jobs load, its commands exist, its tutorial runs, its reference is made."""

import base64
import functools
import gzip
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import jsonschema_rs
import orjson
import pytest
from ruamel.yaml import YAML

from batchrun.api.endpoints import default_model
from batchrun.cli.main import COMMANDS, cli
from batchrun.job import json_schema, load

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BIN = Path(sys.executable).parent

# What a block of the documentation leaves out of a whole job.
REST = {
    "input": "input: {path: rows.csv}\n",
    "prompt": 'prompt: {user: "{{ text }}"}\n',
    "model": "model: {endpoint: simulator, name: sim/good}\n",
    "output": "output: {path: out.csv}\n",
}


def blocks(page: Path, kind: str) -> list[str]:
    """Return the code blocks of one kind on a page."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


JOBS = [(page, text) for page in PAGES for text in blocks(page, "yaml")]
LINES = [
    (page, line) for page in PAGES for text in blocks(page, "sh") for line in text.replace("\\\n", " ").splitlines()
]


@functools.cache
def published_schema() -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(json_schema())


def reference_pages() -> dict[str, str]:
    """Return the reference as the script in docs/ makes it."""
    spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "tools" / "reference_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: dict[str, str] = module.pages()
    return pages


def test_reference_is_what_the_code_says() -> None:
    """docs/reference can't drift: `python tools/reference_pages.py` writes it again."""
    for name, text in reference_pages().items():
        assert (DOCS / "reference" / name).read_text(encoding="utf-8") == text, name


@pytest.mark.parametrize(("page", "text"), JOBS, ids=[f"{page.name}-{n}" for n, (page, _) in enumerate(JOBS)])
def test_every_job_in_the_documentation_loads(page: Path, text: str) -> None:
    """A YAML block is a job, or part of one: it loads without a mistake and fits the published schema."""
    there = {line.partition(":")[0] for line in text.splitlines() if re.match(r"[a-z]", line)}
    whole = text + "".join(rest for name, rest in REST.items() if name not in there)
    load(whole, page.with_suffix(".yaml"), {})
    published_schema().validate(orjson.loads(orjson.dumps(YAML(typ="safe").load(whole), default=str)))


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page.name}-{n}" for n, (page, _) in enumerate(LINES)])
def test_every_command_in_the_documentation_exists(page: Path, line: str) -> None:
    """A line that calls batchrun names a command and flags that are there; `make` names a target."""
    words = shlex.split(line, comments=True)
    words = words[: next((place for place, word in enumerate(words) if word in {"|", ">", "&&", ";"}), None)]
    if words and words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), page
    if not words or words[0] != "batchrun" or words[1].startswith("-"):
        return
    name = words[1] if words[1] in COMMANDS else "run"
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    known = {flag for option in command.params for flag in option.opts} | {"--help"}
    assert {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"} <= known


def test_every_command_is_documented() -> None:
    """No command is missing from the reference."""
    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    assert all(f"## batchrun {name}\n" in text for name in COMMANDS)


def test_the_tutorial_leads_to_the_report(tmp_path: Path) -> None:
    """The tutorial's own commands, from its second section on, all succeed and end with a report."""
    if importlib.util.find_spec("xllamacpp") is None or default_model() is None:
        pytest.skip("the local model is not installed")
    page = DOCS / "tutorial.md"
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data")
    # Five reviews, three of them first, are enough to see every step work: each takes the model seconds.
    sample = (tmp_path / "sample_data" / "reviews.csv").read_text(encoding="utf-8")
    (tmp_path / "sample_data" / "reviews.csv").write_text("".join(sample.splitlines(keepends=True)[:6]))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "reviews.yaml").write_text(blocks(page, "yaml")[0], encoding="utf-8")
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    for text in blocks(page, "sh")[2:]:
        script = text.replace("--limit 20", "--limit 3")
        done = subprocess.run(
            ["bash", "-e", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, script + done.stderr
    report = next((tmp_path / "mine").rglob("*.html")).read_text(encoding="utf-8")
    table = re.search(r'"rows":"([^"]+)"', report)
    assert table is not None
    assert b"Boils fast" in gzip.decompress(base64.b64decode(table[1]))
