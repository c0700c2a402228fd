"""Drafts for speculative decoding, made from the model itself or chosen by name.

Source: Zhang et al., arXiv 2309.08168 (a draft that skips layers).
"""

from dataclasses import replace
from typing import Any

import numpy as np

from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.compression.structured_pruning import keep_layers
from gemma_np.gemma import Draft, Gemma, load
from gemma_np.weights.formats import FORMATS

_INT4 = Scheme("int4", FORMATS["int4"].group_size)


def int4_draft(model: Gemma) -> Gemma:
    """Return the model with all matrices in int4, the embedding too.

    Raises GemmaError when a matrix cannot be divided into groups.
    """

    def quantized(weight: Any) -> Any:
        return quantize(weight, _INT4, mse=True) if len(weight.shape) == 2 else weight.astype(np.float32)

    return replace(model, weights={name: quantized(weight) for name, weight in model.weights.items()})


def half_draft(model: Gemma) -> Gemma:
    """Return the model with only the first half of its layers; it shares their weights."""
    return keep_layers(model, range((model.config.num_hidden_layers + 1) // 2))


NAMED_DRAFTS: dict[str, Draft] = {"int4": int4_draft, "half": half_draft, "lookup": "lookup"}
"""The drafts that need no checkpoint."""


def read_draft(name: str) -> Draft:
    """Return one of `NAMED_DRAFTS`, or load a checkpoint. Raises GemmaError as `load` does."""
    return NAMED_DRAFTS.get(name) or load(name)
