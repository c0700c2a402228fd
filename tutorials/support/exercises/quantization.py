"""The exercises on quantization."""

from collections.abc import Callable, Sequence

import numpy as np

from gemma_np.compression.gptq import round_in_turn
from gemma_np.compression.quantization import Grid, Scheme, minmax_grid, quantize
from gemma_np.weights.formats import INT4_LEVELS, INT4_ZERO, Int8, pack
from support.exercise import Answer, Cases, Exercise

INT4 = Scheme("int4")
SHRINKS = [1 - step / 20 for step in range(11)]

Rounded = tuple[np.ndarray, np.ndarray]
"""Integers [out, in] and scales [out, 1]."""


def _round_cases(generator: np.random.Generator) -> Cases:
    def draw(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    largest_below_zero = draw(3, 8)
    largest_below_zero[:, 2] = [-5, -6, 7]
    one_zero = draw(3, 8)
    one_zero[1] = 0
    return {
        "one row": (np.abs(draw(1, 8)),),
        "a row whose largest weight is negative": (largest_below_zero,),
        "rows of different sizes": (draw(4, 16) * np.array([[1], [10], [0.1], [3]], np.float32),),
        "a row of zeros": (one_zero,),
    }


def _round_rows(weight: np.ndarray) -> Rounded:
    stored = quantize(weight, Scheme("int8"))
    assert isinstance(stored, Int8)
    return stored.integers, stored.scales


def _with_scales(weight: np.ndarray, scales: np.ndarray) -> Rounded:
    return np.rint(weight / np.where(scales, scales, 1)).astype(np.int8), scales


def _truncated(weight: np.ndarray) -> Rounded:
    scales = _round_rows(weight)[1]
    return np.trunc(weight / np.where(scales, scales, 1)).astype(np.int8), scales


def _one_scale(weight: np.ndarray) -> Rounded:
    return _with_scales(weight, np.full((len(weight), 1), np.abs(weight).max() / 127, np.float32))


def _rounded_down(weight: np.ndarray) -> Rounded:
    scales = _round_rows(weight)[1]
    return np.floor(weight / np.where(scales, scales, 1)).astype(np.int8), scales


ROUND_ROWS = Exercise(
    reference=_round_rows,
    cases=_round_cases,
    mistakes={
        "the fraction is cut off, with errors of up to a whole step; round to the nearest (np.rint)": _truncated,
        "every number is rounded down, with errors of up to a whole step; round to the nearest (np.rint)": (
            _rounded_down
        ),
        "all rows share one scale; take the largest of each row (axis=-1, keepdims=True)": _one_scale,
        "the scale is that of the largest weight with its sign; use the largest np.abs": lambda weight: _with_scales(
            weight, weight.max(axis=-1, keepdims=True) / np.float32(127)
        ),
        "the largest weight becomes 255 steps, which do not fit into a signed byte; use 127": lambda weight: (
            _with_scales(weight, np.abs(weight).max(axis=-1, keepdims=True) / np.float32(255))
        ),
        "the inverse of the scale is returned; weight = scale * integer": lambda weight: (
            _round_rows(weight)[0],
            1 / np.where(_round_rows(weight)[1], _round_rows(weight)[1], 1),
        ),
    },
)


def _pack_cases(generator: np.random.Generator) -> Cases:
    def draw(*shape: int) -> np.ndarray:
        return generator.integers(0, INT4_LEVELS, shape).astype(np.uint8)

    return {
        "two numbers": (np.array([3, 9], np.uint8),),
        "a row": (np.array([1, 2, 15, 0, 7, 8], np.uint8),),
        "a matrix": (draw(4, 8),),
        "a stack of matrices": (draw(2, 3, 8),),
    }


def _halves(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    half = numbers.shape[-1] // 2
    return numbers[..., :half], numbers[..., half:]


def _swapped(numbers: np.ndarray) -> np.ndarray:
    low, high = _halves(numbers)
    return high | low << 4


def _neighbours(numbers: np.ndarray) -> np.ndarray:
    return numbers[..., ::2] | numbers[..., 1::2] << 4


def _not_moved(numbers: np.ndarray) -> np.ndarray:
    low, high = _halves(numbers)
    return low | high


def _moved_by_three(numbers: np.ndarray) -> np.ndarray:
    low, high = _halves(numbers)
    return low | high << 3


PACK = Exercise(
    reference=pack,
    cases=_pack_cases,
    mistakes={
        "neighbours share a byte; combine a number of the first half with one of the second half": _neighbours,
        "the first half is in the upper bits; put it into the lower ones, and shift the second half": _swapped,
        "nothing is shifted, so both use the same four bits; shift the second half by 4": _not_moved,
        "the second half is shifted by 3 bits; numbers up to 15 take 4": _moved_by_three,
    },
)


def _clip_cases(generator: np.random.Generator) -> Cases:
    def draw(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    even = np.array([[-7, -5, -2, 0, 1, 3, 6, 7]], np.float32)
    outlier = draw(1, 64)
    outlier[0, 5] = 1.6 * np.abs(outlier).max()
    return {
        "a row that lies on the full grid": (even, SHRINKS),
        "a row with one large weight": (outlier, SHRINKS),
        "several rows": (draw(12, 96), SHRINKS),
        "few shrinks": (draw(12, 96), [1.0, 0.8, 0.6]),
    }


def _errors(weight: np.ndarray, shrink: float) -> np.ndarray:
    """Return the error of each weight: [out, in]."""
    grid = minmax_grid(weight, INT4, shrink)
    return (grid.values(grid.nearest(weight[:, None])) - weight[:, None])[:, 0]


def _best(sums: Sequence[np.ndarray], shrinks: list[float]) -> np.ndarray:
    """Return the shrink with the smallest sum for each row: sums [out] for each shrink -> [out]."""
    return np.array(shrinks)[np.argmin(sums, axis=0)]


def _least_error_shrinks(weight: np.ndarray, shrinks: list[float]) -> np.ndarray:
    return _best([np.square(_errors(weight, shrink)).sum(axis=1) for shrink in shrinks], shrinks)


def _never_clipped(weight: np.ndarray, shrinks: list[float]) -> np.ndarray:
    """Return the shrink with the finest steps, because nothing is clipped."""
    sums = []
    for shrink in shrinks:
        scales = np.abs(weight).max(axis=1, keepdims=True) * shrink / (INT4_LEVELS - 1 - INT4_ZERO)
        sums.append(np.square(scales * np.rint(weight / scales) - weight).sum(axis=1))
    return _best(sums, shrinks)


def _one_for_all(weight: np.ndarray, shrinks: list[float]) -> np.ndarray:
    totals = [np.square(_errors(weight, shrink)).sum() for shrink in shrinks]
    return np.full(len(weight), shrinks[int(np.argmin(totals))])


def _least_largest(weight: np.ndarray, shrinks: list[float]) -> np.ndarray:
    return _best([np.abs(_errors(weight, shrink)).max(axis=1) for shrink in shrinks], shrinks)


CLIP = Exercise(
    reference=_least_error_shrinks,
    cases=_clip_cases,
    mistakes={
        "nothing is clipped, as if there were more than 16 levels; clip to -8 ... 7": _never_clipped,
        "all rows get the same shrink; choose one for each row (sum over axis 1)": _one_for_all,
        "the shrink with the smallest maximum error is chosen; use the sum of squares": _least_largest,
        "the errors are summed with their signs, so they cancel; square them first": lambda weight, shrinks: _best(
            [np.abs(_errors(weight, shrink).sum(axis=1)) for shrink in shrinks], shrinks
        ),
    },
)


def _gptq_cases(generator: np.random.Generator) -> Cases:
    def gram(channels: int) -> np.ndarray:
        """Return the Gram matrix of correlated inputs, the largest channel first, as GPTQ would sort them."""
        inputs = generator.standard_normal((2 * channels, channels)) + 2 * generator.standard_normal((2 * channels, 1))
        inputs *= np.linspace(3, 1, channels) / np.linalg.norm(inputs, axis=0)
        return inputs.T @ inputs

    weight = np.array([[0.4, 0.4, 0.4], [1.3, -0.7, 0.2], [-2.6, 0.9, 1.8]])
    return {
        "channels that are not correlated": (weight, np.diag([4.0, 3.0, 2.0])),
        "two channels that are": (weight, np.array([[4.0, 3.0, 0.0], [3.0, 3.0, 0.0], [0.0, 0.0, 2.0]])),
        "a 3x3 by hand": (weight, np.array([[4.0, 3.0, 2.0], [3.0, 3.0, 2.0], [2.0, 2.0, 2.0]])),
        "twelve channels": (3 * generator.standard_normal((16, 12)), gram(12)),
    }


def _gptq(weight: np.ndarray, H: np.ndarray) -> np.ndarray:
    """Return the numbers that the package's GPTQ chooses on the grid of whole numbers."""
    grid = Grid(np.ones((len(weight), 1, 1)), np.zeros((len(weight), 1, 1)), -1000, 1000)
    damping = 0.01 / 1.01 * np.diagonal(H).mean() * np.eye(len(H))  # which GPTQ adds
    return round_in_turn(weight, H - damping, grid)[:, 0]


Compensation = Callable[[np.ndarray, int], np.ndarray]
"""The Gram matrix H and a column -> by how much each later column changes for an error of 1."""


def _in_turn(compensation: Compensation, *, of_original: bool = False) -> Answer:
    """Return GPTQ with another compensation, or with the errors of the original weights."""

    def rounded(weight: np.ndarray, H: np.ndarray) -> np.ndarray:
        left, numbers = weight.copy(), np.empty_like(weight)
        for c in range(len(H)):
            numbers[:, c] = np.rint(left[:, c])
            error = (weight if of_original else left)[:, c] - numbers[:, c]
            left[:, c + 1 :] += np.outer(error, compensation(H, c))
        return numbers

    return rounded


def _right_compensation(H: np.ndarray, c: int) -> np.ndarray:
    inverse = np.linalg.inv(H[c:, c:])
    return -inverse[0, 1:] / inverse[0, 0]


def _of_the_whole_inverse(H: np.ndarray, c: int) -> np.ndarray:
    inverse = np.linalg.inv(H)
    return -inverse[c, c + 1 :] / inverse[c, c]


def _next_alone(H: np.ndarray, c: int) -> np.ndarray:
    right = _right_compensation(H, c)
    right[1:] = 0
    return right


def _last_column_first(weight: np.ndarray, H: np.ndarray) -> np.ndarray:
    numbers: np.ndarray = _in_turn(_right_compensation)(weight[:, ::-1].copy(), H[::-1, ::-1])[:, ::-1]
    return numbers


GPTQ = Exercise(
    reference=_gptq,
    cases=_gptq_cases,
    mistakes={
        "every weight is rounded for itself; let the columns that remain make up for the error of each": (
            lambda weight, H: np.rint(weight)
        ),
        "the correction has the wrong sign, and doubles the error": _in_turn(lambda H, c: -_right_compensation(H, c)),
        "the correction is made from H; it is made from its inverse": _in_turn(lambda H, c: -H[c, c + 1 :] / H[c, c]),
        "the inverse of the whole H is used for each column; a rounded column no longer changes, so invert what "
        "remains, H[c:, c:]": _in_turn(_of_the_whole_inverse),
        "the row of the inverse is not divided by its diagonal entry": _in_turn(
            lambda H, c: -np.linalg.inv(H[c:, c:])[0, 1:]
        ),
        "the row of the Cholesky factor is not divided by its diagonal entry": _in_turn(
            lambda H, c: -np.linalg.cholesky(np.linalg.inv(H)).T[c, c + 1 :]
        ),
        "the error is that of the original weight; take that of the corrected one, which is rounded": _in_turn(
            _right_compensation, of_original=True
        ),
        "only the next column is corrected; all columns that remain are": _in_turn(_next_alone),
        "the last column is rounded first; begin with the first": _last_column_first,
    },
)
