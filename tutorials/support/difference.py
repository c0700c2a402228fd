"""Describe how the result of an answer differs from the expected one."""

from typing import Any

import numpy as np

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
"""The largest error that passes, relative to the largest expected number."""


def difference(found: Any, expected: Any) -> str | None:
    """Describe how a result differs from the expected one, or return None when it does not.

    Results are arrays, numbers, lists, or tuples of these.
    """
    if isinstance(expected, tuple):
        if not isinstance(found, tuple) or len(found) != len(expected):
            return f"returns {type(found).__name__}, expected a tuple of {len(expected)}"
        parts = [_difference(*pair) for pair in zip(found, expected, strict=True)]
        return next((f"part {n} of the returned tuple: {part}" for n, part in enumerate(parts) if part), None)
    return _difference(found, expected)


def _difference(found: Any, expected: Any) -> str | None:
    if isinstance(expected, np.ndarray) and isinstance(found, list | tuple):
        return f"returns a {type(found).__name__}, expected an array"
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    if expected.dtype.kind != "f":
        return None if np.array_equal(found, expected) else f"{found.tolist()}, expected {expected.tolist()}"
    if found.dtype.kind not in "fiu":
        return f"dtype {found.dtype}, expected {expected.dtype}"
    if expected.ndim and found.dtype != expected.dtype:
        return f"dtype {found.dtype}, expected {expected.dtype} like the input"
    if not np.array_equal(np.isfinite(found), np.isfinite(expected)):
        return "NaN or infinity, expected a number"
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    error = np.where(same, 0.0, np.abs(found - np.where(np.isfinite(expected), expected, 0)))
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0)
    if error.max(initial=0) <= TOLERANCE.get(str(expected.dtype), 1e-9) * (scale or 1):
        return None
    if not expected.ndim:
        return "{}, expected {}".format(*_format_apart(found, expected))
    place = np.unravel_index(np.argmax(error), error.shape)
    number, right = _format_apart(found[place], expected[place])
    return f"{number} at [{', '.join(map(str, place))}], expected {right} (the largest error)"


def _format_apart(found: Any, expected: Any) -> tuple[str, str]:
    """Format two numbers with 6 digits, or with as many more as it takes to tell them apart."""
    pairs = [(f"{found:.{digits}g}", f"{expected:.{digits}g}") for digits in range(6, 18)]
    return next((pair for pair in pairs if pair[0] != pair[1]), pairs[-1])
