"""Quantize a weight to the blocks of a GGUF format, with the least squared error that a short search finds.

With the importance of each input channel, the mean square of its inputs, the error is weighted by it: it becomes the
mean square of what the rounding changes in the outputs, if the inputs of different channels are independent. GGUF tools
call this an importance matrix, or imatrix.

Source: llama.cpp, pull request 4861, 2024 (importance matrix).
"""

from collections.abc import Callable
from itertools import product

import numpy as np

from gemma_np.compression import k_quants, legacy_quants
from gemma_np.errors import GemmaError, quoted
from gemma_np.threads import on_all_cores
from gemma_np.weights.block_formats import BLOCK_FORMATS

_TILE = 2**16  # weights that a core quantizes at once: with a few copies they fit into its own cache
_LARGEST = float(np.finfo(np.float16).max)  # scales and minima are float16
_LEAST_IMPORTANCE = 1e-6  # of the mean: channels that calibration has never seen keep a little


_QUANTIZERS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Q2_K": k_quants.q2_k,
    "Q3_K": k_quants.q3_k,
    "Q4_K": k_quants.q4_k,
    "Q5_K": k_quants.q5_k,
    "Q6_K": k_quants.q6_k,
    "Q4_0": legacy_quants.q4_0,
    "Q4_1": legacy_quants.q4_1,
    "Q5_0": legacy_quants.q5_0,
    "Q5_1": legacy_quants.q5_1,
    "Q8_0": legacy_quants.q8_0,
    "IQ4_NL": legacy_quants.iq4_nl,
}
"""The function for each format: x, importance [channels of a block, N] -> uint8 [bytes of a block, N]."""


def quantize_blocks(weight: np.ndarray, format: str, importance: np.ndarray | None = None) -> np.ndarray:
    """Quantize a weight [out, in] to one of BLOCK_FORMATS: return the bytes of its rows as in the file, uint8 [out, n].

    importance [in]: the mean squared input of each channel; by default all channels are equally important.

    Raises GemmaError for another format, when a row is not a multiple of the block, when weights are not finite or too
    large for float16 scales, and when the importance does not fit or is negative.
    """
    if format not in BLOCK_FORMATS:
        raise GemmaError(f"format: {quoted(format)}, expected one of {', '.join(BLOCK_FORMATS)}")
    block, block_bytes = BLOCK_FORMATS[format].channels, BLOCK_FORMATS[format].bytes
    rows, channels = weight.shape
    if channels % block:
        raise GemmaError(f"weight: {channels} channels, expected a multiple of {block} for {format}")
    relative = _relative(importance, channels)
    blocks = np.empty((rows, channels // block, block_bytes), np.uint8)
    height = _TILE // block

    def quantize_tile(place: tuple[int, int]) -> None:
        row, column = place
        x = np.ascontiguousarray(weight[row : row + height, column : column + block].T, np.float32)
        if not np.abs(x).max() <= _LARGEST:
            raise GemmaError(f"weight: NaN, infinity or more than {_LARGEST:g}, the largest float16, for {format}")
        importance = np.empty_like(x)
        importance[:] = relative[column : column + block, None]
        blocks[row : row + height, column // block] = _QUANTIZERS[format](x, importance).T

    on_all_cores(quantize_tile, list(product(range(0, rows, height), range(0, channels, block))))
    return blocks.reshape(rows, -1)


def _relative(importance: np.ndarray | None, channels: int) -> np.ndarray:
    """Return the importance of each channel relative to the mean of all, above 0: [in] -> float32 [in]."""
    if importance is None:
        return np.ones(channels, np.float32)
    if importance.shape != (channels,):
        raise GemmaError(f"importance: shape {importance.shape}, expected ({channels},), a number for each channel")
    if not (np.isfinite(importance) & (importance >= 0)).all():
        raise GemmaError(
            f"importance: {importance.min():g} to {importance.max():g}, expected finite numbers, 0 or more"
        )
    mean = importance.mean(dtype=np.float64)
    relative = np.maximum(importance / mean, _LEAST_IMPORTANCE) if mean else np.ones(channels)
    return relative.astype(np.float32)
