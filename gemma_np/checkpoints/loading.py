"""Load the weights of a model from tensors in files: check every name and shape, and use little memory."""

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import DTypeLike

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError, GemmaWarning
from gemma_np.memory import check_memory
from gemma_np.progress import progress_bar
from gemma_np.weights.formats import BFloat16, Float16, Stored, Weight

_NAMED = 3  # tensors that an error names
_BLOCK_BYTES = 16 * 2**20


class StoredTensor(NamedTuple):
    """A tensor in a file."""

    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    """read(start, stop) -> those rows (axis 0) as a new array of any float dtype."""
    mapped: np.ndarray | None = None
    """The whole tensor [...] as a view of the memory-mapped file, when it is stored as plain numbers."""
    quantized: Callable[[], Stored] | None = None
    """quantized() -> the tensor in its stored format, when that is a quantized one."""

    def read_all(self) -> np.ndarray:
        """Return the whole tensor [...] as a new array."""
        return self.read(0, self.shape[0])


def row_reader(
    path: Path, offset: int, dtype: DTypeLike, row_shape: tuple[int, ...]
) -> Callable[[int, int], np.ndarray]:
    """Return a function (start, stop) -> those rows of the array at `offset` of a file: [rows, *row_shape].

    It reads into new memory; a memory map would keep the file's pages in memory as well.
    """
    row_bytes = math.prod(row_shape) * np.dtype(dtype).itemsize

    def read(start: int, stop: int) -> np.ndarray:
        stored = np.fromfile(path, np.uint8, (stop - start) * row_bytes, offset=offset + start * row_bytes)
        return stored.view(dtype).reshape(-1, *row_shape)

    return read


def load_weights(stored: Mapping[str, StoredTensor], config: GemmaConfig, dtype: str = "auto") -> dict[str, Weight]:
    """Return the model's weights in a dtype: "auto", "stored", "float32" or "float64" (see `gemma_np.load`).

    Tensors already in that dtype stay in the file (memory-mapped, read-only); the others are converted block by block,
    so that the peak memory is that of the weights.

    Raises GemmaError that names missing, extra and misshapen tensors, or when memory is too small; warns about NaN and
    infinity.
    """
    float_dtype = np.dtype("float32" if dtype in ("auto", "stored") else dtype)
    keep_quantized = dtype in ("auto", "stored")
    keep_16_bits = dtype == "stored" or (dtype == "auto" and any(tensor.quantized for tensor in stored.values()))
    check_names_and_shapes(stored, config)
    weights: dict[str, Weight] = {}
    for name, tensor in stored.items():
        if tensor.quantized and keep_quantized:
            try:
                weights[name] = tensor.quantized()
            except GemmaError as error:
                raise GemmaError(f"{name}: {error}") from None
        elif keep_16_bits and tensor.mapped is not None and len(tensor.shape) == 2:
            if tensor.mapped.dtype == bfloat16:
                weights[name] = BFloat16(tensor.mapped)
            elif tensor.mapped.dtype == np.float16:
                weights[name] = Float16(tensor.mapped)
    copied = [t for n, t in stored.items() if n not in weights and (t.mapped is None or t.mapped.dtype != float_dtype)]
    check_memory(sum(math.prod(tensor.shape) for tensor in copied) * float_dtype.itemsize, float_dtype)

    total = sum(math.prod(shape) for _, shape in config.weight_shapes())
    with progress_bar(total=total, desc="loading", unit="weights", unit_scale=True) as progress:
        for name, _ in config.weight_shapes():
            if name in weights:
                continue
            weights[name], finite = load_tensor(stored[name], float_dtype, progress.update)
            if not finite:
                warnings.warn(f"{name}: has NaN or infinity, expected finite numbers", GemmaWarning, stacklevel=2)
    return {name: weights[name] for name, _ in config.weight_shapes()}


def load_tensor(tensor: StoredTensor, dtype: np.dtype, progress: Callable[[int], object]) -> tuple[np.ndarray, bool]:
    """Return a tensor [...] in a dtype, and whether all its numbers are finite."""
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
    """Check the names and shapes of all tensors. Raises GemmaError that names missing, extra and misshapen ones."""
    expected = dict(config.weight_shapes())
    wrong = [f"{name}: missing" for name in expected if name not in stored]
    wrong += [f"{name}: extra" for name in stored if name not in expected]
    for name, tensor in stored.items():
        if name in expected and tensor.shape != expected[name]:
            wrong.append(f"{name}: shape {tensor.shape}, expected {expected[name]} from {_reason(name, config)}")
    if wrong:
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise GemmaError("; ".join(wrong[:_NAMED]) + more)


def _reason(name: str, config: GemmaConfig) -> str:
    """Return the config values that determine the shape of a weight."""
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
