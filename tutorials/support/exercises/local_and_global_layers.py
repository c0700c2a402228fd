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
