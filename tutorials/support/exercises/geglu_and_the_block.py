"""The exercises on GELU, the gated feed-forward layer, and the block."""

import math
from collections.abc import Callable

import numpy as np

from gemma_np.config import GemmaConfig, gemma2_config
from gemma_np.model.attention import attention
from gemma_np.model.block import block
from gemma_np.model.feed_forward import feed_forward, gelu
from gemma_np.model.rms_norm import rms_norm
from gemma_np.oracle.mistakes.block import norm_names_crossed
from gemma_np.oracle.mistakes.feed_forward import gelu_exact, silu
from gemma_np.scope import Scope
from gemma_np.weights.linear import linear
from support.exercise import Answer, Cases, Exercise, known


def _gelu_cases(generator: np.random.Generator) -> Cases:
    return {
        "zero": (np.zeros(1),),
        "a number above zero": (np.array([1.5]),),
        "numbers on both sides of zero": (3 * generator.standard_normal((4, 6)),),
        "numbers far from zero": (np.array([-20.0, 20.0]),),
        "float32": (generator.standard_normal(6).astype(np.float32),),
    }


def _tanh_form(x: np.ndarray, inner: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(inner))


GELU = Exercise(
    reference=gelu,
    cases=_gelu_cases,
    mistakes={
        known("gelu-exact"): gelu_exact.faulty,
        known("silu"): silu.faulty,
        "x is not halved": lambda x: 2 * gelu(x),
        "it is the steep sigmoid x * sigmoid(1.702 x), another approximation; use tanh": lambda x: (
            x / (1 + np.exp(-1.702 * x))
        ),
        "1 is not added to the tanh": lambda x: x / 2 * np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)),
        "2/pi is used instead of its square root": lambda x: _tanh_form(x, 2 / math.pi * (x + 0.044715 * x * x * x)),
        "the square root of 2/pi is missing": lambda x: _tanh_form(x, x + 0.044715 * x * x * x),
        "0.044715 multiplies x squared; it belongs to the cube": lambda x: _tanh_form(
            x, math.sqrt(2 / math.pi) * (x + 0.044715 * x * x)
        ),
        "it cuts off at zero, as ReLU does": lambda x: np.maximum(x, 0),
    },
)


def _feed_forward_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    D, F = 4, 6
    weights = (draw((F, D)), draw((F, D)), draw((D, F)))
    return {
        "one token": (draw((1, D)), *weights),
        "several tokens": (draw((3, D)), *weights),
        "a batch of texts": (draw((2, 3, D)), *weights),
        "as many hidden channels as channels": (draw((3, D)), draw((D, D)), draw((D, D)), draw((D, D))),
    }


def _feed_forward(x: np.ndarray, gate_weight: np.ndarray, up_weight: np.ndarray, down_weight: np.ndarray) -> np.ndarray:
    names = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
    return feed_forward(x, Scope(dict(zip(names, (gate_weight, up_weight, down_weight), strict=True))))


FEED_FORWARD = Exercise(
    reference=_feed_forward,
    cases=_feed_forward_cases,
    mistakes={
        known("gate-up-swapped"): lambda x, gate, up, down: _feed_forward(x, up, gate, down),
        known("silu"): lambda x, gate, up, down: linear(silu.faulty(linear(x, gate)) * linear(x, up), down),
        known("gelu-exact"): lambda x, gate, up, down: linear(gelu_exact.faulty(linear(x, gate)) * linear(x, up), down),
        "GELU is applied to both products; up stays as it is": lambda x, gate, up, down: linear(
            gelu(linear(x, gate)) * gelu(linear(x, up)), down
        ),
        "gate and up are added; multiply them": lambda x, gate, up, down: linear(
            gelu(linear(x, gate)) + linear(x, up), down
        ),
        "GELU is applied to the product; apply it to gate, then multiply": lambda x, gate, up, down: linear(
            gelu(linear(x, gate) * linear(x, up)), down
        ),
        "x is added to the result; the block adds it, after the norm": lambda x, gate, up, down: (
            x + _feed_forward(x, gate, up, down)
        ),
        "up is left out, as in a layer without a gate": lambda x, gate, up, down: linear(gelu(linear(x, gate)), down),
    },
)

TINY = gemma2_config(
    vocab_size=8,
    hidden_size=6,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    intermediate_size=5,
    max_position_embeddings=16,
    query_pre_attn_scalar=4,
    sliding_window=3,
)
"""The config of the blocks in the exercises."""


def _block_cases(generator: np.random.Generator) -> Cases:
    prefix = "model.layers.0."
    weights = Scope(
        {
            name.removeprefix(prefix): generator.standard_normal(shape)
            for name, shape in TINY.weight_shapes()
            if name.startswith(prefix)
        }
    )
    draw = generator.standard_normal
    return {
        "one token": (draw((1, 6)), weights, TINY, 0),
        "several tokens": (draw((5, 6)), weights, TINY, 0),
        "a global layer": (draw((5, 6)), weights, TINY, 1),
        "a batch of texts": (draw((2, 5, 6)), weights, TINY, 0),
    }


Part = Callable[[np.ndarray], np.ndarray]


def _half(x: np.ndarray, part: Part, pre: Part, post: Part, fault: str) -> np.ndarray:
    """Add attention or the feed-forward to the stream, with a fault or none."""
    y = part(x if fault in ("no pre-norm", "the original Transformer") else pre(x))
    match fault:
        case "no residual":
            return post(y)
        case "no post-norm":
            return x + y
        case "norm of the sum" | "the original Transformer":
            return post(x + y)
        case "normalized stream":
            return pre(x) + post(y)
    return x + post(y)


def _parts(weights: Scope, config: GemmaConfig, layer: int) -> list[tuple[Part, Part, Part]]:
    """Return attention and feed-forward, each with the norms before and after it."""

    def norm(name: str) -> Part:
        return lambda y: rms_norm(y, weights[f"{name}.weight"], config.rms_norm_eps)

    return [
        (
            lambda y: attention(y, weights / "self_attn", config, layer),
            norm("input_layernorm"),
            norm("post_attention_layernorm"),
        ),
        (
            lambda y: feed_forward(y, weights / "mlp"),
            norm("pre_feedforward_layernorm"),
            norm("post_feedforward_layernorm"),
        ),
    ]


def _block(*faults: str) -> Answer:
    """Return a block with a fault, or none (""), in each of its halves."""

    def faulty(x: np.ndarray, weights: Scope, config: GemmaConfig, layer: int) -> np.ndarray:
        for parts, fault in zip(_parts(weights, config, layer), faults, strict=True):
            x = _half(x, *parts, fault)
        return x

    return faulty


def _parallel(x: np.ndarray, weights: Scope, config: GemmaConfig, layer: int) -> np.ndarray:
    first, second = _parts(weights, config, layer)
    return _half(x, *first, "") + _half(x, *second, "") - x


BLOCK = Exercise(
    reference=block,
    cases=_block_cases,
    mistakes={
        known("postnorm-missing"): _block("no post-norm", "no post-norm"),
        "the output of attention is not normalized before it is added": _block("no post-norm", ""),
        "the output of the feed-forward is not normalized before it is added": _block("", "no post-norm"),
        known("postnorm-misplaced"): _block("norm of the sum", ""),
        "the last norm is applied to the sum; normalize the output of the feed-forward, then add it": _block(
            "", "norm of the sum"
        ),
        "both halves normalize the sum, as the original Transformer does; normalize the output, then add it": (
            _block("norm of the sum", "norm of the sum")
        ),
        "both halves normalize the sum and not their input, as the original Transformer does; a half is "
        "x + norm(part(norm(x)))": _block("the original Transformer", "the original Transformer"),
        known("norm-names-crossed"): lambda x, weights, config, layer: norm_names_crossed.faulty(
            x, weights, config, layer, original=block
        ),
        "the feed-forward reads the stream from before attention; add the output of attention first": _parallel,
        "the stream is replaced by its norm in both halves; add to the stream itself": _block(
            "normalized stream", "normalized stream"
        ),
        "the stream is replaced by its norm before attention; add to the stream itself": _block(
            "normalized stream", ""
        ),
        "the stream is replaced by its norm before the feed-forward; add to the stream itself": _block(
            "", "normalized stream"
        ),
        "the output of each half replaces the stream; add it to the stream": _block("no residual", "no residual"),
        "the output of attention replaces the stream; add it to the stream": _block("no residual", ""),
        "the output of the feed-forward replaces the stream; add it to the stream": _block("", "no residual"),
        "attention and feed-forward read the stream as it is; normalize their inputs": _block(
            "no pre-norm", "no pre-norm"
        ),
        "attention reads the stream as it is; normalize its input": _block("no pre-norm", ""),
        "the feed-forward reads the stream as it is; normalize its input": _block("", "no pre-norm"),
    },
)
