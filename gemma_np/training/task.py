"""What a training run learns: the texts it draws, the loss on them, and the texts it is measured on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gemma_np.training.losses import TopK, cross_entropy
from gemma_np.training.training_state import State


class Batch(NamedTuple):
    """Texts of equal length."""

    ids: np.ndarray  # [B, T + 1]: what is read and, one further on, what is to be predicted
    counted: np.ndarray | None = None  # bool [B, T], the positions whose loss counts; None: all of them
    teacher: TopK | None = None  # [B, T, k], what a teacher expected there, where that was stored

    @property
    def positions(self) -> int:
        """How many positions count."""
        return int(self.counted.sum()) if self.counted is not None else self.ids[:, 1:].size

    def share(self, rank: int, size: int) -> "Batch":
        """Every size-th text, from the rank-th on: what one of `size` processes works on."""
        part = slice(rank, None, size)
        teacher = TopK(*(values[part] for values in self.teacher)) if self.teacher else None
        return Batch(self.ids[part], self.counted[part] if self.counted is not None else None, teacher)


Loss = Callable[[np.ndarray, Batch], tuple[np.ndarray, np.ndarray]]
"""(logits [B, T, V], batch) -> losses [B, T] and dlogits [B, T, V]."""


def next_token(logits: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The loss of training from scratch: -log P of each next token.

    logits [B, T, V] -> losses [B, T], dlogits [B, T, V]
    """
    return cross_entropy(logits, batch.ids[:, 1:])


@dataclass(frozen=True)
class Task:
    """Drawing may use the state's generator, so that a resumed run draws what an uninterrupted one would, and its
    weights, when a student writes the texts it learns from."""

    draw: Callable[[State], Batch]
    loss: Loss = next_token
    validation: Sequence[Batch] = ()
    seen: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda weights: weights
    """What the forward pass, and the checkpoint, see of the weights: quantized or pruned ones. Their gradients go to
    the weights behind them as they are (straight through: Bengio et al., arXiv 1308.3432)."""
    about: Mapping[str, Any] = field(default_factory=dict)  # what a run may not change when it is resumed
