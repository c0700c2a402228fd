"""The KV cache: keep keys and values between calls, so that a new token costs one row of attention.

A global layer keeps every position up to `max_length`. A local layer never looks further back than its window, so it
keeps a ring buffer of `window` slots: position p is stored in slot p modulo window.

A cache can be rewound, as if its last tokens had never been read. Those have overwritten older keys of the ring, which
come back into sight; so a ring that is to be rewound has spare slots beside those of its window.

Source: Jiang et al., arXiv 2310.06825, section 2 (the ring, there called a rolling buffer).
"""

import numpy as np
from numpy.typing import DTypeLike

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.model.int8_cache import Int8Vectors


class LayerCache:
    """The keys and values of one layer, allocated once: [..., K, slots, h] each."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, *, int8: bool = False, spare: int = 0) -> None:
        allocate = Int8Vectors if int8 else np.empty
        self.keys = allocate(shape, dtype)
        self.values = allocate(shape, dtype)
        self.slots, self.spare = shape[-2], spare  # all slots, and those among them that no window needs
        self.length = 0  # tokens read so far, which is the position of the next one
        self.furthest = 0  # the greatest length so far

    def append(self, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Store the keys and values of T new tokens; return all keys and values that these tokens may attend to.

        k, v [..., K, T, h] -> keys, values [..., K, S, h] and the position of each, [S]; valid until the next call.
        After a rewind, the position of a key that no new token sees may be wrong.
        """
        start, end = self.length, self.length + k.shape[-2]
        self.length, self.furthest = end, max(end, self.furthest)
        if end <= self.slots:  # not full: position and slot are the same
            self.keys[..., start:end, :] = k
            self.values[..., start:end, :] = v
            return self.keys[..., :end, :], self.values[..., :end, :], np.arange(end)

        if end - start <= 1 + self.spare:  # these tokens overwrite only keys that have left the windows of all of them
            new = np.arange(start, end) % self.slots
            self.keys[..., new, :] = k
            self.values[..., new, :] = v
            positions = end - 1 - (end - 1 - np.arange(self.slots)) % self.slots
            return self.keys[...], self.values[...], positions

        # More tokens wrap around: the first ones still see keys that the last ones overwrite.
        before = np.arange(max(0, start - self.slots), start)
        keys = np.concatenate([self.keys[..., before % self.slots, :], k], axis=-2)
        values = np.concatenate([self.values[..., before % self.slots, :], v], axis=-2)
        kept = np.arange(max(start, end - self.slots), end)
        self.keys[..., kept % self.slots, :] = k[..., kept - start, :]
        self.values[..., kept % self.slots, :] = v[..., kept - start, :]
        return keys, values, np.arange(end - keys.shape[-2], end)

    @property
    def shortest(self) -> int:
        """Return the shortest length to which this cache can be rewound."""
        return self.furthest - self.spare if self.furthest > self.slots else 0


class KVCache:
    """The caches of all layers. Pass it to every call of `transformer`; it keeps track of the position."""

    def __init__(
        self,
        config: GemmaConfig,
        max_length: int | None = None,
        batch: tuple[int, ...] = (),
        dtype: DTypeLike = np.float32,
        *,
        int8: bool = False,
        spare: int = 0,
    ) -> None:
        """Allocate room for `max_length` tokens of each text (default and limit: the model's context length).

        batch: the leading axes; dtype: that of the weights; int8: keep keys and values in 8 bits; spare: the
        number of tokens that can be taken back (see `rewind`).

        Raises GemmaError when `max_length` exceeds the model's context length.
        """
        self.config, self.batch, self.dtype, self.int8, self.spare = config, batch, np.dtype(dtype), int8, spare
        self.max_length = config.max_position_embeddings if max_length is None else max_length
        if not isinstance(self.max_length, int) or not 0 < self.max_length <= config.max_position_embeddings:
            raise GemmaError(
                f"cache: room for {max_length} tokens, expected 1 to max_position_embeddings="
                f"{config.max_position_embeddings}"
            )
        windows = (config.window(layer) for layer in range(config.num_hidden_layers))
        slots = (min(window + spare, self.max_length) if window else self.max_length for window in windows)
        self.layers = [
            LayerCache((*batch, config.num_key_value_heads, each, config.head_dim), dtype, int8=int8, spare=spare)
            for each in slots
        ]

    @property
    def length(self) -> int:
        """Return the number of tokens read so far, which is the position of the next one."""
        return self.layers[0].length

    def rewind(self, length: int) -> None:
        """Go back to the first `length` tokens, as if those after them had never been read.

        Raises GemmaError for more tokens than were read, and for fewer than the spare slots allow: once a ring is full,
        `spare` less than the greatest length so far.
        """
        shortest = max(layer.shortest for layer in self.layers)
        if not shortest <= length <= self.length:
            raise GemmaError(
                f"cache: rewind to {length} tokens, expected {shortest} to {self.length} (spare={self.spare})"
            )
        for layer in self.layers:
            layer.length = length

    def repeated(self, *batch: int) -> "KVCache":
        """Return a copy of this cache, repeated for a batch of texts that share its tokens.

        batch: the axes to add before its own; none for a plain copy.
        """
        new = KVCache(self.config, self.max_length, (*batch, *self.batch), self.dtype, int8=self.int8, spare=self.spare)
        for layer, copy in zip(self.layers, new.layers, strict=True):
            filled = slice(min(layer.length, layer.slots))
            copy.keys[..., filled, :] = layer.keys[..., filled, :]
            copy.values[..., filled, :] = layer.values[..., filled, :]
            copy.length, copy.furthest = layer.length, layer.furthest
        return new
