"""Document the fields of a class with the comments behind them: an extension of griffe, which reads the modules."""

import ast
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Take `size: int  # in bytes` as a field with the docstring "in bytes"."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Give the attribute its comment as docstring, if it has no other."""
        if attr.docstring or not isinstance(attr.parent, griffe.Class) or not isinstance(node, ast.AnnAssign):
            return
        line = attr.lines_collection[attr.filepath][node.end_lineno - 1][node.end_col_offset :]
        if comment := line.partition("#")[2].strip():
            attr.docstring = griffe.Docstring(comment.replace("[", r"\["), lineno=node.lineno, parent=attr)
