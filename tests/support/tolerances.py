"""How far two results may differ: one table of tolerances, and the one comparison that uses it.

Every tolerance is relative to max|expected|. With an absolute one, zeros would pass where small numbers are expected.
"""

import numpy as np

TOLERANCES = {
    # one operation, computed in two ways (loops, a framework primitive)
    ("float64", "operation"): 1e-12,
    # the gradients of one operation, compared with the framework's
    ("float64", "gradient"): 1e-10,
    # a whole forward pass, computed in two ways (loops, cache, chunks, batch)
    ("float64", "model"): 1e-11,
    ("float32", "model"): 1e-5,
    # a float32 forward pass, compared with the same in float64
    ("float32", "precision"): 1e-5,
    # the gradients of all weights in float32, compared with the framework's
    ("float32", "gradient"): 1e-4,
    # a float32 forward pass and each of its intermediates, compared with the framework's
    ("float32", "framework"): 2e-5,
}


def assert_close(found, expected, kind, name="result"):
    """Fail unless found equals expected within the tolerance for its dtype and kind; report the largest difference."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, f"{name}: shape {found.shape}, expected {expected.shape}"
    assert found.size, f"{name}: empty, nothing is compared"
    assert np.isfinite(expected).all(), f"{name}: the expected values are not finite"
    tolerance = TOLERANCES[str(found.dtype), kind]
    limit = tolerance * np.abs(expected).max()
    error = np.abs(found - expected)
    where = np.unravel_index(error.argmax(), error.shape)  # argmax treats NaN as the largest
    assert error[where] <= limit, (
        f"{name}: {found[where]} at {[int(i) for i in where]}, expected {expected[where]}; "
        f"off by {error[where]:.2g}, allowed {limit:.2g} ({kind}, {tolerance:g} of max|expected|)"
    )
