"""An operation: one record of a run, with everything that it is computed from."""

import re
from collections.abc import Mapping

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.block import pre_feedforward_name
from gemma_np.oracle.trace import Reference

_LAYER = re.compile(r"layers\.(\d+)\.")

_INPUTS = {
    "self_attn.q": "input_layernorm",
    "self_attn.k": "input_layernorm",
    "self_attn.v": "input_layernorm",
    "self_attn.q_norm": "self_attn.q",
    "self_attn.k_norm": "self_attn.k",
    "self_attn.o": "self_attn.context",
    "post_attention_layernorm": "self_attn.o",
    "pre_feedforward_layernorm": "resid_mid",
    "mlp.gate": "pre_feedforward_layernorm",
    "mlp.up": "pre_feedforward_layernorm",
    "mlp.down": "mlp.hidden",
    "post_feedforward_layernorm": "mlp.down",
}
"""The input of each operation of a layer that has one input and a weight."""


class Operation:
    """The operation behind one record of a `Reference`, which reads all N tokens in one pass.

    `records` has the earlier records, and maybe later ones, by the names of `gemma_np.model.records`. What the
    reference computes from them is right [..., N, n]; what an implementation has in its place is found [..., N, n], if
    that is known for all tokens.
    """

    def __init__(
        self,
        name: str,
        reference: Reference,
        records: Mapping[str, np.ndarray],
        right: np.ndarray,
        found: np.ndarray | None = None,
    ) -> None:
        self.name, self.reference, self.records, self.right, self.found = name, reference, records, right, found
        match = _LAYER.match(name)
        self.layer = int(match[1]) if match else None
        self.part = name[match.end() :] if match else name  # its name within the layer

    @property
    def config(self) -> GemmaConfig:
        """Return the config of the model."""
        return self.reference.config

    @property
    def kind(self) -> str:
        """Return the name with `*` for the number of the layer."""
        return self.part if self.layer is None else f"layers.*.{self.part}"

    @property
    def stream(self) -> np.ndarray:
        """Return the residual stream before the layer, or after the last one: [N, D]."""
        layer = self.config.num_hidden_layers if self.layer is None else self.layer
        return self.records[f"layers.{layer - 1}.resid_post" if layer else "embedding"]

    @property
    def input(self) -> np.ndarray:
        """Return the input of an operation that has one input and a weight: [..., N, n]."""
        if self.part in ("input_layernorm", "norm"):
            return self.stream
        return self["norm"] if self.part == "logits" else self[_INPUTS[self.part]]

    def __getitem__(self, part: str) -> np.ndarray:
        """Return a record of the same layer, or one outside the layers."""
        return self.records[part if self.layer is None else f"layers.{self.layer}.{part}"]

    def earlier(self, part: str) -> bool:
        """Return whether this is an earlier record of the layer."""
        names = list(self.reference.slices)
        name = part if self.layer is None else f"layers.{self.layer}.{part}"
        return name in names and names.index(name) < names.index(self.name)

    def weight(self, part: str, layer: int | None = None) -> np.ndarray:
        """Return a weight of this layer, or of another one, by its name within the layer: [out, n] or [n]."""
        place = self.layer if layer is None else layer
        path = f"model.{part}.weight" if place is None else f"model.layers.{place}.{part}.weight"
        return np.asarray(self.reference.model.weights[path])

    @property
    def embedding(self) -> np.ndarray:
        """Return the embedding matrix: [V, D]."""
        return np.asarray(self.reference.model.weights["model.embed_tokens.weight"])

    def norm_weights(self) -> dict[str, np.ndarray]:
        """Return the norm weights of the layer, or of the whole model for the final norm, by name."""
        if self.layer is None:
            return {"norm": self.weight("norm")}
        prefix, end = f"model.layers.{self.layer}.", "norm.weight"
        return {
            path.removeprefix(prefix).removesuffix(".weight"): np.asarray(weight)
            for path, weight in self.reference.model.weights.items()
            if path.startswith(prefix) and path.endswith(end)
        }

    @property
    def norm_weight_name(self) -> str:
        """Return the name of the weight of a norm within its layer."""
        return pre_feedforward_name(self.config) if self.part == "pre_feedforward_layernorm" else self.part
