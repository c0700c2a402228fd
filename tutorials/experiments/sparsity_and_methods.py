"""Pruning: how much goes and by which method, on the bundled model and on the real Gemma 3 270M, nothing healed.

python tutorials/experiments/sparsity_and_methods.py texts/
"""

from collections.abc import Iterator

import numpy as np
from compressing import plot, run

from gemma_np import Gemma
from gemma_np.compression.plan import Plan, prune

SHARES = (0.1, 0.25, 0.5)


def rows(model: Gemma, ids: np.ndarray) -> Iterator[tuple[str, str, Gemma]]:
    """The model, pruned in every way."""
    config = model.config
    for share in SHARES:
        for method in ("magnitude", "wanda"):
            yield method, f"{share:.0%}", prune(model, Plan(**{method: share}), ids)
        channels, layers = (round((1 - share) * size) for size in (config.intermediate_size, config.num_hidden_layers))
        yield "channels", f"{share:.0%}", prune(model, Plan(ffn=channels), ids)
        yield "layers", f"{share:.0%}", prune(model, Plan(layers=layers), ids)
    for method in ("magnitude", "wanda"):
        yield method, "2:4", prune(model, Plan(**{method: "2:4"}), ids)


plot("sparsity_and_methods", "Pruned: shares and methods", run("sparsity_and_methods", __doc__, rows))
