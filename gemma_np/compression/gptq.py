"""GPTQ: round the channels one after another, and let the remaining ones compensate for each rounding error.

A rounding error matters as far as it changes the outputs for real inputs. With H = X^T X, the Gram matrix of the
inputs, that change is error @ H @ error^T for each row. The inverse of H determines how the remaining channels best
compensate for the error of one channel.

Source: Frantar et al., arXiv 2210.17323.
"""

import numpy as np

from gemma_np.compression.quantization import Grid, Scheme, in_groups, minmax_grid, mse_grid, store
from gemma_np.weights.formats import Int4, Int8

_DAMPING = 0.01  # times the mean of H's diagonal, added to the diagonal: with few texts H has no inverse
_BLOCK = 128  # channels whose corrections are applied to the rest in one product


def gptq(weight: np.ndarray, gram: np.ndarray, scheme: Scheme) -> Int8 | Int4:
    """Quantize a weight [out, in] for inputs with the Gram matrix H [in, in] in `gram`.

    Each row keeps the best of three results: GPTQ, and rounding to nearest on the min-max or the MSE grid. So no row
    has a larger error on these inputs than with rounding to nearest.
    """
    scheme.check("weight", weight.shape)
    full, least = minmax_grid(weight, scheme), mse_grid(weight, scheme)
    groups = in_groups(weight, scheme)
    numbers, grid = full.nearest(groups), full
    error = output_error(grid.values(numbers), weight, gram)
    for other, of_grid in ((least.nearest(groups), least), (round_in_turn(weight, gram, least), least)):
        other_error = output_error(of_grid.values(other), weight, gram)
        better = (other_error < error)[:, None, None]
        numbers, error = np.where(better, other, numbers), np.minimum(error, other_error)
        scales, zeros = np.where(better, of_grid.scales, grid.scales), np.where(better, of_grid.zeros, grid.zeros)
        grid = grid._replace(scales=scales, zeros=zeros)
    return store(numbers, grid, scheme)


def output_error(rounded: np.ndarray, weight: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Return error @ H @ error^T of each row: rounded and weight [out, in], gram H [in, in] -> [out]."""
    error = rounded.reshape(weight.shape) - weight
    return ((error @ gram) * error).sum(axis=1)


def round_in_turn(weight: np.ndarray, gram: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the numbers that GPTQ chooses on a grid: weight [out, in], gram H [in, in] -> [out, groups, channels]."""
    order = np.argsort(
        -np.diagonal(gram), kind="stable"
    )  # the largest inputs first, while most channels can still compensate
    factor = _inverse_factor(gram[np.ix_(order, order)])
    channels = weight.shape[1] // grid.scales.shape[1]
    left = weight[:, order].T.copy()  # [in, out]: the weights of a channel are contiguous
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


def _inverse_factor(gram: np.ndarray) -> np.ndarray:
    """Return the upper triangle U of inverse(H) = U^T U.

    Row c divided by U[c, c] is how much each later channel compensates for an error in channel c.
    """
    damped = gram.astype(np.float64)
    damped[np.diag_indices_from(damped)] += _DAMPING * np.diagonal(damped).mean() or 1
    return np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
