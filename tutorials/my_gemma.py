"""Gemma 2 in one file: yours.

Each tutorial says which functions to write now: replace their `...` by code. Its last cell, `check_file("my_gemma.py",
upto=...)`, runs this file and says what is right, what differs first, and why. The file needs NumPy alone.

The letters of the shapes: T tokens, S keys, D hidden size, H query heads, K key-value heads, h head dimension, F
feed-forward size, V vocabulary; `...` is any number of batch axes. A weight is [out, in].

Every intermediate goes through a tape, on the line that computes it: `x = tape("resid_post", x + y)`. A tape is a
function of a name and a value that returns the value. `no_tape` does nothing else; the check's tape keeps the values.
"""

import json
import math
from pathlib import Path

import numpy as np


def no_tape(name, value):
    """Keep nothing: value [...] -> the value."""
    return value


def prefixed(tape, prefix):
    """The tape for a part of the model: the prefix comes before each of its names."""
    return lambda name, value: tape(prefix + name, value)


def part(arrays, prefix):
    """Those of the named arrays whose names begin like this, without the prefix: {name: array} -> {name: array}."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


# 2. A real checkpoint


def read_safetensors(path):
    """Read a safetensors file: path -> {name: float32 array}.

    It has 8 bytes with the length of a header (little-endian), the header in JSON, and the numbers. The header has a
    "dtype", "shape" and "data_offsets" for each name, counted from the end of the header, and perhaps "__metadata__".
    A number of dtype BF16 is the upper half of a float32 (F32).
    """
    ...


def load(folder):
    """Read a checkpoint: folder -> config, the object in config.json, and weights {name: array}.

    The weights are in model.safetensors. A large model has several files: "weight_map" in model.safetensors.index.json
    maps the name of each weight to its file.
    """
    ...


# 3. The embedding and the head


def embed(ids, weights, config, tape=no_tape):
    """The vectors of the tokens, times sqrt(D): ids [..., T] -> [..., T, D].

    Record: embedding.
    """
    ...


def unembed(x, weights, config, tape=no_tape):
    """The logits, from the same matrix, through `soft_cap` (tutorial 8): x [..., T, D] -> [..., T, V].

    Records: logits, logits_capped. The cap is "final_logit_softcapping".
    """
    ...


# 4. RMSNorm


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * (1 + weight) over the last axis: x [..., D], weight [D] -> [..., D]."""
    ...


# 5. Positions and RoPE


def split_heads(x, head_dim):
    """Cut the channels into heads of h: x [..., T, H*h] -> [..., H, T, h]."""
    ...


def rope(x, positions, base):
    """Rotate channels i and i + h/2 by position * base^(-2i/h): x [..., T, h], positions [T] -> [..., T, h].

    Compute the angles in float64, and the result in the dtype of x.
    """
    ...


# 6. Attention and GQA


def merge_heads(x):
    """Undo `split_heads`: x [..., H, T, h] -> [..., T, H*h]."""
    ...


def softmax(scores, mask):
    """The softmax over the keys that are True in the mask, 0 elsewhere: scores [..., T, S], mask [T, S] -> same."""
    ...


def attention(x, weights, config, layer, positions, cache=None, tape=no_tape):
    """Let each token gather from those that it sees: x [..., T, D], weights of the layer, positions [T] -> [..., T, D].

    With a cache (tutorial 11), cache.append(k, v) returns the keys, the values and the positions of the keys to use;
    without one, these are k, v and the positions. `attention_mask` is tutorial 7, `soft_cap` tutorial 8.

    Records: self_attn.q, self_attn.k, self_attn.v, then .q_rope, .k_rope, .scores [..., H, T, S], .scores_capped,
    .probs, .context [..., T, H*h], .o.
    """
    ...


# 7. Local and global layers


def layer_window(config, layer):
    """How many keys a query of this layer sees, its own included: "sliding_window", or None on a global layer.

    "layer_types" says which layers are local ("sliding_attention"). Files without it mean layers 0, 2, 4 and so on.
    """
    ...


def attention_mask(query_positions, key_positions, window):
    """True where a query sees a key, not later than itself and in its window: [T], [S] -> bool [T, S].

    A window of None has no end.
    """
    ...


# 8. Soft-capping


def soft_cap(x, cap):
    """cap * tanh(x / cap): x [...] -> [...]."""
    ...


# 9. GeGLU and the block


def gelu(x):
    """GELU in its tanh form: x [...] -> [...]."""
    ...


def feed_forward(x, weights, tape=no_tape):
    """GeGLU: x [..., T, D], weights of the layer -> [..., T, D].

    Records: mlp.gate, mlp.up, mlp.hidden [..., T, F], mlp.down [..., T, D].
    """
    ...


def block(x, weights, config, layer, positions, cache=None, tape=no_tape):
    """One layer, attention and feed-forward, each between two norms: x [..., T, D] -> [..., T, D].

    Records: input_layernorm, those of attention, post_attention_layernorm, resid_mid, pre_feedforward_layernorm, those
    of the feed-forward, post_feedforward_layernorm, resid_post. The weights of a norm are `f"{record}.weight"`.
    """
    ...


# 10. The whole model


def gemma(ids, weights, config, cache=None, tape=no_tape):
    """The whole model: ids [..., T] -> logits [..., T, V].

    The first position is 0; with a cache (tutorial 11), a list with one for each layer, it is cache[0].length. Layer n
    has the weights `part(weights, f"model.layers.{n}.")` and the tape `prefixed(tape, f"layers.{n}.")`.

    Records: those of the parts, and norm, whose weight is model.norm.weight.
    """
    ...


# 11. The cache, and generation


class LayerCache:
    """The keys and values of one layer, [K, slots, h] each: position p is in slot p % slots.

    Attributes: keys, values, and length, how many tokens have been appended.
    """

    def __init__(self, kv_heads, slots, head_dim):
        """Begin with no tokens, and room for `slots` of them."""
        ...

    def append(self, k, v):
        """Store T new tokens: k, v [K, T, h] -> keys, values [K, S, h] that they may see, their positions [S].

        These are the kept ones, then the new ones, in the order of their positions. The last of the new tokens may
        overwrite what the first of them still see.
        """
        ...


def new_cache(config, room):
    """A list of empty caches, one for each layer: `room` slots on a global layer, at most its window on a local one."""
    ...


def generate(ids, count, weights, config, chunk=64):
    """The most likely next token, `count` times: ids [T] -> list of `count` ids.

    Read the prompt in chunks of at most `chunk` tokens, then each new token.
    """
    ...


# 13. The backward pass, by hand


def log_softmax(logits):
    """The logarithm of the softmax over the last axis: logits [..., V] -> [..., V]."""
    ...


def cross_entropy(logits, targets):
    """The mean of -log P(target): logits [..., T, V], targets [..., T] -> nats, its gradient dlogits [..., T, V]."""
    ...


def linear_backward(dy, x, weight):
    """Of y = x @ weight.T: dy [..., T, n], x [..., T, m], weight [n, m] -> dx [..., T, m], dweight [n, m]."""
    ...


def rms_norm_backward(dy, x, weight, eps):
    """dy and x [..., D], weight [D] -> dx [..., D], dweight [D]."""
    ...


def soft_cap_backward(dy, y, cap):
    """From the capped y: dy and y [...] -> dx [...]."""
    ...


def softmax_backward(dprobs, probs):
    """dprobs and probs [..., T, S] -> dscores [..., T, S]."""
    ...


def sum_groups(x, kv_heads):
    """Undo the sharing of keys and values: add up the heads of each group, x [..., H, S, h] -> [..., K, S, h]."""
    ...


def attention_backward(dy, x, weights, config, record):
    """Of attention without a cache: dy and x [..., T, D] -> dx [..., T, D], {name: gradient of the weight}.

    record: {name: value} of all records of the layer.
    """
    ...


def gelu_slope(x):
    """The derivative of `gelu`: x [...] -> [...]."""
    ...


def feed_forward_backward(dy, x, weights, record):
    """dy and x [..., T, D], record of the layer -> dx [..., T, D], {name: gradient of the weight}."""
    ...


def block_backward(dy, x, weights, config, record):
    """dy and x [..., T, D], weights and record of the layer -> dx [..., T, D], {name: gradient of the weight}."""
    ...


def gemma_backward(dlogits, ids, weights, config, record):
    """Of `gemma` without a cache: dlogits [..., T, V], ids [..., T], record -> {name: gradient of the weight}."""
    ...


# 14. Training


def clip(gradients, max_norm):
    """Scale all gradients by one factor, in place, so that together they are at most this long."""
    ...


def adamw(weights, gradients, state, learning_rate, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1):
    """Update the weights in place; weight decay is for matrices, not for the vectors of the norms.

    state: {"step": 0, "m": {}, "v": {}} before the first step. It keeps the number of steps and, by the names of the
    weights, the running means of the gradient and of its square, which begin with zeros.
    """
    ...


def train_step(ids, loss, weights, config, state, learning_rate, max_norm=1.0):
    """Forward, loss, backward, clip, AdamW, in place: ids [..., T] -> the loss.

    loss: a function, logits [..., T, V] -> loss, dlogits. For next-token prediction, it is `cross_entropy` with the ids
    shifted by one as targets.
    """
    ...


# 15. Distillation


def distillation_loss(logits, teacher_logits):
    """The mean over positions of -sum P_T log P_S, and its gradient: both [..., T, V] -> nats, dlogits [..., T, V]."""
    ...
