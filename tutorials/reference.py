"""Write the API reference: a page for each module, made from its docstrings.

    pip install -e ".[docs]"
    python tutorials/reference.py site/reference

Modules that need a package that is not installed are left out and listed: `testing` needs the extra `test`, and
`integrations.lm_eval` the extra `evaluation`.
"""

import argparse
import importlib
import pkgutil
import re
import typing
import warnings
from pathlib import Path

import numpy.typing
import pdoc

for name in ("ArrayLike", "DTypeLike"):  # their names say more than the lines that they stand for
    alias = typing.NewType(name, object)
    alias.__module__ = "numpy.typing"
    setattr(numpy.typing, name, alias)

import gemma_np  # noqa: E402

HERE = str(Path(gemma_np.__file__).parent.parent)

_walk_tree = pdoc.doc_ast.walk_tree


def with_comments(thing: typing.Any) -> typing.Any:
    """Return what pdoc finds in a class or module, plus the comments on the fields of a class."""
    found = _walk_tree(thing)
    if isinstance(thing, type):
        for line in pdoc.doc_ast.get_source(thing).splitlines():
            if field := re.match(r"    (\w+): .*?  # (.*)", line):
                found.var_docstrings.setdefault(field[1], re.sub(r"^\[", r"\\[", field[2]))  # "[x]: y" is a link
    return found


def show_what_is_below(package: str) -> None:
    """Add the modules of a package to its `__all__`, which is what pdoc shows."""
    module = importlib.import_module(package)
    if hasattr(module, "__all__"):
        below = [part.name for part in pkgutil.iter_modules(module.__path__)]
        module.__all__ = [*module.__all__, *(name for name in below if name != "__main__")]


def write_reference(folder: Path) -> None:
    """Write a page for each module that can be imported to a folder."""
    left_out = []
    show_what_is_below("gemma_np")
    for part in pkgutil.walk_packages(gemma_np.__path__, "gemma_np."):
        if part.name.endswith("__main__"):  # it would run
            continue
        try:
            importlib.import_module(part.name)
        except ModuleNotFoundError as error:
            print(f"left out: {part.name} ({error})")
            left_out.append(part.name)
            continue
        if part.ispkg:
            show_what_is_below(part.name)
    if left_out:  # pdoc would say it again, in fifty lines
        warnings.filterwarnings("ignore", "Couldn't import|Found '")
    pdoc.doc_ast.walk_tree = with_comments
    pdoc.render.configure(docformat="markdown", footer_text=f"gemma_np {gemma_np.__version__}")
    pdoc.pdoc("gemma_np", *(f"!{name}$" for name in left_out), output_directory=folder)
    for page in (file for file in folder.rglob("*") if file.suffix in (".html", ".js")):
        text = page.read_text(encoding="utf-8")
        if HERE in text:  # as in the value of a path
            page.write_text(text.replace(HERE, "..."), encoding="utf-8")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="Write a page for each module, made from its docstrings.")
    arguments.add_argument("folder", type=Path)
    write_reference(arguments.parse_args().folder)
