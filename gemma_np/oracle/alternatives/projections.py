"""Wrong projections: another matrix, another order of its rows, another input, a coarser dtype."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from gemma_np.model.attention import split_heads
from gemma_np.oracle.alternatives.alternative import HALVES, Alternative, alternatives, orders_of_layers, rounded
from gemma_np.oracle.operation import Operation

PROJECTIONS = tuple(
    f"layers.*.{part}"
    for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
)
_ROTATED = ("self_attn.q", "self_attn.k")
_INPUTS = ("input_layernorm", "resid_mid", "pre_feedforward_layernorm", "self_attn.o", "post_attention_layernorm")


def _project(op: Operation, weight: np.ndarray, x: np.ndarray | None = None) -> np.ndarray:
    """Multiply the input by a weight, and split the result into heads if the record has them.

    weight [out, n], x [N, n] -> [N, out] or [heads, N, h]
    """
    y = (op.input if x is None else x) @ weight.T
    return split_heads(y, op.config.head_dim) if op.part in ("self_attn.q", "self_attn.k", "self_attn.v") else y


def _own(op: Operation) -> np.ndarray:
    return op.weight(f"{op.part}_proj")


@alternatives(*PROJECTIONS)
def other_matrices(operation: Operation) -> Iterator[Alternative]:
    """Yield the product with every other matrix of the same shape, and of the transposed one."""
    own = _own(operation)
    for layer in range(operation.config.num_hidden_layers):
        for kind in PROJECTIONS:
            name = f"{kind.removeprefix('layers.*.')}_proj"
            other = operation.weight(name, layer)
            if (name, layer) == (f"{operation.part}_proj", operation.layer):
                continue
            if other.shape == own.shape:
                yield Alternative(
                    f"it multiplies by layers.{layer}.{name}.weight",
                    partial(_with_weight, name=name, layer=layer),
                    together=_parts_of(operation, name, layer),
                )
            elif other.shape == own.shape[::-1]:
                yield Alternative(
                    f"it multiplies by the transpose of layers.{layer}.{name}.weight",
                    partial(_with_weight, name=name, layer=layer, transposed=True),
                )


def _parts_of(operation: Operation, name: str, layer: int) -> tuple[str, ...]:
    """Return the mistakes of which another weight may be a part: two weights exchanged, or the layers' order."""
    own = f"{operation.part}_proj"
    if layer == operation.layer:
        return (" and ".join(sorted((own, name))),)
    return orders_of_layers(operation, layer) if name == own else ()


def _with_weight(op: Operation, name: str, layer: int, transposed: bool = False) -> np.ndarray:
    weight = op.weight(name, layer)
    return _project(op, weight.T if transposed else weight)


@alternatives(*PROJECTIONS)
def other_orders(operation: Operation) -> Iterator[Alternative]:
    """Yield the product with the matrix transposed, reshaped, or with its rows or columns in another order."""
    out, n = _own(operation).shape
    h = operation.config.head_dim
    if out == n:
        yield Alternative("the matrix is transposed", lambda op: _project(op, _own(op).T))
    yield Alternative(
        "the matrix is read as if it were stored transposed",
        lambda op: _project(op, _own(op).reshape(_own(op).shape[::-1]).T),
    )
    for axis, size, what in ((0, out, "outputs"), (1, n, "inputs")):
        orders = {
            "its halves exchanged": _halves(size),
            "even ones before odd ones": _even_first(size),
            "backwards": np.arange(size)[::-1],
        }
        orders["odd and even ones interleaved from its halves"] = np.argsort(_even_first(size))
        if size % h == 0 and size > h and operation.part.startswith("self_attn"):
            heads = np.arange(size).reshape(-1, h)
            orders["the heads in reverse order"] = heads[::-1].ravel()
            orders["channel by channel, not head by head"] = heads.T.ravel()
            orders["head by head, where it should be channel by channel"] = np.argsort(heads.T.ravel())
            within = heads[:, _even_first(h)]
            orders["the even channels of each head before the odd ones"] = within.ravel()
            orders["the halves of each head interleaved"] = np.argsort(within.ravel())
            orders["the halves of each head exchanged"] = np.roll(heads, h // 2, axis=-1).ravel()
        for how, order in orders.items():
            if (order != np.arange(size)).any():
                says, compute = f"the {what} are in another order: {how}", partial(_in_order, order=order, axis=axis)
                yield Alternative(says, compute, together=(f"q and k: {how}",) if operation.part in _ROTATED else ())


def _halves(size: int) -> np.ndarray:
    return np.roll(np.arange(size), size // 2)


def _even_first(size: int) -> np.ndarray:
    return np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)])


def _in_order(op: Operation, order: np.ndarray, axis: int) -> np.ndarray:
    return _project(op, np.take(_own(op), order, axis=axis))


@alternatives("layers.*.mlp.gate", "layers.*.mlp.up")
def rows_by_turns(operation: Operation) -> Iterator[Alternative]:
    """Yield every other row of the matrices of gate and up, one below the other."""
    first = int(operation.part == "mlp.up")
    says = f"a joint matrix of gate and up is split by turns: it has every other row, from row {first}"
    yield Alternative(says, partial(_every_other_row, first=first), together=("gate and up by turns",))


def _every_other_row(op: Operation, first: int) -> np.ndarray:
    joint = np.concatenate([op.weight("mlp.gate_proj"), op.weight("mlp.up_proj")])
    return _project(op, joint[first::2])


@alternatives(*PROJECTIONS)
def other_inputs(operation: Operation) -> Iterator[Alternative]:
    """Yield the product with another record of the same width."""
    width = _own(operation).shape[1]
    if operation.stream.shape[-1] == width:
        yield Alternative("it reads the residual stream before the layer", lambda op: _project(op, _own(op), op.stream))
    for part in (*_INPUTS, "mlp.gate", "mlp.up"):
        is_other = operation.earlier(part) and operation[part] is not operation.input
        if is_other and operation[part].shape[-1] == width:
            yield Alternative(f"it reads {part}", partial(_from_part, part=part))


def _from_part(op: Operation, part: str) -> np.ndarray:
    return _project(op, _own(op), op[part])


@alternatives(*PROJECTIONS)
def other_dtypes(operation: Operation) -> Iterator[Alternative]:
    """Yield the product computed in 16 bits."""
    for name, dtype in HALVES.items():
        yield Alternative(f"it is computed in {name}", partial(_computed_in, dtype=dtype))


def _computed_in(op: Operation, dtype: type) -> np.ndarray:
    return rounded(_project(op, rounded(_own(op), dtype), rounded(op.input, dtype)), dtype)


@alternatives(*PROJECTIONS)
def parts_of_inputs(operation: Operation) -> Iterator[Alternative]:
    """Yield the product with half of the inputs."""
    half = _own(operation).shape[1] // 2
    for what, part in (("first", slice(0, half)), ("second", slice(half, None))):
        yield Alternative(f"it reads only the {what} half of its inputs", partial(_from_half, part=part))


def _from_half(op: Operation, part: slice) -> np.ndarray:
    x = np.zeros_like(op.input)
    x[..., part] = op.input[..., part]
    return _project(op, _own(op), x)


@alternatives("layers.*.self_attn.q", "layers.*.self_attn.k", "layers.*.self_attn.v")
def other_heads(operation: Operation) -> Iterator[Alternative]:
    """Yield the heads in other orders."""
    H, K = operation.config.num_attention_heads, operation.config.num_key_value_heads
    if operation.part == "self_attn.q" and 1 < K < H:
        by_place = np.arange(H).reshape(K, -1).T.ravel()
        yield Alternative("the heads are ordered by their place in the group", lambda op: op.right[by_place])
        inverse = np.argsort(by_place)
        yield Alternative(
            "the heads, in the order of their place in the group, are read by group", lambda op: op.right[inverse]
        )
    yield Alternative("it is split into heads without a transpose", _split_without_transpose, looks_ahead=True)


def _split_without_transpose(op: Operation) -> np.ndarray:
    return (op.input @ _own(op).T).reshape(op.right.shape)
