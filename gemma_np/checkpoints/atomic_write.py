"""Files that are whole or not there at all."""

import os
from collections.abc import Callable
from pathlib import Path

from gemma_np.errors import GemmaError


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its target, and put it in the target's place once it is whole and on the disk.

    Raises GemmaError when the target is no place for a file.
    """
    if not path.name or path.is_dir():
        raise GemmaError(f"{path}: a folder, expected a file to write")
    if not path.parent.is_dir():
        raise GemmaError(f"{path}: there is no folder {path.parent} to write it to")
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
