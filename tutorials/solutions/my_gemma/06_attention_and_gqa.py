"""my_gemma.py, tutorial 6."""

import math

import numpy as np


def merge_heads(x):
    """Undo `split_heads`: x [..., H, T, h] -> [..., T, H*h]."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def softmax(scores, mask):
    """The softmax over the keys that are True in the mask, 0 elsewhere: scores [..., T, S], mask [T, S] -> same."""
    scores = np.where(mask, scores, -np.inf)
    odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def attention(x, weights, config, layer, positions, cache=None, tape=no_tape):
    """Let each token gather from those that it sees: x [..., T, D], weights of the layer, positions [T] -> [..., T, D].

    With a cache (tutorial 11), cache.append(k, v) returns the keys, the values and the positions of the keys to use;
    without one, these are k, v and the positions. `attention_mask` is tutorial 7, `soft_cap` tutorial 8.

    Records: self_attn.q, self_attn.k, self_attn.v, then .q_rope, .k_rope, .scores [..., H, T, S], .scores_capped,
    .probs, .context [..., T, H*h], .o.
    """
    head_dim, base = config["head_dim"], config["rope_theta"]
    q = tape("self_attn.q", split_heads(x @ weights["self_attn.q_proj.weight"].T, head_dim))  # [..., H, T, h]
    k = tape("self_attn.k", split_heads(x @ weights["self_attn.k_proj.weight"].T, head_dim))  # [..., K, T, h]
    v = tape("self_attn.v", split_heads(x @ weights["self_attn.v_proj.weight"].T, head_dim))  # [..., K, T, h]
    q = tape("self_attn.q_rope", rope(q, positions, base))
    k = tape("self_attn.k_rope", rope(k, positions, base))
    keys, values, key_positions = cache.append(k, v) if cache else (k, v, positions)

    group = q.shape[-3] // keys.shape[-3]
    keys, values = np.repeat(keys, group, axis=-3), np.repeat(values, group, axis=-3)  # [..., H, S, h]
    scores = tape("self_attn.scores", q @ keys.swapaxes(-1, -2) / math.sqrt(config["query_pre_attn_scalar"]))
    scores = tape("self_attn.scores_capped", soft_cap(scores, config["attn_logit_softcapping"]))
    mask = attention_mask(positions, key_positions, layer_window(config, layer))
    probs = tape("self_attn.probs", softmax(scores, mask))
    context = tape("self_attn.context", merge_heads(probs @ values))
    return tape("self_attn.o", context @ weights["self_attn.o_proj.weight"].T)
