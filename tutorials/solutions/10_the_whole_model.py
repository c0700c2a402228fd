"""Solutions of tutorial 10."""

from collections.abc import Mapping

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.block import block
from gemma_np.model.embedding import embed, unembed
from gemma_np.model.rms_norm import rms_norm
from gemma_np.model.soft_cap import soft_cap
from gemma_np.scope import Scope


def gemma_2(ids: np.ndarray, weights: Mapping[str, np.ndarray], config: GemmaConfig) -> np.ndarray:
    embedding = weights["model.embed_tokens.weight"]
    x = embed(ids, embedding)
    for layer in range(config.num_hidden_layers):
        x = block(x, Scope(weights) / "model" / f"layers.{layer}", config, layer)
    x = rms_norm(x, weights["model.norm.weight"], config.rms_norm_eps)
    return soft_cap(unembed(x, embedding), config.final_logit_softcapping)


def parameters(V: int, D: int, layers: int, H: int, K: int, h: int, F: int) -> int:
    attention = 2 * D * H * h + 2 * D * K * h  # q and o; k and v
    feed_forward = 3 * D * F
    norms = 4 * D
    return V * D + layers * (attention + feed_forward + norms) + D


def without_head(name: str, value: np.ndarray, layer: int, head: int, head_dim: int) -> np.ndarray:
    if name == f"layers.{layer}.self_attn.context":
        value = value.copy()
        value[..., head * head_dim : (head + 1) * head_dim] = 0
    return value
