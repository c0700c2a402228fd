"""A weight as stored, and the product with it."""

import numpy as np


def linear(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Multiply each vector of x by a weight that is stored the way checkpoints store it.

    x [..., in], weight [out, in] -> [..., out]. The leading axes are folded into one, so that a batch is a single
    matrix product. NumPy hands the transposed view to BLAS as it is: no copy of the weight is made.
    """
    return (x.reshape(-1, x.shape[-1]) @ weight.T).reshape(*x.shape[:-1], weight.shape[0])


def linear_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Undo `x @ weight.T`: the gradients of x and of the weight.

    dy [..., out], x [..., in], weight [out, in] -> dx [..., in], dweight [out, in]
    """
    rows = dy.reshape(-1, dy.shape[-1])
    return (rows @ weight).reshape(x.shape), rows.T @ x.reshape(-1, x.shape[-1])
