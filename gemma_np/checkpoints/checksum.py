"""Checksums of arrays and of folders, to find damage before it becomes a wrong result."""

import zlib
from pathlib import Path

import numpy as np

from gemma_np.input_files import read_bytes
from gemma_np.json_input import whole_number

CHECKSUM = whole_number(0, 2**32 - 1)
"""The schema of a checksum in JSON."""


def checksum(array: np.ndarray) -> int:
    """Return the CRC-32 of the bytes of an array [...]."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def folder_checksum(folder: Path) -> int:
    """Return the CRC-32 of the names and contents of the files in a folder, which are in memory one at a time.

    Raises GemmaError when one cannot be read.
    """
    value = 0
    for path in sorted(folder.iterdir()):
        value = zlib.crc32(read_bytes(path, "a file of a checkpoint"), zlib.crc32(path.name.encode(), value))
    return value
