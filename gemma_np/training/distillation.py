"""Distillation: the student learns from all that its teacher finds possible, not from the one token that came.

Source: Gemma 2 report, section 3.1 and tables 6 and 7; Hinton et al., arXiv 1503.02531.
"""

from collections.abc import Mapping

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.model.transformer import output_logits, transformer
from gemma_np.training.losses import distillation
from gemma_np.training.trainer import Loss


def from_teacher(weights: Mapping[str, np.ndarray], config: GemmaConfig, temperature: float = 1.0) -> Loss:
    """The loss towards a live teacher: it reads the same texts as the student, and -sum P_T log P_S is minimised.

    Hand it to `train` in place of `next_token`; that is all there is to distillation.
    """

    def loss(logits: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        teacher_logits = output_logits(transformer(ids[:, :-1], weights, config), weights, config)
        return distillation(logits, teacher_logits, temperature)

    return loss


def check_vocabularies(teacher: bytes, student: bytes) -> None:
    """Raise a GemmaError unless both read the same tokens: a distribution over other ones would teach nothing."""
    if teacher != student:
        raise GemmaError("teacher: its tokenizer.model is another than the student's, expected the same vocabulary")
