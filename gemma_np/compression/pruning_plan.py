"""What is to be pruned, in one line: `layers=20,ffn=6912,kv-heads=2` or `wanda=2:4`."""

from dataclasses import dataclass

import numpy as np

from gemma_np.compression.pruning import prune_weights, share_of_row, two_of_four
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
    "layers": "how many layers to keep, the most important ones",
    "drop-layers": "which layers to drop, as in drop-layers=3+7",
    "ffn": "how many feed-forward channels each layer keeps",
    "kv-heads": "how many key-value heads, with their query heads, each layer keeps",
    "magnitude": "the share of the smallest weights to set to zero, or 2:4",
    "wanda": "the same, smallest by weight times typical input",
}


@dataclass(frozen=True)
class Plan:
    """What is to be pruned; what is None stays."""

    layers: int | None = None
    drop_layers: tuple[int, ...] = ()
    ffn: int | None = None
    kv_heads: int | None = None
    magnitude: float | str | None = None  # a share, or "2:4"
    wanda: float | str | None = None

    @property
    def needs_text(self) -> bool:
        """Whether something has to be measured on a text."""
        return any(part is not None for part in (self.layers, self.ffn, self.kv_heads, self.wanda))

    @property
    def leaves_zeros(self) -> bool:
        """Whether single weights are set to zero, and have to stay so."""
        return self.magnitude is not None or self.wanda is not None


def read_plan(text: str) -> Plan:
    """The plan that a text such as `layers=20,ffn=6912` describes. Raises GemmaError for what is no plan."""
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
    return Plan(**parts)  # type: ignore[arg-type]


def prune(model: Gemma, plan: Plan, ids: np.ndarray | None) -> Gemma:
    """The pruned model: whole parts first, single weights after them.

    ids [texts, T] show what is important. Raises GemmaError for parts that do not exist, and when ids are needed.
    """
    if plan.needs_text and ids is None:
        raise GemmaError("expected a text to tell what is important")
    model = model.dequantized()
    if plan.drop_layers:
        model = drop_layers(model, plan.drop_layers)
    if ids is not None and (plan.layers or plan.ffn or plan.kv_heads):
        importance = measure_importance(model, ids)
        kept = choose_layers(importance.layers, model.config, plan.layers or model.config.num_hidden_layers)
        model = keep_layers(model, kept)
        if plan.ffn:
            model = keep_channels(model, importance.channels[kept], plan.ffn)
        if plan.kv_heads:
            model = keep_groups(model, importance.groups[kept], plan.kv_heads)
    for method, share in (("magnitude", plan.magnitude), ("wanda", plan.wanda)):
        if share is not None:
            keep = two_of_four if isinstance(share, str) else share_of_row(share)
            model = Gemma(model.config, dict(prune_weights(model, keep, method, ids)), model.tokenizer)
    return model
