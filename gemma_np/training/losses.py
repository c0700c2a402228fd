"""Training losses, each with its gradient.

Every loss works position by position: it returns the loss at each position, in nats, and the gradient of that loss with
respect to the logits of the position. `masked_mean` averages them. All are stable for logits of any size, because only
differences of logits are exponentiated.

Source: Gemma 2 report, section 3 (Knowledge Distillation: minimize -sum_x P_T(x) log P_S(x)); Hinton et al., arXiv
1503.02531 (temperature); Agarwal et al., arXiv 2306.13649 (reverse KL, generalized Jensen-Shannon).
"""

import math
from typing import NamedTuple

import numpy as np

from gemma_np.model.log_probs import log_softmax, negative_log_likelihood


class TopK(NamedTuple):
    """The k most likely tokens of a teacher's distribution; all other tokens count as one outcome."""

    ids: np.ndarray  # [..., T, k]
    probs: np.ndarray  # [..., T, k], k < V; 1 minus their sum is the mass of the other tokens


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return -log P(target), the loss of next-token prediction.

    logits [..., T, V], targets [..., T] -> losses [..., T], dlogits [..., T, V]
    """
    losses = negative_log_likelihood(logits, targets).astype(logits.dtype)
    at_target = targets[..., None]
    dlogits = np.exp(log_softmax(logits))
    np.put_along_axis(dlogits, at_target, np.take_along_axis(dlogits, at_target, axis=-1) - 1, axis=-1)
    return losses, dlogits


def soft_cross_entropy(
    logits: np.ndarray, teacher_logits: np.ndarray, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cross-entropy -sum P_T log P_S against a teacher's distribution, the loss of distillation.

    Both distributions are softened by the temperature. The gradient of the softened loss shrinks with the square of the
    temperature, so the loss is multiplied by that square.

    logits and teacher_logits [..., T, V] -> losses [..., T], dlogits [..., T, V]
    """
    log_student = log_softmax(logits / temperature)
    teacher = np.exp(log_softmax(teacher_logits / temperature))
    losses = -(temperature**2) * np.vecdot(teacher, log_student)
    dlogits = temperature * (np.exp(log_student) - teacher)
    return losses, dlogits


def soft_cross_entropy_top_k(logits: np.ndarray, teacher: TopK) -> tuple[np.ndarray, np.ndarray]:
    """Return -sum P_T log P_S over the teacher's k most likely tokens and one outcome for all other tokens.

    logits [..., T, V] -> losses [..., T], dlogits [..., T, V]
    """
    log_student = log_softmax(logits)
    student = np.exp(log_student)
    rest = np.maximum(1 - teacher.probs.sum(axis=-1, keepdims=True), 0)  # [..., T, 1]
    others = log_student.copy()
    np.put_along_axis(others, teacher.ids, -np.inf, axis=-1)
    log_rest = _log_sum_exp(others)

    on_top = np.take_along_axis(log_student, teacher.ids, axis=-1)
    losses = -np.vecdot(teacher.probs, on_top) - (rest * log_rest)[..., 0]
    # The rest of the mass is shared among the other tokens in the student's own proportions.
    target = rest * np.exp(others - log_rest)
    np.put_along_axis(target, teacher.ids, teacher.probs, axis=-1)
    return losses, student - target


def forward_kl(logits: np.ndarray, teacher_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return KL(P_T || P_S) = sum P_T (log P_T - log P_S), the soft cross-entropy minus the teacher's entropy.

    It makes the student cover every token that the teacher finds possible.

    logits and teacher_logits [..., T, V] -> losses [..., T], dlogits [..., T, V]
    """
    log_student, log_teacher = log_softmax(logits), log_softmax(teacher_logits)
    teacher = np.exp(log_teacher)
    return np.vecdot(teacher, log_teacher - log_student), np.exp(log_student) - teacher


def reverse_kl(logits: np.ndarray, teacher_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return KL(P_S || P_T) = sum P_S (log P_S - log P_T).

    It keeps the student to tokens that the teacher finds likely.

    logits and teacher_logits [..., T, V] -> losses [..., T], dlogits [..., T, V]
    """
    log_student, log_teacher = log_softmax(logits), log_softmax(teacher_logits)
    student = np.exp(log_student)
    difference = log_student - log_teacher
    losses = np.vecdot(student, difference)
    return losses, student * (difference - losses[..., None])


def jensen_shannon(logits: np.ndarray, teacher_logits: np.ndarray, beta: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Return beta KL(P_T || M) + (1 - beta) KL(P_S || M) with M = beta P_T + (1 - beta) P_S, for 0 < beta < 1.

    Divided by beta it becomes the forward KL as beta goes to 0; divided by 1 - beta, the reverse KL as beta goes to 1.

    logits and teacher_logits [..., T, V] -> losses [..., T], dlogits [..., T, V]
    """
    log_student, log_teacher = log_softmax(logits), log_softmax(teacher_logits)
    student, teacher = np.exp(log_student), np.exp(log_teacher)
    log_mixture = np.logaddexp(log_teacher + math.log(beta), log_student + math.log1p(-beta))
    from_student = log_student - log_mixture
    losses = beta * np.vecdot(teacher, log_teacher - log_mixture) + (1 - beta) * np.vecdot(student, from_student)
    # d losses / d P_S is (1 - beta) * from_student: the terms that M adds cancel.
    dstudent = (1 - beta) * from_student
    return losses, student * (dstudent - np.vecdot(student, dstudent)[..., None])


def masked_mean(
    losses: np.ndarray, dlogits: np.ndarray, mask: np.ndarray | None = None, num_targets: int | None = None
) -> tuple[float, np.ndarray]:
    """Average the losses of the positions in the mask (default: all of them), and scale their gradient to match.

    num_targets: the number to divide by, when these positions are a part of a larger batch (default: their number).

    losses [..., T], dlogits [..., T, V], mask bool [..., T] -> nats, dlogits [..., T, V]
    """
    if mask is None:
        count = num_targets or losses.size
        return float(losses.sum(dtype=np.float64)) / count, dlogits / count
    count = num_targets or max(int(mask.sum()), 1)
    total = float(losses.sum(where=mask, dtype=np.float64))
    return total / count, np.where(mask[..., None], dlogits, 0) / count


def _log_sum_exp(x: np.ndarray) -> np.ndarray:
    """Return log(sum(exp(x))) over the last axis, which is kept with length 1."""
    largest = x.max(axis=-1, keepdims=True)
    return np.log(np.exp(x - largest).sum(axis=-1, keepdims=True)) + largest
