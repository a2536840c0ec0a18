"""What all tests stand on."""

from __future__ import annotations

import signal

# A shell starts background jobs with SIGINT ignored, and their children inherit that; tests of Ctrl-C need it heard.
signal.signal(signal.SIGINT, signal.default_int_handler)
