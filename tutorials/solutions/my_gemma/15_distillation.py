"""my_gemma.py, tutorial 15."""

import numpy as np


def distillation_loss(logits, teacher_logits):
    """The mean over positions of -sum P_T log P_S, and its gradient: both [..., T, V] -> nats, dlogits [..., T, V]."""
    log_student, teacher = log_softmax(logits), np.exp(log_softmax(teacher_logits))
    count = logits[..., 0].size
    return -np.sum(teacher * log_student) / count, (np.exp(log_student) - teacher) / count
