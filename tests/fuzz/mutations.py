"""Draw edits: wrong values of the right kind in the right place, and damage anywhere."""

import random

from tests.fuzz.formats import format_of
from tests.fuzz.trees import Embedded, Object

NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    10**23,
]
NUMBERS += [0.5, -0.0, 1.5, 1e-320, 1e-45, 1e38, 1e308, -1e308]
TEXTS = ["", " ", "x", "\n", "\0", "\x1b[31m", "\u2028", "\ud800", "\ufeff", "é", "\N{ROLLING ON THE FLOOR LAUGHING}"]
TEXTS += ["NaN", "1", "../x", "/", "{layer}", "{0}", "%s", "<bos>", "<start_of_turn>", "a\r\nb", "__proto__", "x" * 300]
RAW = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1E400",
    "tru",
    "'x'",
    "01",
    "+1",
    ".5",
    "1_0",
    '"\\x"',
    "/**/1",
]
RAW += ["1" * 400, '"\\ud800"', '"\t"', "\ufeff1", "\u0661"]
STRUCTURES = [None, True, False, [], [[]], [None], [0, 1], ["x"], {"object": []}, {"object": [["x", 1]]}]
STRUCTURES += [{"repeat": ["[", 100_000]}, {"repeat": ['{"a":', 100_000]}, {"repeat": ["1", 5000]}]
STRUCTURES += [{"object": [["a", 1], ["a", 2]]}]
BYTES = ["00", "ff", "7f", "80", "0a", "22", "7b", "5b", "c3", "eda080", "efbbbf", "e280a8", "ffffffff", "0000c07f"]
BYTES += ["000000000000f87f", "0000807f", "007c", "007e", "c07f", "ffffffffffffff7f", "ffffffffffffffff", "01000000"]
SPECIAL = ["missing", "empty", "folder", "fifo", "loop", "dangling", "/dev/zero", "/dev/null", "/dev/full", "/dev/tty"]
DTYPES = ["F64", "F32", "F16", "BF16", "I8", "U8", "F8_E4M3", "I64", "I32", "BOOL"]
DESCRIPTIONS = ["<u2", ">u2", "<u4", "|u1", "<i4", "<f4", "<u8", "|O", "<U4", "|V2", "<M8[s]"]


def draw_edits(generator: random.Random, files, targets):
    """Draw one to three edits of some of the files: `targets` are the names to choose from."""
    count = generator.choices([1, 2, 3], [6, 3, 1])[0]
    name = generator.choice(targets)
    edits = []
    for _ in range(count):
        if generator.random() < 0.15:
            name = generator.choice(targets)
        edits.append({"file": name, **draw_edit(generator, name, files[name])})
    return edits


def draw_edit(generator, name, data):
    kind = generator.choices(["tree", "bytes", "become", "write"], [80, 14, 4, 2])[0]
    parse, _ = format_of(name)
    if kind == "tree" and parse:
        return draw_in_tree(generator, parse(data))
    if kind == "become":
        return {"op": "become", "value": generator.choice(SPECIAL)}
    if kind == "write":
        return {"op": "write", "value": draw_value(generator, data[:20].decode("latin-1"))}
    return {"op": "bytes", "value": draw_splice(generator, data)}


def draw_in_tree(generator, tree):
    """Draw an edit at a random place; to walk down from the root finds small parts as often as large ones."""
    path = draw_path(generator, tree)
    node = tree
    for key in path:
        node = node.tree if isinstance(node, Embedded) else node
        node = node.get(key) if isinstance(node, Object) else node[key]
    op = generator.choices(["set", "delete", "double", "rename", "copy"], [60, 12, 8, 8, 12])[0]
    if op == "set" and isinstance(node, str | bytes) and generator.random() < 0.6:
        return {"path": path, "op": "splice", "value": draw_splice(generator, node)}
    value = None
    if op == "set":
        value = draw_value(generator, node, path[-1])
    elif op == "copy":
        value = near(generator, tree, path)
    elif op == "rename":
        value = generator.choice([*TEXTS, str(path[-1]) + "x", str(draw_path(generator, tree)[-1]), str(path[-1])[:-1]])
    return {"path": path, "op": op} | ({} if op in ("delete", "double") else {"value": value})


def draw_path(generator, tree):
    path, node = [], tree
    while True:
        inner = node.tree if isinstance(node, Embedded) else node
        if not isinstance(inner, list) or not inner or (path and generator.random() < 0.15):
            return path
        if isinstance(inner, Object):
            name, node = generator.choice(inner)
            path = [*path, name]
        else:
            index = generator.randrange(len(inner))
            path, node = [*path, index], inner[index]


def near(generator, tree, path):
    """Return another path: often to a sister of the node, or to the same part of one, which has its kind."""
    if generator.random() < 0.3 or not path:
        return draw_path(generator, tree)
    level = generator.randrange(len(path))
    node = tree
    for key in path[:level]:
        node = node.tree if isinstance(node, Embedded) else node
        node = node.get(key) if isinstance(node, Object) else node[key]
    node = node.tree if isinstance(node, Embedded) else node
    keys = [name for name, _ in node] if isinstance(node, Object) else list(range(len(node)))
    return [*path[:level], generator.choice(keys), *path[level + 1 :]]


def draw_value(generator, old, name=""):
    """Draw a value to put in the place of another."""
    known = {"dtype": DTYPES, "descr": DESCRIPTIONS, "items": range(14), "type": range(40), "wire": range(8)}
    if name in known and generator.random() < 0.7:
        return generator.choice(known[name])
    like = []
    if isinstance(old, bool):
        like = [not old, int(old), str(old)]
    elif isinstance(old, int | float):
        like = [old + 1, old - 1, -old, 2 * old, old // 2, old + 0.5, float(old), str(old), [old], *NUMBERS]
    elif isinstance(old, bytes):
        like = [{"hex": old[:-1].hex()}] if len(old) < 64 else [{"hex": ""}]
    elif isinstance(old, str):
        like = [old + "x", old[:-1], old.upper(), old + "\n", [old], {"object": [[old, old]]}, *TEXTS]
    elif isinstance(old, Object):
        like = [[plain(value) for _, value in old[:4]], plain(old[0][1]) if old else 0]
    elif isinstance(old, list):
        values = [plain(item) for item in old[:8]]
        like = [
            values[:-1],
            values * 2,
            values[::-1],
            [0, *values],
            [*values, 1],
            [-1, *values[1:]],
            [2**40, *values[1:]],
        ]
    elif old is None:
        like = NUMBERS
    pool = generator.choices(
        [like or NUMBERS, NUMBERS, TEXTS, [{"raw": text} for text in RAW], STRUCTURES], [6, 2, 2, 2, 2]
    )
    return generator.choice(pool[0])


def plain(node):
    """Return a small part of a tree as the JSON of an edit."""
    if isinstance(node, bytes):
        return {"hex": node[:64].hex()}
    if isinstance(node, Object):
        return {"object": [[name, plain(value)] for name, value in node[:4]]}
    if isinstance(node, Embedded):
        return plain(node.tree)
    return [plain(item) for item in node[:8]] if isinstance(node, list) else node


def draw_splice(generator, content):
    """Draw a small change of text or bytes: overwrite, insert, remove, cut off or append."""
    size = len(content)
    start = generator.randrange(size + 1) if generator.random() < 0.8 else generator.randrange(min(size, 64) + 1)
    if isinstance(content, bytes):
        inserted = generator.choice(BYTES)
        if generator.random() < 0.3 and start < size:
            inserted = f"{content[start] ^ 1 << generator.randrange(8):02x}"
        length, inserted = len(inserted) // 2, {"hex": inserted}
        start -= start % length if generator.random() < 0.5 else 0
    else:
        inserted = generator.choice(TEXTS)
        length = len(inserted)
    kind = generator.choices(["overwrite", "insert", "remove", "cut", "append"], [10, 3, 3, 3, 1])[0]
    nothing = {"hex": ""} if isinstance(content, bytes) else ""
    return {
        "overwrite": [start, length, inserted],
        "insert": [start, 0, inserted],
        "remove": [start, generator.choice([1, 2, 4, 8, 100]), nothing],
        "cut": [start, size, nothing],
        "append": [size, 0, inserted],
    }[kind]
