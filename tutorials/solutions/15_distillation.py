"""Solutions of tutorial 15."""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def distill(logits: np.ndarray, teacher_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    log_student, teacher = log_softmax(logits), np.exp(log_softmax(teacher_logits))
    return -np.sum(teacher * log_student, axis=-1), np.exp(log_student) - teacher


def softened_kl(logits: np.ndarray, teacher_logits: np.ndarray, temperature: float) -> np.ndarray:
    log_student, log_teacher = log_softmax(logits / temperature), log_softmax(teacher_logits / temperature)
    return temperature**2 * np.sum(np.exp(log_teacher) * (log_teacher - log_student), axis=-1)


def sparse_loss(logits: np.ndarray, top_ids: np.ndarray, top_probs: np.ndarray) -> np.ndarray:
    log_top = np.take_along_axis(log_softmax(logits), top_ids, axis=-1)
    student_rest = 1 - np.exp(log_top).sum(axis=-1)
    teacher_rest = 1 - top_probs.sum(axis=-1)
    return -np.sum(top_probs * log_top, axis=-1) - teacher_rest * np.log(student_rest)
