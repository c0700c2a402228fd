"""The exercises on pruning."""

from dataclasses import replace

import numpy as np

from gemma_np.compression.calibration import InputGram
from gemma_np.compression.pruning import two_of_four
from gemma_np.compression.structured_pruning import keep_channels
from gemma_np.gemma import Gemma, resolve_config
from support.exercise import Cases, Exercise


def _input_energy(inputs: np.ndarray) -> np.ndarray:
    """Return the sum of squares of each channel, as calibration computes it: [N, in] -> [in]."""
    gram = InputGram()
    gram("mlp.hidden", inputs)
    return np.diagonal(gram["mlp.hidden"])


def _wanda_cases(generator: np.random.Generator) -> Cases:
    draw = generator.standard_normal
    return {
        "one weight": (np.array([[0.5]]), np.array([[2.0]])),
        "negative weights": (-np.abs(draw((2, 5))), np.abs(draw((5, 5)))),
        "inputs of both signs": (draw((3, 6)), draw((6, 6))),
        "more inputs than channels": (draw((3, 4)), draw((9, 4))),
    }


def _wanda_scores(weight: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    return np.abs(weight) * np.sqrt(_input_energy(inputs))


def _norm_of_each_token(weight: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    return np.abs(weight) * np.linalg.norm(inputs, axis=1)[: weight.shape[1]]


def _summed(weight: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    return np.abs(weight * inputs.sum(axis=0))


WANDA = Exercise(
    reference=_wanda_scores,
    cases=_wanda_cases,
    mistakes={
        "the weights keep their signs; use np.abs": lambda weight, inputs: weight * np.sqrt(_input_energy(inputs)),
        "the mean of the squares is taken; each channel's norm is the root of their sum": lambda weight, inputs: (
            np.abs(weight) * np.sqrt(_input_energy(inputs) / len(inputs))
        ),
        "the inputs are squared and summed, but the root is missing": lambda weight, inputs: (
            np.abs(weight) * _input_energy(inputs)
        ),
        "the inputs are summed with their signs and cancel; take the root of the sum of squares": _summed,
        "it is the norm of each token; use that of each channel (axis=0)": _norm_of_each_token,
        "the inputs are not used; these are the scores of magnitude pruning": lambda weight, inputs: np.abs(weight),
    },
)


def _mask_cases(generator: np.random.Generator) -> Cases:
    draw = generator.random
    return {
        "four scores": (np.array([[0.1, 0.7, 0.4, 0.2]]),),
        "one row": (np.array([[0.1, 0.7, 0.4, 0.2, 9.0, 8.0, 7.0, 6.0]]),),
        "several rows": (draw((4, 16)),),
        "many": (draw((8, 64)),),
    }


def _half_of_the_row(scores: np.ndarray) -> np.ndarray:
    return scores.argsort(axis=1).argsort(axis=1) >= scores.shape[1] // 2


def _one_of_four(scores: np.ndarray) -> np.ndarray:
    fours = scores.reshape(len(scores), -1, 4)
    return (fours == fours.max(axis=-1, keepdims=True)).reshape(scores.shape)


def _far_apart(scores: np.ndarray) -> np.ndarray:
    quarters = scores.reshape(len(scores), 4, -1)
    return (quarters.argsort(axis=1).argsort(axis=1) >= 2).reshape(scores.shape)


def _argsort_as_rank(scores: np.ndarray) -> np.ndarray:
    return (scores.reshape(len(scores), -1, 4).argsort(axis=-1) >= 2).reshape(scores.shape)


TWO_OF_FOUR = Exercise(
    reference=two_of_four,
    cases=_mask_cases,
    mistakes={
        "the two lowest of each four are kept; keep the two highest": lambda scores: ~two_of_four(scores),
        "half of each row is kept, anywhere; keep two of each four neighbours": _half_of_the_row,
        "one of each four is kept; keep two": _one_of_four,
        "the four are a quarter of the row apart; four neighbours are the last axis of [out, in / 4, 4]": _far_apart,
        "argsort returns the index of each rank, not the rank of each index; apply it twice": _argsort_as_rank,
    },
)

Matrices = tuple[np.ndarray, np.ndarray, np.ndarray]
"""gate and up [keep, D], down [D, keep]."""


def _channel_cases(generator: np.random.Generator) -> Cases:
    def case(
        channels: int, width: int, tokens: int, keep: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
        gate, up = generator.standard_normal((2, channels, width))
        down, hidden = generator.standard_normal((width, channels)), generator.standard_normal((tokens, channels))
        return gate, up, down * generator.uniform(0.1, 3, channels), hidden * generator.uniform(0.1, 3, channels), keep

    return {
        "all channels": case(4, 3, 5, 4),
        "one channel": case(6, 3, 5, 1),
        "half of the channels": case(12, 5, 7, 6),
        "as many channels as the width": case(8, 8, 9, 5),
    }


def _importance(down: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    return _input_energy(hidden) * np.square(down).sum(axis=0)


def _keep_by(importance: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray, keep: int) -> Matrices:
    """Return what `keep_channels` keeps of a model of one layer with these matrices."""
    bundled = resolve_config("shakespeare-1m")
    config = replace(
        bundled,
        num_hidden_layers=1,
        layer_types=bundled.layer_types[:1],
        hidden_size=gate.shape[1],
        intermediate_size=len(gate),
    )
    weights = {name: np.zeros(shape) for name, shape in config.weight_shapes()}
    names = [f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    weights |= dict(zip(names, (gate, up, down), strict=True))
    kept = keep_channels(Gemma(config, weights, None), importance[None], keep).weights
    return kept[names[0]], kept[names[1]], kept[names[2]]


def _keep_important(gate: np.ndarray, up: np.ndarray, down: np.ndarray, hidden: np.ndarray, keep: int) -> Matrices:
    return _keep_by(_importance(down, hidden), gate, up, down, keep)


def _by_hidden_alone(gate: np.ndarray, up: np.ndarray, down: np.ndarray, hidden: np.ndarray, keep: int) -> Matrices:
    return _keep_by(_input_energy(hidden), gate, up, down, keep)


def _by_down_alone(gate: np.ndarray, up: np.ndarray, down: np.ndarray, hidden: np.ndarray, keep: int) -> Matrices:
    return _keep_by(np.square(down).sum(axis=0), gate, up, down, keep)


def _least_important(gate: np.ndarray, up: np.ndarray, down: np.ndarray, hidden: np.ndarray, keep: int) -> Matrices:
    return _keep_by(-_importance(down, hidden), gate, up, down, keep)


def _by_rank(gate: np.ndarray, up: np.ndarray, down: np.ndarray, hidden: np.ndarray, keep: int) -> Matrices:
    chosen = np.argsort(-_importance(down, hidden))[:keep]
    return gate[chosen], up[chosen], down[:, chosen]


def _each_on_its_own(gate: np.ndarray, up: np.ndarray, down: np.ndarray, hidden: np.ndarray, keep: int) -> Matrices:
    sizes = (np.square(gate).sum(axis=1), np.square(up).sum(axis=1), np.square(down).sum(axis=0))
    first, second, third = (np.sort(np.argsort(-size)[:keep]) for size in sizes)
    return gate[first], up[second], down[:, third]


def _rows_of_down(gate: np.ndarray, up: np.ndarray, down: np.ndarray, hidden: np.ndarray, keep: int) -> Matrices:
    gate, up, _ = _keep_important(gate, up, down, hidden, keep)
    return gate, up, down[:keep]


KEEP_CHANNELS = Exercise(
    reference=_keep_important,
    cases=_channel_cases,
    mistakes={
        "the least important channels are kept; sort the other way": _least_important,
        "the columns of down are not used; multiply by the sum of their squares": _by_hidden_alone,
        "hidden is not used; multiply by the sum of its squares over the tokens": _by_down_alone,
        "the channels are in the order of their importance; sort the kept indices": _by_rank,
        "each matrix keeps other channels, which no longer match; choose once for all three": _each_on_its_own,
        "rows of down were removed; its channels are its columns, down[:, chosen]": _rows_of_down,
    },
)
