"""GPTQ: round one channel after another, and let the channels to come make up for each rounding error.

A rounding error matters as far as it changes what the weight makes of real inputs. With the second moments of the
inputs, H = X^T X, that is error @ H @ error^T for each row; how the channels not yet rounded best answer the error of
one follows from the inverse of H.

Source: Frantar et al., arXiv 2210.17323.
"""

import numpy as np

from gemma_np.compression.quantization import Grid, Scheme, in_groups, minmax_grid, mse_grid, store
from gemma_np.weights.formats import Int4, Int8

_DAMPING = 0.01  # of the mean of H's diagonal, added to it: few calibration texts leave H without an inverse
_BLOCK = 128  # channels whose corrections are applied to the rest together


def gptq(weight: np.ndarray, moments: np.ndarray, scheme: Scheme) -> Int8 | Int4:
    """Quantize a weight [out, in] for inputs of second moments H [in, in].

    On real inputs no row is further off than with its numbers rounded to the nearest, on the full grid or on that of
    least error: where it would be, it keeps those.
    """
    scheme.check("weight", weight.shape)
    full, least = minmax_grid(weight, scheme), mse_grid(weight, scheme)
    groups = in_groups(weight, scheme)
    numbers, grid = full.nearest(groups), full
    error = moment_error(grid.values(numbers), weight, moments)
    for other, of_grid in ((least.nearest(groups), least), (round_in_turn(weight, moments, least), least)):
        other_error = moment_error(of_grid.values(other), weight, moments)
        better = (other_error < error)[:, None, None]
        numbers, error = np.where(better, other, numbers), np.minimum(error, other_error)
        scales, zeros = np.where(better, of_grid.scales, grid.scales), np.where(better, of_grid.zeros, grid.zeros)
        grid = grid._replace(scales=scales, zeros=zeros)
    return store(numbers, grid, scheme)


def moment_error(found: np.ndarray, weight: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """error @ H @ error^T of each row: found and weight [out, in], moments H [in, in] -> [out]."""
    error = found.reshape(weight.shape) - weight
    return ((error @ moments) * error).sum(axis=1)


def round_in_turn(weight: np.ndarray, moments: np.ndarray, grid: Grid) -> np.ndarray:
    """The numbers that GPTQ chooses on a grid: weight [out, in], moments H [in, in] -> [out, groups, channels]."""
    order = np.argsort(-np.diagonal(moments), kind="stable")  # what weighs most is rounded while it can be made up for
    factor = _inverse_factor(moments[np.ix_(order, order)])
    channels = weight.shape[1] // grid.scales.shape[1]
    left = weight[:, order].T.copy()  # [in, out]: a channel's weights lie side by side
    scales, zeros = (np.repeat(values[..., 0], channels, axis=1)[:, order].T for values in (grid.scales, grid.zeros))
    steps, rounded = np.where(scales, scales, 1), np.empty_like(left)
    for start in range(0, len(left), _BLOCK):
        stop = min(start + _BLOCK, len(left))
        errors = np.empty_like(left[start:stop])
        for c in range(start, stop):
            rounded[c] = np.clip(np.rint(left[c] / steps[c]) + zeros[c], grid.lowest, grid.highest)
            errors[c - start] = (left[c] - scales[c] * (rounded[c] - zeros[c])) / factor[c, c]
            left[c + 1 : stop] -= np.outer(factor[c, c + 1 : stop], errors[c - start])
        left[stop:] -= factor[start:stop, stop:].T @ errors
    numbers = np.empty_like(weight)
    numbers[:, order] = rounded.T
    return numbers.reshape(len(weight), -1, channels)


def _inverse_factor(moments: np.ndarray) -> np.ndarray:
    """The upper triangle U of inverse(H) = U^T U: row c, divided by its diagonal, is how the channels after c best
    answer an error of channel c."""
    damped = moments.astype(np.float64)
    damped[np.diag_indices_from(damped)] += _DAMPING * np.diagonal(damped).mean() or 1
    return np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
