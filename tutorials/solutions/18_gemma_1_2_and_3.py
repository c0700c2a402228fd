"""Solutions of tutorial 18."""

import math

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.rms_norm import rms_norm
from gemma_np.model.rope import rope


def local_layers(layers: int, local_per_global: int) -> list[bool]:
    return [(layer + 1) % (local_per_global + 1) != 0 for layer in range(layers)]


def kept_bytes(config: GemmaConfig, length: int) -> int:
    tokens = 0
    for layer in range(config.num_hidden_layers):
        window = config.window(layer)
        tokens += length if window is None else min(window, length)
    return 2 * tokens * config.num_key_value_heads * config.head_dim * 4


def parameters(config: GemmaConfig) -> tuple[int, int]:
    D, h = config.hidden_size, config.head_dim
    attention = 2 * D * h * (config.num_attention_heads + config.num_key_value_heads)
    feed_forward = 3 * D * config.intermediate_size
    norms = (4 if config.has_post_norms else 2) * D
    if config.has_qk_norm:
        norms += 2 * h
    return config.vocab_size * D, config.num_hidden_layers * (attention + feed_forward + norms) + D


def normed_scores(
    q: np.ndarray,
    k: np.ndarray,
    q_weight: np.ndarray,
    k_weight: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    query_scalar: float,
) -> np.ndarray:
    q = rope(rms_norm(q, q_weight, 1e-6), cos, sin)
    k = rope(rms_norm(k, k_weight, 1e-6), cos, sin)
    return q @ k.swapaxes(-1, -2) / math.sqrt(query_scalar)
