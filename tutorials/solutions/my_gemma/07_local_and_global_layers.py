"""my_gemma.py, tutorial 7."""

import numpy as np


def layer_window(config, layer):
    """How many keys a query of this layer sees, its own included: "sliding_window", or None on a global layer.

    "layer_types" says which layers are local ("sliding_attention"). Files without it mean layers 0, 2, 4 and so on.
    """
    kinds = config.get("layer_types")
    is_local = kinds[layer] == "sliding_attention" if kinds else layer % 2 == 0
    return config["sliding_window"] if is_local else None


def attention_mask(query_positions, key_positions, window):
    """True where a query sees a key, not later than itself and in its window: [T], [S] -> bool [T, S].

    A window of None has no end.
    """
    distance = np.asarray(query_positions)[:, None] - np.asarray(key_positions)
    return (distance >= 0) & (distance < (window or np.inf))
