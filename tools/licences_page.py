"""Write docs/explanation/licences.md from requirements.lock and what is installed: `make licences`."""  # noqa: INP001  (a script)

import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)
HEAD = """\
# Licences of what batchrun uses

batchrun itself is under the Apache License 2.0. This page lists every package of `requirements.lock`. `make licences`
writes it from what the packages say of themselves. "Always" marks what a plain installation brings along; all else
comes with an extra (`local`, `pdf`, `ray`) or is for development alone. Nothing here is
copied into batchrun; MPL and LGPL ask only that changes to those packages themselves are shared.

| package | version | licence | installed |
|---|---|---|---|
"""

# Where a package states its licence only in a text, or is not installed on Linux.
STATED_ELSEWHERE = {"colorama": "BSD-3-Clause", "polars": "MIT", "pyreqwest": "Apache-2.0"}
SPELLINGS = {
    "License :: Public Domain": "Public domain",
    "License :: OSI Approved :: BSD License": "BSD-3-Clause",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "MIT License": "MIT",
    "GNU LGPL v3+": "LGPL-3.0-or-later",
}


def locked() -> dict[str, str]:
    """Return the packages of requirements.lock with their versions."""
    return dict(LOCKED.findall((ROOT / "requirements.lock").read_text(encoding="utf-8")))


def licences_page() -> str:
    """Return the whole page. Raises KeyError for a package whose licence is not known."""
    always = _always()
    rows = (
        f"| {name} | {version} | {_licence(name)} | {'always' if _plain(name) in always else ''} |"
        for name, version in sorted(locked().items())
    )
    return HEAD + "\n".join(rows) + "\n"


def _licence(name: str) -> str:
    if name in STATED_ELSEWHERE:
        return STATED_ELSEWHERE[name]
    stated = distribution(name).metadata
    if "License-Expression" in stated:
        return str(stated["License-Expression"])
    kinds = [SPELLINGS[each] for each in stated.get_all("Classifier") or () if each in SPELLINGS]
    words = " OR ".join(kinds) or "".join(stated.get_all("License") or ())
    if not words or "\n" in words:
        raise KeyError(f"{name} states no licence: look, and add it to STATED_ELSEWHERE")
    return SPELLINGS.get(words, words)


def _always() -> set[str]:
    """Return what batchrun requires without extras, and all that these packages require."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting: list[str] = [*project["dependencies"]]
    seen: set[str] = set()
    while waiting:
        needed = Requirement(waiting.pop())
        name = _plain(needed.name)
        if name not in seen and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            seen.add(name)
            waiting += distribution(name).requires or []
    return seen


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    (ROOT / "docs" / "explanation" / "licences.md").write_text(licences_page(), encoding="utf-8")
