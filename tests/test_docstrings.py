"""The docstrings say what a test can look for: shapes in defined letters, errors, units, sources.

The files are parsed, not imported, so that modules which need optional packages are looked at, too.
"""

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gemma_np.config import RELEASED
from tests.support.site import build_site

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "gemma_np").rglob("*.py"))
GLOSSARY = (ROOT / "tutorials" / "glossary.md").read_text(encoding="utf-8")

_FIRST_CELLS = " ".join(re.findall(r"^\| (`.*?) \|", GLOSSARY, re.MULTILINE))
DEFINED = set(re.findall(r"`(\w+)`", _FIRST_CELLS))
"""The letters and words that stand for the length of an axis: the first column of the glossary's tables."""

ARRAYS = {"ndarray", "ArrayLike", "NDArray"}
BY_NAME = {"dict", "Mapping", "MutableMapping", "Callable"}  # arrays in there have the shapes that their names tell

UNITS = {  # part of a function's name -> what it, or its module, has to say
    r"bytes|memory": r"bytes|\bGB\b",
    r"seconds|speed|time": r"second",
    r"loss|entropy|likelihood|log_prob|kl$|divergence|surprise|distillation|jensen": r"\bnats\b",
    r"bits": r"\bbits\b",
    r"angle|rotation": r"radian",
}

COMPUTES = ("model", "training", "compression", "evaluation", "text")
PLUMBING = {  # modules in these packages that compute nothing that stands in a paper
    "model/records",
    "training/data",
    "training/initial_model",
    "training/__init__",
    "training/run_lock",
    "training/run_log",
    "training/runs",
    "training/training_state",
    "training/task",
    "training/trainer",
    "compression/gguf_export",
    "compression/benchmark",
    "compression/pruning_plan",
    "compression/quantize_model",
    "evaluation/plots",
    "text/generation",
    "text/logprobs",
    "text/stop_strings",
}


class Public(NamedTuple):
    """A module, or a public class, function or method in it, with the docstrings that speak for it."""

    file: str  # below gemma_np, without .py
    name: str
    node: ast.Module | ast.ClassDef | ast.FunctionDef
    own: str  # its docstring; of a class, those of its __init__ and the comments of its fields, too
    outer: str  # those of what it stands in


def public(file: str, source: str) -> Iterator[Public]:
    """The module of that source, and what is public in it."""
    lines = source.splitlines()

    def inside(node, prefix, outer) -> Iterator[Public]:
        for child in node.body:
            if not isinstance(child, ast.ClassDef | ast.FunctionDef) or child.name.startswith("_"):
                continue
            if "overload" in map(ast.unparse, child.decorator_list):  # the types alone; the function itself follows
                continue
            own = ast.get_docstring(child) or ""
            if isinstance(child, ast.ClassDef):
                words = [own, *(ast.get_docstring(each) or "" for each in constructors(child))]
                words += [lines[field.lineno - 1].partition("#")[2] for field in fields(child)]
                words += [each.value.value for each in child.body[1:] if is_text(each)]  # what stands below a field
                made = "\n\n".join(filter(None, words))
                yield Public(file, prefix + child.name, child, made if own else "", outer)
                yield from inside(child, f"{prefix}{child.name}.", f"{outer}\n{own}")
            else:
                yield Public(file, prefix + child.name, child, own, outer)

    module = ast.parse(source)
    words = ast.get_docstring(module) or ""
    yield Public(file, "module", module, words, "")
    yield from inside(module, "", words)


def is_text(node) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def fields(node) -> list[ast.AnnAssign]:
    return [child for child in node.body if isinstance(child, ast.AnnAssign)]


def constructors(node) -> list[ast.FunctionDef]:
    return [child for child in node.body if getattr(child, "name", "") in ("__init__", "__post_init__")]


def annotations(thing: Public) -> Iterator[tuple[str, ast.expr]]:
    """What goes into a function and comes out of it, or the fields of a class."""
    if isinstance(thing.node, ast.Module):
        return
    if isinstance(thing.node, ast.ClassDef):
        yield from ((ast.unparse(field.target), field.annotation) for field in fields(thing.node))
    for function in constructors(thing.node) if isinstance(thing.node, ast.ClassDef) else [thing.node]:
        arguments = function.args
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
            if argument.annotation:
                yield argument.arg, argument.annotation
        if function.returns:
            yield "return", function.returns


def has_arrays(annotation: ast.expr) -> bool:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return has_arrays(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).split(".")[-1] in BY_NAME:
        return False
    if isinstance(annotation, ast.Name | ast.Attribute):
        return ast.unparse(annotation).split(".")[-1] in ARRAYS
    return any(has_arrays(part) for part in ast.iter_child_nodes(annotation))


def shapes(words: str) -> list[str]:
    """What stands in brackets as a shape does: [..., T, D], [B, T + 1], [n / 2], but not x[i] nor ["a", ...]."""
    length = r"\w+(?: ?[*/+-] ?\w+)*"
    return re.findall(rf"(?<![\w\])`])\[((?:\.\.\.|{length})(?:, {length})*)\]", words)


def raised(thing: Public) -> set[str]:
    """The errors that the body itself raises, not those of functions within it; of a class, its constructor's."""
    if isinstance(thing.node, ast.Module):
        return set()
    roots = constructors(thing.node) if isinstance(thing.node, ast.ClassDef) else [thing.node]
    found, waiting = set(), [child for root in roots for child in root.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise) and node.exc:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            found.add(ast.unparse(error).split(".")[-1])
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return found


def undocumented(thing: Public) -> str:
    empty_package = thing.name == "module" and not thing.node.body
    return "" if thing.own or empty_package else "no docstring"


def without_shapes(thing: Public) -> str:
    arrays = [name for name, annotation in annotations(thing) if has_arrays(annotation)]
    if arrays and not shapes(thing.own):
        return f"no shape of {', '.join(arrays)}"
    arguments = [name for name in arrays if name != "return"]
    if isinstance(thing.node, ast.FunctionDef) and len(arguments) > 1:
        unnamed = [name for name in arguments if not re.search(rf"\b{name}\b", thing.own)]
        return f"no word of {', '.join(unnamed)}" if unnamed else ""
    return ""


def undefined_letters(thing: Public) -> str:
    names = {name for shape in shapes(thing.own) for name in re.findall(r"[A-Za-z_]\w*", shape)}
    unknown = names - DEFINED - {name for name, _ in annotations(thing)}
    return f"not in the glossary: {', '.join(sorted(unknown))}" if unknown else ""


def silent_errors(thing: Public) -> str:
    words = thing.own + thing.outer if "." in thing.name or thing.file.startswith("cli") else thing.own
    unsaid = [
        name
        for name in raised(thing)
        if not (re.search(r"\b[Rr]aises?\b", words) if name.islower() else re.search(rf"\b{name}\b", words))
    ]
    return f"does not say that it raises {', '.join(unsaid)}" if unsaid else ""


def without_units(thing: Public) -> str:
    if not isinstance(thing.node, ast.FunctionDef) or thing.file.startswith("cli"):
        return ""
    numbers = re.search("float|int|ndarray", ast.unparse(thing.node.returns)) if thing.node.returns else None
    name = thing.name.rpartition(".")[2]
    unsaid = [
        u
        for part, u in UNITS.items()
        if re.search(part, name) and not re.search(u, thing.own + thing.outer, re.IGNORECASE)
    ]
    return f"no unit, expected {unsaid[0]}" if numbers and unsaid else ""


def without_source(thing: Public) -> str:
    computes = thing.file.startswith(tuple(f"{package}/" for package in COMPUTES)) and thing.file not in PLUMBING
    if thing.name != "module" or not computes or not thing.node.body:
        return ""
    cited = re.search(r"\bSources?: .*(report|arXiv|\b(19|20)\d\d\b|lm-evaluation-harness)", thing.own, re.DOTALL)
    return "" if cited else "no line 'Source:' with a report or paper"


CHECKS = (undocumented, without_shapes, undefined_letters, silent_errors, without_units, without_source)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_public_thing_is_documented(check):
    complaints = []
    for path in FILES:
        file = path.relative_to(ROOT / "gemma_np").with_suffix("").as_posix()
        for thing in public(file, path.read_text(encoding="utf-8")):
            if complaint := check(thing):
                complaints.append(f"gemma_np/{file}.py: {thing.name}: {complaint}")
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (undocumented, "def f(): pass"),
        (without_shapes, 'def f(x: np.ndarray) -> float:\n    """The sum of x."""'),
        (without_shapes, 'def f(x: float) -> tuple[int, "np.ndarray | None"]:\n    """x[0], ["a"] and `[T]`."""'),
        (without_shapes, 'def f(x: ArrayLike, y: ArrayLike) -> float:\n    """The sum of x [T]."""'),
        (without_shapes, 'class A:\n    """A."""\n    x: np.ndarray  # what it is'),
        (undefined_letters, 'def f(x: np.ndarray) -> None:\n    """x [..., Q, D]."""'),
        (silent_errors, 'def f() -> None:\n    """Do."""\n    if 1:\n        raise GemmaError("no")'),
        (silent_errors, 'class A:\n    """A."""\n    def __init__(self):\n        raise GemmaError("no")'),
        (silent_errors, 'def f() -> None:\n    """Do."""\n    raise _not_finite()'),
        (without_units, 'def cache_bytes() -> int:\n    """How large the cache is."""'),
        (without_units, 'def validation_loss() -> float:\n    """The mean over all batches."""'),
        (without_source, '"""Attention."""\nimport math'),
    ],
)
def test_each_check_can_fail(check, source):
    assert any(check(thing) for thing in public("model/invented", source))


def test_the_glossary_has_the_letters_of_the_config():
    [words] = (
        thing.own for thing in public("config", (ROOT / "gemma_np/config.py").read_text()) if thing.name == "module"
    )
    letters = re.findall(r"(?:^| {4,})(\w)  (?=\w)", words, re.MULTILINE)
    assert sorted(letters) == sorted("BTSDFVHKGh")
    assert set(letters) <= DEFINED


def test_the_glossary_has_the_sizes_of_gemma_2_2b():
    sizes = re.findall(r"^\| `\w` \|[^|]*\| `(\w+)` \| (\d+) \|$", GLOSSARY, re.MULTILINE)
    assert len(sizes) == 6
    assert [(name, getattr(RELEASED["gemma-2-2b"], name)) for name, _ in sizes] == [(n, int(size)) for n, size in sizes]


@pytest.mark.parametrize("page", ["tutorials/glossary.md", ".github/CONTRIBUTING.md", "tests/README.md"])
def test_pages_link_to_what_is_there(page):
    places = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert len(places) > 10
    assert [place for place in places if not ((ROOT / page).parent / place).exists()] == []


def test_the_terms_of_the_glossary_are_in_order():
    terms = [term.lower() for term in re.findall(r"^\*\*(.+?)\*\*", GLOSSARY, re.MULTILINE)]
    assert len(terms) > 40
    assert terms == sorted(terms)


@pytest.mark.docs
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT / "gemma_np").as_posix())
def test_the_reference_has_every_docstring(path):
    file = path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__")
    page = (build_site() / file / "index.html").read_text(encoding="utf-8")
    reference = page[page.index("<article") : page.index("</article>")].partition('id="source"')[0]
    shown = bare(html.unescape(re.sub(r"<[^>]+>", "", reference)))
    things = public(file.removeprefix("gemma_np/"), path.read_text(encoding="utf-8"))
    words = [(thing.name, part) for thing in things for part in thing.own.split("\n\n")]
    assert [(name, part) for name, part in words if bare(part) not in shown] == []
    assert [text for text in re.findall("<em>(.*?)</em>", reference) if " " in text] == []


def bare(words):
    """Without white space, and without the marks that make code and emphasis of words."""
    return re.sub(r"[\s`*]", "", words)
