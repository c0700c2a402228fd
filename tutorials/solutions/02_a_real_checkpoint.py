"""Solutions of tutorial 2."""

import json
import math
from typing import Any

import numpy as np


def decode_bfloat16(stored: np.ndarray) -> np.ndarray:
    return (stored.astype(np.uint32) << 16).view(np.float32)


def read_tensor(data: bytes, name: str) -> np.ndarray:
    size = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + size])[name]
    start, end = entry["data_offsets"]
    numbers = data[8 + size + start : 8 + size + end]
    if entry["dtype"] == "F32":
        return np.frombuffer(numbers, "<f4").reshape(entry["shape"])
    return decode_bfloat16(np.frombuffer(numbers, "<u2")).reshape(entry["shape"])


def count_parameters(header: dict[str, Any]) -> tuple[int, int]:
    parameters = size = 0
    for name, entry in header.items():
        if name != "__metadata__":
            number = math.prod(entry["shape"])
            parameters += number
            size += number * {"BF16": 2, "F32": 4}[entry["dtype"]]
    return parameters, size
