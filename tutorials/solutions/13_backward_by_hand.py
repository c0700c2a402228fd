"""Solutions of tutorial 13."""

from collections.abc import Mapping

import numpy as np
from support.exercises.backward_by_hand import Pieces


def cap_gradient(dy: np.ndarray, y: np.ndarray, cap: float) -> np.ndarray:
    tanh = y / cap
    return dy * (1 - tanh * tanh)


def softmax_gradient(dprobs: np.ndarray, probs: np.ndarray) -> np.ndarray:
    expected = np.sum(dprobs * probs, axis=-1, keepdims=True)
    return probs * (dprobs - expected)


def shared_gradient(probs: np.ndarray, dcontext: np.ndarray, kv_heads: int) -> np.ndarray:
    heads = probs.swapaxes(-1, -2) @ dcontext
    H, S, h = heads.shape
    return heads.reshape(kv_heads, H // kv_heads, S, h).sum(axis=1)


def block_gradient(dy: np.ndarray, x: np.ndarray, record: Mapping[str, np.ndarray], back: Pieces) -> np.ndarray:
    dz = back.norm(dy, record["mlp.down"], "post_feedforward_layernorm")
    dz = back.feed_forward(dz)
    dmid = dy + back.norm(dz, record["resid_mid"], "pre_feedforward_layernorm")
    dz = back.norm(dmid, record["self_attn.o"], "post_attention_layernorm")
    dz = back.attention(dz)
    return dmid + back.norm(dz, x, "input_layernorm")
