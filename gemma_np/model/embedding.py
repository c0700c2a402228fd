"""Tokens to vectors, and vectors back to a score for every token: one matrix does both (tied head).

Source: Gemma 2 report, section 2 and table 1 (tied embeddings); gemma_pytorch for the scale.
"""

import math

import numpy as np

from gemma_np.weights.formats import Weight, embedding_rows
from gemma_np.weights.linear import linear


def embed(ids: np.ndarray, embedding: Weight) -> np.ndarray:
    """Look the tokens up and scale by sqrt(D).

    ids [..., T], embedding [V, D] -> [..., T, D]

    The scale makes up for the tied head: rows that are small enough to give logits of order 1 would be too small
    as the start of the residual stream.
    """
    return embedding_rows(embedding, ids) * math.sqrt(embedding.shape[1])


def embed_backward(dx: np.ndarray, ids: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """Undo `embed`: add each token's gradient to its row, as often as the token occurs.

    dx [..., T, D], ids [..., T], embedding [V, D] -> dembedding [V, D]
    """
    gradient = np.zeros_like(embedding)
    np.add.at(gradient, ids, dx * math.sqrt(embedding.shape[1]))
    return gradient


def unembed(x: np.ndarray, embedding: Weight) -> np.ndarray:
    """Score every token of the vocabulary against x, with the same matrix and no scale.

    x [..., T, D], embedding [V, D] -> logits [..., T, V]
    """
    return linear(x, embedding)
