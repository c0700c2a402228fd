"""An input is a list of edits of valid files, written in JSON, so that it is small, readable and easy to reduce.

    {"file": "config.json", "path": ["hidden_size"], "op": "set", "value": {"raw": "NaN"}}

Edits of the tree (see `trees`), at a path of names and numbers:

    set        replace the node by the value
    delete     remove it
    double     write it twice
    rename     give it another name
    copy       replace it by the node at another path
    splice     [start, removed, inserted]: in text or bytes

Edits of the whole file:

    bytes      [start, removed, inserted]
    write      replace the content, or make a new file
    become     missing, empty, folder, fifo, loop (a link to itself), dangling, or a device such as /dev/zero

Values are JSON, or {"raw": text}, {"repeat": [text, count]}, {"hex": digits}, {"object": [[name, value], ...]}.
"""

import copy
import os
import stat

from tests.fuzz.formats import format_of
from tests.fuzz.trees import CannotBuild, Embedded, Object, Raw

TREE = ("set", "delete", "double", "rename", "copy", "splice")


def decode(value):
    """Return the value that an edit's JSON describes."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    [[kind, content]] = value.items()
    if kind == "raw":
        return Raw(content)
    if kind == "repeat":
        return Raw(content[0] * content[1])
    if kind == "hex":
        return bytes.fromhex(content)
    return Object([name, decode(item)] for name, item in content)


def step(node, key):
    """Return the list that holds the child of a node, and its index there."""
    node = node.tree if isinstance(node, Embedded) else node
    if isinstance(node, Object):
        index = next((i for i, (name, _) in enumerate(node) if name == key), None)
        if index is not None:
            return node[index], 1
    elif isinstance(node, list) and isinstance(key, int) and key < len(node):
        return node, key
    raise CannotBuild(f"no {key!r}")


def find(tree, path):
    """Return the node at a path."""
    for key in path:
        holder, index = step(tree, key)
        tree = holder[index]
    return tree


def edit_tree(tree, path, op, value):
    """Change the node at a path, which is not the root."""
    parent = find(tree, path[:-1])
    parent = parent.tree if isinstance(parent, Embedded) else parent
    holder, index = step(parent, path[-1])
    if op == "set":
        holder[index] = decode(value)
    elif op == "copy":
        holder[index] = copy.deepcopy(find(tree, value))
    elif op == "splice":
        holder[index] = splice(holder[index], *value)
    elif op == "rename":
        if holder is parent:
            raise CannotBuild("an element of a list has no name")
        holder[0] = value
    else:
        place = parent.index(holder) if holder is not parent else index
        if op == "delete":
            del parent[place]
        else:
            parent.append(copy.deepcopy(parent[place]))


def splice(content, start, removed, inserted):
    """Return text or bytes with a part replaced."""
    if not isinstance(content, str | bytes):
        raise CannotBuild("splice of a number")
    inserted = decode(inserted)
    if isinstance(content, bytes) and isinstance(inserted, str):
        inserted = inserted.encode("utf-8", "surrogatepass")
    if isinstance(content, str) and isinstance(inserted, bytes):
        inserted = inserted.decode("latin-1")
    return content[:start] + inserted + content[start + removed :]


def edited(files, edits):
    """Return the files, by name, with edits; a file that is none is a `str`: missing, fifo, ..."""
    files = dict(files)
    for name in dict.fromkeys(edit["file"] for edit in edits):
        mine = [edit for edit in edits if edit["file"] == name]
        parse, build = format_of(name)
        in_tree = [edit for edit in mine if edit["op"] in TREE]
        if in_tree:
            tree = parse(files[name])
            for edit in in_tree:
                edit_tree(tree, edit["path"], edit["op"], edit.get("value"))
            files[name] = build(tree)
        for edit in mine:
            if edit["op"] == "bytes":
                files[name] = splice(files[name], *edit["value"])
            elif edit["op"] == "write":
                files[name] = str(decode(edit["value"])).encode("utf-8", "surrogateescape")
        for edit in mine:
            if edit["op"] == "become":
                files[name] = edit["value"]
    return files


def write_files(folder, files):
    """Write edited files into a folder. Raises OSError for a name or a kind of file that this system does not have."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == "empty":
            path.write_bytes(b"")
        elif content == "folder":
            path.mkdir()
        elif content != "missing":
            make_special(path, content)


def make_special(path, kind):
    """Make a pipe, a link that leads nowhere, or a device: a link to it or, for root, who could replace it, a copy."""
    if kind == "fifo":
        if not hasattr(os, "mkfifo"):
            raise OSError("this system has no named pipes")
        os.mkfifo(path)
    elif kind in ("loop", "dangling"):
        path.symlink_to(path.name if kind == "loop" else "no-such-file")
    elif os.geteuid():
        path.symlink_to(kind)
    else:
        os.mknod(path, stat.S_IFCHR | 0o666, os.stat(kind).st_rdev)
