"""Write files atomically: completely or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

from gemma_np.errors import GemmaError


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its target and rename it once it is complete and on disk.

    Raises GemmaError when the target is a folder, or its folder does not exist.
    """
    if not path.name or path.is_dir():
        raise GemmaError(f"{path}: a folder, expected a file to write")
    if not path.parent.is_dir():
        raise GemmaError(f"{path}: the folder {path.parent} does not exist, expected a file in an existing folder")
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
