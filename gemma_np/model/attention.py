"""Grouped-query attention: project, rotate, score, cap, mask, softmax, weighted sum.

Source: Gemma 2 report, section 2 and table 1; Ainslie et al., arXiv 2305.13245 (grouped-query attention); Gemma 3
report, section 2.1 (QK-norm, which replaces the cap).
"""

import math

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.attention_mask import attention_mask, masked_softmax, masked_softmax_backward
from gemma_np.model.kv_cache import LayerCache
from gemma_np.model.rms_norm import rms_norm, rms_norm_backward
from gemma_np.model.rope import rope, rope_backward, rope_cos_sin
from gemma_np.model.soft_cap import soft_cap, soft_cap_backward
from gemma_np.scope import Scope, Tape, no_tape
from gemma_np.weights.linear import linear, linear_backward


def attention(
    x: np.ndarray,
    weights: Scope,
    config: GemmaConfig,
    layer: int,
    cache: LayerCache | tuple[LayerCache, ...] | None = None,
    tape: Tape = no_tape,
) -> np.ndarray:
    """Compute attention: every token gathers information from the tokens it can see.

    x [..., T, D] -> [..., T, D]; weights are those of the layer's `self_attn`. With a cache, the T tokens follow
    those in it and are added to it; without one, they start at position 0. The texts of a batch may have different
    lengths before these T tokens, if each has its own cache.
    """
    q = tape("q", split_heads(linear(x, weights["q_proj.weight"]), config.head_dim))  # [..., H, T, h]
    k = tape("k", split_heads(linear(x, weights["k_proj.weight"]), config.head_dim))  # [..., K, T, h]
    v = tape("v", split_heads(linear(x, weights["v_proj.weight"]), config.head_dim))  # [..., K, T, h]
    if config.has_qk_norm:
        q = tape("q_norm", rms_norm(q, weights["q_norm.weight"], config.rms_norm_eps))
        k = tape("k_norm", rms_norm(k, weights["k_norm.weight"], config.rms_norm_eps))
    if isinstance(cache, tuple):
        context = np.stack([attend(*text, config, layer) for text in zip(q, k, v, cache, strict=True)])
    else:
        context = attend(q, k, v, cache, config, layer, tape=tape)  # [..., T, H*h]
    return tape("o", linear(context, weights["o_proj.weight"]))


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    cache: LayerCache | None,
    config: GemmaConfig,
    layer: int,
    *,
    tape: Tape = no_tape,
) -> np.ndarray:
    """Compute attention between the projections: rotate, score, cap, mask, softmax, weighted sum.

    q [..., H, T, h], k and v [..., K, T, h] -> context [..., T, H*h]
    """
    start = cache.length if cache else 0
    positions = range(start, start + q.shape[-2])
    cos, sin = rope_cos_sin(positions, config.head_dim, *config.rope(layer), q.dtype)
    q = tape("q_rope", rope(q, cos, sin))
    k = tape("k_rope", rope(k, cos, sin))
    keys, values, key_positions = cache.append(k, v) if cache else (k, v, np.asarray(positions))  # [..., K, S, h]

    q_scaled = q / math.sqrt(config.query_pre_attn_scalar)
    scores = tape("scores", grouped_matmul(q_scaled, keys.swapaxes(-1, -2)))  # [..., H, T, S]
    if config.attn_logit_softcapping:
        scores = tape("scores_capped", soft_cap(scores, config.attn_logit_softcapping))
    mask = attention_mask(positions, key_positions, config.window(layer))  # [T, S]
    probs = tape("probs", masked_softmax(scores, mask))  # [..., H, T, S]
    return tape("context", merge_heads(grouped_matmul(probs, values)))


def attention_backward(
    dy: np.ndarray, x: np.ndarray, weights: Scope, config: GemmaConfig, layer: int, *, record: Scope, gradients: Scope
) -> np.ndarray:
    """Compute the gradients of `attention` without a cache, last line first; those of its weights go into `gradients`.

    dy and x [..., T, D], record of the layer's `self_attn` -> dx [..., T, D]
    """
    q_scaled = record["q_rope"] / math.sqrt(config.query_pre_attn_scalar)
    keys, values, probs = record["k_rope"], record["v"], record["probs"]

    dcontext, gradients["o_proj.weight"] = linear_backward(dy, record["context"], weights["o_proj.weight"])
    dheads = split_heads(dcontext, config.head_dim)  # undoes: merge_heads
    dprobs = grouped_matmul(dheads, values.swapaxes(-1, -2))  # undoes: grouped_matmul(probs, values)
    dv = grouped_matmul_backward(probs, dheads, config.num_key_value_heads)
    dscores = masked_softmax_backward(dprobs, probs)
    if config.attn_logit_softcapping:
        dscores = soft_cap_backward(dscores, record["scores_capped"], config.attn_logit_softcapping)
    dq = grouped_matmul(dscores, keys) / math.sqrt(config.query_pre_attn_scalar)  # undoes: q_scaled, keys^T
    dk = grouped_matmul_backward(dscores, q_scaled, config.num_key_value_heads)

    cos, sin = rope_cos_sin(range(x.shape[-2]), config.head_dim, *config.rope(layer), x.dtype)
    dq, dk = rope_backward(dq, cos, sin), rope_backward(dk, cos, sin)
    if config.has_qk_norm:
        eps = config.rms_norm_eps
        dq, gradients["q_norm.weight"] = rms_norm_backward(dq, record["q"], weights["q_norm.weight"], eps)
        dk, gradients["k_norm.weight"] = rms_norm_backward(dk, record["k"], weights["k_norm.weight"], eps)
    dx_q, gradients["q_proj.weight"] = linear_backward(merge_heads(dq), x, weights["q_proj.weight"])
    dx_k, gradients["k_proj.weight"] = linear_backward(merge_heads(dk), x, weights["k_proj.weight"])
    dx_v, gradients["v_proj.weight"] = linear_backward(merge_heads(dv), x, weights["v_proj.weight"])
    return dx_q + dx_k + dx_v


def split_heads(x: np.ndarray, head_dim: int) -> np.ndarray:
    """Split the channels into heads of h consecutive ones: [..., T, H*h] -> [..., H, T, h]."""
    return x.reshape(*x.shape[:-1], -1, head_dim).swapaxes(-2, -3)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """Undo `split_heads`: [..., H, T, h] -> [..., T, H*h]."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def grouped_matmul(heads: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Multiply the matrix of each query head by that of its key-value head.

    heads [..., H, T, a], shared [..., K, a, b] -> [..., H, T, b]. Query heads g * G to g * G + G - 1 share head g:
    their rows are stacked into one tall matrix, so the shared matrix is never repeated.
    """
    stacked = heads.reshape(*shared.shape[:-2], -1, heads.shape[-1])  # [..., K, G*T, a]
    return (stacked @ shared).reshape(*heads.shape[:-1], shared.shape[-1])


def grouped_matmul_backward(left: np.ndarray, right: np.ndarray, kv_heads: int) -> np.ndarray:
    """Compute the gradient of the shared matrix: left^T @ right, summed over the query heads of each group.

    left [..., H, T, S], right [..., H, T, h] -> [..., K, S, h]
    """
    left = left.reshape(*left.shape[:-3], kv_heads, -1, left.shape[-1])  # [..., K, G*T, S]
    right = right.reshape(*right.shape[:-3], kv_heads, -1, right.shape[-1])  # [..., K, G*T, h]
    return left.swapaxes(-1, -2) @ right
