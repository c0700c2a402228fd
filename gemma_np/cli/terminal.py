"""The terminal: standard streams that always work, text that cannot control it, one line for each message."""

import logging
import os
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

from gemma_np.errors import GemmaWarning
from gemma_np.progress import is_quiet

_LONGEST_MESSAGE = 200
_LONG_WORD = re.compile(r"\S{10,}(\S{50})")  # a path, mostly
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def prepare_streams() -> None:
    """Replace closed standard streams by the null device, read UTF-8, and write every character in some way.

    Without a replacement the next file that is opened takes the place of a closed stream, and messages end up in it.
    Bytes that are not UTF-8 become lone surrogates, as in arguments; the tokenizer refuses them.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open as long as the process)
    if isinstance(sys.stdin, TextIOWrapper) and sys.stdin.encoding != "utf-8":
        sys.stdin.reconfigure(encoding="utf-8")
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, TextIOWrapper) and stream.errors != errors:
            stream.reconfigure(errors=errors)


def discard_output() -> None:
    """Let the null device take what is left of the standard output, since nobody reads it or it cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that unfinished files are removed."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    try:
        before = {name: signal.signal(getattr(signal, name), _exit) for name in names}
    except ValueError:  # only the main thread receives signals
        before = {}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def printable(text: str) -> str:
    """Return a text that cannot control a terminal: control characters, but for tab and newline, become escapes."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def print_message(message: object) -> None:
    """Print one line to standard error; of more than 200 characters, the start of long paths and the middle go."""
    line = printable(" ".join(str(message).split()))
    if len(line) > _LONGEST_MESSAGE:
        line = _LONG_WORD.sub(r"...\1", line)
    if len(line) > _LONGEST_MESSAGE:
        line = f"{line[:120]} ... {line[-(_LONGEST_MESSAGE - 125) :]}"
    print(line, file=sys.stderr)


@contextmanager
def own_warnings_only() -> Iterator[None]:
    """Print a warning of this package as one line, and hide those of other libraries, which the user cannot act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", GemmaWarning)
        warnings.showwarning = lambda message, *_, **__: print_message(f"gemma-np: warning: {message}")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def print_status(message: str) -> None:
    """Print a line about the work, which is no result, to standard error; not with --quiet, and on rank 0 alone."""
    if not is_quiet():
        print(message, file=sys.stderr)


def report_bug(error: Exception) -> None:
    """Write the traceback of a bug to a file, and print one line that says what to do with it."""
    with tempfile.NamedTemporaryFile("w", prefix="gemma-np-", suffix=".txt", delete=False, errors="replace") as file:
        file.write("".join(traceback.format_exception(error)))
    print_message(f"gemma-np: a bug ({type(error).__name__}); please report it with the traceback in {file.name}")


def size_of(count: int) -> str:
    """Return a number of bytes in words, such as 1.25 GB."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
