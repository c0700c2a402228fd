"""Write a model to a GGUF file in a mixture of block formats, such as q4_k_m.

Source: llama.cpp, pull request 4861, 2024 (importance matrix).
"""

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from gemma_np.checkpoints.atomic_write import check_file_to_write
from gemma_np.checkpoints.gguf_blocks import to_bytes
from gemma_np.checkpoints.gguf_export import write_gguf
from gemma_np.checkpoints.gguf_mixture import weight_formats
from gemma_np.compression.block_quantization import quantize_blocks
from gemma_np.compression.calibration import channel_importance
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.weights.formats import Blocks, Weight, check_finite, dequantize

_FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_WEIGHTS = 2**24  # dequantized and quantized at once


def export_gguf(model: Gemma, mixture: str, path: Path, ids: np.ndarray | None = None) -> None:
    """Write a model to a .gguf file in a mixture (see `weight_formats`), for llama.cpp and other GGUF readers.

    A weight that is already in the format that the mixture gives it keeps its bytes. ids [texts, T]: calibration data;
    with them, the rounding minimizes the error weighted by the mean squared inputs of the channels.

    Raises GemmaError for an unknown mixture, for a path that does not end in .gguf or cannot be written, when there is
    no tokenizer, when a weight is not finite or does not fit into its format, and when GGUF cannot describe the config.
    """
    if path.suffix != ".gguf":
        raise GemmaError(f"{path}: expected a name that ends in .gguf")
    check_file_to_write(path)
    formats = weight_formats(model.config, mixture, has_importance=ids is not None)
    tokenizer = model.require_tokenizer()
    powers = {} if ids is None else channel_importance(model, ids)

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for name, _ in model.config.weight_shapes():
            weight = model.weights[name]
            check_finite(name, weight)
            if isinstance(weight, np.ndarray) and weight.ndim == 1:
                yield name, (weight + 1).astype(np.float32)
            else:
                try:
                    yield name, encode(weight, formats[name], powers.get(name))
                except GemmaError as error:
                    raise GemmaError(f"{name}: {str(error).removeprefix('weight: ')}") from None

    write_gguf(path, model.config, mixture, formats, arrays(), tokenizer)


def encode(weight: Weight, format: str, importance: np.ndarray | None = None) -> np.ndarray:
    """Return the bytes of a matrix [out, in] in a format of GGUF: uint8 [out, n], n bytes per row.

    importance [in]: see `quantize_blocks`. Raises GemmaError when the weight does not fit into the format.
    """
    if isinstance(weight, Blocks) and weight.format == format:
        return to_bytes(weight)
    rows = max(1, _WEIGHTS // weight.shape[1])
    parts = []
    for start in range(0, weight.shape[0], rows):
        floats = dequantize(weight[start : start + rows])
        if format in _FLOATS:
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(floats.astype(_FLOATS[format]))
            check_finite("weight", stored)
            parts.append(stored.view(np.uint8))
        else:
            parts.append(quantize_blocks(floats, format, importance))
    return np.concatenate(parts)
