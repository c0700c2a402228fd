"""What a run is trained on: its batches, its loss, and the batches it is evaluated on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gemma_np.training.losses import TopK, cross_entropy
from gemma_np.training.training_state import State


class Batch(NamedTuple):
    """Texts of equal length."""

    ids: np.ndarray  # [B, T + 1]: inputs and, shifted by one, targets
    loss_mask: np.ndarray | None = None  # bool [B, T], the targets whose loss counts; None: all of them
    teacher: TopK | None = None  # [B, T, k], the teacher's cached distribution for each target

    @property
    def num_targets(self) -> int:
        """Return the number of targets whose loss counts."""
        return int(self.loss_mask.sum()) if self.loss_mask is not None else self.ids[:, 1:].size

    def share(self, rank: int, size: int) -> "Batch":
        """Return the share of one of `size` processes: every size-th text, starting at the rank-th."""
        part = slice(rank, None, size)
        teacher = TopK(*(values[part] for values in self.teacher)) if self.teacher else None
        return Batch(self.ids[part], self.loss_mask[part] if self.loss_mask is not None else None, teacher)


Loss = Callable[[np.ndarray, Batch], tuple[np.ndarray, np.ndarray]]
"""(logits [B, T, V], batch) -> losses [B, T] and dlogits [B, T, V]."""

WeightView = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
"""weights -> the weights that the forward pass uses in their place."""


def next_token(logits: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of next-token prediction: -log P of each next token, in nats.

    logits [B, T, V] -> losses [B, T], dlogits [B, T, V]
    """
    return cross_entropy(logits, batch.ids[:, 1:])


def _same_weights(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(weights)


@dataclass(frozen=True)
class Task:
    """Batches, loss and evaluation of one run."""

    next_batch: Callable[[State], Batch]
    """Draws a batch with the state's random generator, so that a resumed run draws the batches of an uninterrupted one,
    and on-policy also with its weights."""
    loss: Loss = next_token
    validation: Sequence[Batch] = ()
    view_weights: WeightView = _same_weights
    """Returns the weights that the forward pass and the checkpoint use, as quantized or pruned ones. Their gradients go
    to the original weights unchanged (straight-through estimator: Bengio et al., arXiv 1308.3432)."""
    identity: Mapping[str, Any] = field(default_factory=dict)  # must not change when a run is resumed
