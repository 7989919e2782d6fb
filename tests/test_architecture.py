"""The house stands as docs/design.md says: floors, rooms of outside libraries, sizes."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "batchrun"

# A file may import only from floors below its own. A folder counts as one room.
FLOORS = [
    {"errors", "money", "job", "terminal"},
    {"codes", "records", "eventlog"},
    {"answerschema", "templates", "stop", "environment", "waits", "wording", "textscan", "pacing"},
    {"jobfile", "render", "judge", "answers", "retry", "adaptive", "budget", "options"},
    {"permits", "breaker", "textfiles"},
    {"work"},
    {"queueing"},
    {"rows", "results", "images", "checkpoint", "endpoints", "children", "senders", "pool"},
    {"prices"},
    {"plan", "prepare", "progress", "closing"},
    {"outputs", "asking", "forecast", "loading"},
    {"runner", "drafting", "report"},
    {"commands", "embedding"},
    {"cli"},
    {"__main__", "__init__"},
]
ASIDE = {"simulator", "local_server"}
ROOMS = {
    "polars": {"rows", "textfiles", "results", "outputs", "prepare"},
    "pydantic": {"jobfile"},
    "pydantic_core": {"jobfile"},
    "ruamel": {"jobfile", "yamltext"},
    "jinja2": {"templates", "report"},
    "markupsafe": {"report"},
    "pygal": {"report"},
    "jsonschema_rs": {"answers", "answerschema"},
    "sqlite_utils": {"checkpoint"},
    "sqlite3": {"checkpoint"},
    "filelock": {"checkpoint"},
    "pyreqwest": {"senders"},
    "httpx": {"endpoints", "prices"},
    "httptools": {"senders"},
    "annotated_types": {"job"},
    "compression": {"textfiles"},
    "backports": {"textfiles"},
    "certifi": {"endpoints", "senders"},
    "ray": {"senders"},
    "tqdm": {"progress"},
    "click": {"cli", "commands", "__main__"},
    "click_default_group": {"cli"},
    "dotenv": {"environment"},
    "starlette": {"simulator"},
    "uvicorn": {"simulator"},
    "xllamacpp": {"local_server"},
    "uvloop": {"asking", "simulator"},
    "orjson": None,
}
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def room_of(path: Path) -> str:
    """Name the room of a file: its folder in the package, else its stem."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else path.stem


def imports(path: Path) -> Iterator[str]:
    """Give the modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"batchrun.{alias.name}" for alias in node.names]
            yield from inside if node.module == "batchrun" else [node.module]


FILES = sorted(PACKAGE.rglob("*.py"))
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
names = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


@names
def test_imports_go_down(path: Path) -> None:
    """A file imports only from floors below its own; what stands aside imports nothing of batchrun."""
    room = room_of(path)
    for module in imports(path):
        if not module.startswith("batchrun."):
            continue
        other = module.split(".")[1]
        if other in (room, "__version__"):
            continue
        assert room not in ASIDE, f"{room} stands aside but imports {module}"
        if room == "commands" and other in ASIDE:
            continue
        assert other in LEVEL, f"{other} has no floor"
        assert room == "__init__" or LEVEL[other] < LEVEL[room], f"{room} must not import {other}"


@names
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    """Each outside library is imported only in the rooms that the table gives it."""
    for module in imports(path):
        library = module.split(".")[0]
        if library in sys.stdlib_module_names and library not in ROOMS:
            continue
        if library == "batchrun" or room_of(path) == "simulator":
            continue
        assert library in ROOMS, f"{library} has no room"
        rooms = ROOMS[library]
        assert rooms is None or room_of(path) in rooms, f"{library} may not be used in {room_of(path)}"


@names
def test_files_and_functions_stay_short(path: Path) -> None:
    """Files have at most 400 lines, functions at most 60; a file's first line says its one job."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LONGEST_FILE
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert text.startswith('"""')
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, f"{node.name} is too long"


def test_every_room_has_a_floor() -> None:
    """The table of floors names every room, and nothing that is not there."""
    rooms = {room_of(path) for path in FILES}
    assert rooms - ASIDE - set(LEVEL) == set()
