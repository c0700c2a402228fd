"""What the reader's file computes in training, compared with the reference: gradients, steps, distillation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemma_np.oracle.dump import shape_note
from gemma_np.oracle.gradient_diagnosis import describe_gradients, diagnose_gradients
from gemma_np.oracle.gradient_files import step_of
from gemma_np.training.losses import cross_entropy, masked_mean, soft_cross_entropy
from gemma_np.training.optimizer import clip_by_global_norm
from support.difference import FLOAT32_TOLERANCE, difference
from support.forward_checks import FOLDER, MODEL, SMALL, encode, reference_model
from support.function_checks import backward_cases, check_functions, judge
from support.reader_file import ReaderFile, Wrong, require_names, require_pair

TEXTS = ("To be, or not to be, that is the question.", "To die, to sleep; to sleep, perchance to dream.")
LEARNING_RATE = 1e-3

Arrays = dict[str, np.ndarray]


def check_gradients(file: ReaderFile) -> str:
    """Compare the parts of the backward pass, then loss and gradients of a step, with the reference."""
    check_functions(file, backward_cases())
    ids = _texts()
    config, weights = file.load(FOLDER)
    loss, _, gradients, _ = _step(file, ids, weights, config)
    require_names("gemma_backward", gradients, weights)
    for name, weight in weights.items():
        if np.shape(gradients[name]) != weight.shape:
            raise Wrong(f"gemma_backward: {name}: {shape_note(np.shape(gradients[name]), weight.shape)}")
    step = step_of(reference_model(), ids.tolist())
    diagnosis = diagnose_gradients(step, {"loss": np.asarray(loss), **gradients}, "float32")
    if diagnosis.excess:
        lines = describe_gradients(diagnosis._replace(blind_spots=[]))
        shown = [line for line in lines if not line.startswith("  ")]
        raise Wrong("\n".join([shown[0], *lines[1:4], *shown[1:]] if len(lines) > 4 else lines))
    return f"gradients: right, all {len(gradients)}"


def check_step(file: ReaderFile) -> str:
    """Try `clip`, then take three training steps in float64, each compared with AdamW on the reader's gradients."""
    _check_clip(file)
    ids = _texts()
    config, weights = file.load(FOLDER)
    weights = {name: weight.astype(np.float64) for name, weight in weights.items()}
    state: dict[str, Any] = {"step": 0, "m": {}, "v": {}}
    history: list[tuple[Arrays, Arrays]] = []
    for number in (1, 2, 3):
        before = {name: weight.copy() for name, weight in weights.items()}
        loss, _, gradients, _ = _step(file, ids, weights, config)
        history.append((before, gradients))

        def of_logits(logits: np.ndarray) -> Any:
            return file.cross_entropy(logits, ids[:, 1:])

        found = file.train_step(ids[:, :-1], of_logits, weights, config, state, LEARNING_RATE)
        if problem := _explained(history, weights):
            raise Wrong(f"step {number}: {problem}")
        if found is None or difference(found, np.asarray(loss)):
            raise Wrong(f"step {number}: train_step returns {found}, expected the loss before the step, {loss:.6g}")
    return "step: right, three of them"


def _check_clip(file: ReaderFile, max_norm: float = 1.0) -> None:
    """Clip gradients that are longer than the limit, and some that are shorter, which stay as they are."""
    for length in (6.5, 0.5):
        before = np.array([3, 4, 12]) * length / 13
        gradients = {"a": before[:2].copy(), "b": before[2:, None].copy()}
        file.clip(gradients, max_norm)
        found = np.concatenate([gradients["a"], gradients["b"][0]])
        own_norms = np.array([np.linalg.norm(before[:2])] * 2 + [before[2]])
        mistakes = {
            "nothing is scaled in place": [before],
            "each gradient is clipped alone; scale all by one factor": [before / np.maximum(own_norms, max_norm)],
            "they are scaled though they are short enough; only longer ones change": [before / length * max_norm],
        }
        expected = {"": before * min(1, max_norm / length)}
        judge(f"clip of gradients of length {length} to {max_norm:g}", [found], expected, mistakes)


def check_distillation(file: ReaderFile) -> str:
    """Compare the loss against a teacher's logits, and its gradient, with the reference's."""
    ids = _texts()
    logits, teacher = (reference_model(name).logits(ids) for name in (SMALL, MODEL))
    found = file.distillation_loss(logits, teacher)
    require_pair("distillation_loss", found, "the loss and its gradient")
    right = masked_mean(*soft_cross_entropy(logits, teacher))
    losses, slopes = soft_cross_entropy(logits, teacher)
    entropies, _ = soft_cross_entropy(teacher, teacher)
    mistakes = {
        "it is the sum; take the mean of all positions": (losses.sum(), slopes),
        "it is the KL divergence, -sum P_T (log P_S - log P_T); take the cross-entropy, -sum P_T log P_S": (
            right[0] - entropies.mean(),
            None,
        ),
        "it is minus the gradient; take P_S - P_T": (None, -right[1]),
        "student and teacher are exchanged: the sum is of P_T log P_S": masked_mean(
            *soft_cross_entropy(teacher, logits)
        ),
        "only the teacher's most likely token counts; use its whole distribution": masked_mean(
            *cross_entropy(logits, teacher.argmax(axis=-1))
        ),
    }
    judge("distillation_loss", found, dict(zip(("the loss", "the gradient"), right, strict=True)), mistakes)
    return "distillation: right, loss and gradient"


def _texts() -> np.ndarray:
    """Return texts of equal length: ids [B, T + 1]."""
    encoded = [encode(text) for text in TEXTS]
    return np.array([ids[: min(map(len, encoded))] for ids in encoded])


def _step(file: ReaderFile, ids: np.ndarray, weights: Any, config: Any) -> tuple[Any, Any, Any, np.ndarray]:
    """Return what the reader's functions make of ids [B, T + 1]: loss, dlogits, gradients and logits."""
    record: Arrays = {}

    def tape(name: str, value: np.ndarray) -> np.ndarray:
        record[name] = value
        return value

    logits = file.gemma(ids[:, :-1], weights, config, None, tape)
    found = file.cross_entropy(logits, ids[:, 1:])
    require_pair("cross_entropy", found, "the loss and its gradient")
    return *found, file.gemma_backward(found[1], ids[:, :-1], weights, config, record), logits


MISTAKES = {
    "norms_decay": "weight decay shrinks the vectors of the norms, too; it is for matrices",
    "no_decay": "there is no weight decay; multiply each matrix by 1 - learning_rate * weight_decay",
    "l2 no_decay": "weight decay is added to the gradient (L2); "
    "multiply the weight by 1 - learning_rate * weight_decay",
    "l2": "weight decay is in the gradient (L2), too; only multiply the weight by 1 - learning_rate * weight_decay",
    "m_uncorrected v_uncorrected": "the running means begin with zeros, which is not corrected; "
    "divide them by 1 - beta^step",
    "m_uncorrected": "the running mean m is not corrected for its zeros at the start; divide it by 1 - beta1^step",
    "v_uncorrected": "the running mean v is not corrected for its zeros at the start; divide it by 1 - beta2^step",
    "m_swapped": "m is (1 - beta1) m + beta1 gradient; exchange beta1 and 1 - beta1",
    "v_swapped": "v is (1 - beta2) v + beta2 gradient^2; exchange beta2 and 1 - beta2",
    "m_swapped v_swapped": "beta and 1 - beta are exchanged in both running means; beta is the part that stays",
    "betas_exchanged": "beta1 and beta2 are exchanged; beta1 is for the gradient, beta2 for its square",
    "eps_inside": "eps is inside the square root; add it after",
    "unclipped": "the gradients are not clipped to a norm of 1",
    "ascent": "the step goes up the gradient; subtract it",
}
"""Mistakes of `_adamw`, one or several, by the names of its options. Some show from the second step on."""


def _explained(history: Sequence[tuple[Arrays, Arrays]], after: Arrays) -> str | None:
    """Say what is wrong with the last step, or return None.

    history: of each step, the weights before it and the gradients. after: the weights after the last one.
    """
    before = history[-1][0]

    def first_wrong(*mistakes: str) -> str | None:
        state: dict[str, Any] = {"step": 0, "m": {}, "v": {}}
        for weights, gradients in history:
            expected = {name: weight.copy() for name, weight in weights.items()}
            _adamw(expected, gradients, state, *mistakes)
        changes = ((name, after[name] - weight, expected[name] - weight) for name, weight in before.items())
        limit = FLOAT32_TOLERANCE * LEARNING_RATE
        return next((name for name, found, right in changes if not np.abs(found - right).max() <= limit), None)

    wrong = first_wrong()
    if wrong is None:
        return None
    if all(np.array_equal(after[name], weight) for name, weight in before.items()):
        return "no weight has changed; train_step changes them in place"
    said = (words for mistake, words in MISTAKES.items() if first_wrong(*mistake.split()) is None)
    return next(said, f"{wrong} is not what clipping and AdamW make of your gradients")


def _adamw(weights: Arrays, gradients: Mapping[str, np.ndarray], state: dict[str, Any], *mistakes: str) -> None:
    """Clip the gradients and take a step, in place and in float64, with some of the mistakes above."""
    gradients = {name: np.array(gradient, np.float64) for name, gradient in gradients.items()}
    if "unclipped" not in mistakes:
        clip_by_global_norm(gradients, 1.0)
    state["step"] += 1
    beta1, beta2 = (0.95, 0.9) if "betas_exchanged" in mistakes else (0.9, 0.95)
    for name, gradient in gradients.items():
        weight = weights[name]
        decays = weight.ndim > 1 or "norms_decay" in mistakes
        if decays and "l2" in mistakes:
            gradient = gradient + 0.1 * weight
        if decays and "no_decay" not in mistakes:
            weight *= 1 - 0.1 * LEARNING_RATE
        means = []
        for key, value, beta in (("m", gradient, beta1), ("v", gradient**2, beta2)):
            stays = 1 - beta if f"{key}_swapped" in mistakes else beta
            mean = state[key][name] = stays * state[key].get(name, 0) + (1 - stays) * value
            means.append(mean if f"{key}_uncorrected" in mistakes else mean / (1 - beta ** state["step"]))
        m, v = means
        change = LEARNING_RATE * m / (np.sqrt(v + 1e-8) if "eps_inside" in mistakes else np.sqrt(v) + 1e-8)
        weight += change if "ascent" in mistakes else -change
