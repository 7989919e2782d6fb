"""What holds for all tests."""

import gc
import os
import signal
from pathlib import Path

from hypothesis import settings

# How long an example takes says something about the machine alone.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Whoever starts the tests in the background ignores these for its children, and ours must feel them.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# A client that reads all certificates of the system takes longer than the requests of most tests.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("support") / "certificate.pem")


def pytest_collection_finish() -> None:
    """Keep the garbage collector from what was imported: it looks through it in a tenth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 100)  # a small heap would be looked through ten times as often
