"""Starts over: the old checkpoint is kept under another name, and takes its own again where nothing was asked."""

from pathlib import Path

from batchrun.checkpoint import files, store
from batchrun.checkpoint.connection import Connection
from batchrun.checkpoint.queries import Checkpoint
from batchrun.checkpoint.writer import utc_day
from batchrun.disk import sync_folder
from batchrun.errors import CheckpointError, StorageError
from batchrun.money import ZERO, Pico


def start_fresh(path: Path, now: float) -> Path | None:
    """Start over: the old checkpoint gets another name, which is returned, and the day's spending is carried over.

    `now` is Unix time; hold the lock. A damaged checkpoint is kept as well; its spending of the day is then not carried
    over. A file that never was a checkpoint is left alone (CheckpointError).
    """
    files.prepare_folder(path)
    with files.reported(path):
        if not path.exists():
            return None
        if not files.is_ours(path):
            raise CheckpointError(f"{path} is not a checkpoint of batchrun: set checkpoint: to another path")
    today = utc_day(now)
    spent = leased = ZERO
    try:
        with Checkpoint(Connection(path)) as old:
            spent = old.spent(day=today)
            leased = Pico(old.leased(today) + old.batches.reserved(day=today))
    except StorageError:  # damaged: it keeps what it knows under its other name
        pass
    kept: list[Path] = []

    def fill(new: Connection) -> None:
        new.run("INSERT INTO spending(run_id, day, cost) VALUES (0, ?, ?)", (today, spent))
        new.run("INSERT INTO leases(run_id, day, amount) VALUES (0, ?, ?)", (today, spent + leased))
        kept.append(store.put_aside(path, now))

    store.create(path, fill)
    return kept[0]


def undo_fresh(path: Path, old: Path) -> bool:
    """Return its name to the old checkpoint; the new one must be closed. Return False where another program reads it.

    Call it where the new one holds nothing that was paid for. Raises StorageError.
    """
    with files.reported(path):
        if files.companion(old, "-wal").exists():  # it must not be left behind, nor be replayed into the new one
            return False
        for ending in files.SQLITE_ENDINGS:
            files.companion(path, ending).unlink(missing_ok=True)
        old.replace(path)
        sync_folder(path)
    return True
