"""What holds for all tests."""

from __future__ import annotations

import signal

# A shell that starts the suite in the background has it ignore SIGINT, nohup SIGHUP, and every process that tests start
# and signal would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
