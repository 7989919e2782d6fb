"""Many starts of one job at the same time: one runs, the others leave at once."""

import time
from pathlib import Path

from crash.harness import BUSY, Ended, ended, sample_texts, write_job
from crash.ledger import Ledger, serving


def start_together(number: int, folder: Path) -> list[Ended]:
    """Start that many processes; the server holds its replies until all but one have gone. Check who sent."""
    with serving(Ledger(held=True)) as ledger:
        job = write_job(folder, ledger.url, sample_texts(200))
        processes = [job.start() for _ in range(number)]
        patience = time.monotonic() + 180
        while sum(process.is_running() for process in processes) > 1 and time.monotonic() < patience:
            time.sleep(0.05)
        ledger.release()
        ends = [ended(process) for process in processes]
        assert sorted(end.code for end in ends) == [1] + [BUSY] * (number - 1), [end.code for end in ends]
        assert all("this job is already running (pid " in end.said for end in ends if end.code == BUSY)
        assert set(ledger.received.values()) == {1}
        assert set(ledger.received) == job.questions
    return ends
