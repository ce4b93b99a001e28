"""What holds for all tests."""

from __future__ import annotations

import signal

# A shell that starts the suite in the background has it ignore SIGINT, and every process that tests start and interrupt
# would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
