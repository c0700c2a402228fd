"""Mistakes in the scale of the embedding."""

import math
from collections.abc import Callable

import numpy as np
from ml_dtypes import bfloat16

from gemma_np.model.embedding import embed
from gemma_np.oracle.mistakes.mistake import mistake

Embed = Callable[[np.ndarray, np.ndarray], np.ndarray]


@mistake(fix="multiply it by sqrt(hidden_size)", right=embed, replaces="model.transformer.embed", shows="embedding")
def embed_scale_absent(ids: np.ndarray, embedding: np.ndarray, *, original: Embed) -> np.ndarray:
    """The embedding is not scaled.

    Undo the scale: ids [..., T], embedding [V, D] -> [..., T, D].
    """
    return original(ids, embedding) / math.sqrt(embedding.shape[1])


@mistake(
    fix="multiply it by sqrt(hidden_size) once", right=embed, replaces="model.transformer.embed", shows="embedding"
)
def embed_scale_twice(ids: np.ndarray, embedding: np.ndarray, *, original: Embed) -> np.ndarray:
    """The embedding is scaled twice.

    Scale once more: ids [..., T], embedding [V, D] -> [..., T, D].
    """
    return original(ids, embedding) * math.sqrt(embedding.shape[1])


@mistake(
    fix="round sqrt(hidden_size) no further than to the dtype of the computation",
    right=embed,
    replaces="model.transformer.embed",
    shows="embedding",
)
def embed_scale_rounding(ids: np.ndarray, embedding: np.ndarray, *, original: Embed) -> np.ndarray:
    """The embedding's scale is rounded to bfloat16 in a computation of higher precision.

    Scale by sqrt(D) in bfloat16: ids [..., T], embedding [V, D] -> [..., T, D].
    """
    scale = math.sqrt(embedding.shape[1])
    return original(ids, embedding) * (float(bfloat16(scale)) / scale)
