"""Importing the package is quick."""

import subprocess
import sys

PROGRAM = """
import time
began = time.perf_counter()
import convnext_jax
print(time.perf_counter() - began)
"""


def test_import_takes_less_than_a_second_and_a_half():
    # The best of several: other programs may be running, and the first may read from disk.
    seconds = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
        )
        seconds.append(float(done.stdout))
        if seconds[-1] < 1.5:
            return
    raise AssertionError(seconds)
