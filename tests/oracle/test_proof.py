"""The proof of the oracle: each fault that was once in the package, put back into a copy, is found in 1,000 lives."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FAULTS = sorted((HERE / "faults").glob("*.patch"))
LIVES = 1_000


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.stem)
def test_a_fault_fits_the_code(fault: Path) -> None:
    """A patch that does not apply proves nothing: whoever changes the lines that it changes writes it again."""
    subprocess.run(["git", "apply", "--check", str(fault)], cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.stem)
def test_a_fault_put_back_is_found(fault: Path, tmp_path: Path) -> None:
    """The oracle fails on a copy of the package with this fault."""
    shutil.copytree(ROOT / "batchrun", tmp_path / "batchrun", ignore=shutil.ignore_patterns("__pycache__"))
    applied = subprocess.run(["git", "apply", str(fault)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert applied.returncode == 0, f"{fault.name} does not fit the code any more, write it again: {applied.stderr}"
    environment = {**os.environ, "ORACLE_PACKAGE": str(tmp_path), "ORACLE_LIVES": str(LIVES), "ORACLE_SHRINK": "0"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-k", "test_lives", str(HERE / "test_oracle.py")]
    found = subprocess.run(  # a life may have a file whose name is not UTF-8
        command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    assert found.returncode == 1, found.stdout[-3000:] + found.stderr[-2000:]
    assert "AssertionError: step" in found.stdout or "AssertionError: a mistake" in found.stdout, found.stdout[-3000:]
