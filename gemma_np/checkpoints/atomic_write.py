"""Write files and folders atomically: completely or not at all."""

import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gemma_np.errors import GemmaError
from gemma_np.input_files import require_file

_PREFIX = f".gemma_np.{re.sub('[^A-Za-z0-9-]', '-', platform.node())}."


def atomic_write(path: Path, write: Callable[[Path], object], *, as_folder: bool = False) -> None:
    """Write a file or a folder beside its target, and rename it once it is complete and on disk.

    `write` gets the path of an empty file, or of an empty folder to fill. When it fails or the process is stopped,
    nothing is left of it; what a killed process of this machine left is removed by the next write in the same folder.

    The folder of a file must exist; that of a folder is created. Raises GemmaError when it does not, when the target is
    no file (or a folder that is not empty), and when it cannot be written, as on a full disk.
    """
    if as_folder:
        _check_new_folder(path)
    else:
        check_file_to_write(path)
    left = "the file before is whole" if path.is_file() else "nothing is left of it"
    partial = path.with_name(f"{_PREFIX}{os.getpid()}.{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        try:
            if as_folder:
                partial.mkdir()
            else:
                os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            _call(write, partial, path)
            for written in (*partial.rglob("*"), partial):
                _sync(written)
            partial.replace(path)
        finally:
            _remove(partial)
        left = "it is whole, but may be lost if the power fails now"
        _sync(path.parent)
    except OSError as error:
        raise GemmaError(f"{path}: could not be written ({error.strerror or error}); {left}") from None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values to a JSON file. Raises GemmaError when it cannot be written."""
    write_content(path, (json.dumps(values, indent=2) + "\n").encode())


def write_content(path: Path, content: bytes) -> None:
    """Write a file that a run writes again and again, unless it has this content: waiting for the disk takes longer
    than a training step of a small model. Raises GemmaError when it cannot be written."""
    if not _has(path, content):
        atomic_write(path, lambda partial: partial.write_bytes(content))


def _has(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _call(write: Callable[[Path], object], partial: Path, path: Path) -> None:
    """Call `write`; an error about the unfinished file is one about its target."""
    try:
        write(partial)
    except GemmaError as error:
        raise GemmaError(str(error).replace(str(partial), str(path))) from None


def check_file_to_write(path: Path) -> None:
    """Check that a path is a file or a new name in an existing folder. Raises GemmaError when it is not."""
    if not path.name or path.exists():
        require_file(path, "a file to write")
    if not path.parent.is_dir():
        raise GemmaError(f"{path}: the folder {path.parent} does not exist, expected a file in an existing folder")


def _check_new_folder(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise GemmaError(f"{path}: exists, expected a new folder")


def _sync(path: Path) -> None:
    """Wait until a file or the entries of a folder are on disk. Only POSIX systems can open a folder."""
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files and folders of processes that no longer run, as far as this user may."""
    with suppress(OSError):
        for name in os.listdir(folder):
            process = re.fullmatch(rf"{re.escape(_PREFIX)}(\d+)\.[0-9a-f]+\.partial", name)
            if process and not _is_running(int(process[1])):
                _remove(folder / name)


def _is_running(process: int) -> bool:
    """Return whether a process of this machine runs; on Windows, which cannot tell in a simple way, it counts so."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # the process of another user; no number of a process
        return True
    return True
