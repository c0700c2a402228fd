"""Freed memory stays in the process."""

import subprocess
import sys

import pytest

from gemma_np import allocator

FAULTS = """
import resource
import runpy
import numpy as np

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    arrays = [np.ones(2**17) for _ in range(50)]  # 1 MiB each
    del arrays

assert runpy.run_path(PATH)["keep_freed_memory"]()
for _ in range(3):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the page faults of Linux")
def test_freed_memory_is_used_again():
    """Loaded by its path, since the heap of a process that imports the package may happen to end in something that
    keeps the freed memory, too."""
    script = FAULTS.replace("PATH", repr(allocator.__file__))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    pages = 10 * 50 * 2**20 // 4096
    assert int(result.stdout) < pages / 100
