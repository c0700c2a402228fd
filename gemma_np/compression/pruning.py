"""Unstructured pruning: set single weights of the matrices to zero. The shapes do not change.

Sources: Han et al., arXiv 1506.02626 (magnitude); Sun et al., arXiv 2306.11695 (Wanda); Mishra et al., arXiv 2104.08378
(2:4 sparsity).
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from gemma_np.compression.calibration import INPUTS, InputGram, map_layers
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.weights.formats import Weight

PRUNING_METHODS = {
    "magnitude": "remove the smallest weights of each row",
    "wanda": "remove the smallest products of weight and RMS input in each row; needs calibration text",
}

Mask = Callable[[np.ndarray], np.ndarray]
"""scores [out, in] -> bool [out, in], the weights to keep."""


def keep_fraction(sparsity: float) -> Mask:
    """Return a mask that drops the fraction `sparsity` with the lowest scores from each row.

    Raises GemmaError unless the fraction is at least 0 and less than 1.
    """
    if not 0 <= sparsity < 1:
        raise GemmaError(f"sparsity: {sparsity}, expected 0 or more and less than 1")

    def keep(scores: np.ndarray) -> np.ndarray:
        mask = np.ones(scores.shape, bool)
        dropped = round(sparsity * scores.shape[1])
        if dropped:
            lowest = np.argpartition(scores, dropped - 1, axis=1)[:, :dropped]
            np.put_along_axis(mask, lowest, False, axis=1)
        return mask

    return keep


def two_of_four(scores: np.ndarray) -> np.ndarray:
    """Keep the two highest of every four consecutive scores, the pattern of sparse tensor cores.

    scores [out, in] -> bool [out, in]. Raises GemmaError when the number of channels is not a multiple of four.
    """
    if scores.shape[1] % 4:
        raise GemmaError(f"2:4: {scores.shape[1]} channels, expected a multiple of 4")
    fours = scores.reshape(len(scores), -1, 4)
    mask = np.zeros(fours.shape, bool)
    np.put_along_axis(mask, np.argsort(fours, axis=-1)[..., 2:], True, axis=-1)
    return mask.reshape(scores.shape)


def prune_weights(model: Gemma, keep: Mask, method: str, ids: np.ndarray | None = None) -> Iterator[tuple[str, Weight]]:
    """Return all weights by name, with the matrices of the layers pruned; the embedding is unchanged.

    ids [texts, T]: calibration data for Wanda. Raises GemmaError for an unknown method, for Wanda without ids, and for
    a matrix that the mask does not fit, by its name.
    """
    if method not in PRUNING_METHODS:
        raise GemmaError(f"method: {method!r}, expected one of {', '.join(PRUNING_METHODS)}")
    if method == "wanda" and ids is None:
        raise GemmaError("method wanda: needs calibration text")

    def prune_layer(layer: dict[str, np.ndarray], gram: InputGram) -> dict[str, Weight]:
        return {name: prune(name, weight, gram) for name, weight in layer.items()}

    def prune(name: str, weight: np.ndarray, gram: InputGram) -> np.ndarray:
        if weight.ndim == 1:
            return weight
        scores = np.abs(weight)
        if method == "wanda":
            scores = scores * np.sqrt(np.diagonal(gram[INPUTS[name]]))
        try:
            return np.where(keep(scores), weight, 0)
        except GemmaError as error:
            raise GemmaError(f"{name}: {error}") from None

    embedding = model.weights["model.embed_tokens.weight"]
    return map_layers(model, embedding, prune_layer, ids if method == "wanda" else None)


def keep_sparsity(pruned: Mapping[str, np.ndarray]) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return a weight view for a `Task` that keeps the zeros of `pruned` at zero."""
    masks = {name: weight != 0 for name, weight in pruned.items() if weight.ndim == 2 and "embed" not in name}
    return lambda weights: {name: weight * masks[name] if name in masks else weight for name, weight in weights.items()}
