"""Solutions of tutorial 9."""

import math

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.attention import attention
from gemma_np.model.feed_forward import feed_forward, gelu
from gemma_np.model.rms_norm import rms_norm
from gemma_np.scope import Scope
from gemma_np.weights.linear import linear


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def geglu(x: np.ndarray, gate_weight: np.ndarray, up_weight: np.ndarray, down_weight: np.ndarray) -> np.ndarray:
    return linear(gelu(linear(x, gate_weight)) * linear(x, up_weight), down_weight)


def one_layer(x: np.ndarray, weights: Scope, config: GemmaConfig, layer: int) -> np.ndarray:
    def norm(y: np.ndarray, name: str) -> np.ndarray:
        return rms_norm(y, weights[f"{name}.weight"], config.rms_norm_eps)

    y = attention(norm(x, "input_layernorm"), weights / "self_attn", config, layer)
    x = x + norm(y, "post_attention_layernorm")
    y = feed_forward(norm(x, "pre_feedforward_layernorm"), weights / "mlp")
    return x + norm(y, "post_feedforward_layernorm")
