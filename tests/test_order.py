"""Check the reading order: docs/map.md lists every file of the package, and a file imports only from files above it.

The files are parsed, not imported. Each rule is a function of the files in reading order and of all sources, {file:
source}, with files named by their paths below gemma_np; it returns a list of complaints.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "gemma_np"


def files_in_map(page: str) -> list[str]:
    """Return the Python files that the table of the page links to, in its order."""
    return re.findall(rf"^\| \[[^\]]+\]\(\.\./{PACKAGE}/([^)]+\.py)\)", page, re.MULTILINE)


def package_sources() -> dict[str, str]:
    folder = ROOT / PACKAGE
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.py")}


def reading_order(files: list[str], sources: dict[str, str]) -> dict[str, int]:
    """Return the place of each file; an `__init__.py` that the map leaves out stands after the files of its folder."""
    order = list(files)
    unlisted = [file for file in sources if file.endswith("__init__.py") and file not in files]
    for file in sorted(unlisted, key=lambda file: file.count("/"), reverse=True):
        inside = [place for place, other in enumerate(order) if other.startswith(file.removesuffix("__init__.py"))]
        order.insert(max(inside, default=-1) + 1, file)
    return {file: place for place, file in enumerate(order)}


def file_of(module: str, sources: dict[str, str]) -> str | None:
    """Return the file of a module such as gemma_np.model.rope; None if the package has no such module."""
    path = module.removeprefix(PACKAGE).strip(".").replace(".", "/")
    candidates = [f"{path}/__init__.py".lstrip("/"), f"{path}.py"]
    return next((file for file in candidates if file in sources), None)


def bindings(node: ast.AST, file: str) -> Iterator[tuple[str, str]]:
    """Yield (the name that an import binds, the full name of what it imports) for what comes from the package."""
    if isinstance(node, ast.Import):
        names = [(alias.asname or alias.name, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        folders = [PACKAGE, *file.split("/")[:-1]]
        base = folders[: len(folders) - node.level + 1] if node.level else []
        module = ".".join([*base, node.module] if node.module else base)
        names = [(alias.asname or alias.name, f"{module}.{alias.name}") for alias in node.names]
    else:
        return
    yield from ((bound, name) for bound, name in names if name.split(".")[0] == PACKAGE)


def imports(file: str, sources: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Yield (line, imported file) for all imports of the package's own files, also in functions and conditions."""
    for node in ast.walk(ast.parse(sources[file])):
        names = [name for _, name in bindings(node, file)]
        found = {file_of(name, sources) or file_of(name.rpartition(".")[0], sources) for name in names}
        yield from ((node.lineno, imported) for imported in sorted(found - {None}))


def imports_down(files: list[str], sources: dict[str, str]) -> list[str]:
    """Find the imports of files that stand below their importer."""
    place = reading_order(files, sources)
    return [
        f"{file}:{line}: imports {imported}, which stands below it"
        for file in sources
        for line, imported in imports(file, sources)
        if file in place and imported in place and place[imported] > place[file]
    ]


def package_cycles(files: list[str], sources: dict[str, str]) -> list[str]:
    """Find a cycle between packages, where a file that is in no package counts as one."""
    graph: dict[str, set[str]] = {}
    for file in sources:
        package = file.split("/")[0]
        graph.setdefault(package, set()).update(imported.split("/")[0] for _, imported in imports(file, sources))
        graph[package].discard(package)
    try:
        TopologicalSorter({package: sorted(graph[package]) for package in sorted(graph)}).prepare()
    except CycleError as error:
        return [f"a cycle between packages: {' <- '.join(error.args[1])}"]
    return []


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def private_definitions(source: str) -> set[str]:
    """Return the private names that a file defines: functions, classes, variables, fields and attributes."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
    return set(filter(is_private, names))


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_names_across(files: list[str], sources: dict[str, str]) -> list[str]:
    """Find the private names that a file imports from another, or uses as attributes of what another defines.

    An attribute belongs to another file if it is that of an imported module, or if only other files define it.
    """
    defined = {file: private_definitions(source) for file, source in sources.items()}
    complaints = []
    for file, source in sources.items():
        tree = ast.parse(source)
        imported = [pair for node in ast.walk(tree) for pair in bindings(node, file)]
        modules = {bound for bound, name in imported if file_of(name, sources)}
        elsewhere = set().union(*(names for other, names in defined.items() if other != file)) - defined[file]
        for node in ast.walk(tree):
            names = [name.rpartition(".")[2] for _, name in bindings(node, file)]
            if isinstance(node, ast.Attribute) and (node.attr in elsewhere or ast.unparse(node.value) in modules):
                names.append(node.attr)
            complaints += [
                f"{file}:{node.lineno}: {name} is private to another file" for name in names if is_private(name)
            ]
    return complaints


def map_gaps(files: list[str], sources: dict[str, str]) -> list[str]:
    """Find the files that the map lacks, lists twice, or lists although they do not exist."""
    needed = [file for file, source in sources.items() if not file.endswith("__init__.py") or has_code(source)]
    complaints = [f"{file}: not in the map" for file in needed if file not in files]
    complaints += [f"{file}: in the map, but there is no such file" for file in files if file not in sources]
    complaints += [
        f"{file}: in the map {files.count(file)} times" for file in sorted(set(files)) if files.count(file) > 1
    ]
    return complaints


def has_code(source: str) -> bool:
    """Return whether a file does more than import names, list them in `__all__` and have a docstring."""
    return not all(
        isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in ast.parse(source).body
    )


RULES = (imports_down, package_cycles, private_names_across, map_gaps)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_order_of_the_map(rule):
    files = files_in_map((ROOT / "docs/map.md").read_text(encoding="utf-8"))
    complaints = rule(files, package_sources())
    assert not complaints, "\n".join(complaints)


def test_the_map_is_read_row_by_row():
    page = """A [file](../gemma_np/prose.py) in the text.

| file | what it does |
|---|---|
| [a.py](../gemma_np/a.py) | calls [b.py](../gemma_np/b.py) |
| **b/** | **a heading** |
| [\\_\\_init\\_\\_.py](../gemma_np/b/__init__.py) | more |
"""
    assert files_in_map(page) == ["a.py", "b/__init__.py"]


ORDER = ["a.py", "b/c.py", "b/d.py", "e.py"]


KEPT = {
    "__init__.py": "from gemma_np.e import run",
    "a.py": "_limit = 1",
    "b/__init__.py": '"""Package b."""\nfrom gemma_np.b.d import D\n__all__ = ["D"]',
    "b/c.py": "import gemma_np.a\n_limit = 2",
    "b/d.py": "from gemma_np.b import c\nclass D:\n    def f(self):\n        self._size = c.__name__, self._size",
    "e.py": "import os\nfrom . import b\nfrom .b.c import f\nnew = point._replace(x=1)",
}
"""Invented files that break no rule."""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_files_in_order_pass(rule):
    assert rule(ORDER, KEPT) == []


@pytest.mark.parametrize(
    ("rule", "file", "source", "complaint"),
    [
        (imports_down, "a.py", "import gemma_np.e", "a.py:1: imports e.py"),
        (imports_down, "a.py", "from gemma_np.e import run", "a.py:1: imports e.py"),
        (imports_down, "a.py", "from gemma_np import e", "a.py:1: imports e.py"),
        (imports_down, "a.py", "from . import e", "a.py:1: imports e.py"),
        (imports_down, "a.py", "from .b.c import f", "a.py:1: imports b/c.py"),
        (imports_down, "b/c.py", "from .d import D", "b/c.py:1: imports b/d.py"),
        (imports_down, "b/c.py", "from ..e import run", "b/c.py:1: imports e.py"),
        (imports_down, "b/c.py", "from gemma_np.b import D", "b/c.py:1: imports b/__init__.py"),
        (imports_down, "e.py", "from gemma_np import run", "e.py:1: imports __init__.py"),
        (imports_down, "a.py", "def f():\n    import gemma_np.e", "a.py:2: imports e.py"),
        (imports_down, "a.py", "if TYPE_CHECKING:\n    from gemma_np.e import run", "a.py:2: imports e.py"),
        (package_cycles, "a.py", "def f():\n    from gemma_np.b.c import g", "a.py <- b <- a.py"),
        (package_cycles, "b/c.py", "import gemma_np.e", "e.py <- b <- e.py"),
        (private_names_across, "e.py", "from gemma_np.a import _limit", "e.py:1: _limit is private"),
        (private_names_across, "e.py", "from gemma_np import a as first\nfirst._limit", "e.py:2: _limit is private"),
        (private_names_across, "e.py", "import gemma_np.a\ngemma_np.a._new", "e.py:2: _new is private"),
        (private_names_across, "e.py", "def f(d):\n    return d._size", "e.py:2: _size is private"),
        (map_gaps, "f.py", "", "f.py: not in the map"),
        (map_gaps, "b/__init__.py", "def f(): pass", "b/__init__.py: not in the map"),
    ],
)
def test_each_rule_can_fail(rule, file, source, complaint):
    complaints = rule(ORDER, KEPT | {file: source})
    assert any(complaint in each for each in complaints), complaints


def test_a_file_that_is_gone_or_listed_twice_is_a_gap():
    assert map_gaps([*ORDER, "gone.py"], KEPT) == ["gone.py: in the map, but there is no such file"]
    assert map_gaps([*ORDER, "a.py"], KEPT) == ["a.py: in the map 2 times"]


def test_an_init_that_the_map_lists_stands_where_it_is_listed():
    order = ["a.py", "b/__init__.py", "b/c.py", "b/d.py", "e.py"]
    assert imports_down(order, KEPT) == ["b/__init__.py:2: imports b/d.py, which stands below it"]


def test_an_inner_package_stands_before_the_init_around_it():
    sources = {"b/__init__.py": "import gemma_np.b.i", "b/i/__init__.py": "import gemma_np.b.i.x", "b/i/x.py": ""}
    assert imports_down(["b/i/x.py"], sources) == []
    sources["b/i/x.py"] = "import gemma_np.b.i"
    assert imports_down(["b/i/x.py"], sources) == ["b/i/x.py:1: imports b/i/__init__.py, which stands below it"]
