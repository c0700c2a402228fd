"""Estimate the memory of weights, cache, activations and training; read how much memory is available."""

import math
import os
import re
from pathlib import Path

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.model.records import record_shapes
from gemma_np.weights.formats import FORMATS, matrix_bytes
from gemma_np.weights.linear import tile_bytes

PREFILL_CHUNK = 512
"""Tokens of a prompt that are read at once. The attention scores of a chunk take H * PREFILL_CHUNK * S numbers, those
of a whole long prompt H * S^2; larger chunks are hardly faster."""


def weight_bytes(config: GemmaConfig, format: str = "float32", group_size: int | None = None) -> int:
    """Estimate the bytes of all weights in a format, with their scales and the norms."""
    total = 0
    for _, shape in config.weight_shapes():
        if len(shape) == 1:
            total += _itemsize(format) * shape[0]
        else:
            total += matrix_bytes((shape[0], shape[1]), format, group_size)
    return total


def cache_bytes(config: GemmaConfig, length: int, format: str = "float32") -> int:
    """Estimate the bytes of the keys and values of `length` tokens; a local layer keeps at most its window."""
    per_token = 2 * config.num_key_value_heads * config.head_dim * _itemsize(format)
    windows = (config.window(layer) for layer in range(config.num_hidden_layers))
    return sum(per_token * min(window or length, length) for window in windows)


def activation_bytes(config: GemmaConfig, length: int, format: str = "float32") -> int:
    """Estimate the peak bytes of activations while a prompt of `length` tokens is read in chunks.

    At the peak one layer holds three arrays of the feed-forward, or three of the scores, beside four of the residual
    stream; and the logits of one token, twice. Weights that are not stored as plain floats add the tiles in which they
    are dequantized.
    """
    chunk = min(PREFILL_CHUNK, length)
    last = (length - 1) % PREFILL_CHUNK + 1
    scores = config.num_attention_heads * max(last * length, chunk * (length - last))
    layer = 3 * max(chunk * config.intermediate_size, scores) + 4 * chunk * config.hidden_size
    tiles = 0 if FORMATS[format].stored_as is np.ndarray else tile_bytes()
    return _itemsize(format) * (layer + 2 * config.vocab_size) + tiles


def training_bytes(config: GemmaConfig, batch_size: int, seq_len: int) -> dict[str, int]:
    """Estimate the bytes of each kind of tensor at the peak of a float32 training step.

    The records of the forward pass are needed until the end of the backward pass. Which of five moments is the peak
    depends on the shapes; the estimate takes the largest.
    """
    shapes = dict(config.weight_shapes())
    weights = sum(map(math.prod, shapes.values()))
    embedding = math.prod(shapes["model.embed_tokens.weight"])
    positions = batch_size * seq_len
    logits, hidden = positions * config.vocab_size, positions * config.intermediate_size
    scores = positions * seq_len * config.num_attention_heads
    stream = 6 * positions * config.hidden_size  # gradients along the residual stream
    moments = {
        "loss": 2 * logits,
        "head": 2 * logits + embedding,
        "layers": logits + weights + stream + max(3 * scores, 4 * hidden),
        "embedding": logits + weights + embedding,
        "optimizer": weights + 3 * max(map(math.prod, shapes.values())),
    }
    peak = max(moments, key=lambda moment: moments[moment])
    numbers = {
        "weights": weights,
        "moments of AdamW": 2 * weights,
        "records of the forward pass": batch_size * sum(map(math.prod, record_shapes(config, seq_len).values())),
        f"gradients and temporaries (peak: {peak})": moments[peak],
    }
    return {kind: 4 * count for kind, count in numbers.items()}


def _itemsize(format: str) -> int:
    """Return the bytes of one number in the norms and the activations of a model in this format."""
    return np.dtype(FORMATS[format].computes_in).itemsize


def check_memory(needed: int, dtype: np.dtype) -> None:
    """Check that weights of `needed` bytes fit in memory. Raises GemmaError when they do not."""
    available = available_memory()
    if available is not None and needed > available:
        raise GemmaError(
            f"memory: {available / 1e9:.1f} GB available, expected {needed / 1e9:.1f} GB for the weights in {dtype}"
        )


def available_memory() -> int | None:
    """Return the bytes that can be allocated without swapping, or None where the system does not report them."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def peak_memory() -> int:
    """Return the peak bytes of this process, mapped files included; 0 where the system does not report them."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0
