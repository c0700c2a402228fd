"""The embedding: one matrix maps tokens to vectors, and vectors to logits (tied head).

Source: Gemma 2 report, section 2 and table 1 (tied embeddings); gemma_pytorch (the scale).
"""

import math

import numpy as np

from gemma_np.weights.formats import Weight, embedding_rows
from gemma_np.weights.linear import linear


def embed(ids: np.ndarray, embedding: Weight) -> np.ndarray:
    """Look up the vectors of the tokens and scale them by sqrt(D).

    ids [..., T], embedding [V, D] -> [..., T, D]

    The scale compensates for the tied head: rows small enough to give logits of order 1 would be too small at the start
    of the residual stream.
    """
    return embedding_rows(embedding, ids) * math.sqrt(embedding.shape[1])


def embed_backward(dx: np.ndarray, ids: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """Compute the gradient of `embed`: each row sums the gradients of all occurrences of its token.

    dx [..., T, D], ids [..., T], embedding [V, D] -> dembedding [V, D]
    """
    gradient = np.zeros_like(embedding)
    np.add.at(gradient, ids, dx * math.sqrt(embedding.shape[1]))
    return gradient


def unembed(x: np.ndarray, embedding: Weight) -> np.ndarray:
    """Compute the logits of every token of the vocabulary, with the same matrix and no scale.

    x [..., T, D], embedding [V, D] -> logits [..., T, V]
    """
    return linear(x, embedding)
