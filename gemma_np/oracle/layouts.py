"""Bring records into our axes: another order of them, heads side by side, several records in one array.

A layout names the axes of an array by the letters of `gemma_np.model.records`, such as "T H h", or "T H*h" where two
lie side by side. H stands for the record's own number of heads, also for keys and values.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError, quoted
from gemma_np.model.records import RECORDS
from gemma_np.oracle.trace import RecordSlice

_LETTERS = {row.name: row.letters for row in RECORDS}


class Entry(NamedTuple):
    """What an array of a dump holds: one record, or several side by side along its last axis."""

    keys: tuple[str, ...]
    layout: str


def check_layout(layout: str) -> None:
    """Check that a layout has known letters, each once. Raises GemmaError when it does not."""
    letters = layout.replace("*", " ").split()
    if not letters or len(set(letters)) < len(letters) or not set(letters) <= set("THhSDFV"):
        raise GemmaError(f"layout: {quoted(layout)}, expected axes such as 'T H h' or 'T H*h'")


def in_our_axes(
    array: np.ndarray, layout: str, slices: Sequence[RecordSlice], config: GemmaConfig
) -> dict[str, np.ndarray]:
    """Return the records in an array with the axes of a layout, in our axes: key -> record.

    array [..., n]: as the layout says, maybe after a batch axis of length 1. Raises GemmaError when it does not fit.
    """
    if array.ndim == len(layout.split()) + 1 and array.shape[0] == 1:
        array = array[0]
    sizes = [_sizes(record_slice, config) for record_slice in slices]
    widths = [_shape(layout, one)[-1] for one in sizes]
    expected = (*_shape(layout, sizes[0])[:-1], sum(widths))
    if array.shape != expected:
        raise GemmaError(f"shape {array.shape}, expected {expected} for the layout {quoted(layout)}")
    parts = np.split(array, np.cumsum(widths)[:-1], axis=-1)
    return {
        record_slice.key: _transposed(part, layout, _ours(record_slice), own)
        for record_slice, part, own in zip(slices, parts, sizes, strict=True)
    }


def _ours(record_slice: RecordSlice) -> str:
    """Return the letters of a record, with H for its own number of heads."""
    parts = record_slice.name.split(".")
    name = ".".join(["layers", "*", *parts[2:]]) if parts[0] == "layers" else record_slice.name
    return _LETTERS[name].replace("K", "H")


def _sizes(record_slice: RecordSlice, config: GemmaConfig) -> dict[str, int]:
    """Return the size of each letter; H times h are side by side in the contexts."""
    sizes = {"H": config.num_attention_heads, "h": config.head_dim}
    for letter, size in zip(_ours(record_slice).split(), record_slice.shape, strict=True):
        sizes[letter] = size
    return sizes


def _shape(layout: str, sizes: dict[str, int]) -> tuple[int, ...]:
    try:
        return tuple(math.prod(sizes[letter] for letter in axis.split("*")) for axis in layout.split())
    except KeyError as error:
        raise GemmaError(f"layout: {quoted(layout)}: the record has no axis {error.args[0]}") from None


def _transposed(array: np.ndarray, layout: str, ours: str, sizes: dict[str, int]) -> np.ndarray:
    theirs, wanted = layout.replace("*", " ").split(), ours.replace("*", " ").split()
    if sorted(theirs) != sorted(wanted):
        raise GemmaError(f"layout: {quoted(layout)}, expected the axes {ours}, in any order")
    split = array.reshape([sizes[letter] for letter in theirs])
    return split.transpose([theirs.index(letter) for letter in wanted]).reshape(_shape(ours, sizes))
