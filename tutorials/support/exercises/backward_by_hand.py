"""The exercises on the backward pass."""

from typing import NamedTuple

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.attention import attention_backward, grouped_matmul_backward
from gemma_np.model.attention_mask import attention_mask, masked_softmax, masked_softmax_backward
from gemma_np.model.block import block, block_backward
from gemma_np.model.feed_forward import feed_forward_backward
from gemma_np.model.rms_norm import rms_norm_backward
from gemma_np.model.soft_cap import soft_cap_backward
from gemma_np.scope import Record, Scope
from support.exercise import Answer, Cases, Exercise, known
from support.exercises.geglu_and_the_block import TINY


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


class Pieces(NamedTuple):
    """The backward functions of a block's pieces. Each returns dx; the gradients of the weights are put aside."""

    weights: Scope
    config: GemmaConfig
    layer: int
    record: Scope

    def norm(self, dy: np.ndarray, x: np.ndarray, name: str) -> np.ndarray:
        """Undo the norm of this name, whose input was x: dy and x [..., T, D] -> dx [..., T, D]."""
        return rms_norm_backward(dy, x, self.weights[f"{name}.weight"], self.config.rms_norm_eps)[0]

    def attention(self, dy: np.ndarray) -> np.ndarray:
        """Undo attention: dy [..., T, D] -> dx [..., T, D]."""
        x, part = self.record["input_layernorm"], "self_attn"
        return attention_backward(
            dy, x, self.weights / part, self.config, self.layer, record=self.record / part, gradients=Scope({})
        )

    def feed_forward(self, dy: np.ndarray) -> np.ndarray:
        """Undo the feed-forward: dy [..., T, D] -> dx [..., T, D]."""
        x, part = self.record["pre_feedforward_layernorm"], "mlp"
        return feed_forward_backward(dy, x, self.weights / part, self.record / part, Scope({}))


def _block_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    shapes = {name.removeprefix("model.layers.0."): shape for name, shape in TINY.weight_shapes() if "layers.0" in name}
    weights = Scope({name: draw(shape) for name, shape in shapes.items()})

    def case(*batch: int, length: int, layer: int) -> tuple[np.ndarray, np.ndarray, Record, Pieces]:
        x, record = draw((*batch, length, 6)), Record()
        block(x, weights, TINY, layer, tape=record)
        return draw(x.shape), x, record, Pieces(weights, TINY, layer, Scope(record))

    return {
        "one token": case(length=1, layer=0),
        "several tokens": case(length=5, layer=0),
        "a global layer": case(length=5, layer=1),
        "a batch of texts": case(2, length=5, layer=0),
    }


def _block_gradient(dy: np.ndarray, x: np.ndarray, record: Record, back: Pieces) -> np.ndarray:
    return block_backward(dy, x, back.weights, back.config, back.layer, record=Scope(record), gradients=Scope({}))


def _block_with(
    *,
    post_attention: bool = True,
    post_feed_forward: bool = True,
    pre: bool = True,
    past_attention: float = 1.0,
    past_feed_forward: float = 1.0,
    inputs: tuple[str, str] = ("self_attn.o", "mlp.down"),
    middle: str = "resid_mid",
) -> Answer:
    """Return a gradient of the block with one of its steps changed: norms left out, a residual that passes none of the
    gradient or another share of it, norms that are undone at other records than their inputs."""

    def gradient(dy: np.ndarray, x: np.ndarray, record: Record, back: Pieces) -> np.ndarray:
        dz = back.norm(dy, record[inputs[1]], "post_feedforward_layernorm") if post_feed_forward else dy
        dz = back.feed_forward(dz)
        dz = back.norm(dz, record[middle], "pre_feedforward_layernorm") if pre else dz
        dmid = past_feed_forward * dy + dz
        dz = back.norm(dmid, record[inputs[0]], "post_attention_layernorm") if post_attention else dmid
        dz = back.attention(dz)
        return past_attention * dmid + (back.norm(dz, x, "input_layernorm") if pre else dz)

    return gradient


def _parallel(dy: np.ndarray, x: np.ndarray, record: Record, back: Pieces) -> np.ndarray:
    """Pass dy itself to the half of attention."""
    dz = back.feed_forward(back.norm(dy, record["mlp.down"], "post_feedforward_layernorm"))
    dmid = dy + back.norm(dz, record["resid_mid"], "pre_feedforward_layernorm")
    dz = back.attention(back.norm(dy, record["self_attn.o"], "post_attention_layernorm"))
    return dmid + back.norm(dz, x, "input_layernorm")


def _attention_first(dy: np.ndarray, x: np.ndarray, record: Record, back: Pieces) -> np.ndarray:
    dz = back.attention(back.norm(dy, record["self_attn.o"], "post_attention_layernorm"))
    dmid = dy + back.norm(dz, x, "input_layernorm")
    dz = back.feed_forward(back.norm(dmid, record["mlp.down"], "post_feedforward_layernorm"))
    return dmid + back.norm(dz, record["resid_mid"], "pre_feedforward_layernorm")


def _forward_order(dy: np.ndarray, x: np.ndarray, record: Record, back: Pieces) -> np.ndarray:
    """Undo the norm before each part first."""
    dz = back.feed_forward(back.norm(dy, record["resid_mid"], "pre_feedforward_layernorm"))
    dmid = dy + back.norm(dz, record["mlp.down"], "post_feedforward_layernorm")
    dz = back.attention(back.norm(dmid, x, "input_layernorm"))
    return dmid + back.norm(dz, record["self_attn.o"], "post_attention_layernorm")


BLOCK = Exercise(
    reference=_block_gradient,
    cases=_block_cases,
    mistakes={
        "nothing flows past the two halves; x + y passes dy to both terms, so the stream gets it, too": _block_with(
            past_attention=0, past_feed_forward=0
        ),
        "nothing flows past the feed-forward; add dy to what comes out of its half": _block_with(past_feed_forward=0),
        "nothing flows past attention; add the gradient of resid_mid to what comes out of its half": _block_with(
            past_attention=0
        ),
        "the half of attention gets dy; it gets the gradient of resid_mid, which is dy and that through the "
        "feed-forward": _parallel,
        "attention is undone first; the last half of the forward pass, the feed-forward, is undone first": (
            _attention_first
        ),
        "within a half, the norm before it is undone first; the last line of the forward pass is undone first": (
            _forward_order
        ),
        "the post-norms are not undone": _block_with(post_attention=False, post_feed_forward=False),
        "post_attention_layernorm is not undone": _block_with(post_attention=False),
        "post_feedforward_layernorm is not undone": _block_with(post_feed_forward=False),
        "the norms before attention and feed-forward are not undone": _block_with(pre=False),
        "the post-norms are undone at their outputs; back.norm needs the inputs, self_attn.o and mlp.down": _block_with(
            inputs=("post_attention_layernorm", "post_feedforward_layernorm")
        ),
        "the norm before the feed-forward is undone at its output; its input is resid_mid": _block_with(
            middle="pre_feedforward_layernorm"
        ),
        "dy is halved, as if x + y shared it out; both terms get all of it": _block_with(
            past_attention=0.5, past_feed_forward=0.5
        ),
    },
)
