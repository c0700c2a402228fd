"""How far two results may lie apart: one table, and the one comparison that reads it.

Every limit is relative to max|expected|. An absolute one would let a result of zeros pass for small numbers.
"""

import numpy as np

TOLERANCES = {
    # one operation, worked out in two ways (loops, a framework primitive)
    ("float64", "operation"): 1e-12,
    # the gradients of one operation, against those of the framework
    ("float64", "gradient"): 1e-10,
    # a whole forward pass, worked out in two ways (loops, cache, chunks, batch)
    ("float64", "model"): 1e-11,
    ("float32", "model"): 1e-5,
    # a float32 forward pass against the same in float64
    ("float32", "precision"): 1e-5,
    # the gradients of all weights in float32, against those of the framework
    ("float32", "gradient"): 1e-4,
    # a float32 forward pass, and each intermediate of it, against the framework's
    ("float32", "framework"): 2e-5,
}


def assert_close(found, expected, kind, name="result"):
    """Fail unless found, whose dtype and kind choose the limit, equals expected; say what differs, and where most."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, f"{name}: shape {found.shape}, expected {expected.shape}"
    assert found.size, f"{name}: empty, nothing is compared"
    assert np.isfinite(expected).all(), f"{name}: what is expected is not finite"
    tolerance = TOLERANCES[str(found.dtype), kind]
    limit = tolerance * np.abs(expected).max()
    error = np.abs(found - expected)
    where = np.unravel_index(error.argmax(), error.shape)  # argmax takes a NaN for the largest
    assert error[where] <= limit, (
        f"{name}: {found[where]} at {[int(i) for i in where]}, expected {expected[where]}; "
        f"off by {error[where]:.2g}, allowed {limit:.2g} ({kind}, {tolerance:g} of max|expected|)"
    )
