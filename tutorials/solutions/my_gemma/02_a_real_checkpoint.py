"""my_gemma.py, tutorial 2."""

import json
from pathlib import Path

import numpy as np


def read_safetensors(path):
    """Read a safetensors file: path -> {name: float32 array}.

    It has 8 bytes with the length of a header (little-endian), the header in JSON, and the numbers. The header has a
    "dtype", "shape" and "data_offsets" for each name, counted from the end of the header, and perhaps "__metadata__".
    A number of dtype BF16 is the upper half of a float32 (F32).
    """
    data = Path(path).read_bytes()
    after_header = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:after_header])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = (after_header + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            numbers = (np.frombuffer(data[start:end], "<u2").astype("<u4") << 16).view("<f4")
        else:
            numbers = np.frombuffer(data[start:end], {"F16": "<f2", "F32": "<f4"}[entry["dtype"]]).astype("<f4")
        tensors[name] = numbers.reshape(entry["shape"])
    return tensors


def load(folder):
    """Read a checkpoint: folder -> config, the object in config.json, and weights {name: array}.

    The weights are in model.safetensors. A large model has several files: "weight_map" in model.safetensors.index.json
    maps the name of each weight to its file.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else ["model.safetensors"]
    weights = {}
    for file in files:
        weights |= read_safetensors(folder / file)
    return config, weights
