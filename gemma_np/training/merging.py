"""Weight averaging: merge models that were trained from a common start into one, often better than each of them.

Source: Gemma 2 report, section 4 (model merging); Ramé et al., arXiv 2406.16768.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.weights.formats import check_finite

DTYPES = ("float32", "bfloat16", "float16")


def merge(models: Sequence[Gemma], dtype: str = "float32") -> Gemma:
    """Average the weights of models with the same config and tokenizer; a single model is converted to the dtype.

    Raises GemmaError when configs or tokenizers differ, for a dtype that is not in `DTYPES`, and for a weight that is
    not finite or too large for it.
    """
    if dtype not in DTYPES:
        raise GemmaError(f"dtype: {dtype!r}, expected one of {', '.join(DTYPES)}")
    first = models[0]
    for number, model in enumerate(models[1:], start=2):
        if model.config != first.config:
            raise GemmaError(f"model {number}: its config is not that of the first, expected the same")
        if model.tokenizer_model != first.tokenizer_model:
            raise GemmaError(f"model {number}: its tokenizer.model is not that of the first, expected the same")
    target = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    merged = average([model.dequantized().weights for model in models])
    largest = float(ml_dtypes.finfo(target).max)  # type: ignore[no-untyped-call]
    for name, weight in merged.items():
        check_finite(name, weight)
        if np.abs(weight).max() > largest:
            raise GemmaError(f"{name}: {np.abs(weight).max():g} in it, expected at most {largest:g} for {dtype}")
    return replace(first, weights={name: weight.astype(target) for name, weight in merged.items()})


def average(models: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the mean of every weight over the models, summed in float64.

    Raises GemmaError when the models do not have the same weights of the same shapes.
    """
    first = models[0]
    for number, model in enumerate(models[1:], start=2):
        for name in first.keys() | model.keys():
            shapes = [weights[name].shape if name in weights else None for weights in (first, model)]
            if shapes[0] != shapes[1]:
                raise GemmaError(f"model {number}: {name}: shape {shapes[1]}, expected {shapes[0]} as in the first")
    return {
        name: np.mean([model[name] for model in models], axis=0, dtype=np.float64).astype(weight.dtype)
        for name, weight in first.items()
    }
