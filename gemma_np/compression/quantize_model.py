"""A whole model, quantized layer by layer: no more than one layer is ever widened."""

from collections.abc import Iterator

import numpy as np

from gemma_np.checkpoints.quantized_tensors import kind_of
from gemma_np.compression.awq import awq_scale
from gemma_np.compression.calibration import INPUTS, Moments, map_layers
from gemma_np.compression.gptq import gptq
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.weights.formats import Weight

METHODS = {
    "round": "to the nearest value of the full grid",
    "clip": "to the nearest value of the grid of least error",
    "gptq": "channel by channel, later ones making up for earlier ones; needs a text",
    "awq": "after giving finer steps to channels with large inputs; needs a text",
}
CALIBRATED = ("gptq", "awq")


def quantize_model(
    model: Gemma, scheme: Scheme, method: str = "clip", ids: np.ndarray | None = None, embedding: Scheme | None = None
) -> Iterator[tuple[str, Weight]]:
    """Every weight by its name, quantized but for the norms, in the order of use.

    ids [texts, T] calibrate the methods that need them (`calibration_texts`). The embedding is rounded, to a scheme of
    its own if there is one.

    Raises GemmaError, before anything is computed, when something does not fit, or is quantized already.
    """
    check_quantization(model, scheme, method, ids, embedding)
    return _quantize(model, scheme, method, ids if method in CALIBRATED else None, embedding or scheme)


def check_quantization(
    model: Gemma, scheme: Scheme, method: str, ids: np.ndarray | None, embedding: Scheme | None
) -> None:
    """Raise the GemmaError that `quantize_model` promises; ids [texts, T]."""
    if method not in METHODS:
        raise GemmaError(f"method: {method!r}, expected one of {', '.join(METHODS)}")
    if method in CALIBRATED and ids is None:
        raise GemmaError(f"method {method}: expected a text to calibrate with")
    if method in CALIBRATED and scheme.kind not in ("int8", "w8a8", "int4"):
        raise GemmaError(f"method {method}: for {scheme.kind}, expected int8, w8a8 or int4")
    for name, weight in model.weights.items():
        if kind_of(weight):
            raise GemmaError(
                f"{name}: is quantized already, expected floats (gemma-np merge MODEL -o FLOATS widens it)"
            )
        if len(weight.shape) == 2:
            (embedding or scheme if "embed" in name else scheme).check(name, weight.shape)


def _quantize(
    model: Gemma, scheme: Scheme, method: str, ids: np.ndarray | None, embedding: Scheme
) -> Iterator[tuple[str, Weight]]:
    def quantize_layer(layer: dict[str, np.ndarray], moments: Moments) -> dict[str, Weight]:
        if method == "awq":
            layer = awq_scale(layer, moments, scheme, model.config)
        return {name: quantize_weight(name, weight, moments) for name, weight in layer.items()}

    def quantize_weight(name: str, weight: np.ndarray, moments: Moments) -> Weight:
        if weight.ndim == 1:
            return weight
        if method == "gptq":
            return gptq(weight, moments[INPUTS[name]], scheme)
        return quantize(weight, scheme, least_error=method != "round")

    head = quantize(model.weights["model.embed_tokens.weight"], embedding, least_error=method != "round")
    return map_layers(model, head, quantize_layer, ids)
