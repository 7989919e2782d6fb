"""Batches that the provider has and nobody has collected yet: their names for people, and what forgets none of them."""

from collections.abc import Sequence
from pathlib import Path

from batchrun.checkpoint import Batch, Checkpoint
from batchrun.errors import ConfirmError, StorageError
from batchrun.money import show
from batchrun.terminal import plural

SHOWN = 3
"""Batches that a line names."""


def refuse_to_forget(path: Path) -> None:
    """Raise ConfirmError where --fresh would leave batches that nobody collects, and that are billed all the same."""
    if not path.exists():
        return
    try:
        with Checkpoint.open(path, read_only=True) as checkpoint:
            batches = checkpoint.batches.open()
    except StorageError:  # damaged: nothing can be read from it
        return
    if batches:
        reserved = show(sum(batch.reserved for batch in batches))
        raise ConfirmError(
            f"--fresh would forget {plural(len(batches), 'batch')} that may cost up to {reserved} ({named(batches)}): "
            "run without --fresh to collect them, or add --yes"
        )


def named(batches: Sequence[Batch]) -> str:
    """Return the providers' ids of some batches."""
    names = ", ".join(batch.provider_id or "one that is not confirmed" for batch in batches[:SHOWN])
    return names if len(batches) <= SHOWN else f"{names} and {len(batches) - SHOWN:,} more"
