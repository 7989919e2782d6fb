"""The package stands as docs/explanation/design.md describes: floors of rooms, libraries by room, sizes."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "batchrun"

# A room is a folder, or a file at the top. It imports only from rooms on lower floors; a lazy import counts as well.
FLOORS = [
    {"_version"},
    {"errors", "money", "terminal"},
    {"records", "disk"},
    {"net"},
    {"job"},
    {"table", "prompt", "api", "senders", "checkpoint"},
    {"prepare"},
    {"forecast"},
    {"runner"},
    {"report"},
    {"cli", "python"},
    {"__init__", "__main__"},
]
ASIDE = {"servers"}  # its programs run as processes of their own and import nothing of batchrun
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}

LIBRARIES = {
    "polars": {"table", "prepare", "runner", "report", "python", "records"},  # records: for the type of Summary.frame
    "pydantic": {"job"},
    "pydantic_core": {"job"},
    "annotated_types": {"job"},
    "ruamel": {"job"},
    "dotenv": {"job"},
    "jinja2": {"prompt", "report", "cli"},
    "markupsafe": {"report"},
    "jsonschema_rs": {"prompt"},
    "pypdf": {"prompt"},
    "sqlite3": {"checkpoint"},
    "sqlite_utils": {"checkpoint"},
    "filelock": {"checkpoint"},
    "certifi": {"net"},
    "pyreqwest": {"net", "senders"},
    "httpx": {"senders"},
    "python_calamine": {"table"},
    "xlsxwriter": {"table"},
    "ray": {"senders"},
    "compression": {"table"},
    "backports": {"table"},
    "tqdm": {"runner"},
    "click": {"cli", "__main__"},
    "click_default_group": {"cli"},
    "uvloop": {"runner"},
    "orjson": FLOORS[5] | {"records", "job", "prepare", "forecast", "runner", "report", "cli"},
}
LONGEST_FILE, LONGEST_FUNCTION = 500, 80

# Rooms that nobody enters past their `__init__.py`.
DOORS = {room for floor in FLOORS[4:-1] for room in floor}

# Steps up that stand today; each is a debt with a name, and none may be added.
DEBTS: set[tuple[str, str]] = set()


def files() -> list[Path]:
    """Return the package's Python files."""
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """Return the room of a file: its folder in the package, else its stem."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else path.stem


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"batchrun.{alias.name}" for alias in node.names]
            yield from inside if node.module == "batchrun" else [node.module]


def test_every_room_has_a_floor() -> None:
    """The table of floors names every room."""
    assert {room_of(path) for path in files()} - ASIDE <= set(LEVEL)


def test_imports_go_down() -> None:
    """A file imports only from floors below its own; what stands aside imports nothing of batchrun."""
    wrong = []
    for path in files():
        room = room_of(path)
        for module in imports(path):
            if not module.startswith("batchrun.") or module.split(".")[1] == room:
                continue
            other = module.split(".")[1]
            up = room in ASIDE or (other not in ASIDE and LEVEL[other] >= LEVEL[room] and (room, other) not in DEBTS)
            if up:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert wrong == []


def test_nobody_imports_past_a_door() -> None:
    """Of a room with a door, other rooms import what its `__init__.py` offers."""
    past = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in files()
        for module in imports(path)
        if (parts := module.split("."))[0] == "batchrun" and len(parts) > 2 and parts[1] in DOORS
        if room_of(path) != parts[1]
    ]
    assert past == []


def test_libraries_stay_in_their_rooms() -> None:
    """Each outside library is imported only in the rooms that the table names."""
    wrong = []
    for path in files():
        if room_of(path) in ASIDE:
            continue
        for module in imports(path):
            library = module.split(".")[0]
            if library == "batchrun" or (library in sys.stdlib_module_names and library not in LIBRARIES):
                continue
            if room_of(path) not in LIBRARIES.get(library, set()):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {library}")
    assert wrong == []


def test_files_and_functions_stay_short() -> None:
    """Files have at most 500 lines, functions at most 80, and a file begins with a docstring."""
    wrong = []
    for path in files():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        if text.count("\n") > LONGEST_FILE or not ast.get_docstring(tree):
            wrong.append(str(path.relative_to(PACKAGE)))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno
                if length >= LONGEST_FUNCTION:
                    wrong.append(f"{path.relative_to(PACKAGE)}: {node.name} has {length} lines")
    assert wrong == []


def test_what_is_decided_once_is_defined_once() -> None:
    """An address, a near word and a worst case have one function each in the package."""
    once = {"is_loopback", "parse_endpoint", "did_you_mean", "worst_case", "header_problem", "proxy_for"}
    defined = [
        node.name
        for path in files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.strip("_") in once
    ]
    assert sorted(defined) == sorted(once)
    importers = [
        str(path.relative_to(PACKAGE))
        for path in files()
        if room_of(path) not in ASIDE and "ipaddress" in imports(path)
    ]
    assert importers == ["net.py"]


def test_every_dependency_is_imported_and_has_a_reason() -> None:
    """pyproject.toml, docs/explanation/dependencies.md and the imports name the same libraries."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [project["optional-dependencies"][name] for name in ("excel", "local", "pdf", "ray")]
    named = {requirement for group in (project["dependencies"], *extras) for requirement in group}
    declared = {re.split(r"[<>=;\[]", requirement)[0].strip() for requirement in named}
    page = (PACKAGE.parent / "docs" / "explanation" / "dependencies.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| ([a-z][a-z0-9.-]*) \|", page, flags=re.MULTILINE)
    assert sorted(set(explained) - {"package"}) == sorted(declared)
    of_module = packages_distributions()
    used: set[str] = set()
    for path in files():
        for module in imports(path):
            top = module.split(".")[0]
            used |= {re.sub(r"[_.]", "-", name.lower()) for name in of_module.get(top, [top])}
    assert {name for name in declared if name.replace(".", "-") not in used} == set()
