"""What holds for all tests."""

import signal

# Whoever starts the tests in the background ignores these for its children, and ours must feel them.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)
