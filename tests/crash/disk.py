"""Full disks: the checkpoint's, the output's, the one for temporary files; before a run and in its midst."""

import gzip
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from crash.harness import CrashJob, Ended, ended, write_job
from crash.ledger import Ledger

MEGABYTES = 24
TEXTS = [f"text {number}" for number in range(3_000)]


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a file system of 24 MB while the block runs; None where that is not permitted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(folder: Path) -> Path:
    """Take all the space that is left; unlink the file to give it back."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 4096, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break
    return filler


def job_on(disk: Path, elsewhere: Path, url: str, *, full: str) -> CrashJob:
    """Write a job whose checkpoint, output or temporary files (`full`) lie on the small disk, all else beside."""
    output = {"output": {"path": str(disk / "out.csv")}} if full == "output" else {}
    job = write_job(elsewhere, url, TEXTS, **output)
    plan = json.loads(job.path.read_text())
    if full == "checkpoint":
        plan["checkpoint"] = str(disk / "job.sqlite")
    elif full == "temporary":
        # What is packed is unpacked into a temporary file.
        (elsewhere / "rows.csv.gz").write_bytes(gzip.compress((elsewhere / "rows.csv").read_bytes()))
        plan["input"]["path"] = "rows.csv.gz"
    job.path.write_text(json.dumps(plan))
    return job


def fill_in_midst(job: CrashJob, ledger: Ledger, after: int, fill: Callable[[], Path]) -> tuple[Ended, Path]:
    """Run a job, and fill the disk after that many arrivals and replies, in the server's thread."""
    left = [after]
    filler: list[Path] = []

    def event() -> None:
        left[0] -= 1
        if left[0] <= 0 and not filler:
            filler.append(fill())

    process = job.start()
    ledger.on_event = event
    end = ended(process)
    ledger.on_event = None
    return end, filler[0]
