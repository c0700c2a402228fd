"""Pruning: the cost of sparsity and methods without healing, on the bundled model and on the real Gemma 3 270M.

python tutorials/experiments/sparsity_and_methods.py
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from compressing import plot, run

from gemma_np import Gemma
from gemma_np.compression.pruning_plan import PruningPlan, prune

SPARSITIES = (0.25, 0.5)


def rows(model: Gemma, ids: np.ndarray) -> Iterator[tuple[str, str, Callable[[], Gemma]]]:
    """Yield the model pruned in every way."""
    config = model.config
    for sparsity in SPARSITIES:
        channels, layers = (
            round((1 - sparsity) * size) for size in (config.intermediate_size, config.num_hidden_layers)
        )
        for method, plan in {
            "magnitude": PruningPlan(magnitude=sparsity),
            "wanda": PruningPlan(wanda=sparsity),
            "channels": PruningPlan(intermediate_size=channels),
            "layers": PruningPlan(layers=layers),
        }.items():
            yield method, f"{sparsity:.0%}", partial(prune, model, plan, ids)
    for method, plan in {"magnitude": PruningPlan(magnitude="2:4"), "wanda": PruningPlan(wanda="2:4")}.items():
        yield method, "2:4", partial(prune, model, plan, ids)


plot("sparsity_and_methods", "Pruning: sparsity and methods", run("sparsity_and_methods", __doc__, rows))
