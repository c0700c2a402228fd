"""Wrong rotations of queries and keys."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from gemma_np.config import LOCAL
from gemma_np.model.rope import rope
from gemma_np.oracle.alternatives.alternative import HALVES, Alternative, Family, alternatives, near, rounded
from gemma_np.oracle.operation import Operation

KINDS_EXCHANGED = "local and global layers are exchanged"
"""Local layers have the mask and the rotation of global ones, and the other way round."""

ROTATED_FIRST = "rotated first"
"""Queries and keys are normalized after their rotation."""

ROTATED = ("layers.*.self_attn.q_rope", "layers.*.self_attn.k_rope")


def _before(op: Operation) -> np.ndarray:
    """Return the queries or keys before the rotation: [heads, N, h]."""
    part = op.part.removesuffix("_rope")
    return op[f"{part}_norm"] if op.config.has_qk_norm else op[part]


def angles(
    op: Operation,
    *,
    base: float | None = None,
    divisor: float | None = None,
    offset: float = 0.0,
    exponent: float = 1.0,
) -> np.ndarray:
    """Return the angles of all tokens, with the layer's own base and divisor by default: radians [N, h/2]."""
    assert op.layer is not None
    own_base, own_divisor = op.config.rope(op.layer)
    h, N = op.config.head_dim, len(op.reference.ids)
    frequencies = (base or own_base) ** -(exponent * np.arange(0, h, 2) / h)
    return np.outer((np.arange(N) + offset) / (divisor or own_divisor), frequencies)


def _rotate(op: Operation, turn: np.ndarray) -> np.ndarray:
    """Rotate by angles [N, h/2]."""
    return rope(_before(op), np.cos(turn), np.sin(turn))


def _interleaved(x: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Rotate channels 2i and 2i + 1 as a pair."""
    turned = np.empty_like(x)
    turned[..., 0::2] = x[..., 0::2] * np.cos(turn) - x[..., 1::2] * np.sin(turn)
    turned[..., 1::2] = x[..., 1::2] * np.cos(turn) + x[..., 0::2] * np.sin(turn)
    return turned


@alternatives(*ROTATED)
def other_pairs(operation: Operation) -> Iterator[Alternative]:
    """Yield no rotation, other pairs of channels, other signs, and only some of the channels."""
    h, half = operation.config.head_dim, operation.config.head_dim // 2
    yield Alternative("it is not rotated", _before, together=(ROTATED_FIRST,))
    yield Alternative(
        f"channels 2i and 2i + 1 are rotated as a pair, expected i and i + {half}",
        lambda op: _interleaved(_before(op), angles(op)),
        "rope-interleaved",
    )
    yield Alternative("the rotation has a plus in place of its minus", _without_minus)
    yield Alternative("neighbouring channels have the same angle, but channels half apart are rotated", _neighbours)
    signs = np.repeat([-1, 1], half)
    yield Alternative("the first half has the other sign", lambda op: _rotate(op, angles(op)) * signs)
    for part in {2 * (h // 8), 2 * (h // 4), 2 * (3 * h // 8)} - {0, h}:
        first = f"only the first {part} of {h} channels are rotated"
        yield Alternative(first, partial(_partly, channels=part, width=h))
        yield Alternative(f"{first}, by angles for as many", partial(_partly, channels=part, width=part))


@alternatives(*ROTATED)
def other_angles(operation: Operation) -> Iterator[Alternative]:
    """Yield other directions, frequencies and positions."""
    assert operation.layer is not None
    yield Alternative("it is rotated in the opposite direction", lambda op: _rotate(op, -angles(op)))
    yield Alternative("it is rotated twice", lambda op: _rotate(op, 2 * angles(op)))
    yield Alternative(
        "the angles are sorted backwards: the last pair turns fastest", lambda op: _rotate(op, angles(op)[:, ::-1])
    )
    yield Alternative(
        "the exponent of the frequencies is i / h, expected 2i / h", lambda op: _rotate(op, angles(op, exponent=0.5))
    )
    yield Alternative(
        "the exponent of the frequencies is 4i / h, expected 2i / h", lambda op: _rotate(op, angles(op, exponent=2.0))
    )
    yield Alternative(
        "positions start at zero in every pass", lambda op: _rotate(op, _positions_of_passes(op)), "decode-positions"
    )
    window = operation.config.window(operation.layer)
    if window:
        yield Alternative(
            "positions are counted in the ring: modulo the window",
            lambda op: _rotate(op, angles(op)[np.arange(len(op.reference.ids)) % window]),
        )


@alternatives(*ROTATED)
def other_dtypes(operation: Operation) -> Iterator[Alternative]:
    """Yield what is rounded to 16 bits."""
    for name, dtype in HALVES.items():
        yield Alternative(
            f"cosine and sine are rounded to {name}",
            partial(_rounded_rotation, dtype=dtype),
            "rope-bf16" if name == "bfloat16" else "",
        )
        yield Alternative(
            f"positions start at zero in every pass, and cosine and sine are rounded to {name}",
            partial(_rounded_rotation, dtype=dtype, turn=_positions_of_passes),
            "decode-positions rope-bf16" if name == "bfloat16" else "",
        )
        yield Alternative(f"the angles are rounded to {name}", partial(_rounded_angles, dtype=dtype))
        yield Alternative(f"the frequencies are rounded to {name}", partial(_rounded_frequencies, dtype=dtype))
        yield Alternative(f"the angles are computed in {name}", partial(_angles_in, dtype=dtype))


@alternatives(*ROTATED)
def of_other_layers(operation: Operation) -> Iterator[Alternative]:
    """Yield the base and the divisor of the other kind of layer, in Gemma 3."""
    assert operation.layer is not None
    config = operation.config
    base, divisor = config.rope(operation.layer)
    if config.rope_local_base_freq and config.layer_types[operation.layer] == LOCAL:
        yield Alternative(
            f"the base is {config.rope_theta:g}, that of global layers, expected {base:g}",
            lambda op: _rotate(op, angles(op, base=op.config.rope_theta)),
            "rope-theta-one",
        )
        if config.rope_scaling_factor != 1:
            yield Alternative(
                f"positions are divided by {config.rope_scaling_factor:g} on a local layer",
                lambda op: _rotate(op, angles(op, divisor=op.config.rope_scaling_factor)),
                "rope-scale-everywhere",
            )
            yield Alternative(
                "a local layer has the base and the divisor of global layers",
                lambda op: _rotate(op, angles(op, base=op.config.rope_theta, divisor=op.config.rope_scaling_factor)),
                together=(KINDS_EXCHANGED,),
            )
    elif config.rope_local_base_freq:
        yield Alternative(
            f"the base is {config.rope_local_base_freq:g}, that of local layers, expected {base:g}",
            lambda op: _rotate(op, angles(op, base=op.config.rope_local_base_freq)),
        )
        yield Alternative(
            "a global layer has the base and the divisor of local layers",
            lambda op: _rotate(op, angles(op, base=op.config.rope_local_base_freq, divisor=1.0)),
            together=(KINDS_EXCHANGED,),
        )
    if divisor != 1:
        yield Alternative(
            f"positions are not divided by {divisor:g}",
            lambda op: _rotate(op, angles(op, divisor=1.0)),
            "rope-scale-missing",
        )


def _rounded_rotation(op: Operation, dtype: type, turn: Callable[[Operation], np.ndarray] = angles) -> np.ndarray:
    return rope(_before(op), rounded(np.cos(turn(op)), dtype), rounded(np.sin(turn(op)), dtype))


def _rounded_angles(op: Operation, dtype: type) -> np.ndarray:
    return _rotate(op, rounded(angles(op), dtype))


def _angles_in(op: Operation, dtype: type) -> np.ndarray:
    """Rotate by the products of rounded positions and frequencies, which are rounded, too."""
    assert op.layer is not None
    base, divisor = op.config.rope(op.layer)
    h, N = op.config.head_dim, len(op.reference.ids)
    frequencies: np.ndarray = (base ** -(np.arange(0, h, 2) / h) / divisor).astype(dtype)
    turn = np.arange(N).astype(dtype)[:, None] * frequencies
    return _rotate(op, rounded(turn, dtype))


def _rounded_frequencies(op: Operation, dtype: type) -> np.ndarray:
    turn = angles(op)
    frequencies = rounded(angles(op, offset=1.0)[:1], dtype)  # the angles of position 1
    return _rotate(op, np.arange(len(turn))[:, None] * frequencies)


def _partly(op: Operation, channels: int, width: int) -> np.ndarray:
    assert op.layer is not None
    base, divisor = op.config.rope(op.layer)
    x = _before(op)
    frequencies: np.ndarray = base ** -(np.arange(0, channels, 2) / width)
    turn = np.outer(np.arange(x.shape[-2]) / divisor, frequencies)
    return np.concatenate([rope(x[..., :channels], np.cos(turn), np.sin(turn)), x[..., channels:]], axis=-1)


def _without_minus(op: Operation) -> np.ndarray:
    x, turn = _before(op), np.concatenate([angles(op)] * 2, axis=-1)
    return x * np.cos(turn) + np.roll(x, x.shape[-1] // 2, axis=-1) * np.sin(turn)


def _neighbours(op: Operation) -> np.ndarray:
    x, turn = _before(op), np.repeat(angles(op), 2, axis=-1)
    half = x.shape[-1] // 2
    turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * np.cos(turn) + turned * np.sin(turn)


def _positions_of_passes(op: Operation) -> np.ndarray:
    return angles(op)[np.arange(len(op.reference.ids)) - op.reference.pass_starts]


@alternatives(*ROTATED)
def other_numbers(operation: Operation) -> Iterator[Family]:
    """Yield another base, divisor or first position."""
    yield Family(
        lambda op, value: f"the base is {value * _base(op):.6g}, expected {_base(op):g}",
        lambda op, value: _rotate(op, angles(op, base=value * _base(op))),
        np.logspace(-5, 5, 500).tolist(),
        likely=lambda op: [value / _base(op) for value in (1e3, 1e4, 1e5, 5e5, 1e6, 1e7)],
        together=("base",),
    )
    yield Family(
        lambda op, value: f"positions are divided by {value:.6g}, expected {op.config.rope(op.layer or 0)[1]:g}",
        lambda op, value: _rotate(op, angles(op, divisor=value)),
        np.logspace(-2, 3, 400).tolist(),
        likely=lambda op: [0.125, 0.5, 2.0, 4.0, 8.0],
        together=("divisor",),
    )
    yield Family(
        _says_offset,
        lambda op, value: _rotate(op, angles(op, offset=value)),
        np.arange(-64.0, 65.0).tolist(),
        likely=lambda op: [1.0, -1.0],
        together=("first position",),
    )


def _base(op: Operation) -> float:
    return op.config.rope(op.layer or 0)[0]


def _says_offset(op: Operation, value: float) -> str:
    return f"positions start at {round(value) if near(value, round(value)) else value:g}, expected 0"
