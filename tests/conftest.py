"""What holds for all tests."""

import os
import signal
from pathlib import Path

from hypothesis import settings

# How long an example takes says something about the machine alone. A change must not fail by what chance draws beside
# it: the examples are the same each time, and `make fuzz` draws others.
settings.register_profile("tests", deadline=None, derandomize="BATCHRUN_FUZZ_EXAMPLES" not in os.environ)
settings.load_profile("tests")

# Whoever starts the tests in the background ignores these for its children, and ours must feel them.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# A client that reads all certificates of the system takes longer than the requests of most tests.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("support") / "certificate.pem")


def pytest_xdist_auto_num_workers() -> int:
    """Return how many workers `-n auto` starts: one more than processors, since some tests always wait for a clock."""
    return (os.cpu_count() or 1) + 1
