"""Settings that every test needs before torch is imported."""

import os

# Two threads that wait for each other on a busy machine take 50 times as long per token as one (measured).
os.environ.setdefault("OMP_NUM_THREADS", "1")
