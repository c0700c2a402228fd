"""Keys and values kept between calls, so that each new token costs one row of attention instead of all of them.

A global layer keeps every position up to `max_length`. A local layer never looks further back than its window, so
that it keeps a ring of `window` slots: position p lives in slot p modulo window.
"""

import numpy as np
from numpy.typing import DTypeLike

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError


class LayerCache:
    """The keys and values of one layer, allocated once: [..., K, slots, h] each."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.keys = np.empty(shape, dtype)
        self.values = np.empty(shape, dtype)
        self.slots = shape[-2]
        self.length = 0  # tokens seen so far, which is the position of the next one

    def append(self, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keep the keys and values of T new tokens; return all that these tokens may look at.

        k, v [..., K, T, h] -> keys, values [..., K, S, h] and the position of each, [S]; valid until the next call.
        """
        start, end = self.length, self.length + k.shape[-2]
        self.length = end
        if end <= self.slots or end - start == 1:
            # One token overwrites nothing that it could see: the key `window` steps back is out of its sight.
            self._write(range(start, end), k, v)
            used = np.arange(min(end, self.slots))
            positions = end - 1 - (end - 1 - used) % self.slots  # the latest position that lives in each slot
            return self.keys[..., : len(used), :], self.values[..., : len(used), :], positions
        # Several tokens that wrap: the first of them still see keys that the last of them overwrite.
        kept = np.arange(max(0, start - self.slots), start)
        keys = np.concatenate([self.keys[..., kept % self.slots, :], k], axis=-2)
        values = np.concatenate([self.values[..., kept % self.slots, :], v], axis=-2)
        self._write(range(max(start, end - self.slots), end), k, v)
        return keys, values, np.arange(end - keys.shape[-2], end)

    def _write(self, positions: range, k: np.ndarray, v: np.ndarray) -> None:
        """Put the last tokens of k and v into the slots of their positions."""
        slots = np.asarray(positions) % self.slots
        self.keys[..., slots, :] = k[..., -len(positions) :, :]
        self.values[..., slots, :] = v[..., -len(positions) :, :]


class KVCache:
    """The caches of all layers. Give it to `transformer` again and again; it knows which position comes next."""

    def __init__(
        self,
        config: GemmaConfig,
        max_length: int | None = None,
        batch: tuple[int, ...] = (),
        dtype: DTypeLike = np.float32,
    ) -> None:
        """Room for `max_length` tokens (default and limit: the model's own maximum) of each text of the batch.

        Raises GemmaError when more is asked for than the model can read.
        """
        self.max_length = config.max_position_embeddings if max_length is None else max_length
        if not 0 < self.max_length <= config.max_position_embeddings:
            raise GemmaError(
                f"cache: room for {max_length} tokens, expected 1 to max_position_embeddings="
                f"{config.max_position_embeddings}"
            )
        self.layers = [
            LayerCache(
                (*batch, config.num_key_value_heads, min(window or self.max_length, self.max_length), config.head_dim),
                dtype,
            )
            for window in map(config.window, range(config.num_hidden_layers))
        ]

    @property
    def length(self) -> int:
        """Tokens seen so far, which is the position of the next one."""
        return self.layers[0].length
