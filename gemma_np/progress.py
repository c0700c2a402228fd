"""Show on standard error how far long work is: a bar on a terminal, elsewhere a line every half minute."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

_BAR = "{desc}: {percentage:.0f} % |{bar}| {n_fmt}/{total_fmt} {unit}, {remaining} left{postfix}"
_LINE = "{desc}: {percentage:.0f} %, {n_fmt} of {total_fmt} {unit}, {remaining} left{postfix}"
_SECONDS_BEFORE_BAR = 2
_SECONDS_BETWEEN_LINES = 30

_is_quiet = ContextVar("is_quiet", default=False)


def progress_bar(
    iterable: Iterable[Any] | None = None, *, desc: str, unit: str, hide: bool = False, **options: Any
) -> "tqdm[Any]":
    """Return a bar that wraps an iterable, or that is advanced with `update`; other options: those of tqdm.

    It appears after two seconds and vanishes at the end. Lines take its place where there is no terminal, as in a pipe
    and under `mpiexec`, on a dumb one (TERM=dumb), and with NO_COLOR.
    """
    from tqdm import tqdm

    if _draws_bars():
        options |= {"bar_format": _BAR, "delay": _SECONDS_BEFORE_BAR, "dynamic_ncols": True}
    else:
        options |= {"bar_format": _LINE, "delay": _SECONDS_BETWEEN_LINES, "mininterval": _SECONDS_BETWEEN_LINES}
        options |= {"miniters": 1, "file": _Lines()}
    return tqdm(iterable, desc=desc, unit=unit, leave=False, disable=hide or is_quiet(), **options)


@contextmanager
def quiet() -> Iterator[None]:
    """Show no progress meanwhile."""
    token = _is_quiet.set(True)
    try:
        yield
    finally:
        _is_quiet.reset(token)


def is_quiet() -> bool:
    """Return whether no progress is to be shown."""
    return _is_quiet.get()


def _draws_bars() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


class _Lines:
    """A file for tqdm that writes each state of a bar as a line of its own."""

    def write(self, text: str) -> None:
        if state := text.strip():
            print(state, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass  # each line is flushed
