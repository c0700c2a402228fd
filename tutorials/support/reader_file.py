"""The reader's file, my_gemma.py: the tutorial of each function, what is written, and how to run it.

The solutions stand in solutions/my_gemma, a file for each tutorial. To check the functions up to a tutorial, those of
later ones are taken from there, so that the whole model runs from the first function on.
"""

import ast
import linecache
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

TUTORIALS = Path(__file__).resolve().parents[1]
TEMPLATE = TUTORIALS / "my_gemma.py"
SOLUTIONS = {int(path.stem[:2]): path for path in sorted((TUTORIALS / "solutions/my_gemma").glob("*.py"))}
"""number of a tutorial -> the file with its functions."""

Definition = ast.FunctionDef | ast.ClassDef


class NotWritten(Exception):
    """A function of the reader's that has no body yet was called."""


class Wrong(Exception):
    """What is wrong with the reader's file, in words."""


def definitions(source: str) -> dict[str, Definition]:
    """Return the functions and classes of a file by their names."""
    return {node.name: node for node in ast.parse(source).body if isinstance(node, Definition)}


def tutorial_of() -> dict[str, int]:
    """Return the tutorial of each function that the reader writes, in the order of the file."""
    return {name: number for number, path in SOLUTIONS.items() for name in definitions(_text(path))}


def composed(upto: int) -> str:
    """Return the source of the template with the solutions of the tutorials up to this one filled in."""
    source = _text(TEMPLATE)
    solutions = [path for number, path in SOLUTIONS.items() if number <= upto]
    for solution in map(_text, solutions):
        for name, written in definitions(solution).items():
            stub = definitions(source)[name]
            lines, body = source.splitlines(), solution.splitlines()[written.lineno - 1 : written.end_lineno]
            source = "\n".join([*lines[: stub.lineno - 1], *body, *lines[stub.end_lineno :]]) + "\n"
    return source


class ReaderFile:
    """The reader's file, imported afresh, with the functions of the tutorials after `upto` from the solutions."""

    def __init__(self, path: str | Path, upto: int) -> None:
        """Import the file. Raises Wrong when it is not there, or when importing it fails."""
        self.path, self.upto = Path(path), upto
        own = {name: number for name, number in tutorial_of().items() if number <= upto}
        try:
            source = _text(self.path)
        except OSError as error:
            raise Wrong(f"{path}: {error.strerror}, expected the file that you write") from None
        linecache.checkcache(str(path))
        self.module = ModuleType("my_gemma")
        try:
            exec(compile(source, str(path), "exec"), vars(self.module))
        except SyntaxError as error:
            line = (error.text or "").strip()
            raise Wrong(f"{path}, line {error.lineno}: {error.msg}: `{line}`") from None
        except Exception as error:
            raise Wrong(self._said(error)) from None
        found = definitions(source)
        self.not_written = {
            name: number for name, number in own.items() if name not in vars(self.module) or is_stub(found.get(name))
        }
        for number, solution in SOLUTIONS.items():
            if number > upto:
                exec(compile(_text(solution), str(solution), "exec"), vars(self.module))
                continue
            for name, right in definitions(_text(solution)).items():
                if name in self.not_written:
                    setattr(self.module, name, _raising(NotWritten(f"{name} (tutorial {number})")))
                elif name in found and _returns(right) and not _returns(found[name]):
                    setattr(self.module, name, _raising(Wrong(f"{name} returns nothing: it has no `return`")))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a function of the file; calling it raises Wrong and NotWritten, as `called` does."""
        return partial(self.called, getattr(self.module, name))

    def called(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call what runs the reader's code; its exceptions become Wrong, one line that quotes the reader's."""
        try:
            return function(*arguments, **options)
        except (NotWritten, Wrong):
            raise
        except Exception as error:
            raise Wrong(self._said(error)) from None

    def _said(self, error: Exception) -> str:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self.path)]
        where = f" in line {own[-1].lineno}, `{own[-1].line}`" if own else ""
        return f"{type(error).__name__}: {str(error).strip()}{where}"


def is_stub(definition: Definition | None) -> bool:
    """Return whether a function, or a method of a class, has no body but a docstring and `...`."""
    if isinstance(definition, ast.ClassDef):
        return any(is_stub(method) for method in definition.body if isinstance(method, ast.FunctionDef))
    body = definition.body if definition else [ast.Pass()]
    return all(isinstance(line, ast.Pass) or _is_constant(line) for line in body)


def _is_constant(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def _raising(problem: Exception) -> Callable[..., Any]:
    def function(*arguments: Any, **options: Any) -> Any:
        raise problem

    return function


def _returns(definition: Definition) -> bool:
    """Return whether a function returns something."""
    statements = ast.walk(definition) if isinstance(definition, ast.FunctionDef) else ()
    return any(isinstance(line, ast.Return) and line.value is not None for line in statements)


def kind(value: Any) -> str:
    """Describe what came in place of what was expected."""
    if value is None:
        return "nothing (None)"
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def require_pair(what: str, found: Any, expected: str) -> None:
    """Raise Wrong unless a function returned two things."""
    if not isinstance(found, tuple) or len(found) != 2:
        raise Wrong(f"{what} returns {kind(found)}, expected {expected}")


def require_names(what: str, found: Any, expected: Iterable[str]) -> None:
    """Raise Wrong unless a dict has exactly these names."""
    if not isinstance(found, dict):
        raise Wrong(f"{what}: {kind(found)}, expected a dict from names to arrays")
    expected = list(expected)
    if missing := [name for name in expected if name not in found]:
        raise Wrong(f"{what}: {missing[0]} is missing")
    if other := [name for name in found if name not in expected]:
        raise Wrong(f"{what}: {other[0]} is not a weight of the model")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
