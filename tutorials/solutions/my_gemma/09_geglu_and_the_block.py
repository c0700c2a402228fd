"""my_gemma.py, tutorial 9."""

import math

import numpy as np


def gelu(x):
    """GELU in its tanh form: x [...] -> [...]."""
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def feed_forward(x, weights, tape=no_tape):
    """GeGLU: x [..., T, D], weights of the layer -> [..., T, D].

    Records: mlp.gate, mlp.up, mlp.hidden [..., T, F], mlp.down [..., T, D].
    """
    gate = tape("mlp.gate", x @ weights["mlp.gate_proj.weight"].T)
    up = tape("mlp.up", x @ weights["mlp.up_proj.weight"].T)
    hidden = tape("mlp.hidden", gelu(gate) * up)
    return tape("mlp.down", hidden @ weights["mlp.down_proj.weight"].T)


def block(x, weights, config, layer, positions, cache=None, tape=no_tape):
    """One layer, attention and feed-forward, each between two norms: x [..., T, D] -> [..., T, D].

    Records: input_layernorm, those of attention, post_attention_layernorm, resid_mid, pre_feedforward_layernorm, those
    of the feed-forward, post_feedforward_layernorm, resid_post. The weights of a norm are `f"{record}.weight"`.
    """

    def norm(y, name):
        return tape(name, rms_norm(y, weights[f"{name}.weight"], config["rms_norm_eps"]))

    y = attention(norm(x, "input_layernorm"), weights, config, layer, positions, cache, tape)
    x = tape("resid_mid", x + norm(y, "post_attention_layernorm"))
    y = feed_forward(norm(x, "pre_feedforward_layernorm"), weights, tape)
    return tape("resid_post", x + norm(y, "post_feedforward_layernorm"))
