"""Words for mistakes: suggestions, quoted text, and pydantic's errors as one line each."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from batchrun.job.positions import Path, Positions, dotted
from batchrun.job.spec import Job
from batchrun.job.yamltext import Scalar
from batchrun.terminal import short

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_SHOWN = 60
_FEW = 8
_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "decimal_type": "a number",
    "decimal_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "mapping_type": "a mapping",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
}
_BOUNDS = {
    "greater_than": "must be more than {gt:,g}",
    "greater_than_equal": "must be at least {ge:,g}",
    "less_than_equal": "must be at most {le:,g}",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
}


def quoted(text: str) -> str:
    """Give a text of the file in quotes, in one line, cut where it is long."""
    return f'"{short(text, _SHOWN)}"'


def suggested(word: str, known: Iterable[str]) -> str:
    """Give the known word that was probably meant, or an empty text."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word[:_SHOWN].lower(), by_lower, n=1)
    return by_lower[near[0]] if near else ""


def suggestion(word: str, known: Iterable[str]) -> str:
    """Give `, did you mean "x"?` for the known word that was probably meant, or an empty text."""
    meant = suggested(word, known)
    return f", did you mean {quoted(meant)}?" if meant else ""


def belongs(key: str, path: Path, known: Sequence[str]) -> str:
    """Say where else in a job an unknown key has its place, or which keys are known here."""
    if path == ("model",):
        return f": the API's own parameters stand below model.params, here can stand {', '.join(known)}"
    homes = [home for home in _homes() if home[-1] == key]
    if homes:
        return f": it has its place at {dotted(homes[0])}"
    return f": here can stand {', '.join(known)}"


def _homes() -> Iterator[Path]:
    for section in fields(Job):
        if section.metadata.get("set_by_loader"):
            continue
        yield (section.name,)
        kind = section.type if is_dataclass(section.type) else getattr(section.type, "__args__", (None,))[0]
        if is_dataclass(kind):
            yield from ((section.name, item.name) for item in fields(kind))


def worded(errors: Sequence["ErrorDetails"], positions: Positions) -> dict[Path, str]:
    """Give one message for each place about which pydantic complains."""
    by_path: dict[Path, list[ErrorDetails]] = {}
    for error in errors:
        by_path.setdefault(path_of(error, positions), []).append(error)
    return {
        path: _message(path, found, positions)
        for path, found in by_path.items()
        # A union also complains about the forms that were not meant; the deeper complaint is about the one that was.
        if not any(len(other) > len(path) and other[: len(path)] == path for other in by_path)
    }


def path_of(error: "ErrorDetails", positions: Positions) -> Path:
    """Give the place of pydantic's error in the file: without the names of a union's members."""
    path: Path = ()
    missing = error["type"] == "missing"
    for step in error["loc"][:-1] if missing else error["loc"]:
        if positions.node((*path, step)) is not None:
            path = (*path, step)
    return (*path, error["loc"][-1]) if missing else path


def _message(path: Path, errors: list["ErrorDetails"], positions: Positions) -> str:
    name, node = dotted(path), positions.node(path)
    types = [error["type"] for error in errors]
    if "missing" in types:
        return f"{name} is missing"
    if isinstance(node, Scalar) and node.null:
        return f"{name} is empty: give it a value or remove the key"
    for error in errors:
        if error["type"] in _BOUNDS:
            return f"{name} {_BOUNDS[error['type']].format(**error.get('ctx', {}))}"
    words: list[str] = []
    for error in errors:
        words += _choices(error) or [_KINDS.get(error["type"], error["msg"].lower())]
    advice = suggestion(node.text, words) if isinstance(node, Scalar) else ""
    if advice and isinstance(node, Scalar) and len(words) > _FEW:
        return f"{name}: {quoted(node.text)} is not known{advice}"
    return f"{name} must be {_listed(list(dict.fromkeys(words)))}{advice}"


def _choices(error: "ErrorDetails") -> list[str]:
    if error["type"] != "literal_error":
        return []
    context: dict[str, Any] = error.get("ctx", {})
    return re.findall(r"'([^']*)'", context["expected"])


def _listed(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
