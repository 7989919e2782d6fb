"""Copies answers to open questions from other checkpoints in the folder: an equal key is an equal question.

So answers of a variant (`NAME.VARIANT.sqlite`), or of the job file under another name, are not paid again.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from batchrun.checkpoint import schema
from batchrun.checkpoint.connection import Connection
from batchrun.checkpoint.files import is_ours
from batchrun.checkpoint.records import OpenRule
from batchrun.errors import StorageError

_RENAMED = re.compile(r"\.(\d{8}-\d{6}(-\d+)?|rescued-\d+)$", re.ASCII)
"""How the stem of a checkpoint ends that `--fresh` renamed: its answers are not wanted any more."""

_FOUND = ", ".join(name for name in schema.COLUMNS if name not in {"cost", "possibly_billed"})
_REPLACED = ", ".join(f"{name} = excluded.{name}" for name in schema.COLUMNS if name not in schema.ADDED_UP)

# Questions are walked in the order of their keys, on both sides: single random keys are slow.
_COPY = f"""
INSERT INTO main.answers(id, run_id, cost, possibly_billed, {_FOUND})
SELECT mine.id, 0, 0, 0, {", ".join(f"o.{name}" for name in _FOUND.split(", "))}
FROM other.questions q
CROSS JOIN other.answers s INDEXED BY answers_state ON s.id = q.id AND s.status = 'ok'
CROSS JOIN main.questions mine ON mine.key = q.key
CROSS JOIN other.answers o ON o.id = q.id
LEFT JOIN main.answers a ON a.id = mine.id
WHERE o.finished_at >= ? AND (a.id IS NULL OR a.status NOT IN ('ok', 'failed') OR a.status = 'failed' AND {{failure}})
ON CONFLICT(id) DO UPDATE SET {_REPLACED}, run_id = 0
"""  # noqa: S608  (constants)


def adopt(connection: Connection, wording: str, rule: OpenRule) -> dict[Path, int]:
    """Copy the answers that open questions have elsewhere; return how many each other checkpoint gave.

    `wording` is that of this job's plan.
    A copied answer costs nothing here and has the run number 0. A checkpoint that can't be read is passed over.
    """
    adopted: dict[Path, int] = {}
    # After --fresh, answers from before it are not wanted.
    since = connection.value(
        "SELECT CASE WHEN EXISTS(SELECT 1 FROM spending WHERE run_id = 0) THEN (SELECT min(started_at) FROM runs) "
        "ELSE 0 END"
    )
    if since is None:  # the first run after --fresh
        return adopted
    for path, is_variant in _others(connection.path):
        try:
            connection.run("ATTACH ? AS other", (f"file:{quote(os.fsencode(path))}?mode=ro",))
        except StorageError:
            continue
        try:
            if _is_usable(connection, None if is_variant else wording):
                with connection.transaction():
                    number = connection.run(_COPY.format(failure=rule.is_again), (since, *rule.values))
                    connection.run("UPDATE main.plans SET counts = NULL WHERE ?", (number > 0,))
                if number:
                    adopted[path] = number
        except StorageError:
            continue
        finally:
            connection.run("DETACH other")
    return adopted


def is_put_aside(path: Path) -> bool:
    """Check whether `--fresh` or a rescue gave a checkpoint this name: it is not a trial of a job."""
    return _RENAMED.search(path.stem) is not None


def _others(path: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the checkpoints in the same folder, and whether each is a variant of this job, or its job."""
    for other in sorted(path.parent.glob(f"*{path.suffix}")):
        if other == path or is_put_aside(other) or not _is_checkpoint(other):
            continue
        yield other, f"{other.stem}.".startswith(f"{path.stem}.") or f"{path.stem}.".startswith(f"{other.stem}.")


def _is_checkpoint(path: Path) -> bool:
    """Check whether a path is a checkpoint that can be read; it may be a folder, or another user's file."""
    try:
        return path.is_file() and not path.is_symlink() and is_ours(path)
    except OSError:
        return False


def _is_usable(connection: Connection, wording: str | None) -> bool:
    """Check whether the attached checkpoint has these tables and answers, and asks with this wording."""
    if connection.value("PRAGMA other.user_version") != schema.VERSION:
        return False
    if wording is not None and not connection.value(
        "SELECT 1 FROM other.plans WHERE current AND wording = ?", (wording,)
    ):
        return False
    return bool(connection.value("SELECT 1 FROM other.answers WHERE status = 'ok' LIMIT 1"))
