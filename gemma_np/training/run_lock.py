"""One writer for the folder of a run: a second process that would write to it is refused."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gemma_np.errors import GemmaError

_NAME = ".lock"
_NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)  # a planted link would have its target emptied


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is created if it does not exist and removed again if nothing was written to it.

    The system releases the lock of a process that ends, however it ends; its file may stay behind, and means nothing.

    Raises GemmaError when another process holds the lock, and when the folder cannot be created.
    """
    path = folder / _NAME
    descriptor = _acquire(path)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not remove an open file; it stays
            path.unlink()
        os.close(descriptor)
        with suppress(OSError):
            folder.rmdir()


def _acquire(path: Path) -> int:
    """Return the descriptor of the locked file."""
    while True:
        descriptor = _open(path)
        try:
            _lock(descriptor)
        except OSError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise GemmaError(f"{path.parent}: in use by {holder}, expected no other run in this folder") from None
        if _is_still(path, descriptor):
            with suppress(OSError):  # it is for the message to others only, and the disk may be full
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
            return descriptor
        os.close(descriptor)  # the holder before removed the file between our opening and locking it


def _open(path: Path) -> int:
    """Create the folder and the file, as far as they do not exist, and open the file."""
    try:
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process has removed its empty folder between the two calls
                return os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
    except OSError as error:
        raise GemmaError(f"{path.parent}: {error.strerror or error}, expected a folder to write to") from None


def _is_still(path: Path, descriptor: int) -> bool:
    """Return whether a path names the file of a descriptor."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> None:
    """Lock a file for this process alone. Raises OSError when another process holds it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
