"""The exercises on distillation: the loss and its gradient, the temperature, the k most likely tokens of a teacher."""

import numpy as np

from gemma_np.model.log_probs import log_softmax
from gemma_np.training.losses import TopK, forward_kl, reverse_kl, soft_cross_entropy, soft_cross_entropy_top_k
from support.exercise import Cases, Exercise

Result = tuple[np.ndarray, np.ndarray]


def _distill_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "one position": (draw((1, 6)), draw((1, 6))),
        "several positions": (draw((4, 6)), draw((4, 6))),
        "a batch of texts": (2 * draw((2, 4, 6)), 2 * draw((2, 4, 6))),
        "logits in the thousands": (1000 * draw((4, 6)), 1000 * draw((4, 6))),
        "float32": (draw((4, 6)).astype(np.float32), draw((4, 6)).astype(np.float32)),
    }


def _exchanged(logits: np.ndarray, teacher_logits: np.ndarray) -> Result:
    return soft_cross_entropy(teacher_logits, logits)[0], soft_cross_entropy(logits, teacher_logits)[1]


def _opposite_gradient(logits: np.ndarray, teacher_logits: np.ndarray) -> Result:
    losses, dlogits = soft_cross_entropy(logits, teacher_logits)
    return losses, -dlogits


def _mean_over_tokens(logits: np.ndarray, teacher_logits: np.ndarray) -> Result:
    losses, dlogits = soft_cross_entropy(logits, teacher_logits)
    return losses / logits.dtype.type(logits.shape[-1]), dlogits


def _one_hot(logits: np.ndarray, teacher_logits: np.ndarray) -> Result:
    hard = np.eye(logits.shape[-1], dtype=logits.dtype)[teacher_logits.argmax(axis=-1)]
    log_student = log_softmax(logits)
    return -np.vecdot(hard, log_student), np.exp(log_student) - hard


def _summed_over_positions(logits: np.ndarray, teacher_logits: np.ndarray) -> tuple[float, np.ndarray]:
    losses, dlogits = soft_cross_entropy(logits, teacher_logits)
    return float(losses.sum()), dlogits


def _gradient_of_log_probs(logits: np.ndarray, teacher_logits: np.ndarray) -> Result:
    losses, _ = soft_cross_entropy(logits, teacher_logits)
    return losses, -np.exp(log_softmax(teacher_logits))


def _opposite_loss(logits: np.ndarray, teacher_logits: np.ndarray) -> Result:
    losses, dlogits = soft_cross_entropy(logits, teacher_logits)
    return -losses, dlogits


def _teacher_weighs_by(weights: np.ndarray, logits: np.ndarray) -> Result:
    """Return the loss and its gradient with these weights instead of the teacher's probabilities."""
    log_student = log_softmax(logits)
    return -np.vecdot(weights, log_student), np.exp(log_student) - weights


DISTILL = Exercise(
    reference=soft_cross_entropy,
    cases=_distill_cases,
    mistakes={
        "teacher and student are swapped in the loss; the teacher's probabilities weight the student's logarithms": (
            _exchanged
        ),
        "the gradient has the wrong sign; it is the student's probabilities minus the teacher's": _opposite_gradient,
        "the mean over the vocabulary is taken; the loss is the sum": _mean_over_tokens,
        "the minus is missing; the loss is -sum P_T log P_S": _opposite_loss,
        "the student's logarithms are weighted by the teacher's logits; turn these into probabilities with softmax": (
            lambda logits, teacher_logits: _teacher_weighs_by(teacher_logits, logits)
        ),
        "the loss uses the teacher's logits as weights, the gradient does not; turn them into probabilities first": (
            lambda logits, teacher_logits: (
                -np.vecdot(teacher_logits, log_softmax(logits)),
                soft_cross_entropy(logits, teacher_logits)[1],
            )
        ),
        "the loss and its gradient are divided by V; the loss is a sum over the vocabulary, not a mean": (
            lambda logits, teacher_logits: (
                soft_cross_entropy(logits, teacher_logits)[0] / logits.dtype.type(logits.shape[-1]),
                soft_cross_entropy(logits, teacher_logits)[1] / logits.dtype.type(logits.shape[-1]),
            )
        ),
        "the weights are the logarithms of the teacher's probabilities; take np.exp of them": (
            lambda logits, teacher_logits: _teacher_weighs_by(log_softmax(teacher_logits), logits)
        ),
        "the gradient comes first; return the losses, then dlogits": lambda logits, teacher_logits: soft_cross_entropy(
            logits, teacher_logits
        )[::-1],
        "only the teacher's most likely token is used; use its whole distribution": _one_hot,
        "the teacher's entropy is subtracted, which gives the divergence; do not subtract it": forward_kl,
        "the losses of all positions are summed; return one per position": _summed_over_positions,
        "it is the gradient of the log-probabilities; softmax adds the student's probabilities": (
            _gradient_of_log_probs
        ),
    },
)


def _kl_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "temperature 1": (2 * draw((3, 6)), 2 * draw((3, 6)), 1.0),
        "temperature 2": (2 * draw((3, 6)), 2 * draw((3, 6)), 2.0),
        "temperature 0.5, a batch of texts": (2 * draw((2, 3, 6)), 2 * draw((2, 3, 6)), 0.5),
    }


def _softened_kl(logits: np.ndarray, teacher_logits: np.ndarray, temperature: float) -> np.ndarray:
    return temperature**2 * forward_kl(logits / temperature, teacher_logits / temperature)[0]


def _softened_probabilities(logits: np.ndarray, teacher_logits: np.ndarray, temperature: float) -> np.ndarray:
    student, teacher = (np.exp(log_softmax(z)) / temperature for z in (logits, teacher_logits))
    return temperature**2 * np.vecdot(teacher, np.log(teacher) - np.log(student))


def _softened_logarithms(logits: np.ndarray, teacher_logits: np.ndarray, temperature: float) -> np.ndarray:
    student, teacher = (log_softmax(z) / temperature for z in (logits, teacher_logits))
    return temperature**2 * np.vecdot(np.exp(teacher), teacher - student)


SOFTENED_KL = Exercise(
    reference=_softened_kl,
    cases=_kl_cases,
    mistakes={
        "the factor is missing; multiply by the square of the temperature": lambda logits, teacher, temperature: (
            _softened_kl(logits, teacher, temperature) / temperature**2
        ),
        "the factor is the temperature; it is its square": lambda logits, teacher, temperature: (
            _softened_kl(logits, teacher, temperature) / temperature
        ),
        "only the teacher is softened; divide the student's logits as well": lambda logits, teacher, temperature: (
            temperature**2 * forward_kl(logits, teacher / temperature)[0]
        ),
        "only the student is softened; divide the teacher's logits as well": lambda logits, teacher, temperature: (
            temperature**2 * forward_kl(logits / temperature, teacher)[0]
        ),
        "the logits are multiplied by the temperature; divide": lambda logits, teacher, temperature: (
            temperature**2 * forward_kl(logits * temperature, teacher * temperature)[0]
        ),
        "the probabilities are divided by the temperature; divide the logits": _softened_probabilities,
        "the temperature divides the log-probabilities; divide the logits": _softened_logarithms,
        "the sign is wrong; it is sum P_T (log P_T - log P_S)": lambda logits, teacher, temperature: (
            -_softened_kl(logits, teacher, temperature)
        ),
        "the mean over the vocabulary is taken; the divergence is the sum": lambda logits, teacher, temperature: (
            _softened_kl(logits, teacher, temperature) / logits.shape[-1]
        ),
        "it is the reverse divergence; weight by the teacher's probabilities": (
            lambda logits, teacher, temperature: (
                temperature**2 * reverse_kl(logits / temperature, teacher / temperature)[0]
            )
        ),
        "the teacher's entropy is left in; subtract it (log P_T - log P_S)": lambda logits, teacher, temperature: (
            soft_cross_entropy(logits, teacher, temperature)[0]
        ),
    },
)


def _top_k(generator: np.random.Generator, positions: int, V: int, k: int, rest: float) -> TopK:
    """Return k tokens at each position, with probabilities that sum to 1 - rest."""
    ids = np.stack([generator.permutation(V)[:k] for _ in range(positions)])
    weights = generator.random((positions, k)) + 0.1
    return TopK(ids, (1 - rest) * weights / weights.sum(axis=-1, keepdims=True))


def _sparse_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "k tokens with all of the probability": (draw((1, 8)), *_top_k(generator, 1, 8, 3, 0.0)),
        "k tokens that leave a rest": (draw((1, 8)), *_top_k(generator, 1, 8, 3, 0.3)),
        "several positions": (2 * draw((5, 8)), *_top_k(generator, 5, 8, 3, 0.2)),
    }


def _sparse_loss(logits: np.ndarray, top_ids: np.ndarray, top_probs: np.ndarray) -> np.ndarray:
    return soft_cross_entropy_top_k(logits, TopK(top_ids, top_probs))[0]


def _on_top(logits: np.ndarray, top_ids: np.ndarray) -> np.ndarray:
    return np.take_along_axis(log_softmax(logits), top_ids, axis=-1)


def _rest_dropped(logits: np.ndarray, top_ids: np.ndarray, top_probs: np.ndarray) -> np.ndarray:
    return -np.vecdot(top_probs, _on_top(logits, top_ids))


def _scaled_up(logits: np.ndarray, top_ids: np.ndarray, top_probs: np.ndarray) -> np.ndarray:
    return _rest_dropped(logits, top_ids, top_probs / top_probs.sum(axis=-1, keepdims=True))


def _rest_spread(logits: np.ndarray, top_ids: np.ndarray, top_probs: np.ndarray) -> np.ndarray:
    others = logits.shape[-1] - top_ids.shape[-1]
    log_student, on_top = log_softmax(logits), _on_top(logits, top_ids)
    rest = 1 - top_probs.sum(axis=-1)
    in_rest = log_student.sum(axis=-1) - on_top.sum(axis=-1)
    return -np.vecdot(top_probs, on_top) - rest * in_rest / others


def _student_among_k(logits: np.ndarray, top_ids: np.ndarray, top_probs: np.ndarray) -> np.ndarray:
    return -np.vecdot(top_probs, log_softmax(np.take_along_axis(logits, top_ids, axis=-1)))


SPARSE_LOSS = Exercise(
    reference=_sparse_loss,
    cases=_sparse_cases,
    mistakes={
        "the rest is dropped; it is one more outcome, with 1 minus the sum of the k probabilities": _rest_dropped,
        "the k probabilities are scaled up to 1; keep them, and count the rest as one more outcome": _scaled_up,
        "the rest is spread evenly over the other tokens; use the log of their summed probability": _rest_spread,
        "the minus is missing; the loss is -sum P_T log P_S": lambda logits, top_ids, top_probs: (
            -_sparse_loss(logits, top_ids, top_probs)
        ),
        "the student's softmax runs over the k tokens alone; it runs over the vocabulary": _student_among_k,
    },
)
