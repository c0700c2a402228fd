"""A file as a tree that can be edited and written again, whether or not the result is valid.

A tree is made of `Object`, lists and leaves. Each format has a `parse` (bytes -> tree) and a `build` (tree -> bytes).
Counts, lengths and offsets are None in a parsed tree, which `build` replaces by the right number; an edit replaces
them by a wrong one.
"""

import json


class Object(list):
    """A JSON object as a list of [name, value], in which a name may occur twice."""

    def get(self, name, default=None):
        return next((value for key, value in self if key == name), default)


class Embedded:
    """JSON inside a string."""

    def __init__(self, tree):
        self.tree = tree


class Raw(str):
    """Text to be written as it is, such as NaN or 1e999."""


class CannotBuild(Exception):
    """An edit that this format cannot express, such as a text as a count."""


def parse_json(data):
    return json.loads(data, object_pairs_hook=lambda pairs: Object([name, value] for name, value in pairs))


def build_json(tree):
    return json_text(tree).encode("utf-8", "surrogatepass")


def json_text(tree):
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, Embedded):
        return json.dumps(json_text(tree.tree))
    if isinstance(tree, Object):
        return "{" + ", ".join(f"{json.dumps(str(name))}: {json_text(value)}" for name, value in tree) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(json_text, tree)) + "]"
    if isinstance(tree, bytes):
        raise CannotBuild("bytes in JSON")
    if isinstance(tree, int) and not isinstance(tree, bool) and abs(tree) >= 10**4000:
        raise CannotBuild("a number that Python does not print")
    return json.dumps(tree)


def parse_json_lines(data):
    return [parse_json(line) for line in data.decode().split("\n") if line]


def build_json_lines(tree):
    return b"".join(build_json(line) + b"\n" for line in tree)


def parse_text(data):
    return [data.decode()]


def build_text(tree):
    return "".join(map(str, tree)).encode("utf-8", "surrogatepass")
