"""The exercises on RoPE."""

import numpy as np

from gemma_np.model.rope import rope, rope_cos_sin
from gemma_np.oracle.mistakes.rope import rope_interleaved
from support.exercise import Cases, Exercise, known

CosSin = tuple[np.ndarray, np.ndarray]


def _angle_cases(generator: np.random.Generator) -> Cases:
    start = int(generator.integers(10, 99))
    return {
        "position 0": (np.arange(1), 8, 10_000.0, 1.0),
        "positions 0 to 4": (np.arange(5), 8, 10_000.0, 1.0),
        "another base": (np.arange(5), 8, 1_000_000.0, 1.0),
        "positions that do not begin at 0": (np.arange(start, start + 4), 8, 10_000.0, 1.0),
        "divided positions": (np.arange(5), 8, 1_000_000.0, 8.0),
    }


def _cos_sin(positions: np.ndarray, head_dim: int, base: float, divisor: float) -> CosSin:
    return rope_cos_sin(range(positions[0], positions[-1] + 1), head_dim, base, divisor, np.float64)


def _cos_sin_of(angles: np.ndarray) -> CosSin:
    return np.cos(angles), np.sin(angles)


def _half_the_exponent(positions: np.ndarray, head_dim: int, base: float, divisor: float) -> CosSin:
    return _cos_sin_of(np.outer(positions / divisor, base ** -(np.arange(head_dim // 2) / head_dim)))


def _growing(positions: np.ndarray, head_dim: int, base: float, divisor: float) -> CosSin:
    return _cos_sin_of(np.outer(positions / divisor, base ** (np.arange(0, head_dim, 2) / head_dim)))


def _degrees(positions: np.ndarray, head_dim: int, base: float, divisor: float) -> CosSin:
    return _cos_sin_of(np.outer(positions / divisor, np.radians(base ** -(np.arange(0, head_dim, 2) / head_dim))))


ANGLES = Exercise(
    reference=_cos_sin,
    cases=_angle_cases,
    mistakes={
        "the exponent is -i/h for pair i; it is -2i/h, since there are h/2 pairs": _half_the_exponent,
        "the exponent has no minus, so later pairs rotate faster; they rotate more slowly": _growing,
        "the angles are in degrees; np.cos expects radians": _degrees,
        "positions are counted from 1; the first token has position 0": lambda positions, head_dim, base, divisor: (
            _cos_sin(positions + 1, head_dim, base, divisor)
        ),
        "cos and sin are swapped; return cos, then sin": lambda positions, head_dim, base, divisor: _cos_sin(
            positions, head_dim, base, divisor
        )[::-1],
        "positions are multiplied by the divisor; divide them": lambda positions, head_dim, base, divisor: _cos_sin(
            positions, head_dim, base, 1 / divisor
        ),
        known("rope-scale-missing"): lambda positions, head_dim, base, divisor: _cos_sin(
            positions, head_dim, base, 1.0
        ),
    },
)


def _rope_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal

    def rotation(start: int, length: int) -> CosSin:
        return rope_cos_sin(range(start, start + length), 8, 100.0, 1.0, np.float64)

    cos, sin = rotation(0, 4)
    return {
        "position 0": (draw((1, 8)), *rotation(0, 1)),
        "one token": (draw((1, 8)), *rotation(3, 1)),
        "several tokens": (draw((4, 8)), cos, sin),
        "several heads": (draw((2, 4, 8)), cos, sin),
        "float32": (draw((4, 8)).astype(np.float32), cos.astype(np.float32), sin.astype(np.float32)),
    }


def _halves(x: np.ndarray) -> CosSin:
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _rotated_half_used(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    first, second = _halves(x)
    first = first * cos - second * sin
    return np.concatenate([first, second * cos + first * sin], axis=-1)


def _two_minuses(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    first, second = _halves(x)
    return np.concatenate([first * cos - second * sin, second * cos - first * sin], axis=-1)


def _no_minus(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    first, second = _halves(x)
    return np.concatenate([first * cos + second * sin, second * cos + first * sin], axis=-1)


ROPE = Exercise(
    reference=rope,
    cases=_rope_cases,
    mistakes={
        known("rope-interleaved"): rope_interleaved.faulty,
        "the pairs are rotated the other way; the minus belongs to the first half": lambda x, cos, sin: rope(
            x, cos, -sin
        ),
        "the second half is computed from the rotated first half; use the original one": (_rotated_half_used),
        "cos and sin are swapped; first * cos - second * sin": lambda x, cos, sin: rope(x, sin, cos),
        "both sums have a minus; a rotation has a plus in the second: second * cos + first * sin": _two_minuses,
        "both sums have a plus; a rotation has a minus in the first: first * cos - second * sin": _no_minus,
    },
)


def _chunk_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "the first chunk": (draw((4, 8)), 0, 10_000.0),
        "the second chunk": (draw((4, 8)), 4, 10_000.0),
        "one token in decoding": (draw((1, 8)), int(generator.integers(5, 50)), 10_000.0),
        "several heads": (draw((2, 4, 8)), 7, 1_000_000.0),
    }


def _rotate_chunk(x: np.ndarray, start: int, base: float) -> np.ndarray:
    return rope(x, *rope_cos_sin(range(start, start + x.shape[-2]), x.shape[-1], base, 1.0, np.float64))


CHUNK = Exercise(
    reference=_rotate_chunk,
    cases=_chunk_cases,
    mistakes={
        known("decode-positions"): lambda x, start, base: _rotate_chunk(x, 0, base),
        "the positions begin at start + 1; after `start` tokens, 0 to start - 1, the next position is start": (
            lambda x, start, base: _rotate_chunk(x, start + 1, base)
        ),
        "all tokens of the chunk get the position of its first; count on from there": lambda x, start, base: rope(
            x, *rope_cos_sin(range(start, start + 1), x.shape[-1], base, 1.0, np.float64)
        ),
    },
)
