"""What the reader's file computes in training, compared with the reference: gradients, steps, distillation."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gemma_np.oracle.dump import shape_note
from gemma_np.oracle.gradient_diagnosis import describe_gradients, diagnose_gradients
from gemma_np.oracle.gradient_files import step_of
from gemma_np.training.losses import cross_entropy, masked_mean, soft_cross_entropy
from gemma_np.training.optimizer import clip_by_global_norm
from support.difference import FLOAT32_TOLERANCE, difference
from support.forward_checks import FOLDER, MODEL, SMALL, encode, reference_model
from support.reader_file import ReaderFile, Wrong, require_names, require_pair

TEXTS = ("To be, or not to be, that is the question.", "To die, to sleep; to sleep, perchance to dream.")
LEARNING_RATE = 1e-3

Arrays = dict[str, np.ndarray]


def check_gradients(file: ReaderFile) -> str:
    """Compare the loss and the gradients of the weights with those of a step of the reference."""
    ids = _texts()
    config, weights = file.load(FOLDER)
    loss, dlogits, gradients, logits = _step(file, ids, weights, config)
    expected = masked_mean(*cross_entropy(logits, ids[:, 1:]))
    for what, found, right in zip(("loss", "gradient"), (loss, dlogits), expected, strict=True):
        if said := difference(found, np.asarray(right, logits.dtype)):
            raise Wrong(f"cross_entropy, the {what}: {said}")
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
    """Take three training steps in float64, and compare each with AdamW on the reader's own gradients."""
    ids = _texts()
    config, weights = file.load(FOLDER)
    weights = {name: weight.astype(np.float64) for name, weight in weights.items()}
    state, right_state = ({"step": 0, "m": {}, "v": {}} for _ in range(2))
    for number in (1, 2, 3):
        before = {name: weight.copy() for name, weight in weights.items()}
        loss, _, gradients, _ = _step(file, ids, weights, config)

        def of_logits(logits: np.ndarray) -> Any:
            return file.cross_entropy(logits, ids[:, 1:])

        found = file.train_step(ids[:, :-1], of_logits, weights, config, state, LEARNING_RATE)
        if problem := _explained(before, weights, gradients, right_state):
            raise Wrong(f"step {number}: {problem}")
        if found is None or difference(found, np.asarray(loss)):
            raise Wrong(f"step {number}: train_step returns {found}, expected the loss before the step, {loss:.6g}")
        _adamw(before, gradients, right_state)
    return "step: right, three of them"


def check_distillation(file: ReaderFile) -> str:
    """Compare the loss against a teacher's logits, and its gradient, with the reference's."""
    ids = _texts()
    logits, teacher = (reference_model(name).logits(ids) for name in (SMALL, MODEL))
    found = file.distillation_loss(logits, teacher)
    require_pair("distillation_loss", found, "the loss and its gradient")
    instead = {
        "it is the sum; take the mean of all positions": (soft_cross_entropy(logits, teacher), 1),
        "student and teacher are exchanged: the sum is of P_T log P_S": (soft_cross_entropy(teacher, logits), 0),
        "only the teacher's most likely token counts; use its whole distribution": (
            cross_entropy(logits, teacher.argmax(axis=-1)),
            0,
        ),
    }
    expected = masked_mean(*soft_cross_entropy(logits, teacher))
    for part, what in enumerate(("loss", "gradient")):
        said = difference(found[part], np.asarray(expected[part]))
        for hint, (results, is_sum) in instead.items():
            mistaken = (results[0].sum(), results[1]) if is_sum else masked_mean(*results)
            if said and not difference(found[part], np.asarray(mistaken[part])):
                said = hint
        if said:
            raise Wrong(f"distillation, the {what}: {said}")
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
    "coupled": "weight decay is added to the gradient (L2); multiply the weight by 1 - learning_rate * weight_decay",
    "uncorrected": "the running means begin with zeros, which is not corrected; divide them by 1 - beta^step",
    "eps_inside": "eps is inside the square root; add it after",
    "unclipped": "the gradients are not clipped to a norm of 1",
    "ascent": "the step goes up the gradient; subtract it",
}
"""Mistakes of `_adamw`, by the names of its options."""


def _explained(before: Arrays, after: Arrays, gradients: Arrays, state: dict[str, Any]) -> str | None:
    """Say what is wrong with a step from the weights `before` to those `after`, or return None.

    state: that of the right steps before this one.
    """

    def first_wrong(*mistakes: str) -> str | None:
        expected = {name: weight.copy() for name, weight in before.items()}
        _adamw(expected, gradients, {**state, "m": {**state["m"]}, "v": {**state["v"]}}, *mistakes)
        changes = ((name, after[name] - weight, expected[name] - weight) for name, weight in before.items())
        limit = FLOAT32_TOLERANCE * LEARNING_RATE
        return next((name for name, found, right in changes if not np.abs(found - right).max() <= limit), None)

    wrong = first_wrong()
    if wrong is None:
        return None
    if all(np.array_equal(after[name], weight) for name, weight in before.items()):
        return "no weight has changed; train_step changes them in place"
    said = (words for mistake, words in MISTAKES.items() if first_wrong(mistake) is None)
    return next(said, f"{wrong} is not what clipping and AdamW make of your gradients")


def _adamw(weights: Arrays, gradients: Mapping[str, np.ndarray], state: dict[str, Any], *mistakes: str) -> None:
    """Clip the gradients and take a step, in place and in float64, with some of the mistakes above."""
    gradients = {name: np.array(gradient, np.float64) for name, gradient in gradients.items()}
    if "unclipped" not in mistakes:
        clip_by_global_norm(gradients, 1.0)
    state["step"] += 1
    corrections = (1, 1) if "uncorrected" in mistakes else (1 - 0.9 ** state["step"], 1 - 0.95 ** state["step"])
    for name, gradient in gradients.items():
        weight = weights[name]
        decays = weight.ndim > 1 or "norms_decay" in mistakes
        if decays and "coupled" in mistakes:
            gradient = gradient + 0.1 * weight
        elif decays and "no_decay" not in mistakes:
            weight *= 1 - 0.1 * LEARNING_RATE
        m = state["m"][name] = 0.9 * state["m"].get(name, 0) + 0.1 * gradient
        v = state["v"][name] = 0.95 * state["v"].get(name, 0) + 0.05 * gradient**2
        m, v = m / corrections[0], v / corrections[1]
        change = LEARNING_RATE * m / (np.sqrt(v + 1e-8) if "eps_inside" in mistakes else np.sqrt(v) + 1e-8)
        weight += change if "ascent" in mistakes else -change
