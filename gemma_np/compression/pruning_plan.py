"""A pruning plan, written as `layers=20,intermediate-size=6912,kv-heads=2` or `wanda=2:4`."""

from dataclasses import dataclass, replace

import numpy as np

from gemma_np.compression.pruning import keep_fraction, prune_weights, two_of_four
from gemma_np.compression.structured_pruning import (
    choose_layers,
    drop_layers,
    keep_channels,
    keep_groups,
    keep_layers,
    measure_importance,
)
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma

PARTS = {
    "layers": "number of layers to keep",
    "drop-layers": "layers to remove, as in drop-layers=3+7",
    "intermediate-size": "feed-forward channels to keep in each layer",
    "kv-heads": "key-value heads to keep in each layer, with their query heads",
    "magnitude": "fraction of the smallest weights to set to zero, or 2:4",
    "wanda": "the same, with weights ranked by weight times RMS input",
}


@dataclass(frozen=True)
class PruningPlan:
    """What to prune; a part that is None is not pruned."""

    layers: int | None = None
    drop_layers: tuple[int, ...] = ()
    intermediate_size: int | None = None
    kv_heads: int | None = None
    magnitude: float | str | None = None  # a fraction, or "2:4"
    wanda: float | str | None = None

    @property
    def needs_calibration(self) -> bool:
        """Return whether the plan needs calibration text."""
        return any(part is not None for part in (self.layers, self.intermediate_size, self.kv_heads, self.wanda))

    @property
    def leaves_zeros(self) -> bool:
        """Return whether the plan sets single weights to zero, which training must keep at zero."""
        return self.magnitude is not None or self.wanda is not None


def read_plan(text: str) -> PruningPlan:
    """Parse a plan such as `layers=20,intermediate-size=6912`. Raises GemmaError when it is not valid."""
    parts: dict[str, object] = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        if name not in PARTS or not value:
            raise GemmaError(f"{item!r}: expected NAME=VALUE with one of {', '.join(PARTS)}")
        try:
            if name == "drop-layers":
                parts["drop_layers"] = tuple(int(layer) for layer in value.split("+"))
            elif name in ("magnitude", "wanda"):
                parts[name] = value if value == "2:4" else float(value)
            else:
                parts[name.replace("-", "_")] = int(value)
        except ValueError:
            raise GemmaError(f"{name}: {value!r}, expected a number ({PARTS[name]})") from None
    return PruningPlan(**parts)  # type: ignore[arg-type]


def prune(model: Gemma, plan: PruningPlan, ids: np.ndarray | None) -> Gemma:
    """Return the pruned model: first whole parts, then single weights.

    ids [texts, T]: calibration data. Raises GemmaError for parts that do not exist, and when the ids are missing.
    """
    if plan.needs_calibration and ids is None:
        raise GemmaError("this plan needs calibration text")
    model = model.dequantized()
    if plan.drop_layers:
        model = drop_layers(model, plan.drop_layers)
    sizes = (plan.layers, plan.intermediate_size, plan.kv_heads)
    if ids is not None and any(size is not None for size in sizes):
        importance = measure_importance(model, ids)
        kept = choose_layers(
            importance.layers, model.config, model.config.num_hidden_layers if plan.layers is None else plan.layers
        )
        model = keep_layers(model, kept)
        if plan.intermediate_size is not None:
            model = keep_channels(model, importance.channels[kept], plan.intermediate_size)
        if plan.kv_heads is not None:
            model = keep_groups(model, importance.groups[kept], plan.kv_heads)
    for method, sparsity in (("magnitude", plan.magnitude), ("wanda", plan.wanda)):
        if sparsity is not None:
            keep = two_of_four if isinstance(sparsity, str) else keep_fraction(sparsity)
            model = replace(model, weights=dict(prune_weights(model, keep, method, ids)))
    return model
