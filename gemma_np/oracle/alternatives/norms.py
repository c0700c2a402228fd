"""Wrong norms."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import numpy as np

from gemma_np.model.rms_norm import rms_norm
from gemma_np.model.rope import rope
from gemma_np.oracle.alternatives.alternative import (
    HALVES,
    Alternative,
    Family,
    alternatives,
    orders_of_layers,
    rounded,
)
from gemma_np.oracle.alternatives.rope import ROTATED_FIRST, angles
from gemma_np.oracle.operation import Operation

NORMS = (
    "layers.*.input_layernorm",
    "layers.*.self_attn.q_norm",
    "layers.*.self_attn.k_norm",
    "layers.*.post_attention_layernorm",
    "layers.*.pre_feedforward_layernorm",
    "layers.*.post_feedforward_layernorm",
    "norm",
)

NORMS_OF_LLAMA = "norms of Llama"
"""The outputs have no norm, and post_attention_layernorm is that of the feed-forward's input."""

DIVISORS: dict[str, Callable[[np.ndarray, float], np.ndarray | float]] = {
    "sqrt(mean(x^2) + eps)": lambda x, eps: np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps),
    "sqrt(mean(x^2)) + eps": lambda x, eps: np.sqrt(np.mean(x**2, axis=-1, keepdims=True)) + eps,
    "the length of x": lambda x, eps: np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + eps),
    "mean(x^2) + eps": lambda x, eps: np.mean(x**2, axis=-1, keepdims=True) + eps,
    "mean(|x|)": lambda x, eps: np.mean(np.abs(x), axis=-1, keepdims=True) + eps,
    "the rms over all tokens": lambda x, eps: np.sqrt(np.mean(x**2, axis=-2, keepdims=True) + eps),
    "one rms for all numbers": lambda x, eps: np.sqrt(np.mean(x**2) + eps),
    "one rms for all heads": lambda x, eps: np.sqrt(np.mean(x**2, axis=(0, -1), keepdims=True) + eps),
    "nothing": lambda x, eps: 1.0,
}


def _factors(operation: Operation) -> dict[str, float | tuple[str, float]]:
    """Return what the normalized vector may be multiplied by: a number, or a weight and what is added to it."""
    own = operation.norm_weight_name
    others = {
        f"1 + the weight of {name}": (name, 1.0)
        for name, weight in operation.norm_weights().items()
        if name != own and weight.shape == operation.weight(own).shape
    }
    return {"1 + w": (own, 1.0), "w": (own, 0.0), "2 + w": (own, 2.0), "1": 1.0, **others}


@alternatives(*(kind for kind in NORMS if kind != "norm"))
def weights_of_other_layers(operation: Operation) -> Iterator[Alternative]:
    """Yield the norm with the same weight of another layer."""
    for layer in range(operation.config.num_hidden_layers):
        if layer != operation.layer:
            says = f"the norm has the weight of layers.{layer}"
            together = orders_of_layers(operation, layer)
            yield Alternative(says, partial(_with_weight_of, layer=layer), together=together)


def _with_weight_of(op: Operation, layer: int) -> np.ndarray:
    return rms_norm(op.input, op.weight(op.norm_weight_name, layer), op.config.rms_norm_eps)


@alternatives("layers.*.self_attn.q_norm", "layers.*.self_attn.k_norm")
def after_the_rotation(operation: Operation) -> Iterator[Alternative]:
    """Yield the norm of rotated queries or keys."""
    yield Alternative("it is rotated before it is normalized", _rotated_first, together=(ROTATED_FIRST,))


def _rotated_first(op: Operation) -> np.ndarray:
    turn = angles(op)
    return _norm(op, rope(op.input, np.cos(turn), np.sin(turn)))


def _norm(op: Operation, x: np.ndarray) -> np.ndarray:
    """Apply the right norm to another input."""
    return rms_norm(x, op.weight(op.norm_weight_name), op.config.rms_norm_eps)


def _times(op: Operation, x: np.ndarray, factor: float | tuple[str, float]) -> np.ndarray:
    """Multiply by one of `_factors`."""
    return x * factor if isinstance(factor, float) else x * (op.weight(factor[0]) + factor[1])


@alternatives(*NORMS)
def divisors_and_factors(operation: Operation) -> Iterator[Alternative]:
    """Yield every combination of a mean, a divisor and a factor."""
    right = next(iter(DIVISORS))
    for centre, divisor, (factor, multiply) in product((False, True), DIVISORS, _factors(operation).items()):
        if divisor == "one rms for all heads" and operation.input.ndim < 3:
            continue
        changes = [f"multiplies by {factor} instead of 1 + w"] if factor != "1 + w" else []
        if divisor != right:
            changes.insert(0, f"divides by {divisor} instead of {right}")
        if centre:
            changes.insert(0, "subtracts the mean")
        if not changes:
            continue
        compute = partial(_divided, centre=centre, divisor=divisor, factor=multiply)
        known, rare = _known(operation, centre, divisor, factor), len(changes) > 1
        ahead = divisor in ("the rms over all tokens", "one rms for all numbers")
        together = _exchanged(operation, factor) if len(changes) == 1 else ()
        yield Alternative("the norm " + " and ".join(changes), compute, known, rare and not known, ahead, together)


def _divided(op: Operation, centre: bool, divisor: str, factor: float | tuple[str, float]) -> np.ndarray:
    x = op.input - op.input.mean(axis=-1, keepdims=True) if centre else op.input
    return _times(op, x / DIVISORS[divisor](x, op.config.rms_norm_eps), factor)


def _known(operation: Operation, centre: bool, divisor: str, factor: str) -> str:
    """Return the entry of the catalogue."""
    if centre:
        return ""
    if divisor == "nothing" and factor == "1":
        post = operation.part.startswith("post_")
        return "qk-norm-missing" if operation.part.startswith("self_attn") else "postnorm-missing" if post else ""
    if divisor != next(iter(DIVISORS)):
        return ""
    if _is_crossed(operation, factor):
        return "norm-names-crossed"
    return {"w": "norm-no-plus1", "2 + w": "norm-plus1-twice"}.get(factor, "")


def _exchanged(operation: Operation, factor: str) -> tuple[str, ...]:
    """Return the mistakes of which another norm's weight may be a part: two weights exchanged, or Llama's norms."""
    own, other = operation.norm_weight_name, factor.removeprefix("1 + the weight of ")
    if other not in operation.norm_weights():
        return ()
    as_in_llama = (own, other) == ("pre_feedforward_layernorm", "post_attention_layernorm")
    return (" and ".join(sorted((own, other))), *[NORMS_OF_LLAMA] * as_in_llama)


def _is_crossed(operation: Operation, factor: str) -> bool:
    """Return whether it has the other's weight of the two norms whose names are often confused."""
    crossed = {"post_attention_layernorm", "pre_feedforward_layernorm"}
    return operation.part in crossed and factor.removeprefix("1 + the weight of ") in crossed


@alternatives(*NORMS)
def eps(operation: Operation) -> Iterator[Family]:
    """Yield the norm with another eps."""
    yield Family(
        lambda op, value: f"the norm's eps is {value:.3g}, expected rms_norm_eps={op.config.rms_norm_eps:g}",
        lambda op, value: rms_norm(op.input, op.weight(op.norm_weight_name), value),
        np.concatenate([[0], np.logspace(-12, 0, 25)]).tolist(),
        likely=lambda op: [0.0, 1e-8, 1e-5, 1e-6, 1e-3],
        together=("eps",),
    )


@alternatives(*NORMS)
def cast_early(operation: Operation) -> Iterator[Alternative]:
    """Yield the norm that rounds before it multiplies."""
    for (name, dtype), (what, factor) in product(HALVES.items(), _factors(operation).items()):
        known = ""
        if name == "bfloat16" and _is_crossed(operation, what):
            known = "norm-cast-early norm-names-crossed"
        elif name == "bfloat16" and what == "1 + w":
            known = "norm-cast-early"
        says = f"the normalized vector is rounded to {name} before it is multiplied by {what}"
        yield Alternative(says, partial(_cast_early, dtype=dtype, factor=factor), known, what != "1 + w" and not known)


def _cast_early(op: Operation, dtype: type, factor: float | tuple[str, float]) -> np.ndarray:
    normalized = rms_norm(op.input, np.zeros(op.input.shape[-1]), op.config.rms_norm_eps)
    return _times(op, rounded(normalized, dtype), factor)


@alternatives(*NORMS)
def mean_square_in_16_bits(operation: Operation) -> Iterator[Alternative]:
    """Yield the norm whose mean square is computed in 16 bits."""
    for name, dtype in HALVES.items():
        yield Alternative(f"the mean square is computed in {name}", partial(_coarse_mean_square, dtype=dtype))


def _coarse_mean_square(op: Operation, dtype: type) -> np.ndarray:
    square = rounded(np.mean(rounded(rounded(op.input, dtype) ** 2, dtype), axis=-1, keepdims=True), dtype)
    return op.input / np.sqrt(square + op.config.rms_norm_eps) * (1 + op.weight(op.norm_weight_name))


@alternatives("norm")
def of_an_earlier_layer(operation: Operation) -> Iterator[Alternative]:
    """Yield the final norm of the residual stream before the last layer."""
    last = operation.config.num_hidden_layers - 1
    before = f"layers.{last - 1}.resid_post" if last else "embedding"
    yield Alternative("it reads the residual stream before the last layer", lambda op: _norm(op, op.records[before]))


@alternatives("layers.*.post_attention_layernorm", "layers.*.post_feedforward_layernorm")
def of_the_sum(operation: Operation) -> Iterator[Alternative]:
    """Yield the norm of the sum with the residual stream."""
    known = "postnorm-misplaced" if operation.part == "post_attention_layernorm" else ""
    yield Alternative("the sum with the residual stream is normalized, not the output alone", _norm_of_sum, known)


def _norm_of_sum(op: Operation) -> np.ndarray:
    return _norm(op, op.input + (op.stream if op.part == "post_attention_layernorm" else op["resid_mid"]))
