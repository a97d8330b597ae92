"""Settings that every test needs before torch is imported."""

import os

# Two threads that wait for each other on a busy machine take 50 times as long per token as one (measured).
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
