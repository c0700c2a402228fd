"""Weight averaging: several models trained from one start, merged into one that is better than each.

Source: Gemma 2 report, section 4 (model merging); Ramé et al., arXiv 2406.16768.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from gemma_np.errors import GemmaError


def average(models: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The mean of every weight over the models, summed in float64.

    Raises GemmaError when the models have not the same weights of the same shapes.
    """
    first = models[0]
    for number, model in enumerate(models[1:], start=2):
        for name in first.keys() | model.keys():
            shapes = [weights[name].shape if name in weights else None for weights in (first, model)]
            if shapes[0] != shapes[1]:
                raise GemmaError(f"model {number}: {name}: shape {shapes[1]}, expected {shapes[0]} as in the first")
    return {
        name: np.mean([model[name] for model in models], axis=0, dtype=np.float64).astype(weight.dtype)
        for name, weight in first.items()
    }
