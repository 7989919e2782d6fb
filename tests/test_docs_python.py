"""The pages for Python users run as written: code blocks and the notebook, each in a fresh process, without a key."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "how-to" / "python.md"
NOTEBOOK = ROOT / "sample_data" / "reviews.ipynb"

NO_KEY = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}


def ran(code: list[str], folder: Path) -> str:
    """Run blocks of code one after the other in one process, and return what they print."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n\n".join(code)],
        cwd=folder,
        env=NO_KEY | {"XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the sample reviews."""
    shutil.copy(ROOT / "sample_data" / "reviews.csv", tmp_path)
    return tmp_path


def test_the_page_on_python_runs(folder: Path) -> None:
    """Its blocks, in order, need no key and fail no row; the second run of the same rows sends nothing."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    code = [
        re.sub(r"^(batchrun\.run\(.+\))  #", r"assert \1.exit_code == 0  #", one, flags=re.MULTILINE) for one in code
    ]
    assert "\n".join(code).count("assert batchrun.run(") == 3
    out = ran([*code, "print(*labelled.columns, sep=',')"], folder).splitlines()
    assert out[0] == "40 answered, 0 failed, 0 requests in this run"
    assert re.fullmatch(r"0 USD in this run, 0\.00\d+ USD in all", out[1])
    assert out[2] == 'job["prompt"]["user"]: the input has no column "txt", did you mean "text"?'
    assert out[3] == "0 to ask, likely 0 USD"
    assert re.fullmatch(r"\d+ of \d+ equal the column gold", out[-2])
    assert out[-1].startswith("id,product,text,gold,sentiment,status")


def test_the_notebook_runs(folder: Path) -> None:
    """Its cells, in order, need no key; it is stored without outputs."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    code = ["".join(cell["source"]) for cell in cells]
    assert ran([*code, "print(summary.ok, labelled.height, summary.exit_code)"], folder) == "196 196 0\n"
