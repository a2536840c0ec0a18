"""What all tests stand on."""

from __future__ import annotations

import gc
import os
import signal

# Before anything imports torch, and for whatever is started from here. A pool of threads that a test has started is in
# none of the children that are forked later, and whoever then computes with it waits for ever; and three workers of
# pytest have two cores.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

from hypothesis import HealthCheck, settings

from holdfast import Checkpointer

# What earlier tests have left to be collected is the parent's: a destructor that waits for a thread, of a store of
# torch's perhaps, waits for ever in a forked child, which has none of the threads.
os.register_at_fork(after_in_child=gc.freeze)

# An example is not wrong because the machine was busy elsewhere while it ran.
settings.register_profile("holdfast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("holdfast")

# A shell starts background jobs with SIGINT ignored, and their children inherit that; tests of Ctrl-C need it heard.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Saving in line is what most tests are not about, and it needs no other process; those that are about the saver process
# say saver="process". Trainings that tests start as processes of their own have the default that users have.
Checkpointer.__init__.__kwdefaults__["saver"] = "inline"
