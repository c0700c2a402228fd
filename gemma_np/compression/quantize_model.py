"""Quantize a whole model, layer by layer: at most one layer is in memory as floats."""

import warnings
from collections.abc import Iterator

import numpy as np

from gemma_np.checkpoints.quantized_tensors import quantized_format
from gemma_np.compression.awq import awq_scale
from gemma_np.compression.calibration import INPUTS, InputGram, map_layers
from gemma_np.compression.gptq import gptq
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.errors import GemmaError, GemmaWarning
from gemma_np.gemma import Gemma
from gemma_np.weights.formats import Weight, check_finite

QUANTIZATION_METHODS = {
    "round": "round to the nearest value of a grid from minimum to maximum",
    "clip": "the same, on the grid with the least squared error",
    "gptq": "later channels compensate for earlier rounding errors; needs calibration text",
    "awq": "finer steps for channels with large inputs; needs calibration text",
}
DEFAULT_METHOD = "clip"
CALIBRATED = ("gptq", "awq")
BFLOAT16 = Scheme("bfloat16")


def quantize_model(
    model: Gemma,
    scheme: Scheme,
    method: str = DEFAULT_METHOD,
    ids: np.ndarray | None = None,
    embedding: Scheme = BFLOAT16,
) -> Iterator[tuple[str, Weight]]:
    """Return all weights by name in the order of use, quantized except for the norms.

    Matrices that are quantized already are dequantized first, a layer at a time, with a warning.

    ids [texts, T]: calibration data, for GPTQ and AWQ (see `calibration_ids`); embedding: the scheme of the embedding
    (default: bfloat16, since transformers and vLLM load no quantized one), which is always rounded to nearest.

    Raises GemmaError when called, before the first weight is computed, for what `check_quantization` refuses.
    """
    check_quantization(model, scheme, method, ids, embedding)
    _warn_of_second_rounding(model)
    return _quantize(model, scheme, method, ids if method in CALIBRATED else None, embedding)


def check_quantization(model: Gemma, scheme: Scheme, method: str, ids: np.ndarray | None, embedding: Scheme) -> None:
    """Check that `quantize_model` can run.

    Raises GemmaError for an unknown method, for calibration data, ids [texts, T], that a method needs and does not get,
    and when a weight does not fit the scheme.
    """
    if method not in QUANTIZATION_METHODS:
        raise GemmaError(f"method: {method!r}, expected one of {', '.join(QUANTIZATION_METHODS)}")
    if method in CALIBRATED and ids is None:
        raise GemmaError(f"method {method}: needs calibration text")
    if method in CALIBRATED and scheme.format not in ("int8", "w8a8", "int4"):
        raise GemmaError(f"method {method}: for {scheme.format}, expected int8, w8a8 or int4")
    for name, weight in model.weights.items():
        if len(weight.shape) == 2:
            (embedding if "embed" in name else scheme).check(name, weight.shape)


def _warn_of_second_rounding(model: Gemma) -> None:
    formats = [quantized_format(weight) for weight in model.weights.values() if len(weight.shape) == 2]
    quantized = sorted({format for format in formats if format})
    if quantized:
        count = f"{len(formats) - formats.count(None)} of {len(formats)} matrices are quantized already"
        warnings.warn(f"{count} ({', '.join(quantized)}) and are rounded a second time", GemmaWarning, stacklevel=3)


def _quantize(
    model: Gemma, scheme: Scheme, method: str, ids: np.ndarray | None, embedding: Scheme
) -> Iterator[tuple[str, Weight]]:
    def quantize_layer(layer: dict[str, np.ndarray], gram: InputGram) -> dict[str, Weight]:
        if method == "awq":
            layer = awq_scale(layer, gram, scheme, model.config)
        return {name: quantize_weight(name, weight, gram) for name, weight in layer.items()}

    def quantize_weight(name: str, weight: np.ndarray, gram: InputGram) -> Weight:
        if weight.ndim == 1:
            return weight
        check_finite(name, weight)
        if method == "gptq":
            return gptq(weight, gram[INPUTS[name]], scheme)
        return quantize(weight, scheme, mse=method != "round")

    name = "model.embed_tokens.weight"
    check_finite(name, model.weights[name])
    head = quantize(model.weights[name], embedding, mse=method != "round")
    return map_layers(model, head, quantize_layer, ids)
