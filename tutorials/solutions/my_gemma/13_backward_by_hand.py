"""my_gemma.py, tutorial 13."""

import math

import numpy as np


def log_softmax(logits):
    """The logarithm of the softmax over the last axis: logits [..., V] -> [..., V]."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(logits, targets):
    """The mean of -log P(target): logits [..., T, V], targets [..., T] -> nats, its gradient dlogits [..., T, V]."""
    log_probs = log_softmax(logits)
    is_target = np.arange(logits.shape[-1]) == np.asarray(targets)[..., None]  # one-hot
    count = np.size(targets)
    return -log_probs[is_target].sum() / count, (np.exp(log_probs) - is_target) / count


def linear_backward(dy, x, weight):
    """Of y = x @ weight.T: dy [..., T, n], x [..., T, m], weight [n, m] -> dx [..., T, m], dweight [n, m]."""
    return dy @ weight, dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def rms_norm_backward(dy, x, weight, eps):
    """dy and x [..., D], weight [D] -> dx [..., D], dweight [D]."""
    rms = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    n, dn = x / rms, dy * (1 + weight)
    dx = (dn - n * np.mean(dn * n, axis=-1, keepdims=True)) / rms
    return dx, (dy * n).reshape(-1, len(weight)).sum(axis=0)


def soft_cap_backward(dy, y, cap):
    """From the capped y: dy and y [...] -> dx [...]."""
    return dy * (1 - (y / cap) ** 2)


def softmax_backward(dprobs, probs):
    """dprobs and probs [..., T, S] -> dscores [..., T, S]."""
    return probs * (dprobs - np.sum(dprobs * probs, axis=-1, keepdims=True))


def sum_groups(x, kv_heads):
    """Undo the sharing of keys and values: add up the heads of each group, x [..., H, S, h] -> [..., K, S, h]."""
    *batch, H, S, h = x.shape
    return x.reshape(*batch, kv_heads, H // kv_heads, S, h).sum(axis=-3)


def attention_backward(dy, x, weights, config, record):
    """Of attention without a cache: dy and x [..., T, D] -> dx [..., T, D], {name: gradient of the weight}.

    record: {name: value} of all records of the layer.
    """
    q, k, v, probs = (record[f"self_attn.{name}"] for name in ("q_rope", "k_rope", "v", "probs"))
    group, kv_heads = q.shape[-3] // k.shape[-3], k.shape[-3]
    keys, values = np.repeat(k, group, axis=-3), np.repeat(v, group, axis=-3)
    gradients = {}

    def projection_backward(dy, x, name):
        dx, gradients[name] = linear_backward(dy, x, weights[name])
        return dx

    dcontext = projection_backward(dy, record["self_attn.context"], "self_attn.o_proj.weight")
    dcontext = split_heads(dcontext, config["head_dim"])
    dprobs, dvalues = dcontext @ values.swapaxes(-1, -2), probs.swapaxes(-1, -2) @ dcontext
    dscores = softmax_backward(dprobs, probs)
    dscores = soft_cap_backward(dscores, record["self_attn.scores_capped"], config["attn_logit_softcapping"])
    dscores = dscores / math.sqrt(config["query_pre_attn_scalar"])
    dq, dkeys = dscores @ keys, dscores.swapaxes(-1, -2) @ q

    back = -np.arange(x.shape[-2])  # the inverse of a rotation is the rotation by the opposite angle
    dq, dk = rope(dq, back, config["rope_theta"]), rope(sum_groups(dkeys, kv_heads), back, config["rope_theta"])
    dx = projection_backward(merge_heads(dq), x, "self_attn.q_proj.weight")
    dx = dx + projection_backward(merge_heads(dk), x, "self_attn.k_proj.weight")
    dx = dx + projection_backward(merge_heads(sum_groups(dvalues, kv_heads)), x, "self_attn.v_proj.weight")
    return dx, gradients


def gelu_slope(x):
    """The derivative of `gelu`: x [...] -> [...]."""
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    return (1 + t) / 2 + x / 2 * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)


def feed_forward_backward(dy, x, weights, record):
    """dy and x [..., T, D], record of the layer -> dx [..., T, D], {name: gradient of the weight}."""
    gate, up, hidden = (record[f"mlp.{name}"] for name in ("gate", "up", "hidden"))
    dhidden, ddown = linear_backward(dy, hidden, weights["mlp.down_proj.weight"])
    dx_gate, dgate = linear_backward(dhidden * up * gelu_slope(gate), x, weights["mlp.gate_proj.weight"])
    dx_up, dup = linear_backward(dhidden * gelu(gate), x, weights["mlp.up_proj.weight"])
    return dx_gate + dx_up, {
        "mlp.gate_proj.weight": dgate,
        "mlp.up_proj.weight": dup,
        "mlp.down_proj.weight": ddown,
    }


def block_backward(dy, x, weights, config, record):
    """dy and x [..., T, D], weights and record of the layer -> dx [..., T, D], {name: gradient of the weight}."""
    gradients = {}

    def norm_backward(dy, x, name):
        weight = f"{name}.weight"
        dx, gradients[weight] = rms_norm_backward(dy, x, weights[weight], config["rms_norm_eps"])
        return dx

    dz = norm_backward(dy, record["mlp.down"], "post_feedforward_layernorm")
    dz, of_feed_forward = feed_forward_backward(dz, record["pre_feedforward_layernorm"], weights, record)
    dmid = dy + norm_backward(dz, record["resid_mid"], "pre_feedforward_layernorm")
    dz = norm_backward(dmid, record["self_attn.o"], "post_attention_layernorm")
    dz, of_attention = attention_backward(dz, record["input_layernorm"], weights, config, record)
    return dmid + norm_backward(dz, x, "input_layernorm"), gradients | of_feed_forward | of_attention


def gemma_backward(dlogits, ids, weights, config, record):
    """Of `gemma` without a cache: dlogits [..., T, V], ids [..., T], record -> {name: gradient of the weight}."""
    embedding, gradients = weights["model.embed_tokens.weight"], {}
    dlogits = soft_cap_backward(dlogits, record["logits_capped"], config["final_logit_softcapping"])
    dx, dembedding = linear_backward(dlogits, record["norm"], embedding)
    inputs = ["embedding"] + [f"layers.{layer}.resid_post" for layer in range(config["num_hidden_layers"])]
    dx, gradients["model.norm.weight"] = rms_norm_backward(
        dx, record[inputs[-1]], weights["model.norm.weight"], config["rms_norm_eps"]
    )
    for layer in reversed(range(config["num_hidden_layers"])):
        name, own_record = f"model.layers.{layer}.", part(record, f"layers.{layer}.")
        dx, found = block_backward(dx, record[inputs[layer]], part(weights, name), config, own_record)
        gradients |= {name + weight: gradient for weight, gradient in found.items()}
    np.add.at(dembedding, np.asarray(ids), dx * math.sqrt(config["hidden_size"]))  # one matrix, used twice
    return gradients | {"model.embed_tokens.weight": dembedding}
