"""Wrong sums in the residual stream, and layers in another order."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from gemma_np.model.block import block
from gemma_np.oracle.alternatives.alternative import Alternative, alternatives, near, orders_of_layers
from gemma_np.oracle.alternatives.norms import NORMS_OF_LLAMA
from gemma_np.oracle.operation import Operation
from gemma_np.scope import Scope

SIDE_BY_SIDE = "side by side"
"""Attention and the feed-forward read the same residual stream."""

SUMS = ("layers.*.resid_mid", "layers.*.resid_post")


def terms(op: Operation) -> tuple[np.ndarray, np.ndarray]:
    """Return the residual stream and the output that is added to it: [N, D] each."""
    if op.part == "resid_mid":
        return op.stream, op["post_attention_layernorm" if op.config.has_post_norms else "self_attn.o"]
    return op["resid_mid"], op["post_feedforward_layernorm" if op.config.has_post_norms else "mlp.down"]


@alternatives(*SUMS)
def other_sums(operation: Operation) -> Iterator[Alternative]:
    """Yield other factors of the two terms, and other terms."""
    what = "attention" if operation.part == "resid_mid" else "the feed-forward"
    known = "postnorm-misplaced" if operation.part == "resid_mid" and operation.config.has_post_norms else ""
    yield Alternative(f"it is the output of {what} alone, without the residual stream", partial(_sum, a=0, b=1), known)
    is_first = operation.part == "resid_mid"
    yield Alternative(
        f"the output of {what} is not added", partial(_sum, a=1, b=0), together=(SIDE_BY_SIDE,) if is_first else ()
    )
    for a, b in ((1, 2), (2, 1), (1, -1), (0.5, 0.5), (0.5**0.5, 0.5**0.5), (0.5**0.5, 1), (1, 0.5)):
        yield Alternative(
            f"it is {a:.4g} times the residual stream plus {b:.4g} times the output", partial(_sum, a=a, b=b)
        )
    if operation.found is not None:
        a, b = _fitted(operation)
        if not (near(a, 1) and near(b, 1)):
            yield Alternative(
                f"it is {a:.6g} times the residual stream plus {b:.6g} times the output of {what}",
                partial(_sum, a=a, b=b),
            )
    others = ["input_layernorm"] if operation.part == "resid_mid" else ["pre_feedforward_layernorm", "self_attn.o"]
    for part in others:
        yield Alternative(f"the residual stream is {part}", partial(_onto, part=part))
    if not is_first:
        attended = "post_attention_layernorm" if operation.config.has_post_norms else "self_attn.o"
        says = "the output of attention is added here, so that the feed-forward does not see it"
        yield Alternative(says, lambda op: sum(terms(op), op[attended]), together=(SIDE_BY_SIDE,))
        yield Alternative(
            "the feed-forward is added to the input of the layer, without attention",
            lambda op: op.stream + terms(op)[1],
        )
    if operation.config.has_post_norms:
        raw = "self_attn.o" if operation.part == "resid_mid" else "mlp.down"
        yield Alternative(
            f"{raw} is added before it is normalized",
            lambda op: terms(op)[0] + op[raw],
            "postnorm-missing",
            together=(NORMS_OF_LLAMA,),
        )


def _sum(op: Operation, a: float, b: float) -> np.ndarray:
    stream, output = terms(op)
    return a * stream + b * output


def _onto(op: Operation, part: str) -> np.ndarray:
    return op[part] + terms(op)[1]


def _fitted(op: Operation) -> tuple[float, float]:
    assert op.found is not None
    columns = np.stack([term.ravel() for term in terms(op)], axis=-1)
    a, b = np.linalg.lstsq(columns, np.asarray(op.found, np.float64).ravel())[0]
    return (1.0 if near(a, 1) else float(a)), (1.0 if near(b, 1) else float(b))


@alternatives("layers.*.resid_post")
def other_layers(operation: Operation) -> Iterator[Alternative]:
    """Yield the layer left out, run twice, and run with the weights of another one."""
    assert operation.layer is not None
    yield Alternative("the layer is left out", lambda op: op.stream)
    yield Alternative("the layer runs twice", lambda op: _run(op, _run(op, op.stream)))
    kinds = operation.config.layer_types
    for layer in range(operation.config.num_hidden_layers):
        if layer != operation.layer:
            weights = orders_of_layers(operation, layer)
            layers = tuple(f"{order}, with their windows" for order in weights)
            says, compute = f"the layer has all weights of layer {layer}", partial(_with_weights_of, layer=layer)
            if kinds[layer] == kinds[operation.layer]:
                yield Alternative(says, compute, together=weights + layers)
            else:
                yield Alternative(says, compute, together=weights)
                yield Alternative(f"it is layer {layer} that runs", partial(_other, layer=layer), together=layers)


def _other(op: Operation, layer: int) -> np.ndarray:
    return _run(op, op.stream, layer, layer)


def _with_weights_of(op: Operation, layer: int) -> np.ndarray:
    return _run(op, op.stream, layer)


def _run(op: Operation, x: np.ndarray, weights: int | None = None, place: int | None = None) -> np.ndarray:
    """Run a layer: by default the operation's own, with the weights of another one, or as if in another place."""
    assert op.layer is not None
    number = op.layer if weights is None else weights
    scope = Scope(op.reference.model.weights) / "model" / f"layers.{number}"
    return block(x, scope, op.config, op.layer if place is None else place)
