"""What writing text and training take: the memory of each part, before any of it is allocated."""

import math
import re
from pathlib import Path

from gemma_np.config import GemmaConfig
from gemma_np.model.records import record_shapes
from gemma_np.text.generation import PREFILL_CHUNK

STORAGE = {
    "float64": (8.0, 8.0),
    "float32": (4.0, 4.0),
    "bfloat16 (as published)": (2.0, 4.0),
    "int8": (1.0, 4.0),
    "int4, groups of 64": (0.5 + 4 / 64, 4.0),
    "int4, groups of 128": (0.5 + 4 / 128, 4.0),
}
"""Bytes of a weight in a matrix, and of a number in what is computed."""


def weight_bytes(config: GemmaConfig, storage: str) -> int:
    """The bytes of the weights, their scales and the norms; storage is one of `STORAGE`."""
    of_matrix, of_norm = STORAGE[storage]
    total = 0.0
    for _, shape in config.weight_shapes():
        if len(shape) == 1:
            total += of_norm * shape[0]
        else:
            total += of_matrix * math.prod(shape) + (4 * shape[0] if storage == "int8" else 0)
    return round(total)


def cache_bytes(config: GemmaConfig, length: int, storage: str = "float32") -> int:
    """The bytes of the keys and values of `length` tokens, where a local layer keeps no more than its window."""
    per_token = 2 * config.num_key_value_heads * config.head_dim * STORAGE[storage][1]
    windows = (config.window(layer) for layer in range(config.num_hidden_layers))
    return round(sum(per_token * min(window or length, length) for window in windows))


def work_bytes(config: GemmaConfig, length: int, storage: str = "float32") -> int:
    """The bytes of what one layer computes of a chunk of the prompt at its peak: three arrays of the feed-forward, or
    the scores thrice, beside four of the residual stream; and the logits of one token, twice."""
    chunk = min(PREFILL_CHUNK, length)
    last = (length - 1) % PREFILL_CHUNK + 1
    scores = config.num_attention_heads * max(last * length, chunk * (length - last))
    layer = 3 * max(chunk * config.intermediate_size, scores) + 4 * chunk * config.hidden_size
    return round(STORAGE[storage][1] * (layer + 2 * config.vocab_size))


def training_memory(config: GemmaConfig, batch: int, length: int) -> dict[str, int]:
    """Bytes of each kind at the peak of a step in float32, for `batch` texts of `length` tokens at once.

    The records of the forward pass are needed to the end of the backward pass. What else is at work, and which
    moment is the peak, depends on the shape: the largest of the five moments counts.
    """
    shapes = dict(config.weight_shapes())
    weights = sum(map(math.prod, shapes.values()))
    embedding = math.prod(shapes["model.embed_tokens.weight"])
    positions = batch * length
    logits, hidden = positions * config.vocab_size, positions * config.intermediate_size
    scores = positions * length * config.num_attention_heads
    stream = 6 * positions * config.hidden_size  # gradients along the residual stream
    at_work = {
        "loss": 2 * logits,
        "head": 2 * logits + embedding,
        "layers": logits + weights + stream + max(3 * scores, 4 * hidden),
        "lookup": logits + weights + embedding,
        "optimizer": weights + 3 * max(map(math.prod, shapes.values())),
    }
    peak = max(at_work, key=lambda moment: at_work[moment])
    numbers = {
        "weights": weights,
        "moments of AdamW": 2 * weights,
        "records of the forward pass": batch * sum(map(math.prod, record_shapes(config, length).values())),
        f"gradients and work (peak: {peak})": at_work[peak],
    }
    return {kind: 4 * count for kind, count in numbers.items()}


def peak_memory() -> int:
    """The most memory that this process has had, in bytes, mapped files among it; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0
