"""The exercises on windows, layers, and the ring."""

import numpy as np

from gemma_np.config import LOCAL, layer_pattern
from gemma_np.model.attention_mask import attention_mask
from gemma_np.model.kv_cache import LayerCache
from support.exercise import Cases, Exercise, known


def _visible_cases(generator: np.random.Generator) -> Cases:
    start = int(generator.integers(10, 20)) * 4  # a multiple of the window: slot 0 of the ring comes next
    return {
        "a global layer": (np.arange(5), np.arange(5), None),
        "a local layer": (np.arange(6), np.arange(6), 3),
        "one new token after seven": (np.array([7]), np.arange(8), 3),
        "a ring whose slots are out of order": (np.array([start + 1]), start + np.array([0, 1, -2, -1]), 4),
    }


VISIBLE = Exercise(
    reference=attention_mask,
    cases=_visible_cases,
    mistakes={
        known("window-off-by-one"): lambda query, key, window: attention_mask(query, key, window and window + 1),
        known("window-ignored"): lambda query, key, window: attention_mask(query, key, None),
        known("decode-mask-index"): lambda query, key, window: attention_mask(range(len(query)), key, window),
        known("ring-positions"): lambda query, key, window: attention_mask(query, range(len(key)), window),
        "a query also sees later keys; the distance may not be negative": lambda query, key, window: (
            query[:, None] - key < (window or np.inf)
        ),
        "the past is hidden instead of the future; a query sees earlier keys": lambda query, key, window: (
            attention_mask(key, query, window).T
        ),
        "the window is one key too small; it includes the own key, so distance window - 1 is visible": (
            lambda query, key, window: attention_mask(query, key, window and window - 1)
        ),
        "a query does not see its own key; distance 0 is visible": lambda query, key, window: (
            attention_mask(query, key, window) & (query[:, None] != key)
        ),
    },
)


def _layer_cases(generator: np.random.Generator) -> Cases:
    length = int(generator.integers(6, 9))
    return {
        "a text as long as the window": (0, 4, 4),
        "a longer text, layer 0": (0, length, 4),
        "layer 1": (1, length, 4),
        "layer 4": (4, length, 4),
        "layer 5": (5, length, 4),
    }


def _mask(length: int, window: int | None) -> np.ndarray:
    return attention_mask(range(length), range(length), window)


def _layer_mask(layer: int, length: int, window: int, local_per_global: int = 1) -> np.ndarray:
    local = layer_pattern(layer + 1, local_per_global)[layer] == LOCAL
    return _mask(length, window if local else None)


LAYER_MASK = Exercise(
    reference=_layer_mask,
    cases=_layer_cases,
    mistakes={
        known("window-parity"): lambda layer, length, window: _layer_mask(layer + 1, length, window),
        known("window-ignored"): lambda layer, length, window: _mask(length, None),
        known("window-all-layers"): lambda layer, length, window: _mask(length, window),
        known("window-off-by-one"): lambda layer, length, window: _layer_mask(layer, length, window + 1),
        "there are five local layers per global one, as in Gemma 3; Gemma 2 has one": lambda layer, length, window: (
            _layer_mask(layer, length, window, local_per_global=5)
        ),
    },
)


def _slot_cases(generator: np.random.Generator) -> Cases:
    length = int(generator.integers(5, 10)) * 4
    return {
        "a ring that is just full": (4, 4),
        "one token more": (5, 4),
        "a ring that has wrapped many times": (length + 3, 4),
        "another number of slots": (length + 3, 5),
    }


def _slot_positions(length: int, slots: int) -> np.ndarray:
    """Return the positions in the ring of the model after `length` tokens."""
    ring, positions = LayerCache((1, slots, 1), np.float32), np.arange(0)
    for _ in range(length):
        token = np.zeros((1, 1, 1), np.float32)
        _, _, positions = ring.append(token, token)
    return positions


SLOT_POSITIONS = Exercise(
    reference=_slot_positions,
    cases=_slot_cases,
    mistakes={
        known("ring-positions"): lambda length, slots: np.arange(slots),
        "positions are in ascending order; position p is in slot p % slots": lambda length, slots: np.arange(
            length - slots, length
        ),
        "the newest token gets position `length`; counted from 0, it is length - 1": lambda length, slots: (
            _slot_positions(length + 1, slots)
        ),
        "all positions are one round of the ring behind; the newest is length - 1": lambda length, slots: (
            _slot_positions(length, slots) - slots
        ),
    },
)


def _chunk_cases(generator: np.random.Generator) -> Cases:
    start = int(generator.integers(5, 10)) * 4
    return {
        "the first chunk": (0, 4, 6),
        "a second chunk, before the ring is full": (3, 2, 6),
        "a ring that is just full": (4, 3, 4),
        "a ring that has wrapped": (start + 1, 2, 4),
        "a chunk longer than the window": (start + 3, 6, 4),
    }


def _mask_of(start: int, length: int, window: int, ring: np.ndarray) -> np.ndarray:
    """Return the mask of a chunk whose ring holds these positions."""
    chunk = np.arange(start, start + length)
    return attention_mask(chunk, np.concatenate([ring, chunk]), window)


def _chunk_mask(start: int, length: int, window: int) -> np.ndarray:
    return _mask_of(start, length, window, _slot_positions(start, window))


def _from_zero(start: int, length: int, window: int) -> np.ndarray:
    keys = np.r_[_slot_positions(start, window), start : start + length]
    return attention_mask(range(length), keys, window)


def _one_row_for_all(start: int, length: int, window: int) -> np.ndarray:
    return np.repeat(_chunk_mask(start, length, window)[:1], length, axis=0)


def _ring_all_visible(start: int, length: int, window: int) -> np.ndarray:
    mask = _chunk_mask(start, length, window)
    mask[:, :-length] = True
    return mask


def _chunk_all_visible(start: int, length: int, window: int) -> np.ndarray:
    mask = _chunk_mask(start, length, window)
    mask[:, -length:] = True
    return mask


def _no_window_in_the_chunk(start: int, length: int, window: int) -> np.ndarray:
    mask = _chunk_mask(start, length, window)
    mask[:, -length:] = _mask(length, None)
    return mask


CHUNK_MASK = Exercise(
    reference=_chunk_mask,
    cases=_chunk_cases,
    mistakes={
        "the queries are counted from 0; the first token of the chunk has position `start`": _from_zero,
        "the slots are taken for positions; once the ring has wrapped, slot s holds the newest position p with "
        "p % window == s": lambda start, length, window: _mask_of(start, length, window, np.arange(min(start, window))),
        "the ring is in the order of positions; position p is in slot p % window": lambda start, length, window: (
            _mask_of(start, length, window, np.arange(max(0, start - window), start))
        ),
        "all keys of the ring are visible; those that are `window` or more positions back are not": _ring_all_visible,
        "all keys of the chunk are visible; a query sees none after itself": _chunk_all_visible,
        "the window ends at the chunk; it holds between its own tokens as well": _no_window_in_the_chunk,
        "every query of the chunk has the mask of the first; each has its own position": _one_row_for_all,
        "the ring is left out; the queries see its keys, too": lambda start, length, window: _mask(length, window),
        "the chunk comes before the ring; first the slots, then the chunk": lambda start, length, window: np.roll(
            _chunk_mask(start, length, window), length, axis=1
        ),
        known("window-off-by-one"): lambda start, length, window: attention_mask(
            range(start, start + length), np.r_[_slot_positions(start, window), start : start + length], window + 1
        ),
    },
)
