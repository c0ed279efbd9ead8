"""Settings of the whole test run."""

import os

# Before torch is imported anywhere: the tests' arrays are too small to gain from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
