"""Solutions of tutorial 7."""

import numpy as np


def can_see(query_positions: np.ndarray, key_positions: np.ndarray, window: int | None) -> np.ndarray:
    distance = query_positions[:, None] - key_positions
    if window is None:
        return distance >= 0
    return (distance >= 0) & (distance < window)


def layer_mask(layer: int, T: int, window: int) -> np.ndarray:
    positions = np.arange(T)
    return can_see(positions, positions, window if layer % 2 == 0 else None)


def slot_positions(length: int, slots: int) -> np.ndarray:
    positions = np.zeros(slots, int)
    for position in range(length):
        positions[position % slots] = position
    return positions


def chunk_mask(start: int, T: int, window: int) -> np.ndarray:
    ring = np.zeros(min(start, window), int)
    for position in range(start):
        ring[position % window] = position
    chunk = np.arange(start, start + T)
    return can_see(chunk, np.concatenate([ring, chunk]), window)
