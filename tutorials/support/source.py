"""Show lines of the package in a tutorial, read from the source so that they are never out of date."""

import ast
import html
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gemma_np

_ROOT = Path(gemma_np.__file__).resolve().parents[1]  # of the repository, or where the package is installed


class Lines(NamedTuple):
    """Lines of a file of the package; a notebook shows them with a link to the file."""

    path: str  # relative to the root of the repository
    first: int  # counted from 1
    code: str

    def _repr_html_(self) -> str:
        # The style is for nbconvert, which gives code in outputs the font of the text.
        link = f'<a href="../{self.path}#L{self.first}">{self.path}, line {self.first}</a>'
        return f'{link}\n<pre style="font-family: ui-monospace, monospace">{html.escape(self.code, quote=False)}</pre>'

    def __repr__(self) -> str:
        return f"{self.path}, line {self.first}\n\n{self.code}"


def lines(of: Callable[..., Any], *parts: str) -> Lines:
    """Return the lines of a function or class that contain one of these parts; by default all but the docstring.

    Raises ValueError when no line contains a part, so that a tutorial fails when the code has changed.
    """
    of = inspect.unwrap(of)
    source, first = inspect.getsourcelines(of)
    for part in parts:
        if not any(part in line for line in source):
            raise ValueError(f"{of.__qualname__}: no line has {part!r}")
    docstring = _docstring(source)
    chosen = [
        (number, line)
        for number, line in enumerate(source)
        if number not in docstring and (not parts or any(part in line for part in parts))
    ]
    path = Path(inspect.getsourcefile(of) or "").resolve().relative_to(_ROOT)
    return Lines(path.as_posix(), first + chosen[0][0], textwrap.dedent("".join(line for _, line in chosen)).rstrip())


def _docstring(source: list[str]) -> range:
    """Return the indices of the lines of the docstring."""
    [definition] = ast.parse(textwrap.dedent("".join(source))).body
    head = getattr(definition, "body", [])[0]
    if isinstance(head, ast.Expr) and isinstance(head.value, ast.Constant) and isinstance(head.value.value, str):
        return range(head.lineno - 1, head.end_lineno or head.lineno)
    return range(0)
