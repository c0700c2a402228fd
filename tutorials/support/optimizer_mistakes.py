"""AdamW with its textbook mistakes: what a training step of the reader's did instead."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gemma_np.training.optimizer import clip_by_global_norm
from support.difference import TOLERANCE

Arrays = dict[str, np.ndarray]
State = dict[str, Any]
"""The number of steps as `step`, and the running means as `m` and `v`."""


def adamw_step(
    weights: Arrays, gradients: Mapping[str, np.ndarray], state: State, learning_rate: float, **mistakes: bool
) -> None:
    """Clip the gradients to a norm of 1 and take a step, in place, with mistakes that are turned on by their names."""
    clipped = {name: gradient.astype(np.float64) for name, gradient in gradients.items()}
    if not mistakes.get("unclipped"):
        clip_by_global_norm(clipped, 1.0)
    state["step"] += 1
    corrections = (1 - 0.9 ** state["step"], 1 - 0.95 ** state["step"])
    if mistakes.get("uncorrected"):
        corrections = (1, 1)
    for name, gradient in clipped.items():
        weight = weights[name]
        decays = (weight.ndim > 1 or mistakes.get("norms_decay")) and not mistakes.get("no_decay")
        if decays and mistakes.get("coupled"):
            gradient = gradient + 0.1 * weight
        m = state["m"][name] = 0.9 * state["m"].get(name, 0) + 0.1 * gradient
        v = state["v"][name] = 0.95 * state["v"].get(name, 0) + 0.05 * gradient**2
        m, v = m / corrections[0], v / corrections[1]
        if decays and not mistakes.get("coupled"):
            weight *= 1 - learning_rate * 0.1
        size = np.sqrt(v + 1e-8) if mistakes.get("eps_inside") else np.sqrt(v) + 1e-8
        weight += (learning_rate if mistakes.get("ascent") else -learning_rate) * m / size


MISTAKES = {
    "norms_decay": "weight decay shrinks the vectors of the norms, too; it is for matrices",
    "no_decay": "there is no weight decay; multiply each matrix by 1 - learning_rate * weight_decay",
    "coupled": "weight decay is added to the gradient (Adam with L2); multiply the weight by 1 - learning_rate * "
    "weight_decay instead",
    "uncorrected": "the running means begin at zero and are not corrected; divide them by 1 - beta^step",
    "eps_inside": "eps is inside the square root; add it after",
    "unclipped": "the gradients are not clipped to a norm of 1",
    "ascent": "the step goes up the gradient; subtract it",
}
"""name of a mistake -> what it is, in words."""


def explain_step(
    before: Arrays, after: Arrays, gradients: Mapping[str, np.ndarray], state: State, learning_rate: float
) -> str | None:
    """Say what is wrong with a step from the weights `before` to those `after`, or return None.

    state: that of the right steps before this one; it is left as it is.
    """

    def first_difference(**mistakes: bool) -> str | None:
        expected = {name: weight.astype(np.float64) for name, weight in before.items()}
        adamw_step(expected, gradients, {**state, "m": {**state["m"]}, "v": {**state["v"]}}, learning_rate, **mistakes)
        for name, right in expected.items():
            error = np.abs(after[name] - right).max()
            if not error <= TOLERANCE["float32"] * max(learning_rate, np.abs(right - before[name]).max()):
                return name
        return None

    wrong = first_difference()
    if wrong is None:
        return None
    hint = next((said for mistake, said in MISTAKES.items() if first_difference(**{mistake: True}) is None), None)
    if all(np.array_equal(before[name], after[name]) for name in before):
        hint = "no weight has changed; update them in place"
    return hint or f"{wrong} is not what clip and AdamW make of your gradients"
