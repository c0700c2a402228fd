"""Propose the next tokens of a text, for `speculation.py` to verify: a model does, or the text itself.

Source: Leviathan et al., arXiv 2211.17192 (a smaller model); Yang et al., arXiv 2304.04487 (copies from the text).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gemma_np.config import GemmaConfig
from gemma_np.model.kv_cache import KVCache
from gemma_np.text.generation import next_logits
from gemma_np.text.sampling import Sampling, draw
from gemma_np.weights.formats import Weights


class DraftModel(Protocol):
    """A model of the same vocabulary, such as a smaller `Gemma`."""

    weights: Weights
    config: GemmaConfig


Draft = DraftModel | Literal["lookup"]
"""What proposes tokens: a model, or "lookup", which copies from the text and needs no model."""


class Proposals(NamedTuple):
    """Proposed tokens, and the distribution that each was drawn from."""

    ids: list[int]
    probs: list[np.ndarray]  # float64 [V] each


class Drafter(Protocol):
    """A draft at work on one text."""

    def propose(self, text: Sequence[int], count: int) -> Proposals:
        """Propose up to `count` tokens after a text, which continues that of the call before."""


class ModelDrafter:
    """Samples tokens from a model, in the same way as they are sampled from the model that verifies them."""

    def __init__(
        self,
        model: DraftModel,
        sampling: Sampling,
        generator: np.random.Generator,
        *,
        length: int,
        most: int,
        int8_cache: bool = False,
    ) -> None:
        """Allocate a cache for a text of `length` tokens and up to `most` proposals at once.

        Beyond the context length of the model, and after a token that it does not have, there are no proposals.
        """
        self.model, self.sampling, self.generator = model, sampling, generator
        room, dtype = min(length, model.config.max_position_embeddings), model.weights["model.norm.weight"].dtype
        self.cache = KVCache(model.config, room, dtype=dtype, int8=int8_cache, spare=most)

    def propose(self, text: Sequence[int], count: int) -> Proposals:
        """Sample up to `count` tokens after a text, one after another."""
        model, cache, proposals = self.model, self.cache, Proposals([], [])
        cache.rewind(min(cache.length, len(text) - 1))  # the last token of the text is always new
        unread = text[cache.length :]
        can_read = max(unread) < model.config.vocab_size
        for _ in range(min(count, cache.max_length - len(text) + 1) if can_read else 0):
            logits = next_logits(unread, model.weights, model.config, cache)
            probs = self.sampling.probs(logits, [*text, *proposals.ids])
            token = draw(probs, self.generator)
            proposals.ids.append(token)
            proposals.probs.append(probs)
            unread = [token]
        return proposals


class LookupDrafter:
    """Looks up where the last tokens occurred before, and copies what followed them (prompt lookup)."""

    def __init__(self, vocab_size: int, longest: int = 3) -> None:
        """Look up the last `longest` tokens; if these never occurred before, fewer of them."""
        self.vocab_size, self.longest = vocab_size, longest

    def propose(self, text: Sequence[int], count: int) -> Proposals:
        """Copy `count` tokens, or none if the last token of the text never occurred before.

        A copy that reaches the end of the text continues with its own beginning.
        """
        start = self._start_of_copy(np.asarray(text))
        if start is None:
            return Proposals([], [])
        ids = [text[start + i % (len(text) - start)] for i in range(count)]
        probs = np.zeros((count, self.vocab_size))
        probs[np.arange(count), ids] = 1
        return Proposals(ids, list(probs))

    def _start_of_copy(self, text: np.ndarray) -> int | None:
        """Return the position after the latest earlier occurrence of the last tokens of a text [T]."""
        for n in range(min(self.longest, len(text) - 1), 0, -1):
            found = np.flatnonzero((sliding_window_view(text[:-1], n) == text[-n:]).all(axis=-1))
            if found.size:
                return int(found[-1]) + n
        return None
