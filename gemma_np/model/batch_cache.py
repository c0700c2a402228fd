"""The caches of several texts side by side, for a batch of texts of different lengths.

The products with weights take the whole batch at once; attention takes each text alone, with its own cache.

Source: Yu et al., Orca, OSDI 2022 (selective batching).
"""

from collections.abc import Sequence

from gemma_np.model.kv_cache import KVCache


class BatchCache:
    """The caches of B texts. A call of `transformer` reads T more tokens of each, after those in its own cache."""

    def __init__(self, caches: Sequence[KVCache]) -> None:
        """Put caches side by side; they are of one config and one dtype, and each is of one text."""
        self.caches = caches
        self.batch, self.dtype = (len(caches),), caches[0].dtype
        self.layers = list(zip(*(cache.layers for cache in caches), strict=True))  # of each layer, B caches

    @property
    def fullest(self) -> KVCache:
        """Return the cache that has room for the fewest tokens."""
        return min(self.caches, key=lambda cache: cache.max_length - cache.length)

    @property
    def length(self) -> int:
        """Return the number of tokens in the fullest cache."""
        return self.fullest.length

    @property
    def max_length(self) -> int:
        """Return the number of tokens that the fullest cache has room for."""
        return self.fullest.max_length
