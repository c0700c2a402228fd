"""What a model is trained towards, each loss with its gradient.

Every loss here works position by position: it returns the loss of each, in nats, and the gradient of each position's
loss with respect to that position's logits. `mean` makes one number of them. All are stable for logits of any size,
since only differences of logits are ever exponentiated.

Source: Gemma 2 report, section 3 (Knowledge Distillation: minimise -sum_x P_T(x) log P_S(x)); Hinton et al., arXiv
1503.02531, for the temperature; Agarwal et al., arXiv 2306.13649, for the divergences between the two.
"""

import math
from typing import NamedTuple

import numpy as np


class TopK(NamedTuple):
    """What one can store of a teacher's distribution: its k likeliest tokens, the rest lumped together."""

    ids: np.ndarray  # [..., T, k]
    probs: np.ndarray  # [..., T, k], k < V; what they lack of 1 is the mass of the rest


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log of the softmax over the last axis: [..., V] -> [..., V]."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-log P(target): how surprised the model is by the token that really comes next.

    logits [..., T, V], targets [..., T] -> losses [..., T], dlogits [..., T, V]
    """
    log_probs = log_softmax(logits)
    at_target = targets[..., None]
    losses = -np.take_along_axis(log_probs, at_target, axis=-1)[..., 0]
    dlogits = np.exp(log_probs)
    np.put_along_axis(dlogits, at_target, np.take_along_axis(dlogits, at_target, axis=-1) - 1, axis=-1)
    return losses, dlogits


def distillation(
    logits: np.ndarray, teacher_logits: np.ndarray, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """-sum P_T log P_S, both softened by the temperature, times its square: the gradient of the softened loss shrinks
    with the square of the temperature, which the factor makes up for.

    logits and teacher_logits [..., T, V] -> losses [..., T], dlogits [..., T, V]
    """
    log_student = log_softmax(logits / temperature)
    teacher = np.exp(log_softmax(teacher_logits / temperature))
    losses = -(temperature**2) * np.vecdot(teacher, log_student)
    dlogits = temperature * (np.exp(log_student) - teacher)
    return losses, dlogits


def soft_cross_entropy_top_k(logits: np.ndarray, teacher: TopK) -> tuple[np.ndarray, np.ndarray]:
    """-sum P_T log P_S over the teacher's k likeliest tokens and one more outcome: any other token.

    logits [..., T, V], teacher ids and probs [..., T, k] -> losses [..., T], dlogits [..., T, V]
    """
    log_student = log_softmax(logits)
    student = np.exp(log_student)
    rest = np.maximum(1 - teacher.probs.sum(axis=-1, keepdims=True), 0)  # [..., T, 1]
    others = log_student.copy()
    np.put_along_axis(others, teacher.ids, -np.inf, axis=-1)
    log_rest = _log_sum_exp(others)

    on_top = np.take_along_axis(log_student, teacher.ids, axis=-1)
    losses = -np.vecdot(teacher.probs, on_top) - (rest * log_rest)[..., 0]
    # Of the others, each gets its share of the rest's mass: the student's own share of it.
    target = rest * np.exp(others - log_rest)
    np.put_along_axis(target, teacher.ids, teacher.probs, axis=-1)
    return losses, student - target


def forward_kl(logits: np.ndarray, teacher_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL(P_T || P_S) = sum P_T (log P_T - log P_S): distillation, less the teacher's entropy. It makes the student
    cover all that the teacher finds possible.

    logits and teacher_logits [..., T, V] -> losses [..., T], dlogits [..., T, V]
    """
    log_student, log_teacher = log_softmax(logits), log_softmax(teacher_logits)
    teacher = np.exp(log_teacher)
    return np.vecdot(teacher, log_teacher - log_student), np.exp(log_student) - teacher


def reverse_kl(logits: np.ndarray, teacher_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL(P_S || P_T) = sum P_S (log P_S - log P_T): it makes the student keep to what the teacher finds likely.

    logits and teacher_logits [..., T, V] -> losses [..., T], dlogits [..., T, V]
    """
    log_student, log_teacher = log_softmax(logits), log_softmax(teacher_logits)
    student = np.exp(log_student)
    difference = log_student - log_teacher
    losses = np.vecdot(student, difference)
    return losses, student * (difference - losses[..., None])


def jensen_shannon(logits: np.ndarray, teacher_logits: np.ndarray, beta: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """beta KL(P_T || M) + (1 - beta) KL(P_S || M) with M = beta P_T + (1 - beta) P_S, for beta between 0 and 1.

    Divided by beta it becomes the forward KL as beta goes to 0; divided by 1 - beta, the reverse KL as beta goes to 1.

    logits and teacher_logits [..., T, V] -> losses [..., T], dlogits [..., T, V]
    """
    log_student, log_teacher = log_softmax(logits), log_softmax(teacher_logits)
    student, teacher = np.exp(log_student), np.exp(log_teacher)
    log_mixture = np.logaddexp(log_teacher + math.log(beta), log_student + math.log1p(-beta))
    from_student = log_student - log_mixture
    losses = beta * np.vecdot(teacher, log_teacher - log_mixture) + (1 - beta) * np.vecdot(student, from_student)
    # d losses / d P_S is (1 - beta) * from_student: what M's share of it adds, cancels between the two terms.
    dstudent = (1 - beta) * from_student
    return losses, student * (dstudent - np.vecdot(student, dstudent)[..., None])


def mean(losses: np.ndarray, dlogits: np.ndarray, mask: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """The mean over the positions that the mask counts (default: all), and its gradient.

    losses [..., T], dlogits [..., T, V], mask bool [..., T] -> number, dlogits [..., T, V]
    """
    if mask is None:
        return float(losses.mean(dtype=np.float64)), dlogits / losses.size
    counted = max(int(mask.sum()), 1)
    total = float(losses.sum(where=mask, dtype=np.float64))
    return total / counted, np.where(mask[..., None], dlogits, 0) / counted


def _log_sum_exp(x: np.ndarray) -> np.ndarray:
    """log(sum(exp(x))) over the last axis, which stays, of length 1."""
    largest = x.max(axis=-1, keepdims=True)
    return np.log(np.exp(x - largest).sum(axis=-1, keepdims=True)) + largest
