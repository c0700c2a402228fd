"""Checksums of the numbers in a file, to find damage before it becomes a wrong result."""

import zlib

import numpy as np

from gemma_np.json_input import whole_number

CHECKSUM = whole_number(0, 2**32 - 1)
"""The schema of a checksum in JSON."""


def checksum(array: np.ndarray) -> int:
    """Return the CRC-32 of the bytes of an array [...]."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
