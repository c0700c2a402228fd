"""my_gemma.py, tutorial 10."""

import numpy as np


def gemma(ids, weights, config, cache=None, tape=no_tape):
    """The whole model: ids [..., T] -> logits [..., T, V].

    The first position is 0; with a cache (tutorial 11), a list with one for each layer, it is cache[0].length. Layer n
    has the weights `part(weights, f"model.layers.{n}.")` and the tape `prefixed(tape, f"layers.{n}.")`.

    Records: those of the parts, and norm, whose weight is model.norm.weight.
    """
    start = cache[0].length if cache else 0
    positions = np.arange(start, start + np.shape(ids)[-1])
    x = embed(ids, weights, config, tape)
    for layer in range(config["num_hidden_layers"]):
        own_weights, own_tape = part(weights, f"model.layers.{layer}."), prefixed(tape, f"layers.{layer}.")
        x = block(x, own_weights, config, layer, positions, cache[layer] if cache else None, own_tape)
    x = tape("norm", rms_norm(x, weights["model.norm.weight"], config["rms_norm_eps"]))
    return unembed(x, weights, config, tape)
