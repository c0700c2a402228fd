"""Check that calls can be read: nothing public takes a boolean, or more than six arguments, by position.

The files are parsed, not imported. Public are functions, classes and their methods whose names have no underscore in
front, and the constructors of such classes; `self` and `cls` do not count. A parameter is boolean if its annotation is
`bool`, alone or in a union, or if its default is True or False.

The fields of a dataclass are the arguments of its constructor: more than six of them need `kw_only=True`. Booleans
among them are allowed. A NamedTuple is a result to be unpacked, and its fields cannot be keyword-only: both rules
leave it alone.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
AT_MOST = 6
OVERRIDES = {  # methods that lm-evaluation-harness calls, with the parameters that it declares
    "GemmaHarness.tok_encode",
    "GemmaHarness.apply_chat_template",
    "GemmaHarness.chat_template",
    "GemmaHarness.loglikelihood",
    "GemmaHarness.loglikelihood_rolling",
    "GemmaHarness.generate_until",
}
CONSTRUCTORS = ("__init__", "__new__", "__call__")


class Parameter(NamedTuple):
    """What can be given by position, to a function or to the constructor of a dataclass."""

    name: str
    annotation: ast.expr | None
    default: ast.expr | None


class Signature(NamedTuple):
    """A public function, method or dataclass."""

    name: str
    is_dataclass: bool
    by_position: list[Parameter]


def signatures(source: str) -> Iterator[Signature]:
    """Yield the signatures of everything public in a file."""
    return signatures_in(ast.parse(source), "")


def signatures_in(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[Signature]:
    for child in statements(node):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if child.name.startswith("_") and child.name not in CONSTRUCTORS:
            continue
        name = prefix + child.name
        if isinstance(child, ast.ClassDef):
            if decorator := dataclass_decorator(child):
                yield Signature(name, True, dataclass_parameters(child, decorator))
            yield from signatures_in(child, f"{name}.")
        else:
            has_self = isinstance(node, ast.ClassDef) and "staticmethod" not in map(ast.unparse, child.decorator_list)
            yield Signature(name, False, function_parameters(child)[has_self:])


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what stands in a module or class, also within `if` and `try`."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, ast.If | ast.Try | ast.ExceptHandler):
            yield from statements(child)


def function_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[Parameter]:
    arguments = [*function.args.posonlyargs, *function.args.args]
    defaults = [None] * (len(arguments) - len(function.args.defaults)) + function.args.defaults
    return [Parameter(each.arg, each.annotation, default) for each, default in zip(arguments, defaults, strict=True)]


def dataclass_decorator(node: ast.ClassDef) -> ast.expr | None:
    names = {ast.unparse(each.func if isinstance(each, ast.Call) else each): each for each in node.decorator_list}
    return names.get("dataclass") or names.get("dataclasses.dataclass")


def dataclass_parameters(node: ast.ClassDef, decorator: ast.expr) -> list[Parameter]:
    """Return the fields that the constructor takes by position."""
    if keyword(decorator, "kw_only") == "True":
        return []
    parameters = []
    for field in node.body:
        if not isinstance(field, ast.AnnAssign):
            continue
        if ast.unparse(field.annotation).split(".")[-1] == "KW_ONLY":
            break
        in_constructor = keyword(field.value, "init") != "False" and keyword(field.value, "kw_only") != "True"
        if in_constructor and "ClassVar" not in ast.unparse(field.annotation):
            parameters.append(Parameter(ast.unparse(field.target), field.annotation, field.value))
    return parameters


def keyword(call: ast.expr | None, name: str) -> str | None:
    """Return the argument of that name, as source; None if it is not given, or if this is no call."""
    keywords = call.keywords if isinstance(call, ast.Call) else []
    return next((ast.unparse(each.value) for each in keywords if each.arg == name), None)


def is_boolean(parameter: Parameter) -> bool:
    if isinstance(parameter.default, ast.Constant) and isinstance(parameter.default.value, bool):
        return True
    return parameter.annotation is not None and "bool" in alternatives(parameter.annotation)


def alternatives(annotation: ast.expr) -> set[str]:
    """Return the types of a union, as source, or the one type that it is."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return alternatives(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.BinOp):
        return alternatives(annotation.left) | alternatives(annotation.right)
    return {ast.unparse(annotation)}


def booleans_by_position(signature: Signature) -> str:
    booleans = [parameter.name for parameter in signature.by_position if is_boolean(parameter)]
    return f"takes {', '.join(booleans)} by position" if booleans and not signature.is_dataclass else ""


def too_many_by_position(signature: Signature) -> str:
    count = len(signature.by_position)
    return f"takes {count} arguments by position, expected at most {AT_MOST}" if count > AT_MOST else ""


RULES = (booleans_by_position, too_many_by_position)


def complaints_of(rule) -> list[tuple[str, str]]:
    """Return the (name, complaint) of everything in the package that breaks the rule."""
    complaints = []
    for path in sorted((ROOT / "gemma_np").rglob("*.py")):
        for signature in signatures(path.read_text(encoding="utf-8")):
            if complaint := rule(signature):
                complaints.append((signature.name, f"{path.relative_to(ROOT)}: {signature.name}: {complaint}"))
    return complaints


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_everything_public_keeps_the_rule(rule):
    complaints = [complaint for name, complaint in complaints_of(rule) if name not in OVERRIDES]
    assert not complaints, "\n".join(complaints)


def test_every_exception_is_needed():
    assert {name for name, _ in complaints_of(booleans_by_position)} >= OVERRIDES


SEVEN = "a, b, c, d, e, f, g"
FIELDS = "".join(f"\n    {name}: int" for name in SEVEN.split(", "))


@pytest.mark.parametrize(
    ("rule", "source", "complaint"),
    [
        (booleans_by_position, "def f(x, fast: bool): pass", "fast"),
        (booleans_by_position, "async def f(fast: bool, /): pass", "fast"),
        (booleans_by_position, "def f(x, y=1, fast=False): pass", "fast"),
        (booleans_by_position, "def f(fast: bool | None = None): pass", "fast"),
        (booleans_by_position, "def f(fast: 'None | bool' = None): pass", "fast"),
        (booleans_by_position, "class A:\n    def f(self, fast: bool): pass", "fast"),
        (booleans_by_position, "class A:\n    def __init__(self, fast: bool): pass", "fast"),
        (booleans_by_position, "class A:\n    @staticmethod\n    def f(fast: bool): pass", "fast"),
        (booleans_by_position, "class A:\n    class B:\n        def f(self, fast=True): pass", "fast"),
        (booleans_by_position, "@dataclass\nclass A:\n    def f(self, fast=True): pass", "fast"),
        (booleans_by_position, "try:\n    pass\nexcept E:\n    def f(fast=True): pass", "fast"),
        (too_many_by_position, f"def f({SEVEN}): pass", "7"),
        (too_many_by_position, f"class A:\n    def f(self, {SEVEN}): pass", "7"),
        (too_many_by_position, f"class A:\n    @classmethod\n    def f(cls, {SEVEN}): pass", "7"),
        (too_many_by_position, f"@dataclass\nclass A:{FIELDS}", "7"),
        (too_many_by_position, f"@dataclasses.dataclass(frozen=True)\nclass A:{FIELDS}\n    h: int = 1", "8"),
    ],
)
def test_each_rule_can_fail(rule, source, complaint):
    assert any(complaint in rule(signature) for signature in signatures(source))


@pytest.mark.parametrize(
    "source",
    [
        "def f(x, *, fast: bool = False): pass",
        "def f(x, choose: Callable[[int], bool], flags: dict[str, bool], mask: np.bool_): pass",
        "def _f(x, fast: bool): pass",
        "def f():\n    def inner(fast: bool): pass",
        "class _A:\n    def f(self, fast: bool): pass",
        "class A:\n    def __exit__(self, fast: bool): pass",
        "class A:\n    def f(self, a, b, c, d, e, f): pass",
        f"def f(x, *, {SEVEN}): pass",
        f"def f(*many, {SEVEN}): pass",
        f"class A(NamedTuple):{FIELDS}\n    fast: bool",
        f"@dataclass(frozen=True, kw_only=True)\nclass A:{FIELDS}",
        f"@dataclass\nclass A:\n    x: int\n    _: KW_ONLY{FIELDS}",
        "@dataclass\nclass A:\n    fast: bool = False",
        "@dataclass\nclass A:" + FIELDS.replace("int", "int = field(init=False)"),
        "@dataclass\nclass A:" + FIELDS.replace("int", "int = field(kw_only=True)"),
        "@dataclass\nclass A:" + FIELDS.replace("int", "ClassVar[int] = 1"),
    ],
)
def test_what_the_rules_allow(source):
    assert [rule(signature) for signature in signatures(source) for rule in RULES if rule(signature)] == []
