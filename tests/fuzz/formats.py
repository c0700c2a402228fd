"""Trees of the binary formats: safetensors, GGUF, sentencepiece's protobuf, and NumPy's .npy."""

import math
import struct

import numpy as np

from tests.fuzz.trees import (
    CannotBuild,
    Embedded,
    Object,
    Raw,
    build_json,
    build_json_lines,
    build_text,
    parse_json,
    parse_json_lines,
    parse_text,
)

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1, "I64": 8, "I32": 4, "BOOL": 1}
MOST_BYTES = 2**20  # of one tensor


def fitted(data, size):
    """Return the bytes, repeated or cut to a size, so that a new shape or dtype still gives a valid file."""
    if not isinstance(data, bytes):
        raise CannotBuild("data that are not bytes")
    if size is None or size > MOST_BYTES or not data:
        return data
    return (data * (size // len(data) + 1))[:size]


def size_of(shape, item_bytes):
    """Return the bytes of an array, or None for a shape that is none."""
    counts = isinstance(shape, list) and all(type(size) is int and 0 <= size < 2**40 for size in shape)
    return math.prod(shape) * item_bytes if counts and item_bytes else None


# safetensors: the length of the header, the header in JSON, the data


def parse_safetensors(data):
    length = int.from_bytes(data[:8], "little")
    header, data = parse_json(data[8 : 8 + length]), data[8 + length :]
    tensors, metadata = Object(), Object()
    for name, entry in header:
        if name == "__metadata__":
            metadata = Object([key, embedded(value)] for key, value in entry)
        else:
            start, stop = entry.get("data_offsets")
            fields = [[key, value] for key, value in entry if key != "data_offsets"]
            tensors.append([name, Object([*fields, ["data_offsets", None], ["data", data[start:stop]]])])
    return Object([["length", None], ["__metadata__", metadata], ["tensors", tensors]])


def embedded(text):
    """Return JSON in a string as a tree."""
    try:
        tree = parse_json(text)
    except ValueError:
        return text
    return Embedded(tree) if isinstance(tree, list) else text


def build_safetensors(tree):
    header, data = Object(), b""
    if tree.get("__metadata__") != []:
        header.append(["__metadata__", tree.get("__metadata__")])
    for name, entry in expect(tree.get("tensors"), Object):
        if not isinstance(entry, Object):
            header.append([name, entry])
            continue
        size = size_of(entry.get("shape"), ITEM_BYTES.get(str(entry.get("dtype"))))
        numbers = fitted(entry.get("data", b""), size)
        place = [len(data), len(data) + len(numbers)]
        fields = [[key, place if key == "data_offsets" and value is None else value] for key, value in entry]
        header.append([name, Object([key, value] for key, value in fields if key != "data")])
        data += numbers
    text = build_json(header)
    return pack("<Q", tree.get("length"), len(text)) + text + data


# GGUF: magic, version, counts, fields, tensors, and the data, each tensor aligned to 32 bytes

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32


def parse_gguf(data):
    position = 0

    def take(form):
        nonlocal position
        values = struct.unpack_from("<" + form, data, position)
        position += struct.calcsize("<" + form)
        return values[0]

    def string():
        nonlocal position
        size = take("Q")
        position += size
        return data[position - size : position].decode()

    def value(kind):
        if kind == STRING:
            return string()
        if kind == ARRAY:
            items, count = take("I"), take("Q")
            return Object([["items", items], ["count", None], ["values", [value(items) for _ in range(count)]]])
        return take(SCALARS[kind])

    magic, version, tensors, fields = take("4s"), take("I"), take("Q"), take("Q")
    names = Object()
    for _ in range(fields):
        name = string()
        kind = take("I")
        names.append([name, Object([["type", kind], ["value", value(kind)]])])
    infos = []
    for _ in range(tensors):
        name = string()
        shape = [take("Q") for _ in range(take("I"))]
        infos.append([name, shape, take("I"), take("Q")])
    start = position + -position % ALIGNMENT
    ends = sorted([info[3] for info in infos] + [len(data) - start])
    entries = Object()
    for name, shape, kind, offset in infos:
        numbers = data[start + offset : start + ends[ends.index(offset) + 1]]
        fields = [["shape", shape], ["dimensions", None], ["type", kind], ["offset", None], ["data", numbers]]
        entries.append([name, Object(fields)])
    counts = [["tensor_count", None], ["field_count", None]]
    return Object([["magic", magic], ["version", version], *counts, ["fields", names], ["tensors", entries]])


def build_gguf(tree):
    fields, tensors = expect(tree.get("fields"), Object), expect(tree.get("tensors"), Object)
    head = expect(tree.get("magic"), bytes) + pack("<I", tree.get("version"))
    head += pack("<Q", tree.get("tensor_count"), len(tensors)) + pack("<Q", tree.get("field_count"), len(fields))
    for name, field in fields:
        kind = expect(field, Object).get("type")
        head += gguf_string(name) + pack("<I", kind) + gguf_value(kind, field.get("value"))
    data = b""
    for name, entry in tensors:
        shape, kind = expect(expect(entry, Object).get("shape"), list), entry.get("type")
        numbers = fitted(entry.get("data"), gguf_bytes(shape, kind))
        head += gguf_string(name) + pack("<I", entry.get("dimensions"), len(shape))
        head += b"".join(pack("<Q", size) for size in shape)
        head += pack("<I", kind) + pack("<Q", entry.get("offset"), len(data))
        data += numbers + bytes(-len(numbers) % ALIGNMENT)
    return head + bytes(-len(head) % ALIGNMENT) + data


def gguf_string(text):
    data = text if isinstance(text, bytes) else expect(text, str).encode("utf-8", "surrogatepass")
    return pack("<Q", len(data)) + data


def gguf_value(kind, value):
    if kind == STRING:
        return gguf_string(value)
    if kind == ARRAY:
        items, values = expect(value, Object).get("items"), expect(value.get("values"), list)
        head = pack("<I", items) + pack("<Q", value.get("count"), len(values))
        return head + b"".join(gguf_value(items, item) for item in values)
    return pack("<" + SCALARS.get(kind, "I"), value)


def gguf_bytes(shape, kind):
    """Return the bytes of a tensor of a known type, or None."""
    from gguf.constants import GGML_QUANT_SIZES

    block, size = {int(key): value for key, value in GGML_QUANT_SIZES.items()}.get(kind, (1, None))
    count = size_of(shape, 1)
    return None if size is None or count is None else count // block * size


# protobuf: fields of (number, wire type, value)

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def parse_protobuf(data, depth=1):
    tree, position = [], 0
    while position < len(data):
        key, position = varint(data, position)
        wire = key & 7
        if wire == VARINT:
            value, position = varint(data, position)
        else:
            size, position = varint(data, position) if wire == BYTES else ({FIXED64: 8, FIXED32: 4}[wire], position)
            value, position = data[position : position + size], position + size
            if wire == BYTES and depth:
                value = parse_protobuf(value, depth - 1)
        tree.append(Object([["number", key >> 3], ["wire", wire], ["length", None], ["value", value]]))
    return tree


def varint(data, position):
    value = shift = 0
    while True:
        value |= (data[position] & 127) << shift
        position, shift = position + 1, shift + 7
        if data[position - 1] < 128:
            return value, position


def build_protobuf(tree):
    data = b""
    for field in expect(tree, list):
        number, wire, value = (expect(field, Object).get(name) for name in ("number", "wire", "value"))
        data += build_varint(expect(number, int) << 3 | expect(wire, int))
        if isinstance(value, int):
            data += build_varint(value)
            continue
        if isinstance(value, str):
            value = value.encode("utf-8", "surrogatepass")
        value = build_protobuf(value) if isinstance(value, list) else expect(value, bytes)
        length = field.get("length")
        data += (build_varint(len(value) if length is None else length) if wire == BYTES else b"") + value
    return data


def build_varint(value):
    value = expect(value, int) % 2**64
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


# .npy: magic, version, the length of the header, a Python literal, the data


def parse_npy(data):
    length = int.from_bytes(data[8:10], "little")
    header = eval(data[10 : 10 + length])
    fields = [["descr", header["descr"]], ["fortran_order", header["fortran_order"]], ["shape", [*header["shape"]]]]
    start = ["magic", data[:8]], ["length", None]
    return Object([*start, ["header", Object(fields)], ["data", data[10 + length :]]])


def build_npy(tree):
    header = tree.get("header")
    if isinstance(header, Object):
        text = "{" + ", ".join(f"{name!r}: {literal(value)}" for name, value in header) + "}"
        try:
            size = size_of(header.get("shape"), np.dtype(header.get("descr")).itemsize)
        except (TypeError, ValueError):
            size = None
    else:
        text, size = str(header), None
    text = text.encode("latin-1", "replace")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return (
        expect(tree.get("magic"), bytes)
        + pack("<H", tree.get("length"), len(text))
        + text
        + fitted(tree.get("data"), size)
    )


def literal(value):
    if isinstance(value, list):
        return "(" + "".join(f"{literal(item)}, " for item in value) + ")"
    return str(value) if isinstance(value, Raw) else repr(value)


def pack(form, value, default=None):
    try:
        return struct.pack(form, default if value is None else value)
    except (struct.error, OverflowError, TypeError) as error:
        raise CannotBuild(str(error)) from None


def expect(value, kind):
    if not isinstance(value, kind):
        raise CannotBuild(f"{type(value).__name__}, expected {kind.__name__}")
    return value


FORMATS = {  # by the end of a file's name
    ".json": (parse_json, build_json),
    ".jsonl": (parse_json_lines, build_json_lines),
    ".txt": (parse_text, build_text),
    ".safetensors": (parse_safetensors, build_safetensors),
    ".gguf": (parse_gguf, build_gguf),
    ".model": (parse_protobuf, build_protobuf),
    ".npy": (parse_npy, build_npy),
}


def format_of(name):
    return next((functions for ending, functions in FORMATS.items() if name.endswith(ending)), (None, None))
