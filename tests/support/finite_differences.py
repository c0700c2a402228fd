"""Compare gradients with finite differences in float64."""

import numpy as np


def assert_gradient(function, arguments, gradients, name="gradient", step=1e-5, tolerance=1e-7):
    """Fail unless the gradients of function(*arguments) -> number give its change along a random direction.

    The change is measured by central differences at two step widths, extrapolated to a width of zero, so that its own
    error is of order step^4. The tolerance is relative to the norm of the gradients.
    """
    generator = np.random.default_rng(0)
    directions = [generator.standard_normal(argument.shape) for argument in arguments]

    def change(width):
        ahead, behind = (
            function(*(a + sign * width * d for a, d in zip(arguments, directions, strict=True))) for sign in (1, -1)
        )
        return (ahead - behind) / (2 * width)

    measured = (4 * change(step) - change(2 * step)) / 3
    parts = [(g * d).sum() for g, d in zip(gradients, directions, strict=True)]
    scale = max(np.sqrt(sum((g * g).sum() for g in gradients)), 1e-3)
    assert abs(sum(parts) - measured) <= tolerance * scale, f"{name}: {sum(parts)}, measured {measured}"
