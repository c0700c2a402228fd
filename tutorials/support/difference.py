"""Describe how the result of an answer differs from the expected one."""

from typing import Any

import numpy as np

TOLERANCE, FLOAT32_TOLERANCE = 1e-9, 1e-4
"""The largest error that passes, relative to the largest expected number; the second where either is float32."""


def difference(found: Any, expected: Any) -> str | None:
    """Describe how a result differs from the expected one, or return None when it does not.

    Results are arrays, numbers, lists, or tuples of these. Numbers count, not their container: a list passes for an
    array or a tuple, and float64 for float32.
    """
    if not isinstance(expected, tuple):
        return _difference(found, expected)
    parts = list(found) if isinstance(found, tuple | list) or np.ndim(found) else [found]
    if len(parts) != len(expected):
        return f"returns {type(found).__name__}, expected a tuple of {len(expected)}"
    differences = [_difference(*pair) for pair in zip(parts, expected, strict=True)]
    return next((f"part {n} of the returned tuple: {part}" for n, part in enumerate(differences) if part), None)


def _difference(found: Any, expected: Any) -> str | None:
    expected = np.asarray(expected)
    try:
        found = np.asarray(found)
    except ValueError:
        return f"a {type(found).__name__} of parts with different shapes, expected the shape {expected.shape}"
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    if expected.dtype.kind != "f":
        return None if np.array_equal(found, expected) else f"{found.tolist()}, expected {expected.tolist()}"
    if found.dtype.kind not in "fiu":
        return f"dtype {found.dtype}, expected {expected.dtype}"
    if not np.array_equal(np.isfinite(found), np.isfinite(expected)):
        return "NaN or infinity, expected a number"
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    error = np.where(same, 0.0, np.abs(found - np.where(np.isfinite(expected), expected, 0)))
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0)
    tolerance = FLOAT32_TOLERANCE if np.float32 in (found.dtype, expected.dtype) else TOLERANCE
    if error.max(initial=0) <= tolerance * (scale or 1):
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
