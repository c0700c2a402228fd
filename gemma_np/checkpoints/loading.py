"""From tensors in a file to the weights of a model: every name and shape checked, memory spared, bad numbers told."""

import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import DTypeLike

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.weights.formats import BFloat16, Stored, Weight

_BLOCK_BYTES = 16 * 2**20


class StoredTensor(NamedTuple):
    """A tensor that lies in a file."""

    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    """read(start, stop) -> those rows (axis 0), in any float dtype, in memory of their own."""
    mapped: np.ndarray | None = None
    """The whole tensor [...] as a view of the memory-mapped file, where it lies there as plain numbers."""
    quantized: Callable[[], Stored] | None = None
    """quantized() -> the tensor as it is stored, where that is one of the quantized kinds."""


def row_reader(
    path: Path, offset: int, dtype: DTypeLike, row_shape: tuple[int, ...]
) -> Callable[[int, int], np.ndarray]:
    """A function (start, stop) -> those rows of the array that lies in a file from `offset` on: [rows, *row_shape].

    It reads into new memory; a map would hold the file's pages as well.
    """
    row_bytes = math.prod(row_shape) * np.dtype(dtype).itemsize

    def read(start: int, stop: int) -> np.ndarray:
        stored = np.fromfile(path, np.uint8, (stop - start) * row_bytes, offset=offset + start * row_bytes)
        return stored.view(dtype).reshape(-1, *row_shape)

    return read


def load_weights(
    stored: Mapping[str, StoredTensor], config: GemmaConfig, dtype: DTypeLike, as_stored: bool = False
) -> dict[str, Weight]:
    """The model's weights. What lies in the file in the wanted dtype stays there (memory-mapped, read-only); the rest
    is converted block by block, so that the peak is the weights themselves.

    Quantized weights stay as they are, unless float64 is wanted; with `as_stored`, bfloat16 matrices do, too.

    Raises GemmaError for missing, extra and misshapen tensors (each is named) and for too little memory; warns of
    NaN and infinity.
    """
    from tqdm import tqdm

    dtype = np.dtype(dtype)
    check_names_and_shapes(stored, config)
    weights: dict[str, Weight] = {}
    for name, tensor in stored.items():
        if tensor.quantized and dtype != np.float64:
            try:
                weights[name] = tensor.quantized()
            except GemmaError as error:
                raise GemmaError(f"{name}: {error}") from None
        elif as_stored and tensor.mapped is not None and tensor.mapped.dtype == bfloat16 and len(tensor.shape) == 2:
            weights[name] = BFloat16(tensor.mapped)
    copied = [t for n, t in stored.items() if n not in weights and (t.mapped is None or t.mapped.dtype != dtype)]
    check_memory(sum(math.prod(tensor.shape) for tensor in copied) * dtype.itemsize, dtype)

    total = sum(math.prod(shape) for _, shape in config.weight_shapes())
    with tqdm(total=total, desc="loading", unit=" weights", unit_scale=True, delay=2, leave=False) as progress:
        for name, _ in config.weight_shapes():
            if name in weights:
                continue
            weights[name], finite = load_tensor(stored[name], dtype, progress.update)
            if not finite:
                warnings.warn(f"{name}: has NaN or infinity, expected finite numbers", stacklevel=2)
    return {name: weights[name] for name, _ in config.weight_shapes()}


def load_tensor(tensor: StoredTensor, dtype: np.dtype, progress: Callable[[int], object]) -> tuple[np.ndarray, bool]:
    """One tensor [...] in the wanted dtype, and whether all its numbers are finite."""
    in_place = tensor.mapped is not None and tensor.mapped.dtype == dtype
    weight = tensor.mapped if in_place else np.empty(tensor.shape, dtype)
    assert weight is not None
    rows = max(1, _BLOCK_BYTES // (math.prod(tensor.shape[1:]) * dtype.itemsize))
    finite = True
    for start in range(0, tensor.shape[0], rows):
        block = weight[start : start + rows]
        if not in_place:
            block[...] = tensor.read(start, min(start + rows, tensor.shape[0]))
        finite = finite and bool(np.isfinite(block).all())
        progress(block.size)
    return weight, finite


def check_names_and_shapes(stored: Mapping[str, StoredTensor], config: GemmaConfig) -> None:
    """Raise a GemmaError that lists every missing, extra and misshapen tensor."""
    expected = dict(config.weight_shapes())
    wrong = [f"{name}: missing" for name in expected if name not in stored]
    wrong += [f"{name}: extra" for name in stored if name not in expected]
    for name, tensor in stored.items():
        if name in expected and tensor.shape != expected[name]:
            wrong.append(f"{name}: shape {tensor.shape}, expected {expected[name]} from {_reason(name, config)}")
    if wrong:
        raise GemmaError("; ".join(wrong))


def _reason(name: str, config: GemmaConfig) -> str:
    """The config values that a weight's shape follows from."""
    fields = {
        "embed_tokens": ("vocab_size", "hidden_size"),
        "q_proj": ("num_attention_heads", "head_dim", "hidden_size"),
        "k_proj": ("num_key_value_heads", "head_dim", "hidden_size"),
        "v_proj": ("num_key_value_heads", "head_dim", "hidden_size"),
        "o_proj": ("hidden_size", "num_attention_heads", "head_dim"),
        "q_norm": ("head_dim",),
        "k_norm": ("head_dim",),
        "mlp": ("intermediate_size", "hidden_size"),
        "norm": ("hidden_size",),
    }
    chosen = next(names for fragment, names in fields.items() if fragment in name)
    return ", ".join(f"{field}={getattr(config, field)}" for field in chosen)


def check_memory(needed: int, dtype: np.dtype) -> None:
    """Raise a GemmaError when the weights would not fit, before any of them is read."""
    available = available_memory()
    if available is not None and needed > available:
        raise GemmaError(
            f"memory: {available / 1e9:.1f} GB available, expected {needed / 1e9:.1f} GB for the weights in {dtype}"
        )


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, or None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
