"""The YAML tree -> plain data for pydantic: scalars as the types want them, unknown keys told, variables put in."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from batchrun.job.positions import Path, dotted
from batchrun.job.spec import Job
from batchrun.job.wording import belongs, quoted, suggested, suggestion
from batchrun.job.yamltext import MAX_MISTAKES, Items, Node, Scalar, Table

EXPANDED = {
    ("input", "path"),
    ("output", "path"),
    ("checkpoint",),
    ("model", "endpoint"),
    ("model", "name"),
    ("model", "ca_file"),
    ("model", "headers"),
}
"""Where `${VAR}` is replaced by the variable's value (in headers: in their values)."""

SECRET_HEADERS = {"authorization", "proxy-authorization", "api-key", "x-api-key", "x-auth-token", "cookie"}

_VARIABLE = re.compile(r"\$\$|\$\{([^}]*)(\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_NO_JSON = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII)
_CONSTANTS = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL"]),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
}
_BIGGEST, _SMALLEST = 2**64 - 1, -(2**63)
_LONGEST_NUMBER = 40


class _Left:
    """Stands for a value that is left out because a mistake in it is on record."""


_LEFT = _Left()


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake at a path of the job; `at_key`: about the key rather than its value."""

    path: Path
    message: str
    at_key: bool = False


@dataclass(slots=True)
class Typed:
    """Plain data for the job, the mistakes found on the way, and the paths about which nothing more is to be said."""

    environment: Mapping[str, str]
    findings: list[Finding] = field(default_factory=list)
    settled: set[Path] = field(default_factory=set)

    def value(self, node: Node, hint: Any, path: Path) -> Any:  # noqa: ANN401  (any value of a job)
        """Give the data of a node for a type; `_LEFT` where it can't be had."""
        kinds = _kinds(hint)
        if isinstance(node, Scalar):
            return self._scalar(node, kinds, path)
        if isinstance(node, Items):
            item = next((get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple), Any)
            values = [self.value(child, item, (*path, number)) for number, child in enumerate(node.values)]
            return [value for value in values if value is not _LEFT]
        for kind in kinds:
            if is_dataclass(kind):
                return self._record(node, kind, path)
        mapping = next((get_args(kind)[1] for kind in kinds if get_origin(kind) is Mapping), Any)
        return dict(self._entries(node, dict.fromkeys(node.entries, mapping), path))

    def _record(self, node: Table, kind: Any, path: Path) -> dict[str, Any]:  # noqa: ANN401  (a dataclass)
        known = hints_of(kind)
        for key in [key for key in node.entries if key not in known][:MAX_MISTAKES]:
            self._unknown(key, list(known), (*path, key))
        return dict(self._entries(node, known, path))

    def _entries(self, node: Table, hints: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
        for key, (_, child) in node.entries.items():
            if key in hints:
                value = self.value(child, hints[key], (*path, key))
                if value is not _LEFT:
                    yield key, value

    def _unknown(self, key: str, known: list[str], path: Path) -> None:
        """Tell of an unknown key; what it probably stands for is then not missing."""
        meant = suggested(key, known)
        if meant:
            self.settled.add((*path[:-1], meant))
        advice = suggestion(key, known) or belongs(key, path[:-1], known)
        self.findings.append(Finding(path, f"unknown key {quoted(key)}{advice}", at_key=True))

    def _scalar(self, node: Scalar, kinds: tuple[Any, ...], path: Path) -> Any:  # noqa: ANN401  (any value of a job)
        if node.refused:
            self.settled.add(path)
            return _LEFT
        if Any in kinds:
            return self._core(node, path)
        if node.null and (NoneType in kinds or str not in kinds or not node.text):
            return None
        if path[:2] in EXPANDED:
            return self._expanded(node.text, path)
        if int in kinds and str in kinds and node.plain and _INTEGER.fullmatch(node.text):
            return _whole(node.text)
        return node.text

    def _core(self, node: Scalar, path: Path) -> Any:  # noqa: ANN401  (any JSON scalar)
        """Type a scalar as YAML 1.2's core schema does, for what becomes JSON as it is."""
        if not node.plain or node.text in _CONSTANTS:
            return _CONSTANTS[node.text] if node.plain else node.text
        if _NO_JSON.fullmatch(node.text):
            return self._refused(path, f"is {node.text}, which JSON can't hold")
        if _INTEGER.fullmatch(node.text):
            return self._integer(node.text, path)
        if _FLOAT.fullmatch(node.text):
            number = float(node.text)
            return number if math.isfinite(number) else self._refused(path, "is a number too large for JSON")
        return node.text

    def _integer(self, text: str, path: Path) -> Any:  # noqa: ANN401  (a number or nothing)
        number = _whole(text)
        fits = isinstance(number, int) and _SMALLEST <= number <= _BIGGEST
        return number if fits else self._refused(path, "is a number too large for JSON")

    def _refused(self, path: Path, problem: str) -> _Left:
        self.findings.append(Finding(path, f"{dotted(path)} {problem}"))
        self.settled.add(path)
        return _LEFT

    def _expanded(self, text: str, path: Path) -> Any:  # noqa: ANN401  (a text or nothing)
        """Put variables in; no message shows what they hold."""
        names = [(match[1], match[2]) for match in _VARIABLE.finditer(text) if match[0] != "$$"]
        if path[:2] == ("model", "headers") and str(path[-1]).lower() in SECRET_HEADERS and not names:
            return self._refused(path, "holds a secret as plain text: put it into a variable and write ${NAME}")
        for name, end in names:
            if not end or not _NAME.fullmatch(name):
                return self._refused(path, "has a ${ that names no variable: write ${NAME}, or $$ for a dollar")
            if name not in self.environment:
                near = suggestion(name, self.environment)
                advice = near or f": set it in the environment or in .env, or write $${{{name}}} for that text itself"
                return self._refused(path, f"needs the variable {name}, which is not set{advice}")
        return _VARIABLE.sub(lambda match: self.environment[match[1]] if match[1] else "$", text)


def typed(root: Table, environment: Mapping[str, str]) -> tuple[dict[str, Any], Typed]:
    """Give the job's data for pydantic, and what was found on the way."""
    reader = Typed(environment)
    return reader.value(root, Job, ()), reader


@cache
def hints_of(kind: Any) -> dict[str, Any]:  # noqa: ANN401  (a dataclass)
    """Give the types of the fields that a user may write."""
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind) if not item.metadata.get("set_by_loader")}


def _whole(text: str) -> int | str:
    """Give a whole number as YAML 1.2 writes it; one of absurd length stays text."""
    if len(text) > _LONGEST_NUMBER:
        return text
    return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)


def _kinds(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401  (a type)
    return get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
