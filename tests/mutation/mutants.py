"""Small changes of a source file, each a mistake that one could make: an operator, a number, a missing statement."""

import ast
from collections.abc import Iterator
from typing import NamedTuple

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
SHOWN = {"tqdm", "warn", "update", "print"}  # calls that only show something


class Mutant(NamedTuple):
    """One change of one file."""

    line: int  # from 1
    old: str  # the changed piece of source
    new: str
    start: int  # where it begins in the source, in characters
    text: str  # the line as it was

    def apply(self, source: str) -> str:
        """Return the changed source."""
        return source[: self.start] + self.new + source[self.start + len(self.old) :]


def mutants(source: str) -> list[Mutant]:
    """Return every mutant of a source, in order."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def position(line: int, column: int) -> int:
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    found = []
    for node, new in _changes(ast.parse(source)):
        start, end = position(node.lineno, node.col_offset), position(node.end_lineno, node.end_col_offset)
        old = source[start:end]
        if old != new:
            found.append(Mutant(node.lineno, old, new, start, lines[node.lineno - 1].strip()))
    return found


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Yield each part of a tree that can be changed, with its new source."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        other = COMPARISONS[type(node.ops[0])]()
        yield node, f"({ast.unparse(ast.Compare(node.left, [other, *node.ops[1:]], node.comparators))})"
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not isinstance(node.left, ast.JoinedStr):
        yield node, f"({ast.unparse(ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right))})"
    elif isinstance(node, ast.BoolOp):
        yield node, f"({ast.unparse(ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values))})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node, f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield node, str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield node, str(node.value + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield node, repr(node.value * 2 or 1.0)
    elif isinstance(node, ast.Raise | ast.AugAssign | ast.Continue | ast.Break) or _is_call(node):
        yield node, "pass"
    elif isinstance(node, ast.Call) and len(node.args) == 2 and all(isinstance(arg, ast.Name) for arg in node.args):
        yield node, ast.unparse(ast.Call(node.func, node.args[::-1], node.keywords))
    for child in _inside(node):
        yield from _changes(child)


def _is_call(node: ast.AST) -> bool:
    """Return whether a statement is a call, whose result is not used."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _name(node.value) not in SHOWN


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a node that matter: not annotations, decorators, messages, texts and progress bars.

    Nor the sizes of `reshape(..., -1)`: NumPy treats all negative ones alike.
    """
    if isinstance(node, ast.Call) and _name(node) == "reshape":
        yield from (part for part in (node.func, *node.args) if ast.unparse(part) != "-1")
        return
    if isinstance(node, ast.JoinedStr | ast.Raise) or (isinstance(node, ast.Call) and _name(node) in SHOWN):
        return
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns", "decorator_list", "type_comment"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield child


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
