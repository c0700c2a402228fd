"""my_gemma.py, tutorial 11."""

import numpy as np


class LayerCache:
    """The keys and values of one layer, [K, slots, h] each: position p is in slot p % slots.

    Attributes: keys, values, and length, how many tokens have been appended.
    """

    def __init__(self, kv_heads, slots, head_dim):
        """Begin with no tokens, and room for `slots` of them."""
        self.keys = np.zeros((kv_heads, slots, head_dim), np.float32)
        self.values = np.zeros((kv_heads, slots, head_dim), np.float32)
        self.length = 0

    def append(self, k, v):
        """Store T new tokens: k, v [K, T, h] -> keys, values [K, S, h] that they may see, their positions [S].

        These are the kept ones, then the new ones, in the order of their positions. The last of the new tokens may
        overwrite what the first of them still see.
        """
        slots, start = self.keys.shape[1], self.length
        self.length = end = start + k.shape[1]
        kept = np.arange(max(0, start - slots), start)
        keys = np.concatenate([self.keys[:, kept % slots], k], axis=1)
        values = np.concatenate([self.values[:, kept % slots], v], axis=1)
        stays = np.arange(max(start, end - slots), end)
        self.keys[:, stays % slots] = k[:, stays - start]
        self.values[:, stays % slots] = v[:, stays - start]
        return keys, values, np.arange(end - keys.shape[1], end)


def new_cache(config, room):
    """A list of empty caches, one for each layer: `room` slots on a global layer, at most its window on a local one."""
    windows = [layer_window(config, layer) or room for layer in range(config["num_hidden_layers"])]
    return [LayerCache(config["num_key_value_heads"], min(window, room), config["head_dim"]) for window in windows]


def generate(ids, count, weights, config, chunk=64):
    """The most likely next token, `count` times: ids [T] -> list of `count` ids.

    Read the prompt in chunks of at most `chunk` tokens, then each new token.
    """
    cache = new_cache(config, len(ids) + count)
    for start in range(0, len(ids), chunk):
        logits = gemma(ids[start : start + chunk], weights, config, cache)
    new = [int(logits[-1].argmax())]
    while len(new) < count:
        new.append(int(gemma(new[-1:], weights, config, cache)[-1].argmax()))
    return new
