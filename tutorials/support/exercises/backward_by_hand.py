"""The exercises on the backward pass."""

import numpy as np

from gemma_np.model.attention import grouped_matmul_backward
from gemma_np.model.attention_mask import attention_mask, masked_softmax, masked_softmax_backward
from gemma_np.model.soft_cap import soft_cap_backward
from support.exercise import Cases, Exercise, known


def _soft_cap_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal

    def output(cap: float, *shape: int) -> np.ndarray:
        return cap * np.tanh(draw(shape))

    return {
        "a cap of 1": (draw(6), output(1.0, 6), 1.0),
        "a cap of 50": (draw(6), output(50.0, 6), 50.0),
        "scores [H, T, S]": (draw((2, 3, 4)), output(5.0, 2, 3, 4), 5.0),
        "float32": (draw(6).astype(np.float32), output(30.0, 6).astype(np.float32), 30.0),
    }


def _tanh_twice(dy: np.ndarray, y: np.ndarray, cap: float) -> np.ndarray:
    return soft_cap_backward(dy, cap * np.tanh(y / cap), cap)


SOFT_CAP = Exercise(
    reference=soft_cap_backward,
    cases=_soft_cap_cases,
    mistakes={
        "y is squared without division by the cap; tanh(x / cap) is y / cap": lambda dy, y, cap: dy * (1 - y * y),
        "tanh is applied to y again; tanh(x / cap) is y / cap": _tanh_twice,
        "the result is divided by the cap; the cap in front and the one inside cancel": lambda dy, y, cap: (
            soft_cap_backward(dy, y, cap) / dy.dtype.type(cap)
        ),
        "dy is left out; multiply the slope by it": lambda dy, y, cap: soft_cap_backward(np.ones_like(dy), y, cap),
        "the slope is 1 - y / cap; the derivative of tanh is 1 - tanh squared": lambda dy, y, cap: dy * (1 - y / cap),
    },
)


def _softmax_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal

    def probs(*shape: int) -> np.ndarray:
        return masked_softmax(draw(shape), np.ones(shape[-2:], bool))

    causal = masked_softmax(draw((2, 4, 4)), attention_mask(range(4), range(4), None))
    return {
        "one query": (draw((1, 5)), probs(1, 5)),
        "several queries": (draw((3, 5)), probs(3, 5)),
        "heads": (draw((2, 3, 5)), probs(2, 3, 5)),
        "masked keys": (draw((2, 4, 4)), causal),
    }


SOFTMAX = Exercise(
    reference=masked_softmax_backward,
    cases=_softmax_cases,
    mistakes={
        "each probability is assumed to depend only on its own score; they share a denominator: subtract "
        "sum(dprobs * probs)": lambda dprobs, probs: dprobs * probs * (1 - probs),
        "nothing is subtracted: subtract sum(dprobs * probs) from dprobs before it is multiplied by probs": (
            lambda dprobs, probs: dprobs * probs
        ),
        "the plain mean of dprobs is subtracted; weight each by its probability: sum(dprobs * probs)": (
            lambda dprobs, probs: probs * (dprobs - dprobs.mean(axis=-1, keepdims=True))
        ),
        "the mean over the keys is subtracted; it is the sum of dprobs * probs": lambda dprobs, probs: (
            probs * (dprobs - np.mean(dprobs * probs, axis=-1, keepdims=True))
        ),
        "the sum is that of dprobs; weight each by its probability": lambda dprobs, probs: (
            probs * (dprobs - dprobs.sum(axis=-1, keepdims=True))
        ),
        "one sum for all queries is subtracted; each query has its own (axis=-1, keepdims=True)": (
            lambda dprobs, probs: probs * (dprobs - np.sum(dprobs * probs))
        ),
        "the difference is not multiplied by probs": lambda dprobs, probs: (
            dprobs - np.sum(dprobs * probs, axis=-1, keepdims=True)
        ),
    },
)


def _shared_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "one query head, one key-value head": (draw((1, 3, 4)), draw((1, 3, 2)), 1),
        "a group of two query heads": (draw((2, 3, 4)), draw((2, 3, 2)), 1),
        "two key-value heads": (draw((4, 3, 4)), draw((4, 3, 2)), 2),
        "a group of four, two key-value heads": (draw((8, 3, 5)), draw((8, 3, 2)), 2),
    }


def _by_head(probs: np.ndarray, dcontext: np.ndarray) -> np.ndarray:
    """[H, T, S] and [H, T, h] -> [H, S, h]"""
    return probs.swapaxes(-1, -2) @ dcontext


def _in_groups(probs: np.ndarray, dcontext: np.ndarray, kv_heads: int) -> np.ndarray:
    """[H, T, S] and [H, T, h] -> [K, G, S, h]"""
    by_head = _by_head(probs, dcontext)
    return by_head.reshape(kv_heads, -1, *by_head.shape[1:])


def _as_tiled(probs: np.ndarray, dcontext: np.ndarray, kv_heads: int) -> np.ndarray:
    by_head = _by_head(probs, dcontext)
    total: np.ndarray = by_head.reshape(-1, kv_heads, *by_head.shape[1:]).sum(axis=0)
    return total


def _probs_of_all(probs: np.ndarray, dcontext: np.ndarray, kv_heads: int) -> np.ndarray:
    """Sum over the group on both sides before the product."""
    shape = (kv_heads, -1)
    left = probs.reshape(*shape, *probs.shape[1:]).sum(axis=1)
    right = dcontext.reshape(*shape, *dcontext.shape[1:]).sum(axis=1)
    return _by_head(left, right)


SHARED = Exercise(
    reference=grouped_matmul_backward,
    cases=_shared_cases,
    mistakes={
        "the query heads of a group are averaged; sum them": (
            lambda probs, dcontext, kv_heads: _in_groups(probs, dcontext, kv_heads).mean(axis=1)
        ),
        "only the first query head of each group is used; sum over all of them": (
            lambda probs, dcontext, kv_heads: _in_groups(probs, dcontext, kv_heads)[:, 0]
        ),
        known("gqa-tile"): _as_tiled,
        "probs and dcontext are summed over the group before they are multiplied; multiply head by head, then sum": (
            _probs_of_all
        ),
        "there is one gradient per query head; sum those of each group, which leaves K": (
            lambda probs, dcontext, kv_heads: _by_head(probs, dcontext)
        ),
    },
)
