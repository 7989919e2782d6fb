"""The version stands in one place for programs and in one for packaging."""

import tomllib
from pathlib import Path

import batchrun


def test_the_package_and_its_metadata_have_the_same_version() -> None:
    """`batchrun.__version__` is the version that pyproject.toml publishes."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert batchrun.__version__ == project["version"]
