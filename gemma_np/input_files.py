"""Read files that come from outside: regular files only, whole, as bytes or as UTF-8 text."""

import os
import stat
from pathlib import Path

from gemma_np.errors import GemmaError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def require_file(path: Path, expected: str = "a file") -> int:
    """Check that a path is a regular file, and return its bytes: reading a pipe or a device could last forever.

    Raises GemmaError, with the kind of file that was expected, when it is not.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise GemmaError(f"{path}: {error.strerror or error}, expected {expected}") from None
    except ValueError as error:  # a null character in the name
        raise GemmaError(f"{str(path)!r}: {error}, expected {expected}") from None
    if not stat.S_ISREG(status.st_mode):
        raise GemmaError(f"{path}: {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}, expected {expected}")
    return status.st_size


def read_bytes(path: Path, expected: str, limit: float = float("inf")) -> bytes:
    """Return the content of a regular file. Raises GemmaError when it cannot be read or has more bytes than `limit`."""
    size = require_file(path, expected)
    if size > limit:
        raise GemmaError(f"{path}: {size} bytes, expected {expected} of at most {limit:.0f}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise GemmaError(f"{path}: {error.strerror or error}, expected {expected}") from None


def read_text(path: Path, expected: str = "a text file in UTF-8", limit: float = float("inf")) -> str:
    """Return the text of a UTF-8 file, with a newline at the end of each line, as Python opens text files.

    Raises GemmaError when it cannot be read, is not UTF-8 or has more bytes than `limit`.
    """
    text = decode_utf8(read_bytes(path, expected, limit), path, expected)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode_utf8(content: bytes, source: str | os.PathLike[str], expected: str = "text in UTF-8") -> str:
    """Return the text of bytes in UTF-8. Raises GemmaError, with source and position, if they are not."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        byte = f"byte {content[error.start]:#04x} at position {error.start} is not UTF-8"
        raise GemmaError(f"{source}: {byte}, expected {expected}") from None
